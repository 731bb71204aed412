"""Attention in which a query sees few of the keys: masked, gathered, and by FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from math import nan, sqrt
from typing import Any

from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.suites.attention import patterns, shapes
from wattline.suites.attention.gathering import gathered
from wattline.suites.attention.masks import Mask
from wattline.suites.attention.prefill import FORMAT_RULE, HEAD_RULE
from wattline.suites.attention.reference import (
    BATCHES,
    FULL_PAIRS,
    HEADS,
    ROWS,
    attend_rows,
    relative_error,
    tolerance,
)
from wattline.suites.attention.sdpa import attend, attend_free, tried
from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import never, torch_at_least
from wattline.suites.sampled import spread
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload


def _needs(pattern: str, names: tuple[str, ...], text: str, more: Callable[[ParamValues], bool]) -> Constraint:
    def holds(p: ParamValues) -> bool:
        if p["pattern"] != pattern:
            return all(not p[name] for name in names)
        return all(int(p[name]) > 0 for name in names) and more(p)

    return Constraint(f"{' and '.join(names)} above 0 with pattern={pattern} and there alone; {text}", holds)


RULES = (
    HEAD_RULE, FORMAT_RULE,
    Constraint("q_len is at most kv_len", lambda p: int(p["q_len"]) <= int(p["kv_len"])),
    Constraint("window above 0 with pattern=sink_window and there alone; window and sink together at most kv_len",
               lambda p: (int(p["window"]) > 0) == (p["pattern"] == "sink_window")
               and (p["pattern"] == "sink_window" or not p["sink"])
               and int(p["window"]) + int(p["sink"]) <= int(p["kv_len"])),
    Constraint("keep above 0 with pattern=block_topk and there alone; q_len equals kv_len and block is at most that",
               lambda p: (int(p["keep"]) > 0) == (p["pattern"] == "block_topk") and (p["pattern"] != "block_topk"
               or (p["q_len"] == p["kv_len"] and int(p["block"]) <= int(p["kv_len"])))),
    _needs("clusters", ("clusters",), "it divides q_len and kv_len",
           lambda p: int(p["kv_len"]) % int(p["clusters"]) == 0 and int(p["q_len"]) % int(p["clusters"]) == 0),
    _needs("budget", ("budget",), "at most kv_len", lambda p: int(p["budget"]) <= int(p["kv_len"])),
)  # fmt: skip


def inputs_of(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Q, K and V ``[batch, heads, length, head_dim]`` and what the pattern chooses."""
    batch, heads, kv_heads, d = (int(p[name]) for name in ("batch", "heads", "kv_heads", "head_dim"))
    dtype = str(p["dtype"])
    return {
        "q": ctx.tensor((batch, heads, int(p["q_len"]), d), dtype),
        "k": ctx.tensor((batch, kv_heads, int(p["kv_len"]), d), dtype),
        "v": ctx.tensor((batch, kv_heads, int(p["kv_len"]), d), dtype),
        "chosen": patterns.draw(p, ctx),
    }


