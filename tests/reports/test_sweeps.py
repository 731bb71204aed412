"""Lines and cliffs are found where they were put, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.reports.data import ReportData
from wattline.reports.sweeps import MIN_POINTS, Line, cliffs, fine_lines, skinny_lines

RATE = 1e11


@pytest.fixture
def line_of(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> Callable[..., ReportData]:
    """A run along ``n`` with given FLOP/s at each size."""

    def read(sizes: list[int], rates: list[float], **how: Any) -> ReportData:
        records = [
            make_record(make_case(256, n, 256), time_s=2 * 256 * n * 256 / rate, seed=i, **{"noise": 1e-6, **how})
            for i, (n, rate) in enumerate(zip(sizes, rates, strict=True))
        ]
        return ReportData.read(run_of(records))

    return read


def made_line(rates: list[float], half_width: float) -> Line:
    """A line with given relative speeds and intervals of time."""
    work = pd.Series([1e9] * len(rates))
    time = work / (RATE * pd.Series(rates))
    frame = pd.DataFrame(
        {"n": range(len(rates)), "flops": work, "flops_per_s": work / time, "time_lo_s": time * (1 - half_width),
         "time_hi_s": time * (1 + half_width), "anchor": [f"r-{i}" for i in range(len(rates))]}
    )  # fmt: skip
    return Line(("n",), "", "fp32", frame)


def test_a_step_down_is_a_cliff_with_place_and_size(line_of: Callable[..., ReportData]) -> None:
    sizes = list(range(400, 560, 16))
    rates = [RATE * (0.75 if n >= 496 else 1.0) for n in sizes]
    (line,) = fine_lines(line_of(sizes, rates))
    assert line.axis == "n"
    assert line.fixed == "m = 256, k = 256, fp32, cold"
    (cliff,) = cliffs(line)
    assert (cliff.before, cliff.at) == (480, 496)
    assert cliff.loss == pytest.approx(0.25, abs=1e-3)
    assert cliff.anchor == line.rows["anchor"].tolist()[sizes.index(496)]


def test_a_step_up_or_a_slope_is_none(line_of: Callable[..., ReportData]) -> None:
    sizes = list(range(400, 560, 16))
    (line,) = fine_lines(line_of(sizes, [RATE * (1 + (n >= 496)) for n in sizes]))
    assert cliffs(line) == []


@pytest.mark.parametrize(("half_width", "count"), [(0.02, 1), (0.12, 0)])
def test_a_step_counts_only_where_the_intervals_part(half_width: float, count: int) -> None:
    # 15 % slower at the last size: told apart with intervals of 2 %, not with those of 12 %.
    assert len(cliffs(made_line([1.0] * 9 + [0.85], half_width))) == count


def test_a_coarse_machine_hides_small_cliffs(line_of: Callable[..., ReportData]) -> None:
    sizes = list(range(400, 560, 16))
    (line,) = fine_lines(line_of(sizes, [RATE * (0.85 if n >= 496 else 1.0) for n in sizes]))
    assert len(cliffs(line, resolution=0.05)) == 1
    assert cliffs(line, resolution=0.10) == []


def test_doubling_sizes_are_no_fine_line(line_of: Callable[..., ReportData]) -> None:
    sizes = [2**i for i in range(4, 13)]
    assert fine_lines(line_of(sizes, [RATE] * len(sizes))) == []


def test_few_points_are_no_line(line_of: Callable[..., ReportData]) -> None:
    sizes = list(range(400, 400 + 16 * (MIN_POINTS - 1), 16))
    assert fine_lines(line_of(sizes, [RATE] * len(sizes))) == []


def test_only_the_fine_part_of_a_line_counts(line_of: Callable[..., ReportData]) -> None:
    sizes = [64, 128, *range(400, 560, 16), 1024, 2048]
    (line,) = fine_lines(line_of(sizes, [RATE] * len(sizes)))
    assert line.rows["n"].tolist() == list(range(400, 560, 16))


def test_sizes_that_move_together_form_a_line(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    records = [make_record(make_case(n, n, 300), time_s=2 * n * n * 300 / RATE) for n in range(500, 600, 10)]
    lines = fine_lines(ReportData.read(run_of(records)))
    assert [line.axis for line in lines] == ["m = n"]


def test_conditions_are_never_mixed_on_one_line(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    records = [
        make_record(make_case(256, n, 256, dtype, regime), time_s=1e-3)
        for n in range(400, 560, 16) for dtype in ("fp32", "bf16") for regime in ("cold", "hot")
    ]  # fmt: skip
    lines = fine_lines(ReportData.read(run_of(records)))
    assert sorted(line.fixed for line in lines) == sorted(
        f"m = 256, k = 256, {d}, {r}" for d in ("fp32", "bf16") for r in ("cold", "hot")
    )
    assert all(len(line.rows) == 10 for line in lines)


def test_skinny_products_over_one_weight_matrix(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    layer = [make_record(make_case(m, 4096, 1024)) for m in (1, 2, 4, 8, 16, 32)]
    others = [make_record(make_case(m, 1000, 1000)) for m in (128, 256, 512, 1024)]
    (line,) = skinny_lines(ReportData.read(run_of(layer + others)))
    assert line.rows["m"].tolist() == [1, 2, 4, 8, 16, 32]
    assert line.fixed == "n = 4096, k = 1024, cold"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.3, 1.0), min_size=8, max_size=40))
def test_every_cliff_is_a_real_loss(rates: list[float]) -> None:
    found = cliffs(made_line(rates, 0.001))
    assert [c.loss for c in found] == sorted((c.loss for c in found), reverse=True)
    for cliff in found:
        assert cliff.at == cliff.before + 1
        assert rates[cliff.at] < rates[cliff.before]
        assert cliff.loss == pytest.approx(1 - rates[cliff.at] / rates[cliff.before])
        assert cliff.loss >= 0.08
