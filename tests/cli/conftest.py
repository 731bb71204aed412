"""A run folder written by the run's own writer, and a way to call the program as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wattline.case import Case
from wattline.device import Ceilings, DeviceSpec
from wattline.record import Check, Energy, Measurement, Reason, Record
from wattline.run import PlannedCase, RunWriter
from wattline.stats import summarize
from wattline.work import bound
from wattline.workmodels import work_of

Program = Callable[..., "subprocess.CompletedProcess[str]"]
CPU = DeviceSpec(
    id="cpu-example-2c",
    name="Example CPU",
    kind="cpu",
    sm_count=2,
    measured=Ceilings({"fp32": 1.5e11, "bf16": 3.0e11}, 2.0e10, 2e-6),
)


def record(case: Case, *, energy: bool = False, sequence: int = 0, variant: str = "") -> Record:
    """A record whose time is twice the bound plus 3 us, with 2 % of noise from a seed of its own."""
    work = work_of(case.op, case.params)
    limit = bound(work, CPU)
    centre = 2 * limit.time_s + 3e-6
    samples = centre * np.random.default_rng(sequence).lognormal(sigma=0.02, size=11 + sequence % 4)
    joules = Energy(50.0, 50 * centre, 48 * centre, 52 * centre, "rapl:package-0", "package") if energy else None
    measured = Measurement(
        samples_s=tuple(map(float, samples)),
        calls_per_sample=4,
        stats=summarize(samples),
        stop="precise",
        timer="perf_counter_ns",
        timed_s=float(4 * samples.sum()),
        energy=joules,
        check=Check(1e-7, 1e-5, True, "full"),
    )
    return Record(
        case, "ok", CPU.id, measurement=measured, work=work, bound_s=limit.time_s, bound_by=limit.by,
        variant=variant, sequence=sequence, started_at="2026-01-31T12:00:00Z", wall_s=0.2,
    )  # fmt: skip


def make_run(path: Path, *, cases: int = 120, energy: bool = False) -> Path:
    """A complete run of ``cases`` products that were measured and one that the machine cannot run."""
    rng = np.random.default_rng(7)
    planned = []
    for _ in range(cases):
        m, n, k = (int(2 ** rng.uniform(4, 11)) for _ in range(3))
        params = {"batch": 1, "m": m, "n": n, "k": k, "dtype": ("fp32", "bf16")[int(rng.integers(2))], "layout": "nn"}
        planned.append(PlannedCase(Case("gemm.dense", "torch", params | {"out_dtype": "same"})))
    fp8 = {"batch": 1, "m": 64, "n": 64, "k": 64, "dtype": "fp8_e4m3", "layout": "nn", "out_dtype": "same"}
    cannot = PlannedCase(Case("gemm.dense", "torch", fp8))
    manifest = {
        "device": CPU.to_dict(),
        "environment": {"host": "example"},
        "plan": {"preset": "quick", "arguments": {}, "settings": {}, "seed": 0, "budget_s": None, "command": ""},
    }
    with RunWriter.create(path, manifest, [*planned, cannot]) as writer:
        for i, each in enumerate(planned):
            writer.append(record(each.case, energy=energy, sequence=i))
        why = Reason("old_device", "it needs fp8")
        writer.append(Record(cannot.case, "unsupported", CPU.id, reason=why, sequence=len(planned)))
        writer.update(state="complete", totals={"planned": len(planned) + 1})
    return path


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Calls ``python -m wattline.cli`` in a fresh folder and returns the finished process."""

    def call(*args: str | Path, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS")}
        return subprocess.run(
            [sys.executable, "-m", "wattline.cli", *map(str, args)],
            cwd=cwd or tmp_path,
            env=environment | {"COLUMNS": "120", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A small run without energy."""
    return make_run(tmp_path / "run", cases=6)


@pytest.fixture
def energy_run(tmp_path: Path) -> Path:
    """A small run whose records carry joules."""
    return make_run(tmp_path / "energy-run", cases=6, energy=True)


@pytest.fixture(scope="session")
def learnable_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with enough rows to fit a predictor on. Read it, do not write to it."""
    return make_run(tmp_path_factory.mktemp("learnable") / "run", cases=160)
