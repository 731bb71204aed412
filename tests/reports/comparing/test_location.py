"""Trimmed means and their errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.reports.comparing.location import located

READINGS = st.lists(st.floats(-10, 10), min_size=1, max_size=40)


def test_one_of_five_is_left_out_at_either_end() -> None:
    found = located([3.0, 100.0, 1.0, 2.0, -50.0])
    assert found.mean == pytest.approx(2.0)
    # Moved to the nearest that is held: 1, 1, 2, 3, 3.
    assert found.squares == pytest.approx(4.0)
    assert (found.held, found.trimmed) == (3, 2)


def test_four_are_all_held() -> None:
    found = located([1.0, 2.0, 3.0, 10.0])
    assert found.mean == 4.0
    assert found.squares == pytest.approx(9 + 4 + 1 + 36)
    assert (found.held, found.trimmed) == (4, 0)


def test_the_error_is_yuens() -> None:
    """Ten readings: two at either end go; squared error by hand is the winsorised sum over 6 x 5."""
    values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 90.0]
    found = located(values)
    assert found.mean == pytest.approx(4.5)
    moved = np.array([2, 2, 2, 3, 4, 5, 6, 7, 7, 7])
    variance = moved.var(ddof=1)
    assert found.squares / (found.held * (found.held - 1)) == pytest.approx(9 * variance / (6 * 5))


def test_the_error_holds_for_heavy_tails() -> None:
    rng = np.random.default_rng(0)
    z = []
    for _ in range(2000):
        found = located(rng.standard_t(2.5, 12).tolist())
        z.append(found.mean / math.sqrt(found.squares / (found.held * (found.held - 1))))
    # Student's t with 7 degrees of freedom: 2.36 holds 95 %.
    assert 0.93 <= np.mean(np.abs(z) <= 2.36) <= 0.975


@given(READINGS, st.floats(-5, 5))
def test_a_shift_shifts_the_mean_alone(values: list[float], shift: float) -> None:
    plain, moved = located(values), located([v + shift for v in values])
    assert moved.mean == pytest.approx(plain.mean + shift, abs=1e-9)
    assert moved.squares == pytest.approx(plain.squares, abs=1e-6)


@given(st.lists(st.floats(-10, 10), min_size=5, max_size=40), st.floats(100, 1e6))
def test_one_wild_reading_moves_nothing_far(values: list[float], wild: float) -> None:
    found = located([*values, wild])
    assert min(values) <= found.mean <= max(values)


@given(READINGS)
def test_order_does_not_matter(values: list[float]) -> None:
    there, back = located(values), located(values[::-1])
    assert there.mean == pytest.approx(back.mean, abs=1e-12)
    assert there.squares == pytest.approx(back.squares, abs=1e-9)
