"""`wattline bench` as a process: events, the end of its output, interruption and the command that goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.cli.bench import default_folder, newest_unfinished, resume_command
from wattline.errors import UsageError
from wattline.run import Run, RunWriter

Program = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = ("gemm.dense", "--device", "cpu", "--set", "m=64", "--set", "n=64", "--measure", "time_limit_s=0.05")


def test_json_events_tell_the_whole_run(program: Program, tmp_path: Path) -> None:
    done = program("bench", *TINY, "--set", "k=64,128", "--out", "run", "--no-fit", "--no-report", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    names = [event["event"] for event in events]
    records = list(Run(tmp_path / "run").records())
    assert names.count("run_started") == 1
    assert names.count("case_started") == names.count("case_ended") == 2
    assert names[-1] == "finished"
    ended = [event for event in events if event["event"] == "case_ended"]
    assert [(e["key"], e["status"], e.get("time_s")) for e in ended] == [
        (r.case.key, r.status, r.time_s) for r in records
    ]
    assert events[-1]["run"] == "run"
    assert events[-1]["state"] == "complete"
    again = program("bench", "--resume", "--out", "run", "--no-fit", "--no-report", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["exit_code"] == again.returncode == 0
    assert list(Run(tmp_path / "run").records()) == records
    changed = program("bench", "--resume", "--out", "run", "--set", "m=99")
    assert changed.returncode == 2
    assert "--resume cannot change --set" in changed.stderr


def test_too_few_rows_to_learn_from_still_gives_a_report_as_the_last_line(program: Program, tmp_path: Path) -> None:
    done = program("bench", *TINY, "--set", "k=64", "--out", "a run")
    assert done.returncode == 0, done.stderr
    assert "no predictor" in done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.split(maxsplit=1) == ["report", str(Path("a run") / "report.html")]
    assert (tmp_path / "a run" / "report.html").stat().st_size > 1000
    assert any(line.startswith("[1/1] ok") for line in done.stderr.splitlines())
    assert Run(tmp_path / "a run").manifest["plan"]["command"].startswith("wattline bench gemm.dense --device cpu")


def test_a_budget_that_the_start_uses_up_is_an_error_with_a_way_on(program: Program, tmp_path: Path) -> None:
    """0 would tell a script that something was measured."""
    done = program("bench", *TINY, "--set", "k=64", "--out", "run", "--budget", "10ms")
    assert done.returncode == 2
    assert "error: no case fitted into the budget: 0 of 1 are done" in done.stderr
    assert "wattline bench --resume --out run --budget" in done.stderr
    assert not (tmp_path / "run" / "report.html").exists()
    again = program("bench", "--resume", "--out", "run", "--budget", "10ms", "--json")
    assert again.returncode == 2
    last = json.loads(again.stdout.splitlines()[-1])
    assert (last["event"], last["state"], last["exit_code"]) == ("finished", "out_of_budget", 2)
    assert program("bench", "--resume", "--out", "run", "--no-fit", "--no-report").returncode == 0
    assert len(list(Run(tmp_path / "run").records())) == 1


def test_ctrl_c_on_a_terminal_gives_130_and_a_command_that_goes_on(tmp_path: Path) -> None:
    """Under a pseudo-terminal, so that the progress bar is drawn too."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "wattline.cli", "bench", *TINY, "--set", "k=32:4096:+32", "--no-fit", "--no-report"],
        cwd=tmp_path, env={**os.environ, "TERM": "xterm", "COLUMNS": "150"}, stdout=subprocess.PIPE, stderr=follower,
        text=True,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        while b"left" not in shown:  # the time left is shown: the run is under way
            shown += os.read(leader, 4096)
        process.send_signal(signal.SIGINT)
        shown += _rest(leader)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        if process.stdout:
            process.stdout.close()
    text = shown.decode()
    assert "Traceback" not in text
    folder = next((tmp_path / "runs").iterdir())
    run = Run(folder)
    assert run.state == "interrupted"
    before, missing = list(run.records()), run.missing()
    lines = (folder / "records.jsonl").read_bytes()
    assert before
    assert missing
    command = text[text.rindex("do: ") + 4 :].splitlines()[0].strip()
    assert command == f"wattline bench --resume --out runs/{folder.name}"
    words = [*shlex.split(command)[1:], "--no-fit", "--no-report", "--quiet"]
    # A budget that no case fits in but the first: going on must not measure anything a second time.
    more = subprocess.run(
        [sys.executable, "-m", "wattline.cli", *words, "--budget", "20s"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert more.returncode == 0, more.stderr
    assert more.stdout == ""
    after = list(Run(folder).records())
    assert len({r.identity for r in after}) == len(after) > len(before)
    # Line for line: bounds are not in question, for going on may find a higher ceiling of the machine.
    assert (folder / "records.jsonl").read_bytes().startswith(lines)


def _rest(leader: int) -> bytes:
    found = b""
    try:
        while chunk := os.read(leader, 4096):
            found += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    return found


def test_default_folders_never_collide(tmp_path: Path) -> None:
    first = default_folder("my preset", tmp_path)
    first.mkdir(parents=True)
    second = default_folder("my preset", tmp_path)
    assert second != first
    assert first.name.split("Z-")[0].count("-") == 2
    assert "my-preset" in first.name
    assert first.name.isascii()


def test_newest_unfinished_is_the_one_written_to_last(tmp_path: Path, make_record: Callable[..., Any]) -> None:
    for i, state in enumerate(("interrupted", "complete", "out_of_budget", "interrupted")):
        folder = tmp_path / f"run{i}"
        with RunWriter.create(folder, {}, []) as writer:
            writer.append(make_record())
            writer.update(state=state)
        for path in folder.iterdir():
            os.utime(path, (1000 + i, 1000 + i))
    os.utime(tmp_path / "run0" / "records.jsonl", (2000, 2000))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert newest_unfinished(tmp_path) == tmp_path / "run0"
    with pytest.raises(UsageError, match="no unfinished run"):
        newest_unfinished(tmp_path / "empty")


def test_the_resume_command_survives_a_shell() -> None:
    assert shlex.split(resume_command(Path("runs/it's $HOME")))[-1] == "runs/it's $HOME"


def test_ctrl_c_while_learning_keeps_what_was_measured_and_says_how_to_go_on(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "import wattline.predictors.datasets as datasets, wattline.cli.main as m\n"
        "datasets.fit_run = lambda folder: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(m.main(sys.argv[1:]))\n"
    )

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, "bench", *args], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = call(*TINY, "--set", "k=64", "--out", "run")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-2:] == [
        "interrupted: 1 of 1 cases are done and kept",
        "  do: wattline bench --resume --out run",
    ]
    assert Run(tmp_path / "run").state == "complete"
    events = call("--resume", "--out", "run", "--json")
    assert events.returncode == 130
    last = json.loads(events.stdout.splitlines()[-1])
    assert (last["event"], last["state"], last["exit_code"]) == ("finished", "interrupted", 130)


