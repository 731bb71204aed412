"""Energy per call against a truth that is known, beside the usual ways of reading the same sensors.

Run with ``pytest tests/benchmarks/test_energy.py --benchmark-only -s`` for the whole table (some minutes of simulated
measurements in some tens of seconds); an ordinary run of the tests checks a smaller one. Every sensor of the table in
the method, kernels of 10 us, 1 ms and 50 ms, true power 80 W at rest and 500 W while the kernel runs.

Per sensor, kernel and window: mean and largest error of energy per call; the half-width that the meter claims and the
share of its intervals that hold the truth, first without the sensor's gain (that of the simulation is exact then), then
with gains drawn from +-5 % against the whole budget; how many results are flagged low confidence. Beside them the mean
error of three usual ways: difference of the counter before and after, mean of the power polled every 100 ms, and one
sample at the end.

A second table has kernels of uneven power, half of each call at 650 W and half at 350 W. A sensor that sees all of the
time copes; one that looks for 25 ms in every 100 ms copes as long as the calls drift past its looks. Where a whole
number of calls fits into its period it sees the same part of every call, as under a stroboscope, and no arithmetic on
its readings can tell: those lines are marked.

Two more figures, on the simulated driver through the real binding: one read of every source, and the latency of a
kernel of about 100 us with the meter's polling on and off. The simulated driver answers at once, so that a read is our
own share of it.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import pytest
from wattline_sim.metering import measure, naive
from wattline_sim.sources import ROWS

from wattline.collectors.energy.find import find_energy_sensor
from wattline.collectors.energy.polling import ThreadPoller
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.collectors.overhead import sampler_overhead
from wattline.errors import SensorError

KERNELS_S = {"10 us": 10e-6, "1 ms": 1e-3, "50 ms": 50e-3}
SENSORS: dict[str, list[str]] = {row: [row] for row in ROWS} | {
    "h100, all together": ["counter 100 ms", "h100 instant", "h100 average"]
}
WINDOWS: dict[str, float | None] = {"default": None, "1 s": 1.0}
GAIN = 0.05


@dataclass(frozen=True)
class Line:
    """A row of the table; relative figures."""

    sensor: str
    kernel: str
    window: str
    mean: float
    worst: float
    claimed: float
    covered: float
    covered_with_gain: float
    low_confidence: float
    disagreement: float
    usual: dict[str, float]

    def __str__(self) -> str:
        usual = (f"{self.usual[way]:10.2%}" if way in self.usual else f"{'-':>10}" for way in NAIVE)
        return (
            f"{self.sensor:18} {self.kernel:>6} {self.window:>8} {self.mean:9.3%} {self.worst:9.3%} {self.claimed:9.3%}"
            f" {self.covered:8.1%} {self.covered_with_gain:8.1%} {self.low_confidence:8.0%} " + " ".join(usual)
        )


NAIVE = ("difference", "mean", "one")
HEAD = (
    f"{'sensor':18} {'kernel':>6} {'window':>8} {'error':>9} {'worst':>9} {'claimed':>9} {'covered':>8} {'w. gain':>8}"
    f" {'low c.':>8} {'difference':>10} {'mean poll':>10} {'one sample':>10}"
)
UNEVEN_HEAD = f"{'sensor':18} {'kernel':>6} {'error':>9} {'worst':>9} {'claimed':>9} {'w. gain':>8}"


def line(sensor: str, kernel: str, window: str, trials: int) -> Line:
    rows, call_s = SENSORS[sensor], KERNELS_S[kernel]
    exact = [measure(rows, call_s=call_s, window_s=WINDOWS[window], seed=seed) for seed in range(trials)]
    draw = random.Random(f"{sensor} {kernel} {window}")
    gains = [
        measure(rows, call_s=call_s, window_s=WINDOWS[window], seed=seed, gain=draw.uniform(1 - GAIN, 1 + GAIN))
        for seed in range(trials)
    ]
    usual: dict[str, list[float]] = {}
    for row in rows:
        for seed in range(min(trials, 20)):
            found = naive(row, call_s=call_s, window_s=exact[0].window_s, seed=seed)
            for way, error in found.items():
                usual.setdefault(way, []).append(abs(error))
    errors = [abs(trial.error) for trial in exact]
    return Line(
        sensor, kernel, window, statistics.mean(errors), max(errors), statistics.mean(t.half_width for t in exact),
        statistics.mean(abs(t.error) <= t.half_width for t in exact), statistics.mean(t.covered for t in gains),
        statistics.mean("low_confidence" in t.energy.flags for t in exact),
        statistics.mean("disagreement" in t.energy.flags for t in exact),
        {way: statistics.mean(found) for way, found in usual.items()},
    )  # fmt: skip


def check(found: Line, least_covered: float) -> None:
    """What is promised: 1 % in the default window; 3 % in one second, or a flag; intervals that hold."""
    where = f"{found.sensor}, {found.kernel}, {found.window}"
    if found.window == "default":
        assert found.mean <= 0.01, where
        assert found.low_confidence == 0, where
    else:
        assert found.worst <= 0.03 or found.low_confidence == 1, where
    assert found.covered_with_gain >= least_covered, where
    assert found.disagreement == 0, where


UNEVEN = ((0.5, 650.0), (0.5, 350.0))
UNEVEN_KERNELS_S = {"1 ms": 1e-3, "7 ms": 7e-3, "47 ms": 47e-3, "50 ms": 50e-3}


@dataclass(frozen=True)
class UnevenLine:
    """A row of the second table; relative figures."""

    sensor: str
    kernel: str
    strobed: bool
    mean: float
    worst: float
    claimed: float
    covered_with_gain: float

    def __str__(self) -> str:
        return (
            f"{self.sensor:18} {self.kernel:>6} {self.mean:9.3%} {self.worst:9.3%} {self.claimed:9.3%}"
            f" {self.covered_with_gain:8.1%}{'  strobed' if self.strobed else ''}"
        )


def uneven(sensor: str, kernel: str, trials: int) -> UnevenLine:
    row, call_s = ROWS[SENSORS[sensor][0]], UNEVEN_KERNELS_S[kernel]
    looks_away = 0 < row.window_s < row.period_s
    # Many calls in one look average out, wherever it begins.
    strobed = looks_away and call_s > row.window_s / 10 and abs(row.period_s / call_s % 1.0) < 1e-9
    found = [measure(SENSORS[sensor], call_s=call_s, seed=seed, phases=UNEVEN) for seed in range(trials)]
    errors = [abs(trial.error) for trial in found]
    return UnevenLine(
        sensor, kernel, strobed, statistics.mean(errors), max(errors), statistics.mean(t.half_width for t in found),
        statistics.mean(t.covered for t in found),
    )  # fmt: skip


def pooled(lines: list[Line], trials: int) -> float:
    return sum(entry.covered * trials for entry in lines) / (trials * len(lines))


@pytest.mark.parametrize("sensor", SENSORS)
def test_energy_per_call_keeps_what_is_promised(sensor: str) -> None:
    trials = 12
    lines = [line(sensor, kernel, window, trials) for kernel in KERNELS_S for window in WINDOWS]
    for found in lines:
        check(found, 0.9)  # one of twelve may miss
    # The kernels share their seeds, so these are some 24 independent intervals: fewer than 21 are rare at 95 %.
    assert pooled(lines, trials) >= 0.86


@pytest.mark.parametrize("sensor", SENSORS)
def test_uneven_kernels_are_measured_unless_the_sensor_strobes(sensor: str) -> None:
    for kernel in UNEVEN_KERNELS_S:
        found = uneven(sensor, kernel, trials=6)
        if not found.strobed:
            assert found.mean <= 0.015, str(found)
            assert found.covered_with_gain == 1.0, str(found)


@pytest.mark.parametrize("sensor", SENSORS)
def test_a_window_below_two_periods_is_refused_and_never_zero(sensor: str) -> None:
    period_s = ROWS[SENSORS[sensor][0]].period_s
    for kernel_s in KERNELS_S.values():
        with pytest.raises(SensorError, match="too short"):
            measure(SENSORS[sensor], call_s=kernel_s, window_s=1.9 * period_s)
    # Just above, the meter may still refuse, where polling is coarser than the sensor; what it gives is true.
    for seed in range(5):
        with contextlib.suppress(SensorError):
            assert measure(SENSORS[sensor], call_s=1e-3, window_s=2 * period_s, seed=seed).covered


def test_whole_table(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trials = 100
    lines: list[Line] = []

    def table() -> None:
        lines.extend(
            line(sensor, kernel, window, trials) for sensor in SENSORS for window in WINDOWS for kernel in KERNELS_S
        )

    benchmark.pedantic(table, rounds=1, iterations=1)
    with capsys.disabled():
        print(f"\n{trials} trials each\n{HEAD}")
        for found in lines:
            print(found)
        print(f"\nuneven power within a call\n{UNEVEN_HEAD}")
        for kernel in UNEVEN_KERNELS_S:
            for sensor in SENSORS:
                print(uneven(sensor, kernel, trials // 5))
        print(f"intervals without gain that hold the truth: {pooled(lines, trials):.1%} of {trials * len(lines)}")
    benchmark.extra_info["covered"] = pooled(lines, trials)
    benchmark.extra_info["error_default"] = max(entry.mean for entry in lines if entry.window == "default")
    for found in lines:
        check(found, 0.95)
    assert pooled(lines, trials) >= 0.94


@pytest.fixture
def h200(simulated_gpus: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    gpus = simulated_gpus("h200")
    gpus.install(monkeypatch)
    sensor = find_energy_sensor("cuda", uuid=gpus[0].uuid, profiles=tmp_path / "sensors.json")
    assert isinstance(sensor, MeteredSensor), sensor.reason
    yield sensor
    sensor.close()


def test_one_read(benchmark: Any, h200: MeteredSensor) -> None:
    polled = [source for source in h200.sources if not source.buffered]
    benchmark(lambda: [source.read() for source in polled])
    each = benchmark.stats.stats.median / len(polled)
    benchmark.extra_info["read_s"] = each
    print(f"\none read: {each * 1e6:.1f} us, mean of {', '.join(source.label for source in polled)}")


def test_kernel_beside_the_meter(benchmark: Any, h200: MeteredSensor) -> None:
    torch = pytest.importorskip("torch")
    # One thread: two threads meet at a barrier in every call, and any other process on the machine then shows.
    torch.set_num_threads(1)
    a, b, out = torch.rand(160, 160), torch.rand(160, 160), torch.empty(160, 160)

    def run(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            torch.mm(a, b, out=out)
        return time.perf_counter() - begin

    run(1000)
    poller = ThreadPoller(h200.sources, keep_s=1.0)
    found = benchmark.pedantic(lambda: sampler_overhead(poller, run, 20, pairs=30, block_s=0.25), rounds=1)
    benchmark.extra_info.update(found.to_dict())
    print(
        f"\nkernel of {found.off_s * 1e6:.0f} us, polling on / off: {found.ratio:.4f} "
        f"[{found.ratio_lo:.4f}, {found.ratio_hi:.4f}]"
    )
