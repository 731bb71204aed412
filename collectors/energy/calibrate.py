"""Calibration: how a power sensor reads, found on the machine itself by switching a load on and off.

1. **Period.** The load is switched at random times (5 ms to 1 s apart, so that no averaging window hides it and no
   period locks to it) while the reading is polled every millisecond, or as fast as it takes for quick counters. The
   intervals between changes give the period; see :func:`~wattline.collectors.energy.fits.fit_period`.
2. **Window and lag.** Square waves with half-periods near the window that the first part suggests, of random length so
   that the updates fall on every phase; a boxcar is fitted to the updates. A counter's increments over their interval
   are fitted the same way, and show which part of each period it sees.
3. **Rise time**, from the updates after each switch, without a model.

:mod:`wattline.collectors.energy.levels` then compares the sources with one another, and
:mod:`wattline.collectors.energy.external` with a meter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from wattline.collectors.energy import fits, response
from wattline.collectors.energy.drive import QUICK, THOROUGH, Clock, Driver, Effort, Load, Switch, WallClock
from wattline.collectors.energy.fits import Estimate
from wattline.collectors.energy.response import Switching
from wattline.collectors.energy.sources import COUNTER, POWER, Reading, SensorProfile, Source
from wattline.errors import DataError, SensorError
from wattline.units import format_time

__all__ = ["QUICK", "THOROUGH", "Calibration", "Effort", "calibrate"]

_POLL_S = 1e-3
_FAST_POLL_S = 1e-4
_BUFFER_BLUR_S = 1e-3
"""How well the driver's own times of its samples are known on our clock."""
_REST_S = 1.5
"""Before the first switch: longer than the longest known window."""
_COARSE = 0.25
"""Gap between polls as a share of the period above which the fits lose their footing."""
_ORIGIN = "calibrated on this machine"
_MOST_UPDATES = 1500
"""As many are fitted; of more, an even selection."""


@dataclass(frozen=True)
class Calibration:
    """What was found of one source.

    Attributes:
        label: the source's.
        kind: ``"counter"`` or ``"power"``.
        profile: to be stored and used from now on.
        period: time between updates; ``None`` where it was faster than could be polled.
        window: averaging window; of a counter the part of each period that it sees; ``None`` where not fitted.
        lag: of the reading behind the power; ``None`` where not fitted.
        rise: to 90 % of a step, the holding of values not included; ``None`` where not seen.
        low_pass_s: time constant of the low-pass before the window; 0 where none shows.
        r2: share of the variance at the updates that the boxcar explains.
        updates: changes of the reading that were used.
        poll_s: usual time between two polls.
        switches: of the load.
        notes: what a reader should know.
    """

    label: str
    kind: str
    profile: SensorProfile
    period: Estimate | None
    window: Estimate | None
    lag: Estimate | None
    rise: Estimate | None
    low_pass_s: float
    r2: float | None
    updates: int
    poll_s: float
    switches: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {
            name: found.to_dict() if (found := getattr(self, name)) else None
            for name in ("period", "window", "lag", "rise")
        }


def calibrate(
    source: Source,
    load: Load | Switch,
    *,
    effort: Effort = THOROUGH,
    clock: Clock | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda message: None,
) -> Calibration:
    """Find how a source reads; takes from ten seconds to a minute and a half of switched load.

    Args:
        source: read from this thread only.
        load: drawn from the device that the source covers; off at the end, whatever happens.
        effort: :data:`THOROUGH` or :data:`QUICK`.
        clock: for simulations.
        seed: of the times of switching.
        progress: told what begins.

    Returns:
        The figures, and a profile to store: the prior with everything that was found put in its place.

    Raises:
        SensorError: the reading never changes, does not move with the load, or fails.
        DeviceError: the device is lost.
    """
    driver = Driver([source], load, clock or WallClock(), seed)
    try:
        return _calibrate(source, driver, effort, progress)
    except DataError as error:
        raise SensorError(
            f"{source.label} cannot be calibrated", why=f"{error.what}: {error.why}",
            todo="see that nothing else uses the device, and that the load reaches it; then repeat",
        ) from error
    finally:
        driver.off()


def _calibrate(source: Source, driver: Driver, effort: Effort, progress: Callable[[str], object]) -> Calibration:
    progress(f"{source.label}: update period")
    readings, poll_s, resolved = _first_part(source, driver, effort)
    edges = _edges(source, readings)
    _check_alive(source, readings, edges)
    blur_s = float(np.median(edges.gap_s))
    found = fits.fit_period(edges) if resolved else None
    period_s = found.period.value if found else blur_s
    # What updates every few milliseconds is a counter that integrates all along (or none can tell): no load switches
    # quickly enough to see which part of its period it looks at.
    quick = period_s <= 5 * _POLL_S and source.kind == COUNTER
    fit = rise = None
    if found or source.kind == POWER:
        fit = _fit(source.kind, edges, driver.wave, period_s, blur_s)
    if fit and not quick:
        progress(f"{source.label}: averaging window and lag")
        near_s = max(fit.window.value, 4 * blur_s)
        more = driver.alternate(_near(driver.random, near_s), poll_s, effort, period_s)
        edges = _edges(source, [*readings, *more])
        found = fits.fit_period(edges) if resolved else None
        period_s = found.period.value if found else blur_s
        fit = _fit(source.kind, edges, driver.wave, period_s, blur_s)
        if source.kind == POWER:
            rise = response.rise_time(*_updates(source.kind, edges, period_s), driver.wave, fit)
    notes = _remarks(source.kind, fit, rise, period_s, resolved=resolved, quick=quick)
    if resolved and blur_s > _COARSE * period_s:
        late = f"the polls came only every {format_time(blur_s)}"
        notes = (*notes, f"{late}: the machine was busy, and these figures are rough; repeat on a quiet one")
    return Calibration(
        label=source.label,
        kind=source.kind,
        profile=_profile(source, edges, fit, rise, period_s=period_s, note="; ".join([_ORIGIN, *notes])),
        period=found.period if found else None,
        window=fit.window if fit and not quick else None,
        lag=fit.lag if fit else None,
        rise=rise,
        low_pass_s=fit.tau_s if fit and not quick else 0.0,
        r2=fit.r2 if fit else None,
        updates=len(edges),
        poll_s=blur_s,
        switches=len(driver.wave.times),
        notes=notes,
    )


