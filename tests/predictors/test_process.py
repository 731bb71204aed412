"""The Gaussian process with a length for each feature, as the learner for some hundreds of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.predictors import KernelPredictor
from wattline.predictors.learners import KINDS, Averaged, Gaussian, Linear
from wattline.predictors.surrogate import Surrogate
from wattline.predictors.training import _fit_process, fit_correction, fit_learner, group_folds


def wiggly(rows: int, features: int, seed: int) -> tuple[Any, Any]:
    """Targets that turn along the first feature alone."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.7, 1.7, (rows, features))
    return x, np.sin(4 * x[:, 0]) + 0.02 * rng.standard_normal(rows)


def test_predictions_are_covariances_times_weights() -> None:
    x, y = wiggly(30, 3, 0)
    process = Surrogate.fit(x, y)
    asked = np.random.default_rng(1).uniform(-2, 2, (9, 3))
    gram = process.kernel(x, x) + process.noise * np.eye(30)
    expected = y.mean() + process.kernel(asked, x) @ np.linalg.solve(gram, y - y.mean())
    assert process.predict(asked) == pytest.approx(expected, rel=1e-8)
    assert [process.predict_one(row) for row in asked] == pytest.approx(expected, rel=1e-8)


def test_it_comes_back_from_its_arrays() -> None:
    x, y = wiggly(30, 3, 0)
    process = Surrogate.fit(x, y)
    again = KINDS["process"].from_arrays(process.arrays())
    assert np.array_equal(again.predict(x), process.predict(x))


@pytest.mark.parametrize(
    ("name", "cut"), [("rows", (slice(None), slice(1))), ("dual", slice(-1)), ("theta", slice(-1))]
)
def test_arrays_that_do_not_fit_are_refused(name: str, cut: Any) -> None:
    x, y = wiggly(30, 3, 0)
    arrays = Surrogate.fit(x, y).arrays()
    with pytest.raises(ValueError, match="lengths"):
        Surrogate.from_arrays({**arrays, name: arrays[name][cut]})


def test_it_is_chosen_where_one_feature_of_many_matters() -> None:
    x, y = wiggly(200, 12, 0)
    fitted = fit_learner(x, y, group_folds(np.arange(200), 8, 0), seed=0, drop=[])
    assert isinstance(fitted.learner, Surrogate)
    others = min(error for name, error in fitted.scores.items() if name != "process")
    assert fitted.scores["process"] < 0.3 * others
    asked, truth = wiggly(500, 12, 1)
    # What it says of its error holds for rows that it has never seen.
    assert np.mean(np.abs(fitted.learner.predict(asked) - truth)) < 1.3 * fitted.scores["process"]


def test_a_line_needs_none() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 5))
    y = x @ np.arange(5.0) + rng.standard_normal(100)
    fitted = fit_learner(x, y, group_folds(np.arange(100), 8, 0), seed=0, drop=[])
    assert isinstance(fitted.learner, Linear)


def test_held_out_figures_know_nothing_of_their_own_fold() -> None:
    """Targets of one fold are moved far off: what is said of that fold must not follow them."""
    x, y = wiggly(60, 2, 0)
    fold = group_folds(np.arange(60), 3, 0)
    _, before = _fit_process(x, y, fold, seed=0, looks=3)
    moved = np.where(fold == 0, y + 100.0, y)
    _, after = _fit_process(x, moved, fold, seed=0, looks=3)
    # The lengths are sought from where those of all rows ended, so that they may end a little apart.
    assert np.abs(after - before)[fold == 0].max() < 0.5


def test_a_correction_is_the_mean_of_a_plain_one_and_a_process() -> None:
    x, y = wiggly(60, 6, 0)
    fitted = fit_correction(x, y, group_folds(np.arange(60), 10, 0), [f"f{i}" for i in range(6)])
    assert isinstance(fitted.learner, Averaged)
    plain, process = fitted.learner.parts
    assert isinstance(plain, Linear | Gaussian)
    assert isinstance(process, Surrogate)
    assert fitted.scores["mean with a process"] == pytest.approx(float(np.mean(np.abs(fitted.held_out - y))))


def test_bundles_keep_it(tmp_path: Path, fitted: KernelPredictor, table_of: Callable[..., Any]) -> None:
    few = table_of(60, 7, slow=1.4)
    adapted = fitted.adapt(few.X, few.y)
    (model,) = adapted.models_.values()
    learner = model.corrections[-1].learner
    assert isinstance(learner, Averaged)
    assert any(isinstance(part, Surrogate) for part in learner.parts)
    adapted.save(tmp_path / "few.wl")
    again = KernelPredictor.load(tmp_path / "few.wl")
    pd.testing.assert_frame_equal(again.predict(few.X), adapted.predict(few.X))
    question = dict(few.X.iloc[3])
    assert again.predict_one(**question).time_s == pytest.approx(float(again.predict(few.X)["time_s"].iloc[3]))


def test_what_pandas_calls_absent_is_absent(fitted: KernelPredictor) -> None:
    sizes: dict[str, Any] = {"op": "gemm.dense", "dtype": "bf16", "m": 512, "n": 512, "k": 512}
    assert fitted.predict_one(**sizes, q_len=pd.NA).time_s == fitted.predict_one(**sizes).time_s
