"""Simulated sensors in virtual time: the truth is known, nothing sleeps, every run gives the same figures.

Import it from any test file (``tests/conftest.py`` makes the folder the package ``wattline_sim``)::

    from wattline_sim.sources import ROWS, VirtualClock, Waveform, simulate

    clock = VirtualClock()                      # clock() and clock.now() give seconds; clock.sleep(s) moves on
    truth = Waveform(80.0)                      # watts before anything else
    truth.step(1.0, 500.0)                      # from second 1 on: 500 W;   truth.square(...) alternates
    source = simulate("a100 instant", clock, truth, seed=1)   # a row of the sensor table, as a Source
    reading = source.read()                     # at clock.now(); costs source.read_cost_s of virtual time
    readings = poll([source], clock, 5.0, every_s=0.02)[0]    # polls until 5 s from now
    truth.energy(1.0, 6.0)                      # joules, exact;   truth.power(t), truth.mean(a, b) likewise

The path of a signal is that of a real sensor: true power, low-pass (``tau_s``), gain and offset, average over
``window_s`` that ended ``lag_s`` ago, renewed every ``period_s`` (with ``jitter_s``), noise, steps of ``resolution``.

To run a *background* thing in virtual time: ``handle = clock.every(interval_s, callback)`` calls back whenever the
clock passes a multiple; ``handle.cancel()`` ends it. ``Load(clock, truth, idle_w, active_w)`` is a kernel loop:
``load.run(seconds, call_s)`` switches the power up, lets the time pass and returns calls and device time; it stays
up until ``load.off()``. ``load(True)`` and ``load(False)`` switch it.

Faults: ``source.fail(at_s, error)`` raises from then on; a counter takes ``source.stall(a, b)`` (does not move),
``source.reset(at_s, to_j)`` (restarts), ``wrap_j`` (wraps around).
"""

from __future__ import annotations

import dataclasses
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattline.collectors.energy.sources import COUNTER, POWER, Reading, SensorProfile, Source


class VirtualClock:
    """Time that passes only when told to."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self._now = start_s
        self._tickers: list[Ticker] = []

    def now(self) -> float:
        return self._now

    __call__ = now

    def sleep(self, seconds: float) -> None:
        """Move on; whatever was registered with :meth:`every` is called on the way, at its own times."""
        end = self._now + max(seconds, 0.0)
        while True:
            due = min((t for t in self._tickers if t.due_s <= end), key=lambda t: t.due_s, default=None)
            if due is None:
                break
            self._now = max(self._now, due.due_s)
            due.due_s += due.interval_s
            tickers, self._tickers = self._tickers, [t for t in self._tickers if t is not due]
            try:
                due.callback()  # it may itself move the clock: reads cost time
            finally:
                self._tickers = [t for t in tickers if not t.cancelled]
        self._now = max(self._now, end)

    def every(self, interval_s: float, callback: Callable[[], Any]) -> Ticker:
        ticker = Ticker(self, interval_s, callback, self._now + interval_s)
        self._tickers.append(ticker)
        return ticker

    def forget(self, ticker: Ticker) -> None:
        self._tickers = [t for t in self._tickers if t is not ticker]


@dataclass(eq=False)
class Ticker:
    """A call at every interval of a :class:`VirtualClock`."""

    clock: VirtualClock
    interval_s: float
    callback: Callable[[], Any]
    due_s: float
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True
        self.clock.forget(self)


class Waveform:
    """True power: constant between steps, which are given in order of time."""

    def __init__(self, watts: float) -> None:
        self._times: list[float] = []
        self._watts: list[float] = [watts]
        self._joules: list[float] = []  # up to each step, from the first one

    def step(self, at_s: float, watts: float) -> None:
        """The power from then on."""
        if self._times and at_s < self._times[-1]:
            raise ValueError(f"steps come in order: {at_s} after {self._times[-1]}")
        if self._times and at_s == self._times[-1]:
            self._watts[-1] = watts
            return
        gone = self._watts[-1] * (at_s - self._times[-1]) + self._joules[-1] if self._times else 0.0
        self._times.append(at_s)
        self._joules.append(gone)
        self._watts.append(watts)

    def square(
        self, from_s: float, until_s: float, period_s: float, *, high_w: float, low_w: float, duty: float = 0.5
    ) -> None:
        """Alternates, high first; stays low afterwards."""
        for k in range(math.ceil((until_s - from_s) / period_s - 1e-9)):
            self.step(from_s + k * period_s, high_w)
            self.step(min(from_s + (k + duty) * period_s, until_s), low_w)

    def power(self, time_s: float) -> float:
        return self._watts[bisect_right(self._times, time_s)]

    def _total(self, time_s: float) -> float:
        k = bisect_right(self._times, time_s)
        if k == 0:
            return self._watts[0] * (time_s - self._times[0]) if self._times else self._watts[0] * time_s
        return self._joules[k - 1] + self._watts[k] * (time_s - self._times[k - 1])

    def energy(self, from_s: float, until_s: float) -> float:
        """Joules between two times."""
        return self._total(until_s) - self._total(from_s)

    def mean(self, from_s: float, until_s: float) -> float:
        """Watts between two times; those at the end for a span of no length."""
        return self.energy(from_s, until_s) / (until_s - from_s) if until_s > from_s else self.power(until_s)

    def smooth(self, time_s: float, tau_s: float) -> float:
        """Power behind a first-order low-pass of that time constant."""
        if tau_s <= 0:
            return self.power(time_s)
        first = bisect_left(self._times, time_s - 40 * tau_s)
        value = self._watts[first]
        for k in range(first, bisect_right(self._times, time_s)):
            end = min(self._times[k + 1] if k + 1 < len(self._times) else time_s, time_s)
            value = self._watts[k + 1] + (value - self._watts[k + 1]) * math.exp((self._times[k] - end) / tau_s)
        return value

    def smooth_mean(self, from_s: float, until_s: float, tau_s: float) -> float:
        """Mean behind the low-pass: from y' = (x - y) / tau, the integral of y is that of x less tau (y_b - y_a)."""
        if tau_s <= 0 or until_s <= from_s:
            return self.mean(from_s, until_s) if tau_s <= 0 else self.smooth(until_s, tau_s)
        lost = tau_s * (self.smooth(until_s, tau_s) - self.smooth(from_s, tau_s))
        return (self.energy(from_s, until_s) - lost) / (until_s - from_s)


