"""Reading a run for a report: what cannot be read is told, what is asked for often is made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.reports.chapters import CHAPTERS, chapters
from wattline.reports.data import ReportData
from wattline.reports.evaluated import MOST_ROWS, _some
from wattline.reports.findings import Finding, in_turn


def test_records_of_other_versions_are_told_and_the_rest_is_read(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    run = run_of([make_record(make_case(n, n, n)) for n in (64, 128, 256)])
    lines = (run / "records.jsonl").read_text(encoding="utf-8").splitlines()
    newer = json.dumps({**json.loads(lines[1]), "schema": 999})
    (run / "records.jsonl").write_text("\n".join([lines[0], newer, "{damaged", lines[2]]) + "\n", encoding="utf-8")
    data = ReportData.read(run)
    assert [r.case.params["m"] for r in data.records] == [64, 256]
    assert len(data.problems) == 2
    assert "line 2 cannot be read and was left out" in data.problems[0]
    assert "999" in data.problems[0]
    assert "line 3 cannot be read and was left out" in data.problems[1]


def test_rows_of_an_operation_have_the_columns_of_a_run_of_nothing_else(
    run_of: Callable[..., Path], with_facts: Callable[..., Any], make_case: Callable[..., Any],
    make_record: Callable[..., Any],
) -> None:  # fmt: skip
    params = {"kernel": "triad", "bytes": 4096, "threads": 1, "dtype": "fp64"}
    here = with_facts("host.stream", "numba", 1e-3, params, {"speed": 3.0})
    other = make_record(make_case(64, 64, 64))
    both = ReportData.read(run_of([here, other], name="both")).usable_of(["host.stream"])
    alone = ReportData.read(run_of([here], name="alone")).usable
    assert set(both.columns) == set(alone.columns)
    assert both["fact.speed"].tolist() == [3.0]
    assert len(both) == 1


def test_the_same_question_is_answered_once(big_run: Path) -> None:
    data, asked = ReportData.read(big_run), []
    assert [data.once("key", lambda: asked.append(1) or 7) for _ in range(3)] == [7, 7, 7]
    assert asked == [1]


def test_every_operation_has_its_chapter(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_unmeasured: Callable[..., Any]
) -> None:
    kinds = [kind for chapter in CHAPTERS for kind in chapter.kinds]
    assert len(kinds) == len(set(kinds))
    record = make_unmeasured(make_case(64, 64, 64), "skipped", "too_slow", "by far")
    data = ReportData.read(run_of([replace(record, case=replace(record.case, op="strange.op"))]))
    assert chapters(data)[-1].kinds == ("strange",)
    assert chapters(data)[-1].records(data) == 1


def test_findings_take_turns() -> None:
    a, b, c = (Finding(kind, kind, "") for kind in "abc")
    assert [f.kind for f in in_turn([[a, b], [], [c]])] == ["a", "c", "b"]


@pytest.mark.parametrize("size", [1, 7, 400])
def test_a_large_run_is_judged_on_whole_groups(size: int) -> None:
    groups = pd.Series(np.repeat(np.arange(3 * MOST_ROWS // size), size))
    kept = _some(groups)
    assert MOST_ROWS - size < kept.sum() <= MOST_ROWS
    assert all(kept[groups == g].all() for g in set(groups[kept]))
