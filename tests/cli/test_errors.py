"""Wrong use, broken files and lost readers: the exit code, and three lines that say what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wattline.cli.main import main

Program = Callable[..., "subprocess.CompletedProcess[str]"]

PLAN = ("plan", "gemm.dense", "--preset", "smoke", "--device", "cpu")


def complaint(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The error of a process: at most three short lines, the first with ``error:``; checks its shape."""
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert 1 <= len(lines) <= 3, done.stderr
    assert lines[0].startswith("error: ")
    assert all(line.startswith("  ") for line in lines[1:])
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["benhc"], "near it: bench", id="command"),
        pytest.param(["plan", "--presett", "x"], "--preset", id="flag"),
        pytest.param(["plan", "--seed", "many"], "--seed", id="flag value"),
        pytest.param(["export", "somewhere"], "--format", id="missing flag"),
        pytest.param(["list", "gemm.dens"], "gemm.dense", id="op in list"),
        pytest.param(["plan", "gemm.dens", "--device", "cpu"], "gemm.dense", id="op in plan"),
        pytest.param(["bench", "gemm.dens", "--device", "cpu"], "gemm.dense", id="op in bench"),
        pytest.param(["predict", "p.wl", "gemm.dense", "m=1", "m=2"], "twice", id="parameter twice"),
        pytest.param(["predict", "p.wl", "m=1"], "no operation", id="no op"),
        pytest.param([*PLAN, "--set", "mm=512"], "'mm'", id="parameter"),
        pytest.param(["plan", "--preset", "smokey", "--device", "cpu"], "smoke", id="preset"),
        pytest.param(["plan", "--preset", "./no.toml", "--device", "cpu"], "no.toml", id="preset file"),
        pytest.param([*PLAN, "--dtype", "fp31"], "fp32", id="dtype"),
        pytest.param([*PLAN, "--set", "dtype=fp31"], "fp32", id="dtype in set"),
        pytest.param([*PLAN, "--regime", "warm"], "cold", id="regime"),
        pytest.param([*PLAN, "--data", "uniforn"], "uniform", id="fill"),
        pytest.param([*PLAN, "--impl", "troch"], "torch", id="implementation"),
        pytest.param([*PLAN, "--set", "m=-4"], "-4", id="negative size"),
        pytest.param([*PLAN, "--set", "m=0"], "from 1", id="zero size"),
        pytest.param([*PLAN, "--set", f"m={2**60}"], "from 1", id="absurd size"),
        pytest.param([*PLAN, "--set", f"m=1{'0' * 5000}"], "whole number", id="size of 5000 digits"),
        pytest.param([*PLAN, "--set", "m=8:64:x1"], "never ends", id="range that never ends"),
        pytest.param([*PLAN, "--set", "m=8:64:+0"], "never ends", id="sum that never ends"),
        pytest.param([*PLAN, "--set", "m=0:64:x2"], "never ends", id="range from zero"),
        pytest.param([*PLAN, "--set", "m=64:8:x2"], "ends before it starts", id="range backwards"),
        pytest.param([*PLAN, "--set", "m=1:1G:+1"], "points", id="range of too many points"),
        pytest.param([*PLAN, "--set", "m"], "NAME=VALUE", id="no value"),
        pytest.param([*PLAN, "--set", "m=1", "--set", "m=2"], "twice", id="given twice"),
        pytest.param([*PLAN, "--only", "m <"], "m <", id="condition"),
        pytest.param([*PLAN, "--only", "__import__('os').system('true')"], "__import__", id="hostile condition"),
        pytest.param([*PLAN, "--budget", "soon"], "soon", id="budget"),
        pytest.param([*PLAN, "--budget", "0"], "above zero", id="no budget"),
        pytest.param([*PLAN, "--measure", "time_limit=1"], "time_limit_s", id="setting"),
        pytest.param([*PLAN, "--measure", "time_limit_s=-1"], "above zero", id="negative setting"),
        pytest.param([*PLAN, "--measure", "time_limit_s"], "time_limit_s=0.5", id="setting without a value"),
        pytest.param([*PLAN, "--measure", "min_time_s=long"], "min_time_s", id="setting of another type"),
        pytest.param([*PLAN, "--measure", "check=maybe"], "true or false", id="switch of another type"),
        pytest.param([*PLAN, "--seed", "-1"], "--seed", id="negative seed"),
        pytest.param(["fit", ".", "--seed", "-1"], "--seed", id="negative seed of a fit"),
        pytest.param(["plan", "--device", "abacus"], "abacus", id="device"),
        pytest.param(["plan", "--device", ""], "behind '--device' is empty", id="empty device"),
        pytest.param(["bench", "--out", ""], "behind '--out' is empty", id="empty folder"),
        pytest.param(["bench", "--out="], "the value of --out is empty", id="empty folder after an equals sign"),
        pytest.param(["bench", "--preset", ""], "behind '--preset' is empty", id="empty preset"),
        pytest.param(["report", ""], "behind 'report' is empty", id="empty run"),
        pytest.param(["compare", ".", ""], "behind '.' is empty", id="empty second run"),
        pytest.param([*PLAN, "--clocks", ","], "names nothing", id="no clock"),
        pytest.param([*PLAN, "--only", " "], "it is empty", id="empty condition"),
        pytest.param([*PLAN, "--only", "m = 4"], "== compares", id="one equals sign"),
        pytest.param([*PLAN, "--only", "m % 0 == 1"], "guard it", id="condition that divides by zero"),
        pytest.param(["plan", "--budget"], "`wattline plan --help`", id="last option without its value"),
        pytest.param(["predict", "p.wl", "gemm.dense", "--csv", "no.csv"], "p.wl", id="no bundle and no table"),
        pytest.param(["bench", "--resume"], "no unfinished run", id="nothing to resume"),
        pytest.param(["bench", "--resume", "--out", "nowhere"], "nowhere", id="resume nowhere"),
        pytest.param(["report", "nowhere"], "it is not there", id="report of nothing"),
        pytest.param(["fit", "nowhere"], "nowhere", id="fit on nothing"),
        pytest.param(["export", "nowhere", "--format", "csv"], "nowhere", id="export of nothing"),
        pytest.param(["predict", "nowhere", "gemm.dense", "m=1"], "nowhere", id="predict from nothing"),
    ],
)
def test_wrong_use_says_what_and_exits_2(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(args)
    shown = capsys.readouterr()
    text = complaint(subprocess.CompletedProcess(args, code, shown.out, shown.err))
    assert says.lower() in text.lower()
    assert text.splitlines()[-1].startswith("  do: "), "what to do comes last"
    assert not list(tmp_path.iterdir())


def test_a_case_larger_than_memory_is_refused_with_the_figure(program: Program) -> None:
    big = [f"--set={name}=1M" for name in "mnk"]
    done = program(*PLAN, *big, "--dtype", "fp32")
    assert done.returncode == 2
    # Three matrices of 1e6 x 1e6 x 4 bytes, two sets of them.
    assert "24.0 TB" in complaint(done)


def test_a_newer_schema_asks_for_an_upgrade(program: Program, run_folder: Path) -> None:
    manifest = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps(manifest | {"schema": 99}))
    for args in (["report", run_folder], ["export", run_folder, "-f", "csv"], ["fit", run_folder]):
        assert "upgrade wattline" in complaint(program(*args))
    assert "99" in complaint(program("bench", "--resume", "--out", run_folder))


