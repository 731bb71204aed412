"""Words of a command line as values, and the observers' arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.cli.options import Selection, assignments, literal, parameters
from wattline.errors import ParamError, UnknownNameError, UsageError


@given(st.one_of(st.integers(-(10**18), 10**18), st.booleans()))
def test_whole_numbers_and_truth_values_survive(value: int | bool) -> None:
    read = literal(str(value))
    assert read == value
    assert type(read) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive(value: float) -> None:
    assert literal(repr(value)) == value


def test_suffixes_and_words() -> None:
    assert literal("8K") == 8000
    assert isinstance(literal("8K"), int)
    assert literal("1.5M") == 1_500_000
    assert literal("0.5") == 0.5
    assert literal("precise") == "precise"
    assert literal("True") is True


def test_assignments() -> None:
    assert assignments(["m=8:64:x2", "only = a=b"], "--set") == {"m": "8:64:x2", "only": "a=b"}
    for wrong in (["m"], ["=5"], ["m="], ["m=1", "m=2"]):
        with pytest.raises(UsageError):
            assignments(wrong, "--set")


def test_parameters_are_checked_against_the_declaration() -> None:
    assert parameters("gemm.dense", {"m": "4Ki", "dtype": "bf16"}) == {"m": 4096, "dtype": "bf16"}
    with pytest.raises(UnknownNameError, match="of gemm"):
        parameters("gemm.dense", {"q": "1"})
    with pytest.raises(ParamError):
        parameters("gemm.dense", {"m": "0"})
    # An operation that only a predictor knows: read as it looks.
    assert parameters("attention.made_up", {"heads": "32", "causal": "true"}) == {"heads": 32, "causal": True}


def test_a_selection_names_only_what_was_given() -> None:
    assert Selection().arguments() == {}
    assert Selection(names=[], only=[]).arguments() == {}
    chosen = Selection(names=["gemm"], preset="./p.toml", measure=["time_limit_s=0.5"], seed=0, budget="10m")
    assert chosen.arguments() == {
        "names": ("SUITE", ["gemm"]),
        "preset": ("--preset", "p.toml"),
        "measure": ("--measure", {"time_limit_s": 0.5}),
        "seed": ("--seed", 0),
    }
    assert chosen.preset_name == "p"
    assert chosen.budget_s == 600


def test_time_left_follows_the_cases_and_never_passes_the_budget() -> None:
    from wattline.cli.progress import BarObserver

    bar = BarObserver()
    bar._begin, bar._planned, bar._before, bar._done = 100.0, 30, 10, 10
    assert bar.time_left_s(110.0) is None
    bar._done = 15  # five cases in ten seconds, fifteen to go
    assert bar.time_left_s(110.0) == pytest.approx(30.0)
    bar._budget_s = 25.0
    assert bar.time_left_s(110.0) == pytest.approx(15.0)
    assert bar.time_left_s(200.0) == 0.0


def test_lines_count_on_from_what_was_done_before(
    capsys: pytest.CaptureFixture[str], make_record: Callable[..., Any]
) -> None:
    from wattline.cli.progress import LineObserver
    from wattline.device import DeviceSpec

    observer = LineObserver()
    observer.run_started(path=Path("runs/x"), device=DeviceSpec("some-cpu"), planned=12, done=10, budget_s=60.0)
    observer.case_ended(make_record())
    opening, line = capsys.readouterr().err.splitlines()
    assert "12 cases on some-cpu into runs/x, 10 done before, within 1 min 00 s" in opening
    assert line.startswith("[11/12] ok")
    assert "1.10 ms +-" in line  # the median of the three samples


def test_the_figure_of_a_case_without_one_is_its_reason(make_record: Callable[..., Any]) -> None:
    from wattline.cli.progress import figure, summary
    from wattline.record import Reason

    record = make_record(status="unsupported", measurement=None, reason=Reason("old_device", "it needs sm_90"))
    assert figure(record) == "it needs sm_90"
    assert summary(record)["reason_code"] == "old_device"
    assert "time_s" not in summary(record)


def test_a_line_names_each_flag_once_and_no_share_of_a_ceiling_that_was_passed(
    make_record: Callable[..., Any]
) -> None:
    from dataclasses import replace

    from wattline.cli.progress import figure
    from wattline.record import Flag

    record = make_record()
    assert record.measurement is not None
    flags = (Flag("foreign_process", "steal"), Flag("foreign_process", "others"), Flag("noisy", "wide"))
    record = replace(record, measurement=replace(record.measurement, flags=flags))
    assert figure(record).endswith("(foreign_process, noisy)")
    time_s = record.measurement.stats.median_s
    assert "60% of bound" in figure(replace(record, bound_s=0.6 * time_s))
    beyond = figure(replace(record, bound_s=6 * time_s))
    assert "600%" not in beyond
    assert "above the probed ceiling" in beyond


@pytest.mark.parametrize(("term", "kind"), [("xterm-256color", "BarObserver"), ("dumb", "LineObserver")])
def test_a_terminal_that_cannot_redraw_gets_lines(term: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattline.cli.progress import make_observer

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", term)
    assert type(make_observer(json=False, quiet=False)).__name__ == kind


def test_the_energy_window_is_a_setting_of_the_loop() -> None:
    from wattline.cli.options import energy_setting

    assert energy_setting("500ms") == "energy_window_s=0.5"
    assert energy_setting("2m") == "energy_window_s=120.0"


def test_caps_are_read_where_they_are_written() -> None:
    chosen = Selection(power_limits="700,600W,default", clocks="1980, 1.5GHz")
    assert chosen.arguments() == {
        "power_limits": ("--power-limits", "700,600W,default"), "clocks": ("--clocks", "1980, 1.5GHz")
    }  # fmt: skip
    for wrong, flag in (({"power_limits": "500V"}, "--power-limits 500V"), ({"clocks": "0"}, "--clocks 0")):
        with pytest.raises(ParamError, match=flag) as caught:
            Selection(**wrong).arguments()
        assert "default" in caught.value.todo


@given(st.text("abc =", max_size=120), st.text("12, ", max_size=120), st.integers(-5, 140))
def test_a_line_of_progress_never_is_too_long(label: str, running: str, room: int) -> None:
    from wattline.cli.progress import fit

    line = fit(label, running, room)
    assert len(line) <= max(room, 0)
    if len(label) + 2 + len(running) <= room and len(running) <= room - 18:
        assert line == (f"{label}  {running}" if label and running else label or running)


def test_of_a_long_line_of_progress_the_time_stays() -> None:
    from wattline.cli.progress import fit

    label = "gemm.dense torch m=128 n=128 k=128 layout=nn fp32 cold"
    assert fit(label, "43.5 us +-1.0%, 95.2 GFLOP/s, 71% of bound, (noisy)", 50) == (
        "gemm.dens...p32 cold  43.5 us +-1.0%, 95.2 GFLOP/s"
    )
    assert fit(label, "timing 43.5 us", 50) == "gemm.dense torch...ut=nn fp32 cold  timing 43.5 us"
    assert fit(label, "", 100) == label


@pytest.mark.parametrize("columns", [80, 160])
def test_the_bar_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_record: Callable[..., Any], columns: int
) -> None:
    from wattline.cli.progress import BarObserver
    from wattline.device import DeviceSpec
    from wattline.run import PlannedCase

    for name, value in {"COLUMNS": str(columns), "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("wattline.cli.progress.REDRAW_S", 0.0)
    record, bar = make_record(), BarObserver()
    bar.run_started(path=Path("runs/x"), device=DeviceSpec("some-cpu"), planned=745, done=0, budget_s=300.0)
    bar.case_started(0, PlannedCase(record.case))
    bar.case_progress("timing", 1.1e-3, 0.012)
    bar.case_ended(record)
    bar.close()
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err))
    assert max(map(len, lines)) <= columns
    running = [line for line in lines if "left" in line]
    assert any("0/745" in line and "timing 1.10 ms +-1.2%" in line for line in running)
    assert any("1/745" in line and "1.10 ms" in line and "FLOP/s" in line for line in running)
