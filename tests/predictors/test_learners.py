"""Trying many learners at once is fitting each of them."""

from __future__ import annotations

import numpy as np
import pytest

from wattline.predictors.learners import Gaussian, Linear, _median


@pytest.mark.parametrize("rows", [9, 40])
def test_the_candidates_tried_together_predict_what_each_fit_alone_would(rows: int) -> None:
    rng = np.random.default_rng(5)
    x, asked = rng.standard_normal((rows, 4)), rng.standard_normal((7, 4))
    y = np.sin(x[:, 0]) + 0.1 * rng.standard_normal(rows)
    lengths, noises = (0.5, 2.0), (1e-3, 0.1)
    found = Gaussian.tried(Linear.fit(x, y, 0.01), (x, y), asked, lengths, noises)
    assert found.shape == (2, 2, 7)
    for i, length in enumerate(lengths):
        for j, noise in enumerate(noises):
            alone = Gaussian.fit(x, y, 0.01, length, noise).predict(asked)
            assert found[i, j] == pytest.approx(alone, rel=1e-9, abs=1e-12)


def test_a_ridge_regression_is_the_solution_of_its_normal_equations() -> None:
    # One feature, two points at -1 and 1 with targets -2 and 2: slope 2 / (1 + penalty), level 0.
    fit = Linear.fit(np.array([[-1.0], [1.0]]), np.array([-2.0, 2.0]), 0.25)
    assert fit.weights == pytest.approx([2 / 1.25])
    assert fit.bias == pytest.approx(0.0)


def test_the_median_is_numpys() -> None:
    rng = np.random.default_rng(1)
    for count in (1, 2, 3, 10, 101):
        values = rng.standard_normal(count)
        assert _median(values) == np.median(values)
