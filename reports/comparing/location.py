"""Where repeated readings lie, whatever a few of them say.

A neighbour that comes and goes makes a few readings far too long. A fifth of them is left out at either end, and the
standard error is that of the winsorised rest (K. Yuen, "The two-sample trimmed t for unequal population variances",
Biometrika 61(1), 1974): under heavy tails it is down to half of a mean's, under normal ones hardly more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

TRIM = 0.2
"""Share of the readings that is left out at either end."""
ENOUGH = 5
"""Readings from which on one is left out at either end."""


class Located(NamedTuple):
    """Readings in short.

    Attributes:
        mean: of what is held.
        squares: sum of squared deviations from its mean, of all readings once those left out are moved to the nearest
            that is held. The squared standard error of ``mean`` is ``squares / (held * (held - 1))``.
        held: readings that are not left out.
        trimmed: readings left out.
    """

    mean: float
    squares: float
    held: int
    trimmed: int


def located(values: Sequence[float], share: float) -> Located:
    """Trimmed mean and winsorised sum of squares of at least one reading.

    Args:
        values: the readings, in any order.
        share: of them to be left out at either end, such as :data:`TRIM`, rounded down to whole readings.
    """
    n = len(values)
    if n == 1:  # as most are where nothing was repeated
        return Located(values[0], 0.0, 1, 0)
    cut = int(share * n)
    ordered = sorted(values) if cut else list(values)
    held = ordered[cut : n - cut]
    mean = sum(held) / len(held)
    moved = [held[0]] * cut + held + [held[-1]] * cut
    centre = sum(moved) / n
    return Located(mean, sum((v - centre) ** 2 for v in moved), len(held), 2 * cut)
