"""Intervals for one more device, from errors on a few that were left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wattline.predictors.intervals import ALL, Intervals

ROWS = 400


def errors(scales: list[float], seed: int = 0) -> tuple[Any, Any, Any]:
    """Errors of devices that scatter by so much each; no feature says by how much."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS * len(scales), 3))
    devices = np.repeat([f"d{i}" for i in range(len(scales))], ROWS)
    return x, np.repeat(scales, ROWS) * rng.standard_normal(len(x)), devices


def held(intervals: Intervals, x: Any, error: Any) -> float:
    return float(np.mean(np.abs(error) <= intervals.width(x) * intervals.factor(ALL, 0.9)))


def test_devices_that_err_alike_stretch_nothing() -> None:
    x, error, devices = errors([0.1] * 5)
    plain, across = Intervals.fit(x, error), Intervals.across(x, error, devices)
    assert across.factor(ALL, 0.9) == pytest.approx(plain.factor(ALL, 0.9), rel=0.1)
    assert across.factor(ALL, 0.9) >= plain.factor(ALL, 0.9)


def test_devices_that_differ_stretch_the_intervals_of_the_next() -> None:
    scales = [0.05, 0.08, 0.1, 0.3]
    x, error, devices = errors(scales)
    plain, across = Intervals.fit(x, error), Intervals.across(x, error, devices)
    assert across.factor(ALL, 0.9) > 1.2 * plain.factor(ALL, 0.9)
    fresh, truth, _ = errors([0.3], seed=1)
    assert held(plain, fresh, truth) < 0.8
    assert held(across, fresh, truth) > held(plain, fresh, truth) + 0.05


def test_of_new_devices_nine_tenths_are_held_on_average() -> None:
    """Eight devices drawn alike, and the one after: over many draws the intervals hold what they promise."""
    found = []
    for seed in range(40):
        scales = np.exp(np.random.default_rng(seed).normal(-2.5, 0.5, 9)).tolist()
        x, error, devices = errors(scales, seed)
        new = devices == "d8"
        found.append(held(Intervals.across(x[~new], error[~new], devices[~new]), x[new], error[new]))
    assert 0.86 <= np.mean(found) <= 0.95


def test_of_one_device_nothing_is_known_of_others() -> None:
    x, error, devices = errors([0.1])
    assert Intervals.across(x, error, devices).factor(ALL, 0.9) == Intervals.fit(x, error).factor(ALL, 0.9)
