"""Files: whole lines or none, old content or new, on full disks and after real kills."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import StorageError, StorageFullError
from wattline.files import LineAppender, atomic_write, write_json

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_lines_are_appended_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with LineAppender(path) as out:
        assert out.torn_bytes == 0
        out.append("one")
    with LineAppender(path) as out:
        out.append("two")
        out.append("")
    assert path.read_bytes() == b"one\ntwo\n\n"
    out.close()  # closing twice does no harm


def test_a_line_with_a_line_end_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with LineAppender(tmp_path / "lines") as out, pytest.raises(ValueError, match="line end"):
        out.append("one\ntwo")
    assert (tmp_path / "lines").read_bytes() == b""


@pytest.mark.parametrize("whole", ["", "one\n", "one\ntwo\n", "x" * 70_000 + "\n", "\n\n"])
@pytest.mark.parametrize("torn", ["{", "half a li", "y" * 200_000])
def test_a_torn_last_line_is_moved_aside(tmp_path: Path, whole: str, torn: str) -> None:
    path = tmp_path / "lines"
    path.write_text(whole + torn)
    with LineAppender(path) as out:
        assert out.torn_bytes == len(torn)
        out.append("next")
    assert path.read_text() == whole + "next\n"
    assert (tmp_path / "lines.torn").read_text() == torn + "\n"


def test_each_torn_line_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for torn in ("first", "second"):
        with path.open("a") as handle:
            handle.write(torn)
        LineAppender(path).close()
    assert (tmp_path / "lines.torn").read_text() == "first\nsecond\n"
    assert path.read_text() == ""


@settings(max_examples=25)  # every line is synced to the disk
@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), max_size=20), max_size=5),
       st.integers(0, 60))  # fmt: skip
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "lines"
    with LineAppender(path) as out:
        for line in lines:
            out.append(line)
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    with LineAppender(path) as out:
        out.append("next")
    kept = data[: data.rfind(b"\n") + 1]
    assert path.read_bytes() == kept + b"next\n"


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with LineAppender(tmp_path / "lines") as out:
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:3])))
        out.append("a line of more than three letters")
        monkeypatch.undo()
    assert (tmp_path / "lines").read_text() == "a line of more than three letters\n"


def test_a_full_disk_keeps_the_lines_before(small_disk: Path) -> None:
    path = small_disk / "lines"
    line = "x" * 1000
    with LineAppender(path) as out:
        with pytest.raises(StorageFullError, match="no space left while appending to") as caught:
            deque(map(out.append, repeat(line, 1000)), maxlen=0)
        assert "--resume" in caught.value.todo
        count = len(path.read_text().splitlines())
        assert 10 < count < 66
        assert path.read_text() == f"{line}\n" * count
        # Once there is space again the same writer goes on.
        os.truncate(path, 1001 * 5)
        out.append(line)
    assert path.read_text() == f"{line}\n" * 6


def test_a_full_disk_leaves_the_old_file_of_an_atomic_write(small_disk: Path) -> None:
    path = small_disk / "manifest"
    atomic_write(path, b"old")
    with pytest.raises(StorageFullError, match="no space left while writing"):
        atomic_write(path, b"x" * 200_000)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in small_disk.iterdir()] == ["manifest"]  # no half file is left behind


def test_a_file_size_limit_counts_as_full(tmp_path: Path, python_json: Callable[..., Any]) -> None:
    code = """
import json, resource, sys
from wattline.errors import StorageFullError
from wattline.files import LineAppender, atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder, count, caught = sys.argv[1], 0, []
atomic_write(folder + "/manifest", b"old")
with LineAppender(folder + "/lines") as out:
    try:
        while count < 1000:
            out.append("x" * 300)
            count += 1
    except StorageFullError as error:
        caught.append(error.what)
    out.append("short")  # still fits
try:
    atomic_write(folder + "/manifest", b"x" * 20_000)
except StorageFullError as error:
    caught.append(error.what)
print(json.dumps([count, caught]))
"""
    count, caught = python_json(code, tmp_path)
    assert count == 10_000 // 301
    assert len(caught) == 2
    assert (tmp_path / "lines").read_text() == ("x" * 300 + "\n") * count + "short\n"
    assert (tmp_path / "manifest").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lines", "manifest"]


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    code = """
import sys
from wattline.files import LineAppender
out = LineAppender(sys.argv[1])
number = 0
while True:
    out.append(f"{number} " + "y" * 5000)
    print(number, flush=True)
    number += 1
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd="/") as child:
        assert child.stdout is not None
        for _ in range(20):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in child.stdout if line.endswith("\n"))])
    with LineAppender(path):
        pass
    numbers = [int(line.split()[0]) for line in path.read_text().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged  # what was acknowledged is there


def test_atomic_writes_replace_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    atomic_write(path, "text")
    atomic_write(path, b"bytes")
    assert path.read_bytes() == b"bytes"
    write_json(path, {"a": [1, 2]})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_a_loop_of_links_is_replaced(tmp_path: Path) -> None:
    real, link, loop = tmp_path / "real", tmp_path / "link", tmp_path / "loop"
    real.write_text("old")
    link.symlink_to("real")
    loop.symlink_to("loop")
    atomic_write(link, "new")
    atomic_write(loop, "own")
    assert link.is_symlink()
    assert (real.read_text(), loop.read_text()) == ("new", "own")


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path, run_python: Run) -> None:
    done = run_python("from wattline.files import atomic_write; atomic_write('/dev/stdout', 'to the pipe')")
    assert (done.returncode, done.stdout) == (0, "to the pipe")
    with pytest.raises(StorageError, match="failed while writing"):
        atomic_write(tmp_path, "x")


def test_json_without_a_text_form_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="failed while writing"):
        atomic_write(tmp_path / "no" / "file", b"x")
    with pytest.raises(StorageError, match="failed while opening"):
        LineAppender(tmp_path / "no" / "file")
    with pytest.raises(StorageError):
        LineAppender(tmp_path)


_REFUSED = """
from wattline.errors import StorageError
from wattline.files import LineAppender, atomic_write
for act in (lambda p: LineAppender(p), lambda p: atomic_write(p, b"new")):
    try:
        act(sys.argv[1])
    except StorageError as error:
        print(type(error).__name__, "|", error.what, "|", error.todo)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder closed even to its owner's view needs another owner: root")
def test_a_folder_that_cannot_be_entered_is_a_storage_error(tmp_path: Path, as_ordinary_user: Run) -> None:
    done = as_ordinary_user(_REFUSED, tmp_path / "here")  # pytest's folders are closed to other users
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("StorageError | no permission while ") == 2


def test_a_folder_closed_to_the_user_is_a_storage_error(readonly_folder: Path, as_ordinary_user: Run) -> None:
    readonly_folder.chmod(0o755)
    (readonly_folder / "here").write_text("old\n")
    (readonly_folder / "here").chmod(0o444)
    readonly_folder.chmod(0o555)
    done = as_ordinary_user(_REFUSED, readonly_folder / "here")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("StorageError | no permission while ") and "--out" in line for line in lines)
    assert (readonly_folder / "here").read_text() == "old\n"
