"""Trimmed means and their errors."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.reports.comparing.contrast import Contrast, contrast
from wattline.reports.comparing.judging import LESS, MORE
from wattline.reports.comparing.location import ENOUGH, TRIM
from wattline.reports.comparing.location import located as located_by
from wattline.reports.comparing.reading import Reading

located = partial(located_by, share=TRIM)

READINGS = st.lists(st.floats(-10, 10), min_size=1, max_size=40)


def test_one_of_five_is_left_out_at_either_end() -> None:
    found = located([3.0, 100.0, 1.0, 2.0, -50.0])
    assert found.mean == pytest.approx(2.0)
    # Moved to the nearest that is held: 1, 1, 2, 3, 3.
    assert found.squares == pytest.approx(4.0)
    assert (found.held, found.trimmed) == (3, 2)


def test_enough_are_as_many_as_one_can_be_left_out_of() -> None:
    assert located([1.0] * ENOUGH).trimmed == 2
    assert located([1.0] * (ENOUGH - 1)).trimmed == 0


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


def side(runs: int, seed: int, *, wild: float = 0.0, change: float = 0.0) -> dict[str, list[Reading]]:
    """Twenty cases, of which number 3 changed and had a neighbour in one run."""
    rng = np.random.default_rng(seed)
    found = {}
    for case in range(20):
        logs = 0.002 * rng.standard_normal(runs)
        if case == 3:
            logs += change
            logs[0] += wild
        times = [(run, 1e-3 * math.exp(log)) for run, log in enumerate(logs)]
        found[str(case)] = [Reading(run, "", t, 0.0005, 0.0, 0.999 * t, 1.001 * t) for run, t in times]
    return found


def judged(a: dict[str, list[Reading]], b: dict[str, list[Reading]]) -> Contrast:
    runs = (len(a["0"]), len(b["0"]))
    return contrast(a, b, list(a), runs=runs, same_machine=True, margin=0.02, confidence=0.95)


def test_a_neighbour_in_one_of_five_runs_hides_no_change() -> None:
    found = judged(side(5, 1), side(5, 2, wild=0.4, change=0.03)).changes["3"]
    assert found.verdict.word == MORE
    assert found.share == pytest.approx(0.03, abs=0.006)


@pytest.mark.parametrize("runs", [(4, 4), (8, 3), (3, 8), (8, 1)])
def test_both_sides_are_trimmed_or_neither(runs: tuple[int, int]) -> None:
    a, b = side(runs[0], 1, wild=0.4), side(runs[1], 2)
    change = judged(a, b).changes["3"]
    assert change.a == pytest.approx(math.exp(np.mean([math.log(r.value) for r in a["3"]])), rel=2e-3)
    assert change.verdict.word not in (MORE, LESS)
