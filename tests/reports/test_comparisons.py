"""Implementations along one size: who is quickest where, found where it was put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.reports import comparisons, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render
from wattline.reports.lines import Question, panels, stretches
from wattline.reports.questions import QUESTIONS
from wattline.workmodels import work_of

PREFILL = {
    "batch": 1, "heads": 8, "kv_heads": 2, "head_dim": 64, "head_dim_v": 0, "causal": True, "window": 0,
    "direction": "forward", "dtype": "fp32",
}  # fmt: skip
LENGTHS = (256, 512, 1024, 2048)
Read = Callable[..., ReportData]


@pytest.fixture
def read(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> Read:
    def made(cases: list[tuple[Case, float]], name: str = "run", **record: Any) -> ReportData:
        how = {"noise": 1e-6, **record}
        return ReportData.read(run_of([make_record(case, time_s=t, **how) for case, t in cases], name))

    return made


def prefill(impl: str, times: Callable[[int], float], **more: Any) -> list[tuple[Case, float]]:
    made = []
    for n in LENGTHS:
        case = Case("attention.prefill", impl, {**PREFILL, "q_len": n, "kv_len": n + more.get("past", 0), **{
            k: v for k, v in more.items() if k != "past"}})  # fmt: skip
        made.append((case, times(n)))
    return made


def question(name: str) -> Question:
    return next(q for q in QUESTIONS if q.id == name)


def test_the_length_at_which_a_line_overtakes_another(read: Read) -> None:
    # naive: n^2; flash: 2^19 + n^2 / 2. They meet at n = 1024, all but exactly.
    naive = prefill("naive", lambda n: 1.0001e-8 * n * n)
    data = read([*naive, *prefill("flash", lambda n: 1e-8 * (2**19 + n * n / 2))])
    (panel,) = panels(question("prefill"), data)
    assert [line.name for line in panel.lines] == ["flash", "naive"]
    assert panel.given["tokens before"] == 0
    first, then = stretches(panel, question("prefill"))
    assert (first.names, first.first, first.last, first.since) == (("naive",), 256, 512, None)
    assert then.names == ("flash",)
    assert then.last == 2048
    assert then.since == pytest.approx(1024, rel=0.01)
    (found,) = [f for f in comparisons.find(data) if f.kind == "prefill"]
    assert found.title.startswith("Attention of a prompt: naive quickest up to 512 queries, flash from 1024 queries (")
    assert "(even near 10" in found.title
    assert "at 2048 queries naive takes 1.60 times as long as flash" in found.title
    assert found in findings.find(data)
    (figure,) = [f for f in comparisons.figures(data) if f.id == "prefill"]
    assert [name for _, name in figure.legend] == ["flash", "naive"]
    assert figure.panels[0].count("<a href") == 2 * len(LENGTHS)
    assert "1 crossings" in figure.panels[0]
    assert 'id="prefill"' in render(data)


def test_lines_that_differ_in_anything_else_are_not_compared(read: Read) -> None:
    data = read([
        *prefill("flash", lambda n: 1e-6 * n), *prefill("naive", lambda n: 2e-6 * n, past=512),
        *prefill("naive", lambda n: 2e-6 * n, causal=False),
    ])  # fmt: skip
    found = panels(question("prefill"), data)
    assert [len(p.lines) for p in found] == [1, 1, 1]
    assert comparisons.find(data) == []  # nobody to be quicker than
    (figure,) = comparisons.figures(data)
    assert len(figure.panels) == 3
    assert "heads 8" in figure.caption  # what all share stands once, what differs in the titles
    titles = " ".join(str(p) for p in figure.panels)
    assert "tokens before 512" in titles
    assert "not causal" in titles
    assert "heads 8" not in titles


def test_equal_lines_are_called_equal(read: Read) -> None:
    data = read([*prefill("flash", lambda n: 1e-6 * n), *prefill("naive", lambda n: 1.0001e-6 * n)], noise=0.01)
    (found,) = comparisons.find(data)
    assert "flash and naive equally" in found.title or "naive and flash equally" in found.title


def test_disturbed_records_carry_no_verdict_but_are_drawn(read: Read) -> None:
    data = read(
        [*prefill("flash", lambda n: 1e-6 * n), *prefill("naive", lambda n: 2e-6 * n)], flags=("foreign_process",)
    )
    (found,) = comparisons.find(data)
    assert found.quiet
    assert "cannot be told" in found.title
    assert len(comparisons.figures(data)[0].panels) == 1


def test_what_the_machine_cannot_run_stands_below_the_drawing(
    run_of: Callable[..., Path], make_record: Callable[..., Any], make_unmeasured: Callable[..., Any]
) -> None:
    records = [make_record(case, time_s=t) for case, t in prefill("flash", lambda n: 1e-6 * n)]
    case = Case("attention.prefill", "cudnn", {**PREFILL, "q_len": 256, "kv_len": 256})
    records.append(make_unmeasured(case, "unsupported", "no_cuda", "it needs an NVIDIA GPU; buy one"))
    (figure,) = comparisons.figures(ReportData.read(run_of(records)))
    assert figure.caption.endswith("Unsupported here: cudnn, because it needs an NVIDIA GPU.")


def test_a_single_length_gives_no_line(read: Read) -> None:
    data = read(prefill("flash", lambda n: 1e-6 * n)[:1])
    (figure,) = comparisons.figures(data)
    assert "fewer than two values" in figure.missing
    assert "attention.prefill over q_len" in figure.missing
    assert comparisons.find(data) == []


def test_softmax_stands_beside_the_copy_of_its_working_set(read: Read) -> None:
    def both(rows: int, cols: int) -> list[tuple[Case, float]]:
        size = {"rows": rows, "cols": cols, "dtype": "fp32"}
        seconds = 8e-10 * rows * cols
        return [(Case("softmax.rows", "torch", size), 2 * seconds), (Case("elementwise.copy", "torch", size), seconds)]

    data = read([*both(1024, 64), *both(64, 1024), *both(64, 2048)])
    (panel,) = panels(question("softmax"), data)  # the third pair moves other bytes
    assert [(line.name, len(line.rows)) for line in panel.lines] == [("torch", 2), ("elementwise.copy torch", 2)]
    assert comparisons.find(data) == [], "nobody to be quicker than"
    slower = Case("softmax.rows", "online", {"rows": 1024, "cols": 64, "dtype": "fp32"})
    data = read([*both(1024, 64), *both(64, 1024), (slower, 4 * 8e-10 * 2**16)], name="two")
    (found,) = comparisons.find(data)
    assert found.title == (
        "Softmax: torch quickest throughout; at 64 elements online takes 2.0 times as long as torch; torch reaches "
        "50 % of the bandwidth of elementwise.copy."
    )
    assert found.items == ("all: torch quickest throughout (of elementwise.copy: online 25 %, torch 50 %)",)


def test_a_balanced_routing_is_the_start_of_the_skewed_ones(read: Read) -> None:
    layer = {
        "tokens": 64, "hidden": 64, "intermediate": 128, "experts": 8, "top_k": 2, "dtype": "fp32", "gated": True,
        "ep": 1, "tp": 1, "routing_seed": 0,
    }  # fmt: skip
    cases = [
        (Case("gemm.moe", impl, {**layer, "routing": routing, "skew": skew}), (1 + slope * skew) * 1e-3)
        for impl, slope in (("padded", 2.0), ("grouped", 0.1))
        for routing, skew in (("balanced", 0.0), ("power_law", 0.8), ("power_law", 1.6), ("uniform", 0.0))
    ]
    data = read(cases)
    (panel,) = panels(question("moe_skew"), data)
    assert [line.rows["skew"].tolist() for line in panel.lines] == [[0.0, 0.8, 1.6]] * 2
    found = next(f for f in comparisons.find(data) if f.kind == "moe_skew")
    assert "at skew 1.6 padded takes 3.6 times as long as grouped" in found.title


COPY = {"bytes": 4096, "chunk": 0, "streams": 1, "memory": "pinned", "node": -1}
SIZES = (4096, 2**16, 2**20, 2**24, 2**28)


def copies(op: str, **ways: tuple[float, float]) -> list[tuple[Case, float]]:
    """``ways``: latency in seconds and bytes per second of each kind of memory."""
    return [
        (Case(op, "torch", {**COPY, "bytes": size, "memory": kind}, "hot"), latency + size / rate)
        for kind, (latency, rate) in ways.items() for size in SIZES
    ]  # fmt: skip


def test_kinds_of_memory_along_the_size_of_a_copy(read: Read) -> None:
    # Zero-copy starts sooner, pinned goes twice as fast: they meet at 3 us x 2 x 25 GB/s = 150 kB.
    ways = {"pinned": (8e-6, 5e10), "zero_copy": (5e-6, 2.5e10), "pageable": (2e-5, 1e10)}
    data = read(copies("offload.h2d", **ways))
    (panel,) = panels(question("h2d"), data)
    assert [line.name for line in panel.lines] == ["pageable", "pinned", "zero_copy"]
    found = next(f for f in comparisons.find(data) if f.kind == "h2d")
    assert found.title.startswith("Copies to the device: zero_copy quickest up to 64 KiB, pinned from 1 MiB (even near")
    assert found.title.endswith("at 256 MiB pageable takes 5.0 times as long as pinned.")
    assert "(even near 14" in found.title
    assert "pinned 99 times" in found.items[0], "4 KiB in 8.08 us, 507 MB/s, against 49.9 GB/s"
    (figure,) = [f for f in comparisons.figures(data) if f.id == "h2d"]
    assert figure.panels[0].count("<a href") == 15
    assert "4 KiB" in figure.panels[0]
    assert "hot" in figure.caption
    assert "node" not in figure.caption


def test_both_ways_and_within_the_device_count_twice(read: Read) -> None:
    within = [(Case("offload.d2d", "torch", {"bytes": n, "chunk": 0, "streams": 1}, "hot"), n / 1e12) for n in SIZES]
    data = read([*copies("offload.bidirectional", pinned=(0.0, 4e10)), *within])
    for name, rate in (("bidirectional", 8e10), ("d2d", 2e12)):
        asked = question(name)
        (panel,) = panels(asked, data)
        assert asked.quantity.of(panel.lines[0].rows).tolist() == pytest.approx([rate] * len(SIZES), rel=1e-3)


def test_pieces_of_a_copy_by_streams(read: Read) -> None:
    times = {(2**16, 1): 0.03, (2**20, 1): 0.01, (2**16, 4): 0.012, (2**20, 4): 0.0101, (0, 1): 0.006}
    cases = [
        (Case("offload.h2d", "torch", {**COPY, "bytes": 2**28, "chunk": chunk, "streams": n}, "hot"), time_s)
        for (chunk, n), time_s in times.items()
    ]  # fmt: skip
    (panel,) = panels(question("copy_chunks"), read(cases))
    assert [(line.name, line.rows["chunk"].tolist()) for line in panel.lines] == [
        ("pinned, 1 stream", [2**16, 2**20, 2**28]), ("pinned, 4 streams", [2**16, 2**20]),
    ]  # fmt: skip


def test_blocks_of_a_cache_one_by_one_and_packed(read: Read) -> None:
    # A block costs 20 us and its bytes at 25 GB/s; packed, all of them cost 1 ms and their bytes at 12.5 GB/s.
    def swapped(impl: str, size: int, time_s: float, direction: str = "out") -> tuple[Case, float]:
        params = {"blocks": 256, "block_bytes": size, "pool": 512, "direction": direction}
        return Case("offload.swap", impl, params, "hot"), time_s

    sizes = (2**12, 2**16, 2**20)
    one = {size: 256 * (2e-5 + size / 2.5e10) for size in sizes}
    packed = {size: 1e-3 + 256 * size / 1.25e10 for size in sizes}
    data = read([
        *(swapped("block", size, one[size]) for size in sizes),
        *(swapped("coalesced", size, packed[size]) for size in sizes),
        *(swapped("block", size, 2 * one[size], "in") for size in sizes),
    ])  # fmt: skip
    asked = question("swap")
    out, back = sorted(panels(asked, data), key=lambda panel: panel.given["direction"], reverse=True)
    assert (out.given["direction"], back.given["direction"]) == ("out", "in")
    speeds = asked.quantity.of(out.lines[0].rows).tolist()
    assert speeds == pytest.approx([256 * size / one[size] for size in sizes], rel=1e-3)
    found = next(f for f in comparisons.find(data) if f.kind == "swap")
    # Even where 20 us + n / 25 GB/s = 1 ms / 256 + n / 12.5 GB/s: n = 402 kB, by lines between the sizes measured 474
    # KiB. At 1 MiB: 22.5 ms against 15.9 ms.
    assert found.title.startswith("Blocks of a cache: coalesced quickest up to 64 KiB, block from 1 MiB (even near ")
    assert found.title.endswith("at 1 MiB coalesced takes 1.42 times as long as block.")
    (figure,) = [f for f in comparisons.figures(data) if f.id == "swap"]
    assert len(figure.panels) == 2
    assert figure.panels[0].count("<a href") == 6


def test_stream_counts_every_pass(read: Read) -> None:
    def loop(impl: str, size: int, rate: float, threads: int = 0) -> tuple[Case, float]:
        params = {"kernel": "triad", "bytes": size, "dtype": "fp64", "threads": threads, "node": -1, "cpu_node": -1}
        traffic = float(work_of("host.stream", params).details["traffic_bytes"])
        return Case("host.stream", impl, params, "hot"), traffic / rate

    set_ = 192 * 2**20
    data = read([
        loop("numba", 3 * 2**16, 1e11), loop("numba", set_, 2e10), loop("torch", set_, 1e10),
        loop("numba", set_, 1.5e10, 1), loop("numba", set_, 2e10, 2),
    ])  # fmt: skip
    asked = question("stream")
    (panel,) = panels(asked, data)
    assert asked.quantity.of(panel.lines[0].rows).tolist() == pytest.approx([1e11, 2e10], rel=1e-3)
    found = next(f for f in comparisons.find(data) if f.kind == "stream")
    assert "at 192 MiB torch takes 2.0 times as long as numba" in found.title
    (panel,) = panels(question("stream_threads"), data)
    assert [line.rows["threads"].tolist() for line in panel.lines] == [[1, 2]], "0 is no number of threads"


def test_launches_count_one_by_one(read: Read) -> None:
    def launched(mode: str, count: int, each: float) -> tuple[Case, float]:
        params = {"mode": mode, "launches": count, "arguments": 1}
        return Case("launch.overhead", "torch", params, "eager"), count * each

    data = read([
        launched("graph", 10, 4e-6), launched("graph", 1000, 1e-6), launched("async", 1000, 3e-6),
        launched("sync", 1000, 9e-6),
    ])  # fmt: skip
    found = next(f for f in comparisons.find(data) if f.kind == "launch_row")
    assert found.title == (
        "Launches in a row: torch, graph quickest throughout; at 1000 launches torch, sync takes 9.0 times as long as "
        "torch, graph."
    )
    (panel,) = panels(question("launch_row"), data)
    asked = question("launch_row")
    assert asked.quantity.of(panel.lines[1].rows).tolist() == pytest.approx([4e-6, 1e-6], rel=1e-3)


def test_what_runs_in_part_is_not_called_unsupported(
    run_of: Callable[..., Path], make_record: Callable[..., Any], make_unmeasured: Callable[..., Any]
) -> None:
    calls = [
        Case("launch.overhead", "torch", {"mode": "sync", "launches": 1000, "arguments": n}, "eager") for n in (0, 4)
    ]
    graph = Case("launch.overhead", "torch", {"mode": "graph", "launches": 1000, "arguments": 0}, "eager")
    records = [make_record(case, time_s=1e-3) for case in calls]
    records.append(make_unmeasured(graph, "unsupported", "no_graphs", "graphs are captured on CUDA only"))
    figures = comparisons.figures(ReportData.read(run_of(records)))
    assert figures[0].caption.endswith("Unsupported here: torch in part, because graphs are captured on CUDA only.")


@pytest.mark.parametrize("q", QUESTIONS, ids=lambda q: q.id)
def test_every_question_is_about_an_operation_that_exists_and_its_parameters(q: Question) -> None:
    from wattline.suites.registry import get

    params = set(get(q.op).workload.params)
    assert q.axis in params
    assert {*q.moving} <= params
    for op in q.beside:
        assert q.axis in set(get(op).workload.params)
    assert q.caption.endswith(".")


def test_questions_have_anchors_of_their_own() -> None:
    assert len({q.id for q in QUESTIONS}) == len(QUESTIONS)


def test_a_run_without_products_does_not_miss_their_figures(read: Read) -> None:
    from wattline.reports.figures_speed import products

    data = read(prefill("flash", lambda n: 1e-6 * n))
    assert products(data) == []
    page = render(data)
    assert 'id="heat"' not in page
    assert 'id="prefill"' in page


def test_many_operations_are_counted_by_kind(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> None:
    from wattline.reports import context

    size = {"rows": 8, "cols": 8, "dtype": "fp32"}
    ops = [f"elementwise.{name}" for name in ("add", "sub", "mul", "exp", "abs", "neg")]
    few = ReportData.read(run_of([make_record(Case(op, "torch", size), time_s=1e-6) for op in ops], "few"))
    assert "elementwise.abs, elementwise.add" in context.lead(few)
    many = [*ops, "softmax.rows"]
    data = ReportData.read(run_of([make_record(Case(op, "torch", size), time_s=1e-6) for op in many], "many"))
    assert "7 operations (elementwise 6, softmax 1)" in context.lead(data)
    assert ("operations", "7 operations (elementwise 6, softmax 1)") in context.what_ran(data)
