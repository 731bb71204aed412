"""RAPL on fake powercap trees: zones, wraps, resets, and every way of not being readable."""

from __future__ import annotations

import errno
import os
import time

import pytest

from wattline.collectors.energy import MeteredSensor, find_energy_sensor, rapl
from wattline.collectors.energy.errors import SensorBusyError, SensorForbiddenError, SensorUnsupportedError
from wattline.collectors.energy.polling import Poller
from wattline.collectors.energy.profiles import device_key, save_profiles
from wattline.collectors.energy.rapl import RaplSource, Zone, find_zones, rapl_sources
from wattline.collectors.energy.sources import SensorProfile
from wattline.errors import SensorError

RANGE = 262_143_328_850


def zone(h, number: str, name: str, energy_uj: int, range_uj: int = RANGE) -> None:
    folder = f"sys/class/powercap/intel-rapl:{number}"
    h.write(f"{folder}/name", name)
    h.write(f"{folder}/energy_uj", energy_uj)
    h.write(f"{folder}/max_energy_range_uj", range_uj)


@pytest.fixture
def server(bare_host):
    """Two packages with core and dram, a platform counter, and the second door to the first package."""
    for number in (0, 1):
        zone(bare_host, f"{number}", f"package-{number}", 1_000_000)
        zone(bare_host, f"{number}:0", "core", 400_000)
        zone(bare_host, f"{number}:1", "dram", 200_000)
    zone(bare_host, "2", "psys", 5_000_000)
    bare_host.write("sys/class/powercap/intel-rapl/enabled", 1)
    bare_host.write("sys/class/powercap/intel-rapl-mmio:0/name", "package-0")
    bare_host.write("sys/class/powercap/intel-rapl-mmio:0/energy_uj", 7)
    return bare_host


def test_zones_without_their_second_door(server):
    found = find_zones(server.root)
    assert sorted(z.name for z in found) == ["core", "core", "dram", "dram", "package-0", "package-1", "psys"]
    assert {z.range_uj for z in found} == {RANGE}


def test_packages_and_memory_are_summed_and_cores_not_counted_twice(server):
    source, platform = rapl_sources(server.root)
    assert (source.scope, platform.scope) == ("package+dram", "psys")
    assert source.label == "rapl: energy_uj of package-0 + package-1 + dram + dram (package+dram)"
    before = source.read()
    zone(server, "0", "package-0", 1_500_000)
    zone(server, "1", "package-1", 1_250_000)
    zone(server, "0:1", "dram", 300_000)
    zone(server, "0:0", "core", 900_000)
    after = source.read()
    assert after.value - before.value == pytest.approx(0.85)
    assert after.time_s > before.time_s


def test_memory_of_one_package_only_is_left_out(server):
    (server.path / "sys/class/powercap/intel-rapl:1:1/energy_uj").unlink()
    assert rapl_sources(server.root)[0].scope == "package"


def test_a_tree_without_names(bare_host):
    bare_host.write("sys/class/powercap/intel-rapl:0/energy_uj", 5)
    (source,) = rapl_sources(bare_host.root)
    assert source.scope == "package"
    assert source.zones[0].range_uj == 2**32 - 1


def test_wraparound(bare_host):
    zone(bare_host, "0", "package-0", RANGE - 1000)
    (source,) = rapl_sources(bare_host.root)
    before = source.read().value
    zone(bare_host, "0", "package-0", 4000)
    assert source.read().value - before == pytest.approx(5000e-6, rel=1e-3)


def test_a_reset_is_no_wrap(bare_host):
    """Undone as a wrap, the step would be 262 kJ within microseconds: the value falls instead, and is flagged later."""
    counter = Zone("sys/class/powercap/intel-rapl:0", "package-0", RANGE)
    zone(bare_host, "0", "package-0", 8_000_000)
    counter.advance(bare_host.root, 0.0)
    zone(bare_host, "0", "package-0", 9_000_000)
    assert counter.advance(bare_host.root, 0.1) == 1_000_000
    zone(bare_host, "0", "package-0", 10)
    assert counter.advance(bare_host.root, 0.2) == 0
    zone(bare_host, "0", "package-0", 510)
    assert counter.advance(bare_host.root, 0.3) == 500


def test_torn_and_missing_counters(bare_host):
    zone(bare_host, "0", "package-0", 5)
    (source,) = rapl_sources(bare_host.root)
    path = bare_host.path / "sys/class/powercap/intel-rapl:0/energy_uj"
    path.write_text("")
    with pytest.raises(SensorBusyError, match="no number"):
        source.read()
    path.unlink()
    with pytest.raises(SensorUnsupportedError, match="does not exist"):
        source.read()
    path.mkdir()
    with pytest.raises(SensorBusyError, match="reading"):
        source.read()


