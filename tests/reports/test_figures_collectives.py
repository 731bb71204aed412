"""Collectives in a report: fits, bandwidth, pairs, overlap, codes and who is slow, from times that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.record import Record
from wattline.reports import figures_collectives, findings
from wattline.reports.blocks import Figure
from wattline.reports.data import ReportData
from wattline.reports.figures_overlap import _saving
from wattline.reports.html import render

WORLD = {"world_size": 4, "groups": 1, "backend": "gloo"}
SIZES = [8 * 8**i for i in range(7)]
Made = Callable[..., Record]


@pytest.fixture
def made(make_record: Callable[..., Any]) -> Made:
    """A record of a collective with given time and facts."""

    def make(op: str, time_s: float, facts: Mapping[str, Any], impl: str = "torch", **params: Any) -> Record:
        case = Case(f"collectives.{op}", impl, {**WORLD, **params}, "hot")
        record: Record = make_record(case, time_s=time_s, noise=1e-6)
        assert record.measurement is not None
        return replace(record, measurement=replace(record.measurement, facts=dict(facts)))

    return make


def every(made: Made) -> list[Record]:
    """A run with everything: 10 us a round (4 ranks: 2 rounds) and 1 GB/s."""
    out = []
    for size in SIZES:
        time_s = 20e-6 + 1.5 * size / 1e9
        facts = {"actual_bytes": size, "busbw_bytes_per_s": 1.5 * size / time_s}
        out.append(made("all_reduce", time_s, facts, bytes=size, dtype="fp32", mode="sync"))
        sent = {"actual_bytes": size, "busbw_bytes_per_s": size / (20e-6 + size / 1e9)}
        out.append(made("send_recv", 20e-6 + size / 1e9, sent, bytes=size, dtype="fp32", mode="sync"))
    for impl, (small, large) in {"ring": (90e-6, 1e-3), "star": (30e-6, 4e-3)}.items():
        for size, time_s in ((1024, small), (1 << 20, large)):
            out.append(made("algorithm", time_s, {"actual_bytes": size}, impl, bytes=size, dtype="fp32", fan=2))
    matrix = [[None, 1e9, 1e9, 2e8], [1e9, None, 1e9, 1e9], [1e9, 1e9, None, 1e9], [1e9, 1e9, 1e9, None]]
    facts = {"actual_bytes": 4096, "matrix_bytes_per_s": matrix, "slow_pairs": [[0, 3]]}
    out.append(made("p2p_matrix", 1e-3, facts, bytes=4096, way="one", dtype="fp32"))
    facts = {
        "actual_bytes": 4096, "compute_s": 3e-3, "comm_s": 1e-3, "overlap_efficiency": 0.5, "compute_slowdown": 1.1,
        "comm_slowdown": 2.0, "compute_energy_j": 0.6, "comm_energy_j": 0.2, "both_energy_j": 0.7,
        "compute_energy_range_j": [0.57, 0.63], "comm_energy_range_j": [0.19, 0.21],
        "both_energy_range_j": [0.665, 0.735], "energy_saving": 0.125, "energy_saving_range": [0.1, 0.15],
        "energy_source": "rapl: energy_uj of package-0 (package)", "energy_scope": "package",
    }  # fmt: skip
    out.append(made("overlap", 3.5e-3, facts, collective="all_reduce", bytes=4096, m=64, n=64, k=64, dtype="fp32"))
    for impl, wire, rate in (("dense", 4096, None), ("int8", 1088, 2.5e9)):
        facts = {"wire_bytes": wire, "relative_error": 0.01, "pays_below_bytes_per_s": rate}
        out.append(made("compressed", 1e-3, facts, impl, bytes=4096, density=0.01, scalars=16))
    for inject, ranks in (("none", [[2, 30, 1.8]]), ("sleep", [[1, 17, 3.0]])):
        facts = {
            "slow_ranks": ranks, "slow_links": [], "iterations_watched": 100, "work_median_s": [1e-3] * 4,
            "link_median_s": [1e-4] * 4, "found_after": None if inject == "none" else 17,
        }  # fmt: skip
        more = {"bytes": 4096, "work": 64, "victim": 1, "factor": 3.0}
        out.append(made("stragglers", 5e-3, facts, inject=inject, **more))
    return out


def test_every_figure_tells_what_was_put_in(made: Made, run_of: Callable[..., Path]) -> None:
    data = ReportData.read(run_of(every(made)))
    found: dict[str, Figure] = {figure.id: figure for figure in figures_collectives.figures(data)}
    assert list(found) == ["collectives", "busbw", "algorithms", "pairs", "overlap", "codes", "stragglers"]
    fit = found["collectives"]
    assert "all_reduce gloo fp32: 10.0 us a round, 1 GB/s" in fit.caption
    assert "left out and predicted: sizes from 2.10 MB, from smaller ones: 0% off" in fit.caption
    assert fit.legend == [(0, "4 ranks")]
    assert fit.panels[0].count("<a href") == len(SIZES)
    assert found["busbw"].panels[0].count("<a href") == 2 * len(SIZES)
    told = found["algorithms"].caption
    assert "4 ranks. Quickest: star at 1.02 kB, ring at 1.05 MB." in told
    assert "The ring overtakes the star at about 21.9 kB (measured: 1.02 kB and 1.05 MB)." in told
    # A message takes 20 us and 1 GB/s pass: 4 / 4.5 L B bytes.
    assert "takes 20.0 us" in told
    assert "1 GB/s pass (fit of send_recv): by steps and bytes alone the star would win below 17.8 kB." in told
    assert "0 to 3 (one way, 4.10 kB)" in found["pairs"].caption
    assert found["pairs"].panels[0].count(">0.2</text>") == 1
    assert 'height="-' not in found["pairs"].panels[0]
    assert "50% of the shorter side hidden, product x 1.10, collective x 2.00" in found["overlap"].caption
    assert "at once 700 mJ [665 mJ, 735 mJ]: 12% [10%, 15%] less than one after the other" in found["overlap"].caption
    assert "rapl: energy_uj of package-0 (package); scope: package" in found["overlap"].caption
    assert len(found["overlap"].panels) == 2
    assert "int8 below 2.5 GB/s (error 0.01)" in found["codes"].caption
    assert "Nothing injected: rank 2 called slow in 100 iterations." in found["stragglers"].caption
    assert "Sleep: found after 17 iterations." in found["stragglers"].caption
    page = render(data)
    assert all(f'id="{name}"' in page for name in found)


def test_without_a_sensor_overlap_says_why_it_has_no_joules(made: Made, run_of: Callable[..., Path]) -> None:
    bare = [record for record in every(made) if record.case.op == "collectives.overlap"]
    assert bare[0].measurement is not None
    facts = {name: value for name, value in bare[0].measurement.facts.items() if "energy" not in name}
    record = replace(bare[0], measurement=replace(bare[0].measurement, facts=facts))
    reason = {"code": "rapl_forbidden", "message": "only root may read it"}
    data = ReportData.read(run_of([record], energy={"available": False, "reason": reason}))
    (figure,) = figures_collectives.figures(data)
    assert len(figure.panels) == 1
    assert figure.caption.endswith("No joules: only root may read it.")


def test_what_overlap_saves_is_told_only_where_it_can_be_told_apart() -> None:
    facts = {f"{name}_energy_j": 1.0 for name in ("compute", "comm", "both")}
    ranges: dict[str, Any] = {f"{name}_energy_range_j": [0.9, 1.1] for name in ("compute", "comm", "both")}
    worse = _saving({**facts, **ranges, "energy_saving": -0.1, "energy_saving_range": [-0.2, -0.05]})
    assert worse.endswith("10% [5%, 20%] more than one after the other")
    unsure = _saving({**facts, **ranges, "energy_saving": 0.02, "energy_saving_range": [-0.03, 0.07]})
    assert unsure.endswith("not told apart from one after the other (-3% to +7% saved)")


def test_a_rank_that_is_slow_by_itself_is_a_finding(made: Made, run_of: Callable[..., Path]) -> None:
    data = ReportData.read(run_of(every(made)))
    told = [each for each in findings.find(data) if each.kind == "stragglers"]
    assert [each.items for each in told] == [("rank 2, 1.8 times the others' work",)]
    fast = [record for record in every(made) if record.case.params.get("inject") != "none"]
    assert figures_collectives.finding(ReportData.read(run_of(fast, "fast"))) is None


def test_a_run_of_one_device_has_none_of_them(
    run_of: Callable[..., Path], make_record: Callable[..., Any], make_case: Callable[..., Any]
) -> None:
    data = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_collectives.figures(data) == []
    assert figures_collectives.finding(data) is None


def test_few_sizes_and_single_ranks_are_not_drawn(made: Made, run_of: Callable[..., Path]) -> None:
    few = [record for record in every(made) if record.case.params.get("bytes") == SIZES[0]]
    few.append(made("all_gather", 1e-3, {"actual_bytes": 8}, bytes=8, dtype="fp32", mode="sync", world_size=1))
    assert figures_collectives.figures(ReportData.read(run_of(few))) == []
