"""The simulated driver, seen through the real pynvml: every call that measuring needs, and its faults."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
import time

import pytest
from wattline_sim.nvml_library import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    HW_THERMAL,
    NO_PERMISSION,
    NOT_SUPPORTED,
    PARTS,
    POLICY_POWER,
    POLICY_THERMAL,
    SW_POWER_CAP,
    SW_THERMAL,
)

from wattline.collectors.energy.nvml_probe import probe_nvml


@pytest.fixture
def driver(simulated_gpus):
    """A driver, a pynvml bound to it and opened, and the handle of its first GPU."""

    def make(*arguments, **fields):
        gpus = simulated_gpus(*arguments, **fields)
        nvml = gpus.binding()
        nvml.nvmlInit()
        return gpus, nvml, nvml.nvmlDeviceGetHandleByIndex(0)

    return make


def _until(condition, seconds: float = 20.0) -> bool:
    """Waits for what follows wall time; the machine may be busy with other things."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_another_process_finds_it_by_the_name_of_the_library(simulated_gpus) -> None:
    gpus = simulated_gpus("h100", count=8)
    code = (
        "import json, pynvml as n; n.nvmlInit();"
        "h = [n.nvmlDeviceGetHandleByIndex(k) for k in range(n.nvmlDeviceGetCount())];"
        "print(json.dumps([n.nvmlSystemGetDriverVersion(), [n.nvmlDeviceGetUUID(x) for x in h],"
        " n.nvmlDeviceGetTotalEnergyConsumption(h[7]), n.nvmlDeviceGetPciInfo(h[2]).busId,"
        " n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(h[5])))]))"
    )
    done = gpus.python(code)
    assert done.returncode == 0, done.stderr
    driver, uuids, energy, bus, index = json.loads(done.stdout)
    assert driver == "570.86.15"
    assert uuids == [gpu.uuid for gpu in gpus.devices]
    assert len(set(uuids)) == 8
    assert energy > 123456789
    assert (bus, index) == ("00000000:12:00.0", 5)


def test_our_own_probe_reads_it_in_a_process_of_its_own(simulated_gpus) -> None:
    gpus = simulated_gpus("h200", count=2)
    code = (
        "from wattline.collectors.energy.nvml_probe import probe_nvml; s = probe_nvml();"
        "print(s.code, s.gpus[1].name, s.gpus[1].memory_bytes, s.gpus[1].power_limit_w)"
    )
    assert gpus.python(code).stdout.split("\n")[0] == f"ready NVIDIA H200 {141 << 30} 700.0"
    gpus.fail("nvmlInit", DRIVER_NOT_LOADED)
    assert probe_nvml(gpus.binding()).code == "no_driver"


@pytest.mark.parametrize("part", PARTS)
def test_names_and_figures_of_every_part(driver, part) -> None:
    _, nvml, handle = driver(part)
    options, missing = PARTS[part]
    assert nvml.nvmlDeviceGetName(handle) == options["name"].decode()
    assert nvml.nvmlDeviceGetArchitecture(handle) == options["architecture"]
    assert nvml.nvmlDeviceGetCudaComputeCapability(handle) == (options["major"], options.get("minor", 0))
    assert nvml.nvmlDeviceGetVbiosVersion(handle) == "96.00.74.00.1A"
    low, high = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    assert low < nvml.nvmlDeviceGetPowerManagementLimit(handle) == nvml.nvmlDeviceGetEnforcedPowerLimit(handle) <= high
    assert nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == high
    memory, memory2 = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    assert memory.total == memory2.total == memory.used + memory.free
    assert memory2.used == 1 << 30
    assert nvml.nvmlDeviceGetPowerUsage(handle) == 80_000
    if "nvmlDeviceGetTotalEnergyConsumption" in missing:
        with pytest.raises(nvml.NVMLError_NotSupported):
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    else:
        assert nvml.nvmlDeviceGetTotalEnergyConsumption(handle) >= 123456789
    codes = [v.nvmlReturn for v in nvml.nvmlDeviceGetFieldValues(handle, [83, 185, 186])]
    assert codes == [missing.get(f"field:{k}", 0) for k in (83, 185, 186)]


