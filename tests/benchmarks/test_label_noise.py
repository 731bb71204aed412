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


def test_power_of_rows_that_nobody_measured(shared_data: Path, benchmark: Any) -> None:
    """Whole values of m left out: what boosted trees that know 20,000 other rows, and each row's true time, err by.

    Some values of m read low at every k, as if the meter saw what ran before; fifty rows of a device have met few.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import GroupKFold

    rows = pd.read_parquet(shared_data / "aiconfigurator" / "gemm.parquet")
    rows = rows[(rows["device"] == "h200-sxm") & rows["power_w"].notna()].sample(25_000, random_state=0)
    width = rows["dtype"].map({"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0})
    work = 2.0 * rows["m"] * rows["n"] * rows["k"]
    moved = width * (rows["m"] * rows["k"] + rows["k"] * rows["n"]) + 2.0 * rows["m"] * rows["n"]
    features = np.log2(rows[["m", "n", "k"]].astype(float)).assign(
        time=np.log2(rows["time_s"]), flops=np.log2(work / rows["time_s"]), bytes=np.log2(moved / rows["time_s"]),
        dtype=width,
    )  # fmt: skip
    power = rows["power_w"].to_numpy(float)

    def errors(left_out: pd.Series[Any]) -> Any:
        found = np.empty(len(rows))
        for train, test in GroupKFold(5).split(features, groups=left_out):
            trees = HistGradientBoostingRegressor(
                max_iter=400, learning_rate=0.08, loss="absolute_error", random_state=0
            )
            trees.fit(features.iloc[train], np.log(power[train]))
            found[test] = np.abs(np.exp(trees.predict(features.iloc[test])) / power[test] - 1.0)
        return found

    by_m = benchmark.pedantic(errors, args=(rows["m"],), rounds=1)
    by_site = errors(rows["site"])
    print(f"\ngemm power: values of m left out {by_m.mean():.1%} (median {np.median(by_m):.1%}),")
    print(f"pairs of n and k left out {by_site.mean():.1%} (median {np.median(by_site):.1%})")
    benchmark.extra_info |= {"m": float(by_m.mean()), "site": float(by_site.mean())}
    assert by_m.mean() > by_site.mean()


def test_time_where_the_range_is_known(shared_data: Path, benchmark: Any) -> None:
    """Vidur's products above m = 1,024: trees that learn all below, and above too but for the (n, k) that are asked.

    What these err by is what is left when nothing has to be extrapolated; below alone is the task of a frontier.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import GroupKFold

    rows = pd.read_parquet(shared_data / "vidur" / "gemm.parquet").sample(25_000, random_state=0)
    flops, bandwidth, units = (
        rows["device"].map(facts).astype(float)
        for facts in (
            {"a100-sxm-80gb": 312e12, "a40": 150e12}, {"a100-sxm-80gb": 2.0e12, "a40": 0.7e12},
            {"a100-sxm-80gb": 108, "a40": 84},
        )
    )  # fmt: skip
    m, n, k = (rows[name].astype(float) for name in "mnk")
    roof = np.maximum(2 * m * n * k / flops, 2 * (m * k + k * n + m * n) / bandwidth)
    features = pd.DataFrame({"m": np.log2(m), "n": np.log2(n), "k": np.log2(k), "device": units})
    for height in (64, 128, 256):
        for width in (64, 128, 256):
            waves = np.ceil(m / height) * np.ceil(n / width) / units
            features[f"waves_{height}_{width}"] = np.log2(waves)
            features[f"fill_{height}_{width}"] = waves / np.ceil(waves)
    target = np.log(rows["time_s"] / roof).to_numpy(float)
    above = np.flatnonzero(rows["m"] > 1024)
    below = np.flatnonzero(rows["m"] <= 1024)

    def errors(train: Any, test: Any) -> Any:
        trees = HistGradientBoostingRegressor(
            max_iter=1000, learning_rate=0.06, max_leaf_nodes=63, loss="absolute_error", random_state=0
        )
        trees.fit(features.iloc[train], target[train])
        return np.abs(np.expm1(trees.predict(features.iloc[test]) - target[test]))

    def known() -> Any:
        folds = GroupKFold(5).split(above, groups=rows["site"].iloc[above])
        return np.concatenate([errors(np.concatenate([below, above[a]]), above[b]) for a, b in folds])

    within = benchmark.pedantic(known, rounds=1)
    beyond = errors(below, above)
    print(f"\ntime above m = 1024: {within.mean():.1%} with other (n, k) known there, {beyond.mean():.1%} with none")
    benchmark.extra_info |= {"within": float(within.mean()), "beyond": float(beyond.mean())}
    assert within.mean() < beyond.mean()


def test_collectives_at_the_edge(shared_data: Path, benchmark: Any) -> None:
    """The largest quarter of the message sizes: how far bandwidth still rises there, and what levels would leave."""
    from wattline.predictors import KernelPredictor

    rows = pd.read_parquet(shared_data / "aiconfigurator" / "nccl.parquet")
    edge = rows["bytes"].quantile(0.75)
    small, large = rows[rows["bytes"] <= edge], rows[rows["bytes"] > edge]
    drop = ["time_s", "power_w", "site"]

    def errors() -> pd.Series[float]:
        fitted = KernelPredictor().fit(
            small.drop(columns=drop, errors="ignore"), small[["time_s"]], groups=small["site"]
        )
        return np.log(fitted.predict(large.drop(columns=drop, errors="ignore"))["time_s"] / large["time_s"])

    error = benchmark.pedantic(errors, rounds=1)
    level = error.groupby([large[c] for c in ("op", "device", "world_size", "dtype")]).transform("mean")
    twins = large.pivot_table(index=["op", "device", "world_size", "bytes"], columns="dtype", values="time_s").dropna()
    apart = np.abs(np.log(twins.iloc[:, 0] / twins.iloc[:, 1]))
    linked = rows[rows["device"] != "l40s"].assign(rate=rows["bytes"] / rows["time_s"])
    ends = linked.sort_values("bytes").groupby(["op", "device", "world_size", "dtype"])
    share = ends.apply(lambda g: g["rate"][g["bytes"] <= edge].iloc[-1] / g["rate"].iloc[-1])
    print(f"\ncollectives above {edge / 2**20:.0f} MiB: error {error.abs().mean():.1%}, bias {error.mean():+.1%},")
    print(f"with levels known {np.abs(error - level).mean():.1%}; formats of equal bytes differ by {apart.mean():.1%}")
    print(f"(median {apart.median():.1%}); at the edge {share.min():.0%} to {share.max():.0%} of the last bandwidth")
    assert len(apart) > 100
