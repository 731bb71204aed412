"""The public meter: windows that nest, overlap and repeat, on simulated sensors whose true energy is known."""

from __future__ import annotations

import random

import pytest
from wattline_sim.meter_bench import Bench
from wattline_sim.sources import ROWS, Waveform, simulate

from wattline.collectors.energy import spans
from wattline.collectors.energy.common import NoEnergySensor
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.errors import DeviceError, SensorError
from wattline.reasons import Reason

STEADY = ("counter 20 ms", "counter 100 ms", "rapl", "pascal, volta", "turing, rtx 3090", "a100 instant", "gh200")
SYSTEMATIC = 0.05
"""Gain error of the simulated profiles; these sensors have a gain of 1, so that it is slack."""


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("row", STEADY)
@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_steady_load_is_measured_within_its_interval(bench: Bench, row: str, seconds: float) -> None:
    bench.sensor(row)
    bench.truth.step(bench.clock(), 350.0)
    bench.clock.sleep(3.0)
    with bench.meter() as meter:
        bench.clock.sleep(0.037)
        began = bench.clock()
        with meter.window("work", calls=10):
            bench.clock.sleep(seconds)
        found = meter.result("work")
    true_j = bench.truth.energy(began, began + seconds)
    assert found.energy_j == pytest.approx(true_j, rel=0.02 if seconds < 2 else 0.01)
    assert found.energy_lo_j <= true_j <= found.energy_hi_j
    assert found.energy_per_call_j == found.energy_j / 10
    assert found.power_w == pytest.approx(350.0, rel=0.02)
    assert found.duration_s == pytest.approx(seconds)
    assert ROWS[row].field in found.source
    assert ("low_confidence" in found.flags) == (seconds < 20 * ROWS[row].period_s)


@pytest.mark.parametrize("row", ["counter 100 ms", "counter 20 ms", "rapl"])
def test_intervals_cover_steps_anywhere_in_the_window(row: str) -> None:
    rng = random.Random(5)
    covered = []
    for _ in range(60):
        bench = Bench()
        bench.sensor(row)
        at = bench.clock() + 0.5
        for _ in range(4):
            bench.truth.step(at := at + rng.uniform(0.05, 0.6), rng.choice([80.0, 250.0, 500.0]))
        with bench.meter() as meter:
            bench.clock.sleep(rng.uniform(0.3, 1.0))
            began = bench.clock()
            with meter.window("w"):
                bench.clock.sleep(1.5)
            found = meter.result("w")
        true_j = bench.truth.energy(began, began + 1.5)
        device = found.devices["gpu"]
        # Without the slack of the gain, which these sensors do not have: the bare statistical interval.
        covered.append(device.lo_j * (1 + SYSTEMATIC) <= true_j <= device.hi_j * (1 - SYSTEMATIC))
    assert sum(covered) >= 55  # 57 of 60 is 95 %


def test_windows_nest_and_overlap(bench: Bench) -> None:
    bench.sensor("counter 20 ms")
    clock = bench.clock
    with bench.meter() as meter:
        bench.truth.step(clock() + 1.0, 400.0)
        meter.begin("whole")
        with meter.window("idle"):
            clock.sleep(1.0)
        meter.begin("left")
        clock.sleep(0.5)
        meter.begin("right")
        clock.sleep(0.5)
        meter.end("left")
        clock.sleep(0.5)
        meter.end("right")
        meter.end("whole")
        found = {name: meter.result(name) for name in meter.names}
    assert set(found) == {"idle", "left", "right", "whole"}
    assert found["idle"].power_w == pytest.approx(80.0, rel=0.03)
    assert found["left"].energy_j == pytest.approx(400.0, rel=0.03)
    assert found["right"].energy_j == pytest.approx(400.0, rel=0.03)
    assert found["whole"].energy_j == pytest.approx(80 + 600, rel=0.02)
    # Neighbouring windows share an edge, so that nothing is counted twice or lost between them.
    parts = found["idle"].energy_j + found["left"].energy_j + 200
    assert found["whole"].energy_j == pytest.approx(parts, rel=0.02)


def test_repeated_windows_are_all_kept_in_order(bench: Bench) -> None:
    bench.sensor("counter 20 ms")
    with bench.meter() as meter:
        for watts in (100.0, 200.0, 300.0):
            bench.truth.step(bench.clock(), watts)
            with meter.window("step"):
                bench.clock.sleep(1.0)
        assert [round(w.power_w, -1) for w in meter.results("step")] == [100, 200, 300]
        assert meter.result("step") is meter.results("step")[-1]


def test_results_can_be_read_behind_the_block(bench: Bench) -> None:
    bench.sensor("counter 100 ms")
    with bench.meter() as meter, meter.window("all"):
        bench.clock.sleep(3.0)
    assert meter.result("all").energy_j == pytest.approx(240.0, rel=0.02)
    assert "all: 2" in str(meter.result("all"))
    assert "W over 3.00 s (sim: total energy counter (gpu)" in str(meter.result("all"))
    assert meter.result("all") is meter.result("all")


@pytest.mark.parametrize(("row", "seconds"), [("counter 100 ms", 0.15), ("a100 instant", 0.1), ("counter 20 ms", 0.01)])
def test_too_short_windows_are_refused(bench: Bench, row: str, seconds: float) -> None:
    bench.sensor(row)
    with bench.meter() as meter, meter.window("short"):
        bench.clock.sleep(seconds)
    found = meter.result("short")
    assert found.reason is not None
    assert "periods" in found.reason.message
    for name in ("energy_j", "power_w", "energy_lo_j", "energy_hi_j", "energy_per_call_j"):
        with pytest.raises(SensorError, match="no joules for the window 'short'") as caught:
            getattr(found, name)
    assert "repeat the work" in caught.value.todo
    assert "no joules" in str(found)


