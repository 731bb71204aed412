"""The simulated sensors themselves: what they read must follow from the truth by arithmetic."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wattline_sim.sources import (
    ROWS,
    Load,
    SimulatedCounter,
    SimulatedPower,
    VirtualClock,
    Waveform,
    poll,
    simulate,
)

from wattline.errors import SensorError


def test_energy_of_a_waveform_by_hand() -> None:
    wave = Waveform(80.0)
    wave.step(10.0, 500.0)
    wave.step(12.0, 100.0)
    assert wave.energy(9.0, 13.0) == pytest.approx(80 + 2 * 500 + 100)
    assert wave.energy(0.0, 5.0) == pytest.approx(400)
    assert wave.energy(10.5, 11.0) == pytest.approx(250)
    assert wave.mean(9.0, 11.0) == pytest.approx(290)
    assert [wave.power(t) for t in (9.999, 10.0, 12.0)] == [80, 500, 100]
    with pytest.raises(ValueError, match="in order"):
        wave.step(11.0, 1.0)


@given(
    st.lists(st.tuples(st.floats(0.001, 3.0), st.floats(0.0, 700.0)), min_size=1, max_size=8),
    st.floats(-2.0, 20.0), st.floats(0.0, 10.0), st.floats(0.0, 10.0),
)  # fmt: skip
def test_energy_adds_up_over_any_cut(steps, start, first, second) -> None:
    wave, at = Waveform(80.0), 0.0
    for gap, watts in steps:
        at += gap
        wave.step(at, watts)
    cut, end = start + first, start + first + second
    assert wave.energy(start, end) == pytest.approx(wave.energy(start, cut) + wave.energy(cut, end), abs=1e-6)


def test_low_pass_reaches_63_percent_after_its_time_constant_and_its_mean_is_its_integral() -> None:
    wave = Waveform(0.0)
    wave.step(1.0, 100.0)
    assert wave.smooth(1.5, 0.5) == pytest.approx(100 * (1 - math.exp(-1)))
    times = np.linspace(0.5, 3.0, 20001)
    numeric = np.trapezoid([wave.smooth(t, 0.5) for t in times], times) / 2.5
    assert wave.smooth_mean(0.5, 3.0, 0.5) == pytest.approx(float(numeric), rel=1e-5)


def test_square_wave_has_the_mean_of_its_levels() -> None:
    wave = Waveform(80.0)
    wave.square(1.0, 3.0, 0.1, high_w=500.0, low_w=100.0, duty=0.25)
    assert wave.mean(1.0, 3.0) == pytest.approx(0.25 * 500 + 0.75 * 100)
    assert wave.power(3.5) == 100


def test_power_is_the_mean_over_the_window_before_the_renewal_and_is_held() -> None:
    clock, wave = VirtualClock(0.0), Waveform(80.0)
    wave.step(1.0, 500.0)
    source = SimulatedPower(
        clock, wave, period_s=0.1, window_s=0.05, lag_s=0.02, phase_s=0.03, read_cost_s=0.0, resolution=0.0
    )
    clock.sleep(1.05)
    # Renewed at 1.03: the window is 0.96 to 1.01, of which 0.01 is high.
    assert source.read().value == pytest.approx(80 + 420 * 0.01 / 0.05)
    clock.sleep(0.0799)
    assert source.read().value == pytest.approx(80 + 420 * 0.01 / 0.05)
    clock.sleep(0.0002)
    assert source.read().value == pytest.approx(500)


def test_history_is_what_the_driver_kept_with_its_own_times() -> None:
    clock, wave = VirtualClock(0.0), Waveform(80.0)
    source = SimulatedPower(clock, wave, period_s=0.1, window_s=0.1, phase_s=0.0, history=5)
    clock.sleep(2.05)
    assert [r.time_s for r in source.history(0.0)] == pytest.approx([1.6, 1.7, 1.8, 1.9, 2.0])
    assert [r.time_s for r in source.history(1.85)] == pytest.approx([1.9, 2.0])


def test_counter_holds_between_renewals_and_counts_the_truth() -> None:
    clock, wave = VirtualClock(0.0), Waveform(100.0)
    source = SimulatedCounter(clock, wave, period_s=0.1, phase_s=0.0, start_j=0.0, gain=1.02, read_cost_s=0.0)
    clock.sleep(0.95)
    assert source.read().value == pytest.approx(0.9 * 102, abs=1e-3)
    clock.sleep(0.04)
    assert source.read().value == pytest.approx(0.9 * 102, abs=1e-3)


def test_counter_that_looks_away_misses_what_falls_between_its_looks() -> None:
    clock, wave = VirtualClock(0.0), Waveform(100.0)
    wave.step(1.02, 1000.0)  # over again before the counter looks, in the last quarter of each period
    wave.step(1.07, 100.0)
    source = SimulatedCounter(clock, wave, period_s=0.1, phase_s=0.0, start_j=0.0, seen_s=0.025, resolution=0.0)
    clock.sleep(2.0001)
    assert source.read().value == pytest.approx(200.0)
    assert wave.energy(0.0, 2.0) == pytest.approx(245.0)


def test_counter_wraps_stalls_and_restarts() -> None:
    clock, wave = VirtualClock(0.0), Waveform(100.0)
    make = {"period_s": 0.1, "phase_s": 0.0, "start_j": 0.0, "read_cost_s": 0.0}
    wraps = SimulatedCounter(clock, wave, wrap_j=150.0, **make)
    stalls = SimulatedCounter(clock, wave, **make)
    stalls.stall(1.0, 2.0)
    resets = SimulatedCounter(clock, wave, **make)
    resets.reset(1.5, to_j=5.0)
    seen = {}
    for at in (0.55, 1.45, 1.95, 2.15):
        clock.sleep(at - clock.now())
        seen[at] = [s.read().value for s in (wraps, stalls, resets)]
    assert seen[0.55] == pytest.approx([50, 50, 50], abs=0.01)
    assert seen[1.45] == pytest.approx([140, 100, 140], abs=0.01)
    assert seen[1.95] == pytest.approx([40, 100, 45], abs=0.01)
    assert seen[2.15] == pytest.approx([60, 210, 65], abs=0.01)


def test_a_failing_source_fails_from_then_on() -> None:
    clock = VirtualClock()
    source = SimulatedCounter(clock, Waveform(1.0), period_s=0.1)
    source.fail(clock.now() + 1.0, SensorError("lost"))
    source.read()
    clock.sleep(1.0)
    for _ in range(2):
        with pytest.raises(SensorError, match="lost"):
            source.read()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_renewed_at_its_period_and_agrees_with_steady_power(row) -> None:
    clock, wave = VirtualClock(), Waveform(500.0)
    source = simulate(row, clock, wave, seed=3)
    span = 40 * source.period_s
    readings = poll([source], clock, span, every_s=source.period_s / 10)[0]
    changes = [b for a, b in itertools.pairwise(readings) if a.value != b.value]
    # Noise keeps a power reading changing under constant load, as on a real board.
    assert len(changes) == pytest.approx(40, abs=2)
    if source.kind == "power":
        assert np.mean([r.value for r in readings]) == pytest.approx(500, rel=2e-3)
    else:
        gone = changes[-1].time_s - changes[0].time_s
        assert (changes[-1].value - changes[0].value) / gone == pytest.approx(500, rel=0.01)


def test_same_seed_same_readings_other_seed_other_phase() -> None:
    def read(seed: int) -> list[float]:
        clock, wave = VirtualClock(), Waveform(80.0)
        wave.step(clock.now() + 0.5, 500.0)
        source = simulate("a100 instant", clock, wave, seed=seed)
        return [r.value for r in poll([source], clock, 1.0, 0.02, seed=1)[0]]

    assert read(1) == read(1)
    assert read(1) != read(2)


def test_load_in_virtual_time_calls_back_on_the_way() -> None:
    clock, wave = VirtualClock(0.0), Waveform(80.0)
    load, seen = Load(clock, wave), []
    ticker = clock.every(0.25, lambda: seen.append((clock.now(), wave.power(clock.now()))))
    clock.sleep(0.6)
    calls, device_time = load.run(0.5, call_s=1e-2)
    load.off()
    clock.sleep(0.2)
    ticker.cancel()
    clock.sleep(1.0)
    assert (calls, device_time) == (50, pytest.approx(0.5))
    assert seen == [(0.25, 80), (0.5, 80), (0.75, 500), (1.0, 500), (1.25, 80)]
    assert wave.energy(0.0, 1.3) == pytest.approx(80 * 0.8 + 500 * 0.5)