@dataclass(eq=False)
class Load:
    """A kernel that runs back to back: while it does, the true power is high."""

    clock: VirtualClock
    truth: Waveform
    idle_w: float = 80.0
    active_w: float = 500.0

    def __call__(self, on: bool) -> None:
        self.truth.step(self.clock.now(), self.active_w if on else self.idle_w)

    def off(self) -> None:
        self(False)

    def run(self, seconds: float, call_s: float = 1e-3) -> tuple[int, float]:
        """At least that long, whole calls, under load; gives the calls and their device time."""
        self(True)
        calls = max(1, math.ceil(seconds / call_s - 1e-9))
        self.clock.sleep(calls * call_s)
        return calls, calls * call_s


class SimulatedSource(Source):
    """What both kinds share: when it is renewed, noise, faults."""

    vendor = "sim"
    scope = "gpu"

    def __init__(
        self, clock: VirtualClock, truth: Waveform, *, field: str, period_s: float, phase_s: float, jitter_s: float,
        resolution: float, gain: float, lag_s: float, read_cost_s: float, seed: int, profile: SensorProfile,
    ) -> None:  # fmt: skip
        self.clock, self.truth, self.field, self.profile = clock, truth, field, profile
        self.period_s, self.phase_s, self.jitter_s, self.resolution = period_s, phase_s, jitter_s, resolution
        self.gain, self.lag_s, self.read_cost_s, self.seed = gain, lag_s, read_cost_s, seed
        self.origin_s = clock.now()
        self.reads = 0
        self._failure: tuple[float, Exception] | None = None
        self._drawn: dict[tuple[int, int], float] = {}

    def fail(self, at_s: float, error: Exception) -> None:
        """Every read from then on raises this."""
        self._failure = (at_s, error)

    def read(self) -> Reading:
        started = self.clock.now()
        self.clock.sleep(self.read_cost_s)
        now = self.clock.now()
        if self._failure and now >= self._failure[0]:
            raise self._failure[1]
        self.reads += 1
        # The register is read within the call; its middle is the fairest time.
        return Reading(0.5 * (started + now), self.value(0.5 * (started + now)), now - started)

    def _random(self, k: int, stream: int) -> float:
        """A normal number that belongs to the k-th renewal, however often it is read."""
        if (k, stream) not in self._drawn:
            self._drawn[k, stream] = random.Random(f"{self.seed} {stream} {k}").gauss(0.0, 1.0)
        return self._drawn[k, stream]

    def renewal_s(self, k: int) -> float:
        """When the reading changes for the k-th time."""
        shift = 0.0
        if self.jitter_s:
            shift = max(-0.4 * self.period_s, min(0.4 * self.period_s, self.jitter_s * self._random(k, 1)))
        return self.origin_s + self.phase_s + k * self.period_s + shift

    def renewal(self, time_s: float) -> int:
        """Number of the last renewal by then."""
        k = math.floor((time_s - self.origin_s - self.phase_s) / self.period_s) + 1
        while self.renewal_s(k) > time_s:
            k -= 1
        return k

    def value(self, time_s: float) -> float:
        """What the register holds then."""
        return self._value_of(self.renewal(time_s))

    def _value_of(self, k: int) -> float:
        raise NotImplementedError

    def _quantise(self, value: float) -> float:
        return math.floor(value / self.resolution) * self.resolution if self.resolution else value