def test_an_unknown_export_format(program: Program, run_folder: Path) -> None:
    assert "parquet" in complaint(program("export", run_folder, "--format", "parkett"))


@pytest.mark.parametrize(
    "args", [["report"], ["fit"], ["export", "-f", "csv"], ["compare", "."], ["bench", "--resume", "--out"]]
)
def test_a_file_in_place_of_a_run_is_called_one(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("hello")
    if args[0] == "compare":
        Path("run.json").write_text('{"schema": 1, "plan": {}}')
    code = main([*args, "file"])
    shown = capsys.readouterr()
    text = complaint(subprocess.CompletedProcess(args, code, shown.out, shown.err))
    assert "file" in text
    assert "do:" in text
    assert Path("file").read_text() == "hello"


def test_a_run_given_twice_is_not_learned_from_twice(program: Program, run_folder: Path) -> None:
    text = complaint(program("fit", run_folder, run_folder.parent / "." / "run" / ".." / "run"))
    assert "given twice" in text
    assert not (run_folder / "predictor.wl").exists()


def test_comparing_cases_that_nobody_has(program: Program, run_folder: Path) -> None:
    """A gate with a slip in its condition must not pass."""
    text = complaint(program("compare", run_folder, run_folder, "--only", "m > 1e9", "--fail-on", "slower:3%"))
    assert "nothing is left to compare" in text
    assert "m > 1e9" in text


def test_an_export_tells_what_it_could_not_read(program: Program, run_folder: Path) -> None:
    records = run_folder / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-40])
    done = program("export", run_folder, "-f", "csv")
    assert done.returncode == 0
    assert "the last line is torn" in done.stderr
    assert len(done.stdout.splitlines()) == 1 + 6
    records.write_bytes(b"")
    assert "holds no records" in program("export", run_folder, "-f", "csv", "-o", "x.csv").stderr


