"""Latency and bandwidth of transfers by regimes: known curves are found again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.predictors.transfers import fit_transfers

SIZES = [4096 * 2**i for i in range(20)]


def test_one_line_is_one_regime() -> None:
    fit = fit_transfers(SIZES, [5e-6 + size / 25e9 for size in SIZES])
    assert len(fit.regimes) == 1
    assert fit.regimes[0].latency_s == pytest.approx(5e-6)
    assert fit.regimes[0].bandwidth == pytest.approx(25e9)
    assert fit.error == pytest.approx(0, abs=1e-9)
    assert fit.seconds(2**40) == pytest.approx(5e-6 + 2**40 / 25e9)


def test_two_ways_of_a_driver_are_two_regimes() -> None:
    def seconds(size: int) -> float:
        return 2e-6 + size / 4e9 if size <= 65536 else 30e-6 + size / 12e9

    fit = fit_transfers(SIZES, [seconds(size) for size in SIZES])
    assert [(r.least, r.most) for r in fit.regimes] == [(4096, 65536), (131072, SIZES[-1])]
    assert [r.bandwidth for r in fit.regimes] == pytest.approx([4e9, 12e9])
    assert fit.seconds(32768) == pytest.approx(seconds(32768))
    assert fit.seconds(1 << 30) == pytest.approx(seconds(1 << 30))


def test_noise_makes_no_regimes() -> None:
    chance = random.Random(1)
    times = [(5e-6 + size / 25e9) * chance.uniform(0.98, 1.02) for size in SIZES]
    fit = fit_transfers(SIZES * 2, times * 2)
    assert len(fit.regimes) == 1
    assert fit.regimes[0].bandwidth == pytest.approx(25e9, rel=0.03)


def test_times_that_do_not_grow_have_no_bandwidth() -> None:
    fit = fit_transfers([1, 2, 3], [1e-6, 1e-6, 1e-6])
    assert fit.regimes[0].bandwidth == float("inf")
    assert fit.seconds(1e9) == pytest.approx(1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1e-3), st.floats(1e6, 1e12), st.lists(st.integers(1, 2**40), min_size=3, max_size=12, unique=True))
def test_any_line_is_found(latency: float, bandwidth: float, sizes: list[int]) -> None:
    fit = fit_transfers(sizes, [latency + size / bandwidth for size in sizes])
    assert fit.error < 1e-3
    for size in sizes:
        assert fit.seconds(size) == pytest.approx(latency + size / bandwidth, rel=5e-3)


@pytest.mark.parametrize(
    ("sizes", "seconds", "says"),
    [([1, 2], [1.0, 2.0], "at least 3"), ([1, 1, 1], [1.0] * 3, "different"), ([1, 2, 3], [1.0], "belong"),
     ([1, 2, 3], [1.0, 0.0, 1.0], "positive"), ([-1, 2, 3], [1.0] * 3, "negative")],
)  # fmt: skip
def test_what_cannot_be_fitted(sizes: list[float], seconds: list[float], says: str) -> None:
    with pytest.raises(ParamError, match=says):
        fit_transfers(sizes, seconds)
