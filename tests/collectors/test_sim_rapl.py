"""The simulated powercap tree: laid out like the kernel's, and counting the truth."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from wattline.collectors.energy.find import RAPL_ENERGY


def _joules(rapl, zone: str) -> float:
    return int((Path(rapl.root) / "sys/class/powercap" / zone / "energy_uj").read_text()) * 1e-6


def test_counters_follow_the_truth(simulated_rapl) -> None:
    rapl = simulated_rapl(packages=2, dram=True, psys=True, renew_s=None)
    zones = ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl:2")
    rapl.renew()
    before = [_joules(rapl, zone) for zone in zones]
    started = time.perf_counter()
    with rapl.load():
        time.sleep(0.2)
    ended = time.perf_counter()
    rapl.renew()
    first, second, dram, psys = (_joules(rapl, z) - b for z, b in zip(zones, before, strict=True))
    truth = rapl.energy(started, ended)
    # What passes between a renewal and the clock beside it is less than some ms of some 300 W.
    assert first == pytest.approx(second, abs=1e-3)
    assert first + second == pytest.approx(truth, rel=0.05)
    assert dram == pytest.approx(0.15 * first, rel=1e-2)
    assert psys == pytest.approx(first + second + 30 * (ended - started), rel=0.05)
    assert rapl.energy(started, ended, "dram") == pytest.approx(0.15 * truth)


def test_counters_wrap_where_they_say(simulated_rapl) -> None:
    rapl = simulated_rapl(wrap_j=2.0, start_j=1.9999, renew_s=None)
    time.sleep(0.02)  # some 0.6 J at rest
    low = rapl.energy(rapl.began_s, time.perf_counter())
    rapl.renew()
    high = rapl.energy(rapl.began_s, time.perf_counter())
    zone = Path(rapl.root) / "sys/class/powercap/intel-rapl:0"
    assert (zone / "max_energy_range_uj").read_text() == "2000000\n"
    assert (Path(rapl.root) / RAPL_ENERGY).read_text().strip().isdigit()
    seen = _joules(rapl, "intel-rapl:0")
    assert seen < 2.0
    turns = round((1.9999 + low - seen) / 2.0)  # more than one only on a machine that stood still
    assert turns >= 1
    assert low - 1e-3 <= seen + 2.0 * turns - 1.9999 <= high + 1e-3


def test_the_tree_is_laid_out_like_the_kernels(simulated_rapl) -> None:
    rapl = simulated_rapl(packages=1, dram=True, core=True, mmio=True)
    folder = Path(rapl.root) / "sys/class/powercap"
    names = {p.name: (p / "name").read_text().strip() for p in folder.iterdir() if (p / "name").exists()}
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
    assert names == zones | {"intel-rapl-mmio:0": "package-0"}
    assert all(p.is_symlink() for p in folder.iterdir())
    assert (folder / "intel-rapl:0" / "intel-rapl:0:1" / "energy_uj").exists()
    rapl.hide()
    assert (folder / "intel-rapl:0").is_symlink()
    assert not (folder / "intel-rapl:0").exists()


def test_the_thread_renews_and_freezing_stops_it(simulated_rapl) -> None:
    rapl = simulated_rapl()
    first = _joules(rapl, "intel-rapl:0")
    deadline = time.monotonic() + 10
    while _joules(rapl, "intel-rapl:0") == first and time.monotonic() < deadline:
        time.sleep(0.002)
    assert _joules(rapl, "intel-rapl:0") > first
    rapl.freeze()
    rapl.renew()
    frozen = _joules(rapl, "intel-rapl:0")
    time.sleep(0.03)
    assert _joules(rapl, "intel-rapl:0") == frozen
    rapl.thaw()
    rapl.renew()
    assert _joules(rapl, "intel-rapl:0") > frozen
