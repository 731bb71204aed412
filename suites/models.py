"""Public model architectures and the matrix products of their layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from typing import Any

from wattline.errors import ParamError, SchemaError, UsageError, unknown_name


@dataclass(frozen=True)
class Layer:
    """One weight matrix of a model: tokens [m, k] times its transpose [k, n].

    Attributes:
        name: what it does, e.g. ``"qkv"``.
        n: output features.
        k: input features.
        count: how often it is applied per token in the whole model.
    """

    name: str
    n: int
    k: int
    count: int = 1


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer. Sizes in elements.

    Attributes:
        name: key in ``models.toml``.
        source: where the figures come from.
        hidden: width of the residual stream.
        intermediate: width of a dense feed-forward layer; 0 where every layer has experts.
        layers: decoder layers.
        heads, kv_heads, head_dim: attention heads, key-value heads, and the width of each.
        vocab: vocabulary.
        gated: the feed-forward has a gate (SwiGLU, GeGLU): two up-projections.
        experts, top_k: routed experts and how many a token visits; 0 without.
        expert_intermediate: width of one expert.
        shared_experts: experts that every token visits.
        dense_layers: leading layers with a dense feed-forward, where the others have experts.
        q_rank, kv_rank, rope_dim, nope_dim, v_dim: of multi-head latent attention; 0 without.
    """

    name: str
    source: str
    hidden: int
    layers: int
    heads: int
    vocab: int
    intermediate: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    gated: bool = True
    experts: int = 0
    top_k: int = 0
    expert_intermediate: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    v_dim: int = 0

    def divides(self, tp: int) -> bool:
        """Whether its heads and feed-forward can be sliced ``tp`` ways."""
        widths = [w for w in (self.intermediate, self.expert_intermediate) if w]
        return tp >= 1 and self.heads % tp == 0 and all(w % tp == 0 for w in widths)

    def gemm_layers(self, tp: int = 1) -> list[Layer]:
        """The dense weight matrices of one tensor-parallel rank of ``tp``.

        Projections into heads and into the feed-forward are sliced by columns, those back by rows (Shoeybi et al.,
        "Megatron-LM", arXiv:1909.08053); key-value heads are replicated where there are fewer than ranks; low-rank
        projections and the router are replicated; the vocabulary is padded to a multiple of ``tp``. A gate and
        its up-projection count as one matrix, as inference engines fuse them.

        Raises:
            ParamError: ``tp`` is below 1.
            UsageError: the heads or widths are no multiple of ``tp``.
        """
        if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1:
            raise ParamError(f"the tensor-parallel degree must be a whole number above zero, not {tp!r}")
        if not self.divides(tp):
            raise UsageError(
                f"{self.name} cannot be sliced {tp} ways",
                why=f"{self.heads} heads, feed-forward {self.intermediate or self.expert_intermediate}",
                todo="choose a degree that divides them",
            )
        found = [*self._attention(tp), *self._feed_forward(tp)]
        found.append(Layer("lm_head", -(-self.vocab // tp), self.hidden))
        return found

    def _attention(self, tp: int) -> list[Layer]:
        heads = self.heads // tp
        if self.kv_rank:
            return [
                Layer("q_down", self.q_rank, self.hidden, self.layers),
                Layer("q_up", heads * (self.nope_dim + self.rope_dim), self.q_rank, self.layers),
                Layer("kv_down", self.kv_rank + self.rope_dim, self.hidden, self.layers),
                Layer("kv_up", heads * (self.nope_dim + self.v_dim), self.kv_rank, self.layers),
                Layer("attention_out", self.hidden, heads * self.v_dim, self.layers),
            ]
        kv_heads = max(1, self.kv_heads // tp)
        return [
            Layer("qkv", (heads + 2 * kv_heads) * self.head_dim, self.hidden, self.layers),
            Layer("attention_out", self.hidden, heads * self.head_dim, self.layers),
        ]

    def _feed_forward(self, tp: int) -> list[Layer]:
        found = []
        into = 2 if self.gated else 1
        up = "gate_up" if self.gated else "up"
        dense = self.dense_layers if self.experts else self.layers
        if self.intermediate and dense:
            found.append(Layer(up, into * self.intermediate // tp, self.hidden, dense))
            found.append(Layer("down", self.hidden, self.intermediate // tp, dense))
        if self.experts:
            width, sparse = self.expert_intermediate // tp, self.layers - dense
            visits = sparse * (self.top_k + self.shared_experts)
            found.append(Layer("router", self.experts, self.hidden, sparse))
            found.append(Layer(f"expert_{up}", into * width, self.hidden, visits))
            found.append(Layer("expert_down", self.hidden, width, visits))
        return found

    def parameters(self) -> int:
        """Weights of all matrices, embedding and (untied) head included; norms and biases left out."""
        total = 2 * self.vocab * self.hidden
        for layer in self.gemm_layers():
            if layer.name == "lm_head":
                continue
            count = layer.count
            if layer.name.startswith("expert_"):
                count = count // (self.top_k + self.shared_experts) * (self.experts + self.shared_experts)
            total += count * layer.n * layer.k
        return total


@lru_cache(maxsize=1)
def known_models() -> Mapping[str, Model]:
    """The models of ``models.toml`` by name.

    Raises:
        SchemaError: the table has an unknown or a missing field.
    """
    import tomllib

    text = resources.files("wattline.suites").joinpath("models.toml").read_text(encoding="utf-8")
    return {name: _model(name, entry) for name, entry in tomllib.loads(text).items()}


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    known = {f.name for f in fields(Model)}
    for key in entry:
        if key not in known:
            raise SchemaError(f"model {name} has no field {key!r}", why=f"fields: {', '.join(sorted(known))}")
    try:
        return Model(name=name, **entry)
    except TypeError as error:
        raise SchemaError(f"model {name} is incomplete", why=str(error)) from None


def get_model(name: str) -> Model:
    """The model of that name.

    Raises:
        UnknownNameError: the table has none.
    """
    models = known_models()
    if name not in models:
        raise unknown_name("model", name, models)
    return models[name]
