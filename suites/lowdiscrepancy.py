"""Points that fill a space evenly, whatever their number: what a plan draws its shapes from.

An additive recurrence on the plastic numbers: point ``i`` is the fractional part of ``offset + i * alpha``, with
``alpha_j = phi**-j`` and ``phi`` the positive root of ``x**(d + 1) = x + 1`` (Martin Roberts, "The unreasonable
effectiveness of quasirandom sequences", 2018). A prefix of any length covers the space about evenly, so a run that is
cut short has still seen all of it; random points leave gaps and clumps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count as _count
from math import exp, log

from wattline.errors import ParamError


def points(dimensions: int, count: int | None = None, *, seed: int = 0) -> Iterator[tuple[float, ...]]:
    """A sequence of points in ``[0, 1)**dimensions``.

    Args:
        dimensions: of the space.
        count: how many; ``None``: without end.
        seed: of the offset; 0 is as good as any other.

    Raises:
        ParamError: fewer than one dimension, or a negative count.
    """
    if dimensions < 1 or (count is not None and count < 0):
        raise ParamError(f"no {count} points of {dimensions} dimensions")
    phi = _plastic(dimensions)
    alphas = [phi ** -(j + 1) % 1.0 for j in range(dimensions)]
    generator = random.Random(f"low discrepancy {seed}")
    offsets = [generator.random() for _ in range(dimensions)]
    for i in range(count) if count is not None else _count():
        # From the index, not by adding up: rounding errors do not grow.
        yield tuple((offset + i * alpha) % 1.0 for offset, alpha in zip(offsets, alphas, strict=True))


def _plastic(dimensions: int) -> float:
    """The positive root of ``x**(d + 1) = x + 1``, by fixed-point iteration, which converges for every ``d``."""
    root = 2.0
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    return root


def log_uniform(unit: float, lo: float, hi: float) -> float:
    """A number in ``[0, 1)`` spread over ``[lo, hi)`` evenly in its logarithm.

    Raises:
        ParamError: not ``0 < lo <= hi``.
    """
    if not 0 < lo <= hi:
        raise ParamError(f"log-uniform numbers need 0 < lo <= hi, not {lo} and {hi}")
    return exp(log(lo) + unit * (log(hi) - log(lo)))
