"""The seam of energy sensors: the null object, the true reasons, and a counter that fits in."""

from __future__ import annotations

import errno
import importlib.util
import math
import os
import stat
from pathlib import Path

import pytest

from wattline.collectors.energy import EnergySensor, EnergyWindow, NoEnergySensor, find_energy_sensor
from wattline.collectors.energy.nvml_probe import REMEDIES, NvmlState
from wattline.errors import ParamError, SensorError
from wattline.record import Energy, Reason

COUNTER = "sys/class/powercap/intel-rapl:0/energy_uj"


def drive(sensor: EnergySensor, calls: int = 10, device_time_s: float = 2.0) -> Energy | None:
    """The loop's side of the seam, the same for every sensor."""
    with sensor:
        assert sensor.window(5.0).total_s >= 0
        sensor.start()
        return sensor.stop(calls, device_time_s)


class CounterSensor(EnergySensor):
    """A wrapping counter in microjoules read from a file, as RAPL is."""

    name, scope, source = "file", "package", "a file of microjoules"

    def __init__(self, path, range_uj: int, span_s: float) -> None:
        self.path, self.range_uj, self.span_s = path, range_uj, span_s
        self.first = 0
        self.closed = 0

    def window(self, requested_s: float | None = None) -> EnergyWindow:
        if requested_s is not None and requested_s < 2 * 1e-3:
            raise SensorError("a window of less than two updates of the counter")
        return EnergyWindow(1.0, requested_s or 5.0, 0.5)

    def _begin(self) -> None:
        self.first = int(self.path.read_text())

    def _end(self, calls: int, device_time_s: float) -> Energy:
        used_j = (int(self.path.read_text()) - self.first) % self.range_uj * 1e-6
        power_w = used_j / self.span_s
        per_call_j = power_w * device_time_s / calls
        return Energy(power_w, per_call_j, 0.95 * per_call_j, 1.05 * per_call_j, self.source, self.scope)

    def close(self) -> None:
        self.closed += 1


def test_a_wrapping_counter_fits_the_seam(tmp_path):
    path = tmp_path / "energy_uj"
    path.write_text("900000000")
    sensor = CounterSensor(path, range_uj=1_000_000_000, span_s=4.0)
    assert sensor.available
    assert sensor.window(2.0).total_s == pytest.approx(3.5)
    sensor.start()
    path.write_text("100000000")  # 200 J on, wrapped once: 50 W
    energy = sensor.stop(calls=100, device_time_s=3.0)
    assert energy is not None
    assert energy.power_w == pytest.approx(50.0)
    assert energy.energy_j == pytest.approx(1.5)
    assert energy.energy_lo_j < energy.energy_j < energy.energy_hi_j
    with pytest.raises(SensorError, match="two updates"):
        sensor.window(1e-3)
    with sensor:
        pass
    assert sensor.closed == 1


@pytest.mark.parametrize(("calls", "device_time_s"), [(0, 1.0), (5, 0.0), (5, -1.0), (5, math.nan), (5, math.inf)])
def test_no_joules_of_no_calls_or_no_time(tmp_path, calls, device_time_s):
    path = tmp_path / "energy_uj"
    path.write_text("5")
    sensor = CounterSensor(path, 100, 1.0)
    sensor.start()
    with pytest.raises(ParamError, match="no energy per call"):
        sensor.stop(calls, device_time_s)
    sensor.start()  # it may be used again


def test_start_and_stop_must_alternate():
    sensor = NoEnergySensor(Reason("x", "y"))
    with pytest.raises(SensorError, match="before it was started"):
        sensor.stop(1, 1.0)
    sensor.start()
    with pytest.raises(SensorError, match="twice"):
        sensor.start()


def test_the_null_object_asks_for_nothing_and_gives_nothing():
    sensor = NoEnergySensor(Reason("rapl_absent", "no counters"), name="rapl", remedy="bare metal")
    assert not sensor.available
    assert sensor.window(60.0) == EnergyWindow(note="no counters")
    assert sensor.window().total_s == 0
    assert drive(sensor) is None
    assert drive(sensor, calls=0, device_time_s=0.0) is None  # a window of no length holds no calls


def test_seam_needs_its_parts():
    class Half(EnergySensor):
        def window(self, requested_s: float | None = None) -> EnergyWindow:
            return EnergyWindow()

    with pytest.raises(TypeError, match="_begin"):
        Half()


