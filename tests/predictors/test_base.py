"""The base of kernels: floors, what hides beside the work, passes, depth that is split; and kernels that are alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wattline.device import DeviceSpec
from wattline.predictors import KernelPredictor
from wattline.predictors.base import Base, Curve, fit_kernel
from wattline.predictors.families import _alignment, family_of
from wattline.predictors.floors import with_floors
from wattline.predictors.physics import ONE, Machine, many, terms_of
from wattline.predictors.table import blocks_of
from wattline.workmodels import work_model

BOX = DeviceSpec(
    id="box", peak_flops={"bf16": 1e15}, memory_bandwidth=4e12, l2_bytes=5e7, sm_count=100, tdp_w=700.0, kind="gpu"
)


def made(rows: int, *, floor: float, sharp: float, passes: float, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    busy = 10 ** rng.uniform(-6, -3, rows)
    streamed = busy * 10 ** rng.uniform(-2, 0, rows)
    whole = busy + passes * streamed
    time = (floor**sharp + whole**sharp) ** (1 / sharp) * np.exp(0.03 * rng.normal(size=rows))
    return time, busy, streamed


@pytest.mark.parametrize(
    ("floor", "sharp", "passes"), [(5e-6, 1.0, 0.0), (5e-5, 4.0, 0.0), (5e-5, 4.0, 6.0), (5e-5, 1.0, 3.0)]
)
def test_how_a_kernel_adds_up_is_found(floor: float, sharp: float, passes: float) -> None:
    found = fit_kernel(*made(2000, floor=floor, sharp=sharp, passes=passes), prior=4e-6)
    assert found.sharp == sharp
    assert found.passes == passes
    assert found.alpha[0] == pytest.approx(floor, rel=0.2)


def test_few_rows_say_nothing_but_a_floor() -> None:
    found = fit_kernel(*made(40, floor=5e-5, sharp=8.0, passes=8.0), prior=4e-6)
    assert (found.sharp, found.passes) == (1.0, 0.0)


def test_rows_alone_are_looked_at_where_nobody_knows_the_activations() -> None:
    time, busy, _ = made(500, floor=5e-5, sharp=1.0, passes=0.0)
    assert fit_kernel(time, busy, np.zeros(500), 4e-6).passes == 0.0


def test_curves_come_back_from_bundles_also_those_of_before() -> None:
    curve = Curve((0.0,), (5e-5,), (1.0,), (0.0,), 4.0, 6.0)
    assert Base.from_state(Base({"*": curve}).state()).curves["*"] == curve
    old = Base.from_state({"*": [[0.0], [5e-5], [1.0], [0.0]]}).curves["*"]
    assert old == dataclasses.replace(curve, sharp=1.0, passes=0.0)


def test_of_two_devices_that_differ_the_others_get_the_plainer_shape() -> None:
    base = Base(
        {f"{name}||k|bf16": Curve((0.0,), (5e-6,), (1.0,), (0.0,), sharp) for name, sharp in
         (("a", 1.0), ("b", 4.0))}
    )  # fmt: skip
    base.add_means()
    assert base.curves["||k|bf16"].sharp == 1.0


@given(st.integers(1, 10_000_000))
def test_alignment_is_the_power_of_two_that_divides(size: int) -> None:
    wanted = next(power for power in range(7, -1, -1) if size % 2**power == 0)
    assert _alignment(float(size), ONE) == wanted
    assert _alignment(np.array([float(size), 0.5 + size]), many()).tolist() == [wanted, 0.0]
    assert _alignment(0.5 + size, ONE) == 0.0


def busy_of(**p: float) -> float:
    family = family_of("gemm.dense")
    whole = {"batch": 1.0, **p}
    machine = Machine(BOX)
    terms = terms_of(work_model("gemm.dense"), {**whole, "dtype": "bf16"}, machine, False, ONE)
    return float(family.features(whole, terms, machine, ONE)[0])


def test_a_long_product_of_one_tile_is_split_along_its_depth() -> None:
    """One tile of 64 x 64 and 2^20 deep, on 100 multiprocessors: the base is what they take together."""
    p = {"m": 64, "n": 64, "k": 2**20}
    # 100 parts: a hundredth of the depth each at 0.65 of the peak of one multiprocessor, all at work; and 100 parts
    # of the result, written and read with four bytes a number.
    split = 2 * 64 * 64 * 2**20 / 1e15 / 0.65 + 100 * 8 * 64 * 64 / 4e12
    memory = 2 * (2 * 64 * 2**20 + 64 * 64) / 4e12
    assert busy_of(**p) == pytest.approx(max(split / 0.8, memory), rel=1e-6)


@example(m=113, n=193, k=513)  # a depth that hardly makes a second part must not cost one
@example(m=1, n=1, k=768)
@given(m=st.integers(1, 4096), n=st.integers(1, 4096), k=st.integers(16, 65536))
def test_the_base_grows_with_every_size(m: int, n: int, k: int) -> None:
    whole = busy_of(m=m, n=n, k=k)
    assert busy_of(m=2 * m, n=n, k=k) >= 0.999 * whole
    assert busy_of(m=m, n=n, k=2 * k) >= 0.999 * whole


def hidden(rows: int, device: str, impl: str, *, floor: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products whose launches hide beside the work, on top of the base's own time."""
    rng = np.random.default_rng(seed)
    m, n, k = (2.0 ** rng.integers(low, high, rows) for low, high in ((4, 15), (9, 15), (9, 15)))
    X = pd.DataFrame({"op": "gemm.dense", "device": device, "impl": impl, "dtype": "bf16", "m": m, "n": n, "k": k})
    work = np.array([busy_of(m=a, n=b, k=c) for a, b, c in zip(m, n, k, strict=True)])
    time = (floor**8 + work**8) ** (1 / 8) * np.exp(0.02 * rng.normal(size=rows))
    return X, pd.DataFrame({"time_s": time})


