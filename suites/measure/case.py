"""One case from start to record: requirements, cost, build, check, warm-up, samples, flags."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wattline.case import Case
from wattline.collectors.device import Device
from wattline.collectors.energy import EnergySensor
from wattline.collectors.energy.load import energy_of_load
from wattline.collectors.telemetry import Telemetry
from wattline.collectors.timers import Timer
from wattline.device import DeviceSpec
from wattline.errors import DeviceError, SensorError, UnsupportedError
from wattline.params import Value
from wattline.record import Check, Energy, Flag, Measurement, Reason, Record
from wattline.run import PlannedCase, now_iso
from wattline.stats import summarize
from wattline.suites.fills import Builder
from wattline.suites.measure.cost import CostModel, amount
from wattline.suites.measure.flags import bound_flag, limits_of, sample_flags
from wattline.suites.measure.loop import Progress, Ring, Samples, WarmUp, sample, warm_up
from wattline.suites.measure.prepared import PreparedTimer, prepared
from wattline.suites.measure.traces import Phases, make_trace
from wattline.suites.precision import set_precision
from wattline.suites.registry import get, get_implementation
from wattline.suites.rotation import rotations
from wattline.suites.settings import MeasureSettings
from wattline.suites.workload import Entry, Implementation, Kernel, Machine
from wattline.trace import Trace
from wattline.units import format_bytes, format_time
from wattline.work import case_bound

_MEMORY_SHARE = 0.95  # of the free memory that a case may take: the rest is for the library's workspaces
_MOST_GRAPH_NODES = 4096
KERNEL_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a kernel or its build may raise. Torch's own errors are RuntimeErrors; the rest are slips in a workload, which
cost their case and not the run."""


