"""A quantised cache on a CPU, compiled by Numba: written in one pass over a group, read without ever being written out.

Reading works as :mod:`wattline.suites.attention.decode_numba` does, on pieces of equal length; a few tokens at a time
become numbers in a buffer that stays in the first-level cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

from wattline.suites.attention.decode_numba import CHUNK, cut, inlined, parts, raw, started, threaded
from wattline.suites.compiled import numba_for_loops


@lru_cache(maxsize=2)
def _rows(stored: str) -> tuple[Any, Any]:
    """``load(source, n, target)`` and ``store(source, n, target)`` of a row in the format of the activations; storing
    leaves in ``source`` what was stored."""
    import numpy as np

    @inlined
    def load_bf16(source: Any, n: Any, target: Any) -> None:
        bits = target.view(np.uint32)
        for t in range(n):
            bits[t] = np.uint32(source[t]) << np.uint32(16)

    @inlined
    def store_bf16(source: Any, n: Any, target: Any) -> None:
        # Round to nearest, ties to even, and drop the lower half.
        bits = source.view(np.uint32)
        for t in range(n):
            half = bits[t] + np.uint32(0x7FFF) + ((bits[t] >> np.uint32(16)) & np.uint32(1))
            target[t] = half >> np.uint32(16)
            bits[t] = half & np.uint32(0xFFFF0000)

    @inlined
    def load_plain(source: Any, n: Any, target: Any) -> None:
        for t in range(n):
            target[t] = source[t]

    @inlined
    def store_plain(source: Any, n: Any, target: Any) -> None:
        for t in range(n):
            target[t] = source[t]

    return (load_bf16, store_bf16) if stored == "bf16" else (load_plain, store_plain)


@lru_cache(maxsize=2)
def _reader(stored: str) -> Any:
    import numpy as np

    prange = import_module("numba").prange
    attend, _ = parts()
    load, _ = _rows(stored)

    @inlined
    def key_numbers(packed: Any, n: Any, bits: Any, scale: Any, zero: Any, keys: Any) -> None:  # noqa: PLR0917
        width, mask = packed.shape[1], np.uint8((1 << bits) - 1)
        for j in range(n):
            for part in range(8 // bits):
                shift, first = np.uint8(part * bits), part * width
                for t in range(width):
                    code = (packed[j, t] >> shift) & mask
                    keys[j, first + t] = code * scale[first + t] + zero[first + t]

    @inlined
    def value_numbers(  # noqa: PLR0917
        packed: Any, n: Any, bits: Any, group: Any, seg: Any, scales: Any, zeros: Any, scale: Any, zero: Any,
        values: Any,
    ) -> None:  # fmt: skip
        # Channels of one segment are neighbours both in the bytes and in a group.
        width, mask = packed.shape[1], np.uint8((1 << bits) - 1)
        for j in range(n):
            load(scales[j], scales.shape[1], scale)
            load(zeros[j], zeros.shape[1], zero)
            for part in range(8 // bits):
                shift = np.uint8(part * bits)
                for first in range(0, width, seg):
                    at = part * width + first
                    step, least = scale[at // group], zero[at // group]
                    for t in range(seg):
                        code = (packed[j, first + t] >> shift) & mask
                        values[j, at + t] = code * step + least

    @inlined
    def one(  # noqa: PLR0917
        q: Any, k: Any, v: Any, k_scale: Any, k_zero: Any, v_scale: Any, v_zero: Any, bits: Any, group: Any, seg: Any,
        token: Any, end: Any, factor: Any, top: Any, total: Any, acc: Any,
    ) -> None:  # fmt: skip
        rows, d = q.shape
        scores, query = np.empty((rows, CHUNK), q.dtype), np.empty((rows, d), q.dtype)
        keys, values = np.empty((CHUNK, d), q.dtype), np.empty((CHUNK, d), q.dtype)
        scale, zero = np.empty(d, q.dtype), np.empty(d, q.dtype)
        v_row, z_row = np.empty(d // group, q.dtype), np.empty(d // group, q.dtype)
        for g in range(rows):
            top[g], total[g] = -np.inf, 0
            for t in range(d):
                query[g, t], acc[g, t] = q[g, t] * factor, 0
        while token < end:
            at = token // group
            load(k_scale[at], d, scale)
            load(k_zero[at], d, zero)
            stop = min(end, (at + 1) * group)
            while token < stop:
                n = min(CHUNK, stop - token)
                key_numbers(k[token:], n, bits, scale, zero, keys)
                value_numbers(v[token:], n, bits, group, seg, v_scale[token:], v_zero[token:], v_row, z_row, values)
                attend(query, keys, values, n, scores, top, total, acc)
                token += n

    def run(  # noqa: PLR0917
        q: Any, k: Any, v: Any, k_scale: Any, k_zero: Any, v_scale: Any, v_zero: Any, bits: Any, group: Any, seg: Any,
        where: Any, factor: Any, tops: Any, totals: Any, accs: Any,
    ) -> None:  # fmt: skip
        for i in prange(where.shape[0]):
            b, head = where[i, 0], where[i, 1]
            one(q[b, head], k[b, head], v[b, head], k_scale[b, head], k_zero[b, head], v_scale[b, head],
                v_zero[b, head], bits, group, seg, where[i, 2], where[i, 3], factor,
                tops[i], totals[i], accs[i])  # fmt: skip

    return threaded(run)


@lru_cache(maxsize=2)
def _writer(stored: str) -> Any:
    import numpy as np

    prange = import_module("numba").prange
    load, store = _rows(stored)

    @inlined
    def code(row: Any, scale: Any, zero: Any, bits: Any, packed: Any) -> None:
        width, largest, half = packed.size, row.dtype.type((1 << bits) - 1), row.dtype.type(0.5)
        for part in range(8 // bits):
            shift, first = np.uint8(part * bits), part * width
            for t in range(width):
                x = (row[first + t] - zero[first + t]) * scale[first + t] + half
                x = min(max(x, row.dtype.type(0)), largest)
                bits_of = np.uint8(np.int32(x)) << shift
                packed[t] = bits_of if part == 0 else packed[t] | bits_of

    @inlined
    def steps(least: Any, most: Any, n: Any, bits: Any, work: Any, scales: Any, zeros: Any) -> None:  # noqa: PLR0917
        # From least and largest numbers to stored scales and zeros; leaves zeros in least and 1 / scale in most.
        largest, one = work.dtype.type((1 << bits) - 1), work.dtype.type(1)
        store(least, n, zeros)
        for t in range(n):
            work[t] = (most[t] - least[t]) / largest
        for t in range(n):
            work[t] = work[t] if work[t] > 0 else one
        store(work, n, scales)
        for t in range(n):
            most[t] = one / work[t]

    @inlined
    def keys_of(x: Any, bits: Any, like: Any, packed: Any, scales: Any, zeros: Any) -> None:  # noqa: PLR0917
        tokens, d = x.shape
        rows = np.empty((tokens, d), like.dtype)
        least, most, work = np.empty(d, like.dtype), np.empty(d, like.dtype), np.empty(d, like.dtype)
        for j in range(tokens):
            load(x[j], d, rows[j])
            for t in range(d):
                least[t] = rows[j, t] if j == 0 else min(least[t], rows[j, t])
                most[t] = rows[j, t] if j == 0 else max(most[t], rows[j, t])
        steps(least, most, d, bits, work, scales, zeros)
        for j in range(tokens):
            code(rows[j], most, least, bits, packed[j])

    @inlined
    def values_of(x: Any, bits: Any, group: Any, like: Any, packed: Any, scales: Any, zeros: Any) -> None:  # noqa: PLR0917
        tokens, d = x.shape
        n = d // group
        row = np.empty(d, like.dtype)
        least, most, work = np.empty(n, like.dtype), np.empty(n, like.dtype), np.empty(n, like.dtype)
        scale, zero = np.empty(d, like.dtype), np.empty(d, like.dtype)
        for j in range(tokens):
            load(x[j], d, row)
            for i in range(n):
                low, high = row[i * group], row[i * group]
                for t in range(i * group, (i + 1) * group):
                    low, high = min(low, row[t]), max(high, row[t])
                least[i], most[i] = low, high
            steps(least, most, n, bits, work, scales[j], zeros[j])
            for i in range(n):
                for t in range(i * group, (i + 1) * group):
                    scale[t], zero[t] = most[i], least[i]
            code(row, scale, zero, bits, packed[j])

    def run(  # noqa: PLR0917
        k: Any, v: Any, bits: Any, group: Any, like: Any, k_out: Any, v_out: Any, k_scale: Any, k_zero: Any,
        v_scale: Any, v_zero: Any,
    ) -> None:  # fmt: skip
        groups = k.shape[1] // group
        for i in prange(k.shape[0] * groups):
            b, at = i // groups, i % groups
            lo, hi = at * group, (at + 1) * group
            keys_of(k[b, lo:hi], bits, like, k_out[b, lo:hi], k_scale[b, at], k_zero[b, at])
            values_of(v[b, lo:hi], bits, group, like, v_out[b, lo:hi], v_scale[b, lo:hi], v_zero[b, lo:hi])

    return threaded(run)


def _stored(dtype: Any) -> str:
    import torch

    return "bf16" if dtype == torch.bfloat16 else "float"


def reader(q: Any, cache: Any, bits: int, group: int) -> tuple[Callable[[], Any], float]:
    """A call that attends from ``q`` over a quantised cache, and the seconds that it took to compile.

    Args:
        q: ``[batch, heads, d]``, in fp64, fp32 or bf16.
        cache: a :class:`wattline.suites.attention.quantise.Quantised` on the CPU.
        bits, group: as it was quantised.
    """
    import numpy as np
    import torch

    threads = int(numba_for_loops().get_num_threads())
    batch, heads, d = q.shape
    kv_heads, tokens = cache.k.shape[1], cache.k.shape[2]
    rows = heads // kv_heads
    pieces = cut((0,) * batch, (tokens,) * batch, kv_heads, splits=0, threads=threads)
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    np_work: Any = np.float64 if work == torch.float64 else np.float32
    count = len(pieces.where)
    tops, totals = np.empty((count, rows), np_work), np.empty((count, rows), np_work)
    accs = np.empty((count, rows, d), np_work)
    arrays = [raw(t) for t in cache.tensors]
    kernel, merge = _reader(_stored(q.dtype)), parts()[1]
    factor, seg = np_work(1.0 / math.sqrt(d)), math.gcd(group, d * bits // 8)

    def call() -> Any:
        out = torch.empty(batch, heads, d, dtype=work)
        queries = q.to(work).numpy().reshape(batch, kv_heads, rows, d)
        kernel(queries, *arrays, bits, group, seg, pieces.where, factor, tops, totals, accs)
        merge(pieces.first, tops, totals, accs, out.numpy().reshape(batch * kv_heads, rows, d))
        return out.to(q.dtype)

    return call, started(call, "read", q.dtype)


def writer(k: Any, v: Any, bits: int, group: int) -> tuple[Callable[[], Any], float]:
    """A call that quantises ``k`` and ``v`` ``[batch, kv_heads, tokens, d]``, and the seconds that it took to compile.

    The call returns new tensors, as :func:`wattline.suites.attention.quantise.quantise` does.
    """
    import numpy as np
    import torch

    numba_for_loops()
    batch, heads, tokens, d = k.shape
    like = np.zeros(0, np.float64 if k.dtype == torch.float64 else np.float32)
    flat = [raw(t.view(batch * heads, tokens, d)) for t in (k, v)]
    kernel = _writer(_stored(k.dtype))
    packed, keys, values = (tokens, d * bits // 8), (tokens // group, d), (tokens, d // group)

    def call() -> tuple[Any, ...]:
        codes = [torch.empty(batch, heads, *packed, dtype=torch.uint8) for _ in range(2)]
        steps = [torch.empty(batch, heads, *tail, dtype=k.dtype) for tail in (keys, keys, values, values)]
        out = (*codes, *steps)
        kernel(*flat, bits, group, like, *(raw(t.view(batch * heads, *t.shape[2:])) for t in out))
        return out

    return call, started(call, "append", k.dtype)
