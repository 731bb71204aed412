"""From readings to watts: hand-worked edges, laws, and the accuracy on simulated sensors."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wattline_sim.sources import ROWS, Load, VirtualClock, Waveform, poll, simulate

from wattline.collectors.energy.edges import fit_slope, student
from wattline.collectors.energy.estimate import (
    counter_power,
    estimate_power,
    find_edges,
    mean_power,
    observed_period,
    relative_difference,
    settle_s,
    span_energy,
)
from wattline.collectors.energy.flags import ENERGY_FLAGS
from wattline.collectors.energy.sources import COUNTER, POWER, Reading, SensorProfile
from wattline.errors import SensorError

PROFILE = SensorProfile(0.1, resolution=1e-3)


def readings(*pairs: tuple[float, float]) -> list[Reading]:
    return [Reading(t, v) for t, v in pairs]


def counter(power_w: float, seconds: float, period_s: float = 0.1, **options) -> list[Reading]:
    """A counter that changes every period, polled at irregular times."""
    return swinging(power_w, seconds, period_s, **options)[0]


def swinging(
    power_w: float, seconds: float, period_s: float, *, seed: int = 0, noise: float = 0.0, phase: float = 0.03
) -> tuple[list[Reading], float]:
    """The same with noise of the power, new every 10 ms; and the true mean power."""
    rng = random.Random(seed)
    joules = [0.0]
    for _ in range(int((seconds + 1) / 0.01) + 2):
        joules.append(joules[-1] + 0.01 * power_w * (1 + noise * rng.gauss(0, 1)))
    out, now = [], 0.0
    while now < seconds:
        at = max(0.0, math.floor((now - phase) / period_s) * period_s + phase) if now >= phase else 0.0
        step, share = divmod(at, 0.01)
        value = joules[int(step)] + (joules[int(step) + 1] - joules[int(step)]) * share / 0.01
        out.append(Reading(now, round(value, 3)))
        now += max(0.005, period_s / 4) * rng.uniform(0.5, 1.5)
    return out, joules[round(seconds / 0.01)] / seconds


def test_an_edge_lies_in_the_middle_of_its_gap():
    found = find_edges(readings((0.00, 5), (0.02, 5), (0.06, 9), (0.08, 9), (0.10, 14)), 0.1)
    assert [(e.time_s, e.value, e.half_s) for e in found] == [
        (pytest.approx(0.04), 9, pytest.approx(0.02)),
        (pytest.approx(0.09), 14, pytest.approx(0.01)),
    ]


def test_an_edge_is_at_most_a_period_old():
    (edge,) = find_edges(readings((0.0, 0), (1.0, 7)), 0.1)
    assert (edge.time_s, edge.half_s) == (pytest.approx(0.95), pytest.approx(0.05))


def test_no_edges_in_nothing():
    assert find_edges([], 0.1) == []
    assert find_edges(readings((0, 1), (1, 1)), 0.1) == []


def test_the_period_is_seen_where_polls_are_close_enough():
    seen = counter(200.0, 3.0, 0.02)
    assert observed_period(seen, 0.1) == pytest.approx(0.02, rel=0.15)
    assert observed_period(counter(200.0, 3.0, 0.001), 0.001) == 0.001  # polls of 5 ms cannot tell: the prior stays
    assert observed_period([], 0.1) == 0.1


@pytest.mark.parametrize("power_w", [0.5, 80.0, 500.0, 1200.0])
def test_counter_power_of_evenly_polled_steps_is_exact(power_w):
    seen = readings(*((k * 0.025, power_w * 0.1 * (k // 4)) for k in range(200)))
    found = counter_power(seen, PROFILE)
    assert found.power_w == pytest.approx(power_w, rel=1e-9)
    assert found.periods == pytest.approx(48)
    assert found.half_width < 0.002 + 1e-3 / power_w
    assert found.flags == ()


@given(st.floats(1.0, 2000.0), st.integers(0, 50), st.floats(1e-3, 1e6), st.floats(-1e4, 1e4))
def test_counter_power_does_not_depend_on_origins(power_w, seed, joules, seconds):
    seen = counter(power_w, 2.0, seed=seed)
    moved = [Reading(r.time_s + seconds, r.value + joules) for r in seen]
    a, b = counter_power(seen, PROFILE), counter_power(moved, PROFILE)
    assert a.power_w == pytest.approx(b.power_w, rel=1e-5)


@given(st.floats(1.5, 20.0), st.integers(0, 20))
def test_counter_power_scales_with_the_counter(gain, seed):
    seen = counter(100.0, 2.0, seed=seed)
    scaled = [Reading(r.time_s, r.value * gain) for r in seen]
    assert counter_power(scaled, PROFILE).power_w == pytest.approx(gain * counter_power(seen, PROFILE).power_w)


def test_intervals_cover_the_truth_of_a_steady_counter():
    errors = []
    for seed in range(150):
        found = counter_power(counter(500.0, 5.0, seed=seed, phase=seed % 10 / 100), PROFILE)
        errors.append((abs(found.power_w / 500 - 1), found.half_width))
    assert sum(e for e, _ in errors) / len(errors) < 1e-3
    assert sum(e <= half for e, half in errors) / len(errors) > 0.91
    assert sum(half for _, half in errors) / len(errors) < 0.005


def test_a_power_that_swings_is_averaged_between_the_ends():
    covered, worst = 0, 0.0
    for seed in range(60):
        seen, true_w = swinging(500.0, 5.0, 0.02, seed=seed, noise=0.3, phase=0.0)
        found = counter_power(seen, SensorProfile(0.02, resolution=1e-3))
        covered += abs(found.power_w / true_w - 1) <= found.half_width
        worst = max(worst, abs(found.power_w / true_w - 1))
    assert worst < 0.012
    assert covered >= 55


def test_few_periods_are_flagged_and_fewer_refused():
    assert "low_confidence" in counter_power(counter(300.0, 1.0), PROFILE).flags
    with pytest.raises(SensorError, match="changed"):
        counter_power(counter(300.0, 0.2), PROFILE)
    with pytest.raises(SensorError, match="changed 0 times"):
        counter_power([], PROFILE)


def test_a_silent_counter_gives_no_joules():
    with pytest.raises(SensorError, match="changed 0 times"):
        counter_power(readings(*((0.02 * k, 5.0) for k in range(300))), PROFILE)


def test_a_counter_that_stops_is_not_believed():
    seen = counter(300.0, 5.0)
    stuck = [Reading(r.time_s, min(r.value, 900.0)) for r in seen]
    with pytest.raises(SensorError, match="stood still"):
        counter_power(stuck, PROFILE)


def test_a_gap_between_polls_is_no_stall():
    seen = [r for r in counter(300.0, 5.0) if not 2.0 < r.time_s < 3.0]
    found = counter_power(seen, PROFILE)
    assert found.power_w == pytest.approx(300.0, rel=0.01)
    assert "stalled" not in found.flags


def test_a_reset_leaves_the_longer_part():
    seen = [Reading(r.time_s, r.value - (700.0 if r.time_s > 2.0 else 0.0)) for r in counter(300.0, 6.0)]
    assert any(b.value < a.value for a, b in pairwise(seen))
    found = counter_power(seen, PROFILE)
    assert found.power_w == pytest.approx(300.0, rel=0.01)
    assert found.span_s == pytest.approx(4.0, abs=0.3)
    assert "counter_reset" in found.flags


def test_a_load_that_changes_is_flagged():
    clock = VirtualClock()
    truth = Waveform(200.0)
    truth.step(clock.now() + 2.5, 300.0)
    source = simulate("counter 100 ms", clock, truth)
    found = counter_power(poll([source], clock, 5.0, 0.025, seed=1)[0], source.profile)
    assert "power_drift" in found.flags
    assert found.power_w == pytest.approx(250.0, rel=0.02)
    assert found.drift > 0.05


def test_mean_power_by_hand():
    # 100 W for 2 s, then 200 W for 2 s; the value of the last reading holds for no time.
    seen = readings((0, 100.0), (1, 100.0), (2, 200.0), (3, 200.0), (4, 999.0))
    found = mean_power(seen, SensorProfile(1.0, 1.0))
    assert found.power_w == pytest.approx(150.0)
    assert found.flags == ("low_confidence",)  # too few to tell a change from noise
    assert found.periods == 4


def test_a_reading_that_never_changes_is_flagged():
    found = mean_power(readings(*((0.02 * k, 80.0) for k in range(300))), PROFILE)
    assert found.power_w == pytest.approx(80.0)
    assert found.flags == ("unchanged",)


@pytest.mark.parametrize("seen", [[], readings((0, 5.0)), readings((0, 5.0), (0.05, 6.0), (0.1, 5.0))])
def test_too_few_readings_of_power(seen):
    with pytest.raises(SensorError, match="no power from"):
        mean_power(seen, PROFILE)


def test_zero_watts_is_a_sensor_that_says_nothing():
    with pytest.raises(SensorError, match="0 W"):
        mean_power(readings(*((0.02 * k, 0.0) for k in range(300))), PROFILE)


@pytest.mark.parametrize("row", sorted(ROWS))
@pytest.mark.parametrize("gain", [0.95, 1.0])
def test_every_sensor_of_the_table(row, gain):
    """Idle, a step of the load, a lead-in as long as the sensor remembers, then five seconds."""
    errors = []
    for seed in range(4):
        clock = VirtualClock(1000 + 0.0137 * seed)
        truth = Waveform(80.0)
        source = simulate(row, clock, truth, seed=seed, gain=gain)
        clock.sleep(1.5)
        Load(clock, truth)(True)
        clock.sleep(settle_s(source.profile))
        begin = clock.now()
        seen = poll([source], clock, 5.0, max(0.005, source.profile.period_s / 4), seed=seed)[0]
        found = estimate_power(source.kind, seen, source.profile, begin, clock.now())
        errors.append(abs(found.power_w / (500.0 * gain) - 1))
        assert errors[-1] <= 2 * found.half_width
        assert set(found.flags) <= set(ENERGY_FLAGS)
        assert "low_confidence" not in found.flags
    assert sum(errors) / len(errors) < 2.5e-3


def test_without_a_lead_in_the_first_edges_hold_idle_energy():
    """What the rule on the lead-in is for: an average of a second remembers the idle time before."""
    clock, truth = VirtualClock(), Waveform(80.0)
    source = simulate("h100 average", clock, truth)
    clock.sleep(2.0)
    Load(clock, truth)(True)
    seen = poll([source], clock, 5.0, 0.025, seed=0)[0]
    assert mean_power(seen, source.profile).power_w < 0.93 * 500
    assert mean_power(seen, source.profile, begin_s=seen[0].time_s + settle_s(source.profile)).power_w == pytest.approx(
        500, rel=2e-3
    )


@pytest.mark.parametrize("row", sorted(set(ROWS) - {"h100 average"}))
def test_energy_of_a_region_within_idle(row):
    """Two seconds of 500 W between idle times: the ends are not known better than a period."""
    covered, errors = 0, []
    for seed in range(8):
        clock = VirtualClock(1000 + 0.037 * seed)
        truth = Waveform(80.0)
        source = simulate(row, clock, truth, seed=seed)
        truth.step(clock.now() + 2.013, 500.0)
        truth.step(clock.now() + 4.013, 80.0)
        begin, end = clock.now() + 2.013, clock.now() + 4.013
        gap = max(0.005, source.profile.period_s / 4)
        seen = poll([source], clock, 6.0, gap, seed=seed)[0]
        found = span_energy(source.kind, seen, source.profile, begin, end)
        true = truth.energy(begin, end)
        errors.append(abs(found.energy_j / true - 1))
        covered += abs(found.energy_j - true) <= found.half_width_j
    assert covered >= 7
    assert max(errors) < 0.06
    assert sum(errors) / len(errors) < 0.035


def test_a_region_of_a_counter_by_hand():
    # 10 J every 0.1 s, seen at once: from 0.25 to 0.55 s are 30 J.
    seen = readings(*((0.01 * k, 10.0 * (k // 10)) for k in range(100)))
    found = span_energy(COUNTER, seen, SensorProfile(0.1), 0.25, 0.55)
    assert found.energy_j == pytest.approx(30.0, rel=1e-9)
    assert 0 < found.half_width_j < 10
    assert "low_confidence" in found.flags


def test_a_region_of_power_by_hand():
    # Means of 0.1 s, each renewed when its window ends: 100 W until second 2, 300 W afterwards.
    seen = readings(*((0.01 * k + 0.005, 100.0 if k < 210 else 300.0) for k in range(400)))
    found = span_energy(POWER, seen, SensorProfile(0.1, 0.1), 1.0, 3.0)
    assert found.energy_j == pytest.approx(400.0, rel=1e-6)
    assert 0 < found.half_width_j < 5


def test_a_region_that_is_too_short_or_not_covered():
    seen = counter(100.0, 3.0)
    with pytest.raises(SensorError, match=r"1\.\d+ periods|0\.\d+ periods"):
        span_energy(COUNTER, seen, PROFILE, 1.0, 1.15)
    for kind, taken in ((COUNTER, seen), (POWER, readings(*((0.02 * k, 80.0 + k % 2) for k in range(150))))):
        with pytest.raises(SensorError, match=r"not known|not cover"):
            span_energy(kind, taken, PROFILE, 1.0, 9.0)
        with pytest.raises(SensorError, match=r"not known|not cover"):
            span_energy(kind, taken, PROFILE, -1.0, 2.0)


def test_a_region_of_a_silent_sensor_is_refused():
    with pytest.raises(SensorError, match="0 J"):
        span_energy(POWER, readings(*((0.02 * k, 0.0) for k in range(300))), PROFILE, 1.0, 3.0)


def test_small_helpers():
    assert relative_difference(1.0, 1.0) == relative_difference(0.0, 0.0) == 0.0
    assert relative_difference(90.0, 110.0) == pytest.approx(0.2)
    assert settle_s(SensorProfile(0.1, 1.0, 0.05, 0.2)) == pytest.approx(1.35)
    assert fit_slope(find_edges(readings((0, 0), (1, 2), (2, 4), (3, 6)), 9.0)).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (48, 2.0106), (1e6, 1.95997)],
)
def test_quantiles_of_student(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, rel=0.01)
