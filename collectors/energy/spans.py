"""Energy of marked spans of any code on one device, from readings taken in the background.

The sensors are polled without a break; marks only note the time. A span is settled once the readings reach beyond its
end, so that nothing waits at a mark. What lies far back is folded into joules, so that a span of days needs no more
memory than one of minutes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wattline.collectors.energy.common import NoEnergySensor
from wattline.collectors.energy.edges import find_edges
from wattline.collectors.energy.estimate import LEAST_PERIODS, SpanEnergy, relative_difference, settle_s, span_energy
from wattline.collectors.energy.polling import ThreadPoller, Watched, poll_gap
from wattline.collectors.energy.sensor import DISAGREEMENT, MeteredSensor
from wattline.collectors.energy.sources import COUNTER, Reading, Source
from wattline.errors import DeviceError, SensorError
from wattline.reasons import Reason

MOST_READINGS = 20_000
"""A source that keeps more than this has what is long past folded into joules."""

RECENT_S = 60.0
"""So much is never folded: ends of spans are looked up in it."""

TIDY_EVERY_S = 5.0


@dataclass(frozen=True)
class DeviceEnergy:
    """What one device used in a span.

    Attributes:
        device: its name, e.g. ``"cuda:0"``.
        joules: joules; ``None`` where there is a reason instead. Never 0 from a sensor that said nothing.
        lo_j, hi_j: their interval with the whole error budget, the sensor's gain included.
        power_w: mean power over the span.
        source: sensor and field.
        scope: ``"gpu"``, ``"module"``, ``"package"`` ...
        budget: relative half-widths by cause: ``"edges"`` (what is not known of either end), ``"gain"``, and
            ``"cross_check"`` for information.
        flags: codes of :data:`wattline.collectors.energy.flags.ENERGY_FLAGS`.
        reason: why there are no joules.
        remedy: what would help.
    """

    device: str
    joules: float | None = None
    lo_j: float = math.nan
    hi_j: float = math.nan
    power_w: float = math.nan
    source: str = ""
    scope: str = ""
    budget: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reason: Reason | None = None
    remedy: str = ""


class SpanPoller(ThreadPoller):
    """Polls in the background, lets go of old readings, and calls back now and then.

    Attributes:
        tidy: called every few seconds from the polling thread; may be set before the start.
    """

    tidy: Callable[[], None] | None = None
    _tidied_s = -math.inf

    def step(self) -> float:
        """See :meth:`Poller.step`."""
        due = super().step()
        now = self._clock()
        if self.tidy is not None and now - self._tidied_s > TIDY_EVERY_S:
            self._tidied_s = now
            self.tidy()
        return due

    def forget(self, before_s: float) -> None:
        """Let go of all older readings."""
        with self._lock:
            for entry in self.watched:
                entry.readings = [r for r in entry.readings if r.time_s >= before_s]

    @property
    def most(self) -> int:
        """Readings of the source that keeps the most."""
        return max((len(entry.readings) for entry in self.watched), default=0)


@dataclass
class Span:
    """A span between two marks.

    Attributes:
        begin_s, end_s: the marks; the end is infinite while it is open.
        parts: by source, what is folded already.
        failed: by source, why it cannot be used for this span.
        folded_s: up to where it is folded.
        found: the result, once settled.
    """

    begin_s: float
    end_s: float = math.inf
    parts: dict[int, list[SpanEnergy]] = field(default_factory=dict)
    failed: dict[int, SensorError] = field(default_factory=dict)
    folded_s: float = -math.inf
    found: DeviceEnergy | None = None

    def __post_init__(self) -> None:
        self.folded_s = self.begin_s


class SpanTracker:
    """Follows the spans of one device.

    Args:
        device: its name.
        sensor: its sensor, or the null object. It stays the caller's to close.
        poller: makes the poller; for tests.
        clock: the clock of the readings.
        sleep: waits; for tests.
    """

    def __init__(
        self,
        device: str,
        sensor: MeteredSensor | NoEnergySensor,
        *,
        poller: Callable[[Sequence[Source]], SpanPoller] = SpanPoller,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device = device
        self.sensor = sensor
        self._sources: tuple[Source, ...] = sensor.sources if isinstance(sensor, MeteredSensor) else ()
        self._clock, self._sleep = clock, sleep
        self._make = poller
        self._poller: SpanPoller | None = None
        self._spans: list[Span] = []
        self._lock = threading.RLock()

    def start(self) -> None:
        """Begin to poll, and wait for the first change of every counter: the beginning of a span lies between two."""
        if not self._sources:
            return
        self._poller = self._make(self._sources)
        self._poller.tidy = self.tidy
        self._poller.start()
        begun_s = self._clock()
        polled = [entry for entry in self._poller.watched if not entry.source.buffered]
        self._wait(lambda: all(self._seen(entry) for entry in polled), begun_s + self._patience_s(polled))

    def stop(self) -> None:
        """Settle what is settled or can be within some periods, then end the polling."""
        if self._poller is None:
            return
        with self._lock:
            waiting = [span for span in self._spans if span.found is None and span.end_s < math.inf]
        for span in waiting:
            self.settle(span)
        self._poller.stop()
        self.tidy()

    def begin(self) -> Span:
        """Mark the beginning of a span."""
        span = Span(self._clock())
        with self._lock:
            self._spans.append(span)
        return span

    def end(self, span: Span) -> None:
        """Mark its end."""
        span.end_s = self._clock()

    def drop(self, span: Span) -> None:
        """Forget an open span."""
        with self._lock:
            self._spans = [each for each in self._spans if each is not span]

    def settle(self, span: Span) -> DeviceEnergy:
        """The result of a span that has ended; waits until the readings reach beyond its end, some periods at most.

        Nothing is raised for a sensor that fails: the result then holds the reason.
        """
        if span.found is not None:
            return span.found
        if self._poller is None:
            return self._keep(span, self._without(self.sensor.reason, self.sensor.remedy))
        # The moving average of a second is waited for only where nothing better answers.
        prompt = [e for e in self._poller.watched if not (e.source.averaged or e.source.buffered)]
        late = [e for e in self._poller.watched if e.source.averaged]
        self._await(prompt, span)
        with self._lock:
            found = span.found or self._result(span, prompt)
        if found.joules is None:
            # A prior may be shorter than the truth: what is no matter of the span's length gets a second chance.
            if span.end_s - span.begin_s >= LEAST_PERIODS * min((e.source.profile.period_s for e in prompt), default=0):
                self._wait(lambda: False, span.end_s + self._patience_s(prompt))
            self._await(late, span)
        with self._lock:
            if found.joules is None and span.found is None:
                found = self._result(span, self._poller.watched)
            return self._keep(span, found)

    def tidy(self) -> None:
        """Settle spans that are past, fold long ones, and forget the readings that no span needs any more."""
        poller = self._poller
        if poller is None:
            return
        with self._lock:
            now = self._clock()
            patience_s = self._patience_s(poller.watched)
            for span in list(self._spans):
                if span.end_s + patience_s < now:
                    self._keep(span, self._result(span, poller.watched))
            if poller.most > MOST_READINGS:
                for span in self._spans:
                    self._fold(span, now - RECENT_S)
            # Some periods before the earliest need: a value between two changes needs the change before it.
            needed = min((span.folded_s for span in self._spans), default=now) - patience_s
            if poller.most > MOST_READINGS // 2:
                poller.forget(min(needed, now - RECENT_S / 2))

    def _keep(self, span: Span, found: DeviceEnergy) -> DeviceEnergy:
        span.found = found
        self.drop(span)
        return found

    def _fold(self, span: Span, until_s: float) -> None:
        """Turn the part before ``until_s`` into joules, source by source."""
        if until_s - span.folded_s < RECENT_S / 2 or until_s >= span.end_s:
            return
        for number, source in enumerate(self._sources):
            if number not in span.failed:
                try:
                    part = span_energy(source.kind, self._readings(source), source.profile, span.folded_s, until_s)
                    span.parts.setdefault(number, []).append(part)
                except SensorError as error:
                    span.failed[number] = error
        span.folded_s = until_s

    def _result(self, span: Span, entries: Sequence[Watched]) -> DeviceEnergy:
        found: list[tuple[Watched, SpanEnergy]] = []
        refused: list[str] = []
        todo = ""
        for number, entry in enumerate(self._poller.watched if self._poller else ()):
            if not any(entry is each for each in entries):
                continue
            source = entry.source
            try:
                if number in span.failed:
                    raise span.failed[number]
                last = span_energy(source.kind, self._readings(source), source.profile, span.folded_s, span.end_s)
                found.append((entry, _sum([*span.parts.get(number, ()), last])))
            except SensorError as error:
                cause = entry.error or error
                refused.append(f"{source.label}: {'; '.join(part for part in (cause.what, cause.why) if part)}")
                todo = todo or cause.todo
        if not found:
            lost = any(isinstance(entry.error, DeviceError) for entry in entries)
            code = "lost_device" if lost else "no_reading"
            return self._without(Reason(code, " | ".join(refused) or "no source was read"), todo)
        entry, energy = found[0]
        first = self._poller.watched[0] if self._poller else entry
        return self._with(span, entry, energy, found[1:], fallback=entry is not first)

    def _with(
        self, span: Span, entry: Watched, energy: SpanEnergy, others: Sequence[tuple[Watched, SpanEnergy]],
        *, fallback: bool,
    ) -> DeviceEnergy:  # fmt: skip
        source, gain = entry.source, entry.source.profile.gain_error
        joules, half = energy.energy_j, energy.half_width_j
        flags = [*source.flags, *energy.flags]
        flags += ["fallback"] if fallback else []
        if entry.failures:
            flags.append("lost_device" if isinstance(entry.error, DeviceError) else "read_errors")
        flags += ["averaged_sensor"] if source.averaged else []
        flags += [] if source.profile.calibrated else ["uncalibrated"]
        budget = {"edges": half / joules, "gain": gain}
        for other, check in others:
            same = other.source.scope == source.scope
            if same and not other.source.averaged and check.half_width_j <= DISAGREEMENT * check.energy_j:
                budget["cross_check"] = relative_difference(joules, check.energy_j)
                flags += ["disagreement"] if budget["cross_check"] > DISAGREEMENT else []
                break
        else:
            same_scope = [each for each in self._sources if each.scope == source.scope]
            flags += ["unchecked"] if len(same_scope) > 1 else []
        return DeviceEnergy(
            device=self.device,
            joules=joules,
            # The gain bounds the truth around the statistical interval, as it does for energy per call.
            lo_j=max(0.0, joules - half) / (1 + gain),
            hi_j=(joules + half) / (1 - gain),
            power_w=joules / (span.end_s - span.begin_s),
            source=source.label,
            scope=source.scope,
            budget=budget,
            flags=tuple(dict.fromkeys(flags)),
        )

    def _without(self, reason: Reason | None, remedy: str) -> DeviceEnergy:
        missing = reason or Reason("no_sensor", f"{self.device} has no energy sensor")
        return DeviceEnergy(self.device, scope=self.sensor.scope, reason=missing, remedy=remedy)

    def _readings(self, source: Source) -> list[Reading]:
        assert self._poller is not None
        return self._poller.readings(source)

    def _seen(self, entry: Watched) -> bool:
        if entry.error is not None:
            return True
        wanted = 2 if entry.source.kind == COUNTER else 1
        readings = self._readings(entry.source)
        return len({r.value for r in readings}) >= wanted

    def _await(self, entries: Sequence[Watched], span: Span) -> None:
        """Wait until the readings reach beyond the end of a span."""
        deadline_s = span.end_s + self._patience_s(entries)
        self._wait(lambda: all(self._reaches(entry, span.end_s) for entry in entries), deadline_s)

    def _reaches(self, entry: Watched, time_s: float) -> bool:
        if entry.error is not None:
            return True
        profile, recent = entry.source.profile, self._readings(entry.source)[-64:]
        if entry.source.kind == COUNTER:
            edges = find_edges(recent, profile.period_s)
            return bool(edges) and edges[-1].time_s >= time_s + profile.lag_s
        return bool(recent) and recent[-1].time_s >= time_s + settle_s(profile)

    def _patience_s(self, entries: Sequence[Watched]) -> float:
        """How long the readings may take to reach beyond a mark: a prior may be wrong by a factor of two."""
        profiles = [entry.source.profile for entry in entries]
        return 0.1 + max((settle_s(p) + 5 * (p.period_s + poll_gap(p.period_s)) for p in profiles), default=0.0)

    def _wait(self, condition: Callable[[], bool], deadline_s: float) -> None:
        gap_s = min((poll_gap(source.profile.period_s) for source in self._sources), default=0.01)
        while not condition() and self._clock() < deadline_s:
            self._sleep(gap_s)


def _sum(parts: Sequence[SpanEnergy]) -> SpanEnergy:
    """Parts of one span together; their errors do not add up, since neighbours share an edge."""
    if len(parts) == 1:
        return parts[0]
    return SpanEnergy(
        energy_j=sum(part.energy_j for part in parts),
        half_width_j=math.hypot(*(part.half_width_j for part in parts)),
        periods=sum(part.periods for part in parts),
        flags=tuple(dict.fromkeys(flag for part in parts for flag in part.flags)),
    )


