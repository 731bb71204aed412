"""Traces: what sensors read while a case was measured, and which kernels ran meanwhile.

A run keeps one file per traced record, ``traces/<key>[-<variant>].json.gz`` beside ``records.jsonl``: compressed
JSON with the wall-clock time of the trace's zero, series by name (power, clocks, temperature ...) and bands (a span
of back-to-back calls of a kernel). Times are seconds since that zero; :meth:`Trace.since` moves them to another, for
instance the start of the run. Files are replaced atomically, so a kill leaves a whole trace or none.

Series and bands are taken with :func:`time.perf_counter`; one :class:`Moment`, read once per trace, ties that clock
to the calendar. On Linux it is the system's monotonic clock, the same in every process since the last start.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from wattline.errors import SchemaError, SensorError, storage_error
from wattline.files import atomic_write

TRACE_SCHEMA = 1
FOLDER = "traces"
SUFFIX = ".json.gz"

UNITS: dict[str, str] = {
    "_bytes_per_s": "B/s",
    "_bytes": "B",
    "_hz": "Hz",
    "_w": "W",
    "_j": "J",
    "_s": "s",
    "_c": "degC",
}
"""Units by the end of a column's name, the longest first; any other column is a plain number (a share, a count)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


def unit_of(column: str) -> str:
    """The unit that a column's name ends with: ``"gpu_sm_clock_hz"`` is in ``"Hz"``; empty for plain numbers."""
    return next((unit for suffix, unit in UNITS.items() if column.endswith(suffix)), "")


@dataclass(frozen=True)
class Moment:
    """One instant on both clocks.

    Attributes:
        perf_s: :func:`time.perf_counter`.
        unix_s: seconds since 1970 UTC.
    """

    perf_s: float
    unix_s: float

    @classmethod
    def now(cls) -> Self:
        """This instant."""
        # The calendar is read between two readings of the other clock: a pause there shifts it by half of it at most.
        before, unix, after = time.perf_counter(), time.time(), time.perf_counter()
        return cls((before + after) / 2, unix)


@dataclass(frozen=True)
class Series:
    """A quantity over time.

    Attributes:
        times_s: seconds since the trace's zero, rising.
        values: one per time.
        unit: of the values, e.g. ``"W"``; empty for plain numbers.

    Raises:
        SensorError: not one value per time, or times that fall.
    """

    times_s: tuple[float, ...]
    values: tuple[float, ...]
    unit: str = ""

    def __post_init__(self) -> None:
        if len(self.times_s) != len(self.values):
            raise SensorError(
                "a series that does not fit together", why=f"{len(self.times_s)} times, {len(self.values)} values"
            )
        if any(later < earlier for earlier, later in zip(self.times_s, self.times_s[1:], strict=False)):
            raise SensorError("a series whose times fall", why="readings must be in the order in which they were taken")

    @classmethod
    def of(cls, times_s: Sequence[float], values: Sequence[float], zero_s: float = 0.0, unit: str = "") -> Self:
        """A series from times of any clock.

        Args:
            times_s: times, rising.
            values: one per time.
            zero_s: the instant on the same clock that becomes zero.
            unit: of the values.
        """
        return cls(tuple(t - zero_s for t in times_s), tuple(values), unit)

    def shifted(self, by_s: float) -> Series:
        """The same, later by that many seconds."""
        return Series(tuple(t + by_s for t in self.times_s), self.values, self.unit)


@dataclass(frozen=True)
class Band:
    """A span in which one kernel ran back to back.

    Attributes:
        start_s, end_s: seconds since the trace's zero.
        label: what ran, e.g. ``"lead-in"`` or ``"measured"``.
        calls: calls within it; 0 where they were not counted.
        time_s: seconds that the device was busy with them; 0 where not measured.
    """

    start_s: float
    end_s: float
    label: str
    calls: int = 0
    time_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.start_s <= self.end_s:  # NaN too
            raise SensorError(
                f"a band that ends before it starts: {self.label}", why=f"{self.start_s} s to {self.end_s} s"
            )

    def shifted(self, by_s: float) -> Band:
        """The same, later by that many seconds."""
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)


