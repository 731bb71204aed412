"""Computation of a set length, for work that other things are to hide behind: arithmetic on one number, no memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

_TRIAL = 200_000


@lru_cache(maxsize=1)
def burn() -> Callable[[int, float], float]:
    """``(rounds, x) -> x``: rounds that each wait for the one before, Python's lock released."""
    import numba

    @numba.njit(nogil=True)
    def run(rounds: int, x: float) -> float:
        for _ in range(rounds):
            x = x * 0.999999 + 1e-6
        return x

    found: Callable[[int, float], float] = run
    return found


def rounds_for(seconds: float, trials: int = 7) -> int:
    """How many rounds take so long on this machine: by the fastest of some trials, others may be using it."""
    run = burn()
    run(1, 1.0)  # compiles
    fastest = float("inf")
    for _ in range(trials):
        begin = time.perf_counter()
        run(_TRIAL, 1.0)
        fastest = min(fastest, time.perf_counter() - begin)
    return max(1, round(seconds / fastest * _TRIAL))
