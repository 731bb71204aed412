"""Polling, the window rule, the choice of a source, and records of a metered sensor; in virtual time but for a few."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise

import pytest
from wattline_sim.sources import ROWS, Load, VirtualClock, Waveform, simulate

from wattline.collectors.energy import BUDGET, ENERGY_FLAGS, MeteredSensor
from wattline.collectors.energy.polling import LEAST_GAP_S, MOST_FAILURES, Poller, ThreadPoller, poll_gap
from wattline.collectors.energy.sensor import measuring_window
from wattline.collectors.energy.sources import POWER, Reading, SensorProfile, Source
from wattline.errors import DeviceError, ParamError, SensorError


class VirtualPoller(Poller):
    """Polls whenever the virtual clock passes a millisecond."""

    def __init__(self, sources, clock):
        super().__init__(sources, clock=clock)
        self.virtual = clock

    def start(self):
        super().start()
        self.ticker = self.virtual.every(1e-3, self.step)

    def stop(self):
        self.ticker.cancel()
        return super().stop()


class Bench:
    """A device in virtual time: sources of the named rows, a load, a sensor."""

    def __init__(self, *rows, seed=0, idle_w=80.0, active_w=500.0, **options):
        self.clock = VirtualClock()
        self.truth = Waveform(idle_w)
        self.load = Load(self.clock, self.truth, idle_w, active_w)
        self.sources = [simulate(row, self.clock, self.truth, seed=seed + k, **options) for k, row in enumerate(rows)]
        self.sensor = MeteredSensor(
            "sim", self.sources, clock=self.clock, poller=VirtualPoller, sleep=self.clock.sleep
        )
        self.clock.sleep(1.7 + 0.0137 * seed)

    def measure(self, requested_s=None, call_s=1e-3, before_end=None):
        """The loop's side of the seam."""
        window = self.sensor.window(requested_s)
        self.load.run(window.lead_in_s, call_s)
        self.sensor.start()
        if before_end:
            before_end(window)
        calls, device_time_s = self.load.run(window.measured_s, call_s)
        energy = self.sensor.stop(calls, device_time_s)
        self.load.run(window.lead_out_s, call_s)
        self.load.off()
        return energy


@pytest.mark.parametrize("call_s", [1e-5, 1e-3, 0.05])
@pytest.mark.parametrize("row", sorted(ROWS))
def test_joules_per_call_of_every_sensor(row, call_s):
    bench = Bench(row)
    energy = bench.measure(call_s=call_s)
    assert energy.power_w == pytest.approx(500.0, rel=0.005)
    assert energy.energy_j == pytest.approx(500.0 * call_s, rel=0.005)
    assert energy.energy_lo_j < 500 * call_s < energy.energy_hi_j
    assert set(energy.flags) <= set(ENERGY_FLAGS)
    assert set(energy.budget) <= set(BUDGET)
    assert energy.source == bench.sources[0].label
    assert energy.scope == bench.sources[0].scope


@pytest.mark.parametrize("row", sorted(ROWS))
def test_a_short_window_is_exact_enough_or_says_so(row):
    energy = Bench(row, seed=3).measure(1.0)
    assert abs(energy.power_w / 500 - 1) < 0.03
    assert ("low_confidence" in energy.flags) == (ROWS[row].period_s > 0.05)


@pytest.mark.parametrize("gain", [0.95, 1.05])
def test_the_interval_holds_the_gain(gain):
    covered = 0
    for seed in range(10):
        energy = Bench("counter 100 ms", seed=seed, gain=gain).measure()
        assert energy.power_w == pytest.approx(500 * gain, rel=0.005)
        covered += energy.energy_lo_j <= 0.5 <= energy.energy_hi_j
    assert covered >= 9


def test_the_interval_by_hand():
    bench = Bench("counter 20 ms")
    energy = bench.measure()
    half = math.hypot(*(energy.budget[name] for name in ("quantisation", "trial", "drift")))
    assert energy.energy_lo_j == pytest.approx(energy.energy_j * (1 - half) / 1.05)
    assert energy.energy_hi_j == pytest.approx(energy.energy_j * (1 + half) / 0.95)


def test_window_rule_by_hand():
    profile = SensorProfile(0.1, 0.025, 0.01, 0.005)
    window = measuring_window([profile])
    assert (window.measured_s, window.note) == (5.0, "")
    assert window.lead_in_s == pytest.approx(0.14)  # window + lag + rise + one period
    assert window.lead_out_s == pytest.approx(0.11)
    assert measuring_window([SensorProfile(0.2)]).measured_s == pytest.approx(10.0)  # 50 periods
    assert measuring_window([profile, SensorProfile(0.1, 1.0)]).lead_in_s == pytest.approx(1.1)
    assert measuring_window([profile], 2.0).note == ""
    assert "low confidence" in measuring_window([profile], 1.9).note
    assert measuring_window([profile], 0.2).measured_s == pytest.approx(0.32)
    for seconds in (0.19, 0.0, -1.0, math.nan):
        with pytest.raises(SensorError, match="too short"):
            measuring_window([profile], seconds)


