"""From readings to watts: pure functions on sequences of readings, no clock and no device.

What a sensor does to the truth, and what is done about it:

* A counter changes every 20 to 100 ms, and a poll sees the change late by up to the gap between two polls. The value
  at a change is exact up to the resolution, its time is not: it lies in the gap, and its middle is the estimate
  without bias (:func:`find_edges`). Times are therefore regressed on joules, weighted by the gaps; the slope's inverse
  is watts (:func:`counter_power`). Errors in the regressor would bias the slope towards zero; there are none here.
* A power reading is an average over the hardware's window, renewed every period. Under one uninterrupted load, with a
  lead-in longer than window, lag and one period, the mean of the readings is the power (:func:`mean_power`), and the
  number of independent readings is the span over the larger of period and window.
* A region of arbitrary code is no steady load: :func:`span_energy` interpolates between the changes, and the width of
  its interval is what may have happened between them.

All relative widths are half-widths of 95 % intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from wattline.collectors.energy.edges import (
    Edge,
    find_edges,
    fit_slope,
    longest_rise,
    observed_period,
    stalled_share,
    student,
    unseen_share,
)
from wattline.collectors.energy.sources import COUNTER, Reading, SensorProfile
from wattline.errors import SensorError

__all__ = [
    "Edge",
    "PowerEstimate",
    "SpanEnergy",
    "counter_power",
    "estimate_power",
    "find_edges",
    "mean_power",
    "observed_period",
    "relative_difference",
    "settle_s",
    "span_energy",
]

LOW_CONFIDENCE_PERIODS = 20
"""A window of fewer periods is flagged."""

LEAST_PERIODS = 2
"""A window of fewer periods says nothing and is refused."""

STALL_SHARE = 0.05
"""A counter that stood still for a larger share of the window is not believed."""

_NEIGHBOURS = 3
"""Steps of a counter that tell the power before and after a time."""

DRIFT_LIMIT = 0.03
"""Relative change of power between the halves of a window above which the load was not steady."""

SWING_CORRELATION = 0.3
"""Autocorrelation of residuals above which the power itself swings: polling alone leaves none (beyond 2 / sqrt(n))."""

SWING_EXCESS = 1.3
"""Residuals over what the gaps of the polls explain, above which the same is concluded."""


@dataclass(frozen=True)
class PowerEstimate:
    """Mean power over a span of steady load.

    Attributes:
        power_w: watts.
        trial: relative half-width from the spread of the readings.
        quantisation: the same from the sensor's steps in time and value.
        drift: the same from a load that changed during the window.
        periods: the sensor's periods within the span.
        span_s: seconds between the first and the last reading used.
        flags: codes of :data:`wattline.collectors.energy.flags.ENERGY_FLAGS`.
    """

    power_w: float
    trial: float
    quantisation: float
    drift: float
    periods: float
    span_s: float
    flags: tuple[str, ...] = ()

    @property
    def half_width(self) -> float:
        """The terms combined in quadrature, relative: all but the sensor's gain."""
        return math.hypot(self.trial, self.quantisation, self.drift)


@dataclass(frozen=True)
class SpanEnergy:
    """Energy of a span of arbitrary code.

    Attributes:
        energy_j: joules.
        half_width_j: half-width of its interval, without the sensor's gain.
        periods: the sensor's periods within the span.
        flags: as those of :class:`PowerEstimate`.
    """

    energy_j: float
    half_width_j: float
    periods: float
    flags: tuple[str, ...] = ()


def estimate_power(
    kind: str, readings: Sequence[Reading], profile: SensorProfile, begin_s: float = -math.inf, end_s: float = math.inf
) -> PowerEstimate:
    """:func:`counter_power` or :func:`mean_power`, by the kind of the source; see there."""
    function = counter_power if kind == COUNTER else mean_power
    return function(readings, profile, begin_s, end_s)


