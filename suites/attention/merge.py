"""Attention in parts: over shards of a context, over a prefix that sequences share, and the cost of merging."""

from __future__ import annotations

from collections.abc import Callable
from math import nan, sqrt
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.suites.attention import shapes
from wattline.suites.attention.masks import Mask
from wattline.suites.attention.partial import attention_with_lse, merge_pairwise, merge_stacked
from wattline.suites.attention.prefill import FORMAT_RULE, HEAD_RULE
from wattline.suites.attention.reference import compare, relative_error, tolerance
from wattline.suites.attention.sdpa import attend, tiled_backend
from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import never
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

Merge = Callable[[Any, Any], tuple[Any, Any]]

PREFIX_RULE = Constraint(
    "prefix is below kv_len, and above 0 exactly where phase=prefix",
    lambda p: (int(p["prefix"]) > 0) == (p["phase"] == "prefix") and int(p["prefix"]) < int(p["kv_len"]),
)
SHARD_RULE = Constraint(
    "phase=shards has at most one shard for each key",
    lambda p: p["phase"] != "shards" or int(p["shards"]) <= int(p["kv_len"]),
)


def inputs_of(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Partial outputs and log-sum-exps for ``merge``; queries, keys and values, the shared ones apart, else."""
    batch, q_len, heads, kv_heads, d = (int(p[n]) for n in ("batch", "q_len", "heads", "kv_heads", "head_dim"))
    dtype = str(p["dtype"])
    if p["phase"] == "merge":
        lead = (int(p["shards"]), batch, heads, q_len)
        exact = "fp64" if dtype == "fp64" else "fp32"
        return {"outs": ctx.tensor((*lead, d), dtype), "lses": ctx.tensor(lead, exact)}
    own = int(p["kv_len"]) - int(p["prefix"])
    found = {"q": ctx.tensor((batch, heads, q_len, d), dtype)}
    found |= {name: ctx.tensor((batch, kv_heads, own, d), dtype) for name in ("k", "v")}
    if p["phase"] == "prefix":
        found |= {f"{name}_prefix": ctx.tensor((1, kv_heads, int(p["prefix"]), d), dtype) for name in ("k", "v")}
    return found


def parts_of(p: ParamValues, inputs: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Keys and values of each part, contiguous as they are where each lies on a device of its own."""
    if p["phase"] == "prefix":
        return [(inputs["k_prefix"], inputs["v_prefix"]), (inputs["k"], inputs["v"])]
    count = int(p["shards"])
    keys, values = (inputs[name].tensor_split(count, dim=2) for name in ("k", "v"))
    pairs = [(k.contiguous(), v.contiguous()) for k, v in zip(keys, values, strict=True)]
    inputs["k"], inputs["v"] = ([pair[i] for pair in pairs] for i in (0, 1))
    return pairs


def kernel_of(p: ParamValues, inputs: dict[str, Any], merge: Merge) -> Kernel:
    """The kernel of one phase."""
    if p["phase"] == "merge":
        outs, lses = inputs["outs"], inputs["lses"]
        return Kernel(lambda: merge(outs, lses), inputs)
    import torch

    scale = 1.0 / sqrt(int(p["head_dim"]))
    calls = [attention_with_lse(inputs["q"], k, v, scale) for k, v in parts_of(p, inputs)]

    def whole() -> Any:
        found = [call() for call in calls]
        return merge(torch.stack([out for out, _ in found]), torch.stack([lse for _, lse in found]))[0]

    return Kernel(whole, inputs)


@workload("attention.merge")
class AttentionMerge(Workload):
    """Partial attentions (output, log-sum-exp) of shards or of a shared prefix, merged."""

    params = Params(
        HEAD_RULE, FORMAT_RULE, PREFIX_RULE, SHARD_RULE,
        batch=Int(1, doc="sequences"),
        q_len=Int(1, doc="queries of each sequence"),
        kv_len=Int(doc="keys that a query sees"),
        heads=Int(doc="query heads"),
        kv_heads=Int(doc="key-value heads"),
        head_dim=Int(doc="width of a head"),
        shards=Int(2, doc="parts into which the keys are split"),
        prefix=Int(0, lo=0, doc="first keys that all sequences share"),
        phase=Choice("merge", "shards", "prefix", doc="merging alone; attention over shards and merging; "
                     "attention over the shared prefix and over the own keys of each sequence, and merging"),
        dtype=DType(doc="number format of Q, K, V and of the partial outputs"),
    )  # fmt: skip
    shape_sources = shapes.SOURCES

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: shards are cut out of a whole, and a shared prefix may be repeated."""
        whole = {**p, "phase": "shards", "prefix": 0} if p["phase"] == "prefix" else p
        return self.work(whole).bytes_at() * (1 if p["phase"] == "merge" else 2)

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: all parts merged at once."""
        return kernel_of(p, inputs_of(p, ctx), merge_stacked)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        import torch

        i, allowed = kernel.inputs, tolerance(str(p["dtype"]))
        if p["phase"] == "merge":
            out, lse = merge_stacked(i["outs"].double(), i["lses"].double())
            if result[0].shape != out.shape or not bool(torch.isfinite(result[0]).all()):
                return nan, allowed, "full"
            off = relative_error(result[1], lse) / number_format("fp32").tolerance * allowed
            return max(relative_error(result[0], out), off), allowed, "full"
        k, v = i["k"], i["v"]
        if p["phase"] == "prefix" and "k_prefix" in i:
            batch = len(i["q"])
            k, v = (
                torch.cat([i[f"{name}_prefix"].expand(batch, -1, -1, -1), i[name]], dim=2) for name in ("k", "v")
            )
        elif isinstance(k, list):
            k, v = torch.cat(k, dim=2), torch.cat(v, dim=2)
        error, how = compare(i["q"], k, v, result, Mask(int(p["q_len"]), int(p["kv_len"]), causal=False))
        return error, allowed, how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`."""
        kv_len = int(p["kv_len"])
        if p["phase"] == "merge" or kv_len <= size:
            return None
        prefix = int(p["prefix"])
        return {**p, "kv_len": size, "prefix": max(1, prefix * size // kv_len) if prefix else 0,
                "shards": min(int(p["shards"]), size)}  # fmt: skip


@implementation("attention.merge", "pairwise")
def pairwise(p: ParamValues, ctx: BuildContext) -> Kernel:
    """One part after the other into a running result, as around a ring."""
    return kernel_of(p, inputs_of(p, ctx), merge_pairwise)


@implementation("attention.merge", "compile", requires=(compiler(),))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """All parts at once, merged by one kernel that torch.compile makes."""
    import torch

    inputs = inputs_of(p, ctx)
    if p["phase"] == "merge":
        example = (inputs["outs"], inputs["lses"])
    else:
        parts = 2 if p["phase"] == "prefix" else int(p["shards"])
        q = inputs["q"]
        example = (torch.stack([q] * parts), torch.zeros(parts, *q.shape[:3], device=q.device))
    ready, seconds = compiled(merge_stacked, *example)
    kernel = kernel_of(p, inputs, ready)
    kernel.facts["compile_s"] = seconds
    return kernel


@implementation(
    "attention.merge", "whole",
    requires=(never(lambda p, m: p["phase"] == "merge", "no_attention", "merging alone has no undivided form"),),
)  # fmt: skip
def whole(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The same attention undivided, a shared prefix repeated for every sequence: what parts are compared with."""
    import torch

    inputs = inputs_of(p, ctx)
    if p["phase"] == "prefix":
        batch = int(p["batch"])
        for name in ("k", "v"):
            shared = inputs.pop(f"{name}_prefix").expand(batch, -1, -1, -1)
            inputs[name] = torch.cat([shared, inputs[name]], dim=2)
    mask = Mask(int(p["q_len"]), int(p["kv_len"]), causal=False)
    backend = tiled_backend(str(p["dtype"]), inputs["q"].device)
    return Kernel(attend(inputs["q"], inputs["k"], inputs["v"], mask, backend), inputs)
