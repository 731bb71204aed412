"""Mixture-of-experts feed-forward layers: tokens sent to experts, each a small network, and brought back together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log2, nan, sqrt
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, Constraint, DType, Flag, Float, Int, Params, Value
from wattline.reasons import Reason
from wattline.suites.gemm.routing import ROUTINGS, Routing, draw
from wattline.suites.gemm.shapes import ShapeSet, Sizes
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload

FORMATS = ("fp32", "bf16", "fp16")
RULES = (
    Constraint("top_k is at most experts", lambda p: int(p["top_k"]) <= int(p["experts"])),
    Constraint("experts is a multiple of ep", lambda p: int(p["experts"]) % int(p["ep"]) == 0),
    Constraint("intermediate is a multiple of tp", lambda p: int(p["intermediate"]) % int(p["tp"]) == 0),
    Constraint("skew is 0 unless routing=power_law", lambda p: p["routing"] == "power_law" or p["skew"] == 0.0),
)
CHECKED = 48
"""Tokens whose outputs are compared: each costs ``top_k`` experts in double precision."""
SHOWN = 512
"""Most experts whose counts a record lists."""


def layers(
    models: Sequence[str] | str = ("mixtral-8x7b",), tokens: Sizes = "1:4096:x4", ep: Sizes = 1, tp: Sizes = 1
) -> Iterator[ShapeSet]:
    """Expert layers of public models.

    Args:
        models: names in the model table, of models with experts.
        tokens: in a batch.
        ep, tp: expert- and tensor-parallel degrees; those that do not divide a model are left out for it.
    """
    from wattline.errors import UsageError
    from wattline.ranges import parse_range
    from wattline.suites.models import get_model

    def sizes(given: Sizes) -> list[int]:
        if isinstance(given, str | int):
            return parse_range(given)
        return [v for item in given for v in parse_range(item)]

    for name in (models,) if isinstance(models, str) else models:
        model = get_model(name)
        if not model.experts:
            raise UsageError(f"{name} has no experts", todo="choose a mixture of experts: `wattline list models`")
        for degree in sizes(ep):
            for slices in sizes(tp):
                if model.experts % degree or model.expert_intermediate % slices:
                    continue
                for count in sizes(tokens):
                    yield {
                        "tokens": count, "hidden": model.hidden, "intermediate": model.expert_intermediate,
                        "experts": model.experts, "top_k": model.top_k, "gated": model.gated, "ep": degree,
                        "tp": slices,
                    }  # fmt: skip


def random(
    count: int = 16, *, seed: int = 0, max_tokens: int = 512, lo: int = 64, hi: int = 512, max_experts: int = 32
) -> Iterator[ShapeSet]:
    """Points spread log-uniformly over tokens, widths and experts, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        max_tokens: most tokens.
        lo, hi: least and most of hidden and intermediate, which are multiples of 16.
        max_experts: most experts.
    """
    for u in points(5, count, seed=seed):
        experts = 2 ** round(log2(log_uniform(u[3], 2, max_experts)))
        yield {
            "tokens": round(log_uniform(u[0], 1, max_tokens)),
            "hidden": -(-round(log_uniform(u[1], lo, hi)) // 16) * 16,
            "intermediate": -(-round(log_uniform(u[2], lo, hi)) // 16) * 16,
            "experts": experts,
            "top_k": min(experts, 2 ** int(u[4] * 3)),
        }


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {"layers": layers, "random": random}


def routing_of(p: ParamValues) -> Routing:
    """The routing that the parameters name."""
    return draw(
        int(p["tokens"]), int(p["experts"]), int(p["top_k"]), routing=str(p["routing"]), skew=float(p["skew"]),
        ep=int(p["ep"]), seed=int(p["routing_seed"]),
    )  # fmt: skip


def parts(p: ParamValues, ctx: BuildContext) -> tuple[dict[str, Any], Routing]:
    """Tokens, weights and routing on the device.

    ``x`` is ``[tokens, hidden]``; ``up`` (gate and up-projection side by side where gated) ``[local, hidden, inner or
    2 inner]``; ``down`` ``[local, inner, hidden]``; ``experts`` and ``weights`` ``[tokens, top_k]``. Weights are scaled
    by a power of two near ``1 / sqrt(width)``, as trained ones are, so that 16-bit formats hold every product.
    """
    set_precision(str(p["dtype"]))
    dtype, hidden = str(p["dtype"]), int(p["hidden"])
    inner = int(p["intermediate"]) // int(p["tp"])
    routing = routing_of(p)
    up = ctx.tensor((routing.local, hidden, inner * (2 if p["gated"] else 1)), dtype)
    down = ctx.tensor((routing.local, inner, hidden), dtype)
    up.mul_(2.0 ** -round(log2(sqrt(hidden))))
    down.mul_(2.0 ** -round(log2(sqrt(inner))))
    x = ctx.tensor((int(p["tokens"]), hidden), dtype)
    inputs = {
        "x": x, "up": up, "down": down, "experts": routing.experts.to(x.device),
        "weights": routing.weights.to(x.device, x.dtype),
    }  # fmt: skip
    return inputs, routing


def activate(h: Any, gated: bool) -> Any:
    """SiLU, of the gate times the up-projection where gated (Shazeer, "GLU variants", arXiv:2002.05202).

    Args:
        h: ``[..., inner or 2 inner]``.
        gated: its first half is the gate.
    """
    from torch.nn.functional import silu

    if not gated:
        return silu(h)
    inner = h.shape[-1] // 2
    return silu(h[..., :inner]) * h[..., inner:]


def kernel(call: Callable[[], Any], inputs: dict[str, Any], routing: Routing, **more: Any) -> Kernel:
    """A kernel with what its record says of the routing."""
    facts: dict[str, Any] = {"pairs": routing.pairs, "imbalance": routing.imbalance, "rank": routing.rank, **more}
    if routing.local <= SHOWN:
        facts["tokens_per_expert"] = list(routing.counts)
    return Kernel(call, inputs, facts=facts)


@workload("gemm.moe", impl="torch")
class Moe(Workload):
    """Tokens through their experts' feed-forward networks, weighted and summed.

    The routing decision is given; gathering the tokens, the products, and bringing them back is what is timed. With
    ``ep`` ranks the most loaded one is measured.
    """

    params = Params(
        *RULES,
        tokens=Int(doc="tokens of the batch"),
        hidden=Int(doc="width of a token"),
        intermediate=Int(doc="width inside an expert"),
        experts=Int(doc="experts of the layer"),
        top_k=Int(2, doc="experts that a token visits"),
        dtype=DType(*FORMATS, doc="number format of tokens and weights"),
        gated=Flag(True, doc="experts have a gate: three matrices, not two"),
        routing=Choice(*ROUTINGS, doc="how tokens are spread over experts"),
        skew=Float(0.0, lo=0.0, hi=10.0, doc="exponent of the power law"),
        ep=Int(1, doc="expert-parallel ranks"),
        tp=Int(1, doc="tensor-parallel ranks"),
        routing_seed=Int(0, lo=0, doc="seed of the routing"),
    )
    shape_sources = SOURCES

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the weights of all experts of the rank are there, visited or not."""
        inner, hidden = int(p["intermediate"]) / int(p["tp"]), int(p["hidden"])
        weights = int(p["experts"]) / int(p["ep"]) * (3 if p["gated"] else 2) * inner * hidden
        return (weights + 2.0 * int(p["tokens"]) * hidden) * number_format(str(p["dtype"])).bytes

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: one expert after the other."""
        import torch

        inputs, routing = parts(p, ctx)
        x, up, down, experts, weights = inputs.values()
        gated = bool(p["gated"])

        def call() -> Any:
            out = torch.zeros_like(x)
            for e in range(routing.local):
                token, slot = torch.where(experts == e)
                if not token.numel():
                    continue
                y = activate(x[token] @ up[e], gated) @ down[e]
                out.index_add_(0, token, y * weights[token, slot, None])
            return out

        return kernel(call, inputs, routing)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        import torch

        x, up, down, experts, weights = kernel.inputs.values()
        tokens, local = x.shape[0], up.shape[0]
        if tuple(result.shape) != tuple(x.shape):
            return nan, 0.0, f"shape {tuple(result.shape)} instead of {tuple(x.shape)}"
        some = min(tokens, CHECKED)
        chosen = sorted({round(i * (tokens - 1) / max(1, some - 1)) for i in range(some)})
        ref = torch.zeros(len(chosen), x.shape[1], dtype=torch.float64, device=x.device)
        for row, t in enumerate(chosen):
            for e, w in zip(experts[t].tolist(), weights[t].double(), strict=True):
                if e < local:
                    h = activate(x[t].double() @ up[e].double(), bool(p["gated"]))
                    ref[row] += w * (h @ down[e].double())
        out = result[chosen].double()
        size = float(torch.linalg.vector_norm(ref))
        apart = float(torch.linalg.vector_norm(out - ref))
        how = "full" if len(chosen) == tokens else f"{len(chosen)} tokens"
        allowed = 3.0 * number_format(str(p["dtype"])).tolerance  # rounded after each of two products and the sum
        return (apart / size if size else (0.0 if apart == 0 else nan)), allowed, how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer tokens and narrower experts."""
        if max(int(p["tokens"]), int(p["hidden"]), int(p["intermediate"])) <= size:
            return None
        tp = int(p["tp"])
        inner = max(1, min(int(p["intermediate"]), size) // tp) * tp
        tokens, hidden = min(int(p["tokens"]), size), min(int(p["hidden"]), size)
        return {**p, "tokens": tokens, "hidden": hidden, "intermediate": inner}


def sorted_pairs(experts: Any, local: int, pairs: int) -> tuple[Any, Any, Any]:
    """Pairs of this rank by expert.

    Args:
        experts: ``[tokens, top_k]``, as in :class:`~wattline.suites.gemm.routing.Routing`.
        local: experts of this rank.
        pairs: how many there are; known to whoever dispatched them.

    Returns:
        Token and slot of each pair ``[pairs]``, and the end of every expert's stretch ``[local]``, int32.
    """
    import torch

    flat = experts.flatten()
    order = torch.argsort(flat, stable=True)[:pairs]
    ends = torch.bincount(flat, minlength=local + 1)[:local].cumsum(0).to(torch.int32)
    return order // experts.shape[1], order % experts.shape[1], ends


def _grouped_mm() -> Requirement:
    """torch's grouped product is private and young, and takes few formats on GPUs."""
    text = "torch._grouped_mm: torch 2.9, rows of whole 16 bytes, on NVIDIA GPUs bf16"

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        if machine.torch_version < (2, 9):
            return Reason("old_torch", f"it needs {text}")
        width = number_format(str(p["dtype"])).bytes
        if any(size * width % 16 for size in (int(p["hidden"]), int(p["intermediate"]) // int(p["tp"]))):
            return Reason("alignment", "torch's grouped product wants rows of whole 16 bytes")
        if machine.kind == "cpu":
            return None
        if machine.kind != "cuda" or machine.hip:
            return Reason("no_kernel", f"torch has no grouped product for devices of type {machine.kind}")
        if p["dtype"] != "bf16":
            return Reason("no_kernel", "torch's grouped product takes bf16 only on a GPU")
        return None

    return Requirement(text, unmet)


@implementation("gemm.moe", "grouped", requires=(_grouped_mm(),))
def grouped(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Tokens sorted by expert, then one grouped product for all of them (torch._grouped_mm)."""
    import torch

    inputs, routing = parts(p, ctx)
    x, up, down, experts, weights = inputs.values()
    gated, product = bool(p["gated"]), torch._grouped_mm  # private, but torch's only entry to it

    def call() -> Any:
        token, slot, ends = sorted_pairs(experts, routing.local, routing.pairs)
        y = product(activate(product(x[token], up, offs=ends), gated), down, offs=ends)
        return torch.zeros_like(x).index_add_(0, token, y * weights[token, slot, None])

    return kernel(call, inputs, routing)


@implementation("gemm.moe", "padded")
def padded(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Every expert's tokens padded to those of the busiest, then batched products."""
    import torch

    inputs, routing = parts(p, ctx)
    x, up, down, experts, weights = inputs.values()
    gated, most = bool(p["gated"]), max(1, *routing.counts)

    def call() -> Any:
        token, slot, ends = sorted_pairs(experts, routing.local, routing.pairs)
        expert = experts[token, slot]
        begins = torch.cat([ends.new_zeros(1), ends[:-1]]).long()
        place = torch.arange(len(token), device=x.device) - begins[expert]
        rows = x.new_zeros(routing.local, most, x.shape[1])
        rows[expert, place] = x[token]
        y = torch.bmm(activate(torch.bmm(rows, up), gated), down)[expert, place]
        return torch.zeros_like(x).index_add_(0, token, y * weights[token, slot, None])

    share = routing.local * most / max(1, routing.pairs)
    return kernel(call, inputs, routing, padded_rows_ratio=share)
