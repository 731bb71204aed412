"""The loop over collectives against a bare loop over torch.distributed, on the same group in the same processes; and
how often those who are not slow are called so.

Run with ``pytest tests/benchmarks/test_collectives.py --benchmark-only -s``; the figures stand in the row's extra info.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.run import PlannedCase, Run
from wattline.suites.collectives.launch import Launch
from wattline.suites.collectives.world import Place
from wattline.suites.plan import Plan
from wattline.suites.registry import get
from wattline.suites.runner import run_bench
from wattline.suites.settings import MeasureSettings

pytest.importorskip("torch")
RANKS_IN_TURN = '''
import statistics, time
import torch
import torch.distributed as dist
from wattline.suites.collectives.lockstep import host_run

dist.init_process_group("gloo")
x = torch.zeros(int({count}))


def call():
    return dist.all_reduce(x)


def bare(n):
    begin = time.perf_counter_ns()
    for _ in range(n):
        dist.all_reduce(x)
    return time.perf_counter_ns() - begin


host_run([call] * 50)
taken = [], []
for _ in range({rounds}):
    # In turn, so that a machine that changes speed meets both alike.
    dist.barrier()
    taken[0].append(host_run([call] * {calls})[0])
    dist.barrier()
    taken[1].append(bare({calls}))
if dist.get_rank() == 0:
    # Lower quartiles: what else runs on the machine only ever adds.
    ours, theirs = (statistics.quantiles(each, n=4)[0] for each in taken)
    print("RATIO", ours / theirs)
dist.destroy_process_group()
'''


@pytest.mark.parametrize(("count", "calls"), [(16, 25), (262144, 4)], ids=["64B", "1MiB"])
def test_all_reduce_against_a_bare_loop(benchmark: Any, tmp_path: Path, count: int, calls: int) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS_IN_TURN.format(count=count, calls=calls, rounds=400))
    ratios: list[float] = []

    def both() -> None:
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        ratios.append(float(done.stdout.partition("RATIO")[2].split()[0]))

    benchmark.pedantic(both, rounds=1, iterations=1)
    ratio = statistics.median(ratios)
    benchmark.extra_info["ours_over_bare"] = ratio
    print(f"\nall-reduce of {count * 4} bytes: our loop takes {ratio:.4f} times the bare one")
    assert ratio < 1.03


CLEAN = 1000
"""Iterations in which nobody may be called slow."""
SLOWED: tuple[dict[str, Any], ...] = (
    {}, {"inject": "sleep", "factor": 3.0}, {"inject": "load", "factor": 3.0}, {"inject": "link", "factor": 10.0},
)  # fmt: skip


def test_stragglers_are_found_and_nobody_else(benchmark: Any, tmp_path: Path) -> None:
    # Ranks that must share their cores with others may be called slow: run it on a machine that is not overloaded.
    whole = get("collectives.stragglers").workload.params
    fixed = {"world_size": 2, "backend": "gloo", "bytes": 65536, "work": 192, "victim": 1}
    cases = [Case("collectives.stragglers", "torch", whole.parse({**fixed, **slowed}), "hot") for slowed in SLOWED]
    settings = MeasureSettings(
        iterations=CLEAN, warmup_iterations=2, time_limit_s=60.0, min_time_s=0.05, deadline_s=120.0
    )
    plan = Plan("stragglers", tuple(map(PlannedCase, cases)), (), settings, None, 0, {}, 1.0, 1.0, ranks=2)

    def measure() -> None:
        run_bench(plan, tmp_path / "run", device="cpu", launch=Launch(2, Place(), "cpu", 60.0))

    benchmark.pedantic(measure, rounds=1, iterations=1)
    for record in Run(tmp_path / "run").records():
        assert record.measurement is not None, record.reason
        facts, injected = record.measurement.facts, str(record.case.params["inject"])
        if injected == "none":
            alarms = facts["other_alarms"]
            benchmark.extra_info["false_alarms"] = alarms
            print(f"\n{alarms} false alarms in {facts['iterations_watched']} clean iterations")
            assert facts["iterations_watched"] >= CLEAN
            assert alarms == 0, (facts["slow_ranks"], facts["slow_links"])
        else:
            benchmark.extra_info[f"{injected}_found_after"] = facts["found_after"]
            print(f"{injected}: found after {facts['found_after']} iterations; {facts['other_alarms']} other alarms")
            assert facts["found_after"] is not None
            assert facts["found_after"] <= 20
