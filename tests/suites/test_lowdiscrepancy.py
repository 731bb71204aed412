"""Points that fill a space evenly."""

from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.suites.lowdiscrepancy import log_uniform, points


@given(st.integers(1, 8), st.integers(0, 200), st.integers(0, 5))
def test_points_lie_in_the_unit_cube_and_repeat(dimensions: int, count: int, seed: int) -> None:
    found = list(points(dimensions, count, seed=seed))
    assert len(found) == count
    assert all(len(p) == dimensions and all(0 <= u < 1 for u in p) for p in found)
    assert found == list(islice(points(dimensions, seed=seed), count))


def test_one_dimension_is_the_golden_ratio() -> None:
    a, b = islice(points(1), 2)
    assert (b[0] - a[0]) % 1.0 == pytest.approx(0.6180339887)


@pytest.mark.parametrize("count", [13, 40, 100])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_any_prefix_covers_the_space_better_than_chance(dimensions: int, count: int) -> None:
    def gap(found: list[tuple[float, ...]]) -> float:
        """The farthest that a point of the cube is from the nearest one found, estimated at fixed places."""
        rng = random.Random(0)
        places = [tuple(rng.random() for _ in range(dimensions)) for _ in range(300)]
        return max(min(max(abs(a - b) for a, b in zip(p, q, strict=True)) for q in found) for p in places)

    even = sorted(gap(list(points(dimensions, count, seed=s))) for s in range(5))
    chance = []
    for seed in range(5):
        rng = random.Random(seed + 100)
        chance.append(gap([tuple(rng.random() for _ in range(dimensions)) for _ in range(count)]))
    assert even[2] < sorted(chance)[2]


def test_log_uniform_is_even_in_the_logarithm() -> None:
    assert log_uniform(0.0, 16, 4096) == pytest.approx(16)
    assert log_uniform(0.5, 16, 4096) == pytest.approx(256)
    assert log_uniform(0.999999, 16, 4096) < 4096
    with pytest.raises(ParamError, match="0 < lo"):
        log_uniform(0.5, 0, 1)
    with pytest.raises(ParamError, match="dimensions"):
        next(points(0, 3))
