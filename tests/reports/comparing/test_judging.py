"""The tests by hand, and the laws of verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.reports.comparing.judging import LESS, MORE, SAME, UNTOLD, adjusted, judge, two_sided, within

FLIPPED = {MORE: LESS, LESS: MORE, SAME: SAME, UNTOLD: UNTOLD}


def words(values: list[float], error: float = 0.01, freedom: float = 20.0, **how: object) -> list[str]:
    full = {"margin": 0.02, "confidence": 0.95, **how}
    return [v.word for v in judge(values, [error] * len(values), [freedom] * len(values), **full)]  # type: ignore[arg-type]


def test_benjamini_and_hochberg_by_hand() -> None:
    # Ranked 0.01, 0.02, 0.03, 0.5: times 4/1, 4/2, 4/3, 1, and never above a later one.
    assert adjusted(np.array([0.02, 0.5, 0.01, 0.03])) == pytest.approx([0.04, 0.5, 0.04, 0.04])
    assert adjusted(np.array([0.9, 0.8])) == pytest.approx([0.9, 0.9])
    assert len(adjusted(np.empty(0))) == 0


def test_student_by_tables() -> None:
    one = np.ones(1)
    assert two_sided(2.7764 * one, one, 4 * one)[0] == pytest.approx(0.05, abs=1e-4)
    # A value 2.132 errors within the margin is there with 95 % (one-sided, four degrees of freedom).
    assert within(0 * one, one, 4 * one, 2.1318)[0] == pytest.approx(0.05, abs=1e-4)
    assert within(3 * one, one, 4 * one, 1.0)[0] > 0.9


def test_the_four_verdicts() -> None:
    assert words([0.10]) == [MORE]
    assert words([-0.10]) == [LESS]
    assert words([0.001], error=0.003) == [SAME]
    assert words([0.01]) == [UNTOLD]


def test_a_certain_change_within_the_margin_is_the_same() -> None:
    assert words([0.01], error=0.001) == [SAME]


def test_one_suspect_among_many_needs_more_than_one_alone() -> None:
    assert words([0.022]) == [MORE]
    assert words([0.022] + [0.0] * 49)[0] == UNTOLD


def test_the_resolution_is_told_nine_times_out_of_ten() -> None:
    rng = np.random.default_rng(1)
    (first,) = judge([0.0], [0.01], [12.0], margin=0.001, confidence=0.95)
    size = math.log1p(first.resolution)
    told = 0
    for _ in range(2000):
        # The error itself is estimated, with twelve degrees of freedom.
        error = 0.01 * math.sqrt(rng.chisquare(12) / 12)
        told += words([size + 0.01 * rng.standard_normal()], error=error, freedom=12.0, margin=0.001) == [MORE]
    assert told / 2000 == pytest.approx(0.9, abs=0.03)


numbers = st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=30)


@given(numbers, st.floats(1e-4, 0.2), st.floats(1.0, 100.0))
@settings(max_examples=150, deadline=None)
def test_turning_the_sides_turns_the_verdicts(values: list[float], error: float, freedom: float) -> None:
    assert words([-v for v in values], error, freedom) == [FLIPPED[w] for w in words(values, error, freedom)]


@given(numbers, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_cases_says_nothing(values: list[float], shuffle: object) -> None:
    order = list(range(len(values)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    before = words(values)
    assert words([values[i] for i in order]) == [before[i] for i in order]


@given(numbers, st.floats(1e-4, 0.2))
@settings(max_examples=60, deadline=None)
def test_more_confidence_tells_no_more(values: list[float], error: float) -> None:
    loose, strict = words(values, error, confidence=0.9), words(values, error, confidence=0.99)
    assert all(s in (UNTOLD, w) or w == SAME for w, s in zip(loose, strict, strict=True))
