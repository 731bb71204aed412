"""NVIDIA's sensors through the real pynvml, on a simulated driver whose true energy is known."""

from __future__ import annotations

import time

import pytest
from wattline_sim.nvml_library import FUNCTION_NOT_FOUND, GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED

from wattline.collectors.doctor import inspect_machine
from wattline.collectors.energy import MeteredSensor, find_energy_sensor, nvml_priors
from wattline.collectors.energy.errors import (
    NVML_ERRORS,
    SensorBusyError,
    SensorForbiddenError,
    SensorUnsupportedError,
    nvml_error,
)
from wattline.collectors.energy.nvml import NvmlDevice, metered, nvml_sources
from wattline.collectors.energy.nvml_probe import probe_nvml
from wattline.collectors.energy.profiles import device_key, save_profiles
from wattline.collectors.energy.sources import SensorProfile
from wattline.errors import DeviceError, SensorError

QUICK = {"counter_period_s": 0.02, "period_s": 0.02, "window_s": 0.01, "sample_period_s": 0.02, "lag_s": 0.002}
"""A board that renews its readings quickly, so that tests need not wait."""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def find(gpus, tmp_path, **options) -> MeteredSensor:
    binding = gpus.binding()
    sensor = find_energy_sensor(
        "cuda", nvml=lambda: probe_nvml(binding), binding=binding, profiles=tmp_path / "p.json", **options
    )
    assert isinstance(sensor, MeteredSensor), sensor.reason
    return sensor


def fields(sensor: MeteredSensor) -> list[str]:
    return [source.field for source in sensor.sources]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("h100", ["total energy counter", "power sample buffer", "instant power (186)"]),
        ("a100", ["total energy counter", "power sample buffer", "instant power (186)"]),
        ("rtx3090", ["total energy counter", "power sample buffer"]),  # its plain reading averages over a second
        ("v100", ["total energy counter", "power sample buffer", "power usage"]),
        ("p100", ["power sample buffer", "power usage"]),
    ],
)
def test_what_each_part_has(simulated_gpus, tmp_path, part, expected):
    gpus = simulated_gpus(part)
    with find(gpus, tmp_path) as sensor:
        assert fields(sensor) == expected
        assert sensor.scope == "gpu"
        assert sensor.key == device_key(gpus[0].uuid, "570.86.15", "96.00.74.00.1A")


def test_every_reading_tells_the_truth(simulated_gpus):
    gpus = simulated_gpus("h100", average_window_s=0.05, **QUICK)
    device = NvmlDevice(binding=gpus.binding())
    sources, missing = nvml_sources(device)
    assert missing == {}
    gpus[0].load(on=True)
    time.sleep(0.3)
    for source in sources:
        if source.kind == "power":
            reading = source.read()
            assert reading.value == pytest.approx(500.0, rel=1e-3), source.field
            assert abs(reading.time_s - time.perf_counter()) < 1.0
    counter = sources[0]
    before = counter.read()
    time.sleep(0.5)
    after = counter.read()
    true_j = gpus[0].energy(before.time_s, after.time_s)
    assert after.value - before.value == pytest.approx(true_j, abs=2 * 0.02 * 500)
    assert after.took_s < 0.1
    device.close()


def test_joules_of_a_window_on_the_wall_clock(simulated_gpus, tmp_path):
    gpus = simulated_gpus("h100", **QUICK)
    save_profiles(
        device_key(gpus[0].uuid, "570.86.15", "96.00.74.00.1A"),
        {
            "total energy counter": SensorProfile(0.02, calibrated=True),
            "power sample buffer": SensorProfile(0.02, 0.01, 0.002, calibrated=True),
            "instant power (186)": SensorProfile(0.02, 0.01, 0.002, calibrated=True),
        },
        tmp_path / "p.json",
    )
    with find(gpus, tmp_path) as sensor:
        window = sensor.window(1.0)
        with gpus[0].load():
            time.sleep(window.lead_in_s)
            begin, calls = time.perf_counter(), gpus[0].state.calls
            sensor.start()
            time.sleep(window.measured_s)
            energy = sensor.stop(1000, 1.0)
            spent, calls = time.perf_counter() - begin, gpus[0].state.calls - calls
        assert energy.power_w == pytest.approx(500.0, rel=0.02)
        assert energy.energy_lo_j < 0.5 < energy.energy_hi_j
        assert energy.source == "nvml: total energy counter (gpu)"
        assert energy.budget["cross_check"] < 0.03
        assert "uncalibrated" not in energy.flags
        assert calls < 2.2 * spent / 0.005  # two polled sources, each at most every 5 ms


