"""`wattline calibrate`: the true reason where there is no sensor, and what it shows and keeps where there is one."""

from __future__ import annotations

import json

import pytest
from wattline_sim.bench import Bench

from wattline.cli.main import main
from wattline.collectors.energy import find_energy_sensor
from wattline.collectors.energy.common import NoEnergySensor
from wattline.collectors.energy.profiles import load_profile
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.record import Reason


class SwitchedLoad:
    """Stands in for the products: switches the simulated power."""

    partial = False

    def __init__(self, bench: Bench) -> None:
        self.bench, self.closed = bench, 0

    def switch(self, level: float) -> float:
        self.bench.load(level > 0)
        return self.bench.clock.now()

    def __enter__(self) -> SwitchedLoad:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this a machine with simulated sources, in simulated time."""

    def make(*sources_of):
        bench = Bench()
        sources = [make_source(bench) for make_source in sources_of]
        sensor = MeteredSensor("sim", sources, key="uuid | driver | firmware")
        load = SwitchedLoad(bench)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("wattline.collectors.energy.find.find_energy_sensor", lambda kind, index=0: sensor)
        monkeypatch.setattr("wattline.collectors.energy.loads.MatmulLoad", lambda device: load)
        monkeypatch.setattr("wattline.collectors.energy.calibrate_sensor.WallClock", lambda: bench.clock)
        return sensor, load

    return make


def counter(bench):
    return bench.source("counter 20 ms", seed=1)


def power(bench):
    return bench.source("a100 instant", seed=2)


def test_without_a_sensor_it_says_why_and_what_to_do(program) -> None:
    sensor = find_energy_sensor("cpu")
    if sensor.available:
        pytest.skip("this machine has a sensor")
    done = program("calibrate", "--device", "cpu")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: no power sensor")
    assert " ".join(sensor.reason.message.split()) in done.stderr
    assert " ".join(sensor.remedy.split()) in done.stderr
    assert done.stdout == ""


def test_the_reason_of_the_sensor_is_the_reason_given(monkeypatch, capsys) -> None:
    missing = NoEnergySensor(Reason("rapl_forbidden", "the counter may not be read"), name="rapl", remedy="chmod it")
    monkeypatch.setattr("wattline.collectors.energy.find.find_energy_sensor", lambda kind, index=0: missing)
    assert main(["calibrate", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "the counter may not be read" in error
    assert "do: chmod it" in error


def test_a_device_that_is_not_there_is_an_error(program) -> None:
    done = program("calibrate", "--device", "tpu:7")
    assert done.returncode == 2
    assert "tpu:7" in done.stderr


def test_json_and_what_is_kept(machine, capsys, tmp_path) -> None:
    sensor, load = machine(counter, power)
    assert main(["calibrate", "--device", "cpu", "--quick", "--json", "--quiet"]) == 0
    out = capsys.readouterr()
    shown = json.loads(out.out)
    assert out.err == ""
    assert load.closed == 1
    assert shown["key"] == sensor.key
    assert [each["kind"] for each in shown["sources"]] == ["counter", "power"]
    assert shown["sources"][1]["window"]["value"] == pytest.approx(0.025, rel=0.1)
    assert {each["level"] for each in shown["agreements"]} == {"idle", "half", "full"}
    assert all(each["agrees"] for each in shown["agreements"])
    assert shown["stored"] == str(tmp_path / "cache" / "wattline" / "sensors.json")
    kept = load_profile(sensor.key, sensor.sources[1].field)
    assert kept.period_s == shown["sources"][1]["period"]["value"] == pytest.approx(0.1, rel=0.01)


def test_people_read_periods_with_their_uncertainty(machine, capsys) -> None:
    machine(counter, power)
    assert main(["calibrate", "--device", "cpu", "--quick"]) == 0
    out = capsys.readouterr()
    assert "period   100 ms +- " in out.out
    assert "window   25.0 ms +- " in out.out or "window   24.9 ms +- " in out.out or "window   25.1 ms +- " in out.out
    assert "it sees 25% of the time" in out.out
    assert "kept in" in out.out
    assert "full load ..." in out.err


def test_a_source_that_fails_is_shown_and_the_exit_code_says_so(machine, capsys) -> None:
    def dead(bench):
        source = bench.source("counter 100 ms", seed=3, field="dead counter")
        source.stall(0.0)
        return source

    sensor, _ = machine(power, dead)
    assert main(["calibrate", "--device", "cpu", "--quick", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "not calibrated: the reading stayed at" in out
    assert load_profile(sensor.key, sensor.sources[0].field) is not None
    assert load_profile(sensor.key, "dead counter") is None


def test_nothing_is_kept_where_the_meter_saw_something_else(machine, capsys, tmp_path) -> None:
    sensor, _ = machine(power)
    log = tmp_path / "meter.csv"
    log.write_text("time,power_w\n1,80\n2,80\n", encoding="utf-8")
    assert main(["calibrate", "--device", "cpu", "--quick", "--quiet", "--external-meter", str(log)]) == 2
    assert "does not cover the level" in capsys.readouterr().err
    assert load_profile(sensor.key, sensor.sources[0].field) is None
