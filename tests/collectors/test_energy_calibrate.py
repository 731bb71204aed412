"""Calibration: every row of the sensor table is recovered from simulated sensors whose truth is known."""

from __future__ import annotations

import random

import pytest
from wattline_sim.bench import IDLE_W, Bench
from wattline_sim.sources import ROWS, SimulatedCounter, SimulatedPower, Waveform, simulate

from wattline.collectors.energy.calibrate import QUICK, THOROUGH, calibrate
from wattline.collectors.energy.errors import SensorBusyError
from wattline.collectors.energy.sources import POWER, Reading
from wattline.errors import DeviceError, SensorError


@pytest.fixture
def bench() -> Bench:
    return Bench()


def run(bench: Bench, source, effort=THOROUGH, seed: int = 0):
    return calibrate(source, bench.load, effort=effort, clock=bench.clock, seed=seed)


@pytest.mark.parametrize(
    ("row", "effort"),
    [
        *((row, THOROUGH) for row in ROWS),
        *((row, QUICK) for row in ("pascal, volta", "a100 instant", "counter 100 ms")),
    ],
    ids=lambda given: given if isinstance(given, str) else {THOROUGH: "thorough", QUICK: "quick"}[given],
)
def test_period_window_and_lag_of_every_row_of_the_table(bench, row, effort) -> None:
    truth = ROWS[row]
    source = bench.source(row)
    prior = source.profile
    found = run(bench, source, effort)
    profile = found.profile
    assert found.period.value == pytest.approx(truth.period_s, rel=0.01)
    assert profile.period_s == found.period.value
    assert profile.lag_s == pytest.approx(source.lag_s, abs=1e-3)
    assert profile.resolution == pytest.approx(truth.resolution, rel=1e-3)
    assert (profile.calibrated, profile.gain_error) == (True, prior.gain_error)
    if source.kind == POWER:
        assert profile.window_s == pytest.approx(truth.window_s, rel=0.05)
        assert abs(found.window.value - truth.window_s) <= max(4 * found.window.error, 0.02 * truth.window_s)
        # No shape is assumed for the rise; a boxcar's is its lag and nine tenths of its window.
        assert profile.rise_s == pytest.approx(source.lag_s + 0.9 * truth.window_s, rel=0.1)
        assert found.low_pass_s == 0
        assert found.r2 > 0.99
    else:
        assert (profile.window_s, profile.rise_s) == (0, 0)
    assert bench.truth.power(bench.clock.now() + 1) == IDLE_W  # the load is off


@pytest.mark.parametrize("row", ["pascal, volta", "a100 instant", "h100 average"])
@pytest.mark.parametrize(
    "trouble",
    [{"noise_w": 0.0, "resolution": 1.0}, {"noise_w": 10.0}, {"jitter_s": 5e-4}, {"read_cost_s": 2e-3}],
    ids=["whole watts", "noise", "jitter", "slow reads"],
)
def test_trouble_moves_period_and_window_by_less_than_a_tenth(bench, row, trouble) -> None:
    found = run(bench, bench.source(row, seed=3, **trouble))
    assert found.profile.period_s == pytest.approx(ROWS[row].period_s, rel=0.01)
    assert found.profile.window_s == pytest.approx(ROWS[row].window_s, rel=0.1)


@pytest.mark.parametrize("row", ["pascal, volta", "a100 instant"])
def test_a_low_pass_before_the_window_is_told_from_the_window(bench, row) -> None:
    found = run(bench, bench.source(row, tau_s=5e-3))
    assert found.low_pass_s == pytest.approx(5e-3, rel=0.15)
    assert found.profile.window_s == pytest.approx(ROWS[row].window_s, rel=0.1)
    assert found.profile.rise_s > 0.005 + 0.9 * ROWS[row].window_s + 2e-3


def test_a_counter_that_looks_away_is_found_out(bench) -> None:
    found = run(bench, bench.source("counter 100 ms", seen_s=0.025))
    assert found.window.value == pytest.approx(0.025, rel=0.1)
    assert any("sees 25%" in note for note in found.notes)
    assert "sees 25%" in found.profile.note


def test_a_buffer_of_the_driver_is_calibrated_from_its_own_times(bench) -> None:
    source = bench.source("a100 instant", history=200)
    source.buffered = True
    found = run(bench, source, QUICK)
    assert found.period.value == pytest.approx(0.1, rel=1e-6)
    assert found.window.value == pytest.approx(0.025, rel=0.02)