def test_power_windows_are_those_of_the_part(driver) -> None:
    gpus, nvml, handle = driver("h100")
    start = time.perf_counter() - 0.06
    # A step in the past: the instant field, 25 ms, holds nothing of idle; the 1-s average nearly only idle.
    gpus[0].step(start, 500.0)
    assert _until(lambda: nvml.nvmlDeviceGetFieldValues(handle, [186])[0].value.uiVal == 500_000)
    average = nvml.nvmlDeviceGetFieldValues(handle, [185])[0].value.uiVal
    assert time.perf_counter() - start > 0.9 or 80_000 < average < 500_000
    assert _until(lambda: nvml.nvmlDeviceGetPowerUsage(handle) == 500_000)
    assert time.perf_counter() - start >= 1.0  # not before the whole window is past


def test_counter_counts_the_truth_and_is_held_for_its_period(driver) -> None:
    gpus, nvml, handle = driver("h100", counter_period_s=0.02, counter_gain=1.02, counter_start_j=0.0)
    gpu = gpus[0]
    gpu.load(on=True)

    def change() -> tuple[float, float]:
        first = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        while (value := nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) == first:
            pass
        return time.perf_counter(), value * 1e-3

    t0, e0 = change()
    time.sleep(0.4)
    t1, e1 = change()
    # A poll sees a change late, so the time between is known to a period.
    assert e1 - e0 == pytest.approx(1.02 * 500 * round((t1 - t0) / 0.02) * 0.02, rel=0.06)
    assert gpu.energy(t0, t1) == pytest.approx(500 * (t1 - t0))
    field = nvml.nvmlDeviceGetFieldValues(handle, [83])[0]
    assert field.value.ullVal * 1e-3 >= e1


def test_counter_resets_stalls_and_wraps(driver) -> None:
    gpus, nvml, handle = driver("v100")
    gpu = gpus[0]
    gpu.reset_counter()
    assert _until(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) < 50_000)
    gpu.stall_counter()
    held = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    time.sleep(0.08)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(handle) == held
    gpu.state.stall_until_s = 0.0
    assert _until(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) > held)
    gpu.state.counter_wrap_j = 1e-3
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 0


def test_sample_buffer_has_driver_times_and_only_newer_ones(driver) -> None:
    _, nvml, handle = driver("h100", noise_w=2.0)
    kind, samples = nvml.nvmlDeviceGetSamples(handle, nvml.NVML_TOTAL_POWER_SAMPLES, 0)
    assert kind == nvml.NVML_VALUE_TYPE_UNSIGNED_INT
    assert len(samples) == 120
    times = [s.timeStamp for s in samples]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert all(abs(gap - 100_000) < 100 for gap in gaps)
    assert abs(times[-1] * 1e-6 - time.time()) < 5
    watts = [s.sampleValue.uiVal * 1e-3 for s in samples]
    assert sum(watts) / len(watts) == pytest.approx(80, abs=1.0)
    assert 1.0 < max(watts) - min(watts) < 20
    assert len(nvml.nvmlDeviceGetSamples(handle, 0, times[-4])[1]) in range(3, 60)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetSamples(handle, 0, times[-1] + 3_600_000_000)


def test_gain_offset_noise_and_module_scope(driver) -> None:
    gpus, nvml, handle = driver("gh200")
    state = gpus[0].state
    state.gain, state.offset_w = 1.05, 2.0
    instant, module = nvml.nvmlDeviceGetFieldValues(handle, [186, (186, nvml.NVML_POWER_SCOPE_MODULE)])
    assert instant.value.uiVal == pytest.approx(1.05 * 80_000 + 2000)
    assert module.value.uiVal == pytest.approx(1.05 * 200_000 + 2000)
    _, nvml, handle = driver("h100")
    assert nvml.nvmlDeviceGetFieldValues(handle, [(186, 1)])[0].nvmlReturn == NOT_SUPPORTED


