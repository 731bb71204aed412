"""Where storage is measured: folders that will not do, mounts, disks that are full, files that vanish."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wattline.errors import ParamError, UnsupportedError
from wattline.suites.registry import get, get_implementation
from wattline.suites.storage import place
from wattline.suites.workload import Machine

pytest.importorskip("torch")
pytest.importorskip("numba")
if not hasattr(os, "O_TMPFILE"):
    pytest.skip("storage is measured on Linux", allow_module_level=True)

CPU = Machine(kind="cpu", torch_version=(2, 13))
GPU = Machine(kind="cuda", sm=90, torch_version=(2, 13))


def test_places_that_will_not_do_are_named(tmp_path: Path, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(folder: str, size: int = 1 << 20, machine: Machine = CPU) -> str:
        p = get("storage.read").workload.params.parse({"path": folder, "bytes": size})
        reason = get_implementation("storage.read", "posix").unmet(p, machine)
        return "" if reason is None else reason.code

    assert code(disk) == ""
    assert code(str(tmp_path / "nothing")) == "no_folder"
    (tmp_path / "file").write_text("")
    assert code(str(tmp_path / "file")) == "no_folder"
    assert code(disk, machine=GPU) == "host_only"
    assert code(disk, 2**43) == "file_limit"
    monkeypatch.setenv(place.LIMIT_VARIABLE, "8Ti")
    assert code(disk, 2**42) == "disk_full"
    monkeypatch.setenv(place.LIMIT_VARIABLE, "512Ki")
    assert code(disk) == "file_limit"
    monkeypatch.setenv(place.LIMIT_VARIABLE, "much")
    with pytest.raises(ParamError, match="WATTLINE_SCRATCH_LIMIT"):
        code(disk)
    monkeypatch.delenv(place.LIMIT_VARIABLE)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert code(disk) == "read_only"


def test_memory_is_not_taken_for_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next((f for f in ("/dev/shm", "/run") if place.mount_of(f).kind in place.IN_MEMORY), None)
    if folder is None:
        pytest.skip("no file system in memory")
    monkeypatch.setenv(place.FOLDER_VARIABLE, folder)
    for op in ("storage.read", "storage.write", "storage.checkpoint"):
        p = get(op).workload.params.parse({"bytes": 1 << 20})
        reason = get_implementation(op, "posix").unmet(p, CPU)
        assert reason is not None
        assert reason.code == "no_storage"
        assert "memory, not storage" in reason.message


def test_mounts_are_read_as_the_kernel_lists_them(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /with\\040space rw shared:7 - tmpfs none rw\n"
        "3 1 8:2 / /data rw - xfs /dev/sdb rw\n"
        "4 3 8:3 / /data rw - btrfs /dev/sdc rw\n"
        "broken line\n"
    )
    root = str(tmp_path)
    assert place.mount_of("/home", root) == place.Mount("ext4", "/dev/sda1", "/")
    assert place.mount_of("/with space/a", root).kind == "tmpfs"
    assert place.mount_of("/data", root).source == "/dev/sdc"  # the later one hides the earlier
    assert place.mount_of("/database", root).kind == "ext4"
    assert place.mount_of("/", str(tmp_path / "none")).kind == "unknown"


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = set(os.listdir(disk)), len(os.listdir("/proc/self/fd"))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UnsupportedError, match="No space left") as error:
        place.Scratch(disk, 1 << 20)
    assert error.value.code == "disk_full"
    assert set(os.listdir(disk)) == before
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("named", [False, True], ids=["O_TMPFILE", "without O_TMPFILE"])
def test_a_killed_process_leaves_no_file(disk: str, named: bool) -> None:
    before = set(os.listdir(disk))
    program = f"""
import os, sys, time
from wattline.suites.storage import place
if {named}:
    real = os.open
    def without(path, flags, *more, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *more, **named)
    os.open = without
scratch = place.Scratch(sys.argv[1], 1 << 20)
os.pwrite(scratch.descriptor, b"x" * 4096, 0)
print("ready", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", program, disk], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert set(os.listdir(disk)) == before  # nobody sees it, even while it is there
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert set(os.listdir(disk)) == before