class CaseRunner:
    """Measures cases on one device; lives as long as the worker process.

    Args:
        device: where to run.
        machine: its facts, for requirements.
        spec: its description with measured ceilings, for bounds.
        settings: limits and criteria.
        progress: told the phase, the running time and the precision reached.
        telemetry: watches the device meanwhile.
        energy: measures joules, or says why not.

    Attributes:
        trace: of the latest case, where something was sampled over time.
    """

    def __init__(
        self,
        device: Device,
        machine: Machine,
        spec: DeviceSpec,
        settings: MeasureSettings,
        *,
        progress: Progress,
        telemetry: Telemetry,
        energy: EnergySensor,
    ) -> None:
        self.device = device
        self.machine = machine
        self.spec = spec
        self.settings = settings
        self._progress = progress
        self._telemetry = telemetry
        self._energy = energy
        self._costs = CostModel()
        self._timer = device.timer()
        self._host_timer = device.host_timer()
        self._overheads: dict[str, float] = {}
        self._variant = ""
        self._builders: list[Builder] = []
        self.trace: Trace | None = None

    def run(self, planned: PlannedCase, *, seed: int, sequence: int = -1) -> Record:
        """Measure one case. Whatever goes wrong inside becomes the record's status and reason.

        Raises:
            DeviceError: (or another error that the device reports as sticky) this process cannot go on.
        """
        case = planned.case
        self.trace, self._variant = None, planned.variant
        begin = time.perf_counter()
        empty = Record(
            case, "ok", self.spec.id, variant=planned.variant, seed=seed, started_at=now_iso(), sequence=sequence
        )
        try:
            entry = get(case.op)
            record = self._measure(empty, entry, get_implementation(case.op, case.impl))
        except UnsupportedError as error:
            record = replace(empty, status="unsupported", reason=Reason(error.code, str(error)))
        except (DeviceError, *KERNEL_ERRORS) as error:
            # Other errors of our own making (a WattlineError) pass through: they are not the kernel's.
            status, reason = classify(error)
            record = replace(empty, status=status, reason=reason)
            if self.device.is_sticky(error):
                raise
        finally:
            while self._builders:
                self._builders.pop().close()
            self.device.release()
        return replace(record, wall_s=time.perf_counter() - begin)

    def _measure(self, record: Record, entry: Entry, implementation: Implementation) -> Record:
        case, workload = record.case, entry.workload
        reason = implementation.unmet(case.params, self.machine)
        if reason is not None:
            return replace(record, status="unsupported", reason=reason)
        if case.regime == "graph" and type(self.device).capture is Device.capture:
            self.device.capture(())  # raises with the reason
        work = workload.work(case.params)
        record = replace(record, work=work)
        footprint = max(1.0, workload.footprint(case.params))
        sets = rotations(footprint, self.device.cache_bytes(), case.regime)
        record = self._bounded(record)
        need, free = footprint * sets, self.device.free_memory()
        if need > _MEMORY_SHARE * free:
            message = f"its buffers take {format_bytes(need)} ({sets} sets), and {format_bytes(free)} are free"
            return replace(record, status="skipped", reason=Reason("too_large", message))

        set_precision(case.dtype or "")

        def one_call(params: Mapping[str, Value]) -> float:
            builder = self._builder(case, record.seed)
            call, timer = prepared(implementation.build(params, builder), None, self._host_timer)
            timer.time([call])  # the first call initialises lazily: it does not count
            # The fastest of three: on a busy machine a single call may wait for a processor a thousand times longer
            # than it computes, and would condemn the case.
            took = min(timer.time([call]) for _ in range(3))
            self._builders.remove(builder)
            builder.close()
            return took

        cost = self._costs.affordable(case, workload, self.settings.max_call_s, one_call)
        if cost is not None:
            message = (
                f"one call would take about {format_time(cost.call_s)} ({cost.basis}); "
                f"the limit is {format_time(self.settings.max_call_s)}"
            )
            return replace(record, status="skipped", reason=Reason("too_slow", message))

        self._progress("build", None, None)
        builder = self._builder(case, record.seed)
        kernels = [implementation.build(case.params, builder) for _ in range(sets)]
        check, first_call_s = self._check(entry, case, kernels[0])
        if check is not None and not check.passed:
            message = f"||out - ref|| / ||ref|| is {check.error:.3g}; {check.tolerance:.3g} is allowed ({check.method})"
            return replace(record, status="failed", reason=Reason("check_failed", message))
        facts: dict[str, Any] = {}
        if workload.tracks_memory and (peak := self.device.peak_bytes(kernels[0].call)) is not None:
            facts["peak_bytes"] = peak
        measured = self._time(case, kernels, check, first_call_s)
        if kernels[0].extra_bytes:
            facts["extra_bytes"] = kernels[0].extra_bytes
        facts = {**kernels[0].facts, **facts, **workload.findings(case.params, kernels, measured.stats)}
        measured = replace(measured, facts=facts)
        self._costs.learn(case, amount(work), measured.stats.min_s)
        flag = bound_flag(measured.stats.median_s, work, limits_of(self.spec), case.regime)
        if flag is not None:
            measured = replace(measured, flags=(*measured.flags, flag))
            return replace(record, status="failed", reason=Reason(flag.code, flag.message), measurement=measured)
        return replace(record, measurement=measured)

    def _builder(self, case: Case, seed: int) -> Builder:
        builder = Builder(self.device.torch_device, self.machine, data=case.data, seed=seed)
        self._builders.append(builder)  # closed when the case is over
        return builder

    def _bounded(self, record: Record) -> Record:
        """With the roofline bound as known by now; readers compute it anew with the run's final ceilings."""
        found = None if record.work is None else case_bound(record.work, self.spec, record.case.regime)
        return record if found is None else replace(record, bound_s=found.time_s, bound_by=found.by)

    def _check(self, entry: Entry, case: Case, kernel: Kernel) -> tuple[Check | None, float]:
        """The first call, into a poisoned output, and how its result compares with the reference."""
        self._progress("check", None, None)
        call = kernel.eager if case.regime == "eager" and kernel.eager is not None else kernel.call
        if kernel.output is not None:
            poison(kernel.output)
        result: list[Any] = []
        if kernel.prepare is not None:
            kernel.prepare()
        first_call_s = self._host_timer.time([lambda: result.append(call())])
        if not self.settings.check:
            return None, first_call_s
        error, tolerance, method = entry.workload.check(case.params, kernel, result[0])
        passed = math.isfinite(error) and error <= tolerance
        return Check(error, tolerance, passed, method), first_call_s

    def _time(self, case: Case, kernels: Sequence[Kernel], check: Check | None, first_call_s: float) -> Measurement:
        """Warm-up and samples in the case's regime."""
        for kernel in kernels[1:]:
            if kernel.output is not None:
                kernel.output.zero_()  # so that the first touch of its pages is not timed
        timer = self._host_timer if case.regime == "eager" else self._timer
        single = case.regime == "eager" and self.device.kind != "cpu"
        most = 1 if single else None  # a caller waits for each result; on a CPU a call has ended when it returns
        calls = []
        for kernel in kernels:
            call, timer = prepared(kernel, kernel.eager if case.regime == "eager" else None, timer)
            calls.append(call)
        ring = Ring(calls)
        self._progress("warm-up", first_call_s, None)
        warm = warm_up(ring, timer, self.settings.warmup_limit_s, most_calls=most)
        per_replay = 1
        if case.regime == "graph":
            ring, per_replay, warm = self._graph(ring, timer, warm)
        phases = Phases()
        with self._telemetry:
            with phases.phase("timing"):
                taken = sample(ring, timer, self.settings, warm.call_s, progress=self._progress, most_calls=most)
            energy, energy_flags = self._joules(ring, timer, taken, per_replay, phases)
        telemetry = self._telemetry.result
        self.trace = make_trace(
            case, telemetry, self._energy, phases, variant=self._variant, device=self.spec.id
        )
        values = tuple(v / per_replay for v in taken.per_call_s)
        stats = summarize(values)
        flags = sample_flags(values, stats, self.settings)
        flags += [*self._launch_flag(taken), *energy_flags]
        return Measurement(
            samples_s=values,
            calls_per_sample=taken.calls_per_sample * per_replay,
            stats=stats,
            stop=taken.stop,
            warmup_calls=warm.calls,
            warmup_s=warm.spent_s,
            warmup_stop=warm.stop,
            first_call_s=first_call_s,
            rotations=len(kernels),
            timer=timer.name,
            timer_overhead_s=self._overhead(timer),
            timed_s=taken.timed_s,
            energy=energy,
            telemetry=telemetry.means,
            flags=(*flags, *telemetry.flags),
            check=check,
        )

    def _joules(
        self, ring: Ring, timer: Timer, taken: Samples, per_replay: int, phases: Phases
    ) -> tuple[Energy | None, list[Flag]]:
        """Energy over one uninterrupted load of the same kernel, right after its samples.

        The samples themselves will not do: between them the device waits for the host, and short kernels are queued
        behind a hold that draws power of its own.
        """
        try:
            window = self._energy.window(self.settings.energy_window_s)
        except SensorError as error:
            return None, [Flag("energy_refused", str(error))]
        if window.total_s <= 0:
            return None, []
        if isinstance(timer, PreparedTimer):
            return None, [Flag("energy_refused", "work that is not timed lies between the calls: no load without gaps")]
        self._progress("energy", taken.per_call_s[-1] / per_replay, None)
        found = energy_of_load(
            self._energy, timer, ring.take, taken.calls_per_sample, window, calls_each=per_replay, phase=phases.phase
        )
        # Where the sensor failed the kernel has run: its time stands. A device that is really lost fails the next case.
        return found.energy, [Flag("energy_refused", str(found.refusal))] if found.refusal else []

    def _graph(self, ring: Ring, timer: Timer, warm: WarmUp) -> tuple[Ring, int, WarmUp]:
        """One captured graph that holds at least one call per buffer set, warmed up again as a replay."""
        nodes = max(len(ring), min(_MOST_GRAPH_NODES, math.ceil(timer.min_batch_s / max(warm.call_s, 1e-9))))
        nodes = math.ceil(nodes / len(ring)) * len(ring)
        # With fewer nodes than buffer sets a replay would visit some sets only: the cache would silently be warm.
        if nodes < len(ring):
            raise AssertionError(f"a graph of {nodes} calls does not visit all {len(ring)} buffer sets")
        replay = Ring([self.device.capture(ring.take(nodes))])
        again = warm_up(replay, timer, self.settings.warmup_limit_s)
        total = WarmUp(
            warm.calls + again.calls * nodes, warm.spent_s + again.spent_s, again.stop, again.call_s
        )
        return replay, nodes, total

    def _overhead(self, timer: Timer) -> float:
        if timer.name not in self._overheads:
            self._overheads[timer.name] = timer.overhead_s()
        return self._overheads[timer.name]

    @staticmethod
    def _launch_flag(taken: Samples) -> list[Flag]:
        if taken.launch_bound <= 0.5:
            return []
        message = f"in {taken.launch_bound:.0%} of the samples the host enqueued slower than the device ran"
        return [Flag("launch_bound", message)]