def test_two_periods_give_a_figure_and_less_is_refused():
    bench = Bench("counter 100 ms")
    assert bench.measure(0.2).energy_j > 0.4e-3
    with pytest.raises(SensorError, match="2 of them are the least"):
        bench.measure(0.15)


def test_idle_goes_into_every_record():
    bench = Bench("counter 100 ms")
    level = bench.sensor.measure_idle(2.0)
    assert level.power_w == pytest.approx(80.0, rel=0.02)
    assert abs(level.power_w / 80 - 1) <= 2 * level.half_width
    bench.load.active_w = 120.0
    bench.load(True)
    assert bench.sensor.measure_level("resident", 2.0).power_w == pytest.approx(120.0, rel=0.02)
    assert set(bench.sensor.levels) == {"idle", "resident"}
    assert bench.measure().idle_w == level.power_w


def test_idle_after_load_waits_until_the_sensor_has_forgotten():
    bench = Bench("h100 average")
    bench.load.run(3.0)
    bench.load.off()
    assert bench.sensor.measure_idle(3.0).power_w == pytest.approx(80.0, rel=0.01)


def test_counter_and_integrated_power_agree():
    energy = Bench("counter 100 ms", "h100 instant").measure()
    assert energy.budget["cross_check"] < 0.005
    assert not {"disagreement", "unchecked"} & set(energy.flags)


def test_disagreement_is_flagged():
    bench = Bench("counter 100 ms", "h100 instant")
    bench.sources[1].gain = 0.9
    energy = bench.measure()
    assert "disagreement" in energy.flags
    assert energy.budget["cross_check"] == pytest.approx(2 * 0.1 / 1.9, rel=0.05)
    assert energy.power_w == pytest.approx(500, rel=0.005)  # the counter is believed


def test_another_scope_checks_nothing():
    energy = Bench("counter 100 ms", "gh200").measure()
    assert "cross_check" not in energy.budget
    assert "module_scope" not in energy.flags
    assert "module_scope" in Bench("gh200").measure().flags


def test_a_counter_that_stalls_is_replaced():
    bench = Bench("counter 100 ms", "h100 instant")
    energy = bench.measure(before_end=lambda w: bench.sources[0].stall(bench.clock.now() + 1.0))
    assert energy.power_w == pytest.approx(500, rel=0.005)
    assert "instant power" in energy.source
    assert {"fallback", "unchecked"} <= set(energy.flags)


def test_a_counter_that_resets_is_used_in_part():
    bench = Bench("counter 20 ms")
    energy = bench.measure(before_end=lambda w: bench.sources[0].reset(bench.clock.now() + 1.0))
    assert energy.power_w == pytest.approx(500, rel=0.005)
    assert "counter_reset" in energy.flags


def test_one_source_that_fails_leaves_the_other():
    bench = Bench("counter 100 ms", "h100 instant")
    error = SensorError("reading failed")
    energy = bench.measure(before_end=lambda w: bench.sources[0].fail(bench.clock.now(), error))
    assert "fallback" in energy.flags
    assert bench.sensor.watched[0].error is error
    assert bench.sensor.watched[0].failures == MOST_FAILURES


def test_a_lost_device_ends_in_its_own_error_and_a_late_loss_in_a_flag():
    bench = Bench("counter 100 ms", "h100 instant")
    lost = DeviceError("the GPU has fallen off the bus", sticky=True)

    def lose(after_s):
        return lambda w: [source.fail(bench.clock.now() + after_s, lost) for source in bench.sources]

    with pytest.raises(DeviceError, match="fallen off"):
        bench.measure(before_end=lose(0.1))
    bench = Bench("counter 100 ms", "h100 instant")
    energy = bench.measure(before_end=lose(4.0))
    assert "lost_device" in energy.flags
    assert energy.power_w == pytest.approx(500, rel=0.01)


def test_all_reasons_are_named_where_nothing_answers():
    bench = Bench("counter 100 ms", "h100 instant")
    for source in bench.sources:
        source.fail(0.0, SensorError("reading failed", why=f"no {source.field}"))
    with pytest.raises(SensorError, match=r"no total energy counter.*\|.*no instant power"):
        bench.measure()


def test_priors_are_flagged():
    bench = Bench("counter 100 ms", known=False)
    assert "uncalibrated" in bench.measure().flags
    assert "uncalibrated" not in Bench("counter 100 ms").measure().flags


def test_no_sensor_without_a_source():
    with pytest.raises(SensorError, match="no source"):
        MeteredSensor("sim", [])


