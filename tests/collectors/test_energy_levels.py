"""Levels, counter against power, the external meter, and a whole sensor calibrated."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from wattline_sim.bench import ACTIVE_W, IDLE_W, Bench
from wattline_sim.sources import ROWS, VirtualClock, Waveform

from wattline.collectors.energy import external, find_energy_sensor
from wattline.collectors.energy.calibrate import QUICK
from wattline.collectors.energy.calibrate_sensor import calibrate_sensor
from wattline.collectors.energy.levels import LevelPower, compare_levels
from wattline.collectors.energy.profiles import load_profile, save_profiles
from wattline.collectors.energy.sources import POWER, SensorProfile
from wattline.errors import DataError, SensorError, StorageError


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_levels_are_the_true_power_and_a_wrong_gain_shows(bench) -> None:
    counter = bench.source("counter 100 ms", seed=1)
    right = bench.source("a100 instant", seed=2)
    wrong = bench.source("a100 instant", seed=3, gain=1.06, field="power with a gain")
    module = bench.source("gh200", seed=4)
    report = compare_levels([counter, right, wrong, module], bench.load, effort=QUICK, clock=bench.clock)
    shown = {(level.level, level.label): level for level in report.levels}
    for level, watts in (("idle", IDLE_W), ("half", (IDLE_W + ACTIVE_W) / 2), ("full", ACTIVE_W)):
        assert shown[level, counter.label].power_w == pytest.approx(watts, rel=0.01)
        assert shown[level, right.label].power_w == pytest.approx(watts, rel=0.03)
    by_source = {a.label: [] for a in report.agreements}
    for agreement in report.agreements:
        assert agreement.against == counter.label
        by_source[agreement.label].append(agreement)
    assert set(by_source) == {right.label, wrong.label}  # the module's power is not the GPU's
    assert all(a.agrees for a in by_source[right.label])
    assert not any(a.agrees for a in by_source[wrong.label])
    assert by_source[wrong.label][-1].difference == pytest.approx(0.06, abs=0.01)
    assert {"levels", "agreements"} == set(report.to_dict())


class Partial:
    """A load that does halves by itself."""

    partial = True

    def __init__(self, bench: Bench) -> None:
        self.bench, self.seen = bench, []

    def switch(self, level: float) -> float:
        self.seen.append(level)
        now = self.bench.clock.now()
        self.bench.truth.step(now, IDLE_W + level * (ACTIVE_W - IDLE_W))
        return now


def test_a_load_that_knows_levels_is_asked_for_half(bench) -> None:
    load = Partial(bench)
    source = bench.source("pascal, volta")
    report = compare_levels([source], load, effort=QUICK, clock=bench.clock)
    half = next(level for level in report.levels if level.level == "half")
    assert half.power_w == pytest.approx((IDLE_W + ACTIVE_W) / 2, rel=0.01)
    assert 0.5 in load.seen
    assert load.seen[-1] == 0


# An external meter.


def levels_of(label: str = "sim: power (gpu)") -> list[LevelPower]:
    return [
        LevelPower(name, label, watts, 0.001, begin, begin + 5.0)
        for name, watts, begin in (("idle", 80.0, 10.0), ("half", 300.0, 20.0), ("full", 500.0, 30.0))
    ]


def log_of(gain: float, offset: float, epoch: float = 1e9) -> external.MeterLog:
    times = np.arange(8.0, 38.0, 0.1)
    read = np.where(times < 18, 80.0, np.where(times < 28, 300.0, 500.0))
    return external.MeterLog(tuple((times + epoch).tolist()), tuple((gain * read + offset).tolist()))


def test_a_meter_sets_gain_and_offset() -> None:
    (fit,) = external.fit_gain(levels_of(), log_of(0.96, 5.0), epoch_s=1e9, meter_error=0.01)
    assert (fit.gain, fit.offset_w) == (pytest.approx(0.96), pytest.approx(5.0))
    assert fit.error == pytest.approx(0.01)
    profile = fit.applied(SensorProfile(0.1, 0.025, gain_error=0.05))
    assert (profile.gain, profile.offset_w, profile.gain_error) == (fit.gain, fit.offset_w, fit.error)


def test_what_the_line_does_not_explain_is_in_the_error() -> None:
    log = log_of(1.0, 0.0)
    bent = external.MeterLog(log.time_s, tuple(w + 30 * (w == 300) for w in log.power_w))
    (fit,) = external.fit_gain(levels_of(), bent, epoch_s=1e9)
    # A line through three points of which the middle one is 30 W off leaves about two thirds of that there.
    assert 0.03 < fit.error < 0.05


def test_a_log_that_ends_too_early_or_sees_something_else_is_refused() -> None:
    log = log_of(1.0, 0.0)
    short = external.MeterLog(log.time_s[:150], log.power_w[:150])
    with pytest.raises(DataError, match="does not cover the level 'full'") as caught:
        external.fit_gain(levels_of(), short, epoch_s=1e9)
    assert "150 entries" in caught.value.why
    with pytest.raises(DataError, match="do not see the same load"):
        external.fit_gain(levels_of(), log_of(0.0, 90.0), epoch_s=1e9)
    with pytest.raises(DataError, match="do not see the same load"):  # milliwatts
        external.fit_gain(levels_of(), log_of(1000.0, 0.0), epoch_s=1e9)


def test_a_log_is_read_with_either_form_of_time_and_without_a_torn_line(tmp_path) -> None:
    path = tmp_path / "meter.csv"
    path.write_text("time,power_w\n1700000000.5,81.5\n1700000001,82\n17000", encoding="utf-8")
    log = external.read_meter(path)
    assert log == external.MeterLog((1700000000.5, 1700000001.0), (81.5, 82.0))
    moment = datetime.fromtimestamp(1700000000.5, UTC)
    path.write_text(f" Timestamp , Watts\n{moment.isoformat()},81.5\n".replace(" ", "", 1), encoding="utf-8")
    assert external.read_meter(path) == external.MeterLog((1700000000.5,), (81.5,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seconds,volts\n1,2\n", "no log of a power meter"),
        ("", "no log of a power meter"),
        ("time,power_w\n1700000000,80\nyesterday,81\n", "cannot read line 3"),
        ("time,power_w\n1700000000,nan\n", "cannot read line 2"),
        ("time,power_w\n1700000000\n", "cannot read line 2"),
    ],
)
def test_a_wrong_log_is_refused(tmp_path, text, message) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        external.read_meter(path)
    assert caught.value.todo


def test_a_missing_log_is_told_before_anything_runs(bench, tmp_path) -> None:
    with pytest.raises(StorageError):
        calibrate_sensor(
            [bench.source("rapl")], bench.load, clock=bench.clock, meter=tmp_path / "none.csv", effort=QUICK
        )
    assert bench.clock.now() == 1000.0


@pytest.mark.parametrize("row", ["counter 20 ms", "pascal, volta"])
def test_gain_and_offset_are_applied_to_readings(bench, row) -> None:
    source = bench.source(row, gain=1.25, noise_w=0.0) if ROWS[row].kind == POWER else bench.source(row, gain=1.25)
    assert external.corrected(source) is source
    source.profile = replace(source.profile, gain=0.8, offset_w=-10.0)
    fixed = external.corrected(source)
    assert fixed.label == source.label
    assert external.corrected(fixed) is fixed
    assert external.uncorrected(fixed) is source
    bench.load(True)
    report = compare_levels([fixed], bench.load, effort=QUICK, clock=bench.clock)
    assert [level.power_w for level in report.levels] == pytest.approx([70, 280, 490], rel=0.01)


def test_a_found_sensor_applies_the_gain_that_was_kept(tmp_path) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "5000000"), ("max_energy_range_uj", "262143328850")):
        (zone / name).write_text(text + "\n", encoding="utf-8")
    path = tmp_path / "sensors.json"
    plain = find_energy_sensor("cpu", str(tmp_path), profiles=path)
    (source,) = plain.sources
    assert not isinstance(source, external.CorrectedSource)
    save_profiles(plain.key, {source.field: replace(source.profile, gain=0.9, calibrated=True)}, path)
    (source,) = find_energy_sensor("cpu", str(tmp_path), profiles=path).sources
    before = source.read().value
    (zone / "energy_uj").write_text("15000000\n", encoding="utf-8")
    assert source.read().value - before == pytest.approx(9.0)


# A whole sensor.


def test_a_sensor_is_calibrated_compared_and_kept(bench, tmp_path) -> None:
    counter = bench.source("counter 20 ms", seed=1)
    power = bench.source("pascal, volta", seed=2)
    dead = bench.source("a100 instant", seed=3, field="dead power")
    dead.value = lambda time_s: 42.0
    told: list[str] = []
    found = calibrate_sensor(
        [counter, power, dead], bench.load, clock=bench.clock, effort=QUICK, progress=told.append
    )
    assert [each.label for _, each in found.sources] == [counter.label, power.label]
    assert set(found.failures) == {dead.label}
    assert any(counter.field in message for message in told)
    assert any("half load" in message for message in told)
    path = save_profiles("device", found.profiles(), tmp_path / "sensors.json")
    known = load_profile("device", power.field, path)
    assert known.period_s == pytest.approx(0.02, rel=0.01)
    assert known.calibrated
    assert load_profile("device", dead.field, path) is None
    shown = found.to_dict()
    assert shown["sources"][0]["period"]["value"] == known_period(found, 0)
    assert shown["failures"][dead.label]["why"]


def known_period(found, index: int) -> float:
    return found.sources[index][1].period.value


def test_all_sources_dead_is_an_error(bench) -> None:
    dead = bench.source("counter 100 ms")
    dead.stall(0.0)
    with pytest.raises(SensorError, match="cannot be calibrated"):
        calibrate_sensor([dead], bench.load, clock=bench.clock, effort=QUICK)


class LoggingClock(VirtualClock):
    """Writes what a meter sees while time passes, a second late."""

    def __init__(self) -> None:
        super().__init__()
        self.attached = None

    def attach(self, path, truth: Waveform) -> None:
        path.write_text("time,power_w\n", encoding="utf-8")
        handle = path.open("a", encoding="utf-8")
        self.attached = handle

        def note() -> None:
            at = self.now() - 1.0
            handle.write(f"{at + 5e8:.3f},{truth.mean(at - 0.05, at):.3f}\n")
            handle.flush()

        self.every(0.1, note)


def test_a_meter_beside_it_corrects_a_sensor_that_reads_too_much(tmp_path) -> None:
    bench = Bench(LoggingClock())
    path = tmp_path / "meter.csv"
    bench.clock.attach(path, bench.truth)
    source = bench.source("turing, rtx 3090", gain=1.05, offset_w=4.0)
    found = calibrate_sensor([source], bench.load, clock=bench.clock, effort=QUICK, meter=path, epoch_s=5e8)
    bench.clock.attached.close()
    (gain,) = found.gains
    assert gain.gain == pytest.approx(1 / 1.05, rel=0.005)
    assert gain.offset_w == pytest.approx(-4 / 1.05, abs=1.5)
    profile = found.profiles()[source.field]
    assert profile.gain == gain.gain
    assert profile.gain_error < 0.02
    assert math.isclose(profile.period_s, 0.1, rel_tol=0.01)
