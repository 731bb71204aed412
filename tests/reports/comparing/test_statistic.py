"""What of the samples is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.device import DeviceSpec
from wattline.errors import SchemaError, UnknownNameError, UsageError
from wattline.reports import compare_runs
from wattline.reports.comparing.to_json import to_json
from wattline.reports.comparing.to_markdown import to_markdown
from wattline.reports.comparing.to_text import to_text
from wattline.reports.comparing.words import statistic_sentence

Write = Callable[..., Path]
QUIET = (0.003, lambda i: 1.0)
"""A 5th percentile that repeats to 0.3 %, beside medians that repeat to 3 %."""


def slower(i: int) -> float:
    return 1.05 if i in (3, 20) else 1.0


def side(noisy: Write, name: str, seed: int, runs: int = 3, **how: Any) -> Path:
    for i in range(runs):
        path = noisy(f"{name}/{i}", seed + i, **how)
    return path.parent


def test_where_the_fast_end_repeats_better_it_is_compared(noisy: Write) -> None:
    a = side(noisy, "a", 1, scale=0.03, fast=QUIET)
    b = side(noisy, "b", 11, scale=0.03, fast=(0.003, slower))
    found = compare_runs(a, b)
    assert found.statistic == "p5"
    assert [r.time.ratio for r in found.of("slower") if r.time] == pytest.approx([1.05, 1.05], abs=0.02)
    assert found.aside is not None
    assert not compare_runs(a, b, statistic="median").of("slower"), "3 % of noise hide 5 % in three runs"


def test_where_both_repeat_alike_medians_are_compared(noisy: Write) -> None:
    found = compare_runs(side(noisy, "a", 1), side(noisy, "b", 11))
    assert found.statistic == "median"
    assert found.aside is not None


def test_what_the_median_alone_says_is_counted_and_listed(noisy: Write) -> None:
    """A slow mode that comes up more often moves the middle, not the fast end."""
    a = side(noisy, "a", 1, scale=0.012, fast=QUIET)
    # The fixture's fast end follows what a case takes: there the change is taken out again.
    b = side(
        noisy, "b", 11, scale=0.012, change=lambda i, _: 1.2 if i == 9 else 1.0,
        fast=(0.003, lambda i: 1 / 1.2 if i == 9 else 1.0),
    )  # fmt: skip
    found = compare_runs(a, b)
    assert found.statistic == "p5"
    assert not found.of("slower")
    assert "1 case differs by the median alone, which --statistic median lists" in statistic_sentence(found)
    assert len(compare_runs(a, b, statistic="median").of("slower")) == 1


def test_every_output_names_the_statistic(noisy: Write) -> None:
    a, b = (side(noisy, name, seed, scale=0.03, fast=QUIET) for name, seed in (("a", 1), ("b", 11)))
    found = compare_runs(a, b)
    said = "the 5th percentile of each measurement's samples"
    assert said in " ".join(to_text(found).split())
    assert said in to_markdown(found)
    data = json.loads(to_json(found))
    assert data["statistic"] == "p5"
    assert data["time_aside"]["told"] == 0
    assert data["time_aside"]["noise"]["scale"] > 3 * data["time"]["noise"]["scale"]


def test_between_machines_medians_are_compared_unless_asked_for_otherwise(
    noisy: Write, other_device: DeviceSpec
) -> None:
    a = side(noisy, "a", 1, scale=0.03, fast=QUIET)
    b = side(noisy, "b", 11, scale=0.03, fast=QUIET, device=other_device)
    assert compare_runs(a, b).statistic == "median"
    assert compare_runs(a, b).aside is None
    assert compare_runs(a, b, statistic="p5").statistic == "p5"


def test_records_without_a_5th_percentile(noisy: Write, edit_records: Callable[..., None]) -> None:
    a, b = noisy("a", 1), noisy("b", 2)
    edit_records(b, lambda entry: entry["measurement"]["stats"].pop("p5_s"))
    assert compare_runs(a, b).statistic == "median"
    with pytest.raises(UsageError, match="5th percentiles of 60 cases are not known"):
        compare_runs(a, b, statistic="p5")


def test_a_5th_percentile_above_the_median_is_a_damaged_record(
    noisy: Write, edit_records: Callable[..., None]
) -> None:
    a, b = noisy("a", 1), noisy("b", 2)
    edit_records(b, lambda entry: entry["measurement"]["stats"].update(p5_s=1.0))
    with pytest.raises(SchemaError, match="5th percentile"):
        compare_runs(a, b)


def test_an_unknown_statistic_is_refused(noisy: Write) -> None:
    run = noisy("a", 1)
    with pytest.raises(UnknownNameError, match="median"):
        compare_runs(run, run, statistic="mean")
