"""Machines whose true cost is a known formula, and a run folder measured on one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.case import Case
from wattline.device import Ceilings, DeviceSpec
from wattline.predictors import KernelPredictor
from wattline.record import Energy, Flag, Measurement, Reason, Record
from wattline.run import PlannedCase, RunWriter
from wattline.stats import summarize

NOISE = 0.04


@dataclass
class Table:
    """Training data and what made it."""

    X: pd.DataFrame
    y: pd.DataFrame
    groups: np.ndarray[Any, Any]
    spec: DeviceSpec


def device(name: str = "box", scale: float = 1.0) -> DeviceSpec:
    return DeviceSpec(
        id=name, kind="gpu", peak_flops={"fp32": 2e13 * scale, "bf16": 2e14 * scale}, memory_bandwidth=1e12 * scale,
        l2_bytes=2e7, sm_count=100, tdp_w=300.0,
    )  # fmt: skip


def truth(X: pd.DataFrame, spec: DeviceSpec, slow: float = 1.0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Seconds and watts of dense products on the synthetic machine."""
    m, n, k = (X[c].to_numpy(float) for c in ("m", "n", "k"))
    width = X["dtype"].map({"fp32": 4, "bf16": 2}).to_numpy(float)
    rate = X["dtype"].map(dict(spec.peak_flops)).to_numpy(float)
    compute = 2 * m * n * k / rate / (0.85 * k / (k + 200) * n / (n + 100))
    memory = (m * k + k * n + m * n) * width / float(spec.memory_bandwidth or 1) / 0.8
    time = slow * (6e-6 + np.maximum(compute, memory))
    power = 60 + 230 * np.minimum(1.0, 0.9 * compute / time + 0.5 * memory / time)
    return time, power


def make_table(n: int = 200, seed: int = 0, *, largest: float = 12, spec: DeviceSpec | None = None,
               slow: float = 1.0, power: bool = True) -> Table:  # fmt: skip
    rng = np.random.default_rng(seed)
    spec = spec or device()
    sizes = np.round(2 ** rng.uniform(5, largest, (n // 2, 3))).astype(int)
    X = pd.DataFrame(np.repeat(sizes, 2, axis=0), columns=["m", "n", "k"])
    X.insert(0, "op", "gemm.dense")
    X.insert(1, "device", spec.id)
    X.insert(2, "impl", "torch")
    X.insert(3, "dtype", ["fp32", "bf16"] * (len(X) // 2))
    time, watts = truth(X, spec, slow)
    y = pd.DataFrame({"time_s": time * np.exp(NOISE * rng.standard_normal(len(X)))})
    y["power_w"] = watts * np.exp(0.02 * rng.standard_normal(len(X))) if power else np.nan
    return Table(X, y, np.repeat(np.arange(len(sizes)), 2), spec)


@pytest.fixture(scope="session")
def table_of() -> Callable[..., Table]:
    return make_table


@pytest.fixture(scope="session")
def table() -> Table:
    return make_table()


@pytest.fixture(scope="session")
def fitted(table: Table) -> KernelPredictor:
    return KernelPredictor({table.spec.id: table.spec}).fit(table.X, table.y, table.groups)


@pytest.fixture(scope="session")
def large_fit() -> tuple[Table, KernelPredictor]:
    """Enough rows, on two devices, for the network and for intervals of transfer; few steps keep it short."""
    one = make_table(1000, 1)
    two = make_table(700, 2, spec=device("second", 2.0), power=False)
    both = Table(
        pd.concat([one.X, two.X], ignore_index=True), pd.concat([one.y, two.y], ignore_index=True),
        np.concatenate([one.groups, two.groups + 10_000]), one.spec,
    )  # fmt: skip
    specs = {"box": one.spec, "second": two.spec}
    return both, KernelPredictor(specs, effort=0.25).fit(both.X, both.y, both.groups)


def cpu() -> DeviceSpec:
    return DeviceSpec(
        id="test-cpu", kind="cpu", sm_count=2, l2_bytes=3e7,
        measured=Ceilings(flops={"fp32": 1e11}, memory_bandwidth=2e10, launch_s=2e-6),
    )  # fmt: skip


def record_of(case: Case, time: float, rng: np.random.Generator, i: int, *, flag: str = "") -> Record:
    samples = tuple(time * np.exp(0.01 * rng.standard_normal(9)))
    flags = (Flag(flag, "made so"),) if flag else ()
    energy = Energy(40.0, 40.0 * time, 39.0 * time, 41.0 * time, "test", "package") if i % 2 else None
    m = Measurement(samples, 1, summarize(samples), "precise", energy=energy, flags=flags)
    return Record(case, "ok", "test-cpu", measurement=m, sequence=i)


def make_run(folder: Path, rows: int = 60) -> Path:
    """A run folder of dense fp32 products, some records of which are of no use."""
    rng = np.random.default_rng(3)
    cases = []
    for _ in range(rows // 2):
        m, n, k = (int(v) for v in np.round(2 ** rng.uniform(4, 10, 3)))
        params = {"batch": 1, "m": m, "n": n, "k": k, "dtype": "fp32", "layout": "nn"}
        cases += [Case("gemm.dense", "torch", params, regime) for regime in ("cold", "hot")]
    with RunWriter.create(folder, {"device": cpu().to_dict()}, [PlannedCase(c) for c in cases]) as writer:
        for i, case in enumerate(cases):
            p = {k: float(v) for k, v in case.params.items() if k in ("m", "n", "k")}
            time = 3e-6 + 2 * p["m"] * p["n"] * p["k"] / 7e10 + (3e-6 if case.regime == "cold" else 0)
            if i == 0:
                writer.append(Record(case, "failed", "test-cpu", reason=Reason("error", "made so")))
            else:
                writer.append(record_of(case, time, rng, i, flag="check_failed" if i == 1 else ""))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def run_maker() -> Callable[..., Path]:
    return make_run
