"""Ideal and gap, on times whose bounds were worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.device import Ceilings, DeviceSpec
from wattline.reports import figures_gap
from wattline.reports.data import ReportData

# 100 GFLOP/s and 10 GB/s: a product of 1000^3 is bounded by 20 ms, one of 500^3 by 2.5 ms, one of 2000^3 by 160 ms.
DEVICE = DeviceSpec(id="unit-cpu", kind="cpu", measured=Ceilings({"fp32": 1e11}, 1e10, 1e-6))


@pytest.fixture
def data_of(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> Callable[..., ReportData]:
    def build(*points: tuple[int, float], **how: Any) -> ReportData:
        how = {"noise": 1e-6, **how}
        records = [make_record(make_case(n, n, n), DEVICE, time_s=t, **how) for n, t in points]
        return ReportData.read(run_of(records, device=DEVICE))

    return build


def test_the_furthest_from_its_bound_comes_first(data_of: Callable[..., ReportData]) -> None:
    found = figures_gap.slowest(data_of((1000, 0.04), (500, 0.01), (2000, 0.2)))
    assert [case.factor for case in found] == pytest.approx([4, 2], rel=1e-3), "two of one operation at most"
    assert found[0].name == "gemm.dense torch fp32 500 x 500 x 500"
    assert found[0].cells == ("10.0 ms", "2.50 ms (compute)", "x 4.0")


def test_what_is_hardly_more_than_a_launch_is_no_slow_case(data_of: Callable[..., ReportData]) -> None:
    # 8^3 takes 4 us: four launches of this device, and a thousand times its bound.
    found = figures_gap.slowest(data_of((8, 4e-6), (1000, 0.03)))
    assert [case.factor for case in found] == pytest.approx([1.5], rel=1e-3)


def test_what_others_disturbed_is_no_slow_case(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    calm = make_record(make_case(1000, 1000, 1000), DEVICE, time_s=0.03, noise=1e-6)
    other = make_record(make_case(500, 500, 500), DEVICE, time_s=0.3, noise=1e-6, flags=("foreign_process",))
    found = figures_gap.slowest(ReportData.read(run_of([calm, other], device=DEVICE)))
    assert [case.factor for case in found] == pytest.approx([1.5], rel=1e-3)


def test_a_case_at_its_bound_is_not_slow(data_of: Callable[..., ReportData]) -> None:
    data = data_of((1000, 0.02))
    assert figures_gap.slowest(data) == []
    assert "misses its bound" in figures_gap.gap(data).missing


def test_the_level_of_the_water(data_of: Callable[..., ReportData]) -> None:
    # Shares 1/2 and 1/4: 37.5 % by case; 20 + 2.5 of 50 ms by time.
    figure = figures_gap.waterline(data_of((1000, 0.04), (500, 0.01)))
    assert "37 % of a case's time is ideal" in figure.caption
    assert "45 % of all time is ideal" in figure.caption
    assert [panel.count("<a href=") for panel in figure.panels] == [2, 2]


def test_clock_and_power_stand_beside_speed(metered_run: Path, big_run: Path) -> None:
    both = figures_gap.beside_clock(ReportData.read(metered_run))
    assert len(both.panels) == 2
    assert "power from 300 W to 610 W" in both.caption
    assert "mean clock from 2.98 GHz to 2.98 GHz" in both.caption
    assert len(figures_gap.beside_clock(ReportData.read(big_run)).panels) == 1


def test_nothing_measured_nothing_drawn(run_of: Callable[..., Path]) -> None:
    data = ReportData.read(run_of([]))
    assert figures_gap.slowest(data) == []
    assert all(figure.missing for figure in figures_gap.figures(data))