def test_a_limit_lowers_power_clock_and_raises_the_reason(driver) -> None:
    gpus, nvml, handle = driver("h100", may_set=1)
    gpu = gpus[0]
    gpu.load(on=True)
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 1980
    assert nvml.nvmlDeviceGetViolationStatus(handle, POLICY_POWER).violationTime == 0
    nvml.nvmlDeviceSetPowerManagementLimit(handle, 300_000)
    assert gpu.power() == 300
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == round(1980 * (220 / 420) ** 0.5)
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & SW_POWER_CAP
    first = nvml.nvmlDeviceGetViolationStatus(handle, POLICY_POWER).violationTime
    time.sleep(0.01)
    assert nvml.nvmlDeviceGetViolationStatus(handle, POLICY_POWER).violationTime - first >= 9_000_000
    nvml.nvmlDeviceSetPowerManagementLimit(handle, 700_000)
    assert gpu.power() == 500
    assert not nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & SW_POWER_CAP
    stopped = nvml.nvmlDeviceGetViolationStatus(handle, POLICY_POWER).violationTime
    assert nvml.nvmlDeviceGetViolationStatus(handle, POLICY_POWER).violationTime == stopped > 0
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceSetPowerManagementLimit(handle, 900_000)


def test_locked_clocks_lower_the_dynamic_power_with_their_square(driver) -> None:
    gpus, nvml, handle = driver("h100", may_set=1)
    gpus[0].load(on=True)
    clocks = nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, nvml.nvmlDeviceGetSupportedMemoryClocks(handle)[0])
    assert clocks[0] == 1980
    assert 990 in clocks
    nvml.nvmlDeviceSetGpuLockedClocks(handle, 990, 990)
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) == 990
    assert gpus[0].power() == pytest.approx(80 + 420 / 4)
    nvml.nvmlDeviceResetGpuLockedClocks(handle)
    assert gpus[0].power() == 500


def test_without_permission_nothing_is_set(driver) -> None:
    gpus, nvml, handle = driver("h100")
    for call in (
        lambda: nvml.nvmlDeviceSetPowerManagementLimit(handle, 300_000),
        lambda: nvml.nvmlDeviceSetGpuLockedClocks(handle, 990, 990),
        lambda: nvml.nvmlDeviceResetGpuLockedClocks(handle),
    ):
        with pytest.raises(nvml.NVMLError_NoPermission):
            call()
    assert (gpus[0].state.limit_mw, gpus[0].state.locked_high_mhz) == (700_000, 0)


def test_telemetry(driver) -> None:
    gpus, nvml, handle = driver("h100")
    gpu = gpus[0]
    gpu.state.temperature_c = 71
    assert nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU) == 71
    assert nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU) == 71
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == nvml.nvmlClocksEventReasonGpuIdle
    assert nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) == 2619
    with gpu.load():
        assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 100
        assert nvml.nvmlDeviceGetPerformanceState(handle) == 0
        gpu.throttle(SW_THERMAL | HW_THERMAL, POLICY_THERMAL)
        reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        assert reasons == nvml.nvmlClocksEventReasonSwThermalSlowdown | nvml.nvmlClocksEventReasonHwThermalSlowdown
        assert _until(lambda: nvml.nvmlDeviceGetViolationStatus(handle, POLICY_THERMAL).violationTime > 0)
        gpu.unthrottle(SW_THERMAL | HW_THERMAL, POLICY_THERMAL)
        assert nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 0
    rx = nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES)
    assert (nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_TX_BYTES), rx) == (1200, 3400)
    assert nvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
    gpu.processes({4711: 1 << 20, 4712: 2 << 20})
    found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert [(p.pid, p.usedGpuMemory) for p in found] == [(4711, 1 << 20), (4712, 2 << 20)]


def test_mig_is_said_and_its_slices_have_no_power(driver) -> None:
    _, nvml, handle = driver("h100", mig=1, mig_slices=2)
    assert nvml.nvmlDeviceGetMigMode(handle) == [1, 1]
    slices = [nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, k) for k in range(2)]
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 2)
    assert nvml.nvmlDeviceGetUUID(slices[1]).startswith("MIG-")
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetTotalEnergyConsumption(slices[0])
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetUtilizationRates(handle)
    parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slices[0])
    assert nvml.nvmlDeviceGetPowerUsage(parent) == 80_000
    _, nvml, handle = driver("v100")
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetMigMode(handle)


