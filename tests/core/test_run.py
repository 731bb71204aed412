"""Run: one writer, resumable after every kind of end, readable while it grows."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.errors import SchemaError, StorageError, StorageFullError, UsageError
from wattline.record import Reason, Record
from wattline.run import MANIFEST, PLAN, RECORDS, RUN_SCHEMA, PlannedCase, Run, RunWriter

MakeRecord = Callable[..., Record]
DEVICE = {"device": {"id": "some-cpu", "kind": "cpu"}}


def _plan(count: int) -> list[PlannedCase]:
    return [PlannedCase(Case("op", "torch", {"m": m})) for m in range(1, count + 1)]


def _record(planned: PlannedCase, sequence: int = 0) -> Record:
    reason = Reason("slow", "s")
    return Record(planned.case, "skipped", "cpu", reason=reason, variant=planned.variant, sequence=sequence)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four planned cases, two of them done."""
    path = tmp_path / "run"
    plan = _plan(4)
    with RunWriter.create(path, {**DEVICE, "environment": {"python": "3"}}, plan) as writer:
        writer.append(_record(plan[0], 0))
        writer.append(_record(plan[2], 1))
    return path


def test_what_was_written_is_read(folder: Path) -> None:
    run = Run(folder)
    assert (run.id, run.state, run.device.id, dict(run.environment)) == ("run", "running", "some-cpu", {"python": "3"})
    assert run.manifest["schema"] == RUN_SCHEMA
    assert run.manifest["created_at"].endswith("Z")
    assert run.plan() == _plan(4)
    assert [record.case.params["m"] for record in run.records()] == [1, 3]
    assert [planned.case.params["m"] for planned in run.missing()] == [2, 4]
    assert run.warnings == []
    frame = run.to_frame()
    assert frame["m"].tolist() == [1, 3]
    assert set(frame["run"]) == {"run"}


def test_variants_are_planned_and_done_apart(tmp_path: Path) -> None:
    plan = [PlannedCase(case.case, variant) for case in _plan(2) for variant in ("a", "b")]
    with RunWriter.create(tmp_path / "r", DEVICE, plan) as writer:
        writer.append(_record(plan[1]))
        assert writer.plan() == plan
        assert writer.missing() == [plan[0], plan[2], plan[3]]


def test_a_resumed_run_goes_on_in_the_same_files(folder: Path) -> None:
    with RunWriter(folder) as writer:
        for planned in writer.missing():
            writer.append(_record(planned))
        writer.update(state="complete")
    assert Run(folder).missing() == []
    assert Run(folder).state == "complete"
    assert len((folder / RECORDS).read_text().splitlines()) == 4


def test_records_of_other_ranks_are_read_too(folder: Path) -> None:
    (folder / "records-1.jsonl").write_text(_record(_plan(4)[3], 7).to_json() + "\n")
    assert [planned.case.params["m"] for planned in Run(folder).missing()] == [2]


def test_bounds_follow_the_ceilings_that_the_run_ended_with(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(bound_s=1.0, bound_by="memory")
    with RunWriter.create(tmp_path / "r", DEVICE, []) as writer:
        writer.append(record)
        writer.append(dataclasses.replace(record, device="another"))
        # No rate is known yet: what was written stands.
        assert [(r.bound_s, r.bound_by) for r in writer.records()] == [(1.0, "memory")] * 2
        device = {**DEVICE["device"], "measured": {"flops": {"fp32": 1e9}, "memory_bandwidth": 1e10}}
        writer.update(device=device)
    mine, other = Run(tmp_path / "r").records()
    assert (mine.bound_s, mine.bound_by) == (pytest.approx(2 * 512 * 512 * 256 / 1e9), "compute")
    assert (other.bound_s, other.bound_by) == (1.0, "memory")


def test_the_manifest_is_replaced_as_a_whole(folder: Path) -> None:
    before = (folder / MANIFEST).stat().st_ino
    with RunWriter(folder) as writer:
        writer.update(state="interrupted", totals={"ok": 2})
    after = json.loads((folder / MANIFEST).read_text())
    assert (folder / MANIFEST).stat().st_ino != before  # a new file renamed over the old one
    assert (after["state"], after["totals"], after["device"]) == ("interrupted", {"ok": 2}, DEVICE["device"])
    assert not list(folder.glob(".*.tmp"))


def test_a_run_is_not_made_over_another(folder: Path) -> None:
    before = (folder / PLAN).read_bytes(), (folder / MANIFEST).read_bytes()
    with pytest.raises(UsageError, match="a run is already in") as caught:
        RunWriter.create(folder, DEVICE, _plan(1))
    assert "--resume" in caught.value.todo
    assert ((folder / PLAN).read_bytes(), (folder / MANIFEST).read_bytes()) == before
    RunWriter(folder).close()  # and the refusal has freed the lock


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="is not a run folder") as caught:
        Run(tmp_path)
    assert MANIFEST in caught.value.why
    with pytest.raises(StorageError, match="no folder"):
        RunWriter(tmp_path / "none")
    with pytest.raises(SchemaError):
        RunWriter(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="failed while making"):
        RunWriter.create(tmp_path / "file", DEVICE, [])


