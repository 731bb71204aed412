"""Levels: what every source of a device shows at rest, under half and under full load, and whether they agree.

Counter and integrated power come from the same span of time, so that a difference is the sensors' and not the load's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wattline.collectors.energy import estimate
from wattline.collectors.energy.drive import FULL, HALF, IDLE, THOROUGH, Clock, Driver, Effort, Load, Switch, WallClock
from wattline.collectors.energy.sources import COUNTER, POWER, SensorProfile, Source

LEVELS = {"idle": IDLE, "half": HALF, "full": FULL}

AGREEMENT = 0.03
"""Relative difference between counter and integrated power above which one of them is wrong."""


@dataclass(frozen=True)
class LevelPower:
    """What one source showed under one steady load.

    Attributes:
        level: ``"idle"``, ``"half"`` or ``"full"``.
        label: the source's.
        power_w: watts.
        half_width: relative, 95 %; without the sensor's gain.
        begin_s, end_s: when, on the clock of readings.
        flags: codes of reservations, as those of ``Energy``.
    """

    level: str
    label: str
    power_w: float
    half_width: float
    begin_s: float
    end_s: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """How far a power source is from the counter at one level: its watts over the counter's, less one.

    Attributes:
        level: which.
        label: the power source's.
        against: the counter's.
        difference: relative.
        half_width: of the difference, 95 %.
    """

    level: str
    label: str
    against: str
    difference: float
    half_width: float

    @property
    def agrees(self) -> bool:
        """Within :data:`AGREEMENT`, or within what the readings themselves can tell."""
        return abs(self.difference) <= max(AGREEMENT, self.half_width)


@dataclass(frozen=True)
class LevelReport:
    """All sources at all levels, and counters against power."""

    levels: tuple[LevelPower, ...]
    agreements: tuple[Agreement, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "levels": [asdict(level) for level in self.levels],
            "agreements": [asdict(a) | {"agrees": a.agrees} for a in self.agreements],
        }


def compare_levels(
    sources: Sequence[Source],
    load: Load | Switch,
    *,
    profiles: Sequence[SensorProfile] | None = None,
    effort: Effort = THOROUGH,
    clock: Clock | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda message: None,
) -> LevelReport:
    """Idle, half and full load, all sources read together, and counter against integrated power at each.

    Args:
        sources: of one device; those of different scope are reported, but not compared.
        load: of that device; off at the end, whatever happens.
        profiles: of the sources, as calibrated; their own where not given.
        effort: how long.
        clock: for simulations.
        seed: of the pace of polls.
        progress: told what begins.

    Raises:
        SensorError: a source fails, or stands still.
        DeviceError: the device is lost.
    """
    known = profiles or [source.profile for source in sources]
    driver = Driver(sources, load, clock or WallClock(), seed)
    pace_s = max(0.005, min(p.period_s for p in known) / 4)
    span_s = max(effort.level_s, 30 * max(p.period_s for p in known), 3 * max(p.window_s for p in known))
    settle_s = max(1.0, *(2 * estimate.settle_s(p) for p in known))
    shown: list[LevelPower] = []
    try:
        for name, level in LEVELS.items():
            progress(f"{name} load" if level else "no load")
            driver.hold(level, settle_s, pace_s)
            taken = driver.hold(level, span_s, pace_s)
            for source, profile, readings in zip(sources, known, taken, strict=True):
                power = estimate.estimate_power(source.kind, readings, profile)
                times = readings[0].time_s, readings[-1].time_s
                shown.append(LevelPower(name, source.label, power.power_w, power.half_width, *times, power.flags))
    finally:
        driver.off()
    return LevelReport(tuple(shown), tuple(_agreements(sources, shown)))


def _agreements(sources: Sequence[Source], shown: Sequence[LevelPower]) -> Iterator[Agreement]:
    found = {(p.level, p.label): p for p in shown}
    for counter in (s for s in sources if s.kind == COUNTER):
        for power in (s for s in sources if s.kind == POWER and s.scope == counter.scope):
            for level in LEVELS:
                a, b = found[level, power.label], found[level, counter.label]
                width = math.hypot(a.half_width, b.half_width)
                yield Agreement(level, power.label, counter.label, a.power_w / b.power_w - 1, width)
