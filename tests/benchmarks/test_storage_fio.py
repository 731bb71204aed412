"""Our loops over blocks against fio on the same file: ``pytest tests/benchmarks -k fio -s``; skips without fio.

Both take short turns, each of fio's between two of ours, so that a busy machine disturbs them alike; the median of the
turns' ratios is printed (``-s``) and stands in ``extra_info``, with its quartiles. Within 5 % is what a quiet machine
shows.

``ratio_to_fio`` is of the loop that moves blocks as fio does: into (or out of) one buffer for each request in flight.
``placed_ratio_to_fio`` is of a case as it is measured: every block has a place of its own, which is what can be checked
afterwards, and which no cache of the processor holds. Large blocks are moved in huge pages, by fio too: small pages lie
where the kernel finds them, and as each is a piece of its own for the device, the speed of large blocks hangs on what
it found, for fio as for us.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.suites.registry import get
from wattline.suites.storage import place

pytest.importorskip("numba")
TURNS, SECONDS = 20, 0.2
SIZE = 256 << 20
WAYS = {"4 KiB": (4096, 4 << 20, 1), "1 MiB": (1 << 20, 64 << 20, 1), "4 KiB, 32 deep": (4096, 32 << 20, 32)}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    found = next((f for f in (str(tmp_path), os.getcwd()) if place.mount_of(f).kind not in place.IN_MEMORY), None)
    if found is None or place.why_not(found, SIZE) is not None:
        pytest.skip("no folder with room on a disk")
    return found


def speed(call: Callable[[], None], span: int) -> float:
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        call()
        calls += 1
    return calls * span / (time.perf_counter() - begin)


@pytest.mark.parametrize("op", ["storage.read", "storage.write"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_against_fio(benchmark: Any, folder: str, op: str, way: tuple[int, int, int]) -> None:
    import numpy as np

    from wattline.suites.storage.fio import fio_speed
    from wattline.suites.storage.jobs import Job

    block, span, depth = way
    writes = op == "storage.write"
    p = get(op).workload.params.parse(
        {"path": folder, "bytes": SIZE, "span": span, "block": block, "depth": depth, "pattern": "random"}
        | {"pages": "huge" if block > 4096 else "small"}
        | ({"sync": "none"} if writes else {})
    )
    scratch = place.Scratch(folder, SIZE)
    job = Job(p, scratch, writes=writes, seed=1)
    job.compile()
    apart, together = job.places, np.arange(span // block, dtype=np.int64) % depth * block

    def placed() -> float:
        job.places = apart
        return speed(job.call, span)

    def shared() -> float:
        job.places = lambda t: together
        return speed(job.call, span)

    ratios: dict[str, list[float]] = {"ratio_to_fio": [], "placed_ratio_to_fio": []}
    speeds = []
    for turn in range(TURNS):
        kinds = (shared, placed)[:: 1 - 2 * (turn % 2)]
        before = {kind: kind() for kind in kinds}
        theirs = fio_speed(p, job, writes=writes, seconds=SECONDS)
        after = {kind: kind() for kind in kinds[::-1]}
        speeds.append(before[placed])
        for name, kind in zip(ratios, (shared, placed), strict=True):
            ratios[name].append(math.sqrt(before[kind] * after[kind]) / theirs)
    for name, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"\n{op} {block} bytes, depth {depth}: {name} {middle:.3f} [{low:.3f}, {high:.3f}]", end="")
        benchmark.extra_info |= {name: round(middle, 3), f"{name}_quartiles": [round(low, 3), round(high, 3)]}
    benchmark.extra_info["mb_per_s"] = round(statistics.median(speeds) / 1e6, 1)
    job.places = apart
    benchmark.pedantic(job.call, rounds=3)
    # fio writes what it likes; what we wrote last must be there all the same.
    assert job.error()[0] == 0
    job.close()
    scratch.close()
