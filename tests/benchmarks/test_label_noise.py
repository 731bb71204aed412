"""How far published readings repeat: the floor under every error of power that is judged on them.

Run with ``pytest tests/benchmarks/test_label_noise.py --benchmark-only -s`` and the public measurements in
$WATTLINE_DATA (aiconfigurator's H200 rows: ai-dynamo/aiconfigurator, Apache-2.0).

Twins are attention kernels of equal shape, one with a bf16 and one with an fp8 cache. Were their powers equal and
their errors independent, one reading would err by their difference over the square root of two; they differ a little
by nature, so that this is the most that noise accounts for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

SHAPE = ["batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "window", "impl", "dtype"]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_power_of_twins(shared_data: Path, phase: str, benchmark: Any) -> None:
    rows = pd.read_parquet(shared_data / "aiconfigurator" / f"{phase}.parquet")
    rows = rows[(rows["device"] == "h200-sxm") & rows["power_w"].notna()]

    def twins() -> pd.Series[float]:
        shape = [name for name in SHAPE if name in rows]
        pairs = rows.pivot_table(index=shape, columns="kv_dtype", values="power_w").dropna()
        return np.abs(np.log(pairs["bf16"] / pairs["fp8"]))

    apart = benchmark.pedantic(twins, rounds=1)
    one = apart.mean() / np.sqrt(2.0)
    benchmark.extra_info |= {"pairs": len(apart), "apart": float(apart.mean()), "one": float(one)}
    print(f"\n{phase}: {len(apart)} twins differ by {apart.mean():.1%} (median {apart.median():.1%}),")
    print(f"{one:.1%} a reading")
    assert len(apart) > 1000


def test_time_of_neighbours(shared_data: Path, benchmark: Any) -> None:
    """Products whose only difference is one row more, where nothing is padded: m = 9 and 10, 14 and 15."""
    rows = pd.read_parquet(shared_data / "aiconfigurator" / "gemm.parquet")
    rows = rows[rows["device"] == "h200-sxm"]

    def neighbours() -> pd.Series[float]:
        times = rows.pivot_table(index=["dtype", "n", "k"], columns="m", values="time_s")
        steps = [np.log(times[b] / times[a]) for a, b in ((9, 10), (14, 15))]
        return np.abs(pd.concat([step - step.median() for step in steps]).dropna())

    apart = benchmark.pedantic(neighbours, rounds=1)
    print(f"\ngemm time: {len(apart)} neighbours differ by {apart.mean():.2%} (median {apart.median():.2%})")
    assert len(apart) > 1000
