"""Joules of what several ranks do: one load of all of them, each device's sensor read by one rank.

A package or a GPU that several ranks share has one sensor, which is read once: by the first of them that takes part.
The joules of a call are those of all devices together. What the measuring loop asks of a load on one device
(:func:`wattline.collectors.energy.load.energy_of_load`) holds for one of several ranks too: lead-in, measured part
and lead-out are the same calls, back to back, and only between edges of its sensor does each device count. Ranks
agree after every batch whether to go on; the share of the window that this takes widens the interval.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattline.collectors.energy import EnergySensor, EnergyWindow
from wattline.collectors.energy.edges import student
from wattline.errors import DeviceError, SensorError
from wattline.record import Energy, Flag, Reason
from wattline.suites.collectives.join import World
from wattline.suites.collectives.kernel import GroupKernel
from wattline.suites.collectives.lockstep import Lockstep, Run, Taken
from wattline.suites.measure.loop import Progress

_BATCH_S = 0.5
"""Longest batch: between two, ranks agree to go on, which takes them about a millisecond."""
_LEAST_BATCH_S, _BATCHES = 0.1, 8  # a window holds some batches, so that they show how even its pace is
_NO_PACE = 0.9
"""Of a load whose pace is not known: half-widths of 1 and more are no intervals."""
_FRESH = 32
"""Calls after which inputs are put back that calls change: a sum in place doubles with each of two ranks."""
MOST_GAPS = 0.1
"""Share of the window without calls above which its joules are refused."""


@dataclass(frozen=True)
class Held:
    """What a rank says of the sensor of its device.

    Attributes:
        device: names what the sensor covers, among the devices of all ranks.
        host: names the machine.
        scope: what the sensor covers.
        reason: why it cannot be read, or ``None``.
    """

    device: str
    host: str
    scope: str
    reason: Reason | None = None


@dataclass(frozen=True)
class GroupLoad:
    """Calls that all ranks repeat together.

    Attributes:
        kernels: whose inputs are put back before every batch.
        run: runs calls; the length of each does not matter.
        calls: of the kernels (or of a stage of one, or a replay).
        call_s: seconds of one; that of rank 0 counts.
        calls_each: operations that each stands for.
        takes_part: whether this rank does.
    """

    kernels: Sequence[GroupKernel]
    run: Run
    calls: Sequence[Any]
    call_s: float = 0.0
    calls_each: int = 1
    takes_part: bool = True


@dataclass(frozen=True)
class Joules:
    """What a load gave; on ranks other than 0 nothing.

    Attributes:
        energy: per operation, of all devices together; ``None`` where there is none.
        flags: why not, where a sensor was there.
        facts: which ranks' sensors were read, and what each gave.
    """

    energy: Energy | None = None
    flags: tuple[Flag, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def meters(held: Sequence[Held | None]) -> tuple[int, ...]:
    """The ranks whose sensors are read: the first of those that share one.

    Args:
        held: by rank; ``None`` for one that takes no part.
    """
    first: dict[str, int] = {}
    for rank, each in enumerate(held):
        if each is not None:
            first.setdefault(each.device, rank)
    return tuple(first.values())


def lacking(held: Sequence[Held | None], named: Callable[[int], str]) -> Reason | None:
    """Why the joules of these ranks are not to be had, or ``None``: a sum that leaves devices out says nothing.

    Args:
        held: as of :func:`meters`.
        named: how a rank is called.
    """
    taking_part = [rank for rank, each in enumerate(held) if each is not None]
    without = [(rank, each) for rank in taking_part if (each := held[rank]) is not None and each.reason is not None]
    if without:
        rank, each = without[0]
        assert each.reason is not None  # such were chosen
        if len(without) == len(taking_part) and len({other.reason for _, other in without}) == 1:
            return each.reason
        return Reason(each.reason.code, f"{named(rank)}: {each.reason.message}")
    cards = [each.host for rank in meters(held) if (each := held[rank]) is not None and each.scope == "card"]
    if len(cards) > len(set(cards)):
        return Reason(
            "shared_cards", "each sensor covers a card of two devices, and which ranks share a card is not known"
        )
    return None


def pace_of(batches: Sequence[float]) -> float:
    """Relative half-width of the 95 % interval of a mean (Student), at most :data:`_NO_PACE`.

    Args:
        batches: the time of each batch of a load, all of as many calls.
    """
    count = len(batches)
    if count < 2:
        return _NO_PACE
    error = statistics.stdev(batches) / (statistics.fmean(batches) * count**0.5)
    return float(min(_NO_PACE, student(count - 1) * error))


def together(found: Sequence[Energy], gaps: float = 0.0, pace: float = 0.0) -> Energy:
    """The joules of several devices: watts, joules and the ends of their intervals are added.

    Intervals are added end to end, not in quadrature, since most of each is the sensor's gain, of which nothing says
    that boards of one make differ. In the gaps between batches a device draws between nothing and what the load draws:
    the load's own joules are at most those of the window over ``1 - gaps``.

    Args:
        found: of each device.
        gaps: share of the window in which nothing ran.
        pace: how well the time of a call is known, which matters to those who compare loads.
    """
    power_w = sum(each.power_w for each in found)
    budget = {
        name: sum(each.power_w * each.budget.get(name, 0.0) for each in found) / power_w
        for name in dict.fromkeys(name for each in found for name in each.budget)
    }
    return Energy(
        power_w=power_w,
        energy_j=sum(each.energy_j for each in found),
        energy_lo_j=sum(each.energy_lo_j for each in found),
        energy_hi_j=sum(each.energy_hi_j for each in found) / (1 - gaps),
        source=", ".join(dict.fromkeys(each.source for each in found)),
        scope=", ".join(dict.fromkeys(each.scope for each in found)),
        budget=budget | {"gaps": gaps, "pace": pace},
        flags=tuple(dict.fromkeys(flag for each in found for flag in each.flags)),
    )


class _Put:
    """Stands for the handle of an operation that has ended."""

    def wait(self) -> None:
        """Nothing to wait for."""


class GroupMeter:
    """Measures the joules of loads of all ranks; made by all of them at once.

    Args:
        world: the ranks.
        sensor: of this rank's device.
        requested_s: the measured part that the user asks for.
        progress: told that energy is measured.

    Attributes:
        sensor: as given.
        reason: why a load of all ranks has no joules, or ``None``.
    """

    def __init__(
        self, world: World, sensor: EnergySensor, requested_s: float | None = None, *, progress: Progress
    ) -> None:
        self.sensor = sensor
        self._world, self._requested_s, self._progress = world, requested_s, progress
        member = world.members[world.rank]
        host = member["boot"] or member["host"]
        mine = Held(f"{host} | {getattr(sensor, 'key', '')}", host, sensor.scope, sensor.reason)
        self._held: list[Held] = world.all_say(mine, "comparing sensors")
        self.reason = lacking(self._held, world.named)

    def measure(self, lockstep: Lockstep, load: GroupLoad) -> Joules:
        """The joules of an operation; called by all ranks.

        Raises:
            RanksLostError: the group is broken.
        """
        world = self._world
        said = world.all_say((load.takes_part, load.call_s, *self._window()), "preparing to measure energy")
        held = [mine if takes_part else None for mine, (takes_part, *_) in zip(self._held, said, strict=True)]
        reading = meters(held)
        if lacking(held, world.named) is not None or not reading:
            return Joules()
        for rank in reading:
            _, _, _, refusal = said[rank]
            if refusal:
                return Joules(flags=(Flag("energy_refused", f"{world.named(rank)}: {refusal}"),))
        windows: list[EnergyWindow] = [said[rank][2] for rank in reading]
        call_s = said[0][1]
        cycle = _cycle(load, call_s)
        self._take(lockstep, load, cycle, max(w.lead_in_s for w in windows))
        mine = world.rank in reading
        refusal = self._start() if mine else ""
        try:
            begin = time.perf_counter()
            taken = self._take(lockstep, load, cycle, max(w.measured_s for w in windows))
            busy_s, wall_s = sum(taken.slowest_ns) * 1e-9, time.perf_counter() - begin
            made = taken.count * len(taken.slowest_ns)
            calls, busy_s, gaps = world.tell((made * cycle.share * load.calls_each, busy_s, 1 - busy_s / wall_s))
        except BaseException:
            self.sensor.cancel()
            raise
        got = self._stop(round(calls), busy_s, refusal) if mine else (None, "")
        found = world.hand_in(got, "collecting joules")
        self._take(lockstep, load, cycle, max(w.lead_out_s for w in windows))
        if found is None:
            return Joules()
        pace = pace_of([float(ns) for ns in taken.slowest_ns])
        return self._summed(reading, [found[rank] for rank in reading], max(gaps, 0.0), pace)

    def _summed(
        self, reading: Sequence[int], found: Sequence[tuple[Energy | None, str]], gaps: float, pace: float
    ) -> Joules:
        refused = [f"{self._world.named(r)}: {why}" for r, (_, why) in zip(reading, found, strict=True) if why]
        energies = [energy for energy, _ in found if energy is not None]
        if gaps > MOST_GAPS:
            refused.append(f"for {gaps:.0%} of the load the ranks waited for each other between calls")
        if refused or len(energies) < len(reading):
            return Joules(flags=(Flag("energy_refused", "; ".join(refused) or "a sensor gave nothing"),))
        facts = {"energy_ranks": list(reading), "energy_each_j": [energy.energy_j for energy in energies]}
        return Joules(together(energies, gaps, pace), facts=facts)

    def _take(self, lockstep: Lockstep, load: GroupLoad, cycle: _Cycle, seconds: float) -> Taken:
        if seconds <= 0:
            return Taken()
        begin: list[float] = []
        batch = cycle.batch(min(_BATCH_S, seconds, max(_LEAST_BATCH_S, seconds / _BATCHES)))

        def next_count(taken: Taken) -> int:
            now = time.perf_counter()
            begin.append(now)
            if taken.slowest_ns and now - begin[0] >= seconds:
                return 0
            self._progress("energy", cycle.call_s, None)
            return batch

        return lockstep.take(load.kernels, load.run, cycle.calls, next_count)

    def _window(self) -> tuple[EnergyWindow, str]:
        try:
            return self.sensor.window(self._requested_s), ""
        except SensorError as error:
            return EnergyWindow(), str(error)

    def _start(self) -> str:
        try:
            self.sensor.start()
        except (SensorError, DeviceError) as error:
            return str(error)
        return ""

    def _stop(self, calls: int, busy_s: float, refusal: str) -> tuple[Energy | None, str]:
        if refusal:
            return None, refusal
        try:
            return self.sensor.stop(calls, busy_s), ""
        except (SensorError, DeviceError) as error:
            return None, str(error)


@dataclass(frozen=True)
class _Cycle:
    """What a load repeats.

    Attributes:
        calls: its calls, and what puts inputs back now and then.
        call_s: seconds of one.
        share: of them that are calls.
    """

    calls: Sequence[Any]
    call_s: float
    share: float = 1.0

    def batch(self, seconds: float) -> int:
        """How many make a batch of about that length: of those with something to put back, whole cycles."""
        count = max(1, int(seconds / max(self.call_s, 1e-9)))
        return count if self.share == 1.0 else len(self.calls) * max(1, count // len(self.calls))


def _cycle(load: GroupLoad, call_s: float) -> _Cycle:
    calls = list(load.calls)
    repeats = max(1, _FRESH // (len(calls) * load.calls_each))
    length = repeats * len(calls)
    refreshes = [kernel.refresh for kernel in load.kernels if kernel.refresh is not None]
    if not refreshes or length * call_s > _BATCH_S:
        return _Cycle(calls, call_s)

    def put_back() -> _Put:
        for refresh in refreshes:
            refresh()
        return _Put()

    return _Cycle([*calls * repeats, put_back], call_s, length / (length + 1))