def test_a_lost_gpu_keeps_what_was_read(simulated_gpus, tmp_path):
    gpus = simulated_gpus("h100", **QUICK)
    with find(gpus, tmp_path) as sensor:
        for source in sensor.sources:
            source.profile = SensorProfile(0.02)
        with gpus[0].load():
            time.sleep(0.1)
            sensor.start()
            time.sleep(0.6)
            gpus[0].lose()
            time.sleep(0.05)
            energy = sensor.stop(1, 0.6)
            assert "lost_device" in energy.flags
            assert energy.power_w == pytest.approx(500, rel=0.05)
            sensor.start()
            time.sleep(0.05)
            with pytest.raises(DeviceError, match="off the bus") as caught:
                sensor.stop(1, 0.05)
            assert caught.value.sticky


def test_readings_that_are_missing_say_why(simulated_gpus):
    gpus = simulated_gpus("h100")
    gpus.fail("nvmlDeviceGetTotalEnergyConsumption", NO_PERMISSION)
    gpus.fail("field:186", NOT_SUPPORTED)
    gpus.fail("nvmlDeviceGetSamples", FUNCTION_NOT_FOUND)
    sources, missing = nvml_sources(NvmlDevice(binding=gpus.binding()))
    assert [source.field for source in sources] == ["average power (185)", "average power usage"]
    assert [source.field for source in metered(sources)] == ["average power (185)"]
    assert missing == {
        "total energy counter": "this user may not",
        "power sample buffer": "this driver's library lacks the function",
        "instant power (186)": "this GPU does not have it",
    }


def test_an_average_is_kept_where_no_other_power_answers(simulated_gpus):
    gpus = simulated_gpus("rtx3090")
    gpus.fail("nvmlDeviceGetSamples", NOT_SUPPORTED)
    kept = metered(nvml_sources(NvmlDevice(binding=gpus.binding()))[0])
    assert [(s.field, s.averaged) for s in kept] == [("total energy counter", False), ("average power usage", True)]


def test_a_gpu_without_any_sensor(simulated_gpus):
    gpus = simulated_gpus("h100")
    for function in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetSamples", "nvmlDeviceGetPowerUsage"):
        gpus.fail(function, NOT_SUPPORTED)
    gpus.fail("nvmlDeviceGetFieldValues", NOT_SUPPORTED)
    binding = gpus.binding()
    sensor = find_energy_sensor("cuda", nvml=lambda: probe_nvml(binding), binding=binding)
    assert sensor.reason.code == "nvml_no_reading"
    assert "total energy counter: this GPU does not have it" in sensor.reason.message


def test_zeros_from_a_part_that_pretends(simulated_gpus):
    gpus = simulated_gpus("h100", counter_start_j=0.0, counter_gain=0.0, gain=0.0)
    sources, missing = nvml_sources(NvmlDevice(binding=gpus.binding()))
    assert sources == []
    assert missing["total energy counter"] == "it says nothing"


def test_a_gpu_that_is_lost_before(simulated_gpus):
    gpus = simulated_gpus("h100")
    binding = gpus.binding()
    state = probe_nvml(binding)
    gpus[0].lose()
    sensor = find_energy_sensor("cuda", nvml=lambda: state, binding=binding)
    assert sensor.reason.code == "nvml_lost"
    gpus.heal()
    gpus.fail("nvmlDeviceGetUUID", NO_PERMISSION)
    assert find_energy_sensor("cuda", nvml=lambda: state, binding=binding).reason.code == "nvml_forbidden"


def test_a_split_gpu_is_said_plainly(simulated_gpus, tmp_path):
    gpus = simulated_gpus("h100", mig=1, mig_slices=2, **QUICK)
    with find(gpus, tmp_path) as sensor:
        assert all("mig" in source.flags for source in sensor.sources)
        assert "covers all instances" in sensor.note


def test_a_module_is_said_plainly(simulated_gpus, tmp_path):
    gpus = simulated_gpus("gh200")
    with find(gpus, tmp_path) as sensor:
        assert sensor.scope == "module"
        assert [(s.field, s.scope) for s in sensor.sources] == [
            ("total energy counter", "module"),
            ("power sample buffer", "module"),
            ("instant power (186)", "gpu"),
            ("instant module power (186)", "module"),
        ]
        gpu, module = sensor.sources[2].read().value, sensor.sources[3].read().value
        assert module == pytest.approx(gpu + 120.0, rel=0.01)
        assert "module" in sensor.note


def test_which_of_eight_gpus(simulated_gpus, tmp_path, monkeypatch):
    gpus = simulated_gpus("h100", count=8)

    def uuid_of(**options):
        with find(gpus, tmp_path, **options) as sensor:
            return sensor.key.split(" | ")[0]

    assert uuid_of(index=5) == gpus[5].uuid
    assert uuid_of(index=1, uuid=gpus[6].uuid) == gpus[6].uuid
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert uuid_of(index=1) == gpus[2].uuid
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus[7].uuid)
    assert uuid_of(index=0) == gpus[7].uuid


