"""Loops for a CPU: products of bit planes by counting bits, and products by table look-up; compiled by numba.

Both walk along the columns of the result in their innermost loop, so that they vectorise whatever the group size: the
weights lie transposed, [words or bytes of k, n]. A group's sums are scaled as soon as they are complete.

Bit planes: w = sum 2^i w_i and x = sum 2^j x_j with bits w_i and x_j, so that w x = sum 2^(i+j) popcount(w_i AND x_j)
(Cowan et al., "Automatic generation of high-performance quantized machine learning kernels", CGO 2020; Feng et al.,
"APNN-TC", SC 2021). Tables: a byte of weights selects one of at most 256 sums of the activations that it belongs to,
made once for each row of activations (Park et al., "LUT-GEMM", arXiv:2206.09557; Wei et al., "T-MAC",
arXiv:2407.00088).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from wattline.suites.compiled import numba_for_loops

BLOCK = 512
"""Columns that one thread works on at a time: their sums stay in the first-level cache."""


def _compiler() -> Any:
    # Division by zero and the order of float sums play no part; contraction lets a * b + c be one instruction.
    return numba_for_loops().njit(parallel=True, fastmath={"contract"}, error_model="numpy")


@lru_cache(maxsize=1)
def _popcount() -> Any:
    """The processor's count of set bits, which LLVM vectorises."""
    from numba import types
    from numba.extending import intrinsic

    def popcount(_context: Any, value: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.ctpop(arguments[0])

        return value(value) if isinstance(value, types.Integer) else None, generate

    return intrinsic(popcount)


def plane_product(act_planes: int) -> Callable[..., None]:
    """The product of bit planes for activations of so many planes, on as many threads as torch uses.

    The function takes, in this order:

    - ``w``: uint32 [planes, words, n], plane i of the codes of 32 rows of k in each word;
    - ``plane_weight``: int32 [planes], what a bit of each plane counts (2^i; 1 and -1 for ternary);
    - ``x``: uint32 [m, words, act_planes], where a bit of plane j counts 2^j;
    - ``span``: words of a group;
    - ``scale``, ``zero``: float32 [groups, n]; ``middle``: of the codes of w;
    - ``code_sum``: int32 [groups, n], sums of the codes of w;
    - ``x_middle``; ``x_sum``: float32 [m, groups], sums of code minus middle; ``x_scale``: float32 [m];
    - ``out``: float32 [m, n].
    """
    numba_for_loops()
    return _plane_product(act_planes)


@lru_cache(maxsize=8)
def _plane_product(act_planes: int) -> Callable[..., None]:
    import numba
    import numpy as np

    popcount = _popcount()
    uint32, int32, float32 = np.uint32, np.int32, np.float32

    def product(  # noqa: PLR0917 - numba takes them one by one
        w: Any, plane_weight: Any, x: Any, span: int, scale: Any, zero: Any, middle: float, code_sum: Any,
        x_middle: float, x_sum: Any, x_scale: Any, out: Any,
    ) -> None:  # fmt: skip
        planes, words, n = w.shape
        rows, groups = x_sum.shape
        for block in numba.prange((n + BLOCK - 1) // BLOCK):
            lo = block * BLOCK
            hi = min(n, lo + BLOCK)
            count = np.empty(BLOCK, int32)
            total = np.empty(BLOCK, float32)
            for row in range(rows):
                total[:] = 0
                for g in range(groups):
                    count[:] = 0
                    for word in range(g * span, min(words, (g + 1) * span)):
                        bits = x[row, word]
                        for i in range(planes):
                            line = w[i, word, lo:hi]
                            weight = plane_weight[i]
                            for c in range(hi - lo):
                                found = uint32(0)
                                for j in range(act_planes):
                                    found += popcount(line[c] & bits[j]) << uint32(j)
                                count[c] += weight * int32(found)
                    xs = x_sum[row, g]
                    for c in range(hi - lo):
                        # Both middles are taken out before anything is rounded: the sums would cancel otherwise.
                        centred = count[c] - x_middle * code_sum[g, lo + c] - middle * xs
                        total[c] += scale[g, lo + c] * float32(centred) + zero[g, lo + c] * xs
                for c in range(hi - lo):
                    out[row, lo + c] = x_scale[row] * total[c]

    found: Callable[..., None] = _compiler()(product)
    return found


def table_product() -> Callable[..., None]:
    """The product by table look-up, on as many threads as torch uses.

    The function takes, in this order:

    - ``w``: uint8 [planes, bytes, n], the digits of ``per_byte`` rows of k in each byte;
    - ``plane_weight``: float32 [planes], what a digit of each plane counts;
    - ``radix``, ``per_byte``: the digits of a byte;
    - ``least``: what the digit 0 stands for (-1 for ternary digits);
    - ``x``: float32 [m, bytes * per_byte];
    - ``span``: bytes of a group;
    - ``scale``, ``zero``: float32 [groups, n]; ``middle``: of the codes of w;
    - ``x_scale``: float32 [m];
    - ``table``: float32 [bytes, 256], and ``sums``: float32 [bytes], workspace;
    - ``out``: float32 [m, n].
    """
    numba_for_loops()
    return _table_product()


@lru_cache(maxsize=1)
def _table_product() -> Callable[..., None]:
    import numba
    import numpy as np

    float32 = np.float32

    def product(  # noqa: PLR0917 - numba takes them one by one
        w: Any, plane_weight: Any, radix: int, per_byte: int, least: float, x: Any, span: int, scale: Any, zero: Any,
        middle: float, x_scale: Any, table: Any, sums: Any, out: Any,
    ) -> None:  # fmt: skip
        planes, count, n = w.shape
        groups = scale.shape[0]
        for row in range(x.shape[0]):
            for byte in numba.prange(count):
                entry = table[byte]
                entry[0] = 0
                size = 1
                whole = float32(0)
                for j in range(per_byte):
                    value = x[row, byte * per_byte + j]
                    whole += value
                    for digit in range(radix - 1, -1, -1):
                        add = float32(digit + least) * value
                        for s in range(size):
                            entry[digit * size + s] = entry[s] + add
                    size *= radix
                sums[byte] = whole
            for block in numba.prange((n + BLOCK - 1) // BLOCK):
                lo = block * BLOCK
                hi = min(n, lo + BLOCK)
                part = np.empty(BLOCK, float32)
                total = np.zeros(BLOCK, float32)
                for g in range(groups):
                    part[:] = 0
                    xs = float32(0)
                    for byte in range(g * span, min(count, (g + 1) * span)):
                        entry = table[byte]
                        xs += sums[byte]
                        for i in range(planes):
                            line = w[i, byte, lo:hi]
                            weight = plane_weight[i]
                            for c in range(hi - lo):
                                part[c] += weight * entry[line[c]]
                    for c in range(hi - lo):
                        centred = part[c] - float32(middle) * xs
                        total[c] += scale[g, lo + c] * centred + zero[g, lo + c] * xs
                for c in range(hi - lo):
                    out[row, lo + c] = x_scale[row] * total[c]

    found: Callable[..., None] = _compiler()(product)
    return found