def test_wrong_use_leaves_the_sensor_usable():
    bench = Bench("counter 20 ms")
    with pytest.raises(SensorError, match="before it was started"):
        bench.sensor.stop(1, 1.0)
    bench.sensor.start()
    with pytest.raises(SensorError, match="twice"):
        bench.sensor.start()
    bench.sensor.cancel()
    bench.sensor.start()
    with pytest.raises(ParamError, match="no energy per call"):
        bench.sensor.stop(0, 1.0)
    bench.sensor.cancel()
    assert bench.measure().power_w == pytest.approx(500, rel=0.005)
    bench.sensor.close()
    bench.sensor.close()


def test_polling_is_gentle_and_irregular():
    bench = Bench("counter 100 ms", "rapl")
    poller = VirtualPoller(bench.sources, bench.clock)
    poller.start()
    bench.clock.sleep(10.0)
    slow, fast = poller.stop()
    assert len(slow.readings) == pytest.approx(10.0 / poll_gap(0.1), rel=0.1)
    assert len(fast.readings) <= 10.0 / LEAST_GAP_S * 1.05
    gaps = [b.time_s - a.time_s for a, b in pairwise(slow.readings)][1:-1]
    mean = poll_gap(0.1)
    assert min(gaps) < 0.65 * mean
    assert max(gaps) > 1.35 * mean


def test_old_readings_are_forgotten():
    bench = Bench("counter 20 ms")
    poller = Poller(bench.sources, clock=bench.clock, keep_s=1.0)
    poller.start()
    ticker = bench.clock.every(1e-3, poller.step)
    bench.clock.sleep(20.0)
    ticker.cancel()
    kept = poller.readings(bench.sources[0])
    assert kept[0].time_s >= bench.clock.now() - 2.1
    assert kept[0].time_s <= bench.clock.now() - 0.9


class Buffered(Source):
    """A driver that keeps readings and is not to be polled."""

    kind, vendor, field, scope, buffered = POWER, "sim", "buffer", "gpu", True
    profile = SensorProfile(0.1, calibrated=True)
    reads = 0

    def __init__(self, clock, power_w=500.0, error=None):
        self.clock, self.power_w, self.error = clock, power_w, error

    def read(self):
        self.reads += 1
        return Reading(self.clock(), self.power_w)

    def history(self, since_s):
        if self.error:
            raise self.error
        count = int((self.clock() - since_s) / 0.1)
        return [Reading(since_s + 0.1 * k, self.power_w + k % 2) for k in range(count + 1)]


def test_a_buffer_is_fetched_once_and_never_polled():
    bench = Bench("counter 100 ms")
    buffer = Buffered(bench.clock)
    bench.sensor.sources = (*bench.sources, buffer)
    energy = bench.measure()
    assert buffer.reads == 0
    assert energy.budget["cross_check"] < 0.01
    buffer.error = SensorError("the buffer is gone")
    energy = bench.measure()
    assert "unchecked" in energy.flags
    assert bench.sensor.watched[1].error is buffer.error


class WallSource(Source):
    """A counter of 200 W on the wall clock that changes every 2 ms; it may be told to fail."""

    kind, vendor, field, scope = "counter", "wall", "counter", "gpu"
    profile = SensorProfile(0.002, resolution=1e-6, calibrated=True)

    def __init__(self):
        self.error = None
        self.closed = 0

    def read(self):
        if self.error:
            raise self.error
        now = time.perf_counter()
        return Reading(now, 200.0 * math.floor(now / 0.002) * 0.002)

    def close(self):
        self.closed += 1


def threads():
    return [t for t in threading.enumerate() if t.name == "wattline-energy"]


def test_the_thread_polls_and_ends():
    source = WallSource()
    with MeteredSensor("wall", [source]) as sensor:
        sensor.start()
        assert len(threads()) == 1
        time.sleep(0.4)
        energy = sensor.stop(10, 0.2)
        assert energy.power_w == pytest.approx(200, rel=0.05)
        assert energy.energy_j == pytest.approx(energy.power_w * 0.02)
        sensor.start()
    assert threads() == []
    assert source.closed == 1


def test_a_bug_in_a_source_is_not_swallowed_by_the_thread():
    source = WallSource()
    poller = ThreadPoller([source])
    poller.start()
    poller.start()  # does nothing
    assert len(threads()) == 1
    source.error = ZeroDivisionError("a bug")
    deadline = time.perf_counter() + 5
    while threads() and time.perf_counter() < deadline:
        time.sleep(0.01)
    source.error = None
    with pytest.raises(SensorError, match="ZeroDivisionError: a bug"):
        poller.stop()
    assert poller.stop()  # once is enough
    assert threads() == []


def test_passing_failures_are_survived_and_flagged():
    source = WallSource()
    sensor = MeteredSensor("wall", [source])
    sensor.start()
    time.sleep(0.1)
    source.error = SensorError("busy")
    poller = sensor._poller
    while not poller.watched[0].failures:
        time.sleep(0.001)
    source.error = None
    time.sleep(0.2)
    energy = sensor.stop(1, 0.1)
    assert "read_errors" in energy.flags or sensor.watched[0].error is not None
    assert energy.power_w == pytest.approx(200, rel=0.05)
