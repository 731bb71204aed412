"""Few rows of a new device on which several kernels were measured, some of them once."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.device import DeviceSpec
from wattline.predictors import KernelPredictor
from wattline.predictors.families import family_of
from wattline.predictors.physics import Machine, many, terms_of
from wattline.workmodels import work_model

BOX = DeviceSpec(
    id="one", peak_flops={"bf16": 1e15}, memory_bandwidth=4e12, l2_bytes=5e7, sm_count=100, tdp_w=700.0, kind="gpu"
)
NEW = dataclasses.replace(BOX, id="new")


def busy_of(m: Any, n: Any, k: Any) -> Any:
    whole = {"batch": np.ones(len(m)), "m": m, "n": n, "k": k}
    machine = Machine(BOX)
    terms = terms_of(work_model("gemm.dense"), {**whole, "dtype": "bf16"}, machine, False, many())
    return family_of("gemm.dense").features(whole, terms, machine, many())[0]


def measured(
    rows: int, device: str, impl: str, seed: int, *, floor: float = 5e-6, slow: float = 1.0, largest: int = 13
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products of one kernel: a floor, and ``slow`` times the base where k is at least 2,048."""
    rng = np.random.default_rng(seed)
    m, n, k = (2.0 ** rng.integers(5, largest, rows) for _ in range(3))
    X = pd.DataFrame({"op": "gemm.dense", "device": device, "impl": impl, "dtype": "bf16", "m": m, "n": n, "k": k})
    time = floor + busy_of(m, n, k) * np.where(k >= 2048, slow, 1.0)
    return X, pd.DataFrame({"time_s": time * np.exp(0.02 * rng.normal(size=rows))})


def together(*parts: tuple[pd.DataFrame, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    X, y = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    return X, y


@cache
def known() -> KernelPredictor:
    boxes = {spec.id: spec for spec in (BOX, NEW)}
    return KernelPredictor(boxes).fit(*measured(300, "one", "usual", 0))


def error(predictor: KernelPredictor, impl: str, **how: Any) -> float:
    X, y = measured(300, "new", impl, 99, **how)
    return float(np.abs(predictor.predict(X)["time_s"] / y["time_s"] - 1).mean())


def test_kernels_with_new_names_are_told_apart(tmp_path: Path) -> None:
    """To a correction of all rows they look alike: neither name was learned."""
    few = together(measured(24, "new", "quick", 1, slow=0.7), measured(24, "new", "slow", 2, slow=2.5))
    adapted = known().adapt(*few)
    (correction,) = adapted.models_["gemm"].corrections
    assert correction.apart
    assert set(correction.apart) <= {"new|quick|bf16", "new|slow|bf16"}
    for impl, slow in (("quick", 0.7), ("slow", 2.5)):
        assert error(adapted, impl, slow=slow) < 0.15
    adapted.save(tmp_path / "adapted.wl")
    again = KernelPredictor.load(tmp_path / "adapted.wl")
    pd.testing.assert_frame_equal(again.predict(few[0]), adapted.predict(few[0]))
    for i in (0, 30):
        asked = dict(few[0].iloc[i])
        one, many_rows = again.predict_one(**asked), adapted.predict(few[0])
        assert one.time_s == pytest.approx(float(many_rows["time_s"].iloc[i]))


def test_kernels_that_do_alike_are_not() -> None:
    few = together(measured(24, "new", "a", 1), measured(24, "new", "b", 2))
    (correction,) = known().adapt(*few).models_["gemm"].corrections
    assert not correction.apart


def test_one_row_of_a_kernel_with_another_floor_sets_it() -> None:
    """A launch of 150 us shows in a single small product."""
    rare = measured(1, "new", "rare", 5, floor=1.5e-4, largest=8)
    adapted = known().adapt(*together(measured(30, "new", "usual", 1), rare))
    assert error(adapted, "rare", floor=1.5e-4) < 0.2
    assert error(adapted, "usual") < 0.1
    before = known().adapt(*measured(30, "new", "usual", 1))
    assert error(before, "rare", floor=1.5e-4) > 0.5


def test_one_row_as_expected_sets_none() -> None:
    adapted = known().adapt(*together(measured(30, "new", "usual", 1), measured(1, "new", "rare", 5)))
    assert "new||rare|bf16" not in adapted.models_["gemm"].encoder.base.curves
    assert error(adapted, "rare") < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_long_rows_tell_of_no_floor_below_the_known_one(seed: int) -> None:
    """Products of 40 us and more leave open whether a launch takes 5 us or none."""
    X, y = measured(2000, "new", "usual", seed)
    long = (y["time_s"] > 4e-5).to_numpy()
    adapted = known().adapt(X[long].head(12), y[long].head(12))
    floor = next(c.alpha[0] for key, c in adapted.models_["gemm"].encoder.base.curves.items() if key.startswith("new|"))
    usual = known().models_["gemm"].encoder.base.curves["one||usual|bf16"].alpha[0]
    assert floor >= 0.99 * usual
