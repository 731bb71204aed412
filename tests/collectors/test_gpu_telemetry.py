"""The sampler of GPU telemetry on a reader made by hand: means, flags, counters, and drivers that misbehave."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from wattline.collectors import gpu_telemetry
from wattline.collectors.gpu_readings import Totals, foreign_processes, throttle_causes
from wattline.collectors.gpu_telemetry import GpuTelemetry
from wattline.errors import DeviceError
from wattline.record import FLAGS


class Reader:
    """Answers what it is told to."""

    def __init__(self, polls: list[dict[str, float]], totals: list[Totals] | None = None) -> None:
        self.missing: dict[str, str] = {}
        self.has_pcie_rates = False
        self.threads: list[str] = []
        self._polls, self._totals = polls, totals or [Totals()]
        self.polled = 0

    def poll(self) -> dict[str, float]:
        self.threads.append(threading.current_thread().name)
        seen = self._polls[min(self.polled, len(self._polls) - 1)]
        self.polled += 1
        return seen

    def totals(self) -> Totals:
        return self._totals.pop(0) if len(self._totals) > 1 else self._totals[0]

    def pcie_rates(self) -> dict[str, float]:
        return {"gpu_pcie_tx_bytes_per_s": 1e6}


def watch(reader: Any, seconds: float = 0.0, **options: Any) -> Any:
    telemetry = GpuTelemetry(reader, **{"period_s": 0.01, **options})
    with telemetry:
        time.sleep(seconds)
    return telemetry.result


def codes(result: Any) -> list[str]:
    assert all(flag.code in FLAGS for flag in result.flags)
    return [flag.code for flag in result.flags]


def test_means_extremes_and_series_by_hand() -> None:
    reader = Reader([
        {"gpu_sm_clock_hz": 1.0e9, "gpu_temperature_c": 50.0, "gpu_throttle_power": 0.0},
        {"gpu_sm_clock_hz": 2.0e9, "gpu_temperature_c": 60.0, "gpu_throttle_power": 1.0},
    ])  # fmt: skip
    result = watch(reader, period_s=10.0)  # one reading at the start, one at the stop
    assert result.means["gpu_sm_clock_hz"] == 1.5e9
    assert result.means["gpu_sm_clock_min_hz"] == 1.0e9
    assert result.means["gpu_temperature_max_c"] == 60.0
    assert result.means["gpu_throttle_power_share"] == 0.5
    assert "gpu_throttle_power" not in result.means
    assert result.means["gpu_polls"] == 2
    clock = result.series["gpu_sm_clock_hz"]
    assert (clock.values, clock.unit) == ((1.0e9, 2.0e9), "Hz")
    assert 0 <= clock.times_s[0] <= clock.times_s[1] <= result.span_s
    assert result.origin is not None
    assert abs(result.origin.unix_s - time.time()) < 60


def test_the_thread_reads_in_between_and_ends() -> None:
    reader = Reader([{"gpu_temperature_c": 50.0}])
    telemetry = GpuTelemetry(reader, period_s=0.005)
    for _ in range(2):  # it may be started again
        with telemetry:
            deadline = time.perf_counter() + 10
            while "wattline-telemetry" not in reader.threads and time.perf_counter() < deadline:
                time.sleep(0.002)
        assert reader.threads[0] == reader.threads[-1] == threading.current_thread().name
        assert "wattline-telemetry" in reader.threads
        assert len(telemetry.result.series["gpu_temperature_c"].values) == len(reader.threads)
        reader.threads.clear()
    assert not [t for t in threading.enumerate() if t.name == "wattline-telemetry"]


def test_readings_are_never_closer_than_half_a_period_by_the_thread() -> None:
    reader = Reader([{"gpu_temperature_c": 50.0}])
    result = watch(reader, 0.35, period_s=0.05)
    times = result.series["gpu_temperature_c"].times_s
    gaps = [b - a for a, b in itertools.pairwise(times[:-1])]  # the last one is taken at the stop
    assert 0 < result.means["gpu_sampler_cpu_share"] < 0.5
    assert len(times) <= 0.35 / 0.025 + 8
    assert all(gap > 0.02 for gap in gaps)


@pytest.mark.parametrize(
    ("cause", "share", "violation_s", "flagged"),
    [
        (cause, *rest)
        for cause in ("power", "thermal", "hardware")
        for rest in [(0.0, 0.0, False), (1.0, 0.0, True), (0.0, 0.9, True), (0.0, None, False), (1.0, None, True)]
        if (cause, rest[1]) != ("hardware", 0.9)  # the driver counts no time for it
    ],
)
def test_throttling_raises_a_flag_from_either_witness(
    cause: str, share: float, violation_s: float | None, flagged: bool
) -> None:
    ends = [Totals({cause: 5.0}), Totals({cause: 5.0 + violation_s})] if violation_s is not None else [Totals()]
    result = watch(Reader([{f"gpu_throttle_{cause}": share}], ends), 0.01)
    assert codes(result) == ([f"throttled_{cause}"] if flagged else [])


def test_causes_that_are_no_reservation_raise_no_flag() -> None:
    harmless = {"gpu_throttle_sync_boost": 1.0, "gpu_throttle_user_clocks": 1.0, "gpu_throttle_idle": 1.0}
    result = watch(Reader([harmless]))
    assert result.flags == ()
    assert result.means["gpu_throttle_user_clocks_share"] == 1.0


@pytest.mark.parametrize(
    ("mask", "held"),
    [
        (0x0, set()), (0x1, {"idle"}), (0x2, {"user_clocks"}), (0x100, {"user_clocks"}), (0x4, {"power"}),
        (0x10, {"sync_boost"}), (0x20, {"thermal"}), (0x40, {"thermal"}), (0x80, {"hardware"}),
        (0x8, {"hardware"}), (0x8 | 0x40, {"thermal"}), (0x8 | 0x80, {"hardware"}), (0x4 | 0x20, {"power", "thermal"}),
    ],
)  # fmt: skip
def test_event_reasons_by_hand(mask: int, held: set[str]) -> None:
    assert {cause for cause, there in throttle_causes(mask).items() if there} == held


def test_counters_that_make_no_sense_are_missing_not_shown() -> None:
    ends = [
        Totals({"power": 1.0, "thermal": 9.0}, {"gpu_pcie_tx_bytes_per_s": 500}),
        Totals({"power": 1e6, "thermal": 1.0}, {"gpu_pcie_tx_bytes_per_s": 100}),
    ]
    result = watch(Reader([{}], ends), 0.01)
    for column in ("gpu_violation_power_s", "gpu_violation_thermal_s", "gpu_pcie_tx_bytes_per_s"):
        assert column not in result.means
        assert "counter" in result.missing[column]
    assert result.flags == ()


def test_pcie_bytes_are_counted_between_the_ends() -> None:
    ends = [Totals(pcie_bytes={"gpu_pcie_rx_bytes_per_s": 1000}), Totals(pcie_bytes={"gpu_pcie_rx_bytes_per_s": 4000})]
    result = watch(Reader([{}], ends), 0.02)
    assert result.means["gpu_pcie_rx_bytes_per_s"] * result.span_s == pytest.approx(3000)


def test_pcie_rates_are_read_seldom_and_by_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_telemetry, "PCIE_PERIOD_S", 0.02)
    reader = Reader([{}])
    reader.has_pcie_rates = True
    result = watch(reader, 0.3)
    assert result.means["gpu_pcie_tx_bytes_per_s"] == 1e6
    assert 1 <= len(result.series["gpu_pcie_tx_bytes_per_s"].values) < reader.polled


def test_a_gpu_lost_on_the_way_keeps_what_was_read() -> None:
    class Lost(Reader):
        def poll(self) -> dict[str, float]:
            if self.polled >= 3:
                raise DeviceError("the GPU can be watched no longer", why="the GPU has fallen off the bus")
            return super().poll()

    result = watch(Lost([{"gpu_temperature_c": 50.0}]), 0.1)
    assert result.means["gpu_temperature_c"] == 50.0
    assert result.means["gpu_polls"] == 3
    assert "fallen off the bus" in result.missing["gpu_telemetry"]


def test_a_gpu_lost_before_the_start_gives_no_column() -> None:
    class Lost(Reader):
        def totals(self) -> Totals:
            raise DeviceError("the GPU can be watched no longer", why="the GPU needs a reset")

    result = watch(Lost([{"gpu_temperature_c": 50.0}]))
    assert result.means == {}
    assert "needs a reset" in result.missing["gpu_telemetry"]


def test_a_driver_that_hangs_does_not_hold_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_telemetry, "PATIENCE_S", 0.05)
    release, asked = threading.Event(), threading.Event()

    class Hangs(Reader):
        def poll(self) -> dict[str, float]:
            if threading.current_thread().name == "wattline-telemetry" and not release.is_set():
                asked.set()
                release.wait(30)
            return super().poll()

    reader = Hangs([{"gpu_temperature_c": 50.0}])
    telemetry = GpuTelemetry(reader, period_s=0.005)
    with telemetry:
        assert asked.wait(10)
    assert "has not answered" in telemetry.result.missing["gpu_telemetry"]
    assert telemetry.result.means["gpu_polls"] == 1
    with telemetry:  # it still hangs: no second thread beside the first
        assert sum(t.name == "wattline-telemetry" for t in threading.enumerate()) == 1
    assert telemetry.result.means == {}
    assert "has not answered" in telemetry.result.missing["gpu_telemetry"]
    release.set()
    deadline = time.perf_counter() + 10
    while any(t.name == "wattline-telemetry" for t in threading.enumerate()) and time.perf_counter() < deadline:
        time.sleep(0.005)
    with telemetry:  # it answers again: back to work
        pass
    assert telemetry.result.means["gpu_temperature_c"] == 50.0


@pytest.mark.parametrize(
    ("listed", "namespace", "expected"),
    [
        ({10}, "4026531836", (0, True)), ({10, 99}, "4026531836", (1, True)), ({99}, "4026531836", (1, True)),
        (set(), "4026531836", (0, True)), ({10, 99}, "4026532000", (1, True)), ({99}, "4026532000", (0, False)),
        ({98, 99}, "4026532000", (1, False)), (set(), "4026532000", (0, False)), ({98, 99}, "", (1, False)),
    ],
)  # fmt: skip
def test_foreign_processes_by_namespace(
    tmp_path: Path, listed: set[int], namespace: str, expected: tuple[int, bool]
) -> None:
    if namespace:
        (tmp_path / "proc/self/ns").mkdir(parents=True)
        (tmp_path / "proc/self/ns/pid").symlink_to(f"pid:[{namespace}]")
    assert foreign_processes(listed, [10, 11], str(tmp_path)) == expected


def test_a_foreign_process_raises_a_flag(tmp_path: Path) -> None:
    own = frozenset({os.getpid()})
    quiet = watch(Reader([{}], [Totals(processes=own)]), root=str(tmp_path))
    assert (quiet.means["gpu_foreign_processes"], quiet.flags) == (0.0, ())
    came = watch(Reader([{}], [Totals(processes=own), Totals(processes=own | {999_999})]), root=str(tmp_path))
    assert came.means["gpu_foreign_processes"] == 1.0
    assert codes(came) == ["foreign_process"]
    unknown = watch(Reader([{}], [Totals()]))
    assert "gpu_foreign_processes" not in unknown.means
