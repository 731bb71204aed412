"""Driving a load while sources are read: what calibration does to a device.

The load is switched and the sources are read from one thread, so that each knows when the other was. Whatever can be
switched is a load; the clock can be replaced, and with it everything runs in simulated time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from wattline.collectors.energy.errors import SensorBusyError
from wattline.collectors.energy.response import Switching
from wattline.collectors.energy.sources import Reading, Source
from wattline.errors import SensorError

IDLE, HALF, FULL = 0.0, 0.5, 1.0

_TOGGLE_S = 1e-3
"""Half-period of a load that can only be on or off when half of it is asked for: short against every window."""

_FETCH_S = 0.05
"""A buffer that the driver fills is fetched no more often: it loses nothing meanwhile."""


class Clock(Protocol):
    """Where time comes from; :class:`WallClock` unless a test says otherwise."""

    def now(self) -> float:
        """Seconds, as those of the readings."""

    def sleep(self, seconds: float) -> object:
        """Wait."""


class WallClock:
    """The clock of readings: ``perf_counter``."""

    def now(self) -> float:
        """See :meth:`Clock.now`."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """See :meth:`Clock.sleep`."""
        time.sleep(seconds)


class Load(Protocol):
    """Something that draws power and can be switched.

    Attributes:
        partial: whether :meth:`switch` takes levels between off (0) and full (1).
    """

    partial: bool

    def switch(self, level: float) -> float:
        """Set the load, from 0 (off) to 1 (all the time); gives the time at which that took effect."""


Switch = Callable[[bool], object]
"""The simplest load: a function that switches it on and off, at once."""


class _OnOff:
    """A function of one flag as a load."""

    partial = False

    def __init__(self, switch: Switch, clock: Clock) -> None:
        self._switch, self._clock = switch, clock

    def switch(self, level: float) -> float:
        self._switch(level > 0)
        return self._clock.now()


@dataclass(frozen=True)
class Effort:
    """How long a calibration takes.

    Attributes:
        updates: of the reading, for each of the two fits.
        switches: of the load at least, for each of the two fits.
        limit_s: end of each part, whatever was seen by then.
        level_s: at each level (no less than 30 periods).
    """

    updates: int = 120
    switches: int = 16
    limit_s: float = 45.0
    level_s: float = 5.0


THOROUGH = Effort()
QUICK = Effort(updates=60, switches=10, limit_s=20.0, level_s=3.0)


class Driver:
    """Switches the load and reads the sources.

    Args:
        sources: what to read.
        load: of the device that they cover.
        clock: seconds, as those of the readings.
        seed: of the pace of polls, and of :attr:`random`.

    Attributes:
        wave: when the load was switched (partial levels aside).
        random: for lengths of switching.
    """

    def __init__(self, sources: Sequence[Source], load: Load | Switch, clock: Clock, seed: int) -> None:
        self._sources, self._clock = sources, clock
        self._load = cast("Load", load) if hasattr(load, "switch") else _OnOff(load, clock)
        self.random = random.Random(seed)
        self.wave = Switching()
        self._polls = self._missed = 0

    def off(self) -> None:
        """Switch the load off."""
        self._switch(IDLE)

    def rest(self, seconds: float) -> None:
        """No load; every source is read once, so that whatever its first reading sets up is behind us."""
        self.off()
        for source in self._sources:
            source.read()
        self._clock.sleep(seconds)

    def alternate(
        self, lengths: Iterator[float], poll_s: float, effort: Effort, period_s: float = 0.0
    ) -> list[Reading]:
        """Readings of the first source while the load goes on and off, until the effort is spent.

        Args:
            lengths: seconds between switches.
            poll_s: between polls.
            effort: how many changes and switches are enough.
            period_s: where known, twice the time of so many updates is enough, whether or not they changed anything.

        Raises:
            SensorError: the source fails.
        """
        readings: list[Reading] = []
        begin, level, changes, switches = self._clock.now(), IDLE, 0, 0
        while (lasted := self._clock.now() - begin) < effort.limit_s:
            enough = changes >= effort.updates or 0 < 2 * effort.updates * period_s < lasted
            if enough and switches >= effort.switches:
                break
            level = FULL - level
            self._switch(level)
            switches += 1
            (taken,) = self.watch(next(lengths), poll_s, [readings[-1].time_s if readings else begin])
            for reading in taken:
                changes += bool(readings) and reading.value != readings[-1].value
                readings.append(reading)
        self.off()
        return readings

    def hold(self, level: float, seconds: float, poll_s: float) -> list[list[Reading]]:
        """Readings under one steady load, one list per source.

        Raises:
            SensorError: a source fails.
        """
        whole = self._load.partial or level in (IDLE, FULL)
        if whole:
            self._switch(level)
        return self.watch(seconds, poll_s, [self._clock.now()] * len(self._sources), duty=None if whole else level)

    def watch(
        self, seconds: float, poll_s: float, since_s: Sequence[float], duty: float | None = None
    ) -> list[list[Reading]]:
        """Readings until so much time has passed, at a pace that is irregular on purpose; one list per source.

        Args:
            seconds: how long.
            poll_s: mean time between polls.
            since_s: for sources that their driver keeps readings of: only those after that, by source.
            duty: share of the time that the load is switched on, quickly; it is left alone where not given.
        """
        clock, end = self._clock, self._clock.now() + seconds
        taken: list[list[Reading]] = [[] for _ in self._sources]
        fetch_s = 0.0
        while True:
            fetch = clock.now() >= min(fetch_s, end - poll_s)
            for source, kept, since in zip(self._sources, taken, since_s, strict=True):
                if source.buffered and not fetch:
                    continue
                kept.extend(self._read(source, kept[-1].time_s if kept else since))
            fetch_s = clock.now() + _FETCH_S if fetch else fetch_s
            until = min(clock.now() + poll_s * self.random.uniform(0.5, 1.5), end)
            if duty is None:
                clock.sleep(max(until - clock.now(), 0.0))
            else:
                self._toggle(until, duty)
            if clock.now() >= end - 1e-9:
                return taken

    def _read(self, source: Source, since_s: float) -> Sequence[Reading]:
        self._polls += 1
        try:
            if source.buffered:
                return [reading for reading in source.history(since_s) if reading.time_s > since_s]
            return [source.read()]
        except SensorBusyError as error:
            self._missed += 1
            if self._missed > 20 and self._missed > 0.1 * self._polls:
                raise SensorError(
                    f"{source.label} cannot be calibrated",
                    why=f"{self._missed} of {self._polls} readings failed: {error.why or error.what}",
                    todo="stop other programs that watch this device, and repeat",
                ) from error
            return []

    def _switch(self, level: float) -> None:
        at = self._load.switch(level)
        if level in (IDLE, FULL):
            self.wave.add(at, level)

    def _toggle(self, until: float, duty: float) -> None:
        """On and off, quickly, for a share of the time."""
        clock = self._clock
        while clock.now() < until - 1e-9:
            for level, length in ((FULL, 2 * _TOGGLE_S * duty), (IDLE, 2 * _TOGGLE_S * (1 - duty))):
                self._load.switch(level)
                clock.sleep(length)
