"""Writing files so that a kill at any moment leaves the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from wattline.errors import storage_error


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file: into a neighbour first, synced, then renamed over the old one.

    A link stays a link: the file that it leads to is replaced. What is no file (``/dev/stdout``, a pipe) is
    written to as it is.

    Raises:
        StorageError: (or :class:`StorageFullError`) it cannot be written; the old file is untouched.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(data.encode() if isinstance(data, str) else data)
            return
    except OSError as error:  # even asking may be forbidden
        raise storage_error(error, "writing", target) from error
    target = Path(os.path.realpath(target))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise storage_error(error, "writing", target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Atomically write indented JSON."""
    atomic_write(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


class LineAppender:
    """Appends whole lines to one file; a line is either all there or not at all.

    Every line goes out in one write to a descriptor opened for appending and is synced. A write that the disk
    cut short (no space left) is taken back, so the file always ends with a whole line. A torn last line that
    an earlier kill left behind is moved into ``<name>.torn`` when the file is opened.

    Raises:
        StorageError: (or :class:`StorageFullError`) the file cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self.torn_bytes = self._mend()
        except OSError as error:
            raise storage_error(error, "opening", self.path) from error

    def append(self, line: str) -> None:
        """Append one line (without its line end) and sync it to the disk."""
        if "\n" in line:
            raise ValueError("a line holds no line end")
        data = line.encode() + b"\n"
        length = os.fstat(self._fd).st_size
        try:
            rest = data
            while rest:  # a short write means that the space ran out: the next one says why
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, length)
            raise storage_error(error, "appending to", self.path) from error

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LineAppender:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _mend(self) -> int:
        """Move a torn last line aside; returns its length."""
        size = os.fstat(self._fd).st_size
        end, step = size, 1 << 16
        while end > 0:
            begin = max(0, end - step)
            newline = os.pread(self._fd, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            torn = os.pread(self._fd, size - end, end)
            with open(self.path.with_name(self.path.name + ".torn"), "ab") as aside:
                aside.write(torn + b"\n")
            os.ftruncate(self._fd, end)
        return size - end
