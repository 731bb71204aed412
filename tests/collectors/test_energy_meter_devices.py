"""The public meter: the devices that it finds, waits for and gives back, and wrong use."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from wattline_sim.meter_bench import Bench

from wattline import EnergyMeter
from wattline.collectors.energy import meter as module
from wattline.collectors.energy.common import EnergySensor, NoEnergySensor
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.collectors.energy.sources import COUNTER, Reading, SensorProfile, Source
from wattline.errors import ParamError, SensorError, UnknownNameError
from wattline.reasons import Reason


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_wrong_use_is_named(bench: Bench) -> None:
    bench.sensor("rapl")
    meter = bench.meter()
    with pytest.raises(SensorError, match="not running"), meter.window("early"):
        pass
    with meter:
        with pytest.raises(SensorError, match="twice"):
            meter.__enter__()
        with pytest.raises(ParamError, match="0 calls"):
            meter.begin("w", calls=0)
        with pytest.raises(SensorError, match="not open"):
            meter.end("w")
        meter.begin("w")
        with pytest.raises(SensorError, match="open already"):
            meter.begin("w")
        with pytest.raises(UnknownNameError):
            meter.result("w")  # still open
        with pytest.raises(ValueError, match="boom"), meter.window("broken"):
            raise ValueError("boom")
        meter.begin("broken")
        bench.clock.sleep(0.5)
        meter.end("broken")
        with pytest.raises(UnknownNameError) as caught:
            meter.result("brokn")
        assert "broken" in caught.value.why
    assert len(meter.results("broken")) == 1
    with pytest.raises(UnknownNameError):
        meter.result("w")  # never ended
    meter.close()


def test_only_sensors_with_readings_can_be_followed() -> None:
    class Other(EnergySensor):
        name, scope, source = "other", "gpu", "other"

        def window(self, requested_s: float | None = None) -> Any: ...
        def _begin(self) -> None: ...
        def _end(self, calls: int, device_time_s: float) -> None: ...

    with pytest.raises(ParamError, match="Other"), EnergyMeter(sensors={"gpu": Other()}):
        pass


def test_marks_wait_for_queued_work_of_the_accelerator_in_use(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sensor("rapl")
    waits: list[str] = []
    started = [False]
    accelerator = SimpleNamespace(
        is_available=lambda: True,
        current_accelerator=lambda: SimpleNamespace(type="cuda"),
        synchronize=lambda: waits.append("torch"),
    )
    cuda = SimpleNamespace(is_initialized=lambda: started[0])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(accelerator=accelerator, cuda=cuda))

    def run(**options: Any) -> list[str]:
        waits.clear()
        with bench.meter(**options) as meter, meter.window("w"):
            bench.clock.sleep(0.1)
        return list(waits)

    assert run(synchronize="auto") == []  # nobody used it: no context is opened
    started[0] = True
    assert run(synchronize="auto") == ["torch", "torch"]
    assert run(synchronize=lambda: waits.append("own")) == ["own", "own"]
    assert run(synchronize=None) == []


class Pretend(Source):
    """A counter of 50 W in real time."""

    kind, vendor, field, scope = COUNTER, "pretend", "counter", "package"
    closed = 0

    def __init__(self) -> None:
        self.profile = SensorProfile(period_s=0.005, resolution=1e-6, calibrated=True)

    def read(self) -> Reading:
        now = time.perf_counter()
        return Reading(now, 50.0 * (now // 0.005 * 0.005))

    def close(self) -> None:
        self.closed += 1


def test_devices_are_looked_up_and_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the polling thread and the clock of the machine."""
    asked: list[tuple[str, int]] = []
    source = Pretend()

    def find(kind: str, *, index: int = 0) -> EnergySensor:
        asked.append((kind, index))
        if kind == "cpu":
            return MeteredSensor("pretend", [source])
        return NoEnergySensor(Reason("nvml_no_gpu", "no GPU"), name="nvml")

    monkeypatch.setattr(module, "find_energy_sensor", find)
    monkeypatch.setattr(module, "present_devices", lambda: ("cuda:0", "cuda:1", "cpu"))
    with EnergyMeter() as meter, meter.window("w"):
        time.sleep(0.3)
    assert asked == [("cuda", 0), ("cuda", 1), ("cpu", 0)]
    assert list(meter.devices) == ["cpu"]  # the others cannot be read
    assert meter.available
    found = meter.result("w")
    assert found.power_w == pytest.approx(50.0, rel=0.05)
    assert source.closed == 1

    with EnergyMeter(["cuda:3"]) as meter, meter.window("w"):
        pass
    reason = meter.result("w").reason
    assert reason is not None
    assert reason.message == "no GPU"
    for wrong in ("cuda:x", ":1", ["cpu", "cpu"]):
        with pytest.raises(ParamError), EnergyMeter(wrong):
            pass
    assert source.closed == 2


def test_a_script_measures_simulated_gpus_through_the_real_binding(simulated_gpus: Callable[..., Any]) -> None:
    """A user's script in a process of its own, in wall time, on two GPUs that are loaded one after the other."""
    gpus = simulated_gpus("h200", count=2)
    script = """
import json, time
from wattline import EnergyMeter
print("ready", flush=True)
with EnergyMeter(["cuda:0", "cuda:1"]) as meter:
    began = time.perf_counter()
    with meter.window("work"):
        time.sleep(2.5)
    ended = time.perf_counter()
    with meter.window("short"):
        time.sleep(0.02)
found = meter.result("work")
print(json.dumps({
    "span": [began, ended], "flags": found.flags, "short": meter.result("short").reason.message,
    "devices": {n: [d.joules, d.lo_j, d.hi_j, d.source] for n, d in found.devices.items()},
}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=gpus.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    for gpu in (gpus[0], gpus[1]):
        time.sleep(0.8)
        gpu.load(on=True)
        time.sleep(0.5)
        gpu.load(on=False)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found = json.loads(out)
    for index in (0, 1):
        joules, low, high, source = found["devices"][f"cuda:{index}"]
        true_j = gpus[index].energy(*found["span"])
        assert low <= true_j <= high
        assert joules == pytest.approx(true_j, rel=0.1)
        assert "counter" in source
    assert "periods" in found["short"]


@pytest.mark.parametrize(("visible", "expected"), [(None, 2), ("", 0), ("1", 1), ("0,1,2", 2)])
def test_present_devices_are_those_that_cuda_shows(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: int
) -> None:
    monkeypatch.setattr(module, "probe_nvml", lambda: SimpleNamespace(gpus=("a", "b")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert module.present_devices() == (*(f"cuda:{n}" for n in range(expected)), "cpu")


def test_the_meter_loads_neither_torch_nor_numpy(python_json: Callable[..., Any]) -> None:
    loaded = python_json("import json, sys; from wattline import EnergyMeter; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "numpy", "pandas"} & set(loaded)


def test_results_cannot_be_changed(bench: Bench) -> None:
    bench.sensor("rapl")
    with bench.meter() as meter, meter.window("w"):
        bench.clock.sleep(0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        meter.result("w").duration_s = 1.0  # type: ignore[misc]