class SimulatedPower(SimulatedSource):
    """Watts, averaged over a window, held for a period.

    Args:
        history: readings that the driver keeps with its own times (``history()``); 0 for none.
        offset_w: added after the gain.
        noise_w: standard deviation, new at every renewal.
        tau_s: time constant of the low-pass before the window.
    """

    kind = POWER

    def __init__(
        self, clock: VirtualClock, truth: Waveform, *, period_s: float, window_s: float, lag_s: float = 0.0,
        field: str = "instant power", phase_s: float | None = None, jitter_s: float = 0.0, resolution: float = 1e-3,
        gain: float = 1.0, offset_w: float = 0.0, noise_w: float = 0.0, tau_s: float = 0.0, read_cost_s: float = 2e-5,
        history: int = 0, seed: int = 0, profile: SensorProfile | None = None,
    ) -> None:  # fmt: skip
        known = profile or SensorProfile(period_s, window_s, lag_s, 0.9 * window_s + 2.2 * tau_s, resolution)
        super().__init__(
            clock, truth, field=field, period_s=period_s, phase_s=_phase(phase_s, period_s, seed), jitter_s=jitter_s,
            resolution=resolution, gain=gain, lag_s=lag_s, read_cost_s=read_cost_s, seed=seed, profile=known,
        )  # fmt: skip
        self.window_s, self.offset_w, self.noise_w, self.tau_s, self.kept = window_s, offset_w, noise_w, tau_s, history
        self.averaged = window_s >= 1.0

    def _value_of(self, k: int) -> float:
        end = self.renewal_s(k) - self.lag_s
        watts = self.gain * self.truth.smooth_mean(end - self.window_s, end, self.tau_s) + self.offset_w
        if self.noise_w:
            watts += self.noise_w * self._random(k, 2)
        return self._quantise(max(watts, 0.0))

    def history(self, since_s: float) -> Sequence[Reading]:
        last = self.renewal(self.clock.now())
        first = max(last - self.kept + 1, self.renewal(since_s) + 1)
        return [Reading(self.renewal_s(k), self._value_of(k)) for k in range(first, last + 1)]


class SimulatedCounter(SimulatedSource):
    """Joules that rise, renewed every period.

    Args:
        seen_s: integrate only the last part of every period, as a sensor that looks away does; 0: all of it.
        wrap_j: back to zero at that value; 0: never.
        start_j: value at the beginning.
    """

    kind = COUNTER

    def __init__(
        self, clock: VirtualClock, truth: Waveform, *, period_s: float, field: str = "total energy counter",
        phase_s: float | None = None, jitter_s: float = 0.0, resolution: float = 1e-3, gain: float = 1.0,
        lag_s: float = 0.0, read_cost_s: float = 2e-5, seen_s: float = 0.0, wrap_j: float = 0.0, start_j: float = 1e5,
        seed: int = 0, profile: SensorProfile | None = None,
    ) -> None:  # fmt: skip
        known = profile or SensorProfile(period_s, 0.0, lag_s, 0.0, resolution)
        super().__init__(
            clock, truth, field=field, period_s=period_s, phase_s=_phase(phase_s, period_s, seed), jitter_s=jitter_s,
            resolution=resolution, gain=gain, lag_s=lag_s, read_cost_s=read_cost_s, seed=seed, profile=known,
        )  # fmt: skip
        self.seen_s, self.wrap_j, self.start_j = seen_s, wrap_j, start_j
        self._stalls: list[tuple[float, float]] = []
        self._resets: list[tuple[float, float]] = []
        self._sampled: dict[int, float] = {}

    def stall(self, from_s: float, until_s: float = math.inf) -> None:
        """The counter stands still meanwhile and jumps to the truth afterwards."""
        self._stalls.append((from_s, until_s))

    def reset(self, at_s: float, to_j: float = 0.0) -> None:
        """It starts again from there: a driver was reloaded."""
        self._resets = sorted([*self._resets, (at_s, to_j)])

    def _value_of(self, k: int) -> float:
        at = self.renewal_s(k)
        for from_s, until_s in self._stalls:
            if from_s <= at < until_s:
                k = self.renewal(from_s)
                at = self.renewal_s(k)
        base, start = self.start_j, self._integral(k)
        for from_s, to_j in self._resets:
            if from_s <= at:
                base, start = to_j, self._integral(k) - self._integral(self.renewal(from_s))
        joules = self._quantise(base + self.gain * start)
        return joules % self.wrap_j if self.wrap_j else joules

    def _integral(self, k: int) -> float:
        if not self.seen_s:
            return self.truth.energy(self.origin_s - self.lag_s, self.renewal_s(k) - self.lag_s)
        known = max((j for j in self._sampled if j <= k), default=0)
        total = self._sampled.get(known, 0.0)
        for j in range(known + 1, k + 1):
            end = self.renewal_s(j) - self.lag_s
            total += self.truth.mean(end - self.seen_s, end) * (self.renewal_s(j) - self.renewal_s(j - 1))
        self._sampled = {k: total} if k >= known else self._sampled
        return total


