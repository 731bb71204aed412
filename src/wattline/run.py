"""Run: a folder that holds what was planned, on which machine, and what was measured.

::

    runs/<id>/
      run.json        manifest: schema, plan arguments, device, environment, state, totals (replaced atomically)
      plan.jsonl      the cases in the order of the run
      records.jsonl   one record a line, appended and synced as each case ends
      traces/         sensors and kernels over time, one file per traced record (see wattline.trace)
      lock            held by the writer, freed by the system when that process dies
      worker.log      what kernels and libraries printed

A kill at any moment loses at most the case in flight. Each file has one writer; distributed runs add a file
``records-<rank>.jsonl`` per rank, and readers take them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.errors import RunLockedError, SchemaError, StorageError, UsageError, WattlineError, storage_error
from wattline.files import LineAppender, write_json
from wattline.record import Record
from wattline.work import case_bound

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

RUN_SCHEMA = 1
MANIFEST = "run.json"
PLAN = "plan.jsonl"
RECORDS = "records.jsonl"


@dataclass(frozen=True)
class PlannedCase:
    """A case with the variant (``"a"``, ``"b"`` or none) under which a run measures it."""

    case: Case
    variant: str = ""

    @property
    def identity(self) -> tuple[str, str]:
        """Matches :attr:`wattline.record.Record.identity`."""
        return self.case.key, self.variant


def now_iso() -> str:
    """The present moment as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Run:
    """A run folder opened for reading.

    Attributes:
        path: the folder.
        manifest: what ``run.json`` holds.
        warnings: what was found amiss while reading (a torn last line).

    Raises:
        StorageError: the folder or its manifest cannot be read.
        SchemaError: it is no run folder, or one of a newer version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self.manifest = _read_manifest(self.path)

    @property
    def id(self) -> str:
        """The run's name."""
        return str(self.manifest.get("id") or self.path.name)

    @property
    def device(self) -> DeviceSpec:
        """The device that was measured, with its measured ceilings.

        Raises:
            SchemaError: the run ended before its device was known.
        """
        if not isinstance(self.manifest.get("device"), dict):
            raise SchemaError(
                f"the run {self.path} names no device",
                why="it ended before its worker had started",
                todo=f"go on with it: wattline bench --resume --out {self.path}",
            )
        return DeviceSpec.from_dict(self.manifest["device"])

    @property
    def environment(self) -> Mapping[str, Any]:
        """The snapshot of the environment."""
        found: Mapping[str, Any] = self.manifest.get("environment", {})
        return found

    @property
    def state(self) -> str:
        """``"running"``, ``"interrupted"``, ``"out_of_budget"`` or ``"complete"``."""
        return str(self.manifest.get("state", "running"))

    def plan(self) -> list[PlannedCase]:
        """The cases in the order of the run.

        Raises:
            SchemaError: the plan is missing or damaged.
        """
        path = self.path / PLAN
        if not path.exists():
            raise SchemaError(
                f"the run {self.path} has lost its plan", why=f"there is no {PLAN}", todo="start a new run"
            )
        planned = []
        for line in _lines(path):
            try:
                data = json.loads(line)
                planned.append(PlannedCase(Case.from_dict(data), data.get("variant", "")))
            except (ValueError, AttributeError, WattlineError) as error:
                raise SchemaError(
                    f"{path}, line {len(planned) + 1} is damaged", why=str(error),
                    todo="restore it from a copy, or start a new run; the records are not touched by it",
                ) from None  # fmt: skip
        return planned

    def records(self, *, lenient: bool = False) -> Iterator[Record]:
        """The records of all writers, one at a time (a run may be larger than memory).

        Bounds are derived, not measured: they are computed anew from each record's work and the ceilings that the
        run ended with. A torn last line is left out and noted in :attr:`warnings`.

        Args:
            lenient: leave out and note every line that cannot be read, not only a torn last one. For looking at a
                run; what learns from it or compares it must not miss rows unawares.

        Raises:
            SchemaError: a record of a newer schema, or damage before the last line, unless ``lenient``.
        """
        device = self.device if self.manifest.get("device") else None
        return self.each(lambda line: _bounded(Record.from_json(line), device), lenient=lenient)

    def each(self, convert: Callable[[str], T], *, lenient: bool = False) -> Iterator[T]:
        """What a function makes of each line of the records; see :meth:`records`.

        Args:
            convert: takes a line, and raises :class:`~wattline.errors.SchemaError` where it is no record.
            lenient: see :meth:`records`.
        """
        for path in sorted(self.path.glob("records*.jsonl")):
            for line, number, last in _numbered(path):
                try:
                    yield convert(line)
                except SchemaError as error:
                    if last and not line.endswith("\n"):
                        warning = f"{path.name}: the last line is torn and was left out"
                        if warning not in self.warnings:
                            self.warnings.append(warning)
                        continue
                    if lenient:
                        why = f", {error.why}" if error.why else ""
                        warning = f"{path.name}, line {number} cannot be read and was left out: {error.what}{why}"
                        if warning not in self.warnings:
                            self.warnings.append(warning)
                        continue
                    raise SchemaError(
                        f"{path}, line {number}: {error.what}",
                        why=error.why,
                        todo=error.todo or "take that line out: `wattline bench --resume` measures its case again",
                    ) from None

    def missing(self) -> list[PlannedCase]:
        """What was planned and has no record yet, in order."""
        done = {record.identity for record in self.records()}
        return [planned for planned in self.plan() if planned.identity not in done]

    def to_frame(self) -> pd.DataFrame:
        """One row per record with typed columns; see :func:`wattline.frame.to_frame`."""
        from wattline.frame import to_frame

        return to_frame(self.records(), run=self.id)


