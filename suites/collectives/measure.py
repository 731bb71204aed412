"""One case of several ranks from start to record: every rank runs this in lockstep, rank 0 writes the record.

After each step that may fail on one rank alone (requirements, buffers, check) the ranks tell each other how it went,
so that an error becomes a record with the rank's name instead of a wait that never ends.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wattline.collectors.device import Device
from wattline.device import DeviceSpec
from wattline.errors import DeviceError, UnsupportedError
from wattline.record import Check, Flag, Measurement, Reason, Record
from wattline.run import PlannedCase, now_iso
from wattline.stats import summarize
from wattline.suites.collectives import clocks
from wattline.suites.collectives.join import RanksLostError, World
from wattline.suites.collectives.joules import GroupLoad, GroupMeter, Joules
from wattline.suites.collectives.kernel import Comm, GroupContext, GroupKernel
from wattline.suites.collectives.lockstep import Lockstep, Taken, runner_for
from wattline.suites.collectives.sampling import (
    FEWEST,
    MOST_ITERATIONS,
    Warming,
    above_peak,
    bandwidths,
    rank_medians,
    sampling,
)  # fmt: skip
from wattline.suites.measure.case import KERNEL_ERRORS, classify, poison
from wattline.suites.measure.flags import sample_flags
from wattline.suites.measure.loop import Progress
from wattline.suites.registry import get, get_implementation
from wattline.suites.rotation import rotations
from wattline.suites.settings import MeasureSettings
from wattline.suites.workload import Machine
from wattline.units import format_bytes, format_time
from wattline.work import case_bound

DATA_SHARE = 0.5
"""An operation that does not go on fails after this share of the deadline: the ranks then say who is missing, before
the runner loses patience and ends them all."""
_MEMORY_SHARE = 0.9
_STAGE_SHARE = 0.25  # of a case's time limit, for each stage measured alone


class _Ended(Exception):  # noqa: N818 - how a case ends early, not a fault
    """The case ends without figures, on all ranks alike."""

    def __init__(self, status: str, reason: Reason) -> None:
        super().__init__(reason.message)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class _Ready:
    """A case that is built and checked.

    Attributes:
        record: what is known of it so far.
        kernels: one per set of buffers.
        lockstep: takes samples.
        check: of the first call.
        first_call_s: its length on this rank.
        offsets: the ranks' clocks.
    """

    record: Record
    kernels: Sequence[GroupKernel]
    lockstep: Lockstep
    check: Check | None
    first_call_s: float
    offsets: Sequence[clocks.Offset]


@dataclass(frozen=True)
class Series:
    """One rank's iterations of one case, as its side file holds them."""

    rank: int
    line: Mapping[str, Any]