def poison(output: Any) -> None:
    """Fill a result with what no correct kernel leaves: NaN, or the smallest value of an integer format."""
    import torch

    if output.dtype.is_floating_point:
        output.fill_(math.nan)
    else:
        output.fill_(torch.iinfo(output.dtype).min)


def classify(error: BaseException) -> tuple[str, Reason]:
    """Status and reason for an error that a kernel or its build raised."""
    import torch

    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    lowered = str(error).lower()
    memory_words = (
        "can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "status_alloc_failed"
    )  # fmt: skip
    # The second and third are torch's and cuBLAS's ways to say it, the last that of a build for other devices.
    missing_words = (
        "not implemented for", "not supported", "is only supported", "status_not_supported", "no kernel image"
    )  # fmt: skip
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in lowered for w in memory_words):
        return "out_of_memory", Reason("out_of_memory", text)
    if isinstance(error, DeviceError):
        return "failed", Reason("device_error", str(error))
    if isinstance(error, NotImplementedError) or any(w in lowered for w in missing_words):
        return "unsupported", Reason("not_implemented", f"torch has no such kernel here: {text}")
    return "failed", Reason("kernel_error", f"{text}{_where(error)}")


def sticky_record(error: BaseException, planned: PlannedCase, device_id: str, *, seed: int, sequence: int) -> Record:
    """The record of a case after whose error its process cannot go on."""
    status, reason = classify(error)
    return Record(
        planned.case, status, device_id, reason=reason, variant=planned.variant, seed=seed, started_at=now_iso(),
        sequence=sequence,
    )  # fmt: skip


def _where(error: BaseException) -> str:
    """The line that raised, for errors of Python itself: their messages alone say nothing."""
    if not isinstance(error, ArithmeticError | LookupError | TypeError | AttributeError | AssertionError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
