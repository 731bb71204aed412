"""Traces of a model: the verdict by tokens, and what fusing would save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.record import Record
from wattline.reports import figures_launch, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render

MODEL = {"layers": 4, "batch": 1, "tokens": 1, "hidden": 256, "dtype": "fp32"}
CHAIN = "norm + addmm: 4 times, proximity 1.00, saves 12 us"


@pytest.fixture
def traced(with_facts: Callable[..., Record]) -> Callable[..., Record]:
    def make(tokens: int, idle: float, verdict: str, flags: tuple[str, ...] = (), **params: Any) -> Record:
        facts = {
            "kernels": 40, "span_s": 1e-3 * tokens, "busy_s": 1e-3 * tokens * (1 - idle), "kernel_s": 1e-5,
            "tklqt_s": 2e-4, "queued_s": 0.0, "gaps_s": 1e-4, "idle_share": idle, "verdict": verdict,
            "fusion": [CHAIN], "traced_ratio": 1.4,
        }  # fmt: skip
        case = {**MODEL, "tokens": tokens, **params}
        return with_facts("launch.trace", "torch", 7e-4 * tokens, case, facts, "eager", flags=flags)

    return make


def test_the_verdict_by_tokens(run_of: Callable[..., Path], traced: Callable[..., Record]) -> None:
    data = ReportData.read(run_of([
        traced(1, 0.8, "host-bound"), traced(16, 0.6, "host-bound"), traced(256, 0.02, "device-bound"),
    ]))  # fmt: skip
    (figure,) = figures_launch.figures(data)
    assert figure.id == "launch_trace"
    assert figure.panels[0].count("<a href") == 9, "span, busy time and launching for each trace"
    assert "256 tokens device-bound" in figure.panels[0]
    found = figures_launch.finding(data)
    assert found is not None
    assert "is host-bound at 1 and 16 tokens; device-bound at 256 tokens." in found.title
    assert found.items[0] == f"1 token: host-bound, idle 80 % of 1.00 ms, 40 kernels of 10.0 us; {CHAIN}"
    assert found in findings.find(data)
    assert 'id="launch_trace"' in render(data)


def test_models_of_other_sizes_stand_apart(run_of: Callable[..., Path], traced: Callable[..., Record]) -> None:
    data = ReportData.read(run_of([
        traced(t, 0.3, "mixed", hidden=hidden) for hidden in (256, 512) for t in (1, 16)
    ]))  # fmt: skip
    (figure,) = figures_launch.figures(data)
    assert len(figure.panels) == 2
    found = figures_launch.finding(data)
    assert found is not None
    assert [item.split(",")[0] for item in found.items] == ["hidden 256", "hidden 256", "hidden 512", "hidden 512"]


def test_disturbed_records_carry_no_verdict_but_are_drawn(
    run_of: Callable[..., Path], traced: Callable[..., Record]
) -> None:
    data = ReportData.read(run_of([traced(t, 0.8, "host-bound", ("foreign_process",)) for t in (1, 16)]))
    assert len(figures_launch.figures(data)[0].panels) == 1
    found = figures_launch.finding(data)
    assert found is not None
    assert found.quiet


def test_a_single_trace_gives_no_line(run_of: Callable[..., Path], traced: Callable[..., Record]) -> None:
    data = ReportData.read(run_of([traced(16, 0.8, "host-bound")]))
    assert figures_launch.figures(data)[0].missing
    assert figures_launch.finding(data) is None


def test_nothing_in_a_run_without_them(run_of: Any, make_record: Any, make_case: Any) -> None:
    data = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_launch.figures(data) == []
    assert figures_launch.finding(data) is None
