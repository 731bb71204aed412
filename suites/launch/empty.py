"""Functions that do next to nothing, by the number of their arguments: they count how often they were called.

They are written out, not made from text: a compiler and a reader see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

COUNTS = (0, 1, 4, 16)
"""Numbers of arguments that there are functions for."""


def _none() -> None:
    pass


def _one(a: Any) -> None:
    a[0] += 1


def _four(a: Any, b: Any, c: Any, d: Any) -> None:
    a[0] += 1


def _sixteen(  # noqa: PLR0917 - arguments are what is counted
    a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any,
    i: Any, j: Any, k: Any, m: Any, n: Any, o: Any, p: Any, q: Any,
) -> None:  # fmt: skip
    a[0] += 1


FUNCTIONS: dict[int, Callable[..., None]] = dict(zip(COUNTS, (_none, _one, _four, _sixteen), strict=True))
"""Python functions by the number of their arguments."""


@cache
def compiled(arguments: int) -> Callable[..., None]:
    """The same function compiled by numba; its first call compiles."""
    import numba

    found: Callable[..., None] = numba.njit(FUNCTIONS[arguments])
    return found