def test_a_newer_run_says_to_upgrade(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | {"schema": RUN_SCHEMA + 1}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for opener in (Run, RunWriter):
        with pytest.raises(SchemaError, match="has schema 2") as caught:
            opener(folder)
        assert caught.value.todo == "upgrade wattline"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}', "\udcff\udcfe"])
def test_a_damaged_manifest_is_named(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SchemaError, match=MANIFEST):
        Run(folder)


def test_a_torn_last_line_is_left_out_with_a_warning(folder: Path) -> None:
    whole = (folder / RECORDS).read_text()
    (folder / RECORDS).write_text(whole + _record(_plan(2)[1]).to_json()[:50])
    run = Run(folder)
    for _ in range(2):  # read twice, warned once
        assert [record.case.params["m"] for record in run.records()] == [1, 3]
        assert run.warnings == [f"{RECORDS}: the last line is torn and was left out"]
    with RunWriter(folder) as writer:
        assert [planned.case.params["m"] for planned in writer.missing()] == [2, 4]
        assert writer.warnings == [f"a torn last line was moved to {RECORDS}.torn"]
    assert (folder / RECORDS).read_text() == whole


def test_damage_before_the_last_line_is_an_error_with_its_place(folder: Path) -> None:
    lines = (folder / RECORDS).read_text().splitlines(keepends=True)
    (folder / RECORDS).write_text(lines[0] + lines[1][:30] + "\n" + lines[1])
    with pytest.raises(SchemaError, match=rf"{RECORDS}, line 2") as caught:
        list(Run(folder).records())
    assert "--resume" in caught.value.todo
    # A whole last line that is no record is damage too: nothing that was killed leaves a line end behind.
    (folder / RECORDS).write_text(lines[0] + "{}\n")
    with pytest.raises(SchemaError, match="line 2"):
        list(Run(folder).records())


def test_bytes_that_are_no_text_are_damage(folder: Path) -> None:
    (folder / RECORDS).write_bytes(b"\xff\xfe\x00\n" + (folder / RECORDS).read_bytes())
    with pytest.raises(SchemaError, match="line 1"):
        list(Run(folder).records())


@pytest.mark.parametrize(
    "line", ["{", "5", "[]", '{"op": "x"}', '{"op":"x","impl":"t","params":{},"regime":"no","data":"no"}']
)
def test_a_damaged_plan_is_an_error_with_its_place(folder: Path, line: str) -> None:
    first = (folder / PLAN).read_text().splitlines()[0]
    (folder / PLAN).write_text(f"{first}\n{line}\n")
    with pytest.raises(SchemaError, match=rf"{PLAN}, line 2 is damaged"):
        Run(folder).missing()


def test_a_reader_needs_no_lock(folder: Path) -> None:
    with RunWriter(folder) as writer:
        writer.append(_record(_plan(4)[1]))
        assert len(list(Run(folder).records())) == 3


_SECOND = """
import json, sys
from wattline.errors import WattlineError
from wattline.run import RunWriter
try:
    RunWriter(sys.argv[1]).close()
    print(json.dumps(["opened"]))
except WattlineError as error:
    print(json.dumps([type(error).__name__, error.what, error.why, error.todo, error.exit_code]))
"""

