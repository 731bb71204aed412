"""The fixture ``energy_benchmark`` in a user's own test files: pytest runs them in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from wattline.collectors import pytest_energy as module
from wattline.collectors.pytest_energy import EnergyBenchmark, device_in_use, summary
from wattline.errors import ParamError

USERS_TEST = """
import pytest

def work(n):
    return sum(range(n))

def test_sum(energy_benchmark):
    assert energy_benchmark(work, 2000) == 1999000
"""
USERS_SENSOR = '''
import time
import pytest
from wattline.collectors.energy import MeteredSensor
from wattline.collectors.energy.sources import COUNTER, Reading, SensorProfile, Source

class Meter(Source):
    """An instrument of the user's: 50 W, renewed every 5 ms."""
    kind, vendor, field, scope = COUNTER, "bench", "meter", "package"
    profile = SensorProfile(period_s=0.005, resolution=1e-6, calibrated=True)
    def read(self):
        now = time.perf_counter()
        return Reading(now, 50.0 * (now // 0.005 * 0.005))
    def close(self):
        print("meter closed")

@pytest.fixture(scope="session")
def energy_sensor_factory():
    with MeteredSensor("bench", [Meter()]) as sensor:
        yield lambda device: sensor
'''
NO_SENSOR = """
import pytest
from wattline.collectors.energy import NoEnergySensor
from wattline.reasons import Reason

@pytest.fixture(scope="session")
def energy_sensor_factory():
    return lambda device: NoEnergySensor(Reason("rapl_absent", "this machine shows no counters"), remedy="bare metal")
"""
QUICK = ("--benchmark-max-time=0.05", "--benchmark-min-rounds=3", "--energy-window=300ms")


class Project:
    """A user's folder with tests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("test_user.py", USERS_TEST)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def run(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=self.path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def extra_info(self, *arguments: str) -> dict[str, Any]:
        self.run("--benchmark-json=out.json", *QUICK, *arguments)
        (bench,) = json.loads((self.path / "out.json").read_text())["benchmarks"]
        info: dict[str, Any] = bench["extra_info"]
        return info


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    # Neither the options of these tests' own run nor that several of them run at once is the users' business.
    xdist = [name for name in os.environ if name.startswith("PYTEST_XDIST_")]
    for name in ("PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", *xdist):
        monkeypatch.delenv(name, raising=False)
    return Project(tmp_path)


def test_the_plugin_is_registered(project_root: Path, project: Project) -> None:
    table = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    assert table["project"]["entry-points"]["pytest11"] == {"wattline": "wattline.collectors.pytest_plugin"}
    shown = project.run("--fixtures", "--markers")
    assert "energy_benchmark" in shown
    assert "@pytest.mark.energy(window_s=None, device=None)" in shown


def test_joules_stand_beside_the_times_of_pytest_benchmark(project: Project) -> None:
    project.write("conftest.py", USERS_SENSOR)
    info = project.extra_info()
    assert info["energy_j"] == pytest.approx(50.0 * info["energy_time_s"], rel=0.05)
    assert info["energy_lo_j"] < info["energy_j"] < info["energy_hi_j"]
    assert info["power_w"] == pytest.approx(50.0, rel=0.05)
    assert info["energy_source"] == "bench: meter (package)"
    assert (info["energy_scope"], info["energy_device"]) == ("package", "cpu")
    assert info["energy_window_s"] >= 0.3
    assert info["energy_calls"] > 100
    assert set(info["energy_flags"]) <= {"power_drift"}, "a busy machine reads late"
    assert info["energy_budget"]["gain"] == 0.05
    assert "energy_missing" not in info


def test_the_terminal_shows_a_table_and_the_xml_holds_the_figures(project: Project) -> None:
    project.write("conftest.py", USERS_SENSOR)
    shown = project.run(*QUICK, "--junitxml=out.xml")
    table = shown[shown.index("energy per call (wattline)") :].splitlines()[1:3]
    assert table[0].split() == ["test", "J/call", "95", "%", "power", "time/call", "source", "flags"]
    assert table[1].startswith("test_user.py::test_sum")
    assert " W " in table[1]
    assert table[1].endswith("bench: meter (package)")
    tree = ElementTree.parse(project.path / "out.xml")
    values = {p.get("name"): p.get("value") for p in tree.iter("property")}
    assert float(values["energy_j"] or 0) > 0
    assert values["energy_source"] == "bench: meter (package)"


def test_without_a_sensor_the_test_passes_and_says_why(project: Project) -> None:
    project.write("conftest.py", NO_SENSOR)
    project.write("test_more.py", USERS_TEST)
    shown = project.run(*QUICK, "--benchmark-json=out.json")
    for bench in json.loads((project.path / "out.json").read_text())["benchmarks"]:
        assert bench["extra_info"] == {
            "energy_missing": "this machine shows no counters", "energy_remedy": "bare metal", "energy_device": "cpu",
        }  # fmt: skip
        assert bench["stats"]["median"] > 0  # times are as ever
    assert "no joules for test_more.py::test_sum, test_user.py::test_sum: this machine shows no counters" in shown
    assert "to enable it: bare metal" in shown


def test_the_sensor_of_this_machine_is_found_or_its_reason(project: Project) -> None:
    """Whatever this machine has: joules, or a reason; never neither, and never zero."""
    info = project.extra_info()
    if "energy_missing" in info:
        assert len(info["energy_missing"]) > 10
        assert "energy_j" not in info
    else:
        assert info["energy_j"] > 0


def test_it_works_without_pytest_benchmark(project: Project) -> None:
    project.write("conftest.py", USERS_SENSOR)
    shown = project.run("-p", "no:benchmark", "--energy-window=300ms")
    assert "bench: meter (package)" in shown
    assert "1 passed" in shown


@pytest.mark.parametrize(
    ("option", "outcome"), [("--benchmark-disable", "benchmarks are disabled"), ("--benchmark-skip", "1 skipped")]
)
def test_the_options_of_pytest_benchmark_hold(project: Project, option: str, outcome: str) -> None:
    project.write("conftest.py", USERS_SENSOR)
    shown = project.run(option)
    assert outcome in shown
    assert "J/call" not in shown
    project.write("test_plain.py", "def test_plain(): pass")
    assert "1 passed, 1 skipped" in project.run(*QUICK, "--benchmark-only")


def test_a_window_that_is_too_short_is_refused_and_the_test_still_passes(project: Project) -> None:
    project.write("conftest.py", USERS_SENSOR)
    info = project.extra_info("--energy-window=8ms")
    assert "too short" in info["energy_missing"]
    assert "0.005 s" in info["energy_missing"]
    assert info["energy_remedy"]
    assert "energy_j" not in info


def test_the_marker_sets_window_and_device(project: Project) -> None:
    project.write("conftest.py", USERS_SENSOR)
    marked = USERS_TEST.replace("def test_sum", "@pytest.mark.energy(window_s=0.1, device='cpu')\ndef test_sum")
    project.write("test_user.py", marked)
    info = project.extra_info("--strict-markers", "--energy-device=cuda:5")
    assert 0.1 <= info["energy_window_s"] < 0.3
    project.write("test_user.py", marked.replace("window_s=0.1", "windows=1"))
    assert "takes window_s and device" in project.run(*QUICK, status=1)


def test_an_impossible_window_is_a_usage_error(project: Project) -> None:
    shown = project.run("--energy-window=soon", status=4)
    assert "--energy-window" in shown
    assert "not a duration" in shown


def test_a_function_that_fails_fails_the_test_and_leaves_no_thread(project: Project) -> None:
    project.write("conftest.py", USERS_SENSOR)
    project.write(
        "test_user.py",
        """
import itertools, threading, pytest

@pytest.mark.parametrize("after", [0, 200])
def test_fails(energy_benchmark, after):
    count = itertools.count()
    def work():
        if next(count) >= after:
            raise OSError("the load broke")
    with pytest.raises(OSError, match="broke"):
        energy_benchmark.benchmark = None
        energy_benchmark(work)
    assert "energy_j" not in energy_benchmark.extra_info
    assert not [t for t in threading.enumerate() if t.name.startswith("wattline")]

def test_the_sensor_works_again(energy_benchmark):
    energy_benchmark(sum, (1, 2))
    assert energy_benchmark.result.energy is not None
""",
    )
    assert "3 passed" in project.run(*QUICK)


def test_two_functions_in_one_test_are_refused(project: Project) -> None:
    project.write(
        "test_user.py", "def test_two(energy_benchmark):\n    energy_benchmark(int)\n    energy_benchmark(int)\n"
    )
    assert "one function per test" in project.run("-p", "no:benchmark", status=1)


def test_tests_that_run_at_once_get_no_joules(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "4")
    project.write("conftest.py", USERS_SENSOR)
    assert "4 tests run at once" in project.extra_info()["energy_missing"]


def test_a_simulated_gpu_gives_its_power(
    project: Project, simulated_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU kernel stands for the GPU's: sensors, binding and library are those of a real run."""
    gpus = simulated_gpus("v100")
    gpus[0].demand(240.0)
    monkeypatch.setenv("LD_LIBRARY_PATH", gpus.env["LD_LIBRARY_PATH"])
    project.write(
        "conftest.py",
        """
import pytest
from wattline.collectors.energy import find_energy_sensor

@pytest.fixture(scope="session")
def energy_sensor_factory():
    with find_energy_sensor("cuda") as sensor:
        yield lambda device: sensor
""",
    )
    info = project.extra_info("--energy-window=1s")
    assert info["power_w"] == pytest.approx(240.0, rel=0.02)
    assert info["energy_j"] == pytest.approx(240.0 * info["energy_time_s"], rel=0.02)
    assert info["energy_source"].startswith("nvml: ")
    assert "uncalibrated" in info["energy_flags"]


def test_loading_it_costs_a_user_nothing(project: Project) -> None:
    """A project that does not use the fixture loads neither sensors nor libraries."""
    project.write(
        "test_user.py",
        """
import sys

def test_loaded():
    ours = {name for name in sys.modules if name.startswith("wattline")}
    assert ours == {"wattline", "wattline.collectors", "wattline.collectors.pytest_plugin"}
    assert not {"torch", "numpy", "pandas", "pynvml"} & set(sys.modules)
""",
    )
    project.run()


def test_auto_means_the_accelerator_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert device_in_use() == "cpu"
    started = [False]
    torch = SimpleNamespace(
        accelerator=SimpleNamespace(
            is_available=lambda: True,
            current_accelerator=lambda: SimpleNamespace(type="cuda"),
            current_device_index=lambda: 3,
        ),
        cuda=SimpleNamespace(is_initialized=lambda: started[0]),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert device_in_use() == "cpu"  # loaded, but nothing ran on it
    started[0] = True
    assert device_in_use() == "cuda:3"


def test_a_device_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "timer_of", lambda device: (_ for _ in ()).throw(ParamError("no such device")))
    bench = EnergyBenchmark(lambda device: SimpleNamespace(reason=None), device="cuda:9")  # type: ignore[arg-type,return-value]
    assert bench(lambda: 7) == 7
    assert bench.extra_info == {"energy_missing": "no such device", "energy_device": "cuda:9"}


def test_the_summary_names_three_tests_and_counts_the_rest() -> None:
    rows = [(f"t{n}", {"energy_missing": "why", "energy_remedy": ""}) for n in range(5)]
    assert list(summary(rows)) == ["no joules for t0, t1, t2 and 2 more: why"]


@pytest.fixture(autouse=True)
def _no_user_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


