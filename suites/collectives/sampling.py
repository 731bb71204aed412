"""What rank 0 decides (how long to warm up, how many samples to take) and what it makes of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from wattline.case import Case
from wattline.collectors.timers import Timer
from wattline.record import Flag
from wattline.suites.collectives.lockstep import Taken
from wattline.suites.measure.loop import WARM_AGREEMENT, Progress, calls_per_sample
from wattline.suites.measure.stopping import stopping
from wattline.suites.settings import MeasureSettings
from wattline.workmodels.collectives import COLLECTIVES, busbw_factor

MOST_ITERATIONS = 20_000
"""Iterations of one case whose times are kept: no more are made."""
FEWEST = 3
"""Samples that every case gets: below there is no interval."""


class Warming:
    """Decides the warm-up: batches grow to the clock's shortest, until two medians agree or the time is up.

    Attributes:
        calls: calls made.
        spent_s: seconds inside them.
        stop: ``"settled"``, ``"time_limit"``, ``"shrunk"`` or ``"iterations"`` (so many were asked for).
        call_s: seconds per call at the end.
    """

    def __init__(self, min_batch_s: float, limit_s: float, most: int, *, fixed: int = 0) -> None:
        self._fixed = fixed
        self._min_batch_s, self._limit_s, self._most = min_batch_s, limit_s, most
        self._count, self._window, self._before = 1, 3, 0.0
        self._medians: list[float] = []
        self.calls, self.spent_s, self.stop, self.call_s = 0, 0.0, "", 0.0

    def __call__(self, taken: Taken) -> int:
        """Calls of the next batch, 0 to end."""
        if not taken.slowest_ns:
            self._count = self._fixed or 1
            return self._count
        took = taken.slowest_ns[-1] * 1e-9
        self.calls += self._count
        self.spent_s += took
        self.call_s = took / self._count
        if self._fixed:
            return self._end("iterations")
        if took < self._min_batch_s and self._count < self._most and self.spent_s < self._limit_s:
            growth = min(10.0, max(1.5, 1.2 * self._min_batch_s / max(took, 1e-9)))
            self._count = min(self._most, max(self._count + 1, int(self._count * growth)))
            return self._count
        if took >= self._limit_s and len(taken.slowest_ns) == 1:
            return self._end("shrunk")
        self._medians.append(self.call_s)
        if len(self._medians) >= 2 * self._window:
            first = statistics.median(self._medians[-2 * self._window : -self._window])
            last = statistics.median(self._medians[-self._window :])
            if abs(last - first) <= WARM_AGREEMENT * first:
                return self._end("settled")
        if self.spent_s >= self._limit_s:
            return self._end("time_limit")
        return self._count

    def _end(self, stop: str) -> int:
        recent = self._medians[-self._window :]
        self.call_s = statistics.median(recent) if recent else self.call_s
        self.stop = stop
        return 0


def sampling(
    settings: MeasureSettings, timer: Timer, call_s: float, single: int | None, progress: Progress
) -> Callable[[Taken], int]:
    """Decides the samples by the criteria that hold on one device.

    Args:
        settings: limits and criterion.
        timer: whose resolution a sample must exceed.
        call_s: seconds per call, from the warm-up.
        single: calls of every sample, where the regime says it.
        progress: told how it goes.
    """
    if settings.iterations:
        return _exactly(settings.iterations, single)
    count = calls_per_sample(call_s, timer, min_time_s=settings.min_time_s, most_calls=single)
    most = min(settings.max_samples, max(FEWEST, MOST_ITERATIONS // count))
    rule = stopping(settings)
    begin = time.perf_counter()
    told = [begin]

    def next_count(taken: Taken) -> int:
        values = taken.per_call_s()
        now = time.perf_counter()
        if values and rule.done(values) and now - begin >= settings.min_time_s:
            taken.stop = rule.reason
        elif len(values) >= most:
            taken.stop = "sample_limit"
        elif len(values) >= FEWEST and now - begin >= settings.time_limit_s:
            taken.stop = "time_limit"
        else:
            if values and now - told[0] >= 0.2:
                told[0] = now
                progress("timing", values[-1], rule.precision if rule.precision < float("inf") else None)
            return count
        taken.precision = rule.precision
        return 0

    return next_count


def _exactly(iterations: int, single: int | None) -> Callable[[Taken], int]:
    """So many calls, in some twenty samples of equal length."""
    count = single or max(1, iterations // 20)
    samples = -(-iterations // count)

    def next_count(taken: Taken) -> int:
        taken.stop = "iterations"
        return count if len(taken.slowest_ns) < samples else 0

    return next_count


def rank_medians(taken: Taken, per_replay: int) -> list[float]:
    """Median seconds per call of each rank."""
    calls = taken.count * per_replay
    return [statistics.median(column) * 1e-9 / calls for column in zip(*taken.by_rank_ns, strict=True)]


def bandwidths(case: Case, moved_bytes: int, time_s: float) -> dict[str, float]:
    """algbw and busbw of nccl-tests (doc/PERFORMANCE.md), from the bytes really moved; empty for what has no S."""
    name = case.op.removeprefix("collectives.")
    name = "all_reduce" if name == "algorithm" else name  # that is what all of them do
    if not moved_bytes or name not in COLLECTIVES:
        return {}
    factor = float(busbw_factor(name, int(case.params["world_size"])))
    algbw = moved_bytes / time_s
    return {"algbw_bytes_per_s": algbw, "busbw_bytes_per_s": factor * algbw, "busbw_factor": factor}


def above_peak(facts: Mapping[str, Any], peak: float | None) -> Flag | None:
    """A note where the bus bandwidth exceeds the link's peak. It is not cut: switches that add on the way (NVLink
    SHARP) move fewer bytes than the formula counts.
    """
    bus = facts.get("busbw_bytes_per_s")
    if not peak or not bus or bus <= peak:
        return None
    message = f"the bus bandwidth is {bus / 1e9:.4g} GB/s, and the link's peak {peak / 1e9:.4g} GB/s"
    return Flag("above_link_peak", message)
