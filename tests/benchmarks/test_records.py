"""What keeping records costs: appending with a real sync, loading as a table, and memory while a run grows.

Run with ``pytest tests/benchmarks --benchmark-only``; figures that no timer shows stand in ``extra_info``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.record import Record
from wattline.run import RECORDS, Run, RunWriter

APPENDED = 10_000
LOADED = 100_000
GROWN = 20_000
DEVICE = {"device": {"id": "some-cpu", "kind": "cpu"}}


@pytest.fixture(scope="module")
def realistic(make_record: Callable[..., Record]) -> Callable[[int], Record]:
    """Records of thirty samples, about 1.4 kB each."""
    samples = [round(1e-3 * (1 + 0.001 * (i * 7 % 30)), 9) for i in range(30)]
    return lambda i: make_record(64 + i, samples=samples, sequence=i)


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory, realistic: Callable[[int], Record]) -> Path:
    """A run of 100,000 records: 2,000 distinct ones, repeated under rising sequence numbers."""
    folder = tmp_path_factory.mktemp("large") / "run"
    RunWriter.create(folder, DEVICE, []).close()
    lines = [realistic(i).to_json() for i in range(2000)]
    heads = [line[: line.rindex('"sequence":')] for line in lines]
    with (folder / RECORDS).open("w") as out:
        for i in range(LOADED):
            out.write(f'{heads[i % 2000]}"sequence":{i}}}\n')
    return folder


def test_append_with_sync(benchmark: Any, tmp_path: Path, realistic: Callable[[int], Record]) -> None:
    """Ten thousand records, each encoded, written and synced to the disk as `bench` does it."""
    records = [realistic(i) for i in range(APPENDED)]

    def append_all() -> None:
        for record in records:
            writer.append(record)

    with RunWriter.create(tmp_path / "run", DEVICE, []) as writer:
        benchmark.pedantic(append_all, rounds=1)
    benchmark.extra_info["records"] = APPENDED
    benchmark.extra_info["us_per_record"] = round(benchmark.stats["median"] / APPENDED * 1e6, 1)
    benchmark.extra_info["bytes_per_record"] = (writer.path / RECORDS).stat().st_size // APPENDED
    assert sum(1 for _ in Run(writer.path).records()) == APPENDED


def test_encode_one(benchmark: Any, realistic: Callable[[int], Record]) -> None:
    record = realistic(0)
    line = benchmark(record.to_json)
    assert Record.from_json(line) == record


def test_decode_one(benchmark: Any, realistic: Callable[[int], Record]) -> None:
    line = realistic(0).to_json()
    assert benchmark(Record.from_json, line) == realistic(0)


def test_load_as_a_frame(benchmark: Any, large_run: Path) -> None:
    frame = benchmark.pedantic(Run(large_run).to_frame, rounds=3, warmup_rounds=1)
    benchmark.extra_info["records"] = LOADED
    benchmark.extra_info["us_per_record"] = round(benchmark.stats["median"] / LOADED * 1e6, 1)
    benchmark.extra_info["frame_mb"] = round(frame.memory_usage(deep=True).sum() / 1e6, 1)
    assert len(frame) == LOADED
    assert frame["sequence"].tolist() == list(range(LOADED))
    assert str(frame["m"].dtype) == "Int64"
    assert frame["valid"].all()


_GROW = """
import gc, json, os, resource, sys
from wattline.record import Record
from wattline.run import RunWriter

def resident():
    gc.collect()
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize()

def read_all(writer):
    # What a progress display and a resume do: every record, one at a time.
    return sum(record.measurement.stats.n for record in writer.records())

os.fsync = lambda fd: None  # what the disk takes is the other benchmark's question
folder, line, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
template = Record.from_json(line)
seen = {}
with RunWriter.create(folder, {"device": {"id": "some-cpu"}}, []) as writer:
    for i in range(1, count + 1):
        writer.append(Record.from_json(line.replace('"sequence":0', f'"sequence":{i}')))
        if i in (count // 10, count):
            read_all(writer)
            seen[i] = resident()
print(json.dumps(seen))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc/self/statm")
def test_memory_stays_flat_while_a_run_grows(
    benchmark: Any, tmp_path: Path, realistic: Callable[[int], Record], python_json: Callable[..., Any]
) -> None:
    """Resident memory of a process that appends and re-reads, after a tenth of its records and after all."""
    line = realistic(0).to_json()
    seen = benchmark.pedantic(lambda: python_json(_GROW, tmp_path / "run", line, GROWN, timeout=240), rounds=1)
    early, late = seen[str(GROWN // 10)], seen[str(GROWN)]
    benchmark.extra_info["mb_after_2000"] = round(early / 1e6, 1)
    benchmark.extra_info["mb_after_20000"] = round(late / 1e6, 1)
    # 18,000 records of 1.4 kB would be 25 MB as text and several times that as objects.
    assert late - early < 4e6