class GroupCaseRunner:
    """Measures cases on all ranks; lives as long as the member process.

    Args:
        world: the ranks.
        device: this rank's.
        machine: its facts.
        spec: its description.
        settings: limits and criteria.
        progress: told how it goes.
        alive: told that something moves, for the watchdog.
        meter: measures joules; ``None``: nobody does.
    """

    def __init__(
        self,
        world: World,
        device: Device,
        machine: Machine,
        spec: DeviceSpec,
        settings: MeasureSettings,
        *,
        progress: Progress,
        alive: Callable[[], None],
        meter: GroupMeter | None = None,
    ) -> None:
        self.world, self.device, self.machine, self.spec = world, device, machine, spec
        self.settings = settings
        self._progress, self._alive, self._meter = progress, alive, meter
        self._timer = device.timer()
        self._sits_out = False
        self.series: list[Series] = []

    def run(self, planned: PlannedCase, *, seed: int, sequence: int = -1) -> Record:
        """Measure one case; the record counts on rank 0.

        Raises:
            RanksLostError: the group is broken.
            DeviceError: (or another error that the device reports as sticky) this process cannot go on.
        """
        case, begin = planned.case, time.perf_counter()
        self.series = []
        record = Record(
            case, "ok", self.spec.id, variant=planned.variant, seed=seed, started_at=now_iso(), sequence=sequence
        )
        try:
            record = self._measure(record)
        except _Ended as end:
            record = replace(record, status=end.status, reason=end.reason)
        finally:
            self.device.release()
        return replace(record, wall_s=time.perf_counter() - begin)

    # Steps

    def _together(self, doing: str, step: Callable[[], Any]) -> Any:
        """Run a step on this rank, and go on only if it went well on all of them.

        Raises:
            _Ended: on every rank, with the first failed rank's reason.
        """
        self.world.mark(doing)
        result, ended = None, None
        error: BaseException | None = None
        try:
            result = step()
        except _Ended as end:
            ended = (end.status, end.reason.code, end.reason.message)
        except UnsupportedError as unsupported:
            ended = ("unsupported", unsupported.code, str(unsupported))
        except RanksLostError:
            raise
        except (DeviceError, *KERNEL_ERRORS) as raised:
            error = raised
            status, reason = classify(raised)
            ended = (status, reason.code, reason.message)
        if ended is None:
            self._alive()
        said = self.world.all_say(ended, doing)
        self._alive()
        if error is not None and self.device.is_sticky(error):
            raise error
        first = next((rank for rank, each in enumerate(said) if each is not None), None)
        if first is None:
            return result
        status, code, message = said[first]
        failed = [rank for rank, each in enumerate(said) if each is not None]
        everywhere = len(failed) == self.world.size and len({each[2] for each in said}) == 1
        who = "" if everywhere else f"{self.world.named(first)} while {doing}: "
        raise _Ended(status, Reason(code, who + message))

    def _measure(self, record: Record) -> Record:
        case = record.case
        entry, implementation = get(case.op), get_implementation(case.op, case.impl)
        workload = entry.workload

        def asked() -> int:
            reason = implementation.unmet(case.params, self.machine)
            if reason is not None:
                raise _Ended("unsupported", reason)
            if case.regime == "graph" and type(self.device).capture is Device.capture:
                self.device.capture(())
            footprint = max(1.0, workload.footprint(case.params))
            sets = rotations(footprint, self.device.cache_bytes(), case.regime)
            sharing = self.world.place.local_world or 1
            need = footprint * sets * (sharing if self.device.kind == "cpu" else 1)
            free = self.device.free_memory()
            if need > _MEMORY_SHARE * free:
                message = f"its buffers take {format_bytes(need)} ({sets} sets), and {format_bytes(free)} are free"
                raise _Ended("skipped", Reason("too_large", message))
            return sets

        sets = self._together("asking what it needs", asked)
        work = workload.work(case.params)
        record = replace(record, work=work)
        bound = case_bound(work, self.spec, case.regime)
        if bound is not None:
            record = replace(record, bound_s=bound.time_s, bound_by=bound.by)
        comm = self._comm(case.params)
        self._sits_out = comm.rank < 0
        self._progress("build", None, None)
        kernels = self._together("building", lambda: self._build(record, implementation.build, comm, sets))
        self._agreed(kernels[0], comm)
        offsets = clocks.measure_offsets(self.world)
        check, first_call_s = self._check(record, kernels[0], workload.check)
        lockstep = Lockstep(self.world, offsets, self._alive)
        measured = self._time(_Ready(record, kernels, lockstep, check, first_call_s, offsets))
        flag = above_peak(measured.facts, self.spec.link_bandwidth)
        if flag is not None:
            measured = replace(measured, flags=(*measured.flags, flag))
        return replace(record, measurement=measured)

    def _comm(self, p: Mapping[str, Any]) -> Comm:
        """This rank's group; all ranks make all groups of the case."""
        size, count, backend = int(p["world_size"]), int(p.get("groups", 1)), str(p["backend"])
        mine = Comm(-1, size, None, (), backend, world_rank=self.world.rank)
        for index in range(count):
            members = tuple(range(index * size, (index + 1) * size))
            group = self.world.data_group(backend, members, DATA_SHARE * self.settings.deadline_s)
            if self.world.rank in members:
                place = members.index(self.world.rank)
                mine = Comm(place, size, group, members, backend, index=index, world_rank=self.world.rank)
        return mine

    def _build(self, record: Record, build: Any, comm: Comm, sets: int) -> list[GroupKernel]:
        if comm.rank < 0:
            return [GroupKernel(call=lambda: None, inputs={})]
        context = GroupContext(self.device.torch_device, self.machine, data=record.case.data, seed=record.seed)
        context.comm, context.seed = comm, record.seed
        return [build(record.case.params, context) for _ in range(sets)]

    def _agreed(self, kernel: GroupKernel, comm: Comm) -> None:
        """Ranks that would send different sizes wait for each other for ever, or read beyond their buffers."""

        def compare() -> None:
            said = {rank: token for rank, (taking_part, token) in enumerate(tokens) if taking_part}
            if len(set(said.values())) > 1:
                each = ", ".join(f"rank {rank} has {token or 'nothing'}" for rank, token in sorted(said.items()))
                raise _Ended("failed", Reason("sizes_differ", f"the ranks have built different sizes: {each}"))

        tokens = self.world.all_say((comm.rank >= 0, kernel.token), "comparing sizes")
        self._together("comparing sizes", compare)

    def _check(self, record: Record, kernel: GroupKernel, check: Any) -> tuple[Check | None, float]:
        """The first call into poisoned results, and how they compare with what each rank can compute by itself."""
        self._progress("check", None, None)
        if kernel.refresh is not None:
            kernel.refresh()
        if kernel.output is not None:
            poison(kernel.output)
        self.device.synchronize()
        begin = time.perf_counter()
        try:
            result = self._together("making the first call", lambda: self._call_once(kernel))
        except _Ended:
            self.world.forget_groups()  # one that has failed once may hold half a message
            raise
        first_call_s = time.perf_counter() - begin
        if not self.settings.check:
            return None, first_call_s
        return self._verdict(record, kernel, check, result), first_call_s

    def _call_once(self, kernel: GroupKernel) -> Any:
        result = kernel.call()
        if kernel.asynchronous and result is not None:
            result.wait()
        self.device.synchronize()
        return result

    def _verdict(self, record: Record, kernel: GroupKernel, check: Any, result: Any) -> Check:
        def compared() -> tuple[float, float, str]:
            if self._sits_out:
                return 0.0, 0.0, ""
            found: tuple[float, float, str] = check(record.case.params, kernel, result)
            return found

        mine = self._together("checking", compared)
        said = self.world.all_say(mine, "checking")
        worst = max(range(len(said)), key=lambda rank: (not said[rank][0] <= said[rank][1], said[rank][0]))
        error, tolerance, method = said[worst]
        if not error <= tolerance:  # NaN is wrong too
            figures = f"{error:.3g}; {tolerance:.3g} is allowed"
            message = f"{self.world.named(worst)} has a wrong result ({figures}): {method}"
            raise _Ended("failed", Reason("check_failed", message))
        return Check(error, tolerance, True, next((s[2] for s in said if s[2]), ""))

    # Time

    def _time(self, ready: _Ready) -> Measurement:
        record, kernels, lockstep, check = ready.record, ready.kernels, ready.lockstep, ready.check
        settings, case, offsets = self.settings, record.case, ready.offsets
        run = runner_for(self.device, kernels[0], case.regime)
        calls: list[Any] = [kernel.call for kernel in kernels]
        per_replay = 1
        single = 1 if case.regime == "eager" else None  # every call alone, after a start of its own
        most = single or min(self._timer.max_batch_calls, MOST_ITERATIONS // 10)
        self._progress("warm-up", ready.first_call_s, None)
        warming = Warming(self._timer.min_batch_s, settings.warmup_limit_s, most, fixed=settings.warmup_iterations)
        lockstep.take(kernels, run, calls, warming)
        call_s = self.world.tell(warming.call_s)
        if call_s > settings.max_call_s:
            message = f"one call takes about {format_time(call_s)}; the limit is {format_time(settings.max_call_s)}"
            raise _Ended("skipped", Reason("too_slow", message))
        if case.regime == "graph":
            per_replay = self.world.tell(max(len(calls), min(64, int(self._timer.min_batch_s / max(call_s, 1e-9)) + 1)))
            ring = [calls[i % len(calls)] for i in range(per_replay)]
            calls = [self._together("capturing a graph", lambda: self.device.capture(ring))]
            call_s *= per_replay
        begin = time.perf_counter()
        taken = lockstep.take(kernels, run, calls, sampling(settings, self._timer, call_s, single, self._progress))
        timed_s = time.perf_counter() - begin
        facts = dict(kernels[0].facts)
        # What the timed calls left must be as right as the first; sums in place have grown, and are not asked. Rank 0
        # knows which it is: it takes part in every case, and a rank that sits this one out has nothing to put back.
        if self.world.tell(check is not None and per_replay == 1 and kernels[0].refresh is None):
            self._verdict(record, kernels[0], get(case.op).workload.check, None)
        facts |= self._stages(kernels[0], lockstep, taken, per_replay)
        self._collect(ready, taken, per_replay, facts)
        load = GroupLoad(
            kernels, runner_for(self.device, kernels[0], case.regime, each=False), calls,
            call_s=statistics.median(taken.per_call_s() or [0.0]), calls_each=per_replay,
            takes_part=not self._sits_out,
        )  # fmt: skip
        joules = self._joules(kernels[0], lockstep, load, facts)
        if self.world.rank:
            return Measurement((), 1, summarize([1.0]), "")
        values = [value / per_replay for value in taken.per_call_s()]
        stats = summarize(values)
        facts |= bandwidths(case, kernels[0].moved_bytes, stats.median_s)
        facts |= {
            "ranks": self.world.size, "backend": str(case.params["backend"]),
            "start_spread_s": clocks.spread_s(taken.late_ns),
            "rank_median_s": rank_medians(taken, per_replay),
            "clock_offset_s": [o.offset_s for o in offsets], "clock_error_s": [o.error_s for o in offsets],
        }  # fmt: skip
        if kernels[0].finish is not None:
            facts["call_s"] = stats.median_s
            kernels[0].finish(facts)
            del facts["call_s"]
        facts.pop("joules", None)
        return Measurement(
            samples_s=tuple(values), calls_per_sample=taken.count * per_replay, stats=stats, stop=taken.stop,
            warmup_calls=warming.calls, warmup_s=warming.spent_s, warmup_stop=warming.stop,
            first_call_s=ready.first_call_s, rotations=len(kernels),
            timer=f"{'perf_counter_ns' if self.device.kind == 'cpu' else self._timer.name}, slowest rank",
            timed_s=min(timed_s, sum(taken.slowest_ns) * 1e-9), facts=facts,
            energy=joules.energy, flags=(*sample_flags(values, stats, settings), *joules.flags), check=check,
        )  # fmt: skip

    def _joules(self, kernel: GroupKernel, lockstep: Lockstep, load: GroupLoad, facts: dict[str, Any]) -> Joules:
        """Energy of the whole and of its metered stages, after everything that the ranks' own figures come from."""
        metered, names = self.world.tell((kernel.metered, tuple(kernel.metered_stages)))  # a rank may sit it out
        if self._meter is None or not metered:
            return Joules()
        whole = self._meter.measure(lockstep, load)
        facts |= whole.facts
        found, flags = {"call": whole.energy}, list(whole.flags)
        for name in names:
            alone = GroupKernel(kernel.stages.get(name, lambda: None), {}, refresh=kernel.refresh)
            part = self._meter.measure(lockstep, replace(
                load, kernels=[alone], run=runner_for(self.device, alone, "hot", each=False), calls=[alone.call],
                call_s=facts.get(f"{name}_s", 0.0), calls_each=1,
            ))  # fmt: skip
            found[name] = part.energy
            flags += [Flag(flag.code, f"{name} alone: {flag.message}") for flag in part.flags]
        if len(found) > 1 and all(energy is not None for energy in found.values()):
            facts["joules"] = found
        return Joules(whole.energy, tuple(flags))

    def _stages(self, kernel: GroupKernel, lockstep: Lockstep, whole: Taken, per_replay: int) -> dict[str, float]:
        """The parts of the operation, each alone."""
        names = self.world.all_say(list(kernel.stages), "comparing stages")
        listed: list[str] = next((each for each in names if each), [])
        found: dict[str, float] = {}
        limit_s = max(0.05, _STAGE_SHARE * self.settings.time_limit_s)
        for name in listed:
            call = kernel.stages.get(name, lambda: None)
            run = runner_for(self.device, GroupKernel(call, {}), "hot")
            begin = time.perf_counter()
            count = max(1, min(whole.count * per_replay, 200))

            def next_count(taken: Taken, begin: float = begin, count: int = count) -> int:
                enough = len(taken.slowest_ns) >= FEWEST + 1 and time.perf_counter() - begin >= limit_s
                return 0 if enough or len(taken.slowest_ns) >= self.settings.max_samples else count

            taken = lockstep.take([kernel], run, [call], next_count)
            if self.world.rank == 0:
                found[f"{name}_s"] = summarize(taken.per_call_s()[1:]).median_s  # the first is its warm-up
        return found

    def _collect(self, ready: _Ready, taken: Taken, per_replay: int, facts: dict[str, Any]) -> None:
        """All ranks' series on rank 0."""
        record, kernel, offsets = ready.record, ready.kernels[0], ready.offsets
        own = {} if kernel.per_rank is None else kernel.per_rank()
        mine = {"each": taken.each_ns, "samples": taken.mine_ns, "facts": own}
        found = self.world.hand_in(mine, "collecting series")
        if found is None:
            return
        for name in found[0]["facts"]:
            facts[name] = [each["facts"][name] for each in found if name in each["facts"]]  # those that take part
        for rank, each in enumerate(found):
            member = self.world.members[rank]
            self.series.append(Series(rank, {
                "key": record.case.key, "variant": record.variant, "op": record.case.op, "rank": rank,
                "host": member["host"], "pid": member["pid"], "clock_offset_s": offsets[rank].offset_s,
                "clock_error_s": offsets[rank].error_s, "calls_per_sample": taken.count * per_replay,
                "samples_ns": each["samples"], "iterations_ns": each["each"],
            }))  # fmt: skip