def found(h, code: str, kind: str = "cpu", **options) -> EnergySensor:
    sensor = find_energy_sensor(kind, h.root, **options)
    assert sensor.reason is not None
    assert sensor.reason.code == code
    assert sensor.reason.message
    assert sensor.remedy
    assert not sensor.available
    assert drive(sensor) is None
    return sensor


def test_rapl_absent(bare_host):
    sensor = found(bare_host, "rapl_absent")
    assert f"/{COUNTER}" in sensor.reason.message
    assert (sensor.name, sensor.scope) == ("rapl", "package")


def test_rapl_forbidden_names_file_mode_and_remedy(bare_host, monkeypatch):
    path = bare_host.write(COUNTER, 123456)
    path.chmod(0o400)
    real_open = os.open

    def refuse(name, *args, **kwargs):
        # The superuser may read anything: the kernel's refusal is put in its mouth.
        if os.fspath(name) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return real_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    sensor = found(bare_host, "rapl_forbidden")
    assert f"/{COUNTER}" in sensor.reason.message
    assert "mode 0400" in sensor.reason.message
    assert "chmod" in sensor.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read any file")
def test_rapl_forbidden_by_the_kernel(bare_host):
    bare_host.write(COUNTER, 123456).chmod(0)
    found(bare_host, "rapl_forbidden")


def test_rapl_hidden_by_a_container(bare_host):
    zone = bare_host.path / "sys/class/powercap/intel-rapl:0"
    zone.parent.mkdir(parents=True)
    zone.symlink_to(bare_host.path / "sys/devices/virtual/powercap/intel-rapl/intel-rapl:0")
    assert "container" in found(bare_host, "rapl_hidden").reason.message


def test_rapl_that_fails(bare_host):
    bare_host.write(COUNTER, "no number")
    found(bare_host, "rapl_failed")
    (bare_host.path / COUNTER).unlink()
    (bare_host.path / COUNTER).mkdir()  # reading fails, but not for lack of permission
    found(bare_host, "rapl_failed")


@pytest.mark.parametrize("code", sorted(REMEDIES))
@pytest.mark.parametrize("kind", ["gpu", "cuda"])
def test_nvml_that_does_not_answer(bare_host, code, kind):
    sensor = found(bare_host, f"nvml_{code}", kind, nvml=lambda: NvmlState(code, "what was found"))
    assert sensor.reason.message == "what was found"
    assert (sensor.name, sensor.scope) == ("nvml", "gpu")


def test_nvml_that_answers_once_and_fails_then(bare_host):
    class Binding:
        class NVMLError(Exception):
            value = 15

        def nvmlInit(self):  # noqa: N802 - NVML's name
            raise self.NVMLError

    sensor = found(bare_host, "nvml_lost", "cuda", nvml=lambda: NvmlState("ready", "x"), binding=Binding())
    assert "off the bus" in sensor.reason.message


def test_amd_gpu_without_its_library_is_named(bare_host):
    bare_host.write("dev/kfd", "")
    if importlib.util.find_spec("amdsmi") is not None:
        pytest.skip("amdsmi is installed here")
    sensor = found(bare_host, "amd_smi_failed", "cuda", nvml=lambda: NvmlState("no_library", "none"))
    assert "amdsmi" in sensor.reason.message


def test_unknown_kind(bare_host):
    assert "xpu" in found(bare_host, "no_sensor_known", "xpu").reason.message


def test_real_machine_tells_the_truth():
    path = f"/{COUNTER}"
    try:
        readable = Path(path).read_text().strip().isdigit()
    except OSError:
        readable = False
    with find_energy_sensor("cpu") as sensor:
        assert sensor.available == readable
        if os.path.exists(path) and not readable:
            assert f"{stat.S_IMODE(os.stat(path).st_mode):04o}" in sensor.reason.message
        if not readable:
            assert drive(sensor) is None
    with find_energy_sensor("gpu") as sensor:
        assert sensor.available or (sensor.reason.message and sensor.remedy)


def test_a_cancelled_start_can_be_started_again() -> None:
    sensor = NoEnergySensor(Reason("none", "no sensor"))
    sensor.start()
    sensor.cancel()
    sensor.start()
    assert sensor.stop(1, 1.0) is None
    sensor.cancel()


@pytest.mark.parametrize(
    "name", ["collectors.energy", "collectors.nvml_device", "collectors.energy.errors", "collectors.energy.nvml"]
)
def test_each_module_may_be_imported_first_and_loads_nothing_heavy(run_python, name):
    done = run_python(f"import sys, wattline.{name}; print(sorted({{'numpy', 'torch', 'pynvml'}} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr
