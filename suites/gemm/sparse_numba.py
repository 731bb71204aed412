"""Products of sparse weights with dense activations on a CPU, compiled by Numba (an optional package).

Rows of the result (blocks of rows) are dealt to the threads. A row of C is a sum of rows of X, which lie together in
memory: four at a time are added, so that C passes through the vector registers once for four elements of W.
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

    def add4(  # noqa: PLR0917 - scalars stay in registers
        out: Any, i: Any, x: Any, c0: Any, c1: Any, c2: Any, c3: Any, v0: Any, v1: Any, v2: Any, v3: Any
    ) -> None:
        for t in range(out.shape[1]):
            out[i, t] += v0 * x[c0, t] + v1 * x[c1, t] + v2 * x[c2, t] + v3 * x[c3, t]

    add4 = numba.njit(**options)(add4)

    def csr(pointers: Any, columns: Any, values: Any, x: Any, out: Any) -> None:
        for i in prange(out.shape[0]):
            out[i] = 0
            j, end = pointers[i], pointers[i + 1]
            while j + 4 <= end:
                add4(
                    out, i, x, columns[j], columns[j + 1], columns[j + 2], columns[j + 3],
                    values[j], values[j + 1], values[j + 2], values[j + 3],
                )  # fmt: skip
                j += 4
            while j < end:
                c, v = columns[j], values[j]
                for t in range(out.shape[1]):
                    out[i, t] += v * x[c, t]
                j += 1

    def block(pointers: Any, columns: Any, values: Any, x: Any, out: Any) -> None:
        side = values.shape[1]
        for i in prange(pointers.size - 1):
            out[i * side : (i + 1) * side] = 0
            for j in range(pointers[i], pointers[i + 1]):
                first = columns[j] * side
                for r in range(side):
                    for c in range(0, side, 4):  # sides are multiples of 4
                        at = first + c
                        add4(
                            out, i * side + r, x, at, at + 1, at + 2, at + 3,
                            values[j, r, c], values[j, r, c + 1], values[j, r, c + 2], values[j, r, c + 3],
                        )  # fmt: skip

    def two_of_four(packed: Any, values: Any, x: Any, out: Any) -> None:
        half = values.shape[1]
        for i in prange(out.shape[0]):
            out[i] = 0
            for g in range(half // 4):  # two groups of four, one byte
                bits, at, v = packed[i, g], 8 * g, 4 * g
                add4(
                    out, i, x, at + (bits & 3), at + (bits >> 2 & 3), at + 4 + (bits >> 4 & 3), at + 4 + (bits >> 6),
                    values[i, v], values[i, v + 1], values[i, v + 2], values[i, v + 3],
                )  # fmt: skip
            if half % 4:  # the last group of an odd number
                bits, at = packed[i, half // 4], 2 * (half - 2)
                v0, v1, c0, c1 = values[i, half - 2], values[i, half - 1], at + (bits & 3), at + (bits >> 2 & 3)
                for t in range(out.shape[1]):
                    out[i, t] += v0 * x[c0, t] + v1 * x[c1, t]

    parallel = numba.njit(parallel=True, **options)
    return {"csr": parallel(csr), "block": parallel(block), "2:4": parallel(two_of_four)}


@lru_cache(maxsize=8)
def _compiled(pattern: str, dtype: Any) -> tuple[Any, float]:
    import numpy as np

    kernel = _kernels()[pattern]
    pointers, columns = np.array([0, 1], dtype=np.int32), np.array([0], dtype=np.int32)
    x, out = np.zeros((16, 1), dtype=dtype), np.zeros((16, 1), dtype=dtype)
    begin = time.perf_counter()
    if pattern == "csr":
        kernel(pointers, columns, np.zeros(1, dtype=dtype), x, out[:1])
    elif pattern == "block":
        kernel(pointers, columns, np.zeros((1, 16, 16), dtype=dtype), x, out)
    else:
        kernel(np.zeros((1, 2), dtype=np.uint8), np.zeros((1, 8), dtype=dtype), x, out[:1])
    return kernel, time.perf_counter() - begin


def kernel_for(pattern: str, dtype: Any) -> tuple[Callable[..., None], float]:
    """The kernel of a pattern and a numpy dtype, compiled, on as many threads as torch uses.

    Returns:
        The kernel, and the seconds that its compilation took in this process.
    """
    numba_for_loops()
    return _compiled(pattern, dtype)