def test_a_forbidden_counter_names_the_file(bare_host, monkeypatch):
    zone(bare_host, "0", "package-0", 5)
    real_open = os.open

    def refuse(name, *args, **kwargs):
        if os.fspath(name).endswith("energy_uj"):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return real_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SensorForbiddenError, match="chmod") as caught:
        find_zones(bare_host.root)
    assert "intel-rapl:0/energy_uj" in str(caught.value)
    with pytest.raises(SensorForbiddenError, match="chmod"):
        rapl.read_counter(bare_host.root, "sys/class/powercap/intel-rapl:0/energy_uj")


def test_no_packages_at_all(bare_host):
    zone(bare_host, "0", "psys", 5)
    with pytest.raises(SensorUnsupportedError, match="no package"):
        rapl_sources(bare_host.root)
    sensor = find_energy_sensor("cpu", bare_host.root)
    assert sensor.reason.code == "rapl_failed"
    assert "psys" in sensor.reason.message


def test_the_sensor_of_a_cpu(server, tmp_path):
    with find_energy_sensor("cpu", server.root, profiles=tmp_path / "none.json") as sensor:
        assert isinstance(sensor, MeteredSensor)
        assert (sensor.name, sensor.scope) == ("rapl", "package+dram")
        assert sensor.window().measured_s == 5.0
        # It changes every millisecond and is read every five: two reads are the least, 3.2 are taken.
        assert sensor.window(0.01).measured_s == pytest.approx(0.016)
        assert sensor.window(0.02).measured_s == 0.02
        with pytest.raises(SensorError, match="too short"):
            sensor.window(0.009)


def test_a_calibrated_profile_is_used(server, tmp_path):
    path = tmp_path / "sensors.json"
    sensor = find_energy_sensor("cpu", server.root, profiles=path)
    assert sensor.key == device_key("cpu", "", "")
    save_profiles(sensor.key, {sensor.sources[0].field: SensorProfile(0.002, calibrated=True)}, path)
    profile = find_energy_sensor("cpu", server.root, profiles=path).sources[0].profile
    assert (profile.period_s, profile.calibrated) == (0.002, True)
    assert profile.resolution > 0  # of the prior: it was not part of the calibration
    path.write_text("{ broken")
    sensor = find_energy_sensor("cpu", server.root, profiles=path)
    assert not sensor.sources[0].profile.calibrated
    assert "the calibration is not used" in sensor.note


def test_power_of_a_tree_that_follows_a_clock(bare_host, clock):
    """150 W over 20 simulated seconds with a wrap on the way, polled as a sensor would."""
    zone(bare_host, "0", "package-0", 0, range_uj=10**9)

    class Timed(RaplSource):
        def read(self):
            zone(bare_host, "0", "package-0", int(150e6 * clock.now) % 10**9, range_uj=10**9)
            return super().read()

    source = Timed(find_zones(bare_host.root), "package", bare_host.root)
    poller = Poller([source], clock=clock)
    poller.start()
    first = poller.watched[0].readings[0].value
    for k in range(1, 201):
        clock.now = 0.1 * k
        poller.step()
    assert poller.watched[0].readings[-1].value - first == pytest.approx(3000.0, rel=1e-6)


def test_joules_of_a_window_on_the_wall_clock(simulated_rapl, tmp_path):
    """Two packages with memory, each wrapping about once in the window."""
    tree = simulated_rapl(packages=2, dram=True, wrap_j=120.0)
    with find_energy_sensor("cpu", tree.root, profiles=tmp_path / "none.json") as sensor, tree.load():
        window = sensor.window(1.0)
        time.sleep(window.lead_in_s)
        begin = time.perf_counter()
        sensor.start()
        time.sleep(window.measured_s)
        energy = sensor.stop(100, 1.0)
        end = time.perf_counter()
        true_w = (tree.energy(begin, end) + tree.energy(begin, end, "dram")) / (end - begin)
    assert true_w == pytest.approx(2 * 150 * 1.15)
    assert energy.power_w == pytest.approx(true_w, rel=0.03)
    assert energy.energy_lo_j < true_w / 100 < energy.energy_hi_j
    assert energy.scope == "package+dram"
    assert "counter_reset" not in energy.flags


def test_counters_that_stand_still_give_no_joules(simulated_rapl, tmp_path):
    tree = simulated_rapl()
    with find_energy_sensor("cpu", tree.root, profiles=tmp_path / "none.json") as sensor:
        tree.freeze()
        sensor.start()
        time.sleep(0.1)
        with pytest.raises(SensorError, match=r"changed [01] times"):
            sensor.stop(1, 0.1)
