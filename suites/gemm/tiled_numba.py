"""Tiled matrix products on a CPU, compiled by Numba (an optional package).

Blocks of C are dealt to the threads. A GPU copies the operands of a block into shared memory; here the cache does the
same by itself, so a block whose operands fit a cache is read from it again and again, and others from beyond.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

from wattline.suites.compiled import numba_for_loops


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Any]:
    numba: Any = import_module("numba")
    prange = numba.prange
    options = {"fastmath": {"contract", "reassoc", "nsz"}, "boundscheck": False}

    def add(c: Any, a: Any, b: Any, i: Any, k: Any, begin: Any, end: Any) -> None:  # noqa: PLR0917 - no keywords here
        # Four rows of C take four rows of B: sixteen multiply-adds for twelve loads and stores. Slices and scalars of
        # their own are what lets the compiler use vectors.
        c0, c1, c2, c3 = c[i, begin:end], c[i + 1, begin:end], c[i + 2, begin:end], c[i + 3, begin:end]
        b0, b1, b2, b3 = b[k, begin:end], b[k + 1, begin:end], b[k + 2, begin:end], b[k + 3, begin:end]
        a00, a01, a02, a03 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
        a10, a11, a12, a13 = a[i + 1, k], a[i + 1, k + 1], a[i + 1, k + 2], a[i + 1, k + 3]
        a20, a21, a22, a23 = a[i + 2, k], a[i + 2, k + 1], a[i + 2, k + 2], a[i + 2, k + 3]
        a30, a31, a32, a33 = a[i + 3, k], a[i + 3, k + 1], a[i + 3, k + 2], a[i + 3, k + 3]
        for j in range(c0.size):
            v0, v1, v2, v3 = b0[j], b1[j], b2[j], b3[j]
            c0[j] += a00 * v0 + a01 * v1 + a02 * v2 + a03 * v3
            c1[j] += a10 * v0 + a11 * v1 + a12 * v2 + a13 * v3
            c2[j] += a20 * v0 + a21 * v1 + a22 * v2 + a23 * v3
            c3[j] += a30 * v0 + a31 * v1 + a32 * v2 + a33 * v3

    def add_row(c: Any, a: Any, b: Any, i: Any, k: Any, begin: Any, end: Any) -> None:  # noqa: PLR0917
        target, row, value = c[i, begin:end], b[k, begin:end], a[i, k]
        for j in range(target.size):
            target[j] += value * row[j]

    add, add_row = numba.njit(**options)(add), numba.njit(**options)(add_row)

    def blocked(a: Any, b: Any, c: Any, block_m: Any, block_n: Any, block_k: Any, group: Any) -> None:  # noqa: PLR0917
        m, depth = a.shape
        n = b.shape[1]
        rows, columns = (m + block_m - 1) // block_m, (n + block_n - 1) // block_n
        for program in prange(rows * columns):
            # The same order of blocks as on a GPU: bands of `group` rows, each walked column by column.
            band = program // (group * columns)
            height = min(rows - band * group, group)
            within = program - band * group * columns
            i0, j0 = (band * group + within % height) * block_m, within // height * block_n
            i1, j1 = min(i0 + block_m, m), min(j0 + block_n, n)
            c[i0:i1, j0:j1] = 0
            for k0 in range(0, depth, block_k):
                k1 = min(k0 + block_k, depth)
                i = i0
                while i + 4 <= i1:
                    k = k0
                    while k + 4 <= k1:
                        add(c, a, b, i, k, j0, j1)
                        k += 4
                    while k < k1:
                        for r in range(i, i + 4):
                            add_row(c, a, b, r, k, j0, j1)
                        k += 1
                    i += 4
                while i < i1:
                    for k in range(k0, k1):
                        add_row(c, a, b, i, k, j0, j1)
                    i += 1

    def naive(a: Any, b: Any, c: Any, tile: Any) -> None:
        m, depth = a.shape
        n = b.shape[1]
        columns = (n + tile - 1) // tile
        for program in prange((m + tile - 1) // tile * columns):
            i0, j0 = program // columns * tile, program % columns * tile
            i1, j1 = min(i0 + tile, m), min(j0 + tile, n)
            c[i0:i1, j0:j1] = 0
            for k0 in range(0, depth, tile):
                k1 = min(k0 + tile, depth)
                for i in range(i0, i1):
                    for j in range(j0, j1):
                        total = c[i, j]
                        for k in range(k0, k1):
                            total += a[i, k] * b[k, j]
                        c[i, j] = total

    parallel = numba.njit(parallel=True, **options)
    return {"blocked": parallel(blocked), "naive": parallel(naive)}


@lru_cache(maxsize=4)
def _compiled(name: str, dtype: Any) -> tuple[Any, float]:
    import numpy as np

    kernel = _kernels()[name]
    a, b, c = (np.zeros((1, 1), dtype=dtype) for _ in range(3))
    begin = time.perf_counter()
    kernel(a, b, c, *((1, 1, 1, 1) if name == "blocked" else (1,)))
    return kernel, time.perf_counter() - begin


def kernel_for(name: str, dtype: Any) -> tuple[Callable[..., None], float]:
    """A kernel, compiled for a numpy dtype, on as many threads as torch uses.

    Args:
        name: ``"blocked"``, called with ``(a, b, c, block_m, block_n, block_k, group_m)``, or ``"naive"``, called with
            ``(a, b, c, tile)``; arrays are row-major.
        dtype: of all three arrays.

    Returns:
        The kernel, and the seconds that its compilation took in this process.
    """
    numba_for_loops()
    return _compiled(name, dtype)
