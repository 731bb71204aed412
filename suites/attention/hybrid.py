"""A piece of a prompt and the newest tokens of other sequences in one batch: together, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan, sqrt
from typing import Any

from wattline.params import Constraint, DType, Int, Params, Value
from wattline.suites.attention import shapes
from wattline.suites.attention.masks import Mask
from wattline.suites.attention.prefill import FORMAT_RULE, HEAD_RULE
from wattline.suites.attention.reference import attend_rows, relative_error, tolerance
from wattline.suites.attention.sdpa import attend_queries
from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import cuda_api, never, torch_at_least
from wattline.suites.sampled import spread
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

SOME_RULE = Constraint("chunk or decodes is above 0", lambda p: int(p["chunk"]) + int(p["decodes"]) > 0)
CHUNK_RULE = Constraint(
    "chunk is at most chunk_context: its tokens are the last of that context",
    lambda p: int(p["chunk"]) <= int(p["chunk_context"]),
)
ROWS = 16
FACTOR = 2.0
"""On the tolerance of attention where projections stand before and behind: two more products round."""


def inputs_of(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Tokens (or their Q), caches, and the weights of the projections.

    Returns:
        ``x`` ``[tokens, hidden]`` and weights ``w_q``, ``w_k``, ``w_v`` ``[..., hidden]``, ``w_o`` ``[hidden, ...]``,
        or without ``hidden`` ``q`` ``[tokens, heads * head_dim]``; tokens of the chunk come first. Caches ``k_chunk``
        ``[1, kv_heads, chunk_context, head_dim]`` and ``k_decode`` ``[decodes, kv_heads, decode_context, head_dim]``,
        and those of the values; the newest keys lie in them already.
    """
    chunk, decodes, heads, kv_heads, d, hidden = (
        int(p[name]) for name in ("chunk", "decodes", "heads", "kv_heads", "head_dim", "hidden")
    )
    dtype, tokens = str(p["dtype"]), chunk + decodes
    found: dict[str, Any] = {}
    if hidden:
        found["x"] = ctx.tensor((tokens, hidden), dtype)
        for name, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            # Rows of a random matrix of this scale keep what they multiply at its size.
            found[f"w_{name}"] = ctx.tensor((width * d, hidden), dtype).mul_(hidden**-0.5)
        found["w_o"] = ctx.tensor((hidden, heads * d), dtype).mul_((heads * d) ** -0.5)
    else:
        found["q"] = ctx.tensor((tokens, heads * d), dtype)
    sizes = {"chunk": (1, int(p["chunk_context"]), chunk), "decode": (decodes, int(p["decode_context"]), decodes)}
    for part, (batch, length, there) in sizes.items():
        if there:
            for name in ("k", "v"):
                found[f"{name}_{part}"] = ctx.tensor((batch, kv_heads, length, d), dtype)
    return found


def attention_of(p: ParamValues, inputs: dict[str, Any], example: Any) -> tuple[Callable[[Any], Any], ...]:
    """Attention of the chunk and of the decodes, each of tokens ``[n, heads * head_dim]`` to the same shape.

    Args:
        p: the parameters.
        inputs: with the caches.
        example: Q of all tokens; each kernel is tried once.
    """
    chunk, decodes, heads, d = (int(p[name]) for name in ("chunk", "decodes", "heads", "head_dim"))
    backend = "flash" if p["dtype"] in ("bf16", "fp16") or example.device.type == "cpu" else "efficient"

    def prompt(q: Any) -> Any:
        out = attend_chunk(q.view(1, chunk, heads, d).transpose(1, 2))
        return out.transpose(1, 2).reshape(chunk, heads * d)

    def newest(q: Any) -> Any:
        return attend_newest(q.view(decodes, heads, 1, d)).reshape(decodes, heads * d)

    parts: list[Callable[[Any], Any]] = []
    if chunk:
        mask = Mask(chunk, int(p["chunk_context"]))
        q = example[:chunk].view(1, chunk, heads, d).transpose(1, 2)
        attend_chunk = attend_queries(q, inputs["k_chunk"], inputs["v_chunk"], mask, backend)
        parts.append(prompt)
    if decodes:
        mask = Mask(1, int(p["decode_context"]))
        q = example[chunk:].view(decodes, heads, 1, d)
        attend_newest = attend_queries(q, inputs["k_decode"], inputs["v_decode"], mask, backend)
        parts.append(newest)
    return tuple(parts)


def project(x: Any, inputs: dict[str, Any], out: list[Any]) -> Any:
    """Q of some tokens; their new keys and values are computed as well, and handed to ``out``."""
    from torch.nn.functional import linear

    out += [linear(x, inputs["w_k"]), linear(x, inputs["w_v"])]
    return linear(x, inputs["w_q"])


