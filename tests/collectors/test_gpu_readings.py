"""What telemetry reads of a GPU: the real NVML binding on a simulated driver, which lacks, refuses and loses things."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wattline.collectors.gpu_readings import GpuReader
from wattline.collectors.gpu_telemetry import AcceleratorTelemetry, GpuTelemetry
from wattline.collectors.nvml_device import open_gpu, uuids_of, visible_index
from wattline.collectors.telemetry import HostTelemetry, telemetry_for
from wattline.errors import SensorError
from wattline.trace import Trace, read_trace

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, TIMEOUT, FUNCTION_NOT_FOUND, UNKNOWN = 3, 4, 9, 10, 13, 999


def test_visible_devices() -> None:
    assert visible_index(1, {"CUDA_VISIBLE_DEVICES": "3,5"}) == 5
    assert visible_index(2, {"CUDA_VISIBLE_DEVICES": "3,5"}) == 2
    assert visible_index(1, {}) == 1
    assert visible_index(0, {"CUDA_VISIBLE_DEVICES": "GPU-abc"}) == 0


def test_uuids_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert uuids_of(1, {"CUDA_VISIBLE_DEVICES": "GPU-abc, MIG-def"}) == ["MIG-def"]
    assert uuids_of(0, {"CUDA_VISIBLE_DEVICES": "2"}) == []
    assert uuids_of(0, {}) == []


def read(gpus: Any, index: int = 0, seconds: float = 0.12, **options: Any) -> Any:
    telemetry = GpuTelemetry.open(index, uuid=gpus[index].uuid, binding=gpus.binding())
    telemetry._period_s = options.get("period_s", 0.02)
    with telemetry:
        time.sleep(seconds)
    telemetry.close()
    telemetry.close()
    return telemetry.result


def test_every_column_is_the_simulated_gpus(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h200", count=2, temperature_c=61, utilisation=97, memory_utilisation=33)
    gpus[1].processes({os.getpid(): 1 << 30})
    result = read(gpus, 1)
    means = result.means
    assert means["gpu_memory_clock_hz"] == 2.619e9
    assert means["gpu_sm_clock_hz"] == means["gpu_sm_clock_min_hz"] > 3e8
    assert (means["gpu_temperature_c"], means["gpu_temperature_max_c"]) == (61.0, 61.0)
    assert (means["gpu_utilization"], means["gpu_memory_utilization"]) == pytest.approx((0.97, 0.33))
    assert means["gpu_power_limit_w"] == 700.0
    assert means["gpu_power_instant_w"] == pytest.approx(80.0, rel=0.05)
    assert "gpu_power_usage_w" not in means
    assert means["gpu_throttle_idle_share"] == 1.0
    assert means["gpu_violation_power_s"] == means["gpu_violation_thermal_s"] == 0.0
    assert means["gpu_foreign_processes"] == 0.0
    assert result.flags == ()
    assert {"gpu_power_instant_w", "gpu_sm_clock_hz", "gpu_temperature_c"} <= result.series.keys()


def test_what_a_part_lacks_is_missing_with_a_reason_and_never_zero(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("v100")  # has no instant power field
    for function in ("UtilizationRates", "ViolationStatus", "EnforcedPowerLimit"):
        gpus.fail(f"nvmlDeviceGet{function}", NOT_SUPPORTED)
    gpus.fail("nvmlDeviceGetComputeRunningProcesses_v3", NO_PERMISSION)
    gpus.fail("field:74", NOT_SUPPORTED)
    result = read(gpus)
    for column in ("gpu_utilization", "gpu_memory_utilization", "gpu_violation_power_s", "gpu_power_limit_w",
                   "gpu_power_instant_w", "gpu_memory_temperature_c"):  # fmt: skip
        assert column not in result.means
        assert column not in result.series
        assert "does not have it" in result.missing[column], column
    assert "this user may not" in result.missing["gpu_foreign_processes"]
    assert result.means["gpu_power_usage_w"] == pytest.approx(80.0, rel=0.05)
    assert "gpu_power_usage_w" not in result.missing


def test_zero_from_a_silent_sensor_is_no_reading(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100", sm_override_mhz=0, memory_mhz=0)
    gpus[0].state.gain = 0.0
    result = read(gpus)
    for column in ("gpu_memory_clock_hz", "gpu_power_instant_w", "gpu_power_usage_w"):
        assert column not in result.means
        assert "no value" in result.missing[column]


def test_what_is_not_supported_is_asked_once(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100")
    for function in ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"):
        gpus.fail(function, FUNCTION_NOT_FOUND)
    gpu = open_gpu(uuid=gpus[0].uuid, binding=gpus.binding())
    reader = GpuReader(gpu.binding, gpu.handle)
    reader.poll()
    before = gpus[0].state.calls
    seen = reader.poll()
    polled = gpus[0].state.calls - before
    assert "gpu_utilization" not in seen
    assert "lacks the function" in reader.missing["gpu_temperature_c"]
    assert polled <= 5  # two clocks, fields, event reasons: nothing that failed
    gpu.close()


def test_a_failure_that_may_pass_is_asked_again(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100")
    gpu = open_gpu(uuid=gpus[0].uuid, binding=gpus.binding())
    reader = GpuReader(gpu.binding, gpu.handle)
    gpus.fail("nvmlDeviceGetTemperature", TIMEOUT)
    assert "gpu_temperature_c" not in reader.poll()
    assert "in time" in reader.missing["gpu_temperature_c"]
    gpus.heal()
    assert reader.poll()["gpu_temperature_c"] == 45.0
    assert "gpu_temperature_c" not in reader.missing
    gpu.close()


@pytest.mark.parametrize(
    ("new", "old", "column"),
    [
        ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons", "gpu_throttle_power"),
        ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV", "gpu_temperature_c"),
    ],
)
def test_other_names_of_a_function_are_tried(simulated_gpus: Any, new: str, old: str, column: str) -> None:
    gpus = simulated_gpus("h100")
    gpu = open_gpu(uuid=gpus[0].uuid, binding=gpus.binding())

    def lacks(*_: object) -> None:
        raise gpu.binding.NVMLError(FUNCTION_NOT_FOUND)

    setattr(gpu.binding, new, lacks)
    assert column in GpuReader(gpu.binding, gpu.handle).poll()
    delattr(gpu.binding, new)  # a binding that has never heard of it
    assert column in GpuReader(gpu.binding, gpu.handle).poll()
    delattr(gpu.binding, old)
    reader = GpuReader(gpu.binding, gpu.handle)
    assert column not in reader.poll()
    assert "lacks the function" in reader.missing[column]
    gpu.close()


def test_throttling_is_flagged_with_the_drivers_figures(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100")
    gpus[0].throttle(0x20, 1)  # too hot
    gpus[0].throttle(0x80)  # power brake
    gpus[0].demand(900.0)  # above the limit of 700 W
    result = read(gpus)
    assert sorted(flag.code for flag in result.flags) == ["throttled_hardware", "throttled_power", "throttled_thermal"]
    messages = {flag.code: flag.message for flag in result.flags}
    assert "the limit is 700 W" in messages["throttled_power"]
    assert "45 degrees C" in messages["throttled_thermal"]
    assert result.means["gpu_violation_thermal_s"] == pytest.approx(result.span_s, abs=0.2)
    assert set(result.series["gpu_throttle_thermal"].values) == {1.0}


def test_another_process_on_the_gpu_is_flagged(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100")
    gpus[0].processes({os.getpid(): 1 << 30, 4_000_000: 2 << 30})
    result = read(gpus)
    assert [flag.code for flag in result.flags] == ["foreign_process"]
    assert "1 other process has" in result.flags[0].message


def test_a_gpu_pulled_out_meanwhile_ends_the_watch_only(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100")
    telemetry = GpuTelemetry.open(uuid=gpus[0].uuid, binding=gpus.binding())
    telemetry._period_s = 0.02
    with telemetry:
        time.sleep(0.15)
        gpus[0].lose()
        time.sleep(0.15)
    telemetry.close()
    result = telemetry.result
    assert "fallen off the bus" in result.missing["gpu_telemetry"]
    assert result.means["gpu_temperature_c"] == 45.0
    assert result.series["gpu_temperature_c"].times_s[-1] < result.span_s


def test_a_mig_instance_is_watched_through_its_gpu(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100", mig=1, mig_slices=2)
    binding = gpus.binding()
    binding.nvmlInit()
    part = binding.nvmlDeviceGetMigDeviceHandleByIndex(binding.nvmlDeviceGetHandleByIndex(0), 1)
    uuid = binding.nvmlDeviceGetUUID(part)
    whole = binding.nvmlDeviceGetHandleByUUID
    binding.nvmlDeviceGetHandleByUUID = lambda name: part if name == uuid else whole(name)
    gpu = open_gpu(uuid=uuid, binding=binding)
    assert gpu.is_mig
    reader = GpuReader(binding, gpu.handle)
    assert reader.poll()["gpu_sm_clock_hz"] > 0
    assert "does not have it" in reader.missing["gpu_utilization"]
    gpu.close()


@pytest.mark.parametrize("code", [DRIVER_NOT_LOADED, NO_PERMISSION, UNKNOWN])
def test_without_a_driver_the_host_is_watched_and_the_reason_told(simulated_gpus: Any, code: int) -> None:
    gpus = simulated_gpus("h100")
    gpus.fail("nvmlInit", code)
    binding = gpus.binding()
    with pytest.raises(SensorError):
        GpuTelemetry.open(binding=binding)
    telemetry = telemetry_for("cuda", binding=binding)
    assert isinstance(telemetry, HostTelemetry)
    with telemetry:
        pass
    assert "opening NVML failed" in telemetry.result.missing["device_clock_hz"]


def test_an_unknown_gpu_is_refused(simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h100", count=2)
    with pytest.raises(SensorError, match="GPU-nowhere"):
        open_gpu(uuid="GPU-nowhere", binding=gpus.binding())
    with pytest.raises(SensorError, match="GPU 7"):
        open_gpu(7, binding=gpus.binding())


def test_telemetry_of_cuda_watches_gpu_and_host(simulated_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = simulated_gpus("h100", count=2)
    gpus[1].state.temperature_c = 77
    telemetry = telemetry_for("cuda", 1, binding=gpus.binding())
    assert isinstance(telemetry, AcceleratorTelemetry)
    assert telemetry.polls
    with telemetry:
        time.sleep(0.25)
    telemetry.close()
    assert telemetry.result.means["gpu_temperature_c"] == 77.0
    assert "host_clock_hz" in {**telemetry.result.means, **telemetry.result.missing}
    assert not {flag.code for flag in telemetry.result.flags} & {"throttled_quota", "throttled_thermal"}


CHILD = """
import json, sys, time
from wattline.collectors.telemetry import telemetry_for
from wattline.trace import Trace, write_trace
telemetry = telemetry_for("cuda")
with telemetry:
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:
        pass
telemetry.close()
seen = telemetry.result
write_trace(sys.argv[1], Trace("cafe", seen.origin.unix_s, seen.span_s, series=seen.series, missing=seen.missing))
print(json.dumps({"means": dict(seen.means), "torch": "torch" in sys.modules}))
"""


def test_a_process_of_its_own_with_the_real_loader(simulated_gpus: Any, tmp_path: Path) -> None:
    """As in a worker: the installed pynvml finds the library, a busy thread beside it, the trace is kept."""
    gpus = simulated_gpus("h100")
    began = time.time()
    done = gpus.python(CHILD, tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert not seen["torch"]
    assert seen["means"]["gpu_polls"] >= 3
    trace = read_trace(tmp_path, "cafe")
    assert trace is not None
    assert began - 1 <= trace.zero_unix_s <= time.time() + 1
    assert trace.series["gpu_power_instant_w"].unit == "W"
    assert Trace.from_dict(trace.to_dict()) == trace
