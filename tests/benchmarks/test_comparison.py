"""Comparing runs: how quick it is, and what it tells on noise as this machine has it.

Run with ``pytest tests/benchmarks/test_comparison.py --benchmark-only -s``. The tables stand on stdout: for each
noise and number of runs a side, how many planted changes of 3 % are told (power), how many unchanged cases are called
changed (false positives), and how often any of them is where nothing changed; then power and false positives where each
case is judged for itself, at 5 %. The first noises of the table are measured here and now, in six short runs with A/A
pairs, and drawn from as they are.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from wattline.record import Record
from wattline.reports import compare_runs
from wattline.reports.comparing.contrast import Leveled, contrast
from wattline.reports.comparing.judging import LESS, MORE
from wattline.reports.comparing.reading import Reading, read_side
from wattline.run import RECORDS, RunWriter

RECORDS_EACH = 20_000
CASES, PLANTED, PAIRS, CHANGE = 100, 10, 8, 0.03
OWN = 0.003
"""Relative standard deviation within a measurement: intervals of +-0.6 %, as records have here."""
REPEATS = 30
MEASURED_RUNS = 6
TO_DEVIATION = 1.4826
"""Standard deviations of normal figures in their median absolute deviation."""
SIDES = (1, 2, 3, 5, 8, 12)
MOST_RUNS = 128
FAR = 50.0
"""Natural logarithm beyond which a simulated time is cut."""
BENCH = (
    "gemm.dense softmax.rows elementwise.add norm.layernorm --preset quick --aa 20 --budget 45s --no-fit --no-report "
    "--quiet"
)


class Model(NamedTuple):
    """Noise: name, scale of one measurement, degrees of freedom of its tails, scatter of whole runs; of measured noise
    the scales of its cases, and what their readings were off by in these scales, which is drawn from instead."""

    name: str
    scale: float
    freedom: float
    level: float
    scales: np.ndarray[Any, Any] | None = None
    off: np.ndarray[Any, Any] | None = None

    def case_scales(self, rng: np.random.Generator) -> Any:
        """The scale of each case."""
        return np.full(CASES, self.scale) if self.scales is None else rng.choice(self.scales, CASES)

    def one(self, rng: np.random.Generator) -> float:
        """What one measurement is off by, in its scale."""
        return float(rng.standard_t(self.freedom) if self.off is None else rng.choice(self.off))


class Found(NamedTuple):
    """Shares of planted changes that were told, and of unchanged cases that were called changed; comparisons of
    nothing with any case called changed; the same two shares where each case is judged for itself, by its interval; the
    change that would be told nine times out of ten in half of the cases."""

    power: float
    false: float
    spoiled: float
    power_alone: float
    false_alone: float
    resolution: float


def side(rng: np.random.Generator, runs: int, model: Model, scales: Any, change: Any) -> dict[str, list[Reading]]:
    levels = model.level * rng.standard_normal(runs)
    found: dict[str, list[Reading]] = {}
    for i, planted in enumerate(change):
        readings = []
        for run in range(runs):
            for variant in ("a", "b") if i < PAIRS else ("",):
                # A machine that is restless enough has tails that no float holds.
                log = planted + levels[run] + scales[i] * model.one(rng)
                value = math.exp(min(max(log, -FAR), FAR))
                readings.append(Reading(run, variant, value, OWN, 0.0, value * (1 - 2 * OWN), value * (1 + 2 * OWN)))
        found[str(i)] = readings
    return found


def simulate(model: Model, runs: int, repeats: int = REPEATS, seed: int = 1) -> Found:
    """Compare sides of which a tenth of the cases changed, and sides of which none did."""
    rng = np.random.default_rng(seed)
    told = called = spoiled = unchanged = told_alone = called_alone = 0
    resolutions = []
    for i in range(2 * repeats):
        planted = np.zeros(CASES)
        if i % 2 == 0:
            planted[rng.choice(CASES, PLANTED, replace=False)] = math.log1p(CHANGE)
        scales = model.case_scales(rng)
        a, b = side(rng, runs, model, scales, np.zeros(CASES)), side(rng, runs, model, scales, planted)
        found = contrast(a, b, list(a), runs=(runs, runs), same_machine=True, margin=0.02, confidence=0.95)
        words = [found.changes[key].verdict.word for key in a]
        told += sum(word == MORE for word, p in zip(words, planted, strict=True) if p)
        wrong = sum(word in (MORE, LESS) for word, p in zip(words, planted, strict=True) if not p)
        called, unchanged = called + wrong, unchanged + CASES - int(np.count_nonzero(planted))
        alone = [found.changes[key].verdict.lo > 0 or found.changes[key].verdict.hi < 0 for key in a]
        told_alone += sum(word for word, p in zip(alone, planted, strict=True) if p)
        called_alone += sum(word for word, p in zip(alone, planted, strict=True) if not p)
        spoiled += bool(wrong) and i % 2 == 1
        resolutions.append(float(np.median([c.verdict.resolution for c in found.changes.values()])))
    changed = repeats * PLANTED
    return Found(
        told / changed, called / unchanged, spoiled / repeats, told_alone / changed, called_alone / unchanged,
        float(np.median(resolutions)),
    )  # fmt: skip


def runs_needed(model: Model) -> tuple[int | None, int | None]:
    """The smallest number of runs a side that tells nine tenths of the changes, among those tried: with the verdicts of
    all cases held to a false discovery rate, and with each case judged for itself at 5 %. ``None``: none of them."""
    together = alone = None
    for runs in (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, MOST_RUNS):
        if model.scale * math.sqrt(2 / runs) < CHANGE:
            found = simulate(model, runs, 8)
            alone = alone or (runs if found.power_alone >= 0.9 else None)
            together = together or (runs if found.power >= 0.9 else None)
        if together:
            break
    return together, alone


def row(model: Model, runs: int, found: Found) -> str:
    tails = f"{model.freedom:.1f}" if model.off is None else "as is"
    return (
        f"{model.name:<24} {model.scale:>6.2%} {tails:>5} {runs:>4} {found.power:>7.1%} {found.false:>7.2%} "
        f"{found.spoiled:>7.1%} {found.power_alone:>8.1%} {found.false_alone:>7.2%} {found.resolution:>8.1%}"
    )


HEAD = (
    f"{'noise':<24} {'scale':>6} {'t df':>5} {'runs':>4} {'power':>7} {'false':>7} {'any':>7} {'p alone':>8} "
    f"{'f alone':>7} {'9 of 10':>8}"
)


def measured_here(folder: Path) -> list[Model]:
    """The noise of this machine, now, by either statistic: short runs of one-threaded kernels with A/A pairs."""
    for i in range(MEASURED_RUNS):
        subprocess.run(
            [sys.executable, "-m", "wattline.cli", "bench", *BENCH.split(), "--out", str(folder / str(i))],
            check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    measured = read_side(folder)
    models = []
    for name, quantity in (("5th percentile", "fast"), ("median", "time")):
        leveled = Leveled({k: getattr(case, quantity) for k, case in measured.cases.items()}, MEASURED_RUNS)
        scales, off = [], []
        for logs in leveled.logs.values():
            if len(logs) < MEASURED_RUNS:
                continue
            apart = np.array(logs) - np.median(logs)
            apart *= math.sqrt(len(logs) / (len(logs) - 1))  # they were held against their own middle
            scales.append(max(TO_DEVIATION * float(np.median(np.abs(apart))), 1e-6))
            off += list(apart / scales[-1])
        level = float(np.std(leveled.levels, ddof=1))
        models.append(
            Model(f"here, {name}", float(np.median(scales)), math.nan, level, np.array(scales), np.array(off))
        )
        tails = ", ".join(f"{q:+.1f}" for q in np.quantile(off, [0.05, 0.25, 0.75, 0.95]))
        print(
            f"\nmeasured here, {name}: {len(scales)} cases in {MEASURED_RUNS} runs, scales {np.min(scales):.1%} to "
            f"{np.max(scales):.1%}, in these 5, 25, 75 and 95 % of the readings lie at {tails}; runs scatter by "
            f"{level:.1%}"
        )
    return models


@pytest.mark.timeout(1800)
def test_power_and_false_positives(benchmark: Any, tmp_path: Path) -> None:
    here = measured_here(tmp_path)
    calm = [Model("calm", 0.004, 6.0, 0.004), Model("usual, one thread", 0.010, 4.0, 0.008)]
    restless = [Model("restless", 0.025, 3.0, 0.02)]
    print(f"{CASES} cases, {PLANTED} of them {CHANGE:.0%} slower, {PAIRS} A/A pairs a run\n{HEAD}")
    found: dict[tuple[str, int], Found] = {}
    for model in (*here, *calm, *restless):
        for runs in SIDES:
            found[model.name, runs] = simulate(model, runs)
            print(row(model, runs, found[model.name, runs]))
        together, alone = (
            f"{runs} runs a side" if runs else f"not even {MOST_RUNS} runs a side" for runs in runs_needed(model)
        )
        verdict = f"{together}; judged each for itself: {alone}"
        print(f"{'':<26} nine tenths of the changes of {CHANGE:.0%} are told with: {verdict}")
        benchmark.extra_info[model.name] = verdict
    assert all(each.false <= 0.05 for each in found.values()), "no more than one in twenty unchanged cases"
    assert found["calm", 3].power >= 0.9
    assert found["usual, one thread", 8].power >= 0.9
    benchmark.pedantic(simulate, args=(calm[0], 3, 1), rounds=3)


@pytest.fixture(scope="module")
def large_runs(tmp_path_factory: pytest.TempPathFactory, make_record: Callable[..., Record]) -> Sequence[Path]:
    """Two runs of 20,000 different cases each, with a hundred samples a record."""
    root, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(1)
    samples = [round(1e-3 * (1 + 0.001 * (i * 7 % 30)), 9) for i in range(100)]
    entry = json.loads(make_record(64, samples=samples).to_json())
    entry.pop("key")
    paths = []
    for name in ("a", "b"):
        RunWriter.create(root / name, {"device": {"id": "some-cpu", "kind": "cpu"}, "state": "complete"}, []).close()
        stats = dict(entry["measurement"]["stats"])
        with (root / name / RECORDS).open("w") as out:
            for i in range(RECORDS_EACH):
                factor = math.exp(0.01 * rng.standard_t(5))
                entry["case"]["params"]["m"] = entry["sequence"] = 1 + i
                entry["measurement"]["stats"] = {k: v if k == "n" else v * factor for k, v in stats.items()}
                out.write(json.dumps(entry, separators=(",", ":")) + "\n")
        paths.append(root / name)
    return paths


def test_compare_two_large_runs(benchmark: Any, large_runs: Sequence[Path]) -> None:
    """Reading included, against parsing the same lines as JSON and nothing else."""

    def parse() -> int:
        return sum(len(json.loads(line)) > 0 for run in large_runs for line in (run / RECORDS).open())

    ratios = []
    for _ in range(3):
        begin = time.process_time()
        assert parse() == 2 * RECORDS_EACH
        middle = time.process_time()
        assert compare_runs(*large_runs).compared == RECORDS_EACH
        ratios.append((time.process_time() - middle) / (middle - begin))
    found = benchmark.pedantic(compare_runs, args=tuple(large_runs), rounds=3)
    benchmark.extra_info["records_each"] = RECORDS_EACH
    benchmark.extra_info["against_json"] = round(float(np.median(ratios)), 2)
    benchmark.extra_info["mb_each"] = round((large_runs[0] / RECORDS).stat().st_size / 1e6, 1)
    assert found.compared == RECORDS_EACH
    assert np.median(ratios) < 5