def _first_part(source: Source, driver: Driver, effort: Effort) -> tuple[list[Reading], float, bool]:
    """Readings under a load switched at times of every length; the pace of polls, and whether it was quick enough."""
    driver.rest(_REST_S)
    readings: list[Reading] = []
    for poll_s in (_POLL_S, _FAST_POLL_S):
        readings = driver.alternate(_every_length(driver.random), poll_s, effort)
        # Two changes within one gap look like one: at least three polls are needed for a period.
        if source.buffered or len(_edges(source, readings)) <= len(readings) / 3:
            return readings, poll_s, True
    return readings, _FAST_POLL_S, False


def _edges(source: Source, readings: Sequence[Reading]) -> fits.Edges:
    """The updates of a source: changes among polls, or every sample that the driver kept."""
    if not source.buffered:
        return fits.find_edges(readings)
    time, value = (np.array([getattr(r, name) for r in readings], dtype=float) for name in ("time_s", "value"))
    return fits.Edges(time, np.full_like(time, _BUFFER_BLUR_S), value)


def _profile(
    source: Source, edges: fits.Edges, fit: response.BoxcarFit | None, rise: Estimate | None, **found: Any
) -> SensorProfile:
    """The prior with what was found in its place. What no software can find, the gain, stays."""
    found |= {"window_s": 0.0, "rise_s": 0.0, "lag_s": 0.0}
    if fit and source.kind == POWER:
        found["window_s"] = fit.window.value
        found["rise_s"] = rise.value if rise else fit.lag.value + 0.9 * fit.window.value + 2.3 * fit.tau_s
    if fit:
        found["lag_s"] = fit.lag.value
    shown = np.diff(edges.value) if source.kind == COUNTER else edges.value
    return replace(source.profile, resolution=fits.smallest_step(shown), calibrated=True, **found)


def _check_alive(source: Source, readings: Sequence[Reading], edges: fits.Edges) -> None:
    if not readings:
        todo = "see `wattline doctor`"
        raise SensorError(f"{source.label} cannot be calibrated", why="it gave no reading", todo=todo)
    if len(edges) < 2 or not np.ptp(edges.value) > 0:
        span = readings[-1].time_s - readings[0].time_s
        raise SensorError(
            f"{source.label} cannot be calibrated",
            why=f"the reading stayed at {readings[0].value:g} for {span:.0f} s while the load went on and off",
            todo="the sensor may be switched off or cover another device; see `wattline doctor`",
        )
    if source.kind == COUNTER and bool(np.any(np.diff(edges.value) < 0)):
        raise SensorError(
            f"{source.label} cannot be calibrated", why="the counter went backwards meanwhile",
            todo="see whether the driver was reloaded, then repeat",
        )


def _updates(kind: str, edges: fits.Edges, period_s: float) -> tuple[fits.Array, fits.Array]:
    """Times of updates and the watts that they brought; of a counter: increments over the time between."""
    edges = fits.on_comb(fits.sharp(edges), period_s)
    if kind == POWER:
        return edges.time_s, edges.value
    whole = np.abs(np.diff(edges.time_s) / period_s - 1) < 0.5
    # The edges are blurred by the polls, the period is known far better: each increment took one period.
    return edges.time_s[1:][whole], np.diff(edges.value)[whole] / period_s


def _fit(kind: str, edges: fits.Edges, wave: Switching, period_s: float, blur_s: float) -> response.BoxcarFit:
    at, value = _updates(kind, edges, period_s)
    some = slice(None, None, 1 + len(at) // _MOST_UPDATES)
    longest_s = 1.2 * period_s if kind == COUNTER else max(3.0, 3 * period_s)
    return response.fit_boxcar(
        at[some], value[some], wave, blur_s=blur_s, longest_s=longest_s, lag_limit_s=max(0.5, 2 * period_s)
    )


def _remarks(
    kind: str, fit: response.BoxcarFit | None, rise: Estimate | None, period_s: float, *, resolved: bool, quick: bool
) -> tuple[str, ...]:
    notes = []
    if not resolved:
        notes.append(f"it changes at nearly every poll: its period is {format_time(period_s)} or shorter")
    if fit and not quick:
        if resolved and fit.window.value < 0.8 * period_s:
            notes.append(f"it sees {fit.window.value / period_s:.0%} of the time")
        if kind == POWER and rise is None:
            notes.append("too few updates fell on a step: the rise time follows from the window")
        if fit.r2 < 0.9:
            notes.append(f"an average over a window explains only {fit.r2:.0%} of what it shows")
        if not fit.window.error <= 0.1 * fit.window.value:
            notes.append("the window is uncertain: repeat on a quieter machine")
    return tuple(notes)


def _every_length(rng: random.Random) -> Iterator[float]:
    """Times between switches, each order of magnitude from 5 ms to 1 s as likely."""
    while True:
        yield 0.005 * 200.0 ** rng.random()


def _near(rng: random.Random, window_s: float) -> Iterator[float]:
    """Times between switches near a window: some settle, some do not."""
    while True:
        yield window_s * rng.uniform(0.6, 2.5)
