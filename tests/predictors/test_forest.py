"""Boosted oblivious trees: what they learn, that their forms agree, and that damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.predictors import forest
from wattline.predictors.forest import DEPTH, LEAVES, Forest
from wattline.predictors.learners import Linear, Stacked


def steps(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose target jumps at 0.3 of the first feature and at 0.6 of the second."""
    x = np.random.default_rng(seed).random((n, 3))
    return x, 1.0 * (x[:, 0] > 0.3) + 2.0 * (x[:, 1] > 0.6)


def test_steps_are_learned_as_steps() -> None:
    x, y = steps()
    asked, wanted = steps(seed=1)
    found = Forest.fit(x, y, seed=0, trees=60).predict(asked)
    # But for rows between a border and the nearest bins, every answer is a plateau's.
    assert np.mean(np.abs(found - wanted) < 0.02) > 0.9


def test_one_row_and_many_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = steps()
    trees = Forest.fit(x, y + x[:, 2], seed=0, trees=20)
    whole = trees.predict(x)
    np.testing.assert_allclose([trees.predict_one(row) for row in x], whole, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(forest, "_CHUNK", 7)
    np.testing.assert_array_equal(trees.predict(x), whole)
    monkeypatch.setattr(forest, "_MANY", 2)  # compiled loops
    np.testing.assert_array_equal(trees.predict(np.tile(x, (3, 1))), np.tile(whole, 3))


def test_compiled_and_plain_loops_grow_the_same_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = steps(60)
    compiled = Forest.fit(x, y, seed=3, trees=3)
    monkeypatch.setattr(forest, "_compiled", lambda function: function)
    plain = Forest.fit(x, y, seed=3, trees=3)
    for name, array in plain.arrays().items():
        np.testing.assert_allclose(compiled.arrays()[name], array, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_tree_worked_by_hand() -> None:
    """Two levels that ask something, six that nothing answers: leaves 0, 1, 2, 3 times 64."""
    feature, cut = np.zeros((1, DEPTH), int), np.full((1, DEPTH), np.inf)
    feature[0, 1], cut[0, 0], cut[0, 1] = 1, 0.5, 2.0
    leaf = np.zeros((1, LEAVES))
    leaf[0, [0, 64, 128, 192]] = 1.0, 10.0, 100.0, 1000.0
    trees = Forest(0.25, feature, cut, leaf)
    rows = np.array([[0.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 3.0], [0.5, 2.0]])
    np.testing.assert_array_equal(trees.predict(rows), [1.25, 10.25, 100.25, 1000.25, 1.25])


def test_the_same_seed_grows_the_same_trees() -> None:
    x, y = steps()
    np.testing.assert_array_equal(Forest.fit(x, y, seed=5, trees=5).leaf, Forest.fit(x, y, seed=5, trees=5).leaf)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(0, 2**16), st.floats(-3, 3))
def test_predictions_stay_near_the_targets(n: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.random(n) + shift
    trees = Forest.fit(x, y, seed=0, trees=10)
    found = trees.predict(10 * rng.normal(size=(50, 2)))
    # Trees shrink towards the middle and never run away, however far they are asked.
    assert (found >= y.min() - 1e-6).all()
    assert (found <= y.max() + 1e-6).all()


def test_nothing_to_ask_gives_the_median() -> None:
    trees = Forest.fit(np.ones((9, 2)), np.arange(9.0), seed=0, trees=4)
    np.testing.assert_allclose(trees.predict(np.zeros((3, 2))), 4.0, atol=1e-5)


def test_arrays_come_back_as_the_same_trees() -> None:
    x, y = steps()
    trees = Forest.fit(x, y, seed=0, trees=5)
    again = Forest.from_arrays(trees.arrays())
    np.testing.assert_array_equal(again.predict(x), trees.predict(x))


@pytest.mark.parametrize("name", ["feature", "cut", "leaf"])
def test_arrays_that_do_not_fit_are_refused(name: str) -> None:
    x, y = steps(50)
    arrays = Forest.fit(x, y, seed=0, trees=3).arrays()
    with pytest.raises(ValueError, match="trees of shapes"):
        Forest.from_arrays({**arrays, name: arrays[name][:, :-1]})


def test_a_tree_that_asks_beyond_the_features_is_refused() -> None:
    x, y = steps(50)
    arrays = Stacked(Linear(np.zeros(3), 0.0), Forest.fit(x, y, seed=0, trees=3)).arrays()
    assert Stacked.from_arrays(arrays).predict(x).shape == (50,)
    arrays["trees.feature"] = np.full_like(arrays["trees.feature"], 3)
    with pytest.raises(ValueError, match="a tree asks for feature 3 of 3"):
        Stacked.from_arrays(arrays)
