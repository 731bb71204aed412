"""The findings, on data whose answers were worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.device import Ceilings, DeviceSpec
from wattline.reports import findings
from wattline.reports.data import ReportData
from wattline.reports.findings import percent, times

# 100 GFLOP/s in fp32, 200 in bf16; 10 GB/s. A product of 1000^3 is 2 GFLOP: 20 ms and 10 ms at the peaks.
DEVICE = DeviceSpec(id="unit-cpu", kind="cpu", measured=Ceilings({"fp32": 1e11, "bf16": 2e11}, 1e10, 1e-6))


@pytest.fixture
def data_of(run_of: Callable[..., Path]) -> Callable[..., ReportData]:
    return lambda records, **other: ReportData.read(run_of(records, device=DEVICE, **other))


@pytest.fixture
def at(make_case: Callable[..., Any], make_record: Callable[..., Any]) -> Callable[..., Any]:
    """A record of a cube of edge ``n`` with an exact time."""

    def record(n: int, time_s: float, dtype: str = "fp32", regime: str = "cold", **other: Any) -> Any:
        noise = other.pop("noise", 1e-6)
        return make_record(make_case(n, n, n, dtype, regime), DEVICE, time_s=time_s, noise=noise, **other)

    return record


def found(data: ReportData) -> dict[str, findings.Finding]:
    return {f.kind: f for f in findings.find(data)}


def test_share_of_the_ceiling(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    # Work 2, 4.394, 6.75 GFLOP; at shares 0.8, 0.5 and 0.6 of 100 GFLOP/s. Median 60 %, best 80 %.
    records = [at(1000, 0.025), at(1300, 0.08788), at(1500, 0.1125), at(1000, 0.02, "bf16")]
    finding = found(data_of(records))["ceiling"]
    assert finding.title == "The best fp32 product reaches 80 % of the measured peak, the typical one 60 %."
    assert finding.items[0] == (
        "fp32: 80.0 GFLOP/s at 1000 x 1000 x 1000, 80 % of the measured peak, 60 % at the median of 3 shapes"
    )
    assert finding.items[1] == "bf16: 100 GFLOP/s at 1000 x 1000 x 1000, 50 % of the measured peak"
    assert finding.anchor == f"r-{records[0].case.key}"


def test_furthest_from_the_bound(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    records = [at(1000, 0.025), at(1300, 0.07), at(1500, 0.27), at(800, 0.0128)]
    finding = found(data_of(records))["below_bound"]
    # 1500^3 is bounded by 67.5 ms of arithmetic: four times too slow.
    assert "fp32 1500 x 1500 x 1500, 4.0 times slower than the compute bound" in finding.title
    assert finding.items[0] == "fp32 1500 x 1500 x 1500 takes 270 ms, 4.0 times its compute bound of 67.5 ms"
    assert finding.text.startswith("1 of 4 shapes stay below half")
    assert finding.anchor == f"r-{records[2].case.key}"


def test_calls_that_are_mostly_launch_do_not_lead_the_list(
    data_of: Callable[..., ReportData], at: Callable[..., Any]
) -> None:
    # 8^3 is a hundred times off its bound, but its 4 us are within five launches of 1 us.
    records = [at(8, 4e-6), at(1000, 0.025), at(1300, 0.08788), at(1500, 0.27)]
    assert "1500" in found(data_of(records))["below_bound"].title


def test_speed_up_between_formats(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    # Ratios 2, 2 and 1/4: the geometric mean is 1.
    sizes = (600, 800, 1000)
    base = [at(n, 4 * 2 * n**3 / 1e11) for n in sizes]
    other = [at(n, t * 2 * n**3 / 1e11, "bf16") for n, t in zip(sizes, (2, 2, 16), strict=True)]
    finding = found(data_of(base + other))["formats"]
    assert finding.items == ("bf16: 1.00 times (0.25 to 2.0, 3 shapes)",)


def test_formats_without_shapes_in_common_are_not_compared(
    data_of: Callable[..., ReportData], at: Callable[..., Any]
) -> None:
    records = [at(n, 1.0) for n in (600, 800, 1000)] + [at(n, 1.0, "bf16") for n in (601, 801, 1001)]
    assert "formats" not in found(data_of(records))


def test_cold_against_hot(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    sizes = (600, 800, 1000, 1200)
    cold = [at(n, 0.1) for n in sizes]
    hot = [at(n, t, regime="hot") for n, t in zip(sizes[:3], (0.05, 0.08, 0.09), strict=True)]
    finding = found(data_of(cold + hot))["regimes"]
    assert finding.title == "Calls in the hot regime take down to 50 % of the time of the same cold ones."
    assert finding.items == ("hot: 0.80 times at the median of 3 shapes, from 0.50 to 0.90",)


def test_smallest_difference_comes_from_the_pairs(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    records = [at(n, 0.1, variant=v) for n in (600, 800) for v in "ab"]
    result = {"pairs": 2, "false_positives": 0, "rate": 0.0, "smallest_difference": 0.023, "median_difference": 0.01}
    finding = found(data_of(records, aa=result))["noise"]
    assert finding.title == "Differences below 2.3 % cannot be told apart on this machine."
    assert "2 cases were measured twice without a change; 0 of the pairs" in finding.text
    assert (
        "the smallest difference that can be told is not known"
        in found(data_of(records, name="b", aa=None))["noise"].text
    )


def test_a_restless_machine_is_the_first_thing_told(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    result = {"pairs": 2, "false_positives": 2, "rate": 1.0, "smallest_difference": 3.0, "median_difference": 1.0}
    told = findings.find(data_of([at(n, 0.1) for n in (600, 800, 1000)], aa=result))
    assert told[0].kind == "noise"
    assert told[0].title.endswith("one in twenty equal cases differed by a factor of 4.0 or more.")


def test_a_disturbed_record_is_no_headline(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    calm = [at(1000, 0.025), at(1300, 0.08788), at(1500, 0.1125)]
    disturbed = at(900, 5.0, noise=2.0, samples=4)
    assert "900" not in found(data_of([*calm, disturbed]))["below_bound"].title


def test_cliffs_are_counted_and_the_largest_is_named(
    data_of: Callable[..., ReportData], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    speeds = dict.fromkeys(range(400, 560, 16), 5e10) | {464: 4e10, 480: 4e10, 496: 3e10, 512: 3e10}
    cliff = {n: make_case(256, n, 256) for n in speeds}
    records = [make_record(cliff[n], DEVICE, time_s=2 * 256 * 256 * n / v, noise=1e-6) for n, v in speeds.items()]
    finding = found(data_of(records))["cliffs"]
    assert finding.title == "Speed falls by 25 % between n = 480 and 496 (m = 256, k = 256, fp32, cold)."
    assert finding.text.startswith("2 cliffs on 1 fine line")
    assert finding.items == ("n = 448 to 464 (m = 256, k = 256, fp32, cold): 20 %",)
    assert finding.anchor == f"r-{cliff[496].key}"


def test_a_smooth_line_is_told_last(
    data_of: Callable[..., ReportData], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    sizes = range(400, 560, 16)
    records = [make_record(make_case(256, n, 256), DEVICE, time_s=n * 1e-6, noise=1e-6) for n in sizes]
    told = findings.find(data_of(records))
    assert told[-1].kind == "cliffs"
    assert told[-1].title == "No cliffs were found."


def test_invalid_records_carry_no_finding(data_of: Callable[..., ReportData], at: Callable[..., Any]) -> None:
    good = [at(1000, 0.025), at(1300, 0.08788), at(1500, 0.1125)]
    bad = [at(900, 1e-4, flags=("above_bound",)), at(700, 9.0, status="failed", flags=("check_failed",))]
    told = found(data_of(good + bad))
    assert "80 %" in told["ceiling"].title
    assert "700" not in told["below_bound"].title


def test_nothing_measured_nothing_found(data_of: Callable[..., ReportData]) -> None:
    assert findings.find(data_of([])) == []


@pytest.mark.parametrize(
    ("share", "text"), [(0.853, "85 %"), (0.0731, "7.3 %"), (0.00423, "0.42 %"), (1.0, "100 %"), (0.0996, "10 %")]
)
def test_percentages_for_people(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("ratio", "text"), [(14.2, "14"), (2.04, "2.0"), (1.094, "1.09"), (0.5, "0.50"), (9.97, "10")])
def test_ratios_for_people(ratio: float, text: str) -> None:
    assert times(ratio) == text
