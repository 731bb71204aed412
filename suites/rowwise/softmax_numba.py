"""The three forms of softmax as loops that touch each element as often as their names say, compiled by numba."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from wattline.suites.compiled import numba_for_loops


def kernels() -> dict[str, Callable[[Any, Any], None]]:
    """The kernels by name: each takes ``x`` and ``out``, ``[rows, cols]`` of one format, and works on rows in parallel,
    by as many threads as torch uses."""
    numba_for_loops()
    return _kernels()


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Callable[[Any, Any], None]]:
    import numba

    # Sums may be reassociated, so that they vectorise; infinities and NaN keep their meaning.
    compile_ = numba.njit(parallel=True, fastmath={"reassoc", "contract", "arcp"}, cache=False)

    @compile_
    def three_pass(x: Any, out: Any) -> None:
        for i in numba.prange(x.shape[0]):
            row, target = x[i], out[i]
            largest = row[0]
            for j in range(row.size):
                largest = max(largest, row[j]) if row[j] == row[j] else math.nan
            total = row.dtype.type(0)
            for j in range(row.size):
                total += math.exp(row[j] - largest)
            for j in range(row.size):
                target[j] = math.exp(row[j] - largest) / total

    @compile_
    def online(x: Any, out: Any) -> None:
        for i in numba.prange(x.shape[0]):
            row, target = x[i], out[i]
            largest = row.dtype.type(-math.inf)
            total = row.dtype.type(0)
            for j in range(row.size):
                value = row[j]
                if value > largest:
                    total = total * math.exp(largest - value) + 1
                    largest = value
                elif value != -math.inf:  # which adds nothing, and before anything larger would give inf - inf
                    total += math.exp(value - largest)
            for j in range(row.size):
                target[j] = math.exp(row[j] - largest) / total

    @compile_
    def two_pass(x: Any, out: Any) -> None:
        log2e = 1.4426950408889634
        for i in numba.prange(x.shape[0]):
            row, target = x[i], out[i]
            mantissa, exponent = 0.0, -math.inf
            for j in range(row.size):
                scaled = row[j] * log2e
                whole = math.floor(scaled) if scaled > -1e30 else -math.inf
                part = 2.0 ** (scaled - whole) if scaled > -1e30 else (0.0 if scaled == -math.inf else scaled)
                if whole > exponent:
                    mantissa = mantissa * (2.0 ** (exponent - whole) if exponent > -1e30 else 0.0) + part
                    exponent = whole
                else:
                    mantissa += part * 2.0 ** (whole - exponent) if part != 0.0 else 0.0
            for j in range(row.size):
                target[j] = 2.0 ** (row[j] * log2e - exponent) / mantissa

    return {"three_pass": three_pass, "online": online, "two_pass": two_pass}
