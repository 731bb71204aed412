"""Cache sizes out of a curve: steps that are there are found, noise is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import DataError
from wattline.predictors.curves import compare_caches, plateaus

SIZES = [2.0**i for i in range(14, 29)]


def staircase(sizes: list[float], caches: list[float], values: list[float]) -> list[float]:
    return [values[sum(size > cache for cache in caches)] for size in sizes]


def test_three_caches_by_hand() -> None:
    caches = {"L1": 48 * 1024, "L2": 2**20, "L3": 32 * 2**20}
    curve = staircase(SIZES, list(caches.values()), [1.2e-9, 4e-9, 14e-9, 95e-9])
    found = plateaus(SIZES, curve)
    assert [p.value for p in found] == pytest.approx([1.2e-9, 4e-9, 14e-9, 95e-9])
    seen = compare_caches(found, caches)
    assert [(s.name, s.agrees) for s in seen] == [("L1", True), ("L2", True), ("L3", True)]
    assert (seen[0].lo_bytes, seen[0].hi_bytes) == (32 * 1024, 64 * 1024)
    assert (seen[1].lo_bytes, seen[1].hi_bytes) == (2**20, 2**21)


def test_a_reported_size_that_the_curve_contradicts_is_said() -> None:
    curve = staircase(SIZES, [2**18], [1e-9, 50e-9])
    (seen,) = compare_caches(plateaus(SIZES, curve), {"L2": 2**24})
    assert not seen.agrees
    assert (seen.lo_bytes, seen.hi_bytes) == (2**18, 2**19)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(2, 12), min_size=1, max_size=3, unique=True))
def test_steps_are_found_under_noise(seed: int, edges: list[int]) -> None:
    rng = np.random.default_rng(seed)
    edges = [e for e in sorted(edges) if all(abs(e - o) >= 2 for o in edges if o != e)] or [7]
    values = [1e-9 * 3**k for k in range(len(edges) + 1)]
    curve = staircase(SIZES, [SIZES[e] for e in edges], values)
    noisy = [v * float(np.exp(rng.normal(0, 0.03))) for v in curve]
    found = plateaus(SIZES, noisy)
    assert [p.last_bytes for p in found[:-1]] == [SIZES[e] for e in edges]


def test_a_flat_curve_has_no_steps() -> None:
    found = plateaus(SIZES, [5.0] * len(SIZES))
    assert [(p.first_bytes, p.last_bytes) for p in found] == [(SIZES[0], SIZES[-1])]
    (seen,) = compare_caches(found, {"L1": 2**15})
    assert (seen.lo_bytes, seen.hi_bytes, seen.agrees) == (None, None, False)


@pytest.mark.parametrize(("sizes", "values"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, 0.0])])
def test_too_little_is_refused(sizes: list[float], values: list[float]) -> None:
    with pytest.raises(DataError, match="curve needs"):
        plateaus(sizes, values)
