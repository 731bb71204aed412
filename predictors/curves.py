"""Steps of a curve over working sets: the capacities of caches as a measurement sees them, beside what is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, log

from wattline.errors import DataError

STEP = 1.35
"""Least ratio of two plateaus that counts as a step: less is noise or translation of addresses."""

_SPREAD = 0.12
"""How far, as a logarithm, points of one plateau lie from its middle: what a step must beat."""


@dataclass(frozen=True)
class Plateau:
    """A stretch of working sets over which a figure stays about the same.

    Attributes:
        first_bytes, last_bytes: its least and largest working set that was measured.
        value: the geometric mean of the figure (seconds per load, or bytes per second).
    """

    first_bytes: float
    last_bytes: float
    value: float


@dataclass(frozen=True)
class Seen:
    """A cache as reported, and the step that the curve has there.

    Attributes:
        name: ``"L2"``.
        reported_bytes: what the system says.
        lo_bytes, hi_bytes: the largest set that still fits and the least that does not, or ``None`` without a step.
        agrees: whether the reported size lies between them, give or take a factor of 1.5 (other data, and neighbours
            on a shared machine, take their part of a cache).
    """

    name: str
    reported_bytes: float
    lo_bytes: float | None
    hi_bytes: float | None
    agrees: bool


def plateaus(sizes: Sequence[float], values: Sequence[float]) -> list[Plateau]:
    """Cut a curve into plateaus.

    The cuts minimise the squared deviations of the logarithms from each plateau's mean plus a penalty for each
    plateau, exactly, by dynamic programming (B. Jackson et al., "An algorithm for optimal partitioning of data on an
    interval", IEEE Signal Processing Letters 12(2), 2005); neighbours less than :data:`STEP` apart are then joined.

    Args:
        sizes: working sets in bytes, any order.
        values: the figure at each, above zero.

    Raises:
        DataError: fewer than two points, or values that are not above zero.
    """
    if len(sizes) != len(values) or len(sizes) < 2:
        raise DataError("a curve needs at least two points", why=f"{len(sizes)} sizes, {len(values)} values")
    if not all(0 < v < inf for v in (*sizes, *values)):
        raise DataError("a curve needs sizes and values above zero")
    points = sorted(zip(sizes, values, strict=True))
    logs = [log(v) for _, v in points]
    count, penalty = len(logs), 2 * _SPREAD**2 * log(len(logs) + 1) + _SPREAD**2
    sums, squares = [0.0], [0.0]
    for v in logs:
        sums.append(sums[-1] + v)
        squares.append(squares[-1] + v * v)

    def cost(i: int, j: int) -> float:
        mean = (sums[j] - sums[i]) / (j - i)
        return squares[j] - squares[i] - (j - i) * mean * mean

    best, cut = [0.0] + [inf] * count, [0] * (count + 1)
    for j in range(1, count + 1):
        for i in range(j):
            total = best[i] + cost(i, j) + penalty
            if total < best[j]:
                best[j], cut[j] = total, i
    edges = [count]
    while edges[-1]:
        edges.append(cut[edges[-1]])
    parts = [list(range(i, j)) for i, j in zip(edges[::-1], edges[-2::-1], strict=False)]
    return _joined(parts, points, logs)


def _joined(parts: list[list[int]], points: list[tuple[float, float]], logs: list[float]) -> list[Plateau]:
    def mean(part: list[int]) -> float:
        return sum(logs[i] for i in part) / len(part)

    while len(parts) > 1:
        gaps = [abs(mean(b) - mean(a)) for a, b in pairwise(parts)]
        at = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[at] >= log(STEP):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [Plateau(points[p[0]][0], points[p[-1]][0], exp(mean(p))) for p in parts]


def compare_caches(found: Sequence[Plateau], reported: Mapping[str, float]) -> list[Seen]:
    """Hold the steps of a curve against the caches that the system reports.

    Args:
        found: from :func:`plateaus`.
        reported: bytes by level, as :func:`wattline.suites.memory.caches.reported_caches` gives them.
    """
    steps = [(a.last_bytes, b.first_bytes) for a, b in pairwise(found)]
    seen = []
    for name, size in sorted(reported.items(), key=lambda item: item[1]):
        if not steps:
            seen.append(Seen(name, size, None, None, False))
            continue
        lo, hi = min(steps, key=lambda step: abs(log(size) - 0.5 * (log(step[0]) + log(step[1]))))
        seen.append(Seen(name, size, lo, hi, lo / 1.5 <= size <= hi * 1.5))
    return seen
