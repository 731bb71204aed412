"""An energy sensor made of sources: the best that answers gives the watts, another one checks it.

The sources of a device are ordered: energy counter, the driver's sample buffer, instant power, average power. All are
watched at once; the first with a usable window gives the figure. The next of another kind and of the same scope is the
cross-check.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot

from wattline.collectors.energy.common import EnergySensor, EnergyWindow
from wattline.collectors.energy.estimate import (
    LEAST_PERIODS,
    LOW_CONFIDENCE_PERIODS,
    PowerEstimate,
    estimate_power,
    relative_difference,
    settle_s,
)
from wattline.collectors.energy.polling import LEAST_GAP_S, Poller, ThreadPoller, Watched
from wattline.collectors.energy.sources import COUNTER, POWER, SensorProfile, Source
from wattline.errors import DeviceError, SensorError
from wattline.record import Energy

DEFAULT_WINDOW_S = 5.0
"""Measured part where nothing is asked; longer for sensors of which 50 periods take longer."""

DEFAULT_PERIODS = 50

DISAGREEMENT = 0.03
"""Relative difference between counter and integrated power above which a figure is flagged."""


@dataclass(frozen=True)
class Level:
    """A level of power, e.g. at rest.

    Attributes:
        power_w: watts.
        half_width: relative half-width of its 95 % interval, without the sensor's gain.
        source: which reading.
        flags: reservations, as those of ``Energy``.
    """

    power_w: float
    half_width: float
    source: str
    flags: tuple[str, ...] = ()


BEYOND_CHANCE = 1.6
"""Times the combined half-width of their 95 % intervals: two readings that agree differ by more once in 600."""


@dataclass(frozen=True)
class Chosen:
    """The estimate of a window: which source gave it, what the check said, and the reservations."""

    source: Source
    estimate: PowerEstimate
    cross_check: float | None
    flags: tuple[str, ...]


def measuring_window(profiles: Sequence[SensorProfile], requested_s: float | None = None) -> EnergyWindow:
    """The load that sensors need.

    The lead-in covers the sensors' averaging window, lag and rise and one period, so that nothing read inside holds
    what was before. The default length is the larger of 5 s and 50 periods of the first source.

    Args:
        profiles: of the sources in use, the preferred one first.
        requested_s: the measured part, if the user asks for one; at least 3.2 periods are measured, so that two
            whole ones lie between changes.

    Raises:
        SensorError: less than two periods: that says nothing.
    """
    period_s = max(profiles[0].period_s, LEAST_GAP_S)  # a quicker sensor is not read more often than that
    measured_s = max(DEFAULT_WINDOW_S, DEFAULT_PERIODS * period_s) if requested_s is None else requested_s
    if not measured_s >= LEAST_PERIODS * period_s * (1 - 1e-9):
        raise SensorError(
            f"an energy window of {measured_s:g} s is too short",
            why=f"the sensor's reading is new every {period_s:g} s; {LEAST_PERIODS} of them are the least",
            todo=f"use {LOW_CONFIDENCE_PERIODS * period_s:g} s or more, or leave the choice to wattline",
        )
    note = ""
    if measured_s < LOW_CONFIDENCE_PERIODS * period_s:
        note = f"{measured_s / period_s:.3g} periods of the sensor: low confidence"
    # Up to one period passes before the first change, and two whole ones lie between three.
    measured_s = max(measured_s, (LEAST_PERIODS + 1.2) * period_s)
    lead_in_s = max(settle_s(profile) for profile in profiles)
    return EnergyWindow(lead_in_s, measured_s, max(p.lag_s + p.period_s for p in profiles), note)


def choose(watched: Sequence[Watched], begin_s: float, end_s: float) -> Chosen:
    """The power over a window of steady load, from the first source that gives one.

    Args:
        watched: sources in order of preference, with their readings.
        begin_s: start of the window, after the lead-in.
        end_s: its end.

    Raises:
        DeviceError: the device was lost and no source has enough readings.
        SensorError: no source gave anything; the reasons of all are named.
    """
    refused: list[str] = []
    found: list[tuple[Watched, PowerEstimate]] = []
    for entry in watched:
        try:
            estimate = estimate_power(entry.source.kind, entry.readings, entry.source.profile, begin_s, end_s)
        except SensorError as error:
            refused.append(f"{entry.source.label}: {entry.error or error}")
            continue
        found.append((entry, estimate))
    if not found:
        lost = next((e.error for e in watched if isinstance(e.error, DeviceError)), None)
        if lost is not None:
            raise lost
        raise SensorError(
            "no energy sensor gave a reading that can be used",
            why=" | ".join(refused),
            todo="use a longer window (--energy-window), or see `wattline doctor`",
        )
    entry, estimate = found[0]
    flags = [*entry.source.flags, *estimate.flags]
    if entry is not watched[0]:
        flags.append("fallback")
    if entry.failures:
        flags.append("lost_device" if isinstance(entry.error, DeviceError) else "read_errors")
    if entry.source.averaged:
        flags.append("averaged_sensor")
    if entry.source.scope == "module":
        flags.append("module_scope")
    if not entry.source.profile.calibrated:
        flags.append("uncalibrated")
    # A check between readings that are together unsure of more than the limit would tell nothing.
    other = next(
        (
            e
            for w, e in found[1:]
            if w.source.scope == entry.source.scope
            and (w.source.kind != entry.source.kind or entry.source.kind != COUNTER)
            and hypot(e.half_width, estimate.half_width) <= DISAGREEMENT
        ),
        None,
    )
    difference = None if other is None else relative_difference(estimate.power_w, other.power_w)
    if difference is None:
        if any(w is not entry and w.source.scope == entry.source.scope for w in watched):
            flags.append("unchecked")
    elif other is not None and difference > max(
        DISAGREEMENT, BEYOND_CHANCE * hypot(other.half_width, estimate.half_width)
    ):
        flags.append("disagreement")
    return Chosen(entry.source, estimate, difference, tuple(dict.fromkeys(flags)))


def to_energy(chosen: Chosen, calls: int, device_time_s: float, idle_w: float | None = None) -> Energy:
    """Joules per call with their interval: watts times device time per call.

    The statistical terms are combined in quadrature. The gain is a bound that no repetition narrows: the truth lies
    between the reading over (1 + gain) and over (1 - gain), around the statistical interval.
    """
    estimate, gain = chosen.estimate, chosen.source.profile.gain_error
    joules = estimate.power_w * device_time_s / calls
    budget = {
        "quantisation": estimate.quantisation,
        "trial": estimate.trial,
        "drift": estimate.drift,
        "gain": gain,
    }
    if chosen.cross_check is not None:
        budget["cross_check"] = chosen.cross_check
    flags, half_width = chosen.flags, estimate.half_width
    unseen = strobed_share(chosen.source, device_time_s / calls, estimate.periods, calls)
    if unseen:
        # No repetition narrows it: the sensor sees the same part of every call.
        flags, half_width = (*flags, "strobed"), half_width + unseen
        budget["unseen"] = unseen
    return Energy(
        power_w=estimate.power_w,
        energy_j=joules,
        energy_lo_j=joules * max(0.0, 1 - half_width) / (1 + gain),
        energy_hi_j=joules * (1 + half_width) / (1 - gain),
        source=chosen.source.label,
        scope=chosen.source.scope,
        idle_w=idle_w,
        budget=budget,
        flags=flags,
    )


def strobed_share(source: Source, call_s: float, periods: float, calls: int) -> float:
    """The share of each period that a power sensor in step with the calls may never see; 0 where it sees all.

    A sensor that averages 25 ms of every 100 ms, and calls of 50 ms, meet at the same phases again and again: were the
    power uneven inside a call, no number of readings would show it. They are out of step once the phases have drifted
    by a whole call, or a whole period, within the window.

    Args:
        source: what is read.
        call_s: seconds of one call.
        periods: of the sensor within the window.
        calls: within the window.
    """
    period_s, window_s = source.profile.period_s, source.profile.window_s
    # Of calls much shorter than its window a sensor averages many whole ones.
    if source.kind != POWER or not 0 < window_s < 0.9 * period_s or call_s <= window_s / 10:
        return 0.0

    def in_step(longer: float, shorter: float, times: float) -> bool:
        ratio = longer / shorter
        return round(ratio) >= 1 and abs(ratio - round(ratio)) * times < 1

    if in_step(period_s, call_s, periods) or in_step(call_s, period_s, calls):
        return 1.0 - window_s / period_s
    return 0.0


class MeteredSensor(EnergySensor):
    """A device's energy from its sources.

    Args:
        name: ``"nvml"``, ``"rapl"`` ...
        sources: in order of preference, at least one; they are closed with the sensor.
        key: names device, driver and firmware, for calibrated profiles; see :mod:`wattline.collectors.energy.profiles`.
        note: what the doctor should say beside the source, e.g. that the GPU is split.
        clock: the clock of the readings.
        poller: makes the poller, given sources and clock.
        sleep: waits, for :meth:`measure_level`.

    Attributes:
        idle_w: power at rest, once :meth:`measure_level` found it; goes into every result.
        levels: what :meth:`measure_level` found, by name.
        last: the latest window's estimate, for traces and reports.
        watched: the latest window's readings.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[Source],
        *,
        key: str = "",
        note: str = "",
        clock: Callable[[], float] = time.perf_counter,
        poller: Callable[[Sequence[Source], Callable[[], float]], Poller] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not sources:
            raise SensorError(f"the energy sensor {name} has no source")
        self.name = name
        self.sources = tuple(sources)
        self.scope = self.sources[0].scope
        self.source = self.sources[0].label
        self.key = key
        self.note = note
        self.idle_w: float | None = None
        self.levels: dict[str, Level] = {}
        self.last: Chosen | None = None
        self.watched: list[Watched] = []
        self._clock = clock
        self._sleep = sleep
        self._make_poller = poller or (lambda sources, clock: ThreadPoller(sources, clock=clock))
        self._poller: Poller | None = None
        self._begin_s = 0.0

    @property
    def profiles(self) -> list[SensorProfile]:
        """How its sources read, the preferred one first."""
        return [source.profile for source in self.sources]

    def window(self, requested_s: float | None = None) -> EnergyWindow:
        """See :func:`measuring_window`."""
        return measuring_window(self.profiles, requested_s)

    def cancel(self) -> None:
        """See :meth:`EnergySensor.cancel`."""
        super().cancel()
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.stop()

    def close(self) -> None:
        """End polling and close the sources."""
        self.cancel()
        for source in self.sources:
            source.close()

    def measure_level(self, name: str, seconds: float | None = None) -> Level:
        """Power at a steady level while the caller leaves the device as it is.

        Args:
            name: ``"idle"`` (also sets :attr:`idle_w`), ``"resident"`` (a context is open, nothing runs) ...
            seconds: the measured part; the sensor's window rule applies. Before it, the sensor's memory of earlier
                load is waited out.

        Raises:
            SensorError: too short, or the sensor failed.
        """
        window = self.window(seconds)
        self._sleep(window.lead_in_s)
        self.start()
        try:
            self._sleep(window.measured_s)
        except BaseException:  # an interrupt, too, must end the thread
            self.cancel()
            raise
        self._running = False
        found = self._finish()
        level = Level(found.estimate.power_w, found.estimate.half_width, found.source.label, found.flags)
        self.levels[name] = level
        if name == "idle":
            self.idle_w = level.power_w
        return level

    def measure_idle(self, seconds: float | None = None) -> Level:
        """Power at rest: :meth:`measure_level` under the name ``"idle"``."""
        return self.measure_level("idle", seconds)

    def _begin(self) -> None:
        self._poller = self._make_poller(self.sources, self._clock)
        self._begin_s = self._clock()
        self._poller.start()
        if all(entry.error is not None for entry in self._poller.watched):
            error = self._poller.watched[0].error
            self.cancel()
            raise error or SensorError(f"the energy sensor {self.name} cannot be read")

    def _end(self, calls: int, device_time_s: float) -> Energy:
        return to_energy(self._finish(), calls, device_time_s, self.idle_w)

    def _finish(self) -> Chosen:
        poller, self._poller = self._poller, None
        if poller is None:
            raise SensorError(f"the energy sensor {self.name} was stopped before it was started")
        self.watched = poller.stop()
        self.last = choose(self.watched, self._begin_s, self._clock())
        return self.last

