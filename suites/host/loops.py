"""Loops over arrays, compiled by numba: what STREAM does, plain reading and plain writing.

A loop runs over ``[lo, hi)`` of its arrays ``passes`` times. Reading sums 64-bit words as whole numbers: additions then
take one cycle and wrap, so that neither their latency nor rounding gets in the way. Indices begin at zero of a slice:
numba counts from the end for negative ones, and a loop that might meet one is not vectorised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

KERNELS = ("copy", "scale", "add", "triad", "read", "write")
FACTOR = 0.75
"""The scalar of scale and triad: exact in every format, and a power of it never overflows."""


@lru_cache(maxsize=1)
def loops() -> dict[str, Callable[..., Any]]:
    """The loops by name; each takes ``(out, x, y, passes, lo, hi)`` and leaves Python's lock."""
    import numba

    compile_ = numba.njit(nogil=True, fastmath={"contract"}, error_model="numpy")

    @compile_
    def copy(out: Any, x: Any, y: Any, passes: int, lo: int, hi: int) -> None:  # noqa: PLR0917
        o, a = out[lo:hi], x[lo:hi]
        for _ in range(passes):
            for i in range(len(o)):
                o[i] = a[i]

    @compile_
    def scale(out: Any, x: Any, y: Any, passes: int, lo: int, hi: int) -> None:  # noqa: PLR0917
        o, a = out[lo:hi], x[lo:hi]
        factor = x.dtype.type(FACTOR)
        for _ in range(passes):
            for i in range(len(o)):
                o[i] = factor * a[i]

    @compile_
    def add(out: Any, x: Any, y: Any, passes: int, lo: int, hi: int) -> None:  # noqa: PLR0917
        o, a, b = out[lo:hi], x[lo:hi], y[lo:hi]
        for _ in range(passes):
            for i in range(len(o)):
                o[i] = a[i] + b[i]

    @compile_
    def triad(out: Any, x: Any, y: Any, passes: int, lo: int, hi: int) -> None:  # noqa: PLR0917
        o, a, b = out[lo:hi], x[lo:hi], y[lo:hi]
        factor = x.dtype.type(FACTOR)
        for _ in range(passes):
            for i in range(len(o)):
                o[i] = a[i] + factor * b[i]

    @compile_
    def read(out: Any, x: Any, y: Any, passes: int, lo: int, hi: int) -> None:  # noqa: PLR0917
        a = x[lo:hi]
        total = 0
        for k in range(passes):
            part = 0
            for i in range(len(a)):
                part += a[i]
            total ^= part + k  # so that no pass can be left out
        out[0] = total

    @compile_
    def write(out: Any, x: Any, y: Any, passes: int, lo: int, hi: int) -> None:  # noqa: PLR0917
        o = out[lo:hi]
        value = x[0]
        for _ in range(passes):
            for i in range(len(o)):
                o[i] = value

    return {"copy": copy, "scale": scale, "add": add, "triad": triad, "read": read, "write": write}
