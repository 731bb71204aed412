"""The loop over collectives against a bare loop over torch.distributed, on the same group in the same processes.

Run with ``pytest tests/benchmarks/test_collectives.py --benchmark-only``; the ratio stands in the row's extra info.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
