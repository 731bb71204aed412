"""What must hold of every prediction, whatever was learned."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.predictors import KernelPredictor
from wattline.work import bound
from wattline.workmodels import work_of

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
size = st.integers(1, 100_000)


def check_laws(p: pd.DataFrame, cap: float) -> None:
    assert (p["time_s"] >= p["bound_s"]).all()
    assert (p["time_lo_s"] >= p["bound_s"]).all()
    for a in ("time", "power", "energy"):
        unit = {"time": "s", "power": "w", "energy": "j"}[a]
        lo, mid, hi = (p[f"{a}{part}_{unit}"].dropna() for part in ("_lo", "", "_hi"))
        assert (lo <= mid).all()
        assert (mid <= hi).all()
    known = p["power_w"].notna()
    assert np.array_equal(p["energy_j"][known], (p["time_s"] * p["power_w"])[known])
    assert (p["power_hi_w"][known] <= cap).all()
    assert (p["power_lo_w"][known] > 0).all()


@relaxed
@given(st.tuples(size, size, size), st.sampled_from(["fp32", "bf16"]), st.floats(0.01, 0.999))
def test_laws_hold_near_and_far(
    fitted: KernelPredictor, mnk: tuple[int, int, int], dtype: str, coverage: float
) -> None:
    sizes = dict(zip("mnk", mnk, strict=True))
    X = pd.DataFrame({"op": ["gemm.dense"], "device": "box", "impl": "torch", "dtype": dtype, **sizes})
    check_laws(fitted.predict(X, coverage), cap=1.1 * 300)


def test_laws_hold_of_the_network(large_fit: tuple[Any, KernelPredictor]) -> None:
    table, model = large_fit
    far = table.X.assign(m=table.X["m"] * 64, k=table.X["k"] * 16)
    for X in (table.X, far):
        check_laws(model.predict(X), cap=1.1 * 300)


def test_the_bound_is_that_of_the_ground_floor(fitted: KernelPredictor, table: Any) -> None:
    X = table.X.head(40).assign(regime="cold")
    p = fitted.predict(X)
    for (_, row), value, by in zip(X.iterrows(), p["bound_s"], p["bound_by"], strict=True):
        expected = bound(work_of("gemm.dense", row.to_dict()), table.spec)
        assert value == pytest.approx(expected.time_s)
        assert by == expected.by


def test_a_warm_cache_lifts_the_memory_bound(fitted: KernelPredictor) -> None:
    # A square of 64 is bound by memory, and fits into 20 MB of cache thrice over.
    X = pd.DataFrame({"op": "gemm.dense", "device": "box", "impl": "torch", "dtype": "bf16", "m": 64, "n": 64, "k": 64,
                      "regime": ["cold", "hot", ""]})  # fmt: skip
    p = fitted.predict(X)
    assert list(p["bound_by"]) == ["memory", "compute", "compute"]
    assert p["bound_s"].iloc[0] > p["bound_s"].iloc[1]


@relaxed
@given(st.integers(512, 4096), st.integers(512, 4096), st.integers(4096, 30_000), st.sampled_from(["fp32", "bf16"]))
def test_time_grows_beyond_the_trained_sizes(fitted: KernelPredictor, n: int, k: int, m: int, dtype: str) -> None:
    times = [fitted.estimate("gemm.dense", m=m * f, n=n, k=k, dtype=dtype).time_s for f in (1, 2, 4, 8)]
    assert all(b > a for a, b in pairwise(times))
    # Eight times the work: not the same time, as from a forest, and not more than in proportion.
    assert 2.5 < times[3] / times[0] < 10


def test_intervals_grow_with_coverage_and_outside(fitted: KernelPredictor) -> None:
    ask = {"m": 500, "n": 500, "k": 500, "dtype": "fp32"}
    widths = [np.log(e.time_hi_s / e.time_s) for e in
              (fitted.estimate("gemm.dense", coverage=c, **ask) for c in (0.5, 0.8, 0.9, 0.99))]  # fmt: skip
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    near = fitted.estimate("gemm.dense", m=3000, n=3000, k=3000, dtype="fp32")
    far = fitted.estimate("gemm.dense", m=400_000, n=3000, k=3000, dtype="fp32")
    assert near.in_domain
    assert not far.in_domain
    assert far.time_hi_s / far.time_s > near.time_hi_s / near.time_s


def test_coverage_holds_for_shapes_never_seen(fitted: KernelPredictor, table_of: Callable[..., Any]) -> None:
    fresh = table_of(800, 99)
    for coverage, slack in ((0.5, 0.12), (0.9, 0.07)):
        p = fitted.predict(fresh.X, coverage)
        for name, true in (("time", fresh.y["time_s"]), ("power", fresh.y["power_w"])):
            unit = "s" if name == "time" else "w"
            held = ((p[f"{name}_lo_{unit}"] <= true) & (true <= p[f"{name}_hi_{unit}"])).mean()
            assert held == pytest.approx(coverage, abs=slack), name


def test_it_learns(fitted: KernelPredictor, table_of: Callable[..., Any]) -> None:
    fresh = table_of(400, 98)
    p = fitted.predict(fresh.X)
    error = np.abs(p["time_s"] / fresh.y["time_s"] - 1)
    roofline = np.abs(p["bound_s"] / fresh.y["time_s"] - 1)
    assert error.median() < 0.06  # the noise alone is 4 %
    assert error.median() < 0.25 * roofline.median()
    assert np.abs(p["power_w"] / fresh.y["power_w"] - 1).median() < 0.06


def test_sizes_beyond_the_training_are_predicted_by_physics(table_of: Callable[..., Any]) -> None:
    small, large = table_of(200, 4, largest=10), table_of(200, 5, largest=13)
    model = KernelPredictor({"box": small.spec}).fit(small.X, small.y, small.groups)
    beyond = large.X[["m", "n", "k"]].max(axis=1) > 2000
    p = model.predict(large.X[beyond])
    assert np.abs(p["time_s"] / large.y["time_s"][beyond] - 1).median() < 0.3


def test_equal_seeds_give_equal_predictors(table: Any, fitted: KernelPredictor) -> None:
    again = KernelPredictor({"box": table.spec}).fit(table.X, table.y, table.groups)
    pd.testing.assert_frame_equal(again.predict(table.X), fitted.predict(table.X))


def test_the_order_of_rows_does_not_matter(fitted: KernelPredictor, table: Any) -> None:
    mixed = table.X.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(fitted.predict(mixed).loc[table.X.index], fitted.predict(table.X), rtol=1e-9)
