"""How well a calibration recovers what a sensor does, over every row of the sensor table.

``pytest tests/benchmarks/test_calibration.py --benchmark-only -s`` calibrates simulated sensors in simulated time, as
they are and with more noise, four phases and seeds each, and prints the largest errors: of period, window and rise
relative, of the lag in milliseconds.
"""

from __future__ import annotations

from typing import Any

import pytest
from wattline_sim.bench import Bench
from wattline_sim.sources import ROWS

from wattline.collectors.energy.calibrate import QUICK, THOROUGH, Effort, calibrate
from wattline.collectors.energy.sources import POWER

CASES: dict[str, tuple[Effort, dict[str, Any]]] = {
    "thorough": (THOROUGH, {}),
    "quick": (QUICK, {}),
    "quick, 10 W of noise": (QUICK, {"noise_w": 10.0}),
    "quick, reads of 2 ms": (QUICK, {"read_cost_s": 2e-3}),
}


def worst(row: str, effort: Effort, options: dict[str, Any], seeds: int = 4) -> tuple[float, ...]:
    """Largest errors of period, window, lag and rise; and the longest time that it takes."""
    period = window = lag = rise = took = 0.0
    for seed in range(seeds):
        bench = Bench()
        source = bench.source(row, seed=seed, **options)
        begin = bench.clock.now()
        profile = calibrate(source, bench.load, effort=effort, clock=bench.clock, seed=seed).profile
        took = max(took, bench.clock.now() - begin)
        period = max(period, abs(profile.period_s / ROWS[row].period_s - 1))
        lag = max(lag, abs(profile.lag_s - source.lag_s))
        if source.kind == POWER:
            window = max(window, abs(profile.window_s / ROWS[row].window_s - 1))
            rise = max(rise, abs(profile.rise_s / (source.lag_s + 0.9 * ROWS[row].window_s) - 1))
    return period, window, lag, rise, took


@pytest.mark.timeout(900)
def test_largest_errors_over_the_sensor_table(benchmark: Any) -> None:
    def table() -> dict[tuple[str, str], tuple[float, ...]]:
        found = {}
        for case, (effort, options) in CASES.items():
            for row, entry in ROWS.items():
                known = {name: value for name, value in options.items() if name != "noise_w" or entry.kind == POWER}
                if bool(known) == bool(options) and not (row == "rapl" and options):
                    found[case, row] = worst(row, effort, known)
        return found

    found = benchmark.pedantic(table, rounds=1, iterations=1)
    print("\n| effort | sensor | period | window | lag | rise | takes |\n|---|---|---|---|---|---|---|")
    for (case, row), (period, window, lag, rise, took) in found.items():
        power = ROWS[row].kind == POWER
        shown = (f"{window:.2%}", f"{rise:.1%}") if power else ("-", "-")
        print(f"| {case} | {row} | {period:.2%} | {shown[0]} | {lag * 1e3:.2f} ms | {shown[1]} | {took:.0f} s |")
        assert period <= 0.1
        assert window <= 0.1
