"""Fifty rows of a GPU that nobody measured: what they leave of the error, for each GPU of the public tables in turn.

Run with ``pytest tests/benchmarks/test_few_rows.py --benchmark-only -s`` and the public measurements in $WATTLINE_DATA
(aiconfigurator: ai-dynamo/aiconfigurator, Apache-2.0). The predictor learns from the other GPUs (at most 12,000 rows,
half of the usual effort) and adapts to fifty rows of the one left out, four times with other rows; the errors are those
of time on 4,000 others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.predictors import KernelPredictor

FEW, DRAWS, LEARNED, ASKED = 50, 4, 12_000, 4_000


def split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return rows.drop(columns=["time_s", "power_w", "site"]), rows[["time_s"]].astype(float)


def sampled(rows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    return rows.sample(min(most, len(rows)), random_state=seed)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("table", ["gemm", "prefill", "decode"])
def test_few_rows_of_each_gpu(shared_data: Path, table: str, benchmark: Any) -> None:
    rows = pd.read_parquet(shared_data / "aiconfigurator" / f"{table}.parquet")

    def errors(device: str) -> tuple[list[float], list[float]]:
        own, others = rows[rows["device"] == device], sampled(rows[rows["device"] != device], LEARNED, 0)
        predictor = KernelPredictor(effort=0.5).fit(*split(others), groups=others["site"])
        found, medians = [], []
        for draw in range(DRAWS):
            few = own.sample(FEW, random_state=draw)
            asked, truth = split(sampled(own.drop(few.index), ASKED, 1))
            predicted = predictor.adapt(*split(few)).predict(asked)["time_s"]
            error = np.abs(predicted / truth["time_s"] - 1.0)
            found.append(float(error.mean()))
            medians.append(float(error.median()))
        return found, medians

    devices = sorted(rows["device"].unique())
    result = benchmark.pedantic(lambda: {device: errors(device) for device in devices}, rounds=1)
    print(f"\n{table}: {FEW} rows of a GPU left out, {DRAWS} draws; mean errors, and the mean of their medians")
    for device, (found, medians) in result.items():
        print(f"  {device:<14} {', '.join(f'{e:.1%}' for e in found)}; {np.mean(medians):.1%}")
        benchmark.extra_info[device] = found
    assert all(np.isfinite(found).all() for found, _ in result.values())


@pytest.mark.parametrize(("table", "count"), [("gemm", 300), ("gemm", 1000), ("prefill", 500), ("moe", 500)])
def test_a_length_for_each_feature(shared_data: Path, table: str, count: int, benchmark: Any) -> None:
    """Held-out error of the process with a length for each feature, beside the best of the other learners."""
    rows = pd.read_parquet(shared_data / "aiconfigurator" / f"{table}.parquet")
    rows = rows[rows["device"] == rows["device"].iloc[0]].sample(count, random_state=1)
    X, y = split(rows)
    predictor = benchmark.pedantic(lambda: KernelPredictor().fit(X, y, groups=rows["site"]), rounds=1)
    (model,) = predictor.models_.values()
    scores = dict(model.facts["held_out_error"])
    own, others = scores.pop("process"), min(scores.values())
    better = own / others - 1
    print(f"\n{table}, {count} rows: mean absolute log error {own:.4f}, others at best {others:.4f}: {better:+.0%}")
    assert own < 1.05 * others
