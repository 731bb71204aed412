"""nccl-tests text: collectives of a run as the table that NVIDIA's nccl-tests prints, one table per collective.

Only what those programs measure is written: their nine collectives, synchronous, warm, one group. Other records are
left out and counted.
"""

from __future__ import annotations

from typing import BinaryIO

from wattline import nccl_tests
from wattline.formats import number_format
from wattline.record import Record
from wattline.run import Run

SUFFIX = ".txt"
BINARY = False
_IN_PLACE = ("all_reduce", "broadcast", "reduce")


def tables_of(run: Run) -> list[nccl_tests.Table]:
    """The tables of a run, by collective, ranks and number format; sizes ascend."""
    found: dict[tuple[str, int, str], list[nccl_tests.Line]] = {}
    for record in run.records():
        if not _fits(record):
            continue
        p, name = record.case.params, record.case.op.removeprefix("collectives.")
        assert record.measurement is not None  # it fits
        size, ranks, dtype = int(p["bytes"]), int(p["world_size"]), str(p["dtype"])
        size = int(record.measurement.facts.get("actual_bytes") or size)
        count = nccl_tests.counted(name, size, ranks, int(number_format(dtype).bytes))
        wrong = 0 if record.measurement.check is not None else None
        line = nccl_tests.Line(
            size, count, nccl_tests.TYPES[dtype], record.measurement.stats.median_s, name in _IN_PLACE, wrong
        )
        found.setdefault((name, ranks, dtype), []).append(line)
    return [
        nccl_tests.Table(name, ranks, tuple(sorted(lines, key=lambda line: line.size)))
        for (name, ranks, _), lines in sorted(found.items())
    ]


def _fits(record: Record) -> bool:
    """Whether it is what a program of nccl-tests would have measured."""
    case = record.case
    return (
        record.status == "ok"
        and record.measurement is not None
        and case.op.startswith("collectives.")
        and case.op.removeprefix("collectives.") in nccl_tests.PROGRAMS
        and case.regime == "hot"
        and record.variant != "b"
        and case.params.get("mode", "sync") == "sync"
        and case.params.get("groups") == 1
        and str(case.params.get("dtype")) in nccl_tests.TYPES
    )


def write(run: Run, sink: BinaryIO) -> int:
    """Write the tables; returns the number of records in them."""
    tables = tables_of(run)
    sink.write(nccl_tests.to_text(tables, f"wattline, run {run.path.name}").encode("utf-8", "replace"))
    return sum(len(table.lines) for table in tables)
