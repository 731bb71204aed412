"""The meter in virtual time: a sensor made of simulated sources, driven as the measurement loop drives a real one.

::

    from wattline_sim.metering import measure, virtual_sensor

    sensor = virtual_sensor([source], clock)                # a MeteredSensor that polls in virtual time
    trial = measure(["counter 100 ms"], call_s=1e-3, window_s=None, seed=3)     # a whole measurement
    trial.energy, trial.truth_j                             # what it said, and the true joules per call
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wattline_sim.sources import Load, VirtualClock, Waveform, simulate

from wattline.collectors.energy.polling import Poller, Watched
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.collectors.energy.sources import Source
from wattline.record import Energy


class VirtualPoller(Poller):
    """The poller, called by a virtual clock instead of a thread."""

    def __init__(self, sources: Sequence[Source], clock: VirtualClock, seed: int = 0) -> None:
        super().__init__(sources, clock=clock, seed=seed)
        self._virtual = clock
        self._ticker: Any = None

    def start(self) -> None:
        super().start()
        self._ticker = self._virtual.every(1e-3, self._tick)
        self._tick()

    def _tick(self) -> None:
        due = self.step()
        self._ticker.due_s = max(due, self._virtual.now() + 1e-6)

    def stop(self) -> list[Watched]:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
            super().stop()
        return self.watched


def virtual_sensor(sources: Sequence[Source], clock: VirtualClock, seed: int = 0) -> MeteredSensor:
    """A :class:`MeteredSensor` of these sources in virtual time."""

    def poller(watched: Sequence[Source], _: Callable[[], float]) -> Poller:
        return VirtualPoller(watched, clock, seed)

    return MeteredSensor("sim", sources, clock=clock, poller=poller, sleep=clock.sleep)


@dataclass(frozen=True)
class Trial:
    """A measurement and its truth.

    Attributes:
        energy: what the meter said.
        truth_j: true joules per call.
        calls: in the window.
        window_s: length of the measured part.
    """

    energy: Energy
    truth_j: float
    calls: int
    window_s: float

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.energy.energy_j / self.truth_j - 1

    @property
    def half_width(self) -> float:
        """Relative half-width of the interval without the sensor's gain."""
        return sum(self.energy.budget[cause] ** 2 for cause in ("quantisation", "trial", "drift")) ** 0.5

    @property
    def covered(self) -> bool:
        """Whether the whole interval holds the truth."""
        return self.energy.energy_lo_j <= self.truth_j <= self.energy.energy_hi_j


def measure(
    rows: Sequence[str], *, call_s: float, window_s: float | None = None, seed: int = 0, gain: float = 1.0,
    idle_w: float = 80.0, active_w: float = 500.0, phases: Sequence[tuple[float, float]] = (),
) -> Trial:  # fmt: skip
    """A whole measurement of a kernel on a simulated device: idle, lead-in, window, lead-out.

    Args:
        rows: of the sensor table, the preferred source first.
        call_s: length of a call.
        window_s: asked for; the sensor's own rule where not given.
        seed: of phases, jitter, noise and polling.
        gain: of all sources.
        idle_w, active_w: true power.
        phases: power within a call, as (share of it, watts); even power where not given.

    Raises:
        SensorError: the sensor refused the window.
    """
    clock, truth = VirtualClock(), Waveform(idle_w)
    load = Load(clock, truth, idle_w, active_w)
    sources = [simulate(row, clock, truth, seed=100 * seed + k, gain=gain) for k, row in enumerate(rows)]
    sensor = virtual_sensor(sources, clock, seed)
    clock.sleep(3.0 + random.Random(seed).random())

    def run(seconds: float) -> tuple[int, float]:
        if not phases:
            return load.run(seconds, call_s)
        calls = max(1, -int(-seconds // call_s))
        begin = clock.now()
        for k in range(calls):
            at = begin + k * call_s
            for share, watts in phases:
                truth.step(at, watts)
                at += share * call_s
        clock.sleep(calls * call_s)
        return calls, calls * call_s

    window = sensor.window(window_s)
    run(window.lead_in_s)
    sensor.start()
    begin = clock.now()
    calls, device_time_s = run(window.measured_s)
    joules = truth.energy(begin, begin + device_time_s)
    energy = sensor.stop(calls, device_time_s)
    run(window.lead_out_s)
    load.off()
    assert energy is not None
    return Trial(energy, joules / calls, calls, window.measured_s)


def naive(
    row: str, *, call_s: float, window_s: float, seed: int = 0, poll_s: float = 0.1, idle_w: float = 80.0,
    active_w: float = 500.0,
) -> dict[str, float]:  # fmt: skip
    """The usual ways on the same sensor: no lead-in, readings taken as they come. Relative errors per call.

    Returns:
        ``difference`` of the counter's readings before and after (counter rows); ``mean`` of the power polled
        meanwhile, and ``one`` sample just after the end (power rows).
    """
    clock, truth = VirtualClock(), Waveform(idle_w)
    load = Load(clock, truth, idle_w, active_w)
    source = simulate(row, clock, truth, seed=100 * seed)
    clock.sleep(3.0 + random.Random(seed).random())
    first = source.read().value
    seen: list[float] = []
    ticker = clock.every(poll_s, lambda: seen.append(source.read().value))
    device_time_s = load.run(window_s, call_s)[1]
    ticker.cancel()
    joules = truth.energy(clock.now() - device_time_s, clock.now())
    load.off()
    last = source.read().value
    if source.kind == "counter":
        return {"difference": (last - first) / joules - 1}
    return {"mean": sum(seen) / len(seen) * device_time_s / joules - 1, "one": last * device_time_s / joules - 1}
