"""Our loops over blocks against fio on the same file: ``pytest tests/benchmarks -k fio``; skips where fio is missing.

Each runs for a second or so, in turns, so that a busy machine disturbs them alike; the ratio stands in ``extra_info``.
Within 5 % is what a quiet machine shows.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from wattline.suites.registry import get
from wattline.suites.storage import place

pytest.importorskip("numba")
TURNS = 3
SIZE = 256 << 20


@pytest.mark.parametrize("op", ["storage.read", "storage.write"])
@pytest.mark.parametrize(
    "way", [(4096, 4 << 20, 1), (1 << 20, 64 << 20, 1), (4096, 32 << 20, 32)], ids=["4 KiB", "1 MiB", "4 KiB, 32 deep"]
)
def test_against_fio(benchmark: Any, tmp_path: Path, op: str, way: tuple[int, int, int]) -> None:
    from wattline.suites.storage.fio import fio_speed
    from wattline.suites.storage.jobs import Job

    block, span, depth = way
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    folder = next((f for f in (str(tmp_path), os.getcwd()) if place.mount_of(f).kind not in place.IN_MEMORY), None)
    if folder is None or place.why_not(folder, SIZE) is not None:
        pytest.skip("no folder with room on a disk")
    p = get(op).workload.params.parse(
        {"path": folder, "bytes": SIZE, "span": span, "block": block, "depth": depth, "pattern": "random"}
        | ({"sync": "none"} if op == "storage.write" else {})
    )
    scratch = place.Scratch(folder, SIZE)
    job = Job(p, scratch, writes=op == "storage.write", seed=1)
    job.compile()
    ours, theirs = [], []
    for _ in range(TURNS):
        begin, calls = time.perf_counter(), 0
        while time.perf_counter() - begin < 1.0:
            job.call()
            calls += 1
        ours.append(calls * span / (time.perf_counter() - begin))
        theirs.append(fio_speed(p, job, writes=op == "storage.write"))
    assert job.error()[0] == 0 or op == "storage.write"  # fio writes what it likes
    benchmark.extra_info |= {
        "ratio_to_fio": round(statistics.median(ours) / statistics.median(theirs), 3),
        "mb_per_s": round(statistics.median(ours) / 1e6, 1),
    }
    benchmark.pedantic(job.call, rounds=3)
    job.close()
    scratch.close()