def test_each_wrong_path_has_a_way_out(program: Program, run_folder: Path) -> None:
    assert "make the folder that it lies in first" in complaint(program("report", run_folder, "-o", "no/r.html"))
    assert "name a file in it" in complaint(program("export", run_folder, "-f", "csv", "-o", "."))
    assert "nothing is there" in complaint(program("fit", "--data", "no.parquet"))


def test_a_damaged_bundle_is_refused(program: Program, tmp_path: Path) -> None:
    (tmp_path / "predictor.wl").write_bytes(b"PK\x03\x04 this is no predictor")
    text = complaint(program("predict", "predictor.wl", "gemm.dense", "m=64", "n=64", "k=64", "dtype=fp32"))
    assert "predictor.wl" in text


def test_out_under_a_file_cannot_be_written(program: Program, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in complaint(program("bench", *PLAN[1:], "--out", "file/run"))
    assert "file" in complaint(program("export", run_folder, "-f", "csv", "-o", "file/x.csv"))
    assert "file" in complaint(program("report", run_folder, "--out", "file/x.html"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_out_without_permission(program: Program, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "permission" in complaint(program("bench", *PLAN[1:], "--out", "closed/run"))


def test_a_full_disk_behind_stdout_is_named_as_such(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "wattline.cli", "list"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: no space left while writing the output"


def test_going_on_with_a_run_that_lost_its_plan(program: Program, run_folder: Path) -> None:
    manifest = json.loads((run_folder / "run.json").read_text())
    del manifest["plan"]
    (run_folder / "run.json").write_text(json.dumps(manifest))
    assert "does not say how it is measured" in complaint(program("bench", "--resume", "--out", run_folder))


def test_a_run_in_the_folder_already(program: Program, run_folder: Path) -> None:
    assert "--resume" in complaint(program("bench", *PLAN[1:], "--out", run_folder))


def test_an_unexpected_error_is_one_line_and_a_hint(tmp_path: Path) -> None:
    code = (
        "import sys, wattline.cli.lazy as lazy, wattline.cli.main as m\n"
        "def broken(name, markup): raise ZeroDivisionError('by nought')\n"
        "lazy.load_command = broken\n"
        "sys.exit(m.main(sys.argv[1:]))\n"
    )

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *args], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    text = complaint(call("list"))
    assert "ZeroDivisionError: by nought" in text
    assert "--debug" in text
    for args in (["--debug", "list"], ["list", "--debug"]):
        done = call(*args)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert "in broken" in done.stderr


def test_debug_shows_the_traceback_of_a_known_error(program: Program) -> None:
    done = program("list", "gemm.dens", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "UnknownNameError" in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`wattline list devices | head -1`: no traceback, and the code of a process that SIGPIPE ended."""
    for args in (["list", "devices"], ["--help"], ["list", "devices", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "wattline.cli", *args], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        os.close(writer)
        assert done.stderr == ""
        assert done.returncode == 128 + signal.SIGPIPE


def test_ctrl_c_outside_a_run_exits_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, wattline.cli.lazy as lazy, wattline.cli.main as m\n"
        "lazy.load_command = lambda name, markup: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(m.main(['list']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_ctrl_c_inside_a_command_says_so(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, wattline.cli.list as listing, wattline.cli.main as m\n"
        "listing._operations = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(m.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "list"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_change_nothing_but_the_output(closed: str, run_folder: Path, tmp_path: Path) -> None:
    line = f'"{sys.executable}" -m wattline.cli export "{run_folder}" -f csv -o out.csv {closed}'
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == ("" if ">&-" in closed.split() else "out.csv\n")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 7
