"""The fits behind a calibration: laws, hand-worked cases, and whether their errors tell the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattline_sim.sources import Waveform

from wattline.collectors.energy import fits, response
from wattline.collectors.energy.sources import Reading
from wattline.errors import DataError


def test_edges_lie_in_the_middle_between_polls() -> None:
    readings = [Reading(t, v) for t, v in ((0.0, 1.0), (1.0, 1.0), (2.0, 5.0), (4.0, 7.0), (5.0, 7.0))]
    edges = fits.find_edges(readings)
    assert edges.time_s.tolist() == [1.5, 3.0]
    assert edges.gap_s.tolist() == [1.0, 2.0]
    assert edges.value.tolist() == [5.0, 7.0]
    assert len(fits.find_edges(readings[:1])) == 0


def test_smallest_step_by_hand() -> None:
    assert fits.smallest_step(np.array([3.0, 1.5, 1.75, 3.0])) == 0.25
    assert fits.smallest_step(np.array([1.0, 1.6, 2.5])) == pytest.approx(0.3)  # no two differ by it
    assert fits.smallest_step(np.array([2.0, 2.0])) == 0.0


@given(st.integers(0, 10**6), st.sampled_from([6.103515625e-5, 1e-3, 0.25, 1.0]))
def test_smallest_step_of_rounded_values_is_the_unit_and_of_others_their_least_distance(seed, unit) -> None:
    rough = np.random.default_rng(seed).normal(300, 100 * unit, 200)
    assert fits.smallest_step(np.floor(rough / unit) * unit) == pytest.approx(unit, rel=1e-3)
    least = np.diff(np.unique(np.round(rough, 9))).min()
    assert fits.smallest_step(rough) <= least * (1 + 1e-9)


@given(
    period=st.floats(1e-3, 2.0),
    phase=st.floats(0.0, 1.0),
    seen=st.lists(st.booleans(), min_size=60, max_size=120),
    seed=st.integers(0, 1000),
)
def test_period_is_found_although_updates_were_missed_and_polls_came_late(period, phase, seen, seed) -> None:
    # At least every third update is seen, and some follow each other.
    kept = [k for k, (flag, _) in enumerate(zip(seen, itertools.count(), strict=False)) if flag or k % 3 == 0]
    kept = sorted({*kept, *range(20)})
    late = np.random.default_rng(seed).uniform(-0.5, 0.5, len(kept)) * period / 20
    times = (np.array(kept) + phase) * period + late
    edges = fits.Edges(times, np.full(len(kept), period / 20), np.arange(len(kept), dtype=float))
    assert fits.fit_period(edges).period.value == pytest.approx(period, rel=0.01)


def test_no_period_in_few_or_irregular_changes() -> None:
    few = np.arange(6.0)
    with pytest.raises(DataError, match="no update period"):
        fits.fit_period(fits.Edges(few, np.full(6, 0.01), few))
    rng = np.random.default_rng(4)
    times = np.cumsum(rng.exponential(1.0, 300))
    with pytest.raises(DataError) as caught:
        fits.fit_period(fits.Edges(times, np.full(300, 1e-6), times))
    assert "no regular interval" in caught.value.why


def switching(gaps: list[float]) -> tuple[response.Switching, Waveform]:
    """The same wave twice: as calibration keeps it, and as the simulation does."""
    wave, truth, at = response.Switching(), Waveform(0.0), 0.0
    for k, gap in enumerate(gaps):
        at += gap
        wave.add(at, float(k % 2 == 0))
        truth.step(at, float(k % 2 == 0))
    return wave, truth


@given(
    st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=12), st.floats(1e-3, 2.0), st.floats(0.0, 0.5),
    st.one_of(st.just(0.0), st.floats(1e-3, 0.3)), st.floats(0.0, 12.0),
)  # fmt: skip
def test_boxcar_is_the_mean_of_the_wave(gaps, window, lag, tau, at) -> None:
    wave, truth = switching(gaps)
    shown = response.boxcar(wave, np.array([at]), np.array([window]), np.array([lag]), tau)
    assert shown.shape == (1, 1)
    end = at - lag
    assert shown[0, 0] == pytest.approx(truth.smooth_mean(end - window, end, tau), abs=1e-6)
    assert -1e-9 <= shown[0, 0] <= 1 + 1e-9


@settings(max_examples=15)
@given(st.floats(0.01, 0.5), st.floats(0.0, 0.2), st.floats(50.0, 700.0), st.integers(0, 10**6))
def test_boxcar_is_recovered_from_its_own_values(window, lag, step, seed) -> None:
    rng = np.random.default_rng(seed)
    wave, truth = switching((window * rng.uniform(0.6, 2.5, 60)).tolist())
    at = np.sort(rng.uniform(window, wave.times[-1], 150))
    value = np.array([60 + step * truth.mean(t - lag - window, t - lag) for t in at])
    fit = response.fit_boxcar(at, value, wave, blur_s=1e-3)
    assert fit.window.value == pytest.approx(window, rel=0.01)
    assert fit.lag.value == pytest.approx(lag, abs=0.01 * window + 1e-4)
    assert (fit.base, fit.step) == (pytest.approx(60, abs=0.02 * step), pytest.approx(step, rel=0.02))


def test_standard_errors_cover_the_truth_of_window_and_lag() -> None:
    rng = np.random.default_rng(11)
    inside = {"window": 0, "lag": 0}
    for _ in range(40):
        wave, truth = switching((0.05 * rng.uniform(0.6, 2.5, 40)).tolist())
        at = np.sort(rng.uniform(0.1, wave.times[-1], 80))
        value = np.array([100 + 400 * truth.mean(t - 0.06, t - 0.01) for t in at]) + rng.normal(0, 10, len(at))
        fit = response.fit_boxcar(at, value, wave, blur_s=1e-3)
        inside["window"] += abs(fit.window.value - 0.05) <= 1.96 * fit.window.error
        inside["lag"] += abs(fit.lag.value - 0.01) <= 1.96 * fit.lag.error
    # 95 % of 40 is 38; below 33 there is one chance in two hundred.
    assert min(inside.values()) >= 33, inside


def test_nothing_to_fit_is_said() -> None:
    wave, _ = switching([0.1] * 10)
    at = np.linspace(0, 1, 20)
    with pytest.raises(DataError, match="no averaging window") as caught:
        response.fit_boxcar(at, np.full(20, 3.0), wave, blur_s=1e-3)
    assert "does not move" in caught.value.why
    with pytest.raises(DataError) as caught:
        response.fit_boxcar(at[:5], at[:5], wave, blur_s=1e-3)
    assert "only 5" in caught.value.why




def test_the_blur_of_polls_is_taken_out_of_a_regular_comb_only() -> None:
    rng = np.random.default_rng(2)
    true = np.cumsum(np.where(rng.random(300) < 0.3, 2, 1)) * 0.02
    gap = np.full(300, 0.003)
    seen = fits.Edges(true + rng.uniform(-0.0015, 0.0015, 300), gap, true)
    mended = fits.on_comb(seen, 0.02)
    assert np.std(mended.time_s - true) < 0.5 * np.std(seen.time_s - true)
    # A sensor that is irregular itself: moving its updates would be wrong.
    jittery = fits.Edges(true + rng.normal(0, 0.003, 300), gap, true)
    assert fits.on_comb(jittery, 0.02) is jittery


def test_rise_time_by_hand() -> None:
    # A ramp from 2 s to 3 s after each switch, seen at a different point each time: nine tenths are at 2.9 s.
    wave = response.Switching()
    at, value = [], []
    for k in range(40):
        wave.add(10.0 * k, float(k % 2 == 0))
        for delay in (0.5, 2 + k / 40, 4.0):
            ramp = min(max(delay - 2, 0.0), 1.0)
            at.append(10.0 * k + delay)
            value.append(100 + 50 * (ramp if k % 2 == 0 else 1 - ramp))
    fit = response.BoxcarFit(fits.Estimate(1.0, 0.0), fits.Estimate(2.0, 0.0), 0.0, 100.0, 50.0, 1.0, 0.0)
    rise = response.rise_time(np.array(at), np.array(value), wave, fit)
    assert rise.value == pytest.approx(2.9, abs=1e-6)
    assert response.rise_time(np.array(at[:6]), np.array(value[:6]), wave, fit) is None
