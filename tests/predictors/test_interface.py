"""The interface: scikit-learn's manners, single estimates, adaptation, errors for each bad input."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.device import DeviceSpec
from wattline.errors import DataError, NotFittedError, ParamError, UnknownNameError, UnsupportedError, WattlineError
from wattline.predictors import KernelPredictor
from wattline.predictors.estimate import Estimate

ASK: dict[str, Any] = {"m": 700, "n": 800, "k": 900, "dtype": "bf16"}


def test_importing_and_loading_stay_light(fitted: KernelPredictor, tmp_path: Path) -> None:
    fitted.save(tmp_path / "p.wl")
    script = (
        "import sys\nimport wattline.predictors as p\n"
        "assert not {'torch', 'sklearn', 'pandas', 'numpy'} & set(sys.modules)\n"
        f"print(p.load({str(tmp_path / 'p.wl')!r}).estimate('gemm.dense', m=700, n=800, k=900, dtype='bf16'))\n"
        "assert not {'torch', 'sklearn', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(fitted.estimate("gemm.dense", **ASK))


def test_parameters_and_clone(table: Any) -> None:
    from sklearn.base import clone

    model = KernelPredictor({"box": table.spec}, random_state=3)
    assert model.get_params() == {"devices": {"box": table.spec}, "random_state": 3, "effort": 1.0}
    twin = clone(model)
    assert twin is not model
    assert twin.get_params() == model.get_params()
    assert model.set_params(random_state=5).random_state == 5
    with pytest.raises(UnknownNameError, match="seed"):
        model.set_params(seed=1)
    assert model.fit(table.X.head(20), table.y.head(20)) is model


def test_one_equals_many(fitted: KernelPredictor, table: Any) -> None:
    many = fitted.predict(table.X.head(25), 0.8)
    for (_, row), (_, expected) in zip(table.X.head(25).iterrows(), many.iterrows(), strict=True):
        one = fitted.predict_one(**row.to_dict(), coverage=0.8)
        for name, value in expected.items():
            got = getattr(one, str(name))
            assert got == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name


def test_one_equals_many_of_the_network(large_fit: tuple[Any, KernelPredictor]) -> None:
    table, model = large_fit
    rows = table.X.iloc[[0, 1, 1200, 1201]]
    many = model.predict(rows)
    for (_, row), (_, expected) in zip(rows.iterrows(), many.iterrows(), strict=True):
        one = model.predict_one(**row.to_dict())
        assert one.time_s == pytest.approx(expected["time_s"], rel=1e-4)
        assert one.time_hi_s == pytest.approx(expected["time_hi_s"], rel=1e-4)
        assert math.isnan(one.power_w) == math.isnan(expected["power_w"])


def test_an_estimate_reads_well(fitted: KernelPredictor) -> None:
    e = fitted.estimate("gemm.dense", **ASK)
    text = str(e)
    assert text.endswith("in domain")
    assert re.fullmatch(r"[\d.]+ us \[[\d.]+, [\d.]+\], [\d.]+ mJ, bound [\d.]+ us by compute, in domain", text)
    assert f"by {e.bound_by}" in text
    assert set(e.to_dict()) >= {"time_s", "power_w", "energy_j", "bound_by", "question"}
    assert e.question["device"] == "box"


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ((1.2e-3, 1.84e-3, 2.5e-3), "1.84 ms [1.20, 2.50]"),
        ((1.26e-3, 1.84e-3, 1.2993), "1.84 ms [1.26, 1.30 s]"),
        ((3e-7, 1.84e-3, 2e-3), "1.84 ms [300 ns, 2.00]"),
        ((1500.0, 2000.0, 2600.0), "2.00 ks [1.50, 2.60]"),
        ((9.42e33, 1.37e34, 7e55), "1.37e+34 s [9.42e+33 s, 7.00e+55 s]"),
    ],
)
def test_the_ends_of_an_interval_are_in_the_unit_shown(times: tuple[float, float, float], text: str) -> None:
    lo, mid, hi = times
    nan = math.nan
    e = Estimate(mid, lo, hi, nan, nan, nan, nan, nan, nan, lo, "compute", True, "learned", 0.9)
    assert str(e).startswith(text + ",")


def test_an_explanation_adds_up(fitted: KernelPredictor) -> None:
    e = fitted.estimate("gemm.dense", **ASK)
    why = e.explain()
    assert sum(why.terms.values()) == pytest.approx(e.time_s)
    assert why.bound_by == e.bound_by
    assert why.limited_by in why.terms
    assert len(why.nearest) == 3
    assert all(row["op"] == "gemm.dense" and row["time_s"] > 0 for row in why.nearest)
    assert "nearest measured rows" in str(why)


def test_a_measured_row_is_nearest_to_itself(fitted: KernelPredictor, table: Any) -> None:
    row = table.X.iloc[7]
    nearest = fitted.predict_one(**row.to_dict()).explain().nearest[0]
    assert (nearest["m"], nearest["n"], nearest["k"], nearest["dtype"]) == (row.m, row.n, row.k, row["dtype"])
    assert nearest["distance"] == pytest.approx(0, abs=1e-5)


def test_without_power_no_joules(table: Any) -> None:
    model = KernelPredictor({"box": table.spec}).fit(table.X, table.y[["time_s"]], table.groups)
    e = model.estimate("gemm.dense", **ASK)
    assert math.isnan(e.energy_j)
    assert "no power measured" in str(e)
    assert e.to_dict()["power_w"] is None
    assert model.predict(table.X)["energy_j"].isna().all()


def test_adapting_learns_a_slower_device(fitted: KernelPredictor, table_of: Callable[..., Any]) -> None:
    spec = DeviceSpec.from_dict({**fitted.devices_["box"].to_dict(), "id": "slow-box"})
    slow = table_of(400, 11, spec=spec, slow=1.7)
    few, rest = slow.X.head(40), slow.X.iloc[40:]
    true = slow.y["time_s"].iloc[40:]
    model = KernelPredictor({"box": fitted.devices_["box"], "slow-box": spec})
    base = table_of()
    model.fit(base.X, base.y, base.groups)
    before = model.predict(rest)
    adapted = model.adapt(few, slow.y.head(40))
    after = adapted.predict(rest)
    assert (before["source"] == "transfer").all()
    assert not before["in_domain"].any()
    assert (after["source"] == "learned").all()
    assert np.abs(after["time_s"] / true - 1).median() < 0.3 * np.abs(before["time_s"] / true - 1).median()
    assert ((after["time_lo_s"] <= true) & (true <= after["time_hi_s"])).mean() > 0.8
    # What was known stays what it was, in the adapted one and in the one before.
    pd.testing.assert_frame_equal(adapted.predict(base.X), model.predict(base.X))
    pd.testing.assert_frame_equal(model.predict(rest), before)


def test_power_is_learned_from_few_rows(table_of: Callable[..., Any]) -> None:
    blind = table_of(power=False)
    model = KernelPredictor({"box": blind.spec}).fit(blind.X, blind.y, blind.groups)
    fresh = table_of(300, 12)
    p = model.adapt(fresh.X.head(50), fresh.y.head(50)).predict(fresh.X.iloc[50:])
    assert np.abs(p["power_w"] / fresh.y["power_w"].iloc[50:] - 1).median() < 0.1


def test_where_figures_come_from(large_fit: tuple[Any, KernelPredictor]) -> None:
    _, model = large_fit
    ask = {"m": 512, "n": 512, "k": 512}
    learned = model.estimate("gemm.dense", device="box", dtype="bf16", **ask)
    other = model.estimate("gemm.dense", device="h100-sxm", dtype="bf16", **ask)
    impl = model.estimate("gemm.dense", device="box", dtype="bf16", impl="triton", **ask)
    unlearned = model.estimate("softmax.rows", device="box", dtype="bf16", rows=4096, cols=4096)
    assert [e.source for e in (learned, other, impl, unlearned)] == ["learned", "transfer", "transfer", "analytical"]
    assert [e.in_domain for e in (learned, other, impl, unlearned)] == [True, False, False, False]
    width = [math.log(e.time_hi_s / e.time_s) for e in (learned, impl, unlearned)]
    assert width == sorted(width)
    assert unlearned.time_s >= unlearned.bound_s > 0
    assert sum(unlearned.explain().terms.values()) == pytest.approx(unlearned.time_s)
    frame = model.predict(pd.DataFrame({"op": ["softmax.rows"], "device": "box", "impl": "torch", "dtype": "bf16",
                                        "rows": 4096, "cols": 4096}))  # fmt: skip
    assert frame["source"].item() == "analytical"
    assert frame["time_s"].item() == pytest.approx(unlearned.time_s)


BAD_FRAMES: dict[str, tuple[Callable[[pd.DataFrame], Any], type[WattlineError], str]] = {
    "no column": (lambda X: X.drop(columns="device"), DataError, "device"),
    "no frame": (lambda X: X.to_dict(), DataError, "DataFrame"),
    "unknown op": (lambda X: X.assign(op="gemm.dens"), UnknownNameError, "gemm.dense"),
    "unknown device": (lambda X: X.assign(device="h300"), UnknownNameError, "h300"),
    "unknown format": (lambda X: X.assign(dtype="bf61"), UnknownNameError, "bf16"),
    "unsupported format": (lambda X: X.assign(dtype="fp64"), UnsupportedError, "fp64"),
    "NaN size": (lambda X: X.assign(m=np.nan), ParamError, "m"),
    "missing size": (lambda X: X.drop(columns="k"), ParamError, "k"),
    "zero size": (lambda X: X.assign(n=0), ParamError, "above zero"),
    "negative size": (lambda X: X.assign(n=-4), ParamError, "above zero"),
    "infinite size": (lambda X: X.assign(n=np.inf), ParamError, "finite"),
    "empty word": (lambda X: X.assign(impl=None), DataError, "impl"),
    "a target": (lambda X: X.assign(time_s=1.0), DataError, "time_s"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_are_typed_errors(fitted: KernelPredictor, table: Any, name: str) -> None:
    spoil, kind, text = BAD_FRAMES[name]
    with pytest.raises(kind, match=text):
        fitted.predict(spoil(table.X.head(3).copy()))


BAD_ASKS: dict[str, tuple[dict[str, Any], type[WattlineError]]] = {
    "no size": ({"op": "gemm.dense", "m": 4, "n": 4, "dtype": "fp32"}, ParamError),
    "None size": ({"op": "gemm.dense", "m": 4, "n": 4, "k": None, "dtype": "fp32"}, ParamError),
    "NaN size": ({"op": "gemm.dense", "m": 4, "n": 4, "k": math.nan, "dtype": "fp32"}, ParamError),
    "zero size": ({"op": "gemm.dense", "m": 4, "n": 4, "k": 0, "dtype": "fp32"}, ParamError),
    "word for size": ({"op": "gemm.dense", "m": 4, "n": 4, "k": "large", "dtype": "fp32"}, ParamError),
    "two formats": ({"op": "gemm.dense", "m": 4, "n": 4, "k": 4}, ParamError),
    "unknown op": ({"op": "gemm", "m": 4, "n": 4, "k": 4, "dtype": "fp32"}, UnknownNameError),
    "unknown device": ({"op": "gemm.dense", "m": 4, "n": 4, "k": 4, "dtype": "fp32", "device": "x"}, UnknownNameError),
    "unknown format": ({"op": "gemm.dense", "m": 4, "n": 4, "k": 4, "dtype": "fp23"}, UnknownNameError),
    "coverage": ({"op": "gemm.dense", "m": 4, "n": 4, "k": 4, "dtype": "fp32", "coverage": 1.5}, ParamError),
}


@pytest.mark.parametrize("name", BAD_ASKS)
def test_bad_questions_are_typed_errors(fitted: KernelPredictor, name: str) -> None:
    ask, kind = BAD_ASKS[name]
    with pytest.raises(kind):
        fitted.predict_one(**ask)


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 2, "0.9", None])
def test_coverage_must_be_a_share(fitted: KernelPredictor, table: Any, coverage: Any) -> None:
    with pytest.raises(ParamError, match="coverage"):
        fitted.predict(table.X, coverage)


def test_bad_targets_are_typed_errors(table: Any) -> None:
    model = KernelPredictor({"box": table.spec})
    for y, text in (
        (table.y.assign(time_s=np.where(table.y.index == 5, np.nan, 1.0)), "time_s"),
        (table.y.assign(time_s=0.0), "above zero"),
        (table.y.assign(power_w=-1.0), "power_w"),
        (table.y.head(3), "rows"),
        (table.y[["power_w"]], "time_s"),
    ):
        with pytest.raises(DataError, match=text):
            model.fit(table.X, y)
    with pytest.raises(DataError, match="groups"):
        model.fit(table.X, table.y, [1, 2])
    with pytest.raises(DataError, match="no row"):
        model.fit(table.X.head(0), table.y.head(0))


def test_asking_before_fitting(table: Any, tmp_path: Path) -> None:
    model = KernelPredictor()
    for ask in (
        lambda: model.predict(table.X), lambda: model.estimate("gemm.dense", **ASK),
        lambda: model.adapt(table.X, table.y), lambda: model.save(tmp_path / "p.wl"),
    ):  # fmt: skip
        with pytest.raises(NotFittedError):
            ask()


def test_no_rows_give_no_rows(fitted: KernelPredictor, table: Any) -> None:
    p = fitted.predict(table.X.head(0))
    assert len(p) == 0
    assert "time_s" in p


def test_objects_and_mixed_operations(table: Any) -> None:
    """Frames as pandas makes them of mixed tables: NaN where absent, truth values as objects."""
    rows = pd.DataFrame({"op": "attention.prefill", "device": "box", "impl": "torch", "dtype": "bf16",
                         "q_len": [64, 128, 256, 512] * 5, "heads": 8, "kv_heads": 8, "head_dim": 64, "causal": True,
                         "window": 0, "batch": range(1, 21)})  # fmt: skip
    rows["kv_len"] = rows["q_len"]
    X = pd.concat([table.X, rows], ignore_index=True)
    y = pd.concat([table.y, pd.DataFrame({"time_s": 1e-5 * np.arange(1, 21)})], ignore_index=True)
    model = KernelPredictor({"box": table.spec}).fit(X, y)
    assert set(model.models_) == {"gemm", "prefill"}
    p = model.predict(X)
    assert p["time_s"].notna().all()
    one = model.estimate("attention.prefill", q_len=64, kv_len=64, heads=8, kv_heads=8, head_dim=64, batch=1)
    assert one.time_s == pytest.approx(p["time_s"].iloc[len(table.X)], rel=1e-5)
    assert one.question["causal"] == "true"  # left out: the one most often measured
    other = model.predict_one(**{**one.question, "causal": False})
    assert not other.in_domain


def test_it_travels_between_processes(fitted: KernelPredictor) -> None:
    fitted.estimate("gemm.dense", **ASK)
    twin = pickle.loads(pickle.dumps(fitted))
    assert twin.estimate("gemm.dense", **ASK) == fitted.estimate("gemm.dense", **ASK)