def counter_power(
    readings: Sequence[Reading], profile: SensorProfile, begin_s: float = -math.inf, end_s: float = math.inf
) -> PowerEstimate:
    """Mean power from an energy counter, by weighted regression of edge times on joules.

    The width of the slope is that of the residuals (Student's t, widened by their autocorrelation at lag 1), and never
    less than what the gaps of the polls allow. Where the power itself swings, the residuals follow one another and a
    regression gives the middle of the window too much weight: then joules between the first
    and the last edge over the time between them are taken instead, which are exact but for those two times.

    Args:
        readings: joules, wraps undone, in the order taken.
        profile: period and resolution of the counter.
        begin_s: only edges from then on.
        end_s: only edges up to then.

    Raises:
        SensorError: fewer than :data:`LEAST_PERIODS` periods, or the counter stood still.
    """
    inside = [r for r in readings if begin_s <= r.time_s <= end_s]
    part, flags = longest_rise(inside)
    edges = find_edges(part, profile.period_s)
    if len(edges) <= LEAST_PERIODS:
        raise SensorError(
            f"no power from an energy counter that changed {len(edges)} times",
            why=f"{len(inside)} readings; its period is about {profile.period_s:g} s",
            todo=f"measure for longer: at least {LEAST_PERIODS} periods, better {LOW_CONFIDENCE_PERIODS} and more",
        )
    stalled = stalled_share(part, edges)
    if stalled > STALL_SHARE:
        raise SensorError(
            "the energy counter stood still",
            why=f"for {stalled:.0%} of the {part[-1].time_s - part[0].time_s:.3g} s watched",
            todo="see that the load really ran; some parts stop their counters while power management is off",
        )
    if stalled > 0:
        flags.append("stalled")
    slope = fit_slope(edges)
    span_s, joules = edges[-1].time_s - edges[0].time_s, edges[-1].value - edges[0].value
    period_s = observed_period(part, profile.period_s)
    periods = max(len(edges) - 1.0, span_s / period_s if period_s > 0 else 0.0)
    steps = profile.resolution / joules
    ends = 1.96 * math.hypot(edges[0].half_s, edges[-1].half_s) / math.sqrt(3) / span_s
    spread = student(slope.freedom) * slope.error
    # Residuals smaller than the gaps of the polls allow say nothing of the power, whatever their order.
    excess = slope.error / slope.prior_error
    if excess > 1 and (spread > ends or slope.follow > SWING_CORRELATION or excess > SWING_EXCESS):
        power_w, quantisation = joules / span_s, math.hypot(ends, steps)
        trial = unseen_share(edges, power_w, min(end_s, part[-1].time_s) - max(begin_s, part[0].time_s))
    else:
        power_w, quantisation = 1 / slope.value, math.hypot(1.96 * slope.prior_error, steps)
        trial = math.sqrt(max(0.0, spread**2 - quantisation**2))  # the residuals hold the polling error already
    drift, drifted = _halves(edges)
    if periods < LOW_CONFIDENCE_PERIODS:
        flags.append("low_confidence")
    if drifted:
        flags.append("power_drift")
    return PowerEstimate(power_w, trial, quantisation, drift, periods, span_s, tuple(flags))


