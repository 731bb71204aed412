"""Exporters: a run in a format that other programs read, one file per format.

An exporter is a module with a docstring whose first line says what it writes, ``SUFFIX`` (of a file), ``BINARY``
(whether a terminal must not see it) and ``write(run, sink) -> int``, which writes bytes and returns how many
records it wrote. To add a format: add the file and name it in :data:`FORMATS`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from wattline.errors import storage_error, unknown_name
from wattline.run import Run

FORMATS: dict[str, str] = {
    "csv": "to_csv",
    "json": "to_json",
    "nccl-tests": "to_nccl_tests",
    "nccl-tests-json": "to_nccl_tests_json",
    "parquet": "to_parquet",
    "perfetto": "to_perfetto",
    "pytest-benchmark": "to_pytest_benchmark",
}
"""Formats by the name that `--format` takes; values are modules of this package."""


class Exporter(Protocol):
    """What a module of this package offers."""

    SUFFIX: str
    BINARY: bool

    def write(self, run: Run, sink: BinaryIO) -> int:
        """Write the run; returns the number of records written."""
        ...


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        written: records written.
        records: records that the run holds.
    """

    written: int
    records: int

    @property
    def left_out(self) -> int:
        """Records that the format has no place for (those without a figure)."""
        return self.records - self.written


def exporter(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        UnknownNameError: no such format.
    """
    if name not in FORMATS:
        raise unknown_name("export format", name, FORMATS, listing="wattline export --help")
    return cast(Exporter, import_module(f"{__name__}.{FORMATS[name]}"))


def export_run(run: Run | str | os.PathLike[str], fmt: str, out: str | os.PathLike[str] | BinaryIO) -> Exported:
    """Write a run in another format.

    Args:
        run: a run, or its folder.
        fmt: a key of :data:`FORMATS`.
        out: a binary stream, or a file, which is replaced only when the whole export is there.

    Raises:
        UnknownNameError: no such format.
        StorageError: the run cannot be read, or the file not written.
    """
    chosen = exporter(fmt)
    opened = run if isinstance(run, Run) else Run(run)
    if isinstance(out, str | os.PathLike):
        written = _write_file(chosen, opened, Path(out))
    else:
        written = chosen.write(opened, out)
    return Exported(written, sum(1 for _ in opened.records()))


def _write_file(chosen: Exporter, run: Run, target: Path) -> int:
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            with open(target, "wb") as sink:  # /dev/stdout, a pipe: not to be replaced
                return chosen.write(run, sink)
    except OSError as error:  # even asking may be forbidden
        raise storage_error(error, "writing", target) from error
    real = Path(os.path.realpath(target))  # a link stays a link
    temporary = real.with_name(f".{real.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as sink:
            written = chosen.write(run, sink)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, real)
    except OSError as error:
        raise storage_error(error, "writing", target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return written