@dataclass(frozen=True)
class Trace:
    """Sensors and kernels on one time axis, for one record.

    Attributes:
        key: the case's key.
        zero_unix_s: wall-clock time (seconds since 1970 UTC) at zero.
        span_s: seconds that it covers.
        variant: the record's variant.
        label: the case in words.
        device: id of the device.
        series: quantities over time, by name.
        bands: kernels, by start.
        missing: why a series is not there, by name.
    """

    key: str
    zero_unix_s: float
    span_s: float
    variant: str = ""
    label: str = ""
    device: str = ""
    series: Mapping[str, Series] = field(default_factory=dict)
    bands: tuple[Band, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str]:
        """Matches :attr:`wattline.record.Record.identity`."""
        return self.key, self.variant

    def since(self, zero_unix_s: float) -> Trace:
        """The same with another zero, e.g. the start of the run.

        Args:
            zero_unix_s: wall-clock time that becomes zero; times before it turn negative.
        """
        by_s = self.zero_unix_s - zero_unix_s
        return replace(
            self,
            zero_unix_s=zero_unix_s,
            series={name: s.shifted(by_s) for name, s in self.series.items()},
            bands=tuple(b.shifted(by_s) for b in self.bands),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types. Times keep whole microseconds and values seven digits: no sensor has more."""
        data: dict[str, Any] = {"schema": TRACE_SCHEMA, "key": self.key}
        data |= {name: value for name in ("variant", "label", "device") if (value := getattr(self, name))}
        data |= {"zero_unix_s": round(self.zero_unix_s, 6), "span_s": round(self.span_s, 6)}
        data["series"] = {
            name: {"unit": s.unit, "times_s": [round(t, 6) for t in s.times_s], "values": [_value(v) for v in s.values]}
            for name, s in self.series.items()
        }
        data["bands"] = [
            [round(b.start_s, 6), round(b.end_s, 6), b.label, b.calls, float(f"{b.time_s:.7g}")] for b in self.bands
        ]
        if self.missing:
            data["missing"] = dict(self.missing)
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Trace:
        """The trace that :meth:`to_dict` wrote.

        Raises:
            SchemaError: not a trace, a damaged one, or one of a newer schema.
        """
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise SchemaError("not a trace", why="it has no schema number")
        if data["schema"] > TRACE_SCHEMA:
            raise SchemaError(
                f"a trace of schema {data['schema']}",
                why=f"this version reads schema {TRACE_SCHEMA} and older",
                todo="upgrade wattline",
            )
        try:
            return cls(
                key=str(data["key"]),
                zero_unix_s=float(data["zero_unix_s"]),
                span_s=float(data["span_s"]),
                variant=str(data.get("variant", "")),
                label=str(data.get("label", "")),
                device=str(data.get("device", "")),
                series={str(name): _series(s) for name, s in data["series"].items()},
                bands=tuple(
                    Band(float(start), float(end), str(label), int(calls), float(time_s))
                    for start, end, label, calls, time_s in data["bands"]
                ),
                missing={str(name): str(why) for name, why in data.get("missing", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, SensorError) as error:
            raise SchemaError("a damaged trace", why=f"missing or wrong field: {error}") from None


def _value(value: float) -> float | None:
    # JSON has no NaN: a reading that failed stays a gap.
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _series(data: Mapping[str, Any]) -> Series:
    values = tuple(math.nan if v is None else float(v) for v in data["values"])
    return Series(tuple(float(t) for t in data["times_s"]), values, str(data["unit"]))


def trace_path(run: str | os.PathLike[str], key: str, variant: str = "") -> Path:
    """Where a run keeps the trace of a record.

    Args:
        run: the run's folder.
        key: the case's key.
        variant: the record's variant.

    Raises:
        SchemaError: a key or variant that cannot be part of a file's name.
    """
    for part in (key, variant) if variant else (key,):
        if not _NAME.fullmatch(part):
            raise SchemaError(f"no trace can be named {part!r}", why="keys and variants are letters, digits, _ and .")
    return Path(run) / FOLDER / f"{key}{f'-{variant}' if variant else ''}{SUFFIX}"


def write_trace(run: str | os.PathLike[str], trace: Trace) -> Path:
    """Write a trace into a run's folder, replacing an older one of the same record; returns its path.

    Raises:
        StorageError: (or :class:`~wattline.errors.StorageFullError`) it cannot be written; an older one is intact.
    """
    path = trace_path(run, trace.key, trace.variant)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, "making", path.parent) from error
    text = json.dumps(trace.to_dict(), separators=(",", ":"), allow_nan=False)
    # No time stamp inside: the same trace is the same file.
    atomic_write(path, gzip.compress(text.encode(), compresslevel=6, mtime=0))
    return path


def read_trace(run: str | os.PathLike[str], key: str, variant: str = "") -> Trace | None:
    """The trace of a record, or ``None`` where none was kept.

    Raises:
        StorageError: it cannot be read.
        SchemaError: it is damaged, or of a newer schema.
    """
    path = trace_path(run, key, variant)
    try:
        return _read(path)
    except FileNotFoundError:
        return None


def read_traces(run: str | os.PathLike[str]) -> Iterator[Trace]:
    """All traces of a run, one at a time, in the order of their file names; none where the run kept none.

    Raises:
        StorageError: one cannot be read.
        SchemaError: one is damaged, or of a newer schema.
    """
    for path in sorted((Path(run) / FOLDER).glob(f"[!.]*{SUFFIX}")):
        try:
            yield _read(path)
        except FileNotFoundError:  # a broken link, or removed meanwhile
            continue


def _read(path: Path) -> Trace:
    try:
        return Trace.from_dict(json.loads(gzip.decompress(path.read_bytes())))
    except FileNotFoundError:
        raise
    except SchemaError as error:
        raise SchemaError(f"{path}: {error.what}", why=error.why, todo=error.todo or _REMOVE) from None
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise SchemaError(f"the trace {path} is damaged", why=str(error), todo=_REMOVE) from None
    except OSError as error:
        raise storage_error(error, "reading", path) from error


_REMOVE = "remove that file: records do not depend on it"
