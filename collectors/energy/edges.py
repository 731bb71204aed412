"""Edges: the changes of a polled reading, and the line through those of a counter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from wattline.collectors.energy.sources import Reading

FEWEST_FOR_CORRELATION = 20
"""Autocorrelation of fewer residuals is not known well enough to be used."""

STALL_PERIODS = 4.0
"""A counter that does not move for so many periods has stalled."""


@dataclass(frozen=True)
class Edge:
    """A change of a reading.

    Attributes:
        time_s: best estimate of when it happened: the middle of the gap between two polls.
        value: the reading after it.
        half_s: half the gap: it happened within ``time_s +- half_s``.
    """

    time_s: float
    value: float
    half_s: float


def find_edges(readings: Sequence[Reading], period_s: float) -> list[Edge]:
    """The changes of a reading.

    Args:
        readings: in the order taken.
        period_s: the sensor's period: of several changes within one gap the last is seen, and that one is at most a
            period old.
    """
    edges = []
    for before, after in pairwise(readings):
        if after.value != before.value:
            late_s = max(0.0, min(after.time_s - before.time_s, period_s or math.inf))
            edges.append(Edge(after.time_s - late_s / 2, after.value, late_s / 2))
    return edges


def observed_period(readings: Sequence[Reading], period_s: float = 0.0) -> float:
    """Median time between changes, or ``period_s`` where the polls are too far apart to tell (or nothing changed)."""
    edges = find_edges(readings, period_s)
    if len(edges) < 4:
        return period_s
    spacing = median([b.time_s - a.time_s for a, b in pairwise(edges)])
    gap = median([b.time_s - a.time_s for a, b in pairwise(readings)])
    return spacing if spacing > 1.5 * gap else period_s or spacing


@dataclass(frozen=True)
class Slope:
    """A fitted line.

    Attributes:
        value: seconds per joule.
        error: relative standard error, from the residuals.
        prior_error: relative standard error that the gaps between polls leave in any case.
        freedom: degrees of freedom.
        follow: autocorrelation of the residuals at lag 1.
    """

    value: float
    error: float
    prior_error: float
    freedom: float
    follow: float


def fit_slope(edges: Sequence[Edge]) -> Slope:
    """Seconds per joule by weighted least squares of times on joules; weights are the gaps' inverse squares.

    The standard error is that of the residuals, widened by ``sqrt((1 + r) / (1 - r))`` for their autocorrelation r at
    lag 1 (the effective sample size of a first-order autoregressive series).

    Args:
        edges: at least two, of different values.
    """
    weights = [1 / max(e.half_s, 1e-6) ** 2 for e in edges]
    total = sum(weights)
    mean_t = sum(w * e.time_s for w, e in zip(weights, edges, strict=True)) / total
    mean_j = sum(w * e.value for w, e in zip(weights, edges, strict=True)) / total
    squares = sum(w * (e.value - mean_j) ** 2 for w, e in zip(weights, edges, strict=True))
    cross = sum(w * (e.value - mean_j) * (e.time_s - mean_t) for w, e in zip(weights, edges, strict=True))
    slope = cross / squares
    rest = [
        math.sqrt(w) * (e.time_s - mean_t - slope * (e.value - mean_j)) for w, e in zip(weights, edges, strict=True)
    ]
    freedom = max(1, len(edges) - 2)
    variance = sum(r * r for r in rest) / freedom
    follow = sum(a * b for a, b in pairwise(rest)) / (sum(r * r for r in rest) or 1.0)
    follow = min(0.95, max(0.0, follow)) if len(edges) >= FEWEST_FOR_CORRELATION else 0.0
    widened = math.sqrt(variance / squares * (1 + follow) / (1 - follow))
    # A change is spread evenly over its gap: standard deviation half / sqrt(3).
    return Slope(slope, widened / slope, math.sqrt(1 / 3 / squares) / slope, freedom, follow)


def unseen_share(edges: Sequence[Edge], power_w: float, window_s: float) -> float:
    """Relative half-width from the parts of the window outside of the first and last edge, where power swings."""
    steps = [(b.value - a.value, b.time_s - a.time_s) for a, b in pairwise(edges)]
    variance = sum((joules - power_w * length) ** 2 for joules, length in steps) / max(1, len(steps) - 1)
    mean_step_s = (edges[-1].time_s - edges[0].time_s) / len(steps)
    unseen_s = max(0.0, window_s - (edges[-1].time_s - edges[0].time_s)) + mean_step_s
    return 1.96 * math.sqrt(variance * unseen_s / mean_step_s) / (power_w * max(window_s, mean_step_s))


def longest_rise(readings: Sequence[Reading]) -> tuple[Sequence[Reading], list[str]]:
    """The longest stretch in which a counter does not fall, and a flag where that is not all of it."""
    starts = [0, *(i + 1 for i in range(len(readings) - 1) if readings[i + 1].value < readings[i].value), len(readings)]
    if len(starts) == 2:
        return readings, []
    begin, end = max(pairwise(starts), key=lambda p: readings[p[1] - 1].time_s - readings[p[0]].time_s)
    return readings[begin:end], ["counter_reset"]


def stalled_share(readings: Sequence[Reading], edges: Sequence[Edge]) -> float:
    """Share of the time in which a counter was seen not to move, beyond the usual spacing of its changes."""
    spacing = median([b.time_s - a.time_s for a, b in pairwise(edges)])
    stalled_s, since_s = 0.0, readings[0].time_s
    for before, after in pairwise(readings):
        if after.value != before.value:
            # A gap between polls is no stall: it was still until the last reading of the old value.
            stalled_s += _beyond(before.time_s - since_s, spacing)
            since_s = after.time_s
    stalled_s += _beyond(readings[-1].time_s - since_s, spacing)
    return stalled_s / max(readings[-1].time_s - readings[0].time_s, 1e-9)


def _beyond(still_s: float, spacing_s: float) -> float:
    return still_s - spacing_s if still_s > STALL_PERIODS * spacing_s else 0.0


def median(values: Sequence[float]) -> float:
    """Middle of at least one value."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def student(freedom: float) -> float:
    """97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish-Fisher (error below 0.5 %)."""
    if freedom < 2:
        return 12.706
    if freedom < 3:
        return 4.303
    z, v = 1.959964, freedom
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2) + (
        3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    ) / (384 * v**3)