class RunWriter(Run):
    """A run folder opened by its one writer; use as a context manager.

    Raises:
        RunLockedError: another process writes to it.
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = _lock(Path(path))
        try:
            super().__init__(path)
            self._appender = LineAppender(self.path / RECORDS)
        except BaseException:
            os.close(self._lock)
            raise
        if self._appender.torn_bytes:
            self.warnings.append(f"a torn last line was moved to {RECORDS}.torn")

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], manifest: Mapping[str, Any], plan: Sequence[PlannedCase]
    ) -> RunWriter:
        """Make a new run folder.

        Raises:
            UsageError: a run is there already.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, "making", folder) from error
        lock = _lock(folder)
        try:
            if (folder / MANIFEST).exists():  # asked under the lock: of two that start at once, one makes the run
                raise UsageError(
                    f"a run is already in {folder}", todo="add --resume to go on with it, or choose another --out"
                )
            _write_plan(folder / PLAN, plan)
            # The manifest comes last: a folder without one is no run, so a kill before leaves nothing half made.
            full = {"schema": RUN_SCHEMA, "id": folder.name, "created_at": now_iso(), "state": "running", **manifest}
            write_json(folder / MANIFEST, full)
        finally:
            os.close(lock)
        return cls(folder)

    def append(self, record: Record) -> None:
        """Append one record and sync it.

        Raises:
            StorageFullError: no space left; what was there before is intact.
        """
        self._appender.append(record.to_json())

    def update(self, **values: Any) -> None:
        """Replace entries of the manifest, atomically."""
        self.manifest = {**self.manifest, **values}
        write_json(self.path / MANIFEST, self.manifest)

    def close(self) -> None:
        """Close the files and free the lock."""
        self._appender.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _bounded(record: Record, device: DeviceSpec | None) -> Record:
    if device is None or record.work is None or record.device != device.id:
        return record
    found = case_bound(record.work, device, record.case.regime)
    if found is None:
        return record
    return replace(record, bound_s=found.time_s, bound_by=found.by)


def _write_plan(path: Path, plan: Sequence[PlannedCase]) -> None:
    lines = []
    for planned in plan:
        entry = planned.case.to_dict()
        if planned.variant:
            entry["variant"] = planned.variant
        lines.append(json.dumps(entry, separators=(",", ":")) + "\n")
    from wattline.files import atomic_write

    atomic_write(path, "".join(lines))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        there = f"it has no {MANIFEST}" if folder.is_dir() else "it is a file" if folder.exists() else "it is not there"
        raise SchemaError(
            f"{folder} is not a run folder", why=there, todo="give a folder that `wattline bench` made"
        ) from None
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except ValueError as error:
        raise SchemaError(
            f"{path} is damaged", why=str(error), todo=f"restore it from a copy; {RECORDS} beside it holds the figures"
        ) from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise SchemaError(
            f"{path} is not a run manifest", why="it has no schema number",
            todo=f"restore it from a copy; {RECORDS} beside it holds the figures",
        )  # fmt: skip
    if data["schema"] > RUN_SCHEMA:
        raise SchemaError(
            f"the run {folder} has schema {data['schema']}",
            why=f"this version reads schema {RUN_SCHEMA} and older",
            todo="upgrade wattline",
        )
    return data


def _numbered(path: Path) -> Iterator[tuple[str, int, bool]]:
    """The lines of a file with their number and whether each is the last, reading one ahead."""
    held: str | None = None
    number = 0
    for line in _lines(path):
        if held is not None:
            yield held, number, False
        held, number = line, number + 1
    if held is not None:
        yield held, number, True


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            yield from handle
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, "reading", path) from error


def _lock(folder: Path) -> int:
    """Take the writer's lock of a folder; the system frees it when this process ends, however it ends."""
    path = folder / "lock"
    try:
        if not folder.is_dir():
            raise StorageError(f"no folder {folder}", todo="check the path")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(error, "opening", path) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 200, 0).decode(errors="replace").strip()
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise RunLockedError(
                f"another process writes to {folder}",
                why=f"the lock is held by {holder or 'an unnamed process'}",
                todo="wait for it to end, stop it, or choose another --out",
            ) from None
        raise storage_error(error, "locking", path) from error
    with contextlib.suppress(OSError):  # a full disk must not keep a resume from starting
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return fd
