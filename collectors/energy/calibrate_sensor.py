"""Calibrating a whole sensor: every source of a device, then all of them together, then a meter where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattline.collectors.energy.calibrate import THOROUGH, Calibration, Effort, calibrate
from wattline.collectors.energy.drive import Clock, Load, Switch, WallClock
from wattline.collectors.energy.external import METER_ERROR, GainFit, MeterLog, fit_gain, read_meter, uncorrected
from wattline.collectors.energy.levels import LevelReport, compare_levels
from wattline.collectors.energy.sources import SensorProfile, Source
from wattline.errors import SensorError

_LOG_PATIENCE_S = 20.0
"""How long a meter's log may lag behind what it logs."""


@dataclass(frozen=True)
class SensorCalibration:
    """All that was found of a device's sources.

    Attributes:
        sources: those that were calibrated, with what was found.
        failures: of the others, the error by label.
        levels: what they show at rest, half and full load, and whether they agree.
        gains: what the external meter says of them; empty without one.
    """

    sources: tuple[tuple[Source, Calibration], ...]
    levels: LevelReport
    failures: dict[str, SensorError] = field(default_factory=dict)
    gains: tuple[GainFit, ...] = ()

    def profiles(self) -> dict[str, SensorProfile]:
        """What to store: profile by field."""
        gains = {gain.label: gain for gain in self.gains}
        return {
            source.field: gains[found.label].applied(found.profile) if found.label in gains else found.profile
            for source, found in self.sources
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "sources": [found.to_dict() for _, found in self.sources],
            "failures": {
                label: {"what": error.what, "why": error.why, "todo": error.todo}
                for label, error in self.failures.items()
            },
            **self.levels.to_dict(),
            "gains": [gain.to_dict() for gain in self.gains],
        }


def calibrate_sensor(
    sources: Sequence[Source],
    load: Load | Switch,
    *,
    effort: Effort = THOROUGH,
    meter: Path | None = None,
    meter_error: float = METER_ERROR,
    clock: Clock | None = None,
    epoch_s: float | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda message: None,
) -> SensorCalibration:
    """Calibrate all sources of a device one after the other, then compare them.

    A source that cannot be calibrated does not stop the others.

    Args:
        sources: of one device.
        load: of that device.
        effort: how long.
        meter: log of an external meter, being written meanwhile.
        meter_error: its relative error.
        clock: for simulations.
        epoch_s: seconds since 1970 at zero of the clock; that of the readings where not given.
        seed: of the times of switching.
        progress: told what begins.

    Raises:
        SensorError: no source can be calibrated.
        DeviceError: the device is lost.
        DataError: the meter's log cannot be used.
    """
    clock = clock or WallClock()
    if meter is not None:
        read_meter(meter)  # a wrong file is told now, not after two minutes
    found: list[tuple[Source, Calibration]] = []
    failures: dict[str, SensorError] = {}
    for source in map(uncorrected, sources):
        try:
            found.append(
                (source, calibrate(source, load, effort=effort, clock=clock, seed=seed, progress=progress))
            )
        except SensorError as error:
            failures[source.label] = error
    if not found:
        raise next(iter(failures.values()), SensorError("there is no source to calibrate"))
    levels = compare_levels(
        [source for source, _ in found], load, profiles=[each.profile for _, each in found], effort=effort,
        clock=clock, seed=seed, progress=progress,
    )  # fmt: skip
    gains: tuple[GainFit, ...] = ()
    if meter is not None:
        epoch_s = time.time() - time.perf_counter() if epoch_s is None else epoch_s
        end_s = max(level.end_s for level in levels.levels) + epoch_s
        gains = tuple(
            fit_gain(levels.levels, _log_until(meter, end_s, clock), epoch_s=epoch_s, meter_error=meter_error)
        )
    return SensorCalibration(tuple(found), levels, failures, gains)


def _log_until(path: Path, end_s: float, clock: Clock) -> MeterLog:
    """The log, once it reaches that far, or whatever there is when patience ends."""
    deadline = clock.now() + _LOG_PATIENCE_S
    while True:
        log = read_meter(path)
        if clock.now() >= deadline or (log.time_s and log.time_s[-1] >= end_s):
            return log
        clock.sleep(0.5)
