"""A quantised cache of keys and values: what it costs to write, what to read, and what it does to the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import Any

from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.suites.attention import shapes
from wattline.suites.attention.cache import compare_decode
from wattline.suites.attention.decode import attention
from wattline.suites.attention.prefill import FORMAT_RULE, HEAD_RULE
from wattline.suites.attention.quantise import Quantised, dequantise, exactly, quantise, worst_rounding
from wattline.suites.attention.reference import attend_rows, relative_error, tolerance
from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import module, never, torch_at_least
from wattline.suites.sampled import spread
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

BITS = (8, 4, 2)
SAMPLES = 2
"""Sequences and heads whose result without quantisation is kept, to tell what quantising did to it."""

BITS_RULE = Constraint("bits is 8, 4 or 2", lambda p: int(p["bits"]) in BITS)
PACK_RULE = Constraint(
    "group is a multiple of 8 / bits, so that groups fill whole bytes",
    lambda p: int(p["bits"]) not in BITS or int(p["group"]) % (8 // int(p["bits"])) == 0,
)
KEY_RULE = Constraint(
    "kv_len is a multiple of group: keys are quantised by groups of tokens",
    lambda p: int(p["kv_len"]) % int(p["group"]) == 0,
)
VALUE_RULE = Constraint(
    "head_dim is a multiple of group: values are quantised by groups of channels",
    lambda p: int(p["head_dim"]) % int(p["group"]) == 0,
)


def random(count: int = 24, *, group: int = 32, **limits: Any) -> Iterator[dict[str, Any]]:
    """Points spread over lengths and batch, lengths rounded up to whole groups.

    Args:
        count: how many.
        group: codes that share a scale.
        limits: see :func:`wattline.suites.attention.shapes.random`.
    """
    for shape in shapes.random(count, decode=True, **limits):
        yield {**shape, "kv_len": -(-int(shape["kv_len"]) // group) * group, "group": group}


SOURCES: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"tokens": shapes.tokens, "random": random}


def _sizes(p: ParamValues) -> tuple[int, int, int, int]:
    return int(p["batch"]), int(p["kv_heads"]), int(p["kv_len"]), int(p["head_dim"])


def _numbers(p: ParamValues, ctx: BuildContext) -> tuple[Any, Any]:
    """Keys and values before they are quantised."""
    dtype = str(p["dtype"])
    return ctx.tensor(_sizes(p), dtype), ctx.tensor(_sizes(p), dtype)


def _queries(p: ParamValues, ctx: BuildContext) -> Any:
    return ctx.tensor((int(p["batch"]), int(p["heads"]), int(p["head_dim"])), str(p["dtype"]))


def _exact(p: ParamValues, q: Any, k: Any, v: Any) -> dict[tuple[int, int], Any]:
    """The right result without quantisation, in double precision, of some sequences and heads."""
    import torch

    group = int(p["heads"]) // int(p["kv_heads"])
    seen = torch.ones(group, k.shape[2], dtype=torch.bool, device=k.device)
    scale = 1.0 / sqrt(k.shape[3])
    found = {}
    for at in spread(k.shape[0] * k.shape[1], SAMPLES):
        b, head = divmod(at, k.shape[1])
        rows = q[b, head * group : (head + 1) * group]
        found[b, head] = attend_rows(rows, k[b, head], v[b, head], seen, scale)[0]
    return found


Ready = tuple[Callable[[], Any], dict[str, Any]]
"""A call, and facts about it."""


@dataclass(frozen=True)
class Method:
    """How an implementation reads a quantised cache and writes one.

    Attributes:
        read: of queries, a cache, bits and group: a call that attends.
        append: of keys, values, bits and group: a call that gives the tensors of a cache.
    """

    read: Callable[[Any, Quantised, int, int], Ready]
    append: Callable[[Any, Any, int, int], Ready]


def kernel_of(p: ParamValues, ctx: BuildContext, method: Method) -> Kernel:
    """The kernel of one phase; it knows how to do the other as well, whose seconds the check takes down as a fact."""
    bits, group = int(p["bits"]), int(p["group"])
    k, v = _numbers(p, ctx)
    q = _queries(p, ctx)
    if p["phase"] == "append":
        call, facts = method.append(k, v, bits, group)
        inputs = {"k": k, "v": v, "other": lambda cache: method.read(q, Quantised(*cache), bits, group)[0]}
        return Kernel(call, inputs, facts=facts)
    cache = Quantised(*quantise(k, v, bits, group))
    inputs = {"q": q, "cache": cache, "exact": _exact(p, q, k, v)}
    # Keys and values are dropped: they would take the room of more sets of buffers. What codes mean serves as well.
    del k, v
    inputs["other"] = lambda _: method.append(*dequantise(cache.tensors, bits, group), bits, group)[0]
    call, facts = method.read(q, cache, bits, group)
    return Kernel(call, inputs, facts={"cache_bytes": cache.nbytes, **facts})


def seconds_of(call: Callable[[], Any], device: Any) -> float:
    """Seconds of a call: the quickest of three after one that warms up. For orientation, in a fact."""

    def ended() -> float:
        if device.type != "cpu":
            import torch

            torch.accelerator.synchronize()
        return time.perf_counter()

    call()
    taken = []
    for _ in range(3):
        begin = ended()
        call()
        taken.append(ended() - begin)
    return min(taken)


@workload("attention.kvquant", impl="torch", requires=(torch_at_least(2, 5),))
class KVQuant(Workload):
    """A cache in 8, 4 or 2 bits: keys quantised by channel, values by token; read by one new token, or appended to.

    ``read``: attention of one token of each of ``batch`` sequences over ``kv_len`` quantised tokens. ``append``:
    ``kv_len`` tokens of each sequence are quantised and packed, as after a prompt, or once a group of new ones
    is full.
    """

    params = Params(
        HEAD_RULE, FORMAT_RULE, BITS_RULE, PACK_RULE, KEY_RULE, VALUE_RULE,
        batch=Int(1, doc="sequences"),
        kv_len=Int(doc="tokens of each sequence that are read, or appended"),
        heads=Int(doc="query heads"),
        kv_heads=Int(doc="key-value heads"),
        head_dim=Int(doc="width of a head"),
        dtype=DType(doc="number format of queries, results, scales and zeros"),
        bits=Int(4, hi=8, doc="of a code: 8, 4 or 2"),
        group=Int(32, doc="codes that share a scale and a zero"),
        phase=Choice("read", "append", doc="attention over the cache, or quantising tokens into it"),
    )  # fmt: skip
    shape_sources = SOURCES
    tracks_memory = True

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: keys and values written out in full before attention reads them."""
        return kernel_of(p, ctx, Method(_read, _append))

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: kernels against double precision over what the codes mean.

        What quantising itself does is recorded as a fact, ``output_error``, and judged by nobody; so is ``append_s``
        while reading, and ``read_s`` while appending.
        """
        error, allowed, how = self._judge(p, kernel, result)
        if isfinite(error):
            device = (result if p["phase"] == "read" else result[0]).device
            other = "append_s" if p["phase"] == "read" else "read_s"
            kernel.facts[other] = seconds_of(kernel.inputs["other"](result), device)
        return error, allowed, how

    def _judge(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        if p["phase"] == "append":
            return self._check_append(p, kernel, result)
        i, bits, group = kernel.inputs, int(p["bits"]), int(p["group"])
        kv_heads = int(p["kv_heads"])
        sequence = i.get("sequence") or (lambda b, head: exactly(i["cache"], bits, group, b, head))
        lengths = (int(p["kv_len"]),) * int(p["batch"])
        error, how = compare_decode(i["q"], result, sequence, lengths, kv_heads)
        if isfinite(error):
            rows = int(p["heads"]) // kv_heads
            apart = (relative_error(result[b, h * rows : (h + 1) * rows], ref) for (b, h), ref in i["exact"].items())
            kernel.facts["output_error"] = max(apart)
        return error, tolerance(str(p["dtype"])), how

    def _check_append(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        k, v = kernel.inputs["k"], kernel.inputs["v"]
        if kernel.inputs.get("copied"):
            error = max(relative_error(out, ref) for out, ref in zip(result, (k, v), strict=True))
            return error, 0.0, "full"
        cache, bits, group = Quantised(*result), int(p["bits"]), int(p["group"])
        batch, heads, tokens, d = _sizes(p)
        packed, keys, values = d * bits // 8, (tokens // group, d), (tokens, d // group)
        tails = ((tokens, packed), (tokens, packed), keys, keys, values, values)
        if any(tuple(t.shape) != (batch, heads, *tail) for t, tail in zip(cache.tensors, tails, strict=True)):
            return nan, 1.0, f"shapes {[tuple(t.shape) for t in cache.tensors]}"
        kernel.facts["cache_bytes"] = cache.nbytes
        return worst_rounding(k, v, cache, bits, group), 1.0, "worst distance from half a step"

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer tokens, whole groups of them."""
        group = int(p["group"])
        shorter = max(1, size // group) * group
        return None if int(p["kv_len"]) <= shorter else {**p, "kv_len": shorter, "batch": min(int(p["batch"]), 8)}


def _read(q: Any, cache: Quantised, bits: int, group: int) -> Ready:
    return attention(q, lambda: dequantise(cache.tensors, bits, group), None, grouped=True), {}


def _append(k: Any, v: Any, bits: int, group: int) -> Ready:
    return lambda: quantise(k, v, bits, group), {}


def _naive(q: Any, bits: int, group: int, *tensors: Any) -> Any:
    """Attention as it is defined over a quantised cache; one function, so that a compiler can fuse it."""
    import torch

    k, v = dequantise(tensors, bits, group)
    batch, heads, d = q.shape
    kv_heads = k.shape[1]
    rows = q.view(batch, kv_heads, heads // kv_heads, d)
    weights = torch.softmax(rows @ k.transpose(2, 3) * (1.0 / sqrt(d)), dim=-1)
    return (weights @ v).view(batch, heads, d)


@implementation("attention.kvquant", "compile", requires=(torch_at_least(2, 5), compiler()))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Plain operations through torch.compile, which fuses turning codes into numbers, or the other way."""

    def read(q: Any, cache: Quantised, bits: int, group: int) -> Ready:
        ready, seconds = compiled(_naive, q, bits, group, *cache.tensors)
        return lambda: ready(q, bits, group, *cache.tensors), {"compile_s": seconds}

    def append(k: Any, v: Any, bits: int, group: int) -> Ready:
        ready, seconds = compiled(quantise, k, v, bits, group)
        return lambda: ready(k, v, bits, group), {"compile_s": seconds}

    return kernel_of(p, ctx, Method(read, append))


@implementation(
    "attention.kvquant", "numba",
    requires=(
        module("numba"),
        never(lambda p, m: m.kind != "cpu", "cpu_only", "the device is no CPU: Numba compiles it for CPUs only"),
        never(lambda p, m: p["dtype"] == "fp16", "no_kernel", "dtype is fp16, which Numba has not on a CPU"),
    ),
)  # fmt: skip
def numba(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Own CPU kernels compiled by Numba: codes become numbers a few tokens at a time, and are used at once."""
    from wattline.suites.attention.kvquant_numba import reader, writer

    def read(q: Any, cache: Quantised, bits: int, group: int) -> Ready:
        call, seconds = reader(q, cache, bits, group)
        return call, {"compile_s": seconds}

    def append(k: Any, v: Any, bits: int, group: int) -> Ready:
        call, seconds = writer(k, v, bits, group)
        return call, {"compile_s": seconds}

    return kernel_of(p, ctx, Method(read, append))


@implementation("attention.kvquant", "native", requires=(torch_at_least(2, 5),))
def native(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The same without quantisation, to compare: attention over keys and values as they are, or a copy of them."""
    k, v = _numbers(p, ctx)
    q = _queries(p, ctx)

    def copy() -> Any:
        return k.clone(), v.clone()

    attend = attention(q, lambda: (k, v), None, grouped=True)
    facts = {"cache_bytes": 2 * k.numel() * k.element_size()}
    if p["phase"] == "append":
        return Kernel(copy, {"k": k, "v": v, "copied": True, "other": lambda _: attend}, facts=facts)
    inputs = {
        "q": q, "sequence": lambda b, head: (k[b, head], v[b, head]), "exact": _exact(p, q, k, v),
        "other": lambda _: copy,
    }  # fmt: skip
    return Kernel(attend, inputs, facts=facts)
