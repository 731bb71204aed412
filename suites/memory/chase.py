"""The pointer chase as a loop compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def chase() -> Callable[[Any, int, int], int]:
    """``(words, at, steps) -> at``: each load gives the index of the next."""
    import numba

    @numba.njit(nogil=True)
    def walk(words: Any, at: int, steps: int) -> int:
        for _ in range(steps):
            at = words[at]
        return at

    found: Callable[[Any, int, int], int] = walk
    return found
