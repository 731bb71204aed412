"""Crossings of two lines of times: hand-worked cases, and laws that hold for any."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.reports.crossover import Crossover, crossover, crossovers


def test_lines_that_cross_between_two_points() -> None:
    # a is half of b at 1 and twice b at 16: halfway in log space, at 4.
    found = crossover([1, 16], [1.0, 8.0], [2.0, 4.0])
    assert found.x == pytest.approx(4.0)
    assert (found.verdict, found.first, found.lo, found.hi, found.changes) == ("crosses", "a", 1.0, 16.0, 1)


def test_the_point_lies_nearer_to_the_closer_pair() -> None:
    # log2(a/b) is -1 at 2 and +3 at 32: a quarter of the way from 2^1 to 2^5 is 2^2.
    assert crossover([2, 32], [1.0, 8.0], [2.0, 1.0]).x == pytest.approx(4.0)


def test_one_that_always_wins() -> None:
    assert crossover([1, 2, 3], [1, 1, 1], [2, 2, 1.5]) == Crossover("a_wins", None, "a")
    assert crossover([1, 2, 3], [2, 2, 2], [1, 1, 1]) == Crossover("b_wins", None, "b")
    assert crossover([1.0], [1], [2]).verdict == "a_wins"


def test_equal_times_count_for_neither() -> None:
    assert crossover([1, 2], [1, 1], [1, 1]).verdict == "b_wins"
    assert crossover([1, 2, 4], [1, 1, 1], [2, 1, 1]).verdict == "a_wins"
    # Equal in the middle: the crossing lies on the line between the points beside it.
    assert crossover([1, 2, 4], [1, 1, 2], [2, 1, 1]).x == pytest.approx(2.0)


def test_order_of_the_points_does_not_matter() -> None:
    assert crossover([16, 1], [8.0, 1.0], [4.0, 2.0]) == crossover([1, 16], [1.0, 8.0], [2.0, 4.0])


def test_the_interval_reaches_to_points_beyond_doubt() -> None:
    x, a, b = [1, 2, 4, 8, 16], [1, 1, 1, 1, 1], [4, 2, 1.1, 0.9, 0.5]
    apart = [True, True, False, False, True]
    found = crossover(x, a, b, apart)
    assert 4 < (found.x or 0) < 8
    assert (found.lo, found.hi) == (2.0, 16.0)
    nowhere = crossover(x, a, b, [False] * 5)
    assert (nowhere.lo, nowhere.hi) == (None, None)
    assert nowhere.x == found.x


def test_of_several_crossings_the_one_with_the_least_on_wrong_sides() -> None:
    # A stray point at 2 turns the lead for a moment; the lasting change is between 8 and 16.
    found = crossover([1, 2, 4, 8, 16, 32], [1, 1.05, 1, 1, 1, 1], [2, 1.0, 2, 2, 0.5, 0.5])
    assert found.changes == 3
    assert found.x == pytest.approx(math.sqrt(8 * 16))
    assert (found.lo, found.hi) == (8.0, 16.0)


@pytest.mark.parametrize(
    ("x", "a", "b"),
    [([], [], []), ([1, 2], [1], [1, 2]), ([1, 1], [1, 2], [1, 2]), ([0, 1], [1, 1], [1, 1]), ([1], [math.nan], [1])],
)
def test_what_has_no_crossing_is_refused(x: list[float], a: list[float], b: list[float]) -> None:
    with pytest.raises(ParamError):
        crossover(x, a, b)


TIMES = st.floats(1e-6, 1.0)


@example([(1.0, 0.5), (0.5, 1.0), (0.75, 0.5), (0.5625, 0.5), (0.5, 1.0), (1.0, 0.5)])
@given(st.lists(st.tuples(TIMES, TIMES), min_size=2, max_size=12))
def test_swapping_the_two_swaps_the_answer(pairs: list[tuple[float, float]]) -> None:
    x = [2.0**i for i in range(len(pairs))]
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one, other = crossover(x, a, b), crossover(x, b, a)
    if a != b:
        assert {one.verdict, other.verdict} in ({"crosses"}, {"a_wins", "b_wins"})
    if one.x is not None and other.x is not None:
        assert one.x == pytest.approx(other.x)
        assert one.first != other.first
        assert x[0] <= one.x <= x[-1]


def _rows(n: int, times: dict[int, float], half: float = 0.01) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"n": n, "m": m, "time_s": t, "time_lo_s": t * (1 - half), "time_hi_s": t * (1 + half)}
            for m, t in times.items()
        ]
    )


def test_of_frames() -> None:
    a = pd.concat([_rows(64, {1: 1.0, 16: 8.0}), _rows(128, {1: 1.0, 4: 1.0}), _rows(256, {1: 1.0})])
    b = pd.concat([_rows(64, {1: 2.0, 16: 4.0, 64: 9.0}), _rows(64, {16: 5.0}), _rows(128, {1: 3.0, 4: 1.005})])
    found = {names["n"]: each for names, each in crossovers(a, b, "m", ["n"])}
    assert set(found) == {64, 128}  # one point is no line
    assert found[64].x == pytest.approx(4.0)  # of the two records at 16 the quickest counts
    assert found[128].verdict == "a_wins"


def test_of_frames_without_a_key() -> None:
    ((names, found),) = crossovers(_rows(1, {1: 1.0, 16: 8.0}), _rows(1, {1: 2.0, 16: 4.0}), "m", [])
    assert names == {}
    assert found.x == pytest.approx(4.0)