def test_a_few_rows_find_a_floor_that_hides_as_it_does_elsewhere() -> None:
    boxes = {name: dataclasses.replace(BOX, id=name) for name in ("box", "new")}
    X, y = hidden(300, "box", "lib", floor=4e-5, seed=0)
    predictor = KernelPredictor(boxes).fit(X, y)
    model = predictor.models_["gemm"]
    (own,) = (c for key, c in model.encoder.base.curves.items() if key.startswith("box||lib"))
    assert own.sharp >= 4
    few, seconds = hidden(30, "new", "other", floor=9e-5, seed=1)
    encoder = with_floors(model, blocks_of(few), seconds["time_s"].to_numpy(), predictor._machine)
    (found,) = (c for key, c in encoder.base.curves.items() if key.startswith("new||other"))
    assert found.alpha[0] == pytest.approx(9e-5, rel=0.2)
    assert found.sharp >= 4
    assert "new||other|bf16" not in model.encoder.base.curves
    # And the terms of an estimate add up, what hides taken off.
    why = predictor.adapt(few, seconds).estimate("gemm.dense", device="new", impl="other", m=512, n=4096, k=4096)
    terms = why.explain().terms
    assert sum(terms.values()) == pytest.approx(why.time_s)
    assert terms["launched beside the work"] < 0


def stepped(rows: int, device: str, impl: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products by one of two libraries, each slow at sizes of its own; the devices run them at different speeds."""
    rng = np.random.default_rng(seed)
    m, n, k = (2.0 ** rng.integers(low, high, rows) for low, high in ((4, 13), (8, 13), (8, 13)))
    X = pd.DataFrame({"op": "gemm.dense", "device": device, "impl": impl, "dtype": "bf16", "m": m, "n": n, "k": k})
    work = np.array([busy_of(m=a, n=b, k=c) for a, b, c in zip(m, n, k, strict=True)])
    slow = {"narrow": np.where(n < 1024, 3.0, 1.0), "deep": np.where(k < 1024, 3.0, 1.0)}["deep" if impl in
            ("deep", "renamed") else "narrow"]  # fmt: skip
    speed = {"one": 1.0, "two": 1.3, "new": 1.15}[device]
    return X, pd.DataFrame({"time_s": speed * (5e-6 + work * slow) * np.exp(0.02 * rng.normal(size=rows))})


def test_a_kernel_under_another_name_is_known_again(tmp_path: Any) -> None:
    boxes = {name: dataclasses.replace(BOX, id=name) for name in ("one", "two", "new")}
    parts = [stepped(150, device, impl, i) for i, (device, impl) in enumerate(
        [("one", "narrow"), ("one", "deep"), ("two", "narrow"), ("two", "deep")])]  # fmt: skip
    X, y = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    predictor = KernelPredictor(boxes).fit(X, y)
    adapted = predictor.adapt(*stepped(25, "new", "renamed", 7))
    ((kernel, (device, impl)),) = adapted.models_["gemm"].encoder.twins.items()
    assert (kernel, impl) == ("new|renamed|bf16", "deep")
    assert device in ("one", "two")
    assert predictor.models_["gemm"].encoder.twins == {}
    asked, seconds = stepped(200, "new", "renamed", 8)
    error = np.abs(adapted.predict(asked)["time_s"] / seconds["time_s"] - 1)
    assert error.mean() < 0.1
    adapted.save(tmp_path / "adapted.wl")
    again = KernelPredictor.load(tmp_path / "adapted.wl")
    pd.testing.assert_frame_equal(again.predict(asked), adapted.predict(asked))
    notes = again.estimate("gemm.dense", device="new", impl="renamed", m=64, n=512, k=512).explain().notes
    assert any(f"like deep on {device}" in note for note in notes)


def test_a_kernel_that_was_measured_stays_itself() -> None:
    boxes = {"one": dataclasses.replace(BOX, id="one")}
    parts = [stepped(150, "one", impl, i) for i, impl in enumerate(("narrow", "deep"))]
    X, y = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    few, seconds = stepped(25, "one", "narrow", 7)
    predictor = KernelPredictor(boxes).fit(X, y)
    other = stepped(25, "one", "deep", 7)[1]  # as if a new version of the library did as the other one does
    assert predictor.adapt(few, other).models_["gemm"].encoder.twins == {}
    assert predictor.adapt(few, seconds).models_["gemm"].encoder.twins == {}


def test_a_kernel_unlike_any_other_has_no_twin() -> None:
    boxes = {name: dataclasses.replace(BOX, id=name) for name in ("one", "new")}
    predictor = KernelPredictor(boxes).fit(*stepped(150, "one", "narrow", 0))
    X, y = stepped(25, "new", "renamed", 7)
    y["time_s"] = 4e-4  # all floor
    assert predictor.adapt(X, y).models_["gemm"].encoder.twins == {}