def split_kernel(p: ParamValues, ctx: BuildContext, *, joined: bool) -> Kernel:
    """Attention of chunk and decodes by one call each; projections of all tokens at once (``joined``) or of each."""
    import torch
    from torch.nn.functional import linear

    inputs = inputs_of(p, ctx)
    if not p["hidden"]:
        q = inputs["q"]
        parts = attention_of(p, inputs, q)
        slices = _slices(p)
        pieces = [q[s] for s in slices]
        return Kernel(lambda: torch.cat([part(piece) for part, piece in zip(parts, pieces, strict=True)]), inputs)
    x = inputs["x"]
    parts = attention_of(p, inputs, linear(x, inputs["w_q"]))
    slices = _slices(p)

    def together() -> Any:
        new: list[Any] = []
        q = project(x, inputs, new)
        out = torch.cat([part(q[s]) for part, s in zip(parts, slices, strict=True)])
        return linear(out, inputs["w_o"]), new

    def apart() -> Any:
        new: list[Any] = []
        out = [linear(part(project(x[s], inputs, new)), inputs["w_o"]) for part, s in zip(parts, slices, strict=True)]
        return torch.cat(out), new

    return Kernel(together if joined else apart, inputs)


def _slices(p: ParamValues) -> list[slice]:
    chunk, tokens = int(p["chunk"]), int(p["chunk"]) + int(p["decodes"])
    return [s for s in (slice(0, chunk), slice(chunk, tokens)) if s.stop > s.start]