def test_a_lost_gpu_says_so_and_its_neighbour_goes_on(driver) -> None:
    gpus, nvml, handle = driver("h100", count=2)
    other = nvml.nvmlDeviceGetHandleByIndex(1)
    assert nvml.nvmlDeviceGetPowerUsage(handle) == 80_000
    gpus[0].lose(at_s=time.perf_counter() + 0.05)
    assert _until(lambda: _raises(nvml.NVMLError_GpuIsLost, nvml.nvmlDeviceGetPowerUsage, handle))
    for call in (nvml.nvmlDeviceGetTotalEnergyConsumption, nvml.nvmlDeviceGetName):
        with pytest.raises(nvml.NVMLError_GpuIsLost):
            call(handle)
    with pytest.raises(nvml.NVMLError_GpuIsLost):
        nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetPowerUsage(other) == 80_000


def _raises(kind, call, *arguments) -> bool:
    try:
        call(*arguments)
    except kind:
        return True
    return False


def test_functions_fail_as_asked_and_heal(driver) -> None:
    gpus, nvml, handle = driver("h100", count=2)
    gpus.fail("nvmlDeviceGetPowerUsage", NO_PERMISSION, device=0)
    gpus.fail("nvmlDeviceGetComputeRunningProcesses", FUNCTION_NOT_FOUND)  # its _v3 is meant too
    gpus.fail("field:186", NOT_SUPPORTED)
    with pytest.raises(nvml.NVMLError_NoPermission):
        nvml.nvmlDeviceGetPowerUsage(handle)
    assert nvml.nvmlDeviceGetPowerUsage(nvml.nvmlDeviceGetHandleByIndex(1)) == 80_000
    # The binding turns a missing versioned function into an error of its own, which is no NVMLError.
    with pytest.raises(nvml.NVMLLibraryMismatchError):
        nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert not issubclass(nvml.NVMLLibraryMismatchError, nvml.NVMLError)
    assert [v.nvmlReturn for v in nvml.nvmlDeviceGetFieldValues(handle, [186, 185])] == [NOT_SUPPORTED, 0]
    gpus.heal()
    assert nvml.nvmlDeviceGetPowerUsage(handle) == 80_000


def test_before_init_after_shutdown_and_wrong_handles(driver) -> None:
    gpus, nvml, handle = driver("h100")
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(1)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-none")
    nvml.nvmlShutdown()
    with pytest.raises(nvml.NVMLError_Uninitialized) as caught:
        nvml.nvmlDeviceGetPowerUsage(handle)
    assert str(caught.value) == "Uninitialized"
    assert nvml.nvmlErrorString(3).startswith("The requested operation is not available")
    assert ctypes.sizeof(gpus.state) < 8 << 20


def test_install_replaces_pynvml_for_one_test_only(simulated_gpus, monkeypatch) -> None:
    gpus = simulated_gpus("a100")
    with monkeypatch.context() as patch:
        assert gpus.install(patch) is sys.modules["pynvml"]
        assert probe_nvml().gpus[0].name == "NVIDIA A100-SXM4-80GB"
    assert not [g for g in probe_nvml().gpus if "A100-SXM4" in g.name]


def test_power_follows_the_processor_time_of_a_process(simulated_gpus) -> None:
    gpus = simulated_gpus("h100")
    busy = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.readline()\nwhile True: pass"],
                            stdin=subprocess.PIPE)  # fmt: skip
    try:
        gpus.follow(lambda: [busy.pid])
        assert busy.stdin is not None
        busy.stdin.write(b"\n")
        busy.stdin.flush()
        assert _until(lambda: gpus[0].power() == 500.0)
    finally:
        busy.kill()
        busy.wait()
    assert _until(lambda: gpus[0].power() == 80.0)


def test_calls_are_counted_across_processes_and_may_be_slow(simulated_gpus) -> None:
    gpus = simulated_gpus("h100")
    gpus.state.read_delay_s = 0.002
    before = gpus[0].state.calls
    code = (
        "import time, pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0); t = time.perf_counter();"
        "[n.nvmlDeviceGetPowerUsage(h) for _ in range(10)]; print(time.perf_counter() - t)"
    )
    done = gpus.python(code)
    assert float(done.stdout) >= 0.02
    assert gpus[0].state.calls - before == 10
    assert os.path.exists(gpus.shared_object)
