"""The power section: what it says and draws with joules, without, and of hostile names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattline.reports import findings, findings_energy, power, write_report
from wattline.reports.data import ReportData
from wattline.reports.figures_power import pareto
from wattline.reports.figures_traces import MOST_POINTS, thinned
from wattline.trace import Series


@pytest.fixture
def section(metered_run: Path) -> power.PowerSection:
    return power.build(ReportData.read(metered_run))


def test_with_joules_everything_is_drawn(section: power.PowerSection) -> None:
    assert [f.id for f in section.figures if f.missing] == []
    assert [f.id for f in section.figures] == [
        "power-run", "power-case", "energy-time", "energy-flop", "energy-levels", "energy-budget", "energy-caps",
    ]  # fmt: skip
    assert section.lead.startswith("24 of 24 records carry joules, from nvml: total energy counter (gpu).")
    assert dict(section.sensor)["calibration"].startswith("1 of 2 of its readings was calibrated")
    assert section.profiles[0][:5] == ("nvml: total energy counter (gpu)", "100 ms", "-", "10.0 ms", "+-5.0 %")
    assert {code: n for code, n, _ in section.reservations} == {"uncalibrated": 24, "low_confidence": 5}
    assert all(meaning != "unknown to this version" for _, _, meaning in section.reservations)


def test_kernels_are_bands_on_one_time_axis(section: power.PowerSection) -> None:
    figure = next(f for f in section.figures if f.id == "power-run")
    assert len(figure.panels) == 4  # power, clock, temperature, throttling
    assert figure.caption.startswith("24 cases")
    assert "at most 610 W" in figure.panels[0]
    closer = next(f for f in section.figures if f.id == "power-case")
    assert "Bands: timing, lead-in, energy." in closer.caption
    assert "bf16" in closer.caption  # draws 610 W


def test_a_cap_is_held_against_the_same_case_without(metered_run: Path) -> None:
    data = ReportData.read(metered_run)
    caption = next(f for f in power.build(data).figures if f.id == "energy-caps").caption
    # 300 W: time 12 % more; energy 300/420 and 300/610 of the power, times 1.12: 20 and 45 % less, 32 % in the middle.
    assert "At 300 W a call takes 32 % less energy and 12 % more time (medians)" in caption
    found = {f.kind: f for f in findings.find(data)}
    assert found["energy_caps"].title == "Held to 300 W, a call takes 32 % less energy and 12 % more time."
    assert found["energy_caps"].text.startswith("Medians over 8 records")
    assert "times as much" in found["energy"].title
    # Those under a cap are another device: figures of speed leave them out.
    assert len(data.usable) == 8
    assert len(data.trusted) == 24


def test_dynamic_energy_stands_beside_the_total(section: power.PowerSection) -> None:
    caption = next(f for f in section.figures if f.id == "energy-levels").caption
    # Of 420 W and 610 W, 78 W are idle: 81.4 % and 87.2 %; 84 % in the middle.
    assert "84 % is dynamic (median of 8 records)" in caption
    assert "Every energy in this report is the total." in caption


def test_watching_says_what_it_costs(section: power.PowerSection) -> None:
    assert section.watching.startswith("Watching: a kernel of 100 us took +0.10% with all samplers on [-0.20%, +0.30%]")
    assert "no effect can be told" in section.watching
    slow = {"ratio": 1.02, "ratio_lo": 1.01, "ratio_hi": 1.03, "off_s": 1e-4}
    assert "slow it down" in power.watching(slow)
    assert power.watching({"reason": {"message": "the sensor failed"}}).endswith("in this run: the sensor failed.")
    assert power.watching({}) == "What watching costs was not measured in this run."


def test_without_a_sensor_it_says_what_is_missing_and_what_would_help(
    run_of: Callable[..., Path], make_record: Callable[..., Any], make_case: Callable[..., Any]
) -> None:
    energy = {
        "available": False, "name": "rapl", "remedy": "sudo chmod a+r energy_uj",
        "reason": {"code": "rapl_forbidden", "message": "energy_uj is for root only"},
    }  # fmt: skip
    run = run_of([make_record(make_case(64, 64, 64))], manifest={"energy": energy})
    found = power.build(ReportData.read(run))
    assert found.lead.startswith("No joules: energy_uj is for root only.")
    assert found.remedy == "sudo chmod a+r energy_uj"
    assert (found.figures, found.sensor, found.profiles, found.reservations) == ([], [], [], [])
    html = write_report(run).read_text()
    assert "What would enable it: sudo chmod a+r energy_uj." in html


def test_hostile_names_in_traces_are_escaped(metered_run: Path) -> None:
    html = write_report(metered_run).read_text()
    assert "<script>alert(1)" not in html
    assert "<img src=x" not in html


def test_a_damaged_trace_costs_its_figure_only(tmp_path: Path, metered_run: Path) -> None:
    import shutil

    run = tmp_path / "damaged"
    shutil.copytree(metered_run, run)
    next((run / "traces").iterdir()).write_bytes(b"no trace")
    figures = power.build(ReportData.read(run)).figures
    assert figures[0].id == "power-run"
    assert figures[0].missing.startswith("The traces cannot be read")
    assert not figures[2].missing


def test_the_pareto_front_by_hand() -> None:
    time = np.array([1.0, 2.0, 3.0, 1.5, 2.0])
    energy = np.array([9.0, 5.0, 6.0, 9.5, 4.0])
    assert pareto(time, energy) == [0, 4]


def test_thinning_keeps_every_peak() -> None:
    n = 10 * MOST_POINTS
    values = [1.0] * n
    values[1234], values[5678] = 900.0, -3.0
    times, kept = thinned(Series(tuple(range(n)), tuple(values)), MOST_POINTS)
    assert len(kept) <= MOST_POINTS
    assert (max(kept), min(kept)) == (900.0, -3.0)
    assert times == sorted(times)


def test_two_readings_that_disagree_are_told(metered_run: Path, tmp_path: Path) -> None:
    (sure,) = [f for f in findings_energy.find(ReportData.read(metered_run)) if f.kind == "energy_sure"]
    # Cross check 0.4 %; the interval spans from 93 to 108 %.
    assert sure.title == "The counter and the integrated power agree to 0.4 %: treat joules as +-7.5 %."
    assert sure.quiet
    assert "gain, 5.0 %" in sure.text
    other = tmp_path / "other"
    shutil.copytree(metered_run, other)
    text = (other / "records.jsonl").read_text(encoding="utf-8")
    (other / "records.jsonl").write_text(text.replace('"cross_check":0.004', '"cross_check":0.04'), encoding="utf-8")
    (sure,) = [f for f in findings_energy.find(ReportData.read(other)) if f.kind == "energy_sure"]
    assert sure.title.startswith("The counter and the integrated power disagree by 4.0 %: treat joules as +-")
    assert not sure.quiet