_HOLDER = """
import subprocess, sys, time
from wattline.run import RunWriter
writer = RunWriter(sys.argv[1])
# A child that outlives its parent must not keep the lock.
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=sys.stdin, close_fds=False)
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_writer_is_refused_and_told_who_holds_the_run(folder: Path, python_json: Callable[..., Any]) -> None:
    with RunWriter(folder):
        kind, what, why, todo, code = python_json(_SECOND, folder)
        assert (kind, code) == ("RunLockedError", 2)
        assert str(folder) in what
        assert f"process {os.getpid()} on " in why
        assert todo
    assert python_json(_SECOND, folder) == ["opened"]


def test_a_killed_writer_frees_the_lock(folder: Path, python_json: Callable[..., Any]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = python_json(_SECOND, folder)
        assert refused[0] == "RunLockedError"
        assert f"process {holder.pid} " in refused[2]
        holder.kill()
        holder.wait()
        # The holder's child is still there (it ends when its input closes); the lock is free all the same.
        assert python_json(_SECOND, folder) == ["opened"]
        with RunWriter(folder) as writer:
            assert len(writer.missing()) == 2


def test_a_full_disk_leaves_a_run_that_resumes(small_disk: Path) -> None:
    plan = _plan(400)
    with RunWriter.create(small_disk / "run", DEVICE, plan[:50]) as writer, pytest.raises(StorageFullError):
        deque((writer.append(_record(planned)) for planned in plan), maxlen=0)
    run = Run(small_disk / "run")
    done = [record.case for record in run.records()]
    assert 50 < len(done) < 400
    assert done == [planned.case for planned in plan[: len(done)]]
    assert (run.warnings, run.missing()) == ([], [])


def test_a_run_is_not_half_made_on_a_full_disk(small_disk: Path) -> None:
    with pytest.raises(StorageFullError):
        RunWriter.create(small_disk / "run", DEVICE, _plan(2000))
    with pytest.raises(SchemaError, match="is not a run folder"):
        Run(small_disk / "run")
    RunWriter.create(small_disk / "run", DEVICE, _plan(2)).close()  # the same folder serves once there is space


_CREATE = """
from pathlib import Path
from wattline.errors import StorageError
from wattline.run import Run, RunWriter
for act in (lambda p: RunWriter.create(p, {}, []), RunWriter, Run):
    try:
        act(sys.argv[1])
    except StorageError as error:
        print(type(error).__name__, "|", error.what, "|", error.todo)
"""


def test_an_unwritable_folder_says_what_to_do(readonly_folder: Path, as_ordinary_user: Callable[..., Any]) -> None:
    for path in (readonly_folder, readonly_folder / "new"):
        done = as_ordinary_user(_CREATE, path)
        assert done.returncode == 0, done.stderr
        created = done.stdout.splitlines()[0]
        assert created.startswith("StorageError | no permission while ")
        assert "--out" in created


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder closed even to its owner's view needs another owner: root")
def test_a_folder_that_cannot_even_be_entered_is_a_storage_error(
    tmp_path: Path, as_ordinary_user: Callable[..., Any]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    done = as_ordinary_user(_CREATE, closed / "run")
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[1].split(" while ")[0] for line in done.stdout.splitlines()] == ["no permission"] * 3


def test_a_lost_plan_is_an_error_and_not_an_empty_one(folder: Path) -> None:
    (folder / PLAN).unlink()
    with pytest.raises(SchemaError, match="lost its plan"):
        Run(folder).missing()


def test_a_run_that_never_met_its_device_says_how_to_go_on(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "r", {}, _plan(1)):
        pass
    with pytest.raises(SchemaError, match="--resume"):
        _ = Run(tmp_path / "r").device


def test_a_lenient_reader_leaves_out_what_it_cannot_read(folder: Path) -> None:
    path = folder / RECORDS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(["{damaged\n", *lines]), encoding="utf-8")
    with pytest.raises(SchemaError, match="line 1"):
        list(Run(folder).records())
    run = Run(folder)
    assert len(list(run.records(lenient=True))) == len(lines)
    assert len(run.warnings) == 1
    assert "line 1 cannot be read and was left out" in run.warnings[0]
