"""Where curves cross: by hand, and invariants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.reports.crossover import Crossover, crossover


def test_time_in_proportion_against_a_level_is_found_exactly() -> None:
    found = crossover([0.1, 0.4], [1.0, 4.0], [2.0, 2.0])
    assert found.verdict == "below"
    assert found.x == pytest.approx(0.2)
    found = crossover([0.4, 0.1], [2.0, 2.0], [4.0, 1.0])
    assert found.verdict == "above"
    assert found.x == pytest.approx(0.2)


def test_no_crossing_and_several() -> None:
    assert crossover([1, 2], [1, 1], [2, 2]) == Crossover(None, "always")
    assert crossover([1, 2], [2, 2], [1, 1]) == Crossover(None, "never")
    assert crossover([3], [1], [1]) == Crossover(None, "never")  # equal is not quicker
    found = crossover([1, 2, 4], [1, 4, 1], [2, 2, 2])
    assert found.verdict == "several"
    assert found.x == pytest.approx(2**0.5)


TIME = st.floats(1e-6, 1e3)


@given(st.lists(st.tuples(TIME, TIME, TIME), min_size=1, max_size=8, unique_by=lambda row: row[0]))
def test_a_crossing_lies_between_places_and_scales_with_them(rows: list[tuple[float, float, float]]) -> None:
    x, a, b = (list(column) for column in zip(*rows, strict=True))
    found = crossover(x, a, b)
    assert (found.x is None) == (found.verdict in ("always", "never"))
    scaled = crossover([3 * v for v in x], [5 * v for v in a], [5 * v for v in b])
    if found.x is not None and scaled.verdict == found.verdict and scaled.x is not None:
        assert min(x) * (1 - 1e-9) <= found.x <= max(x) * (1 + 1e-9)
        assert scaled.x == pytest.approx(3 * found.x, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "a", "b"),
    [([], [], []), ([1], [1, 2], [1]), ([1, 1], [1, 2], [1, 2]), ([0, 1], [1, 1], [1, 1]), ([1], [float("nan")], [1])],
)
def test_what_cannot_be_compared_is_refused(x: list[float], a: list[float], b: list[float]) -> None:
    with pytest.raises(ParamError, match="crossover"):
        crossover(x, a, b)