def _phase(phase_s: float | None, period_s: float, seed: int) -> float:
    """Where in its period a sensor stands when the test begins: anywhere, but the same for a seed."""
    return phase_s if phase_s is not None else random.Random(f"phase {seed}").uniform(0.0, period_s)


@dataclass(frozen=True)
class Row:
    """A row of the sensor table: how one field of one family of parts reads."""

    kind: str
    period_s: float
    window_s: float = 0.0
    field: str = ""
    scope: str = "gpu"
    resolution: float = 1e-3
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ROWS: dict[str, Row] = {
    "pascal, volta": Row(POWER, 0.020, 0.010, "instant power", options={"lag_s": 0.005, "noise_w": 1.0}),
    "turing, rtx 3090": Row(POWER, 0.100, 0.100, "instant power", options={"lag_s": 0.010, "noise_w": 1.0}),
    "a100 instant": Row(POWER, 0.100, 0.025, "instant power", options={"lag_s": 0.010, "noise_w": 1.0}),
    "h100 instant": Row(POWER, 0.100, 0.025, "instant power (186)", options={"lag_s": 0.010, "noise_w": 1.0}),
    "h100 average": Row(POWER, 0.100, 1.0, "average power", options={"lag_s": 0.010, "noise_w": 0.2}),
    "gh200": Row(POWER, 0.100, 0.020, "instant power (186)", "module", options={"lag_s": 0.010, "noise_w": 1.0}),
    "counter 20 ms": Row(COUNTER, 0.020, 0.0, "total energy counter", options={"jitter_s": 0.0002}),
    "counter 100 ms": Row(COUNTER, 0.100, 0.0, "total energy counter", options={"jitter_s": 0.001}),
    "rapl": Row(COUNTER, 0.001, 0.0, "energy_uj", "package", 6.103515625e-5, {"jitter_s": 0.00002}),
}
"""The sensor table of the method. Lag and noise are ordinary values, not measured ones."""


def simulate(
    row: str, clock: VirtualClock, truth: Waveform, *, seed: int = 0, known: bool = True, **options: Any
) -> SimulatedPower | SimulatedCounter:
    """A source that reads like a row of :data:`ROWS`.

    Args:
        row: its name.
        clock, truth: when and what it reads.
        seed: of its phase, jitter and noise.
        known: whether its profile tells the truth; else it claims a prior that is wrong by some tens of percent.
        options: of :class:`SimulatedPower` or :class:`SimulatedCounter`, over those of the row.
    """
    entry = ROWS[row]
    settings: dict[str, Any] = {"field": entry.field, "resolution": entry.resolution, **entry.options, **options}
    settings.setdefault("period_s", entry.period_s)
    wrong = 1.0 if known else 1.4
    profile = SensorProfile(
        period_s=settings["period_s"] * wrong, window_s=settings.get("window_s", entry.window_s) * wrong,
        lag_s=settings.get("lag_s", 0.0), rise_s=0.9 * entry.window_s * wrong, resolution=entry.resolution,
        calibrated=known, note=f"simulated: {row}",
    )  # fmt: skip
    settings.setdefault("profile", profile)
    source: SimulatedPower | SimulatedCounter
    if entry.kind == POWER:
        source = SimulatedPower(clock, truth, seed=seed, **({"window_s": entry.window_s} | settings))
    else:
        source = SimulatedCounter(clock, truth, seed=seed, **settings)
    source.scope = entry.scope
    return source


def poll(
    sources: Sequence[Source], clock: VirtualClock, seconds: float, every_s: float, seed: int | None = None
) -> list[list[Reading]]:
    """Reads them all, every so often, until that much time has passed; one list per source.

    ``seed`` makes the pace irregular by up to a tenth, as a thread's is.
    """
    rng = random.Random(seed)
    readings: list[list[Reading]] = [[] for _ in sources]
    end = clock.now() + seconds
    while clock.now() < end:
        begun = clock.now()
        for kept, source in zip(readings, sources, strict=True):
            kept.append(source.read())
        pace = every_s * (1.0 + (rng.uniform(0.0, 0.1) if seed is not None else 0.0))
        clock.sleep(max(pace - (clock.now() - begun), 0.0) or 1e-6)
    return readings