def mean_power(
    readings: Sequence[Reading], profile: SensorProfile, begin_s: float = -math.inf, end_s: float = math.inf
) -> PowerEstimate:
    """Mean power from power readings under a steady load: each holds until the next.

    Args:
        readings: watts, in the order taken; polled, or with the driver's own times.
        profile: period, window and resolution of the sensor.
        begin_s: only readings from then on; the load must have run for the sensor's window, lag and period by then.
        end_s: only readings up to then.

    Raises:
        SensorError: fewer than :data:`LEAST_PERIODS` periods, or no power at all.
    """
    inside = [r for r in readings if begin_s <= r.time_s <= end_s]
    span_s = inside[-1].time_s - inside[0].time_s if len(inside) > 1 else 0.0
    period_s = observed_period(inside, profile.period_s)
    periods = span_s / period_s if period_s > 0 else float(max(0, len(inside) - 1))
    if len(inside) < 3 or periods < LEAST_PERIODS:
        raise SensorError(
            f"no power from {len(inside)} readings over {span_s:.3g} s",
            why=f"the sensor renews its reading every {period_s:g} s",
            todo=f"measure for longer: at least {LEAST_PERIODS} periods, better {LOW_CONFIDENCE_PERIODS} and more",
        )
    mean = _held_mean(inside)
    if not mean > 0:
        raise SensorError(
            f"the power sensor reads {mean:g} W", why="a device that is on draws power: it says nothing",
            todo="see what `nvidia-smi -q -d POWER` or the vendor's tool shows",
        )
    flags = []
    if all(r.value == inside[0].value for r in inside):
        flags.append("unchanged")
    # Readings whose windows overlap repeat each other: only one per window is news.
    news = max(2.0, span_s / max(period_s, profile.window_s, 1e-9))
    deviation = math.sqrt(sum((r.value - mean) ** 2 for r in inside) / (len(inside) - 1))
    trial = student(news - 1) * deviation / math.sqrt(news) / mean
    middle = (inside[0].time_s + inside[-1].time_s) / 2
    early = _held_mean([r for r in inside if r.time_s <= middle] or inside[:1])
    late = _held_mean([r for r in inside if r.time_s > middle] or inside[-1:])
    drift, drifted = _drift(abs(late - early) / mean, 2 * trial)
    if periods < LOW_CONFIDENCE_PERIODS or news < LEAST_PERIODS + 1:
        flags.append("low_confidence")
    if drifted:
        flags.append("power_drift")
    return PowerEstimate(mean, trial, profile.resolution / 2 / mean, drift, periods, span_s, tuple(flags))


def span_energy(
    kind: str, readings: Sequence[Reading], profile: SensorProfile, begin_s: float, end_s: float
) -> SpanEnergy:
    """Energy of a span of any code, from readings that reach beyond both its ends.

    Args:
        kind: ``"counter"`` or ``"power"``.
        readings: from before ``begin_s`` until at least :func:`settle_s` after ``end_s``.
        profile: how the sensor reads.
        begin_s: start of the span.
        end_s: its end.

    Raises:
        SensorError: fewer than :data:`LEAST_PERIODS` periods, or the readings do not cover the span.
    """
    period_s = observed_period(readings, profile.period_s)
    periods = (end_s - begin_s) / period_s if period_s > 0 else math.inf
    if periods < LEAST_PERIODS:
        raise SensorError(
            f"no energy of {end_s - begin_s:.3g} s",
            why=f"the sensor renews its reading every {period_s:g} s: {periods:.2g} periods",
            todo=f"measure at least {LEAST_PERIODS} periods; repeat the work until it lasts so long",
        )
    if kind == COUNTER:
        part, flags = longest_rise(readings)
        shift_s = profile.lag_s
        edges = find_edges(part, profile.period_s)
        first, last = (_at(edges, t + shift_s) for t in (begin_s, end_s))
        joules, half = last[0] - first[0], math.hypot(first[1], last[1], profile.resolution)
    else:
        flags = []
        # A value is the mean over the window before it and stands for the period after it: its middle is this late.
        blur = (profile.window_s + period_s) / 2
        shift_s = profile.lag_s + blur
        joules, half = _held_energy(readings, profile.period_s, begin_s + shift_s, end_s + shift_s)
        # Where within window and period the power changed is not known; one end is independent of the other.
        half = math.hypot(half, *(_swing(readings, t + shift_s, 2 * blur) * blur for t in (begin_s, end_s)))
        half = math.hypot(half, profile.resolution / 2 * (end_s - begin_s))
    if not joules > 0:
        raise SensorError(
            f"the sensor counted {joules:g} J in {end_s - begin_s:.3g} s",
            why="a device that is on draws power: it says nothing",
        )
    if periods < LOW_CONFIDENCE_PERIODS:
        flags.append("low_confidence")
    return SpanEnergy(joules, half, periods, tuple(flags))


def settle_s(profile: SensorProfile) -> float:
    """Seconds after a change of the load until the readings hold nothing of what was before."""
    return profile.window_s + profile.lag_s + profile.rise_s + profile.period_s


def relative_difference(a: float, b: float) -> float:
    """|a - b| over their mean."""
    return abs(a - b) / ((abs(a) + abs(b)) / 2) if a or b else 0.0


