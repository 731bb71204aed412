"""Runs whose noise is known: what equal measurements differ by, and what was planted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattline.case import Case
from wattline.device import Ceilings, DeviceSpec
from wattline.record import Energy, Measurement, Record
from wattline.run import RECORDS, PlannedCase, RunWriter
from wattline.stats import TimeStats
from wattline.workmodels import work_of

DEVICE = DeviceSpec(
    id="example-gpu", name="Example GPU", vendor="example", kind="cuda", memory_bytes=8e10, l2_bytes=5e7, sm_count=100,
    measured=Ceilings({"fp32": 5e13, "bf16": 8e14}, 3e12, 3e-6),
)  # fmt: skip
OTHER = replace(DEVICE, id="other-gpu", name="Other GPU", sm_count=132)
FACTS: dict[str, Any] = {
    "environment": {
        "libraries": {"torch": "2.12.0"}, "torch": {"threads": 2, "float32_matmul_precision": "highest"},
        "hostname": "lab-1", "taken_at": "2026-01-01T00:00:00Z",
    },
    "plan": {"preset": "quick", "settings": {"min_time_s": 0.3}, "arguments": {}, "seed": 0, "command": ""},
    "timer": {"name": "device events"},
    "state": "complete",
}  # fmt: skip


def cases_of(count: int) -> list[Case]:
    """Different products, half of them bf16, and row-wise operations at the end of each dozen."""
    found = []
    for i in range(count):
        if i % 12 == 11:
            params: dict[str, Any] = {"rows": 256 + i, "cols": 4096, "dtype": "fp32"}
            found.append(Case("softmax.rows", "torch", params))
            continue
        shape = {"m": 64 * (1 + i), "n": 1024, "k": 1024}
        same = {"batch": 1, "layout": "nn", "out_dtype": "same", "acc": "default"}
        found.append(Case("gemm.dense", "torch", {**same, **shape, "dtype": ("fp32", "bf16")[i % 2]}))
    return found


def record_of(  # noqa: PLR0917 - what a record is made of
    case: Case, time_s: float, own: float = 0.002, energy_j: float | None = None, variant: str = "", sequence: int = 0,
    fast_s: float | None = None,
) -> Record:
    """A record of given median (and 5th percentile); its samples are left to the statistics."""
    lo, hi = time_s * math.exp(-1.96 * own), time_s * math.exp(1.96 * own)
    q = time_s * own * 3
    fast = fast_s or time_s - q
    stats = TimeStats(30, time_s, lo, hi, fast, time_s + q, time_s + q, fast, time_s + q, time_s, q)
    joules = None
    if energy_j is not None:
        budget = {"quantisation": 0.004, "trial": 0.004, "drift": 0.001, "gain": 0.05}
        joules = Energy(energy_j / time_s, energy_j, energy_j * 0.94, energy_j * 1.06, "counter", "gpu", 60.0, budget)
    measured = Measurement((lo, time_s, hi), 4, stats, "precise", timer="device events", timed_s=0.3, energy=joules)
    work = work_of(case.op, case.params)
    return Record(case, "ok", DEVICE.id, measurement=measured, work=work, variant=variant, sequence=sequence)


def write(path: Path, records: list[Record], device: DeviceSpec = DEVICE, **manifest: Any) -> Path:
    """A run folder of these records; equal to what a run's writer leaves, without its syncs."""
    plan = [PlannedCase(r.case, r.variant) for r in records]
    RunWriter.create(path, {"device": device.to_dict(), **FACTS, **manifest}, plan).close()
    (path / RECORDS).write_text("".join(r.to_json() + "\n" for r in records), encoding="utf-8")
    return path


def noisy_run(
    path: Path,
    seed: int,
    *,
    count: int = 60,
    scale: float = 0.008,
    freedom: float = 6.0,
    level: float = 0.0,
    change: Callable[[int, Case], float] = lambda i, case: 1.0,
    pairs: int = 8,
    energy: float = 0.0,
    device: DeviceSpec = DEVICE,
    speed: float = 1.0,
    own: float = 0.002,
    fast: tuple[float, Callable[[int], float]] | None = None,
    **manifest: Any,
) -> Path:
    """A run of a machine: median times off by ``scale`` times Student's t, and by ``level`` all together.

    Args:
        path: the folder.
        seed: of the noise.
        count: number of cases.
        scale, freedom: of the noise of one measurement.
        level: log shift of the whole run.
        change: factor of each case, by its number.
        pairs: A/A pairs.
        energy: watts that every case draws; 0: no joules.
        device: the machine.
        speed: how much faster it is than the example.
        own: relative standard deviation within a measurement.
        fast: noise of the 5th percentile, which then is another than that of the median, and its factor by case.
        manifest: entries of the manifest that differ.
    """
    rng = np.random.default_rng(seed)
    records = []
    for i, case in enumerate(cases_of(count)):
        true = 1e-5 * (1 + i % 7) ** 2 / speed * change(i, case)
        for variant in ("a", "b") if i < pairs else ("",):
            seen = true * math.exp(scale * rng.standard_t(freedom) + level)
            low = 0.7 * true * math.exp(fast[0] * rng.standard_t(freedom) + level) * fast[1](i) if fast else None
            joules = energy * seen * math.exp(scale / 2 * rng.standard_t(freedom)) if energy else None
            records.append(record_of(case, seen, own, joules, variant, len(records), low))
    return write(path, records, device, **manifest)


@pytest.fixture
def noisy(tmp_path: Path) -> Callable[..., Path]:
    """Writes a noisy run (see :func:`noisy_run`) under a name; names with a slash make repeats of one side."""
    return lambda name, seed, **how: noisy_run(tmp_path / name, seed, **how)


@pytest.fixture
def write_records(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run of given records under a name."""
    return lambda name, records, **how: write(tmp_path / name, records, **how)


@pytest.fixture
def make_cases() -> Callable[[int], list[Case]]:
    return cases_of


@pytest.fixture
def simple_record() -> Callable[..., Record]:
    return record_of


@pytest.fixture
def other_device() -> DeviceSpec:
    return OTHER


@pytest.fixture
def example_device() -> DeviceSpec:
    return DEVICE


@pytest.fixture
def edit_records() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Changes the lines of a run's records in place."""

    def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
        path = run / RECORDS
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for entry in entries:
            change(entry)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")

    return edit
