"""Blocks of a file and checkpoints: bandwidth, tails and stalls as they were put into the records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.record import Record
from wattline.reports import figures_storage, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render

KI, MI = 1024, 1024**2
FILE = {
    "path": "default", "bytes": 64 * MI, "span": 0, "block": 4 * KI, "depth": 1, "threads": 1, "pattern": "random",
    "access": "direct", "pages": "small", "cache": "cold", "fio": False,
}  # fmt: skip
STATE = {
    "path": "default", "bytes": 32 * MI, "shards": 1, "writers": 1, "mode": "blocking", "access": "buffered",
    "steps": 4, "step_s": 0.01,
}  # fmt: skip


@pytest.fixture
def moved(with_facts: Callable[..., Record]) -> Callable[..., Record]:
    """A record of blocks moved at a rate, with their median and 99th percentile."""

    def make(rate: float, p99: float | None = None, op: str = "storage.read", **params: Any) -> Record:
        how = {name: params.pop(name) for name in ("flags", "noise") if name in params}
        case = {**FILE, **({"sync": "call"} if op == "storage.write" else {}), **params}
        facts = {} if p99 is None else {"block_p50_s": p99 / 10, "block_p99_s": p99, "block_max_s": 2 * p99}
        return with_facts(op, params.pop("impl", "posix"), (case["span"] or case["bytes"]) / rate, case, facts, **how)

    return make


def test_bandwidth_and_tail_by_block_and_by_depth(run_of: Callable[..., Path], moved: Callable[..., Record]) -> None:
    # Calls of different spans: bandwidth compares them, their times would not.
    data = ReportData.read(run_of([
        moved(1e8, 2e-4, span=MI), moved(4e8, 1e-3, block=64 * KI, span=8 * MI),
        moved(1e9, 8e-3, block=MI, span=32 * MI), moved(3e8, 1e-3, depth=8, span=4 * MI),
        moved(2e9, 9e-3, block=MI, access="buffered", cache="warm", pattern="sequential"),
    ]))  # fmt: skip
    blocks, depths = figures_storage.figures(data)
    assert (blocks.id, depths.id) == ("storage_read_block", "storage_read_depth")
    assert [name for _, name in blocks.legend] == [
        "random direct", "random direct, depth 8", "sequential buffered, warm cache",
    ]  # fmt: skip
    assert [panel.count("<a href") for panel in blocks.panels] == [5, 10], "a median and a percentile for each point"
    assert [name for _, name in depths.legend] == ["random direct, 4 KiB"], "a single point is no line over depth"
    (found,) = figures_storage.find(data)
    assert found.title == (
        "Reads, random direct: 1.00 GB/s at 1 MiB blocks, 10 times that at 4 KiB blocks; 99 % of blocks within "
        "8.00 ms, at 4 KiB blocks 200 us."
    )
    assert found.items[1] == (
        "random direct, 4 KiB: 300 MB/s at depth 8, 3.0 times that at depth 1; 99 % of blocks within 1.00 ms, at depth "
        "1 200 us"
    )
    assert found in findings.find(data)
    page = render(data)
    assert 'id="storage_read_block"' in page
    assert 'id="storage_read_depth"' in page


def test_what_a_write_waits_for_makes_a_line(run_of: Callable[..., Path], moved: Callable[..., Record]) -> None:
    write: dict[str, Any] = {"op": "storage.write", "access": "buffered", "pattern": "sequential"}
    data = ReportData.read(run_of([
        moved(rate * factor, block=block, sync=sync, **write)
        for sync, factor in (("block", 1), ("call", 10), ("none", 50))
        for block, rate in ((4 * KI, 1e7), (MI, 2e7))
    ]))  # fmt: skip
    (figure,) = figures_storage.figures(data)
    assert [name for _, name in figure.legend] == [
        "sequential buffered, cold cache", "sequential buffered, cold cache, a sync for each block",
        "sequential buffered, cold cache, no sync",
    ]  # fmt: skip
    assert len(figure.panels) == 1, "no block was timed by itself"
    assert "no block was timed" in figure.caption
    (found,) = figures_storage.find(data)
    assert found.kind == "storage_write"
    assert "99 %" not in found.title


def test_a_single_way_gives_no_curve(run_of: Callable[..., Path], moved: Callable[..., Record]) -> None:
    data = ReportData.read(run_of([moved(1e9, 1e-3)]))
    (figure,) = figures_storage.figures(data)
    assert "at two sizes of a block or two depths" in figure.missing
    assert figures_storage.find(data) == []


def test_stalls_of_checkpoints(run_of: Callable[..., Path], with_facts: Callable[..., Record]) -> None:
    def saved(stall: float, write: float, **more: Any) -> Record:
        facts = {"stall_s": stall, "write_s": write, "compute_alone_s": 0.04, "write_bytes_per_s": 1e9}
        return with_facts("storage.checkpoint", "posix", 0.04 + stall, {**STATE, **more}, facts)

    data = ReportData.read(run_of([
        saved(0.05, 0.05), saved(0.01, 0.05, mode="snapshot"),
        saved(0.02, 0.08, mode="snapshot", shards=4, writers=2),
    ]))  # fmt: skip
    (figure,) = figures_storage.figures(data)
    assert figure.id == "checkpoints"
    ways = "1: snapshot, buffered, 32 MiB; 2: snapshot, buffered, 32 MiB, 4 shards by 2 writers; 3: blocking"
    assert ways in figure.caption
    assert figure.panels[0].count("<a href") == 6
    (found,) = figures_storage.find(data)
    assert found.title == (
        "A checkpoint holds the steps up for 10.0 ms at least (snapshot, buffered, 32 MiB), 50.0 ms at most (blocking, "
        "buffered, 32 MiB)."
    )
    assert "80 % of the writing hidden" in found.items[0]
    assert "hidden" not in found.items[2], "blocking hides nothing"
    assert found in findings.find(data)


def test_disturbed_records_carry_no_verdict_but_are_drawn(
    run_of: Callable[..., Path], moved: Callable[..., Record], with_facts: Callable[..., Record]
) -> None:
    facts = {"stall_s": 0.01, "write_s": 0.05, "compute_alone_s": 0.04}
    data = ReportData.read(run_of([
        moved(1e8, 2e-4, flags=("noisy",)), moved(1e9, 8e-3, block=MI, flags=("noisy",)),
        with_facts("storage.checkpoint", "posix", 0.05, STATE, facts, flags=("foreign_process",)),
    ]))  # fmt: skip
    assert [len(figure.panels) for figure in figures_storage.figures(data)] == [2, 1]
    found = figures_storage.find(data)
    assert [f.kind for f in found] == ["storage_read", "checkpoints"]
    assert all(f.quiet and "cannot be told" in f.title for f in found)


def test_nothing_in_a_run_without_them(run_of: Any, make_record: Any, make_case: Any) -> None:
    data = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_storage.figures(data) == []
    assert figures_storage.find(data) == []
