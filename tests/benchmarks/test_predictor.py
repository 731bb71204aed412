"""What asking and fitting cost: one row, a batch, and a fit on 100,000 rows.

Run with ``pytest tests/benchmarks/test_predictor.py --benchmark-only -s``. The rows are made up, with steps where a
real device has tiles; what a learner costs does not depend on where its rows come from.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.device import DeviceSpec
from wattline.predictors import KernelPredictor

BOX = DeviceSpec(
    id="box", peak_flops={"bf16": 4e14, "fp8": 8e14}, memory_bandwidth=2e12, l2_bytes=5e7, sm_count=108, tdp_w=500.0
)


def rows(count: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series[Any]]:
    """Products of random sizes, their seconds and watts, and a group for each pair of (n, k)."""
    rng = np.random.default_rng(0)
    octaves = ((0, 14), (7, 14), (7, 14))
    m, n, k = (2 ** rng.integers(low, high, count) + rng.integers(0, 3, count) for low, high in octaves)
    dtype = rng.choice(["bf16", "fp8"], count)
    X = pd.DataFrame({"op": "gemm.dense", "device": "box", "impl": "torch", "dtype": dtype, "m": m, "n": n, "k": k})
    waves = np.ceil(np.ceil(m / 128) * np.ceil(n / 128) / 108)
    compute = waves * 108 * 2 * 128 * 128 * k / np.where(dtype == "fp8", 6e14, 3e14)
    memory = (m * k + k * n + 2 * m * n) * np.where(dtype == "fp8", 1, 2) / 1.6e12
    seconds = (4e-6 + np.maximum(compute, memory)) * np.exp(0.02 * rng.normal(size=count))
    watts = 90 + 380 * compute / (compute + memory + 4e-6) * np.exp(0.02 * rng.normal(size=count))
    return X, pd.DataFrame({"time_s": seconds, "power_w": watts}), X["n"].astype(str) + "x" + X["k"].astype(str)


@pytest.fixture(scope="module")
def fitted() -> tuple[KernelPredictor, pd.DataFrame]:
    X, y, groups = rows(20_000)
    return KernelPredictor({"box": BOX}).fit(X, y, groups), X


def test_one_row(fitted: tuple[KernelPredictor, pd.DataFrame], benchmark: Any) -> None:
    predictor, X = fitted
    question = X.iloc[0].to_dict()
    benchmark(lambda: predictor.predict_one(**question))
    print(f"\none row: median {benchmark.stats.stats.median * 1e6:.0f} us")


def test_batch(fitted: tuple[KernelPredictor, pd.DataFrame], benchmark: Any) -> None:
    predictor, X = fitted
    many = pd.concat([X] * 10, ignore_index=True)
    predictor.predict(many)
    benchmark.pedantic(lambda: predictor.predict(many), rounds=7)
    print(f"\nbatch: median {len(many) / benchmark.stats.stats.median:,.0f} rows/s")


def test_fit_of_100_000_rows(benchmark: Any) -> None:
    X, y, groups = rows(100_000)
    start = time.process_time()
    benchmark.pedantic(lambda: KernelPredictor({"box": BOX}).fit(X, y, groups), rounds=1)
    spent = time.process_time() - start
    print(f"\nfit of 100,000 rows: {benchmark.stats.stats.median:.0f} s, {spent:.0f} s of processor time")
