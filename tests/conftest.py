"""Fixtures that every room's tests share, and the settings of the property tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# No deadline: a shared machine may stop for longer than any example takes.
settings.register_profile(
    "wattline", deadline=None, max_examples=100, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("wattline")

# The simulated sensors, for every room's tests: `from wattline_sim.sources import ...`. A package without a file, so
# that the folders of the tests themselves stay off the path.
_SIM = types.ModuleType("wattline_sim", "Simulated sensors whose truth is known.")
_SIM.__path__ = [str(ROOT / "tests" / "sim")]
sys.modules.setdefault("wattline_sim", _SIM)
from wattline_sim.fixtures import nvml_library, simulated_gpus, simulated_rapl  # noqa: E402, F401 - fixtures


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_eval() -> Path:
    """The evaluation folder beside the checkout; a test that needs it is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "eval"
    if not (folder / "devices.json").is_file():
        pytest.skip("the public measurements are not beside this checkout (shared/eval)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public measurements, in $WATTLINE_DATA or beside the checkout; a test of them is skipped elsewhere."""
    folder = Path(os.environ.get("WATTLINE_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "samples").is_dir():
        pytest.skip("the public measurements are neither in $WATTLINE_DATA nor beside this checkout (shared/data)")
    return folder


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Any]:
    """Builds a complete, valid record of one matrix product; keywords replace fields of the record."""
    from wattline.case import Case
    from wattline.record import Check, Measurement, Record
    from wattline.stats import summarize
    from wattline.workmodels import work_of

    def build(m: int = 512, *, samples: Sequence[float] = (1.0e-3, 1.1e-3, 1.2e-3), **changes: Any) -> Record:
        params = {"batch": 1, "m": m, "n": 512, "k": 256, "dtype": "fp32", "layout": "nn"}
        measurement = Measurement(
            samples_s=tuple(samples), calls_per_sample=4, stats=summarize(samples), stop="precise",
            warmup_calls=3, warmup_s=0.25, warmup_stop="settled", first_call_s=0.5, rotations=2,
            timer="perf_counter_ns", timer_overhead_s=1e-7, timed_s=0.0132,
            telemetry={"host_clock_hz": 3.1e9}, check=Check(2e-7, 1e-5, True, "full"),
        )  # fmt: skip
        fields: dict[str, Any] = {
            "case": Case("gemm.dense", "torch", params), "status": "ok", "device": "some-cpu",
            "measurement": measurement, "work": work_of("gemm.dense", params), "bound_s": 5e-4,
            "bound_by": "compute", "seed": 7, "started_at": "2026-01-02T03:04:05Z", "wall_s": 1.5, "sequence": 0,
        }  # fmt: skip
        return Record(**(fields | changes))

    return build


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a piece of Python in a process of its own, from the root folder so that no checkout is on its path."""

    def run(code: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, check=False, cwd="/",
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def python_json(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Any]:
    """Like ``run_python``, for code that prints JSON as its last line; fails the test when the process failed."""

    def run(code: str, *arguments: object, timeout: float = 60) -> Any:
        done = run_python(code, *arguments, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
