"""Small disks and folders that an ordinary user may not write to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB of its own; skipped where mounting is not permitted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root and the mount command")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def readonly_folder() -> Iterator[Path]:
    """A folder that exists, can be entered, and cannot be written by the user of ``as_ordinary_user``."""
    outer = Path(tempfile.mkdtemp())  # not tmp_path: pytest closes its parents to other users
    outer.chmod(0o755)
    folder = outer / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        shutil.rmtree(outer)


_DROP = """
import os, sys
import wattline.files, wattline.run  # before the rights go: the checkout may be closed to others
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.fixture
def as_ordinary_user() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process without root's rights (root ignores permissions)."""

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _DROP + code, *map(str, arguments)],
            capture_output=True, text=True, timeout=60, check=False, cwd="/",
        )  # fmt: skip

    return run
