"""Where measurements put files: the folder that is asked for, on a file system that is named, and nowhere else.

Files have no name. Linux makes them so (``O_TMPFILE``), and they are gone when their last descriptor is closed, however
the process ends. Where a file system knows no such files, one is made with a random name that is removed before
anything is written: only a kill within these microseconds could leave an empty file behind.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from wattline.collectors.host import read_text
from wattline.errors import ParamError, UnsupportedError
from wattline.params import Int, Text
from wattline.reasons import Reason
from wattline.suites.workload import Machine, ParamValues, Requirement
from wattline.units import format_bytes, parse_int

FOLDER_VARIABLE = "WATTLINE_SCRATCH"
LIMIT_VARIABLE = "WATTLINE_SCRATCH_LIMIT"
LIMIT = 16 * 2**30
"""Most bytes that one case may put on a file system, unless the environment says otherwise."""
MARGIN = 256 * 2**20
"""Bytes of a file system that stay free beside our files."""
IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")

PATH = Text("default", doc=f"folder to put files into; default: ${FOLDER_VARIABLE}, else the system's temporary folder")


@dataclass(frozen=True)
class Mount:
    """The file system that a folder lies on.

    Attributes:
        kind: ``"ext4"``, ``"tmpfs"``, ``"overlay"`` ...; ``"unknown"`` where the system does not say.
        source: what is mounted, e.g. ``"/dev/nvme0n1p2"``.
        point: where.
    """

    kind: str
    source: str
    point: str


def folder_of(p: ParamValues) -> str:
    """The folder that a case's files go to."""
    if p["path"] != "default":
        return os.path.expanduser(str(p["path"]))
    return os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir()


def size_limit() -> int:
    """Most bytes of one case's files.

    Raises:
        ParamError: the environment variable holds no size.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return LIMIT
    try:
        return parse_int(given)
    except ParamError as error:
        raise ParamError(f"{LIMIT_VARIABLE} must be a number of bytes", why=error.what, todo=error.todo) from None


def mount_of(folder: str, root: str = "/") -> Mount:
    """The file system of a folder, by ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""
    wanted = os.path.realpath(folder)
    best = Mount("unknown", "", "")
    for line in (read_text(root, "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 2:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), fields[4])
        below = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best.point):  # of two on one point the later one hides the earlier
            best = Mount(kind[0], kind[1], point)
    return best


def why_not(folder: str, need: int) -> Reason | None:
    """Why files of so many bytes cannot be put into a folder, or ``None``."""
    if not os.path.isdir(folder):
        found = "is no folder" if os.path.exists(folder) else "does not exist"
        return Reason("no_folder", f"{folder} {found}: give another path")
    read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    if read_only or not os.access(folder, os.W_OK | os.X_OK):
        what = "lies on a file system that is mounted read-only" if read_only else "may not be written to"
        return Reason("read_only", f"{folder} {what}")
    if need > size_limit():
        message = f"its files take {format_bytes(need)}; ${LIMIT_VARIABLE} allows {format_bytes(size_limit())}"
        return Reason("file_limit", message)
    found_ = os.statvfs(folder)
    free = found_.f_bavail * found_.f_frsize
    if need + MARGIN > free:
        message = (
            f"its files take {format_bytes(need)}, and {folder} has {format_bytes(free)} free, "
            f"of which {format_bytes(MARGIN)} are left alone"
        )
        return Reason("disk_full", message)
    return None


def room_for(need: Callable[[ParamValues], int]) -> Requirement:
    """A folder that exists, may be written to, and has room for ``need(p)`` bytes."""
    return Requirement("room in the folder", lambda p, _: why_not(folder_of(p), need(p)))


class Scratch:
    """A file without a name.

    Args:
        folder: where.
        size: bytes to allocate.

    Attributes:
        folder: where it lies.
        mount: the file system.
        descriptor: opened for reading and writing through the page cache.

    Raises:
        UnsupportedError: it cannot be made there, or there is no room for it.
    """

    def __init__(self, folder: str, size: int) -> None:
        reason = why_not(folder, size)
        if reason is not None:
            raise UnsupportedError(reason.message, code=reason.code)
        self.folder = folder
        self.size = size
        self.mount = mount_of(folder)
        self.descriptor = _nameless(folder)
        self._open = [self.descriptor]
        self._finish = weakref.finalize(self, _close, self._open)
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            self.close()
            code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "no_file"
            raise UnsupportedError(
                f"no file of {format_bytes(size)} can be made in {folder}", why=error.strerror or str(error), code=code
            ) from None

    def again(self, flags: int) -> int:
        """Another descriptor of the same file, e.g. with ``os.O_DIRECT``; closed with the rest.

        Raises:
            OSError: the file system refuses these flags.
        """
        descriptor = os.open(f"/proc/self/fd/{self.descriptor}", flags | os.O_CLOEXEC)
        self._open.append(descriptor)
        return descriptor

    def close(self) -> None:
        """Close all descriptors; the file is then gone."""
        self._finish()


def _nameless(folder: str) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise UnsupportedError(
                f"no file can be made in {folder}", why=error.strerror or str(error), code="no_file"
            ) from None
    try:
        descriptor, name = tempfile.mkstemp(prefix=".wattline-", dir=folder)
        os.unlink(name)
    except OSError as error:
        raise UnsupportedError(
            f"no file can be made in {folder}", why=error.strerror or str(error), code="no_file"
        ) from None
    return descriptor


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def mount_facts(mount: Mount) -> dict[str, str]:
    """What a record says of a file system."""
    return {"filesystem": mount.kind, "filesystem_source": mount.source}


def on_storage() -> Requirement:
    """A folder on a file system that is not memory itself: figures of a tmpfs would be taken for those of a disk."""

    def unmet(p: ParamValues, _: Machine) -> Reason | None:
        mount = mount_of(folder_of(p))
        if mount.kind not in IN_MEMORY:
            return None
        message = (
            f"{folder_of(p)} lies on {mount.kind} ({mount.point}): memory, not storage; give a folder on a disk with "
            f"path or ${FOLDER_VARIABLE}"
        )
        return Reason("no_storage", message)

    return Requirement("a folder that is not memory (tmpfs)", unmet)


def file_bytes(*, doc: str) -> Int:
    """The declared size of a file."""
    return Int(doc=doc, hi=2**44)


def machine_is_linux() -> Requirement:
    """Files without names, O_DIRECT and the page cache are Linux's."""

    def unmet(_: ParamValues, __: Machine) -> Reason | None:
        if hasattr(os, "O_DIRECT") and hasattr(os, "O_TMPFILE"):
            return None
        return Reason("no_linux", "files without names, O_DIRECT and posix_fadvise are Linux's")

    return Requirement("Linux", unmet)
