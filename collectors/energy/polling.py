"""Polling: sources read in the background at a gentle pace, their readings kept.

Each read takes the driver's lock and Python's own, and a workload that launches kernels waits for them: a source is
read some two times in its period and never more often than every 5 ms, those that only check the first half as often.
The gaps are irregular on purpose. With even ones, the delay from a change to the poll that sees it creeps along with
the beat between both periods, which looks like another slope; drawn at random, it is noise that averages out. Sources
of one period are read together, since each wake-up costs the workload a switch of the processor.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from wattline.collectors.energy.sources import Reading, Source
from wattline.errors import DeviceError, SensorError, WattlineError

LEAST_GAP_S = 0.005
"""No source is polled more often."""

READS_PER_PERIOD = 2
"""Polls per period of a sensor."""

CHECK_EVERY = 2
"""The sources beside the first are read at every second of these polls."""

MOST_FAILURES = 3
"""So many failed reads in a row, and a source is given up."""


def poll_gap(period_s: float) -> float:
    """Mean seconds between two polls of a source."""
    return max(LEAST_GAP_S, period_s / READS_PER_PERIOD)


@dataclass
class Watched:
    """What polling saw of one source.

    Attributes:
        source: which.
        readings: in the order taken.
        failures: reads that failed.
        error: why it was given up, or ``None`` while it is read.
    """

    source: Source
    readings: list[Reading] = field(default_factory=list)
    failures: int = 0
    error: WattlineError | None = None
    due_s: float = 0.0
    in_a_row: int = 0


class Poller:
    """Reads sources when they are due. :meth:`step` reads; :class:`ThreadPoller` calls it in the background.

    A source that fails three times in a row, or whose device is lost, is given up; the others go on. Nothing is
    raised: :attr:`watched` holds what was seen.

    Args:
        sources: what to read. Those that are :attr:`~wattline.collectors.energy.sources.Source.buffered` are not
            polled: their history is read once, in :meth:`stop`.
        clock: seconds, as those of the readings.
        keep_s: forget readings older than this; all are kept where not given.
        seed: of the irregular gaps.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        clock: Callable[[], float] = time.perf_counter,
        keep_s: float | None = None,
        seed: int = 0,
    ) -> None:
        self.watched = [Watched(source) for source in sources]
        self._clock = clock
        self._keep_s = keep_s
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._begun_s = clock()
        self._wakes = 0

    def start(self) -> None:
        """Take the first readings."""
        self._begun_s = self._clock()
        self._step(everything=True)

    def stop(self) -> list[Watched]:
        """Take the last readings, and those that drivers kept."""
        self._step(everything=True)
        for entry in self.watched:
            if entry.source.buffered and entry.error is None:
                entry.readings = self._history(entry)
        return self.watched

    def step(self) -> float:
        """Read what is due.

        Returns:
            When the next source is due; infinity once none is left.
        """
        return self._step(everything=False)

    def readings(self, source: Source) -> list[Reading]:
        """A copy of what was read of a source so far, or of what its driver kept."""
        with self._lock:
            entry = next(e for e in self.watched if e.source is source)
            return self._history(entry) if source.buffered else list(entry.readings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _step(self, everything: bool) -> float:
        with self._lock:
            polled: dict[float, list[Watched]] = {}
            for entry in self.watched:
                if entry.error is None and not entry.source.buffered:
                    polled.setdefault(poll_gap(entry.source.profile.period_s), []).append(entry)
            next_s = float("inf")
            for gap_s, together in polled.items():
                if everything or min(e.due_s for e in together) <= self._clock():
                    first = everything or not self._wakes % CHECK_EVERY
                    self._wakes += 1
                    for entry in together:
                        # Alone, or without the first, it is no check but what is measured with.
                        if first or entry is self._leading():
                            self._read(entry)
                    due_s = self._clock() + gap_s * self._random.uniform(0.5, 1.5)
                    for entry in together:
                        entry.due_s = due_s
                if any(e.error is None for e in together):
                    next_s = min(next_s, *(e.due_s for e in together))
            return next_s

    def _leading(self) -> Watched | None:
        """The first source that still answers."""
        return next((e for e in self.watched if e.error is None and not e.source.buffered), None)

    def _read(self, entry: Watched) -> None:
        try:
            entry.readings.append(entry.source.read())
            entry.in_a_row = 0
        except (SensorError, DeviceError) as error:
            self._failed(entry, error)
        now = self._clock()
        if self._keep_s is not None and len(entry.readings) > 64 and entry.readings[0].time_s < now - 2 * self._keep_s:
            # In large bites, so that a long watch costs no more per read than a short one.
            entry.readings = [r for r in entry.readings if r.time_s >= now - self._keep_s]

    def _history(self, entry: Watched) -> list[Reading]:
        try:
            return list(entry.source.history(self._begun_s))
        except (SensorError, DeviceError) as error:
            self._failed(entry, error)
            return []

    @staticmethod
    def _failed(entry: Watched, error: WattlineError) -> None:
        entry.failures += 1
        entry.in_a_row += 1
        if isinstance(error, DeviceError) or entry.in_a_row >= MOST_FAILURES or entry.source.buffered:
            entry.error = error


class ThreadPoller(Poller):
    """A :class:`Poller` with a thread of its own, which ends with :meth:`stop`."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        clock: Callable[[], float] = time.perf_counter,
        keep_s: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(sources, clock=clock, keep_s=keep_s, seed=seed)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._crash: Exception | None = None

    def start(self) -> None:
        """Take the first readings and go on in the background; a second start does nothing."""
        if self._thread is not None:
            return
        self._end.clear()
        super().start()
        self._thread = threading.Thread(target=self._run, name="wattline-energy", daemon=True)
        self._thread.start()

    def stop(self) -> list[Watched]:
        """End the thread and take the last readings; it may be called twice.

        Raises:
            SensorError: the thread died of an error that no source should raise.
        """
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None
            super().stop()
        if self._crash is not None:
            crash, self._crash = self._crash, None
            raise SensorError("polling the energy sensors broke off", why=f"{type(crash).__name__}: {crash}") from crash
        return self.watched

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                wait_s = self.step() - self._clock()
                self._end.wait(min(max(wait_s, 1e-4), 3600.0))
        except Exception as error:  # noqa: BLE001 - not swallowed: a thread cannot raise, so that stop() does
            self._crash = error
