"""One case from start to record, in this process: real kernels on the CPU, and a stand-in for an accelerator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from wattline.case import Case
from wattline.collectors.device import CpuDevice
from wattline.collectors.energy import EnergySensor, EnergyWindow, NoEnergySensor
from wattline.collectors.telemetry import NullTelemetry
from wattline.collectors.timers import Call, HostTimer, Timer
from wattline.device import Ceilings, DeviceSpec
from wattline.errors import DeviceError, SensorError
from wattline.record import Energy, Reason, Record
from wattline.run import PlannedCase
from wattline.suites.measure.case import CaseRunner, classify, poison
from wattline.suites.registry import get
from wattline.suites.settings import MeasureSettings
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")

QUICK = MeasureSettings(min_time_s=0.02, time_limit_s=0.05, warmup_limit_s=0.02, min_samples=3, max_call_s=0.5)
SPEC = DeviceSpec(id="here", kind="cpu").with_measured(Ceilings({"fp32": 1e15, "int8": 1e15}, 1e15, 1e-6))


class QueueTimer(HostTimer):
    """Stands in for device events: names itself so, and says that the queue ran empty."""

    name = "device events"
    launch_bound = True


class Accelerator(CpuDevice):
    """An accelerator played by the CPU: graphs, events, synchronisation, all of it counted."""

    kind = "cuda"

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[int] = []
        self.synchronized = 0
        self.released = 0

    def timer(self) -> Timer:
        return QueueTimer()

    def host_timer(self) -> Timer:
        return HostTimer(self.synchronize)

    def synchronize(self) -> None:
        self.synchronized += 1

    def cache_bytes(self) -> int:
        return 64 * 1024

    def capture(self, calls: Sequence[Call]) -> Call:
        kept = list(calls)
        self.graphs.append(len(kept))

        def replay() -> None:
            for call in kept:
                call()

        return replay

    def release(self) -> None:
        self.released += 1


def runner(
    device: CpuDevice | None = None,
    *,
    settings: MeasureSettings = QUICK,
    spec: DeviceSpec = SPEC,
    told: Callable[..., None] = lambda *_: None,
    machine: Machine | None = None,
    energy: EnergySensor | None = None,
) -> CaseRunner:
    return CaseRunner(
        device or CpuDevice(),
        machine or Machine(kind="cpu", torch_version=(2, 13)),
        spec,
        settings,
        progress=told,
        telemetry=NullTelemetry("a test"),
        energy=energy or NoEnergySensor(Reason("none", "a test")),
    )


def case(regime: str = "hot", data: str = "uniform", **given: Any) -> Case:
    params = get("gemm.dense").workload.params.parse({"m": 32, "n": 32, "k": 32, "dtype": "fp32", **given})
    return Case("gemm.dense", "torch", params, regime, data)


def measure(which: Case, device: CpuDevice | None = None, **options: Any) -> Record:
    return runner(device, **options).run(PlannedCase(which), seed=7)


@pytest.mark.parametrize("regime", ["hot", "eager"])
def test_a_small_product_is_measured_and_checked(regime: str) -> None:
    record = measure(case(regime))
    assert record.status == "ok", record.reason
    assert record.valid
    m = record.measurement
    assert m is not None
    assert m.check is not None
    assert m.check.passed
    assert m.rotations == 1
    assert m.timer == "perf_counter_ns"
    assert m.stats.n == len(m.samples_s) >= 3
    assert m.stats.lo_s <= m.stats.median_s <= m.stats.hi_s
    assert m.timed_s == pytest.approx(sum(m.samples_s) * m.calls_per_sample)
    assert record.work is not None
    assert record.work.total_flops == 2 * 32**3
    assert m.energy is None


def test_cold_rotates_through_twice_the_cache() -> None:
    device = Accelerator()
    record = measure(case("cold"), device)
    assert record.measurement is not None
    # 3 * 32 * 32 * 4 bytes a set; twice the 64 KiB cache takes 11 of them.
    assert record.measurement.rotations == math.ceil(2 * 64 * 1024 / (3 * 32 * 32 * 4))


def test_a_graph_visits_every_buffer_set_and_times_are_per_call() -> None:
    device = Accelerator()
    record = measure(case("graph"), device)
    assert record.status == "ok", record.reason
    m = record.measurement
    assert m is not None
    assert device.graphs[0] % m.rotations == 0
    assert device.graphs[0] >= m.rotations
    assert m.calls_per_sample % device.graphs[0] == 0
    # Times are per call, not per replay.
    assert m.timed_s == pytest.approx(sum(m.samples_s) * m.calls_per_sample)


def test_eager_on_an_accelerator_waits_for_every_call() -> None:
    device = Accelerator()
    record = measure(case("eager"), device)
    assert record.measurement is not None
    assert record.measurement.calls_per_sample == 1
    assert device.synchronized >= 2 * record.measurement.stats.n


def test_a_starved_queue_is_flagged() -> None:
    record = measure(case("hot"), Accelerator())
    assert "launch_bound" in record.flags
    assert record.valid  # a reservation, not an error


def test_no_graphs_on_a_cpu() -> None:
    record = measure(case("graph"))
    assert record.status == "unsupported"
    assert record.reason is not None
    assert record.reason.code == "no_graphs"


def test_an_unmet_requirement_is_the_reason() -> None:
    record = measure(case(dtype="tf32"))
    assert record.status == "unsupported"
    assert record.reason is not None
    assert record.reason.code == "no_cuda"


def test_a_case_larger_than_the_free_memory_is_skipped_with_the_figure() -> None:
    record = measure(case(m=2**24, n=2**14, k=2**14))
    assert record.status == "skipped"
    assert record.reason is not None
    assert record.reason.code == "too_large"
    assert "TB" in record.reason.message


def test_a_case_too_slow_is_skipped_with_an_estimate() -> None:
    settings = MeasureSettings(min_time_s=0.02, time_limit_s=0.05, max_call_s=1e-6)
    record = measure(case(m=4096, n=4096, k=4096), settings=settings)
    assert record.status == "skipped"
    assert record.reason is not None
    assert record.reason.code == "too_slow"
    assert "limit is 1.00 us" in record.reason.message


def test_the_bound_comes_from_the_device_and_main_memory_counts_when_cold_only() -> None:
    slow_memory = DeviceSpec(id="x", kind="cpu", l2_bytes=64 * 1024).with_measured(Ceilings({"fp32": 1e9}, 1e6, None))
    bytes_moved = 3 * 32 * 32 * 4
    cold = measure(case("cold"), Accelerator(), spec=slow_memory)
    assert (cold.bound_s, cold.bound_by) == (pytest.approx(bytes_moved / 1e6), "memory")
    hot = measure(case("hot"), Accelerator(), spec=slow_memory)
    assert (hot.bound_s, hot.bound_by) == (pytest.approx(2 * 32**3 / 1e9), "compute")


def test_no_rate_no_bound() -> None:
    record = measure(case(dtype="fp64"), spec=DeviceSpec(id="x", kind="cpu"))
    assert record.status == "ok"
    assert record.bound_s is None


def test_faster_than_a_datasheet_allows_fails_loudly() -> None:
    listed = DeviceSpec(id="x", kind="cpu", peak_flops={"fp32": 1.0})
    record = measure(case(), spec=listed)
    assert record.status == "failed"
    assert record.reason is not None
    assert record.reason.code == "above_bound"
    assert record.measurement is not None
    assert not record.valid


def test_phases_are_told_in_order() -> None:
    told: list[str] = []
    measure(case(), told=lambda phase, *_: told.append(phase))
    assert [p for i, p in enumerate(told) if p not in told[:i]][:3] == ["build", "check", "warm-up"]


def test_the_check_can_be_turned_off() -> None:
    settings = MeasureSettings(min_time_s=0.02, time_limit_s=0.05, check=False)
    record = measure(case(), settings=settings)
    assert record.status == "ok"
    assert record.measurement is not None
    assert record.measurement.check is None


class CountingSensor(EnergySensor):
    """A sensor that wants a load of 60 ms, and draws 100 W."""

    name, scope, source = "counting", "gpu", "a test"

    def __init__(self, *, refuse: bool = False) -> None:
        self.refuse = refuse
        self.loads: list[tuple[int, float]] = []

    def window(self, requested_s: float | None = None) -> EnergyWindow:
        if self.refuse:
            raise SensorError("the window is shorter than two periods")
        return EnergyWindow(lead_in_s=0.02, measured_s=requested_s or 0.04)

    def _begin(self) -> None:
        pass

    def _end(self, calls: int, device_time_s: float) -> Energy:
        self.loads.append((calls, device_time_s))
        joules = 100.0 * device_time_s / calls
        return Energy(100.0, joules, 0.95 * joules, 1.05 * joules, self.source, self.scope)


@pytest.mark.parametrize("regime", ["hot", "cold", "graph", "eager"])
@pytest.mark.parametrize("device", [CpuDevice, Accelerator])
def test_energy_is_taken_over_an_uninterrupted_load_of_the_same_kernel(
    regime: str, device: type[CpuDevice]
) -> None:
    if regime == "graph" and device is CpuDevice:
        pytest.skip("no graphs on a CPU")
    sensor = CountingSensor()
    measured = measure(case(regime), device(), energy=sensor).measurement
    assert measured is not None
    assert measured.energy is not None
    (calls, device_time_s), = sensor.loads
    assert device_time_s >= 0.04
    assert calls % measured.calls_per_sample == 0
    assert measured.energy.energy_j == pytest.approx(100.0 * device_time_s / calls)


def test_the_window_can_be_asked_for() -> None:
    sensor = CountingSensor()
    settings = MeasureSettings(min_time_s=0.02, time_limit_s=0.05, energy_window_s=0.1)
    measure(case(), energy=sensor, settings=settings)
    assert sensor.loads[0][1] >= 0.1


def test_a_refusing_sensor_costs_the_joules_and_not_the_time() -> None:
    record = measure(case(), energy=CountingSensor(refuse=True))
    assert record.status == "ok"
    assert record.valid
    assert record.measurement is not None
    assert record.measurement.energy is None
    assert "energy_refused" in record.flags


def test_memory_is_given_back_after_every_case() -> None:
    device = Accelerator()
    measure(case(), device)
    measure(case(dtype="tf32"), device)
    assert device.released == 2


def test_one_runner_goes_on_after_a_failure() -> None:
    one = runner()
    without_m = {name: value for name, value in case().params.items() if name != "m"}
    record = one.run(PlannedCase(Case("gemm.dense", "torch", without_m, "hot")), seed=0)
    assert record.status == "failed"
    assert record.reason is not None
    assert "KeyError" in record.reason.message
    assert one.run(PlannedCase(case()), seed=0).status == "ok"


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64", "float8_e4m3fn", "int8", "int32"])
def test_poison_is_what_no_product_leaves(name: str) -> None:
    tensor = torch.zeros(3, dtype=getattr(torch, name))
    poison(tensor)
    values = tensor.to(torch.float64)
    if tensor.dtype.is_floating_point:
        assert torch.isnan(values).all()
    else:
        assert (values == torch.iinfo(tensor.dtype).min).all()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MemoryError(), "out_of_memory", "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), "out_of_memory", ""),
        (RuntimeError('"addmm_impl_cpu_" not implemented for \'Float8_e4m3fn\''), "unsupported", "not_implemented"),
        (NotImplementedError("no"), "unsupported", "not_implemented"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"), "unsupported",
         "not_implemented"),
        (RuntimeError("Float8_e4m3fn is only supported for ROCm 6.5 and above"), "unsupported", "not_implemented"),
        (RuntimeError("CUDA error: no kernel image is available for execution"), "unsupported", "not_implemented"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "out_of_memory", ""),
        (RuntimeError("CUDA error: an illegal memory access"), "failed", "kernel_error"),
        (DeviceError("gone", sticky=True), "failed", "device_error"),
        (ValueError(), "failed", "kernel_error"),
    ],
)
def test_errors_become_statuses(error: Exception, status: str, code: str) -> None:
    found, reason = classify(error)
    assert found == status
    assert reason.code == (code or status)
    assert reason.message


def test_an_error_of_python_itself_names_its_line() -> None:
    def halved(by: int) -> float:
        return 1 / by

    with pytest.raises(ZeroDivisionError) as caught:
        halved(0)
    _, reason = classify(caught.value)
    assert reason.message.startswith("ZeroDivisionError: division by zero (test_measure_case.py, line ")
    assert reason.message.endswith(", in halved)")


@pytest.fixture
def consuming() -> Iterator[list[str]]:
    """An operation whose calls use something up, with what happened to it, in order."""
    from wattline.params import Int, Params
    from wattline.suites import registry
    from wattline.suites.workload import BuildContext, Kernel, Workload
    from wattline.work import Work

    happened: list[str] = []

    class Consuming(Workload):
        """Uses up what is prepared for it."""

        params = Params(broken=Int(0, lo=0))

        def work(self, p: Any) -> Work:
            return Work(bytes_read={"storage": 8.0})

        def build(self, p: Any, ctx: BuildContext) -> Kernel:
            happened.append("build")
            ctx.defer(lambda: happened.append("first deferred"))
            ctx.defer(lambda: happened.append("last deferred"))
            if p["broken"]:
                raise RuntimeError("broken")

            def call() -> Any:
                assert happened[-1] == "prepare"
                happened.append("call")
                time.sleep(0.001)
                return torch.ones(1)

            return Kernel(call, {}, extra_bytes=24, prepare=lambda: happened.append("prepare"))

        def check(self, p: Any, kernel: Kernel, result: Any) -> tuple[float, float, str]:
            return 0.0, 0.0, "full"

        def findings(self, p: Any, kernels: Sequence[Kernel], stats: Any) -> dict[str, Any]:
            return {"bytes_per_s": 8 / stats.median_s, "kernels": len(kernels)}

    registry.entries()
    registry.workload("tests.consuming")(Consuming)
    yield happened
    registry._entries.pop("tests.consuming")
    registry._members.pop("tests")


def test_what_a_call_uses_up_is_prepared_before_each_and_put_away_at_the_end(consuming: list[str]) -> None:
    record = measure(Case("tests.consuming", "torch", {"broken": 0}, "eager"))
    assert record.status == "ok", record.reason
    assert record.measurement is not None
    assert consuming[0] == "build"
    assert consuming[-2:] == ["last deferred", "first deferred"]
    calls = consuming[1:-2]
    assert calls == ["prepare", "call"] * (len(calls) // 2)
    assert record.measurement.facts["bytes_per_s"] == pytest.approx(8 / record.measurement.stats.median_s)
    assert record.measurement.facts["kernels"] == 1
    assert record.measurement.facts["extra_bytes"] == 24


def test_no_case_inherits_the_precision_of_another() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    params = {"rows": 8, "cols": 8, "dtype": "fp32"}
    assert measure(Case("softmax.rows", "torch", params, "eager")).status == "ok"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_build_that_fails_is_tidied_up_as_well(consuming: list[str]) -> None:
    record = measure(Case("tests.consuming", "torch", {"broken": 1}, "cold"))
    assert record.status == "failed"
    assert consuming == ["build", "last deferred", "first deferred"]


def test_no_joules_where_calls_cannot_follow_without_gaps(consuming: list[str]) -> None:
    sensor = CountingSensor()
    record = measure(Case("tests.consuming", "torch", {"broken": 0}, "eager"), energy=sensor)
    assert record.measurement is not None
    assert record.measurement.energy is None
    assert record.flags.count("energy_refused") == 1
    assert sensor.loads == []


def test_preparation_is_not_timed() -> None:
    from wattline.suites.measure.prepared import Prepared, PreparedTimer

    done: list[int] = []
    spent = PreparedTimer(HostTimer()).time([Prepared(lambda: done.append(1), lambda: time.sleep(0.01))] * 3)
    assert done == [1, 1, 1]
    assert spent < 0.01  # the 30 ms of preparation are not in it