def batches(
    models: Sequence[str] | str = ("llama-3-8b",), *, chunk: shapes.Sizes = "0,256,512", decodes: shapes.Sizes = "0,32",
    chunk_context: shapes.Sizes = 2048, decode_context: shapes.Sizes = 2048, tp: shapes.Sizes = 1,
    projected: bool = True,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Chunks by decodes, with the heads and width of public models.

    Args:
        models: names in the model table.
        chunk, decodes: tokens of the prompt, sequences with one new token.
        chunk_context, decode_context: keys of either.
        tp: tensor-parallel degrees.
        projected: with the projections of the model.
    """
    from wattline.suites.models import get_model

    for name in (models,) if isinstance(models, str) else models:
        for degree in shapes.sizes_of(tp):
            hidden = get_model(name).hidden if projected else 0
            for context in shapes.sizes_of(chunk_context):
                for cache in shapes.sizes_of(decode_context):
                    for n in shapes.sizes_of(decodes):
                        for c in shapes.sizes_of(chunk):
                            if c + n > 0 and c <= context:
                                yield {**shapes.heads_of(name, degree), "hidden": hidden, "chunk": c, "decodes": n,
                                       "chunk_context": context, "decode_context": cache}  # fmt: skip


SOURCES: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"batches": batches}


@workload("attention.hybrid", impl="apart")
class Hybrid(Workload):
    """One chunk of a prompt and one new token of each of many sequences in a batch."""

    params = Params(
        HEAD_RULE, FORMAT_RULE, SOME_RULE, CHUNK_RULE,
        chunk=Int(lo=0, doc="tokens of the prompt that are computed now; 0: none"),
        chunk_context=Int(doc="tokens of the prompt up to and with them"),
        decodes=Int(lo=0, doc="sequences with one new token; 0: none"),
        decode_context=Int(doc="keys of each of those"),
        heads=Int(doc="query heads"),
        kv_heads=Int(doc="key-value heads"),
        head_dim=Int(doc="width of a head"),
        hidden=Int(0, lo=0, doc="width of the layer, whose projections are part of it; 0: attention alone"),
        dtype=DType(doc="number format"),
    )  # fmt: skip
    shape_sources = SOURCES

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: the chunk first, then the decodes, as two batches."""
        return split_kernel(p, ctx, joined=False)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: some tokens of either kind."""
        import torch

        i, allowed = kernel.inputs, tolerance(str(p["dtype"]))
        chunk, decodes, heads, kv_heads, d = (
            int(p[name]) for name in ("chunk", "decodes", "heads", "kv_heads", "head_dim")
        )
        out = result[0] if p["hidden"] else result
        width = int(p["hidden"]) or heads * d
        if tuple(out.shape) != (chunk + decodes, width) or not bool(torch.isfinite(out).all()):
            return nan, allowed, "full"
        picked = spread(chunk, ROWS) + [chunk + n for n in spread(decodes, ROWS)]
        ref = torch.empty(len(picked), heads * d, dtype=torch.float64, device=out.device)
        scale = 1.0 / sqrt(d)
        for at, token in enumerate(picked):
            prompt = token < chunk
            part, which = ("chunk", 0) if prompt else ("decode", token - chunk)
            q = i["x"][token].double() @ i["w_q"].double().T if p["hidden"] else i["q"][token].double()
            mask = Mask(chunk, int(p["chunk_context"])) if prompt else Mask(1, int(p["decode_context"]))
            seen = mask.visible(torch.tensor([token if prompt else 0], device=out.device))
            for h in range(heads):
                shared = h // (heads // kv_heads)
                k, v = i[f"k_{part}"][which, shared], i[f"v_{part}"][which, shared]
                ref[at, h * d : h * d + d] = attend_rows(q[None, h * d : h * d + d], k, v, seen, scale)[0]
        if p["hidden"]:
            ref, allowed = ref @ i["w_o"].double().T, FACTOR * allowed
        how = "full" if len(picked) == chunk + decodes else f"{len(picked)} tokens"
        return relative_error(out[picked], ref), allowed, how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`."""
        contexts = {name: min(int(p[name]), size) for name in ("chunk_context", "decode_context")}
        if all(contexts[name] == p[name] for name in contexts):
            return None
        chunk = int(p["chunk"])
        return {**p, **contexts, "chunk": min(contexts["chunk_context"], max(1, chunk // 8)) if chunk else 0}


@implementation(
    "attention.hybrid", "together",
    requires=(never(lambda p, m: not p["hidden"], "no_projection",
                    "without projections nothing is computed together but attention itself: see packed, streams"),),
)  # fmt: skip
def together(p: ParamValues, ctx: BuildContext) -> Kernel:
    """One batch: projections of all tokens in one product each, attention of the two kinds one after the other."""
    return split_kernel(p, ctx, joined=True)


@implementation(
    "attention.hybrid", "packed",
    requires=(
        torch_at_least(2, 6), compiler(),
        never(lambda p, m: bool(p["hidden"]), "projection", "it packs attention alone; hidden must be 0"),
        never(lambda p, m: p["dtype"] == "fp64", "no_kernel", "FlexAttention has no fp64 kernel"),
        never(lambda p, m: int(p["head_dim"]) < 16, "head_dim", "FlexAttention needs a head_dim of at least 16"),
    ),
)  # fmt: skip
def packed(p: ParamValues, ctx: BuildContext) -> Kernel:
    """All queries and all keys in a row, one call of FlexAttention whose mask keeps the sequences apart."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    inputs = inputs_of(p, ctx)
    chunk, decodes, heads, kv_heads, d = (
        int(p[name]) for name in ("chunk", "decodes", "heads", "kv_heads", "head_dim")
    )
    context = int(p["chunk_context"]) if chunk else 0
    cache, device = int(p["decode_context"]), torch.device(ctx.torch_device)
    keys, values = (
        torch.cat(
            ([inputs[f"{name}_chunk"]] if chunk else [])
            + ([inputs[f"{name}_decode"].transpose(0, 1).reshape(1, kv_heads, decodes * cache, d)] if decodes else []),
            dim=2,
        )
        for name in ("k", "v")
    )
    q = inputs["q"].view(1, chunk + decodes, heads, d).transpose(1, 2)

    def sees(b: Any, h: Any, i: Any, j: Any) -> Any:
        prompt = (i < chunk) & (j < context) & (j <= i + context - chunk)
        newest = (i >= chunk) & (j >= context) & ((j - context) // cache == i - chunk)
        return prompt | newest

    block = create_block_mask(sees, None, None, chunk + decodes, keys.shape[2], device=str(device))
    options = (None, block, None, heads != kv_heads)
    ready, seconds = compiled(flex_attention, q, keys, values, *options)

    def call() -> Any:
        return ready(q, keys, values, *options).transpose(1, 2).reshape(chunk + decodes, heads * d)

    return Kernel(call, inputs, facts={"compile_s": seconds})


@implementation(
    "attention.hybrid", "streams",
    requires=(
        cuda_api(),
        never(lambda p, m: bool(p["hidden"]), "projection", "it overlaps attention alone; hidden must be 0"),
        never(lambda p, m: not (p["chunk"] and p["decodes"]), "one_kind", "it takes both kinds to overlap them"),
    ),
)  # fmt: skip
def streams(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Chunk and decodes at the same time, each on a stream of its own."""
    import torch

    inputs = inputs_of(p, ctx)
    q = inputs["q"]
    parts = attention_of(p, inputs, q)
    pieces = [q[s] for s in _slices(p)]
    side = torch.cuda.Stream()

    def call() -> Any:
        here = torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            newest = parts[1](pieces[1])
        prompt = parts[0](pieces[0])
        here.wait_stream(side)
        return torch.cat([prompt, newest])

    return Kernel(call, inputs)
