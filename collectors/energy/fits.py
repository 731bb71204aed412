"""Updates of a sensor among polls of it: when they came, how often, and in which steps.

All times are seconds, all arrays one-dimensional float64 of equal length. Nothing here reads a sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wattline.collectors.energy.edges import find_edges as changes
from wattline.collectors.energy.sources import Reading
from wattline.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A fitted figure and its standard error, in seconds."""

    value: float
    error: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON types; an error that is not known is ``None``."""
        return {"value": self.value, "error": self.error if np.isfinite(self.error) else None}


@dataclass(frozen=True)
class Edges:
    """The changes of a reading, in the order seen.

    Attributes:
        time_s: middle between the last poll with the old value and the first with the new one.
        gap_s: seconds between these two polls: the edge lies within half of it.
        value: the new value.
    """

    time_s: Array
    gap_s: Array
    value: Array

    def __len__(self) -> int:
        return len(self.time_s)


def find_edges(readings: Sequence[Reading]) -> Edges:
    """The changes of a reading among polls of it, as arrays."""
    found = changes(readings, 0.0)
    table = np.array([(edge.time_s, 2 * edge.half_s, edge.value) for edge in found], dtype=float).reshape(-1, 3)
    return Edges(*table.T)


def sharp(edges: Edges) -> Edges:
    """Those edges that were not blurred by a poll that came late (more than three times the usual gap)."""
    if not len(edges):
        return edges
    keep = edges.gap_s <= 3 * np.median(edges.gap_s)
    return Edges(edges.time_s[keep], edges.gap_s[keep], edges.value[keep])


def smallest_step(values: Array) -> float:
    """The resolution: the largest step of which all differences between values are multiples (Euclid's algorithm).

    Returns:
        In the unit of the values; the smallest difference where they have no step in common (as numbers that nobody
        rounded have none); 0 where fewer than two differ.
    """
    gaps = np.diff(np.unique(np.round(values, 9)))
    if not len(gaps):
        return 0.0
    least = float(gaps.min())
    gaps = gaps[gaps <= 1000 * least]  # multiples of more would count the error of the step as often
    step = least
    while True:
        rest = np.abs(gaps - np.round(gaps / step) * step)
        rest = rest[rest > 1e-7]
        if not len(rest):
            return step
        if rest.min() < 1e-6:
            return least
        step = float(rest.min())


@dataclass(frozen=True)
class Period:
    """The time between updates.

    Attributes:
        period: seconds.
        jitter_s: standard deviation of one interval, the uncertainty of the polls included.
        intervals: how many intervals it rests on.
    """

    period: Estimate
    jitter_s: float
    intervals: int


def fit_period(edges: Edges) -> Period:
    """The update period from the intervals between changes.

    An update that brings the same value is not seen, so an interval may hold several periods: the period is the
    longest time of which at least nine tenths of the shorter intervals are whole multiples, refined by least squares.

    Raises:
        DataError: fewer than eight intervals, or no common period.
    """
    seen = sharp(edges)
    gaps = np.diff(seen.time_s)
    if len(gaps) < 8:
        raise DataError(
            "no update period can be told", why=f"only {len(gaps)} intervals between changes of the reading"
        )
    blur = 1.5 * float(np.median(seen.gap_s))
    # The median first, and below it whatever could be a period of which updates were missed.
    for candidate in np.quantile(gaps, np.linspace(0.6, 0.0, 61)):
        period = float(candidate)
        if period <= blur / 1.5:
            break
        for _ in range(6):
            short = gaps[gaps <= 3.5 * period]
            counts = np.maximum(np.round(short / period), 1.0)
            period = float(np.sum(counts * short) / np.sum(counts**2)) if len(short) else period
        short = gaps[gaps <= 3.5 * period]
        if len(short) < max(4, len(gaps) // 8):
            continue
        counts = np.maximum(np.round(short / period), 1.0)
        off = short - counts * period
        if np.mean(np.abs(off) <= max(blur, 0.2 * period)) >= 0.9:
            jitter = float(np.sqrt(np.mean(off**2)))
            return Period(Estimate(period, jitter / float(np.sqrt(np.sum(counts**2)))), jitter, len(short))
    raise DataError("no update period can be told", why="the reading changes at no regular interval")


def on_comb(edges: Edges, period_s: float, *, reach: int = 8) -> Edges:
    """The edges with the blur of the polls taken out, where the sensor keeps its period better than the polls can see.

    Each edge is moved to where its neighbours say that it was: on the comb of that period through them. Where the
    edges scatter more than the gaps between polls explain, the sensor itself is irregular, and they are left alone.

    Args:
        edges: sharp ones; updates may be missing.
        period_s: from :func:`fit_period`.
        reach: how many neighbours count on each side.
    """
    if len(edges) < 3 * reach:
        return edges
    counts = np.concatenate([[0.0], np.cumsum(np.maximum(np.round(np.diff(edges.time_s) / period_s), 1.0))])
    off = edges.time_s - period_s * counts
    off = off - np.polyval(np.polyfit(counts, off, 1), counts)
    weight, near = 1 / edges.gap_s**2, np.ones(2 * reach + 1)
    around = np.convolve(off * weight, near, "same") / np.convolve(weight, near, "same")
    # A poll that comes anywhere within its gap: standard deviation gap / sqrt(12).
    expected = float(np.sqrt(np.mean(edges.gap_s**2) / 12))
    if float(np.std(off - around)) > 1.3 * expected:
        return edges
    return Edges(edges.time_s - off + around, edges.gap_s, edges.value)