GRID = tuple(word for axis in "mnk" for word in ("--set", f"{axis}=16,32,64,128"))
QUICK = ("--measure", "time_limit_s=0.02", "--measure", "warmup_limit_s=0.01", "--measure", "min_time_s=0.005")


@pytest.mark.slow
def test_until_error_measures_what_teaches_most_and_stops(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty-four tiny products; a rough guess is soon within the target, a ten-thousandth never is."""
    # Beside other tests two threads of a tiny product wait for each other's turn: milliseconds, at random.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ask = ("bench", "gemm.dense", "--device", "cpu", *GRID, *QUICK, "--no-fit", "--no-report")
    done = program(*ask, "--until-error", "90%", "--budget", "60s", "--out", "run", timeout=240)
    assert done.returncode == 0, done.stderr
    assert "the target of 90% is reached" in done.stderr
    run = Run(tmp_path / "run")
    facts = run.manifest["sampling"]
    first = [record.case.key for record in run.records()]
    assert run.state == "complete"
    assert facts["reached"]
    assert facts["candidates"] == 64
    assert facts["steps"][-1]["rows"] == len(first) < 64
    # Going on keeps the target, and ends at once; with another it goes on, and measures nothing twice.
    again = program("bench", "--resume", "--out", "run", "--no-fit", "--no-report", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["by_status"] == {"ok": len(first)}
    more = program(
        "bench", "--resume", "--out", "run", "--until-error", "0.01%", "--budget", "1s", "--no-fit", "--no-report"
    )
    assert more.returncode == 0, more.stderr
    assert "the budget ended first: mean error" in more.stderr
    assert "the target of 0.01% is not reached" in more.stderr
    keys = [record.case.key for record in Run(tmp_path / "run").records()]
    assert keys[: len(first)] == first
    assert len(keys) == len(set(keys)) < 64
    facts = Run(tmp_path / "run").manifest["sampling"]
    assert (facts["reached"], facts["target"]) == (False, 0.0001)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--until-error", "soon"), "cannot read 'soon' as a share"),
        (("--until-error", "150%"), "must be above 0 and below 100 %"),
        (("--until-error", "5%", "--aa", "3"), "--until-error and --aa cannot be joined"),
        (("--until-error", "5%", "--clocks", "1410"), "--until-error and --clocks cannot be joined"),
    ],
)
def test_until_error_that_makes_no_sense_is_refused(program: Program, more: tuple[str, ...], told: str) -> None:
    done = program("bench", *TINY, "--set", "k=64", *more)
    assert done.returncode == 2
    assert told in done.stderr
