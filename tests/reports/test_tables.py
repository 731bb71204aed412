"""The table of records: what its columns say, what a row unfolds to, and that its data cannot break out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.reports.data import ReportData
from wattline.reports.tables import build, embed, repeat_command


def test_conditions_that_all_share_are_told_once(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    records = [make_record(make_case(n, 64, 64)) for n in (64, 128)]
    table = build(ReportData.read(run_of(records)))
    assert ("dtype", "fp32") in table.common
    assert ("n", "64") in table.common
    assert [c.name for c in table.columns if c.name.startswith("p.")] == ["p.m"]
    assert "dtype" not in [c.name for c in table.columns]


def test_cells_are_in_units_that_people_read(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    record = make_record(make_case(1000, 1000, 1000), time_s=0.025, noise=1e-7)
    other = make_record(make_case(1000, 1000, 1000, "int8"), time_s=0.025, noise=1e-7)
    table = build(ReportData.read(run_of([record, other])))
    cells = dict(zip((c.name for c in table.columns), table.rows[0].cells, strict=True))
    assert cells["time_s"] == "25.0 ms"
    assert cells["flops_per_s"] == "80.0 GFLOP/s"
    assert cells["share"] == "42 %"  # of the 190 GFLOP/s that the device was measured at
    assert dict(zip((c.name for c in table.columns), table.rows[1].cells, strict=True))["flops_per_s"] == "80.0 GOP/s"


def test_rows_stand_in_the_order_of_the_run(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    records = [make_record(make_case(n, n, n), sequence=s) for n, s in ((64, 2), (128, 0), (256, 1))]
    data = ReportData.read(run_of(records))
    assert [row.number for row in build(data).rows] == [1, 2, 3]
    assert data.frame["m"].tolist() == [128, 256, 64]
    assert data.plain_frame["m"].sort_index().tolist() == [64, 128, 256], "indexed as the run folder is"


def test_repeated_cases_have_their_own_anchors(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    case = make_case(64, 64, 64)
    records = [make_record(case, variant=v) for v in ("a", "b")]
    assert ReportData.read(run_of(records)).anchors == [f"r-{case.key}-a", f"r-{case.key}-b"]


def test_the_command_names_every_parameter(make_case: Callable[..., Any], make_record: Callable[..., Any]) -> None:
    case = replace(make_case(512, 256, 128, "bf16", "hot", layout="nt"), data="zeros")
    words = shlex.split(repeat_command(make_record(case), seed=7, device="cuda:1"))
    assert words[:3] == ["wattline", "bench", "gemm.dense"]
    pairs = dict(zip(words[3::2], words[4::2], strict=True))
    assert (pairs["--impl"], pairs["--regime"], pairs["--data"], pairs["--dtype"]) == ("torch", "hot", "zeros", "bf16")
    assert (pairs["--seed"], pairs["--device"]) == ("7", "cuda:1")
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert sorted(sets) == ["acc=default", "batch=1", "k=128", "layout=nt", "m=512", "n=256", "out_dtype=same"]


def test_the_command_is_quoted_for_a_shell(make_case: Callable[..., Any], make_record: Callable[..., Any]) -> None:
    case = make_case(8, 8, 8, layout="nn; rm -rf $HOME")
    command = repeat_command(make_record(case))
    assert "'layout=nn; rm -rf $HOME'" in command


def test_the_command_is_one_that_the_command_line_takes(
    make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    pytest.importorskip("wattline.suites.plan")
    from wattline.suites.plan import make_plan

    words = shlex.split(repeat_command(make_record(make_case(96, 64, 32, "fp32", "hot"))))
    sets = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--set")
    plan = make_plan(
        "standard", names=["gemm.dense"], impls=["torch"], regimes=["hot"], fills=[], dtypes=["fp32"], set_=sets,
        only=[], budget_s=None, aa=None, seed=0, max_cases=None, measure={}, machine=_machine(),
    )  # fmt: skip
    keys = {p.case.key for p in plan.cases}
    assert keys == {make_case(96, 64, 32, "fp32", "hot").key}


def test_the_command_has_the_caps(make_case: Callable[..., Any], make_record: Callable[..., Any]) -> None:
    from wattline.collectors.energy.caps import Cap, parse_caps

    case = replace(make_case(96, 64, 32, "fp32", "hot"), power_limit_w=512.5, clock_hz=1.41e9)
    words = shlex.split(repeat_command(make_record(case)))
    limits, clocks = (words[words.index(flag) + 1] for flag in ("--power-limits", "--clocks"))
    assert parse_caps(limits, clocks) == (Cap(512.5, 1.41e9),)


def _machine() -> Any:
    from wattline.suites.machine import machine_facts

    return machine_facts("cpu")


@given(st.text())
def test_embedded_data_cannot_leave_its_element(text: str) -> None:
    shown = str(embed({"x": text}))
    assert json.loads(shown) == {"x": text}
    assert not set(shown) & set("<>&\u2028\u2029")
