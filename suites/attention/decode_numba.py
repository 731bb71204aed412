"""Decoding on a CPU, compiled by Numba (an optional package): pages are read where they lie, each key and value once.

The contexts of all sequences and heads are cut into pieces of about one length, so that threads are evenly loaded
whatever the lengths of sequences; a piece keeps a running maximum and sum (Milakov and Gimelshein, "Online normalizer
calculation for softmax", arXiv:1805.02867), and pieces of one head are merged at the end. Query heads that share a key
head are worked on together: a key is loaded once for all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from typing import Any, TypeVar, cast

from wattline.suites.compiled import numba_for_loops

CHUNK = 32
"""Keys at a time: with d = 128, 16 KiB of keys and of values in single precision stay in the first-level cache."""

PIECES_PER_THREAD = 4
LEAST_PIECE = 128
"""Keys below which a context is not cut further by itself: a piece costs as much to merge as some keys to read."""

FAST = {"reassoc", "contract", "arcp", "nsz"}
"""What the compiler may assume: sums in any order. Infinities and NaN keep their meaning."""

STORED = {"fp64": "float", "fp32": "float", "bf16": "bf16", "fp8_e4m3": "table", "fp8_e5m2": "table"}
"""How keys and values of a format are turned into numbers, of the formats that can be."""


@dataclass(frozen=True)
class Pieces:
    """What the threads work on: numpy arrays.

    Attributes:
        where: ``[pieces, 4]``, int64: sequence, key-value head, first token, token behind the last. Pieces of one
            sequence and head follow each other.
        first: ``[batch * kv_heads + 1]``, int64: the first piece of each sequence and head.
    """

    where: Any
    first: Any


def cut(begins: tuple[int, ...], ends: tuple[int, ...], kv_heads: int, *, splits: int, threads: int) -> Pieces:
    """Cut the tokens in reach into pieces.

    Args:
        begins, ends: first token of each sequence in reach, and the one behind the last.
        kv_heads: of each sequence.
        splits: pieces of every sequence and head; 0: of one length, several for each thread.
        threads: that work on them.
    """
    import numpy as np

    total = kv_heads * sum(e - b for b, e in zip(begins, ends, strict=True))
    length = max(LEAST_PIECE, -(-total // (PIECES_PER_THREAD * threads)))
    where, first = [], [0]
    for b, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        parts = min(splits, end - begin) if splits else -(-(end - begin) // length)
        edges = [begin + (end - begin) * i // parts for i in range(parts + 1)]
        for head in range(kv_heads):
            where += [(b, head, lo, hi) for lo, hi in pairwise(edges)]
            first.append(len(where))
    return Pieces(np.array(where, dtype=np.int64), np.array(first, dtype=np.int64))


Function = TypeVar("Function", bound=Callable[..., Any])


def inlined(function: Function) -> Function:
    """Compiled, to be called from kernels."""
    return cast(Function, import_module("numba").njit(fastmath=FAST, boundscheck=False, error_model="numpy")(function))


def threaded(function: Function) -> Function:
    """Compiled, its ``prange`` loops over threads."""
    options: dict[str, Any] = {"fastmath": FAST, "boundscheck": False, "error_model": "numpy"}
    return cast(Function, import_module("numba").njit(parallel=True, **options)(function))


_first_s: dict[tuple[Any, ...], float] = {}


def started(call: Callable[[], Any], *kind: Any) -> float:
    """Call once, and say how long the first call of that kind took in this process: nearly all of it compilation.

    Args:
        call: of a compiled kernel.
        kind: what it was compiled for.
    """
    begin = time.perf_counter()
    call()
    return _first_s.setdefault(kind, time.perf_counter() - begin)


@lru_cache(maxsize=1)
def parts() -> tuple[Any, Any]:
    """What every kernel here is made of: ``attend(q, k, v, n, scores, top, total, acc)`` takes ``n`` more keys into a
    running result, and ``merge(first, tops, totals, accs, out)`` puts the pieces together."""
    prange = import_module("numba").prange

    @inlined
    def attend(q: Any, k: Any, v: Any, n: Any, scores: Any, top: Any, total: Any, acc: Any) -> None:  # noqa: PLR0917
        group, d = q.shape
        d_v = v.shape[1]
        zero = q.dtype.type(0)
        for j in range(n):
            g = 0
            while g + 4 <= group:
                s0, s1, s2, s3 = zero, zero, zero, zero
                for t in range(d):
                    x = k[j, t]
                    s0 += x * q[g, t]
                    s1 += x * q[g + 1, t]
                    s2 += x * q[g + 2, t]
                    s3 += x * q[g + 3, t]
                scores[g, j], scores[g + 1, j], scores[g + 2, j], scores[g + 3, j] = s0, s1, s2, s3
                g += 4
            while g < group:
                s0 = zero
                for t in range(d):
                    s0 += k[j, t] * q[g, t]
                scores[g, j] = s0
                g += 1
        for g in range(group):
            largest = top[g]
            for j in range(n):
                largest = max(largest, scores[g, j])
            shrink = math.exp(top[g] - largest)
            top[g] = largest
            more = zero
            for j in range(n):
                weight = math.exp(scores[g, j] - largest)
                scores[g, j] = weight
                more += weight
            total[g] = total[g] * shrink + more
            if shrink != 1:
                for t in range(d_v):
                    acc[g, t] *= shrink
            j = 0
            while j + 4 <= n:
                w0, w1, w2, w3 = scores[g, j], scores[g, j + 1], scores[g, j + 2], scores[g, j + 3]
                for t in range(d_v):
                    acc[g, t] += w0 * v[j, t] + w1 * v[j + 1, t] + w2 * v[j + 2, t] + w3 * v[j + 3, t]
                j += 4
            while j < n:
                w0 = scores[g, j]
                for t in range(d_v):
                    acc[g, t] += w0 * v[j, t]
                j += 1

    @inlined
    def put_together(tops: Any, totals: Any, accs: Any, begin: Any, end: Any, out: Any) -> None:  # noqa: PLR0917
        for g in range(out.shape[0]):
            largest = tops[begin, g]
            for piece in range(begin, end):
                largest = max(largest, tops[piece, g])
            whole = out.dtype.type(0)
            for t in range(out.shape[1]):
                out[g, t] = 0
            for piece in range(begin, end):
                share = math.exp(tops[piece, g] - largest)
                whole += share * totals[piece, g]
                for t in range(out.shape[1]):
                    out[g, t] += share * accs[piece, g, t]
            for t in range(out.shape[1]):
                out[g, t] /= whole

    @threaded
    def merge(first: Any, tops: Any, totals: Any, accs: Any, out: Any) -> None:
        # Pieces [n, group], [n, group], [n, group, d_v] to out [batch * kv_heads, group, d_v].
        for i in prange(out.shape[0]):
            put_together(tops, totals, accs, first[i], first[i + 1], out[i])

    return attend, merge


@lru_cache(maxsize=4)
def _paged(stored: str) -> Any:
    """The kernel for keys and values that are stored as ``float``, ``bf16`` or by ``table``."""
    import numpy as np

    prange = import_module("numba").prange
    attend, _ = parts()

    @inlined
    def from_bf16(source: Any, n: Any, _: Any, target: Any) -> None:
        # bfloat16 is the upper half of a float: its bits, moved up.
        bits = target.view(np.uint32)
        for j in range(n):
            for t in range(source.shape[1]):
                bits[j, t] = np.uint32(source[j, t]) << np.uint32(16)

    @inlined
    def from_table(source: Any, n: Any, table: Any, target: Any) -> None:
        for j in range(n):
            for t in range(source.shape[1]):
                target[j, t] = table[source[j, t]]

    load = from_bf16 if stored == "bf16" else from_table
    plain = stored == "float"

    @inlined
    def one(  # noqa: PLR0917 - arrays by position, as compiled code takes them
        q: Any, k: Any, v: Any, pages: Any, page: Any, head: Any, token: Any, end: Any, numbers: Any, scale: Any,
        top: Any, total: Any, acc: Any,
    ) -> None:  # fmt: skip
        group, d = q.shape
        scores, query = np.empty((group, CHUNK), q.dtype), np.empty((group, d), q.dtype)
        size = 0 if plain else CHUNK
        keys, values = np.empty((size, d), q.dtype), np.empty((size, d), q.dtype)
        for g in range(group):
            top[g], total[g] = -np.inf, 0
            for t in range(d):
                query[g, t], acc[g, t] = q[g, t] * scale, 0
        while token < end:
            at, inside = pages[token // page], token % page
            n = min(CHUNK, end - token, page - inside)
            if plain:
                attend(query, k[at, head, inside:], v[at, head, inside:], n, scores, top, total, acc)
            else:
                load(k[at, head, inside:], n, numbers, keys)
                load(v[at, head, inside:], n, numbers, values)
                attend(query, keys, values, n, scores, top, total, acc)
            token += n

    def run(  # noqa: PLR0917
        q: Any, k: Any, v: Any, pages: Any, page: Any, where: Any, numbers: Any, scale: Any,
        tops: Any, totals: Any, accs: Any,
    ) -> None:  # fmt: skip
        for i in prange(where.shape[0]):
            b, head = where[i, 0], where[i, 1]
            one(q[b, head], k, v, pages[b], page, head, where[i, 2], where[i, 3], numbers, scale,
                tops[i], totals[i], accs[i])  # fmt: skip

    return threaded(run)


def raw(tensor: Any) -> Any:
    """A numpy array of the same memory: formats that numpy lacks as whole numbers of their width."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        return tensor.view(torch.uint8).numpy()
    return tensor.numpy()