@workload("attention.sparse", impl="mask")
class SparseAttention(Workload):
    """Attention over a pattern: sink and window, chosen blocks, clusters, or the keys that eviction left."""

    params = Params(
        *RULES,
        batch=Int(1, doc="sequences"),
        q_len=Int(doc="queries of each sequence, its last tokens"),
        kv_len=Int(doc="keys"),
        heads=Int(doc="query heads"),
        kv_heads=Int(doc="key-value heads"),
        head_dim=Int(doc="width of a head"),
        dtype=DType(doc="number format of Q, K, V and O"),
        pattern=Choice(*patterns.PATTERNS, doc="which keys a query sees"),
        window=Int(0, lo=0, doc="sink_window: most recent keys"),
        sink=Int(0, lo=0, doc="sink_window: first keys"),
        block=Int(64, doc="block_topk: tokens of a block; sink_window: queries that are gathered for together"),
        keep=Int(0, lo=0, doc="block_topk: blocks of keys for each block of queries, its own among them"),
        clusters=Int(0, lo=0, doc="clusters: how many, of equal size"),
        budget=Int(0, lo=0, doc="budget: keys kept of each key-value head"),
    )  # fmt: skip
    shape_sources = shapes.SOURCES
    tracks_memory = True

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: all keys are there, whoever sees them."""
        from wattline.workmodels import work_of

        return work_of("attention.prefill", {**p, "window": 0, "causal": False}).bytes_at()

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch's attention with the whole mask; pairs are computed and thrown away."""
        inputs = inputs_of(p, ctx)
        mask = patterns.dense(p, inputs["chosen"], inputs["q"].device)
        q, k, v = (inputs[name] for name in "qkv")
        attention = attend_free()
        call = tried(lambda: attention(q, k, v, mask), "with a mask", q.device)
        return Kernel(call, inputs, extra_bytes=mask.numel())

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        import torch

        i, allowed = kernel.inputs, tolerance(str(p["dtype"]))
        q, k, v = i["q"], i["k"], i["v"]
        batch, heads, q_len, d = q.shape
        if result.shape != q.shape or not bool(torch.isfinite(result).all()):
            return nan, allowed, "full"
        full = batch * heads * q_len * k.shape[2] <= FULL_PAIRS
        rows = torch.tensor(spread(q_len, q_len if full else ROWS), device=q.device)
        worst, group = 0.0, heads // k.shape[1]
        some = spread(heads, heads if full else HEADS)
        picked = [(b, h) for b in spread(batch, batch if full else BATCHES) for h in some]
        for b, h in picked:
            seen = patterns.visible(p, i["chosen"], b, h, rows)
            ref, _ = attend_rows(q[b, h][rows], k[b, h // group], v[b, h // group], seen, 1.0 / sqrt(d))
            worst = max(worst, relative_error(result[b, h][rows], ref))
        return worst, allowed, "full" if full else f"{len(rows)} rows of {len(picked)} heads"

    def scout(self, p: ParamValues, size: int = 256) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: a shorter context of which the same share is seen."""
        kv_len = int(p["kv_len"])
        if kv_len % size or kv_len <= size:
            return None
        shrunk = {**p, "kv_len": size, "q_len": max(1, int(p["q_len"]) * size // kv_len)}
        for name in ("window", "sink", "budget", "block"):
            shrunk[name] = max(1, int(p[name]) * size // kv_len) if p[name] else 0
        if p["clusters"]:
            clusters = int(p["clusters"])
            while size % clusters or int(shrunk["q_len"]) % clusters:
                clusters -= 1
            shrunk["clusters"] = clusters
        return shrunk


@implementation(
    "attention.sparse", "gather",
    requires=(
        never(lambda p, m: p["pattern"] in ("block_topk", "sink_window") and int(p["q_len"]) % int(p["block"]) != 0
              and int(p["q_len"]) > int(p["block"]), "alignment", "it gathers for whole blocks of queries"),
    ),
)  # fmt: skip
def gather(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The keys that are seen brought together, then attention over these alone; both are timed."""
    inputs = inputs_of(p, ctx)
    return Kernel(tried(gathered(p, inputs), "over gathered keys", inputs["q"].device), inputs)


@implementation(
    "attention.sparse", "compact",
    requires=(never(lambda p, m: p["pattern"] != "budget", "no_eviction", "only pattern=budget evicts keys for good"),),
)  # fmt: skip
def compact(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The kept keys alone in memory, as after eviction: plain attention over them."""
    inputs = inputs_of(p, ctx)
    where = inputs["chosen"]["keys"][..., None].expand(-1, -1, -1, int(p["head_dim"]))
    k, v = (inputs[name].gather(2, where) for name in ("k", "v"))
    full = Mask(int(p["q_len"]), int(p["budget"]), causal=False)
    call = attend(inputs["q"], k, v, full, "flash" if _half(p, inputs) else "efficient")
    return Kernel(call, inputs, extra_bytes=2 * k.numel() * k.element_size())


def _half(p: ParamValues, inputs: dict[str, Any]) -> bool:
    return p["dtype"] in ("bf16", "fp16") or inputs["q"].device.type == "cpu"


@implementation(
    "attention.sparse", "flex",
    requires=(
        torch_at_least(2, 6), compiler(),
        never(lambda p, m: p["dtype"] == "fp64", "no_kernel", "FlexAttention has no fp64 kernel"),
        never(lambda p, m: int(p["head_dim"]) < 16, "head_dim", "FlexAttention needs a head_dim of at least 16"),
    ),
)  # fmt: skip
def flex(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torch's FlexAttention: blocks of keys that no query of a block sees are left out."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    inputs = inputs_of(p, ctx)
    rule, each = flex_rule(p, inputs["chosen"])
    sizes = (int(p["batch"]), int(p["heads"])) if each else (None, None)
    device = str(torch.device(ctx.torch_device))
    block = create_block_mask(rule, *sizes, int(p["q_len"]), int(p["kv_len"]), device=device)
    options = (None, block, None, p["heads"] != p["kv_heads"])
    q, k, v = (inputs[name] for name in "qkv")
    ready, seconds = compiled(flex_attention, q, k, v, *options)
    return Kernel(lambda: ready(q, k, v, *options), inputs, facts={"compile_s": seconds})


def flex_rule(p: ParamValues, chosen: dict[str, Any]) -> tuple[Callable[..., Any], bool]:
    """The pattern as FlexAttention takes it, and whether it differs between sequences and heads."""
    import torch

    offset = int(p["kv_len"]) - int(p["q_len"])
    group = int(p["heads"]) // int(p["kv_heads"])
    if p["pattern"] == "sink_window":
        window, sink = int(p["window"]), int(p["sink"])
        return lambda b, h, i, j: (j <= i + offset) & ((j > i + offset - window) | (j < sink)), False
    if p["pattern"] == "block_topk":
        block, blocks = int(p["block"]), chosen["blocks"]
        table = torch.zeros(*blocks.shape[:3], blocks.shape[2] + 1, dtype=torch.bool, device=blocks.device)
        table.scatter_(3, blocks % (blocks.shape[2] + 1), True)  # -1, no block, falls into the column behind the last
        return lambda b, h, i, j: table[b, h // group, i // block, j // block] & (j <= i), True
    if p["pattern"] == "clusters":
        keys, queries = (_labels(chosen[name]) for name in ("keys", "queries"))
        return lambda b, h, i, j: queries[b, h, i] == keys[b, h // group, j], True
    kept = torch.zeros(*chosen["keys"].shape[:2], int(p["kv_len"]), dtype=torch.bool, device=chosen["keys"].device)
    kept.scatter_(2, chosen["keys"], True)
    return lambda b, h, i, j: kept[b, h // group, j], True


def _labels(members: Any) -> Any:
    """Cluster of each token ``[batch, heads, length]`` from ``[batch, heads, clusters, size]``."""
    import torch

    batch, heads, clusters, size = members.shape
    labels = torch.arange(clusters, device=members.device).repeat_interleave(size).expand(batch, heads, -1)
    return torch.empty_like(labels).scatter_(2, members.flatten(2), labels)
