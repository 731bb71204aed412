"""Curves over working sets: steps put at the reported caches are found there, and those put elsewhere are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.record import Record
from wattline.reports import figures_memory, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render

KI, MI = 1024, 1024**2
SIZES = [16 * KI << i for i in range(15)]  # to 256 MiB
CACHES = (
    {"level": 1, "kind": "data", "size_bytes": 48 * KI, "instances": 2},
    {"level": 1, "kind": "instruction", "size_bytes": 32 * KI, "instances": 2},
    {"level": 2, "kind": "unified", "size_bytes": MI, "instances": 2},
    {"level": 3, "kind": "unified", "size_bytes": 32 * MI, "instances": 1},
)
Read = Callable[..., ReportData]


def load_s(size: int, ends: tuple[int, ...]) -> float:
    """Seconds of a load from a hierarchy whose caches end there."""
    return (1e-9, 4e-9, 2e-8, 1e-7)[sum(size > end for end in ends)]


@pytest.fixture
def read(run_of: Callable[..., Path], with_facts: Callable[..., Record]) -> Read:
    def made(
        ends: tuple[int, ...] = (48 * KI, MI, 32 * MI), sizes: list[int] = SIZES, caches: Any = CACHES,
        threads: int = 1, name: str = "run", **how: Any,
    ) -> ReportData:  # fmt: skip
        records = []
        for size in sizes:
            chase = {"bytes": size, "steps": 1000, "pages": "small", "node": -1, "cpu_node": -1}
            records.append(with_facts("memory.latency", "numba", 1000 * load_s(size, ends), chase, **how))
            loop = {"kernel": "read", "bytes": size, "dtype": "fp32", "threads": threads, "node": -1, "cpu_node": -1}
            passes = -(-256 * MI // size) if size < 32 * MI else 1
            seconds = size * passes * load_s(size, ends) / 100
            records.append(with_facts("memory.bandwidth", "numba", seconds, loop, **how))
        environment = {"cpu": {"caches": list(caches)}} if caches is not None else {}
        return ReportData.read(run_of(records, name, environment=environment))

    return made


def test_caches_that_end_where_the_system_says(read: Read) -> None:
    data = read()
    assert figures_memory.reported(data) == {"L1": 48 * KI, "L2": MI, "L3": 32 * MI}
    latency, bandwidth = figures_memory.curves(data)
    assert [p.value for p in latency.plateaus] == pytest.approx([1e-9, 4e-9, 2e-8, 1e-7], rel=1e-3)
    assert [p.value for p in bandwidth.plateaus] == pytest.approx([1e11, 2.5e10, 5e9, 1e9], rel=1e-3)
    assert [(s.name, s.lo_bytes, s.hi_bytes) for s in latency.seen] == [
        ("L1", 32 * KI, 64 * KI), ("L2", MI, 2 * MI), ("L3", 32 * MI, 64 * MI),
    ]  # fmt: skip
    found = figures_memory.finding(data)
    assert found is not None
    assert found.title == (
        "The latency of memory steps where the system reports L1 (48 KiB), L2 (1 MiB), L3 (32 MiB) to end."
    )
    assert "a dependent load (numba): 1.00 ns up to 32 KiB, 4.00 ns from 64 KiB to 1 MiB" in found.items[0]
    assert "L1, 48 KiB: bandwidth steps between 32 KiB and 64 KiB" in found.items
    assert found in findings.find(data)


def test_the_drawings_mark_the_reported_caches(read: Read) -> None:
    data = read()
    latency, bandwidth = figures_memory.figures(data)
    assert (latency.id, bandwidth.id) == ("memory_latency", "memory_bandwidth")
    assert latency.panels[0].count("<a href") == len(SIZES)
    assert latency.lines == [("dashed", "reported cache")]
    assert "L1 48 KiB, L2 1 MiB, L3 32 MiB" in latency.caption
    unmarked, _ = figures_memory.figures(read(caches=(), name="none"))
    assert unmarked.lines == []
    assert "The system reports no caches." in unmarked.caption
    assert latency.panels[0].count("<path") > unmarked.panels[0].count("<path")
    page = render(data)
    assert 'id="memory_latency"' in page
    assert 'id="memory_bandwidth"' in page


def test_a_cache_that_ends_elsewhere_is_called_out(read: Read) -> None:
    # A guest that is given a quarter of the last cache.
    found = figures_memory.finding(read(ends=(48 * KI, MI, 8 * MI)))
    assert found is not None
    assert found.title.endswith("L1 (48 KiB), L2 (1 MiB) to end, but not at the reported L3 (32 MiB).")
    assert "L3, 32 MiB: latency steps between 8 MiB and 16 MiB" in found.items


def test_a_flat_curve_has_no_steps(read: Read) -> None:
    found = figures_memory.finding(read(ends=()))
    assert found is not None
    assert found.title.startswith("The latency of memory does not step at the reported L1 (48 KiB)")
    assert "L2, 1 MiB: latency has no step at all" in found.items


def test_nothing_is_said_of_caches_beyond_the_sets_measured(read: Read) -> None:
    found = figures_memory.finding(read(sizes=SIZES[:8]))  # to 2 MiB
    assert found is not None
    assert "L3" not in found.title
    assert "L3: no larger working set was measured" in found.items


def test_two_caches_within_one_step_are_not_told_apart(read: Read) -> None:
    found = figures_memory.finding(read(sizes=[16 * KI, 24 * KI, 32 * KI, 256 * MI]))
    assert found is not None
    assert any("shares with another cache" in item for item in found.items)


def test_threads_have_the_nearer_caches_to_themselves(read: Read) -> None:
    four = figures_memory.curves(read(ends=(192 * KI, 4 * MI, 32 * MI), threads=4))
    bandwidth = four[1]
    assert [(s.name, s.reported_bytes, s.agrees) for s in bandwidth.seen] == [
        ("L1", 192 * KI, True), ("L2", 4 * MI, True), ("L3", 32 * MI, True),
    ]  # fmt: skip
    every = figures_memory.curves(read(threads=0, name="every"))
    assert [c.question.id for c in every] == ["memory_latency"], "how many threads is not told by 0"


def test_another_device_reports_its_last_cache_alone(
    run_of: Callable[..., Path], with_facts: Callable[..., Record], listed_device: Any
) -> None:
    last = listed_device.l2_bytes
    assert last
    sizes = [MI << i for i in range(10)]
    records = [
        with_facts(
            "memory.latency", "triton", 1000 * load_s(size, (int(last),)),
            {"bytes": size, "steps": 1000, "pages": "small", "node": -1, "cpu_node": -1}, device=listed_device,
        ) for size in sizes
    ]  # fmt: skip
    data = ReportData.read(run_of(records, device=listed_device))
    (curve,) = figures_memory.curves(data)
    assert [(s.name, s.agrees) for s in curve.seen] == [("last cache", True)]


def test_disturbed_records_carry_no_verdict_but_are_drawn(read: Read) -> None:
    data = read(flags=("foreign_process",))
    found = figures_memory.finding(data)
    assert found is not None
    assert found.quiet
    assert "cannot be told" in found.title
    assert len(figures_memory.figures(data)[0].panels) == 1


def test_one_working_set_gives_no_curve(read: Read) -> None:
    data = read(sizes=SIZES[:1])
    assert all(figure.missing for figure in figures_memory.figures(data))
    assert figures_memory.finding(data) is None


def test_nothing_in_a_run_without_them(run_of: Any, make_record: Any, make_case: Any) -> None:
    data = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_memory.figures(data) == []
    assert figures_memory.finding(data) is None
