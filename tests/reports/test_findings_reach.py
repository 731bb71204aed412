"""From which size on a format reaches its rate: on shares that were given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.device import Ceilings, DeviceSpec
from wattline.reports import findings_reach
from wattline.reports.data import ReportData

# Cubes of edge n: 2 n^3 operations at 100 GFLOP/s, 12 n^2 bytes at 10 GB/s: memory bounds them below n = 60.
DEVICE = DeviceSpec(id="unit-cpu", kind="cpu", measured=Ceilings({"fp32": 1e11}, 1e10, 1e-7))


@pytest.fixture
def data_of(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> Callable[..., ReportData]:
    def build(shares: dict[int, float]) -> ReportData:
        times = {n: 2 * n**3 / 1e11 / share for n, share in shares.items()}
        records = [make_record(make_case(n, n, n), DEVICE, time_s=t, noise=1e-6) for n, t in times.items()]
        return ReportData.read(run_of(records, device=DEVICE))

    return build


def test_the_plateau_and_where_it_begins(data_of: Callable[..., ReportData]) -> None:
    finding = findings_reach.finding(data_of({32: 0.1, 48: 0.2, 128: 0.4, 256: 0.78, 512: 0.8, 1024: 0.8}))
    assert finding
    assert finding.title == (
        "fp32 reaches 80 % of the measured ceiling from min(m, n, k) = 256 on; up to 48 it is bound by memory."
    )


def test_what_still_climbs_has_no_plateau(data_of: Callable[..., ReportData]) -> None:
    assert findings_reach.finding(data_of({128: 0.1, 256: 0.2, 512: 0.4, 1024: 0.8})) is None


def test_what_falls_again_has_no_plateau(data_of: Callable[..., ReportData]) -> None:
    assert findings_reach.finding(data_of({128: 0.1, 256: 0.8, 512: 0.5, 1024: 0.5})) is None


def test_few_sizes_show_nothing(data_of: Callable[..., ReportData]) -> None:
    assert findings_reach.finding(data_of({512: 0.8, 1024: 0.8})) is None
