"""From a run folder to a predictor and its evaluation; honest splits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.errors import DataError, ParamError
from wattline.predictors import evaluate, fit_run, from_frame, from_run, load
from wattline.predictors.datasets import left_out
from wattline.predictors.splits import Frontier, LeaveGroupsOut, LeaveOneDeviceOut
from wattline.run import Run

DOCS = Path(__file__).resolve().parents[2] / "docs" / "predictors.md"


def test_only_valid_rows_feed(run_folder: Path) -> None:
    frame = Run(run_folder).to_frame()
    X, y, groups = from_frame(frame)
    assert len(frame) == 60
    assert len(X) == len(y) == len(groups) == 58  # one failed, one flagged
    assert set(X.columns) == {"op", "device", "impl", "dtype", "regime", "data", "batch", "m", "n", "k", "layout"}
    assert y["time_s"].gt(0).all()
    assert y["power_w"].notna().sum() == 29


def test_a_shape_is_one_group_in_every_regime(run_folder: Path) -> None:
    X, _, groups = from_run(run_folder)
    for _, rows in X.groupby(["m", "n", "k"]):
        assert groups[rows.index].nunique() == 1
    assert groups.nunique() == len(X[["m", "n", "k"]].drop_duplicates())


def test_fit_run_leaves_a_predictor_in_the_folder(run_folder: Path, tmp_path: Path) -> None:
    made = fit_run(run_folder)
    back = load(run_folder)
    e = back.estimate("gemm.dense", m=512, n=512, k=512)
    assert e.question["device"] == "test-cpu"
    assert e.question["regime"] == "cold"
    assert e.source == "learned"
    assert e.in_domain
    assert e.time_s == pytest.approx(6e-6 + 2 * 512**3 / 7e10, rel=0.25)
    assert e.power_w == pytest.approx(40, rel=0.05)
    assert back.devices_["test-cpu"].measured == Run(run_folder).device.measured
    assert made.provenance_["source"] == "run run"
    fit_run(run_folder, tmp_path / "else.wl")
    assert (tmp_path / "else.wl").is_file()


def test_too_few_rows_say_what_to_do(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 valid rows") as caught:
        fit_run(run_maker(tmp_path / "small", rows=6))
    assert "measure more" in caught.value.todo
    assert "failed" in caught.value.why
    assert not (tmp_path / "small" / "predictor.wl").exists()


def test_a_frame_of_something_else(table: Any) -> None:
    with pytest.raises(DataError, match="valid"):
        from_frame(table.X)


def test_evaluation_judges_on_shapes_left_out(run_folder: Path) -> None:
    X, y, groups = from_run(run_folder)
    result = evaluate(X, y, groups, {"test-cpu": Run(run_folder).device}, folds=4)
    assert list(result.frame.index) == list(X.index)
    assert np.array_equal(result.frame["time_s"], y["time_s"])
    folds_of_group = result.frame.groupby(groups)["fold"].nunique()
    assert (folds_of_group == 1).all()
    assert result.scores["rows"] == 58
    assert result.scores["median_ape"] < result.scores["roofline_median_ape"]
    assert 0.6 < result.scores["coverage"] <= 1
    assert result.scores["power_mape"] < 10
    assert list(result.by_class["op"]) == ["gemm.dense"]
    assert result.learning["rows"].is_monotonic_increasing
    assert "whole groups" in result.split


def test_evaluation_needs_groups(table: Any) -> None:
    with pytest.raises(DataError, match="two groups"):
        evaluate(table.X.head(4), table.y.head(4), np.zeros(4))


def test_groups_stay_together_and_every_row_is_tested_once() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 23, 500)
    tested = np.zeros(500, int)
    sizes = []
    for train, test in LeaveGroupsOut(5).split(None, groups=groups):
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == 500
        tested[test] += 1
        sizes.append(len(test))
    assert (tested == 1).all()
    assert max(sizes) < 1.3 * min(sizes)


def test_splits_of_devices_and_frontier(large_fit: Any) -> None:
    X = large_fit[0].X
    names = [set(X["device"].iloc[test]) for _, test in LeaveOneDeviceOut().split(X)]
    assert names == [{"box"}, {"second"}]
    assert LeaveOneDeviceOut().get_n_splits(X) == 2
    ((train, test),) = Frontier("m", limit=1000).split(X)
    assert X["m"].iloc[train].max() <= 1000 < X["m"].iloc[test].min()
    ((train, test),) = Frontier("m", share=0.75).split(X)
    assert len(test) == pytest.approx(len(X) / 4, rel=0.05)


def test_splits_refuse_what_makes_no_sense(table: Any) -> None:
    with pytest.raises(DataError, match="at least two"):
        list(LeaveOneDeviceOut().split(table.X))
    with pytest.raises(DataError, match="needs groups"):
        list(LeaveGroupsOut().split(table.X))
    with pytest.raises(DataError, match="at least as many"):
        list(LeaveGroupsOut(5).split(table.X, groups=np.zeros(len(table.X))))
    with pytest.raises(ParamError, match="n_splits"):
        list(LeaveGroupsOut(1).split(table.X, groups=table.groups))
    with pytest.raises(DataError, match="no column"):
        list(Frontier("bytes").split(table.X))
    with pytest.raises(DataError, match="empty"):
        list(Frontier("m", limit=1e9).split(table.X))


def test_sklearn_takes_our_splitters(table: Any) -> None:
    from sklearn.dummy import DummyRegressor
    from sklearn.model_selection import cross_val_score

    scores = cross_val_score(
        DummyRegressor(), table.X[["m", "n", "k"]], table.y["time_s"], groups=table.groups, cv=LeaveGroupsOut(4)
    )
    assert len(scores) == 4


def test_the_documented_examples_run(run_folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="ascii"), flags=re.S)
    assert blocks
    fit_run(run_folder)
    scope: dict[str, Any] = {"run": str(run_folder)}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), scope)
    assert isinstance(scope["table"], pd.DataFrame)


def test_what_ran_under_caps_is_left_out_openly(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    path = run_maker(tmp_path / "run")
    records = list(Run(path).records())
    lines = []
    for i, record in enumerate(records):
        caps: dict[str, float] = {"power_limit_w": 300.0} if i % 6 == 2 else {"clock_hz": 1e9} if i % 6 == 3 else {}
        lines.append(replace(record, case=replace(record.case, **caps)).to_json() + "\n")
    (path / "records.jsonl").write_text("".join(lines))
    frame = Run(path).to_frame()
    X, _, _ = from_frame(frame)
    assert len(X) == 58 - 20
    assert not {"power_limit_w", "clock_hz"} & set(X.columns)
    assert left_out(frame) == {"under a power limit or a locked clock": 20}
    made = fit_run(path)
    assert made.provenance_["left_out"] == {"under a power limit or a locked clock": 20}
    older = frame.drop(columns=["power_limit_w", "clock_hz"])  # a frame of before there were caps
    assert len(from_frame(older)[0]) == 58
    assert left_out(older) == {}