def test_several_devices_add_up_and_name_themselves(bench: Bench) -> None:
    other = Waveform(30.0)
    bench.sensor("counter 20 ms", device="cuda:0")
    bench.sensor("rapl", device="cpu", truth=other)
    with bench.meter() as meter, meter.window("w"):
        bench.clock.sleep(2.0)
    found = meter.result("w")
    assert found.devices["cuda:0"].joules == pytest.approx(160.0, rel=0.02)
    assert found.devices["cpu"].joules == pytest.approx(60.0, rel=0.02)
    assert found.energy_j == pytest.approx(220.0, rel=0.02)
    assert found.energy_lo_j == sum(device.lo_j for device in found.devices.values())
    assert (found.devices["cuda:0"].scope, found.devices["cpu"].scope) == ("gpu", "package")


def test_a_missing_sensor_is_a_reason_and_never_a_part_of_a_sum(bench: Bench) -> None:
    bench.sensor("counter 20 ms", device="cuda:0")
    bench.sensors["cpu"] = NoEnergySensor(Reason("rapl_forbidden", "root only"), name="rapl", remedy="sudo chmod")
    with bench.meter() as meter, meter.window("w"):
        assert meter.devices["cuda:0"] is None
        assert not meter.available
        bench.clock.sleep(1.0)
    found = meter.result("w")
    assert found.reason == Reason("rapl_forbidden", "root only")
    assert found.devices["cuda:0"].joules == pytest.approx(80.0, rel=0.03)
    with pytest.raises(SensorError, match="root only; sudo chmod"):
        _ = found.energy_j


def test_a_silent_counter_gives_no_zero(bench: Bench) -> None:
    (source,) = bench.sensor("counter 20 ms")
    source.stall(bench.clock(), bench.clock() + 100)
    with bench.meter() as meter, meter.window("w"):
        bench.clock.sleep(1.0)
    found = meter.result("w")
    assert found.reason is not None
    assert found.devices["gpu"].joules is None


def test_the_next_source_takes_over_from_one_that_stalls(bench: Bench) -> None:
    counter, _ = bench.sensor("counter 100 ms", "a100 instant")
    counter.stall(bench.clock(), bench.clock() + 100)
    with bench.meter() as meter, meter.window("w"):
        bench.clock.sleep(3.0)
    found = meter.result("w")
    assert found.energy_j == pytest.approx(240.0, rel=0.02)
    assert "instant power" in found.source
    assert {"fallback", "unchecked"} <= set(found.flags)


@pytest.mark.parametrize(("gain", "flagged"), [(1.0, False), (1.06, True)])
def test_a_second_source_checks_the_first(bench: Bench, gain: float, flagged: bool) -> None:
    clock, truth = bench.clock, bench.truth
    sources = [simulate("counter 100 ms", clock, truth, gain=gain), simulate("a100 instant", clock, truth)]
    bench.sensors["gpu"] = MeteredSensor("simulated", sources, clock=clock)
    with bench.meter() as meter, meter.window("w"):
        clock.sleep(5.0)
    found = meter.result("w")
    assert found.devices["gpu"].budget["cross_check"] == pytest.approx(gain - 1, abs=0.01)
    assert ("disagreement" in found.flags) == flagged
    assert "unchecked" not in found.flags


def test_a_lost_device_keeps_what_was_measured_before(bench: Bench) -> None:
    (source,) = bench.sensor("counter 20 ms")
    source.fail(bench.clock() + 3.0, DeviceError("gone", why="fell off the bus", sticky=True))
    with bench.meter() as meter:
        with meter.window("before"):
            bench.clock.sleep(2.0)
        with meter.window("across"):
            bench.clock.sleep(2.0)
        with meter.window("after"):
            bench.clock.sleep(2.0)
    assert meter.result("before").energy_j == pytest.approx(160.0, rel=0.02)
    for name in ("across", "after"):
        reason = meter.result(name).reason
        assert reason is not None
        assert reason.code == "lost_device"
        assert "fell off the bus" in reason.message


def test_an_unknown_prior_is_said(bench: Bench) -> None:
    bench.sensor("counter 100 ms", known=False)
    with bench.meter() as meter, meter.window("w"):
        bench.clock.sleep(5.0)
    found = meter.result("w")
    assert "uncalibrated" in found.flags
    assert found.energy_j == pytest.approx(400.0, rel=0.02)


def test_a_long_window_needs_no_more_memory_than_a_short_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST_READINGS", 600)
    monkeypatch.setattr(spans, "RECENT_S", 4.0)
    bench.sensor("counter 20 ms", "pascal, volta")
    clock = bench.clock
    bench.truth.square(clock(), clock() + 130, 0.7, high_w=500.0, low_w=80.0)
    with bench.meter() as meter:
        began = clock()
        meter.begin("long")
        for _ in range(12):
            with meter.window("short"):
                clock.sleep(10.0)
            assert bench.polls[0].most < 5_000
        meter.end("long")
        found, shorts = meter.result("long"), meter.results("short")
    true_j = bench.truth.energy(began, began + 120)
    assert found.energy_j == pytest.approx(true_j, rel=0.002)
    assert found.energy_lo_j < true_j < found.energy_hi_j
    assert sum(short.energy_j for short in shorts) == pytest.approx(true_j, rel=0.005)
    assert found.devices["gpu"].budget["cross_check"] < 0.03
