"""Pipelines and split optimizers: what overlap hides and which split is best, as it was put into the records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.record import Record
from wattline.reports import figures_offload, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render
from wattline.workmodels.offload import best_split, split_step_s

KI, MI = 1024, 1024**2
PASS = {
    "path": "default", "source": "storage", "to": "host", "layers": 8, "bytes": 4 * MI, "chunk": 0, "depth": 1,
    "compute_s": 0.004,
}  # fmt: skip
WHOLE = {"cpu_s": 0.12, "link_s": 0.04, "device_s": 0.04}


@pytest.fixture
def passed(with_facts: Callable[..., Record]) -> Callable[..., Record]:
    """A pass between 100 ms without overlap and 60 ms at perfect overlap."""

    def make(time_s: float, flags: tuple[str, ...] = (), **params: Any) -> Record:
        facts = {"no_overlap_s": 0.1, "perfect_overlap_s": 0.06, "overlap_efficiency": (0.1 - time_s) / 0.04}
        return with_facts("offload.pipeline", "host", time_s, {**PASS, **params}, facts, flags=flags)

    return make


@pytest.fixture
def stepped(with_facts: Callable[..., Record], listed_device: Any) -> Callable[..., Record]:
    """A step of Adam with a share on the CPU, a tenth slower than the model says."""

    def make(share: float, flags: tuple[str, ...] = ()) -> Record:
        predicted = float(split_step_s(share, **WHOLE))
        facts = {"cpu_alone_s": 0.12 * share, "link_alone_s": 0.04 * share, "device_alone_s": 0.04 * (1 - share)}
        if 0 < share < 1:
            best = best_split(**WHOLE)
            facts |= {
                "predicted_step_s": predicted, "predicted_error": 1 / 1.1 - 1, "best_share": best,
                "best_step_s": float(split_step_s(best, **WHOLE)),
            }  # fmt: skip
        params = {"parameters": 64 * MI, "cpu_share": share}
        return with_facts(
            "offload.optimizer", "split", 1.1 * predicted, params, facts, device=listed_device, flags=flags
        )

    return make


def test_how_much_a_pipeline_hides_by_depth_and_by_request(
    run_of: Callable[..., Path], passed: Callable[..., Record]
) -> None:
    data = ReportData.read(run_of([
        passed(0.1, depth=0), passed(0.07), passed(0.064, depth=4), passed(0.09, chunk=64 * KI),
        passed(0.104, chunk=16 * KI),
    ]))  # fmt: skip
    depth, chunk = figures_offload.figures(data)
    assert (depth.id, chunk.id) == ("pipeline_depth", "pipeline_chunk")
    assert depth.panels[0].count("<a href") == 3
    assert chunk.panels[0].count("<a href") == 3, "a chunk of 0 is a whole layer"
    assert "layers of 4 MiB, requests of 4 MiB, 4.00 ms of computation" in depth.caption
    found, *others = figures_offload.find(data)
    assert others == []
    assert found.title == (
        "Fetching ahead hides 90 % of what could be hidden at best: 64.0 ms a pass, beside 100 ms without overlap and "
        "60.0 ms at perfect overlap (host, depth 4, requests of 4 MiB)."
    )
    assert "host, depth 1, requests of 4 MiB: 75 %" in found.items
    assert "host, depth 1, requests of 16 KiB: none, 10 % slower than no overlap" in found.items
    assert len(found.items) == 5, "a pass in both figures counts once"
    assert found in findings.find(data)
    assert 'id="pipeline_depth"' in render(data)


def test_passes_under_other_conditions_stand_apart(run_of: Callable[..., Path], passed: Callable[..., Record]) -> None:
    data = ReportData.read(run_of([
        passed(time_s, depth=depth, compute_s=compute)
        for compute in (0.001, 0.016) for depth, time_s in ((0, 0.1), (2, 0.08 if compute < 0.01 else 0.07))
    ]))  # fmt: skip
    (figure,) = figures_offload.figures(data)
    assert len(figure.panels) == 2
    assert "1.00 ms of computation" in str(figure.panels[0])
    (found,) = figures_offload.find(data)
    assert "(16.0 ms of computation, host, depth 2, requests of 4 MiB)" in found.title


def test_where_nothing_can_be_hidden_nothing_is_claimed(
    run_of: Callable[..., Path], with_facts: Callable[..., Record]
) -> None:
    # Such a record holds no efficiency: both lines are the same but for noise.
    facts = {"no_overlap_s": 0.1, "perfect_overlap_s": 0.099}
    records = [with_facts("offload.pipeline", "host", 0.1, {**PASS, "depth": d}, facts) for d in (0, 1)]
    (found,) = figures_offload.find(ReportData.read(run_of(records)))
    assert found.quiet
    assert "nothing to hide" in found.title


def test_a_pipeline_that_only_loses(run_of: Callable[..., Path], passed: Callable[..., Record]) -> None:
    (found,) = figures_offload.find(ReportData.read(run_of([passed(0.11, depth=1), passed(0.12, depth=2)])))
    assert found.title == (
        "Fetching ahead hides nothing in any case of this run (at best: host, depth 1, requests of 4 MiB)."
    )


def test_the_split_beside_what_its_parts_let_expect(
    run_of: Callable[..., Path], stepped: Callable[..., Record], listed_device: Any
) -> None:
    # Both sides end together at s = D / (C + L + D) = 0.2, after 32 ms.
    data = ReportData.read(run_of([stepped(s) for s in (0.0, 0.1, 0.25, 0.5, 1.0)], device=listed_device))
    (figure,) = figures_offload.figures(data)
    assert figure.id == "optimizer_split"
    assert figure.panels[0].count("<a href") == 5
    (found,) = figures_offload.find(data)
    assert found.title == (
        "A step of Adam is quickest with 10 % of the parameters on the CPU (39.6 ms); the parts by themselves let "
        "expect 20 % (32.0 ms)."
    )
    assert len(found.items) == 3, "nothing is predicted where one side has no parameters"
    assert found.items[1].endswith("25 % on the CPU: 44.0 ms, predicted 40.0 ms (-9%)")
    assert found in findings.find(data), "an operation without a format does not stop the others"
    assert 'id="optimizer_split"' in render(data)


def test_disturbed_records_carry_no_verdict_but_are_drawn(
    run_of: Callable[..., Path], passed: Callable[..., Record], stepped: Callable[..., Record]
) -> None:
    noisy = ("noisy",)
    passes = [passed(0.1, noisy, depth=0), passed(0.07, noisy)]
    data = ReportData.read(run_of([*passes, *(stepped(share, noisy) for share in (0.1, 0.5))]))
    assert [len(figure.panels) for figure in figures_offload.figures(data)] == [1, 1]
    found = figures_offload.find(data)
    assert len(found) == 2
    assert all(f.quiet and "cannot be told" in f.title for f in found)


def test_what_page_locking_wastes(run_of: Callable[..., Path], with_facts: Callable[..., Record]) -> None:
    def locked(impl: str, size: int, got: int, **how: Any) -> Record:
        facts = {"asked_bytes": size, "got_bytes": got, "waste_share": 1 - size / got}
        return with_facts("offload.pinned_alloc", impl, 1e-3, {"bytes": size, "count": 1}, facts, "eager", **how)

    # 33 MiB rounded up to 64: 31 of 64 lie idle. Noise does not touch a count of bytes.
    exact = [locked("register", size, size) for size in (64 * KI, 33 * MI)]
    rounded = [locked("torch", 64 * KI, 64 * KI), locked("torch", 33 * MI, 64 * MI, flags=("noisy",))]
    data = ReportData.read(run_of([*exact, *rounded]))
    (found,) = figures_offload.find(data)
    assert found.title == "Of page-locked memory 48 % lies idle at worst (torch, register)."
    assert found.items[0] == "torch, 1 x 33 MiB: 64 MiB taken, 48 % idle"
    assert len(found.items) == 4
    assert not found.quiet
    assert f'id="{found.anchor}"' in render(data)
    (found,) = figures_offload.find(ReportData.read(run_of(exact, "exact")))
    assert found.title == "Page-locked buffers take no more memory than was asked for (register)."
    assert found.quiet


def test_a_split_that_cannot_run_says_why(run_of: Any, make_unmeasured: Any, passed: Callable[..., Record]) -> None:
    from wattline.case import Case

    case = Case("offload.optimizer", "split", {"parameters": 8 * MI, "cpu_share": 0.5}, "hot")
    data = ReportData.read(run_of([
        passed(0.1), make_unmeasured(case, "unsupported", "no_accelerator", "it needs an accelerator"),
    ]))  # fmt: skip
    pipeline, split = figures_offload.figures(data)
    assert "at two depths" in pipeline.missing
    assert split.missing.endswith("Unsupported here: split, because it needs an accelerator.")
    assert figures_offload.find(data) == []


def test_nothing_in_a_run_without_them(run_of: Any, make_record: Any, make_case: Any) -> None:
    data = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_offload.figures(data) == []
    assert figures_offload.find(data) == []
