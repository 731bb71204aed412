"""Bandwidth of decoding in a report: lines, ceilings, and the sentence that is drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.reports import figures_decode, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render
from wattline.workmodels import work_of

OP = "attention.decode"
CACHE = {
    "batch": 1, "heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "fp32", "kv_dtype": "same", "window": 0,
    "page_size": 0, "lengths": "equal", "length_seed": 0, "splits": 0,
}  # fmt: skip
LENGTHS = (1024, 4096, 16384)
GB = 1e9
Read = Callable[..., ReportData]


@pytest.fixture
def read(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> Read:
    def made(speeds: dict[str, tuple[float, ...]], how: dict[str, Any] | None = None, name: str = "run", *,
             run: dict[str, Any] | None = None, **more: Any) -> ReportData:  # fmt: skip
        """``speeds``: bytes per second of an implementation (``numba/16``: over pages of 16) at each length."""
        records = []
        for key, values in speeds.items():
            impl, _, page = key.partition("/")
            for length, speed in zip(LENGTHS, values, strict=False):
                params = {**CACHE, "kv_len": length, "page_size": int(page or 0), **more}
                time_s = work_of(OP, params).bytes_at() / speed
                case = Case(OP, impl, params, (how or {}).get("regime", "cold"))
                other = {k: v for k, v in (how or {}).items() if k != "regime"}
                records.append(make_record(case, time_s=time_s, **{"noise": 1e-6, **other}))
        return ReportData.read(run_of(records, name, **(run or {})))

    return made


def test_the_best_bandwidth_beside_that_of_memory(read: Read) -> None:
    # The measured memory bandwidth of the device is 24 GB/s.
    data = read({"sdpa": (2 * GB, 5 * GB, 6 * GB), "numba": (6 * GB, 11 * GB, 12 * GB), "numba/16": (6 * GB, 9 * GB)})
    found = figures_decode.finding(data)
    assert found is not None
    assert found.kind == "decode"
    assert found.title == (
        "Decoding reads its cache at 12.0 GB/s at best, 50 % of the measured memory bandwidth (numba, 16384 tokens)."
    )
    assert found.items == (
        "numba, batch 1: 12.0 GB/s, from 4096 tokens on",
        "numba, pages of 16, batch 1: 9.00 GB/s, still rising at the longest context",
        "sdpa, batch 1: 6.00 GB/s, from 4096 tokens on",
    )
    assert found in findings.find(data)
    (figure,) = figures_decode.figures(data)
    assert [name for _, name in figure.legend] == ["numba", "numba, pages of 16", "sdpa"]
    assert figure.lines == [("solid", "measured memory bandwidth")]
    assert len(figure.panels) == 1
    assert figure.panels[0].count("<a href") == 3 + 3 + 2
    assert 'id="decode"' in render(data)


def test_each_batch_has_a_drawing_of_its_own(read: Read, run_of: Any) -> None:
    one, many = read({"sdpa": (GB, 2 * GB)}, name="one"), read({"sdpa": (5 * GB, 6 * GB)}, name="many", batch=8)
    data = ReportData.read(run_of([*one.records, *many.records], "both"))
    (figure,) = figures_decode.figures(data)
    one_drawing, many_drawing = figure.panels
    assert "batch 1: 1 line, the best 2.00 GB/s" in one_drawing
    assert "batch 8: 1 line, the best 6.00 GB/s" in many_drawing
    found = figures_decode.finding(data)
    assert found is not None
    assert "(sdpa, 8 sequences of 4096 tokens)" in found.title


def test_a_datasheet_is_a_ceiling_as_well(read: Read, listed_device: DeviceSpec) -> None:
    data = read({"sdpa": (GB, 2 * GB)}, run={"device": listed_device})
    measured, sheet = figures_decode.ceilings(data)
    assert (measured.source, measured.bytes_per_s) == ("measured", 4.2e12)
    assert (sheet.source, sheet.bytes_per_s) == ("datasheet", listed_device.memory_bandwidth)
    (figure,) = figures_decode.figures(data)
    assert [style for style, _ in figure.lines] == ["solid", "dashed"]


def test_without_a_device_no_share_is_claimed(read: Read) -> None:
    data = read({"sdpa": (GB, 2 * GB)}, run={"drop": ("device",)})
    found = figures_decode.finding(data)
    assert found is not None
    assert "%" not in found.title
    (figure,) = figures_decode.figures(data)
    assert not figure.lines
    assert "not known" in figure.caption


def test_calls_over_a_warm_cache_are_no_headline_beside_cold_ones(read: Read, run_of: Any) -> None:
    cold = read({"sdpa": (GB, 2 * GB)}, name="cold")
    hot = read({"sdpa": (90 * GB, 99 * GB)}, {"regime": "hot"}, name="hot")
    found = figures_decode.finding(ReportData.read(run_of([*cold.records, *hot.records], "both")))
    assert found is not None
    assert "2.00 GB/s" in found.title


def test_a_line_that_falls_again_is_long_enough_only_where_it_stays_so(read: Read) -> None:
    data = read({"sdpa": (8 * GB, 4 * GB, 7 * GB), "numba": (8 * GB, 8 * GB, 3 * GB)})
    panel = figures_decode.panels(figures_decode.QUESTION, data)[0]
    assert [figures_decode.long_enough(line) for line in panel.lines] == [None, 16384.0]


@pytest.mark.parametrize("disturbed", [{"noise": 2.0}, {"flags": ("foreign_process",)}])
def test_disturbed_records_carry_no_verdict(read: Read, disturbed: dict[str, Any]) -> None:
    found = figures_decode.finding(read({"sdpa": (GB, 2 * GB)}, disturbed))
    assert found is not None
    assert found.quiet
    assert "cannot be told" in found.title


def test_what_cannot_run_here_is_named(read: Read, run_of: Any, make_unmeasured: Any) -> None:
    lacking = make_unmeasured(Case(OP, "flashinfer", {**CACHE, "kv_len": 64}), "unsupported", "x", "it is not there")
    data = ReportData.read(run_of([*read({"sdpa": (GB, 2 * GB)}).records, lacking], "both"))
    (figure,) = figures_decode.figures(data)
    assert figure.caption.endswith("Unsupported here: flashinfer, because it is not there.")


def test_single_lengths_and_other_runs(read: Read, run_of: Any, make_record: Any, make_case: Any) -> None:
    single = read({"sdpa": (GB,)})
    assert figures_decode.finding(single) is None
    assert figures_decode.figures(single)[0].missing
    none = ReportData.read(run_of([make_record(make_case(64, 64, 64))], "none"))
    assert figures_decode.figures(none) == []
    assert figures_decode.finding(none) is None