def test_a_sensor_quicker_than_the_polls_gives_a_bound_not_a_period(bench) -> None:
    found = run(bench, SimulatedPower(bench.clock, bench.truth, period_s=1e-4, window_s=0.02, noise_w=1.0), QUICK)
    assert found.period is None
    assert 1e-4 <= found.profile.period_s < 1e-3
    assert found.profile.window_s == pytest.approx(0.02, rel=0.1)
    assert any("or shorter" in note for note in found.notes)


def test_same_seed_same_figures() -> None:
    first, second = (run(each, each.source("a100 instant"), QUICK) for each in (Bench(), Bench()))
    assert first == second


def test_a_dead_sensor_is_refused_and_the_load_is_off(bench) -> None:
    source = bench.source("counter 100 ms")
    source.stall(0.0)
    with pytest.raises(SensorError, match="cannot be calibrated") as caught:
        run(bench, source, QUICK)
    assert "stayed at" in caught.value.why
    assert bench.truth.power(bench.clock.now()) == IDLE_W


def test_a_load_on_another_device_is_refused(bench) -> None:
    elsewhere = Waveform(IDLE_W)
    source = simulate("a100 instant", bench.clock, elsewhere, seed=1)
    with pytest.raises(SensorError) as caught:
        run(bench, source, QUICK)
    assert "does not move with the load" in caught.value.why


def test_a_counter_that_falls_back_is_refused(bench) -> None:
    source = bench.source("counter 20 ms")
    source.reset(bench.clock.now() + 3.0)
    with pytest.raises(SensorError) as caught:
        run(bench, source, QUICK)
    assert "backwards" in caught.value.why


def test_a_lost_device_ends_it_with_the_load_off(bench) -> None:
    source = bench.source("a100 instant")
    source.fail(bench.clock.now() + 4.0, DeviceError("GPU 0 is lost", sticky=True))
    with pytest.raises(DeviceError, match="lost"):
        run(bench, source)
    assert bench.truth.power(bench.clock.now()) == IDLE_W


class LateClock:
    """A busy machine: whoever sleeps is woken late."""

    def __init__(self, bench: Bench, late_s: float) -> None:
        self.inner, self.late_s, self.random = bench.clock, late_s, random.Random(1)

    def now(self) -> float:
        return self.inner.now()

    def sleep(self, seconds: float) -> None:
        self.inner.sleep(seconds + self.random.expovariate(1 / self.late_s))


def test_late_polls_are_made_up_for_and_told_where_they_cannot_be(bench) -> None:
    found = calibrate(bench.source("pascal, volta"), bench.load, effort=QUICK, clock=LateClock(bench, 2e-3))
    assert found.poll_s > 2.5e-3
    assert found.profile.window_s == pytest.approx(0.01, rel=0.1)
    assert not any("busy" in note for note in found.notes)
    other = Bench()
    rough = calibrate(other.source("pascal, volta"), other.load, effort=QUICK, clock=LateClock(other, 5e-3))
    assert any("busy" in note for note in rough.notes)


class Busy(SimulatedPower):
    """Every so many reads fail."""

    every = 50

    def read(self) -> Reading:
        reading = super().read()
        if self.reads > 1 and self.reads % self.every == 0:
            raise SensorBusyError("reading failed", why="the driver did not answer in time")
        return reading


def test_some_failed_reads_do_no_harm_and_many_are_refused(bench) -> None:
    options = {"period_s": 0.02, "window_s": 0.01, "noise_w": 1.0}
    found = run(bench, Busy(bench.clock, bench.truth, **options))
    assert found.profile.window_s == pytest.approx(0.01, rel=0.05)
    other = Bench()
    source = Busy(other.clock, other.truth, **options)
    source.every = 3
    with pytest.raises(SensorError) as caught:
        run(other, source)
    assert "did not answer in time" in caught.value.why


def test_a_counter_in_simulated_use_has_the_resolution_of_the_counter(bench) -> None:
    source = SimulatedCounter(bench.clock, bench.truth, period_s=0.05, resolution=1.0, seed=5)
    assert run(bench, source, QUICK).profile.resolution == pytest.approx(1.0)
