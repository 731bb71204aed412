"""`wattline compare` and `wattline report` of several runs, as their users call them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from wattline.run import MANIFEST, RECORDS

Program = Callable[..., "subprocess.CompletedProcess[str]"]


def scaled(run: Path, target: Path, factor: float, every: int = 1) -> Path:
    """A copy of a run, the times of every so many records times a factor."""
    shutil.copytree(run, target)
    lines = []
    for i, line in enumerate((target / RECORDS).read_text(encoding="utf-8").splitlines()):
        entry = json.loads(line)
        if "measurement" in entry and i % every == 0:
            stats = entry["measurement"]["stats"]
            for name in stats:
                stats[name] *= 1 if name == "n" else factor
        lines.append(json.dumps(entry))
    (target / RECORDS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


@pytest.fixture
def pair(learnable_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run of 160 cases, and one in which every fortieth takes 80 % longer."""
    return learnable_run, scaled(learnable_run, tmp_path / "b", 1.8, every=40)


def test_a_regression_gives_exit_code_one(program: Program, pair: tuple[Path, Path]) -> None:
    done = program("compare", *pair, "--fail-on", "slower:3%")
    assert done.returncode == 1, done.stderr
    assert "FAILED slower:3%: 4 cases slower" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_without_a_gate_or_with_a_passed_one_it_is_zero(program: Program, pair: tuple[Path, Path]) -> None:
    assert program("compare", *pair).returncode == 0
    assert program("compare", *pair, "--fail-on", "missing,failed").returncode == 0
    assert program("compare", *pair[::-1], "--fail-on", "slower:3%").returncode == 0


def test_quiet_says_what_failed_alone(program: Program, pair: tuple[Path, Path]) -> None:
    done = program("compare", *pair, "--fail-on", "slower:3%", "--quiet")
    assert done.returncode == 1
    assert done.stdout.startswith("FAILED slower:3%")
    assert len(done.stdout.splitlines()) == 1
    assert program("compare", *pair, "-q").stdout == ""


def test_formats_and_files(program: Program, pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    done = program("compare", *pair, "--format", "json", "--out", out, "--only", "m > 200", "--margin", "1%")
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text(encoding="utf-8"))
    assert data["margin"] == 0.01
    assert 0 < len(data["cases"]) < 160
    done = program("compare", *pair, "-f", "markdown", "--report", tmp_path / "c.html", "--fail-on", "slower:3%")
    assert done.returncode == 1
    assert done.stdout.startswith("### Wattline: regression")
    assert (tmp_path / "c.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--fail-on", "slowr:3%"], "near it: slower"),
        (["--fail-on", "slower:much"], "cannot read the threshold"),
        (["--fail-on", "energy:5%"], "cannot be judged"),
        (["--fail-on", "slower:1%", "--margin", "2%"], "above the threshold"),
        (["--format", "html"], "format"),
        (["--margin", "0"], "margin"),
        (["--confidence", "20%"], "confidence"),
        (["--only", "m >"], "cannot read the condition"),
    ],
)
def test_wrong_use_gives_exit_code_two(
    program: Program, pair: tuple[Path, Path], args: list[str], said: str
) -> None:
    done = program("compare", *pair, *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error:")


def test_what_is_no_run_gives_exit_code_two(program: Program, learnable_run: Path, tmp_path: Path) -> None:
    done = program("compare", learnable_run, tmp_path)
    assert done.returncode == 2
    assert "not a run folder" in done.stderr


def test_a_report_of_several_runs(program: Program, pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = program("report", *pair)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "comparison.html"
    assert (tmp_path / "comparison.html").is_file()
    shutil.copytree(pair[0], tmp_path / "all" / "one")
    shutil.copytree(pair[1], tmp_path / "all" / "two")
    assert program("report", tmp_path / "all", "-o", "all.html").returncode == 0
    assert (tmp_path / "all.html").is_file()


def test_a_report_of_one_run_stays_in_its_folder(program: Program, run_folder: Path) -> None:
    done = program("report", run_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run_folder / "report.html")
    (run_folder / MANIFEST).unlink()
    assert program("report", run_folder).returncode == 2