def decoder(q: Any, cache: Any, stored: str, splits: int) -> tuple[Callable[[], Any], float, int]:
    """A call that attends from ``q`` over a cache.

    Args:
        q: ``[batch, heads, d]``, in fp64, fp32 or bf16.
        cache: a :class:`wattline.suites.attention.cache.Cache` on the CPU.
        stored: the number format of keys and values, a key of :data:`STORED`.
        splits: pieces of every sequence and head; 0: as it likes.

    Returns:
        The call, which gives ``[batch, heads, d]`` in the format of ``q``; the seconds that it took to compile (see
        :func:`started`); and the number of pieces.
    """
    import numpy as np
    import torch

    threads = int(numba_for_loops().get_num_threads())
    batch, heads, d = q.shape
    kv_heads = cache.kv_heads
    pieces = cut(cache.begins, cache.lengths, kv_heads, splits=splits, threads=threads)
    count, group = len(pieces.where), heads // kv_heads
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    pages = cache.table if cache.table is not None else torch.arange(batch, dtype=torch.int32)[:, None]
    page = cache.page_size or cache.k.shape[2]
    numbers = np.zeros(0, dtype=np.float32)
    if STORED[stored] == "table":
        numbers = torch.arange(256, dtype=torch.uint8).view(cache.k.dtype).float().numpy()
    k, v = raw(cache.k), raw(cache.v)
    kernel, merge = _paged(STORED[stored]), parts()[1]
    np_work = np.float64 if work == torch.float64 else np.float32
    scale = np_work(1.0 / math.sqrt(d))
    tops, totals = np.empty((count, group), np_work), np.empty((count, group), np_work)
    accs = np.empty((count, group, d), np_work)

    def call() -> Any:
        out = torch.empty(batch, heads, d, dtype=work)
        queries = q.to(work).numpy().reshape(batch, kv_heads, group, d)
        kernel(queries, k, v, pages.numpy(), page, pieces.where, numbers, scale, tops, totals, accs)
        merge(pieces.first, tops, totals, accs, out.numpy().reshape(batch * kv_heads, group, d))
        return out.to(q.dtype)

    return call, started(call, "decode", stored, q.dtype, cache.k.dtype), count
