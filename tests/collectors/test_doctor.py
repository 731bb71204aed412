"""The doctor: findings on fake hosts, probes that break, and the real machine."""

from __future__ import annotations

import collections
import errno
import json
import subprocess
import sys

import pytest

from wattline.collectors import doctor
from wattline.collectors.doctor import Finding, inspect_machine
from wattline.collectors.energy.nvml_probe import NvmlState
from wattline.collectors.telemetry import TelemetryResult

NO_NVML = NvmlState("no_library", "libnvidia-ml.so.1 is not installed")
AREAS = {"devices", "sensors", "clocks", "libraries", "storage", "limits", "load"}


def look(h, tmp_path, **options) -> dict[str, Finding]:
    options = {"deep": False, "watch_s": 0.0, "nvml": lambda: NO_NVML, "folder": str(tmp_path), **options}
    findings = inspect_machine(h.root, **options)
    for f in findings:
        assert f.area in AREAS
        assert f.status in ("ok", "limited", "missing")
        assert f.detail
        if f.status == "missing":
            assert f.cost, f  # whoever lacks something wants to know what that costs
    return {f.name: f for f in findings}


def test_a_bare_metal_host(fake_host, tmp_path):
    fake_host.write("sys/class/hwmon/hwmon0/name", "coretemp")
    fake_host.write("sys/class/powercap/intel-rapl:0/energy_uj", 5)
    fake_host.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc")
    seen = look(fake_host, tmp_path)
    assert seen["cpu"].status == "ok"
    assert "2 cores, 4 hardware threads" in seen["cpu"].detail
    assert "L1 48 KiB, L2 2 MiB, L3 32 MiB" in seen["cpu"].detail
    assert "virtual machine" not in seen
    assert seen["temperatures"].detail.endswith("coretemp")
    assert seen["heat events"].status == "ok"
    assert "clock source tsc" in seen["timer"].detail
    assert seen["cpu energy"].status == "ok"
    assert "rapl: energy_uj of intel-rapl:0 (package)" in seen["cpu energy"].detail
    assert "5 s window" in seen["cpu energy"].detail
    assert seen["cpu energy"].remedy == "wattline calibrate"  # works without, with priors
    assert seen["gpu energy"].status == "missing"
    assert seen["cpu quota"].status == "ok"
    assert seen["processors"].detail == "this process may use 2 of 4 processors"


def test_an_empty_host_is_all_findings_no_errors(bare_host, tmp_path):
    seen = look(bare_host, tmp_path)
    assert seen["cpu"].status == "limited"
    assert seen["cpu energy"].status == "missing"
    assert seen["cpu frequency"].status == "missing"
    assert seen["heat events"].status == "missing"


def test_governor_decides(fake_host, tmp_path):
    seen = look(fake_host, tmp_path)["cpu frequency"]
    assert seen.status == "limited"
    assert "governor powersave (intel_pstate), 800 MHz to 4.20 GHz, turbo on" in seen.detail
    assert "cpupower" in seen.remedy
    fake_host.cpu("cpufreq/scaling_governor", ["performance"] * 4)
    assert look(fake_host, tmp_path)["cpu frequency"].status == "ok"


def test_virtual_machine_and_container_limits(fake_host, tmp_path):
    fake_host.cpuinfo(more="hypervisor")
    fake_host.cgroup_v2(limits={"cpu.max": "150000 100000", "memory.max": str(2 * 10**9)})
    fake_host.write(".dockerenv", "")
    seen = look(fake_host, tmp_path)
    assert seen["virtual machine"].status == "limited"
    assert "(docker), 1.5 processors" in seen["cpu quota"].detail
    assert "2.00 GB" in seen["memory"].detail
    assert seen["cpu quota"].status == seen["memory"].status == "limited"


def test_device_files_are_seen_without_torch(fake_host, tmp_path):
    fake_host.write("dev/nvidia0", "")
    assert "NVIDIA" in look(fake_host, tmp_path)["accelerators"].detail


def test_a_gpu_that_this_torch_cannot_drive(fake_host, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert look(fake_host, tmp_path, deep=True)["accelerators"].status == "missing"
    fake_host.write("dev/nvidia0", "")
    seen = look(fake_host, tmp_path, deep=True)["accelerators"]
    assert seen.status == "limited"
    assert "pytorch.org" in seen.remedy


def test_a_probe_that_breaks_is_a_finding_and_the_rest_goes_on(fake_host, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("driver fell over\nwith a long trace")

    monkeypatch.setattr(doctor.host, "cpu_facts", broken)
    seen = look(fake_host, tmp_path, nvml=broken)
    assert seen["cpu"].detail == "looking failed: RuntimeError: driver fell over"
    assert seen["gpu energy"].status == "limited"
    assert seen["timer"].status in ("ok", "limited")
    assert seen["run folder"].status == "ok"


def test_libraries_present_and_absent(bare_host, tmp_path, monkeypatch):
    monkeypatch.setattr(
        doctor, "LIBRARIES", (("json", ("numpy",), "this"), ("no_such_module_x", ("no-such-package-x",), "that"))
    )
    seen = look(bare_host, tmp_path)
    assert seen["json"].status == "ok"
    assert seen["no_such_module_x"].status == "missing"
    assert "that cannot be measured" in seen["no_such_module_x"].cost
    assert "no-such-package-x" in seen["no_such_module_x"].remedy


def test_storage(bare_host, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(2, 1, 5 * 10**8))
    assert look(bare_host, tmp_path)["run folder"].status == "limited"
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: False)
    assert look(bare_host, tmp_path)["run folder"].status == "missing"

    def gone(folder):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", folder)

    monkeypatch.setattr(doctor.shutil, "disk_usage", gone)
    assert look(bare_host, tmp_path)["run folder"].status == "limited"


class Watched:
    """Telemetry that has seen what a test says."""

    means: dict[str, float] = {}  # noqa: RUF012 - set by the test

    def __init__(self, root: str) -> None:
        self.result = TelemetryResult(self.means, span_s=0.25)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize(("shares", "status"), [((0.01, 0.0), "ok"), ((0.5, 0.0), "limited"), ((0.0, 0.2), "limited")])
def test_load_now(fake_host, tmp_path, monkeypatch, shares, status):
    monkeypatch.setattr(doctor, "HostTelemetry", Watched)
    monkeypatch.setattr(doctor.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Watched, "means", dict(zip(("foreign_cpu_share", "steal_share"), shares, strict=True)))
    assert look(fake_host, tmp_path, watch_s=0.25)["other processes"].status == status


def test_load_that_cannot_be_seen(fake_host, tmp_path):
    seen = look(fake_host, tmp_path, watch_s=0.21)["other processes"]  # counters that stand still
    assert "did not move" in seen.detail


def test_real_machine(tmp_path):
    findings = inspect_machine(folder=str(tmp_path))
    assert {f.area for f in findings} == AREAS
    assert not [f for f in findings if f.detail.startswith("looking failed")]
    by_name = {f.name: f for f in findings}
    assert by_name["torch"].status == "ok"
    assert by_name["run folder"].status == "ok"
    assert json.loads(json.dumps([f.to_dict() for f in findings]))


def test_shallow_look_imports_no_torch():
    code = (
        "import sys; from wattline.collectors.doctor import inspect_machine\n"
        "inspect_machine(deep=False, watch_s=0); print({'torch', 'triton', 'numba', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