def test_unequal_gpus_are_not_guessed(simulated_gpus, monkeypatch):
    gpus = simulated_gpus("h100", count=2)
    gpus[1].state.name = b"NVIDIA T4"
    with pytest.raises(SensorError, match="CUDA_DEVICE_ORDER"):
        NvmlDevice(1, binding=gpus.binding())
    NvmlDevice(uuid=gpus[1].uuid, binding=gpus.binding()).close()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    device = NvmlDevice(1, binding=gpus.binding())
    assert device.name == "NVIDIA T4"
    device.close()
    device.close()


def test_the_sample_buffer_keeps_its_own_times(simulated_gpus):
    gpus = simulated_gpus("v100")
    buffer = next(s for s in nvml_sources(NvmlDevice(binding=gpus.binding()))[0] if s.buffered)
    begin = time.perf_counter()
    assert list(buffer.history(begin + 100.0)) == []  # none since then is no error
    time.sleep(0.3)
    with gpus[0].load():
        switched = time.perf_counter()
        time.sleep(0.3)
        end = time.perf_counter()
    readings = buffer.history(begin)
    times = [r.time_s for r in readings]
    assert times == sorted(times)
    assert begin <= times[0] <= begin + 0.1
    low = [r.value for r in readings if r.time_s < switched]
    high = [r.value for r in readings if switched + 0.05 < r.time_s <= end]
    assert max(low) == pytest.approx(80, rel=0.01)
    assert min(high) == pytest.approx(300, rel=0.01)  # held by its power limit
    gpus.fail("nvmlDeviceGetSamples", GPU_IS_LOST)
    with pytest.raises(DeviceError):
        buffer.history(begin)


def test_the_doctor_names_every_gpu(simulated_gpus, bare_host, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpus = simulated_gpus("h100", count=2)
    gpus.install(monkeypatch)
    found = inspect_machine(bare_host.root, deep=False, watch_s=0, folder=str(tmp_path), nvml=probe_nvml)
    seen = {f.name: f for f in found if f.area == "sensors"}
    for name in ("gpu energy", "gpu 1 energy"):
        assert seen[name].status == "ok"
        assert "nvml: total energy counter (gpu)" in seen[name].detail
        assert "then power sample buffer, instant power (186)" in seen[name].detail
        assert seen[name].remedy == "wattline calibrate"
    gpus[0].state.mig, gpus[0].state.mig_slices = 1, 2
    found = inspect_machine(bare_host.root, deep=False, watch_s=0, folder=str(tmp_path), nvml=probe_nvml)
    finding = next(f for f in found if f.name == "gpu energy")
    assert finding.status == "limited"
    assert "MIG" in finding.cost


@pytest.mark.parametrize("code", [*sorted(NVML_ERRORS), 4711])
def test_every_code_has_a_typed_error(code):
    error = nvml_error(code, "reading power")
    assert error.what == "reading power failed"
    assert error.why
    assert isinstance(error, SensorError | DeviceError)


def test_the_table_by_hand():
    assert isinstance(nvml_error(3, "x"), SensorUnsupportedError)
    assert isinstance(nvml_error(4, "x"), SensorForbiddenError)
    assert isinstance(nvml_error(10, "x"), SensorBusyError)
    lost = nvml_error(15, "x")
    assert isinstance(lost, DeviceError)
    assert lost.sticky


@pytest.mark.parametrize(
    ("architecture", "name", "period_s", "window_s", "averaged"),
    [
        (4, "Tesla P100-SXM2-16GB", 0.02, 0.01, False),
        (5, "Tesla V100-SXM2-32GB", 0.02, 0.01, False),
        (6, "NVIDIA T4", 0.1, 0.1, False),
        (7, "NVIDIA GeForce RTX 3090", 0.1, 0.1, True),
        (7, "NVIDIA A100-SXM4-80GB", 0.1, 0.025, False),
        (7, "NVIDIA A30", 0.1, 0.025, False),
        (7, "NVIDIA A40", 0.1, 0.1, True),
        (9, "NVIDIA H200", 0.1, 0.025, True),
        (9, "NVIDIA GH200 480GB", 0.1, 0.02, True),
        (10, "NVIDIA B200", 0.1, 0.025, True),
    ],
)
def test_priors_of_the_table(architecture, name, period_s, window_s, averaged):
    profile = nvml_priors.instant_profile(architecture, name)
    assert (profile.period_s, profile.window_s) == (period_s, window_s)
    assert not profile.calibrated
    assert profile.note.startswith("prior")
    assert nvml_priors.usage_is_averaged(architecture, name) == averaged
    assert nvml_priors.average_profile(architecture, name).window_s == 1.0
    assert 0.02 <= nvml_priors.counter_profile(architecture).period_s <= 0.1