def _halves(edges: Sequence[Edge]) -> tuple[float, bool]:
    if len(edges) < 8:
        return 0.0, False
    middle = len(edges) // 2
    early, late = fit_slope(edges[: middle + 1]), fit_slope(edges[middle:])
    noise = 2 * math.hypot(max(early.error, early.prior_error), max(late.error, late.prior_error))
    return _drift(relative_difference(early.value, late.value), noise)


def _drift(difference: float, noise: float) -> tuple[float, bool]:
    """Relative half-width for a difference between halves beyond its noise, and whether it is worth a flag."""
    excess = math.sqrt(max(0.0, difference**2 - noise**2))
    return excess / 2, excess > DRIFT_LIMIT


def _at(edges: Sequence[Edge], time_s: float) -> tuple[float, float]:
    """A counter's value at a time between two changes, and its half-width.

    Regions of code begin and end where the power changes, so a straight line between the changes around would be
    biased. The power before is carried on to that time from the left, the power after it back from the right; both
    meet where the power changed just then, or not at all. What they differ by is part of the width.
    """
    after = next((k for k, edge in enumerate(edges) if edge.time_s >= time_s), len(edges))
    if not 0 < after < len(edges):
        seen = f"from {edges[0].time_s:.3f} to {edges[-1].time_s:.3f} s" if edges else "never"
        raise SensorError(
            f"the counter's value at {time_s:.3f} s is not known", why=f"changes were seen {seen}",
            todo="watch for a few periods before and after",
        )
    left, right = edges[after - 1], edges[after]
    before_w = _rate(edges[max(0, after - 1 - _NEIGHBOURS) : after]) or _rate([left, right])
    after_w = _rate(edges[after : after + 1 + _NEIGHBOURS]) or _rate([left, right])
    ahead = min(left.value + before_w * (time_s - left.time_s), right.value)
    back = max(right.value - after_w * (right.time_s - time_s), left.value)
    # 1.96 / sqrt(3): a change is spread evenly over its gap. Half as much again for the rates, found from such changes.
    blur = 1.13 * 1.5 * math.hypot(before_w * left.half_s, after_w * right.half_s) / 2
    return (ahead + back) / 2, math.hypot((ahead - back) / 2, blur)


def _rate(edges: Sequence[Edge]) -> float:
    """Watts between the first and the last of some changes; 0 for less than two."""
    if len(edges) < 2:
        return 0.0
    return (edges[-1].value - edges[0].value) / max(edges[-1].time_s - edges[0].time_s, 1e-12)


def _held_energy(readings: Sequence[Reading], period_s: float, begin_s: float, end_s: float) -> tuple[float, float]:
    """Integral of power readings that hold from one change to the next, and its half-width from the changes' times."""
    if not readings or readings[0].time_s > begin_s or readings[-1].time_s < end_s:
        seen = f"{readings[0].time_s:.3f} to {readings[-1].time_s:.3f} s" if readings else "there are none"
        raise SensorError(
            "the power readings do not cover the span",
            why=f"{seen}; {begin_s:.3f} to {end_s:.3f} s are needed",
            todo="watch for a few periods before and after",
        )
    changes = [Edge(readings[0].time_s, readings[0].value, 0.0), *find_edges(readings, period_s)]
    ends = [*(edge.time_s for edge in changes[1:]), math.inf]
    joules = sum(
        edge.value * max(0.0, min(end, end_s) - max(edge.time_s, begin_s))
        for edge, end in zip(changes, ends, strict=True)
    )
    late = (1.13 * (b.value - a.value) * b.half_s for a, b in pairwise(changes) if begin_s < b.time_s < end_s)
    return joules, math.hypot(*late)


def _swing(readings: Sequence[Reading], time_s: float, reach_s: float) -> float:
    """Highest less lowest power around a time."""
    near = [r.value for r in readings if abs(r.time_s - time_s) <= reach_s]
    return max(near) - min(near) if near else 0.0


def _held_mean(readings: Sequence[Reading]) -> float:
    """Mean over time of readings that hold until the next."""
    span = readings[-1].time_s - readings[0].time_s
    if span <= 0:
        return sum(r.value for r in readings) / len(readings)
    return sum(a.value * (b.time_s - a.time_s) for a, b in pairwise(readings)) / span
