"""The loop: warm up, choose how many calls a sample holds, sample until a criterion is met.

It knows nothing of torch: calls, a timer and a wall clock come in, so tests run it on a simulated device whose
every sample is known.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from wattline.collectors.timers import Call, Timer
from wattline.suites.measure.stopping import stopping
from wattline.suites.settings import MeasureSettings

Progress = Callable[[str, float | None, float | None], None]
"""Called with the phase, the running seconds per call and the relative half-width."""

WARM_AGREEMENT = 0.02
"""Two successive medians that agree to this share end the warm-up."""

SAMPLES_IN_MIN_TIME = 250
"""Most samples that the shortest measurement takes of a quick kernel."""

_WINDOW = 5  # samples whose median the warm-up compares
_FEWEST = 3  # samples that even a case slower than its limit gets: below three there is no interval


@dataclass(frozen=True)
class WarmUp:
    """How the warm-up went.

    Attributes:
        calls: calls made.
        spent_s: seconds inside them.
        stop: ``"settled"``, ``"time_limit"`` or ``"shrunk"`` (one call alone exceeds the limit).
        call_s: seconds per call at its end.
    """

    calls: int
    spent_s: float
    stop: str
    call_s: float


@dataclass(frozen=True)
class Samples:
    """What the loop measured.

    Attributes:
        per_call_s: seconds per call, one entry a sample.
        calls_per_sample: calls that each averages.
        stop: why it ended.
        precision: relative half-width at its end.
        timed_s: seconds inside the samples.
        launch_bound: share of the samples in which the host could not keep the device's queue filled.
    """

    per_call_s: tuple[float, ...]
    calls_per_sample: int
    stop: str
    precision: float
    timed_s: float
    launch_bound: float


class Ring:
    """The calls of all buffer sets, handed out in rotation.

    Args:
        calls: one callable per buffer set.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        if not calls:
            raise ValueError("a ring needs at least one call")
        self._calls = list(calls)
        self._position = 0
        self._cached: tuple[int, list[Call]] = (0, [])

    def __len__(self) -> int:
        return len(self._calls)

    def take(self, count: int) -> Sequence[Call]:
        """The next ``count`` calls. Made outside the timed region; a sample's own loop only iterates."""
        ring = len(self._calls)
        if ring == 1:
            if self._cached[0] != count:
                self._cached = (count, self._calls * count)
            return self._cached[1]
        begin = self._position
        self._position = (begin + count) % ring
        if begin + count <= ring:
            return self._calls[begin : begin + count]
        repeats = (begin + count - 1) // ring + 1
        return (self._calls * repeats)[begin : begin + count]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def warm_up(ring: Ring, timer: Timer, limit_s: float, *, most_calls: int | None = None) -> WarmUp:
    """Run until two successive medians agree, or to the limit.

    Args:
        ring: the calls.
        timer: the clock.
        limit_s: limit in seconds spent inside calls.
        most_calls: most calls of one batch; ``None``: what the timer allows.
    """
    top = min(timer.max_batch_calls, most_calls or timer.max_batch_calls)
    count, calls, spent = 1, 0, 0.0
    previous: float | None = None
    window: list[float] = []
    with _no_collection():
        while True:
            took = timer.time(ring.take(count))
            calls += count
            spent += took
            per_call = took / count
            if took < timer.min_batch_s and count < top:
                # Grow towards the shortest batch that the clock resolves, at most tenfold at a time: the first
                # calls are slower than the rest and would mislead.
                growth = min(10.0, max(1.5, 1.2 * timer.min_batch_s / max(took, 1e-9)))
                count = min(top, math.ceil(count * growth))
                if spent < limit_s:
                    continue
            window.append(per_call)
            if took >= limit_s and previous is None and len(window) == 1:
                return WarmUp(calls, spent, "shrunk", per_call)
            # Of slow calls a window holds one, so that two windows fit the limit.
            if len(window) >= (_WINDOW if took * 2 * _WINDOW <= limit_s else 1):
                median = statistics.median(window)
                if previous is not None and abs(median - previous) <= WARM_AGREEMENT * previous:
                    return WarmUp(calls, spent, "settled", median)
                previous, window = median, []
            if spent >= limit_s:
                median = statistics.median(window) if window else (previous or per_call)
                return WarmUp(calls, spent, "time_limit", median)


def calls_per_sample(
    call_s: float, timer: Timer, *, min_time_s: float = 0.0, most_calls: int | None = None
) -> int:
    """Calls that one sample holds.

    Enough for the clock to resolve, and so many that the shortest measurement has no more than
    :data:`SAMPLES_IN_MIN_TIME` samples: thousands would only lengthen the records.
    """
    top = min(timer.max_batch_calls, most_calls or timer.max_batch_calls)
    wanted_s = max(timer.min_batch_s, min_time_s / SAMPLES_IN_MIN_TIME)
    return max(1, min(top, math.ceil(wanted_s / max(call_s, 1e-9))))


def sample(
    ring: Ring,
    timer: Timer,
    settings: MeasureSettings,
    call_s: float,
    *,
    progress: Progress | None = None,
    most_calls: int | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> Samples:
    """Take samples until the criterion is met, the time limit is reached or the most samples are there.

    Args:
        ring: the calls.
        timer: the clock.
        settings: limits and criterion.
        call_s: seconds per call, from the warm-up.
        progress: told some five times a second how it goes.
        most_calls: most calls of one sample.
        now: the wall clock that the limit is held against.
    """
    count = calls_per_sample(call_s, timer, min_time_s=settings.min_time_s, most_calls=most_calls)
    rule = stopping(settings)
    values: list[float] = []
    timed = 0.0
    launch_bound = 0
    begin = last_told = now()
    with _no_collection():
        while True:
            took = timer.time(ring.take(count))
            timed += took
            values.append(took / count)
            launch_bound += bool(getattr(timer, "launch_bound", False))
            moment = now()
            if rule.done(values) and moment - begin >= settings.min_time_s:
                stop = rule.reason
                break
            if len(values) >= settings.max_samples:
                stop = "sample_limit"
                break
            if len(values) >= _FEWEST and moment - begin >= settings.time_limit_s:
                stop = "time_limit"
                break
            if progress is not None and moment - last_told >= 0.2:
                last_told = moment
                precision = rule.precision if math.isfinite(rule.precision) else None
                progress("timing", statistics.median(values[-101:]), precision)
    return Samples(tuple(values), count, stop, rule.precision, timed, launch_bound / len(values))
