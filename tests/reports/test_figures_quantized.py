"""Quantised products in a report: the batch up to which they pay, found where it was put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.reports import figures_quantized, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render

SHAPE = {"n": 1024, "k": 1024, "dtype": "bf16", "group": 0, "bits": 0, "abits": 0}
BATCHES = (1, 4, 16, 64, 256)
W4 = {"scheme": "w4a16", "group": 128}
W8 = {"scheme": "w8a8"}


def dense_s(m: int) -> float:
    return 1e-3 * m**0.5


Line = tuple[str, dict[str, Any], Callable[[int], float]]


@pytest.fixture
def run_with(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> Callable[..., ReportData]:
    """A run of lines over m: implementation, scheme and seconds at each m."""

    def read(*lines: Line, record: dict[str, Any] | None = None, name: str = "run", **more: Any) -> ReportData:
        how = {"noise": 1e-6, **(record or {})}
        cases = [
            (Case("gemm.quantized", impl, {**SHAPE, **scheme, **more, "m": m}), time_s(m))
            for impl, scheme, time_s in lines
            for m in BATCHES
        ]
        return ReportData.read(run_of([make_record(case, time_s=t, **how) for case, t in cases], name))

    return read


DENSE: Line = ("dense", W4, dense_s)
# Four times quicker than dense at m = 1, and slower in proportion to sqrt(m): as quick at m = 16.
FOUR: Line = ("torch", W4, lambda m: dense_s(m) / 4 * m**0.5)
EIGHT: Line = ("torch", W8, lambda m: dense_s(m) / 2)
# Of no use at any m, and never the quickest.
SLOW: Line = ("triton", W4, lambda m: 10 * dense_s(m))
UNPACK4: Line = ("dequantize", W4, lambda m: dense_s(m) + 3e-3)
COMPILED4: Line = ("dequantize_compiled", W4, lambda m: dense_s(m) + 1e-3)


def test_the_batch_up_to_which_quantised_weights_pay(run_with: Callable[..., ReportData]) -> None:
    data = run_with(DENSE, FOUR, EIGHT, SLOW, UNPACK4)
    found = figures_quantized.finding(data)
    assert found is not None
    assert found.kind == "quantized_batch"
    assert found.title == "4-bit weights beat dense ones up to m = 16; 8-bit ones pay at every m measured."
    # Against dequantising: m / 4 meets sqrt(m) + 3 between the points 16 (4 against 7) and 64 (16 against 11).
    by_name = {item.partition(":")[0]: item.partition(": ")[2] for item in found.items}
    assert len(found.items) == 3
    assert by_name["w8a8, n = 1024, k = 1024, bf16, cold"] == "quicker than dense at every m between 1 and 256"
    against = [item.rpartition(": ")[2] for item in found.items if item.startswith("w4a16 group 128")]
    assert against == [
        "quicker than dense up to m = 16 (beyond doubt at 4 and 64)",
        "quicker than dequantising up to m = 37 (beyond doubt at 16 and 64)",
    ]
    assert found in findings.find(data)


def test_the_figure_has_a_panel_for_each_baseline(run_with: Callable[..., ReportData]) -> None:
    data = run_with(DENSE, FOUR, EIGHT, SLOW, UNPACK4)
    (figure,) = figures_quantized.figures(data)
    assert [name for _, name in figure.legend] == ["torch w4a16 group 128", "triton w4a16 group 128", "torch w8a8"]
    against_dense, against_unpacked = figure.panels
    assert "3 kernels, 1 of them meet it" in against_dense
    assert against_dense.count("<a href") == 3 * len(BATCHES)
    assert "2 kernels, 1 of them meet it" in against_unpacked
    assert 'id="quantized"' in render(data)


def test_the_quickest_baseline_counts(run_with: Callable[..., ReportData]) -> None:
    found = figures_quantized.finding(run_with(FOUR, UNPACK4, COMPILED4))
    assert found is not None
    # m / 4 against sqrt(m) + 1: 4 against 5 at 16, 16 against 9 at 64.
    assert found.title == "4-bit weights beat dequantising in the call up to m = 24."


@pytest.mark.parametrize(
    ("time_s", "words"),
    [
        (lambda m: dense_s(m) / 3, "4-bit weights beat dense ones at every m measured."),
        (lambda m: dense_s(m) * 3, "4-bit weights beat dense ones at no m measured."),
        (lambda m: dense_s(m) * 4 / m**0.5, "4-bit weights beat dense ones from m = 16 on."),
    ],
)
def test_always_never_and_the_other_way_round(
    run_with: Callable[..., ReportData], time_s: Callable[[int], float], words: str
) -> None:
    found = figures_quantized.finding(run_with(DENSE, ("torch", W4, time_s)))
    assert found is not None
    assert found.title == words


def test_schemes_of_one_width_that_disagree(run_with: Callable[..., ReportData]) -> None:
    found = figures_quantized.finding(run_with(DENSE, FOUR, ("torch", {"scheme": "nvfp4"}, lambda m: 9.0)))
    assert found is not None
    assert found.title == (
        "4-bit weights beat dense ones up to m = 16 or at no m measured, depending on scheme and shape."
    )


def test_bit_planes_are_named_by_their_bits(run_with: Callable[..., ReportData]) -> None:
    planes = {"scheme": "bits", "bits": 2, "abits": 8}
    found = figures_quantized.finding(run_with(DENSE, ("planes", planes, lambda m: dense_s(m) / 2)))
    assert found is not None
    assert found.title.startswith("2-bit weights")
    assert found.items[0].startswith("bits 2 x 8 bits, n = 1024")


def test_many_kernels_are_said_to_be_in_the_table(run_with: Callable[..., ReportData]) -> None:
    lines = [("planes", {"scheme": "bits", "bits": b, "abits": 8}, lambda m: dense_s(m) / 2) for b in range(1, 9)]
    (figure,) = figures_quantized.figures(run_with(DENSE, *lines))
    assert len(figure.legend) == figures_quantized.MAX_CURVES
    assert figure.caption.endswith("1 more kernels are in the table only.")


def test_without_a_baseline_or_records_nothing_is_claimed(
    run_with: Callable[..., ReportData], run_of: Callable[..., Path], make_case: Callable[..., Any],
    make_record: Callable[..., Any],
) -> None:  # fmt: skip
    bare = run_with(FOUR, EIGHT, name="bare")
    assert figures_quantized.finding(bare) is None
    assert figures_quantized.figures(bare)[0].missing
    baselines = run_with(DENSE, UNPACK4, name="baselines")
    assert figures_quantized.finding(baselines) is None
    assert figures_quantized.figures(baselines)[0].missing
    none = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_quantized.finding(none) is None
    assert figures_quantized.figures(none) == []


@pytest.mark.parametrize("disturbed", [{"noise": 2.0}, {"flags": ("foreign_process",)}])
def test_disturbed_records_carry_no_verdict(run_with: Callable[..., ReportData], disturbed: dict[str, Any]) -> None:
    found = figures_quantized.finding(run_with(DENSE, FOUR, record=disturbed))
    assert found is not None
    assert found.quiet
    assert "cannot be told" in found.title
