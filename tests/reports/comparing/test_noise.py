"""How far equal measurements differ: found again from what was simulated, and not misled by changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wattline.reports.comparing.noise import PRIOR_FREEDOM, PRIOR_SCALE, core_scale, estimate, fit, quantile

NONE = np.empty(0)


def repeats(
    rng: np.random.Generator, count: int, scale: float, freedom: float, own: float = 0.0
) -> tuple[np.ndarray, ...]:
    """Sums of squares of pairs whose variance differs from case to case."""
    variance = (scale**2 + own**2) * freedom / rng.chisquare(freedom, count)
    values = rng.standard_normal((count, 2)) * np.sqrt(variance)[:, None]
    sums = np.sum((values - values.mean(axis=1, keepdims=True)) ** 2, axis=1)
    return sums, np.ones(count), np.full(count, own**2)


def test_the_quantile_is_that_of_tables() -> None:
    assert quantile(0.975, 4.0) == pytest.approx(2.7764, abs=1e-4)
    assert quantile(0.5, 3.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("scale", "freedom"), [(0.004, 30.0), (0.01, 5.0), (0.06, 2.0)])
def test_many_repeats_give_scale_and_tails_back(scale: float, freedom: float) -> None:
    found = fit(*repeats(np.random.default_rng(1), 3000, scale, freedom))
    assert found[0] == pytest.approx(scale, rel=0.06)
    assert found[1] == pytest.approx(freedom, rel=0.35)


def test_what_the_intervals_explain_is_not_counted_twice() -> None:
    scale, _ = fit(*repeats(np.random.default_rng(2), 3000, 0.01, 6.0, own=0.02))
    assert scale == pytest.approx(0.01, rel=0.15)


def test_without_repeats_the_prior_stands_alone() -> None:
    scale, freedom = fit(NONE, NONE, NONE)
    assert scale == pytest.approx(PRIOR_SCALE, rel=0.01)
    assert freedom == pytest.approx(PRIOR_FREEDOM, rel=0.01)


def test_a_few_calm_pairs_pull_the_prior_down() -> None:
    sums, freedoms, own = repeats(np.random.default_rng(3), 8, 0.002, 8.0)
    assert 0.001 < fit(sums, freedoms, own)[0] < 0.006


def test_repeats_that_are_equal_have_next_to_no_noise() -> None:
    assert fit(np.zeros(20), np.ones(20), np.zeros(20))[0] < 1e-4


def test_the_core_of_five_values_by_hand() -> None:
    # Three of five: the shortest interval is 2 to 3 with 2.5 between; normal quartiles lie at 0.6745.
    values = np.array([0.0, 2.0, 2.5, 3.0, 9.0])
    assert core_scale(values, 1e6) == pytest.approx(1.0 / (2 * 0.67449) * (1 + 5 / 4), rel=1e-4)


@pytest.mark.parametrize("count", [8, 20, 60, 400])
def test_the_core_scale_is_right_on_the_average(count: int) -> None:
    rng = np.random.default_rng(4)
    found = [core_scale(rng.standard_t(5, count), 5.0) for _ in range(300)]
    assert 0.85 < np.median(found) < 1.35, "rather too much than too little"


def test_changes_of_a_third_of_the_cases_hardly_widen_the_core() -> None:
    rng = np.random.default_rng(5)
    values = 0.01 * rng.standard_normal(300)
    values[:100] += 0.2
    assert core_scale(values, 1e6) < 0.018
    assert np.std(values) > 0.09


class TestEstimate:
    RATIOS = 0.02 * np.random.default_rng(6).standard_t(5, 100)

    def test_repeated_runs_decide_alone(self) -> None:
        found = estimate(
            *repeats(np.random.default_rng(7), 100, 0.005, 5.0), ratios=self.RATIOS, ratios_own=np.zeros(100),
            several_runs=True,
        )  # fmt: skip
        assert found.source == "repeated runs"
        assert found.scale == pytest.approx(0.005, rel=0.3)
        assert math.isnan(found.spread)

    def test_of_pairs_within_a_run_and_ratios_the_larger_counts(self) -> None:
        calm = repeats(np.random.default_rng(8), 20, 0.003, 5.0)
        restless = repeats(np.random.default_rng(8), 20, 0.08, 5.0)
        how = {"ratios": self.RATIOS, "ratios_own": np.zeros(100), "several_runs": False}
        assert estimate(*calm, **how).source == "spread of the ratios"
        assert estimate(*calm, **how).scale == pytest.approx(0.02 / math.sqrt(2), rel=0.3)
        assert estimate(*restless, **how).source == "A/A pairs"

    def test_few_ratios_say_nothing(self) -> None:
        found = estimate(NONE, NONE, NONE, ratios=self.RATIOS[:7], ratios_own=np.zeros(7), several_runs=False)
        assert (found.source, found.ratios, found.repeats) == ("assumed", 0, 0)

    def test_a_twentieth_of_equal_pairs_lies_beyond_what_is_said(self) -> None:
        found = estimate(NONE, NONE, NONE, ratios=self.RATIOS, ratios_own=np.zeros(100), several_runs=False)
        rng = np.random.default_rng(9)
        pairs = np.expm1(np.abs(math.sqrt(2) * found.scale * rng.standard_t(found.freedom, 20_000)))
        assert np.mean(pairs > found.twentieth) == pytest.approx(0.05, abs=0.006)
