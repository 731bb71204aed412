"""A file to be imported: its bytes, text, JSON or table, with errors that name file, column and line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.errors import DataError, storage_error

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PARQUET = b"PAR1"
"""What a Parquet file begins and ends with."""
LARGEST = 2**31
"""Bytes beyond which a file is not read into memory."""
WORDS = frozenset({"op", "device", "impl", "dtype", "regime", "data", "site", "status", "flags", "key", "run"})
"""Columns of our own frames that hold words."""


class Source:
    """A file (or the folder of a run), read once and looked at in several ways.

    Args:
        path: where it is.

    Raises:
        StorageError: it cannot be read.
        DataError: it is empty, or too large.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.is_folder = self.path.is_dir()
        self.data = b"" if self.is_folder else self._read()

    def __str__(self) -> str:
        return os.fspath(self.path)

    def _read(self) -> bytes:
        try:
            size = self.path.stat().st_size
            if size > LARGEST:
                raise DataError(f"{self} is too large to import", why=f"{size} bytes", todo="split it")
            data = self.path.read_bytes()
        except OSError as error:
            raise storage_error(error, "reading", self.path) from error
        if not data.strip():
            raise DataError(f"{self} is empty", todo="write it again: the program that did may have been stopped")
        return data

    @cached_property
    def sha256(self) -> str:
        """Of the bytes of the file; empty of a folder."""
        return hashlib.sha256(self.data).hexdigest() if self.data else ""

    @cached_property
    def text(self) -> str:
        """The file as UTF-8; what is none stands as a replacement character."""
        return self.data.decode("utf-8-sig", errors="replace")

    @property
    def is_parquet(self) -> bool:
        """Whether it begins as Parquet does."""
        return self.data.startswith(PARQUET)

    @cached_property
    def json(self) -> Any:
        """The file as JSON; ``None`` where it is none."""
        if not self.text.lstrip().startswith(("{", "[")):
            return None
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a Parquet or CSV file; of another kind of file its first line, or nothing."""
        if self.is_parquet:
            return tuple(self._parquet_table(schema=True).names)
        if self.is_folder or b"\0" in self.data[:4096]:
            return ()
        try:
            header = next(csv.reader(io.StringIO(self.text, newline=None)), [])
        except csv.Error:
            return ()
        return tuple(name.strip() for name in header)

    def table(self) -> Table:
        """The rows of a Parquet or CSV file.

        Raises:
            DataError: it is cut short, a line has another number of fields than the header, or there is no row.
        """
        if self.is_parquet:
            return self._parquet()
        header = list(self.columns)
        reader = csv.reader(io.StringIO(self.text, newline=None))
        rows: list[list[str]] = []
        lines: list[int] = []
        try:
            next(reader)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{self}: line {reader.line_num} has {len(row)} fields, the header {len(header)}",
                        why="the file is cut short, or not what its header says", todo="fetch it again, or mend it",
                    )  # fmt: skip
                rows.append(row)
                lines.append(reader.line_num)
        except (csv.Error, StopIteration) as error:
            raise DataError(
                f"{self}: line {reader.line_num} is no CSV", why=str(error),
                todo="mend that line, or fetch the file again",
            ) from None  # fmt: skip
        if not rows:
            raise DataError(f"{self} holds a header and no row", todo="fetch it again: it may be cut short")
        return Table(str(self), header, _Cells(rows), np.array(lines), "line")

    @cached_property
    def metadata(self) -> dict[bytes, bytes]:
        """Metadata of a Parquet file; empty of another kind."""
        return dict(self._parquet_table(schema=True).metadata or {}) if self.is_parquet else {}

    def frame(self) -> pd.DataFrame:
        """The rows of a Parquet file, typed as they are."""
        frame: pd.DataFrame = self._parquet_table().to_pandas()
        return frame

    def _parquet(self) -> Table:
        frame = self.frame()
        if not len(frame):
            raise DataError(f"{self} holds columns and no row", todo="write it again from a table with rows")
        cells = _Columns({str(name): frame[name] for name in frame.columns})
        return Table(str(self), list(cells.columns), cells, np.arange(len(frame)), "row")

    def _parquet_table(self, *, schema: bool = False) -> Any:
        """The whole of a Parquet file, or its schema alone.

        Raises:
            DataError: it is damaged or cut short.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return (pq.read_schema if schema else pq.read_table)(io.BytesIO(self.data))
        except (pa.ArrowException, OSError) as error:
            short = " ".join(str(error).split())[:200]
            raise DataError(f"{self} is damaged or cut short", why=short, todo="fetch it again") from None


class _Cells:
    """Rows of text."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.rows = rows

    def column(self, index: int, name: str) -> list[Any]:
        return [row[index].strip() or None for row in self.rows]

    def figures(self, name: str) -> Floats | None:
        return None


class _Columns:
    """Columns of any type."""

    def __init__(self, columns: dict[str, pd.Series[Any]]) -> None:
        self.columns = columns

    def column(self, index: int, name: str) -> list[Any]:
        column = self.columns[name]
        return list(column.astype(object).where(column.notna(), None))

    def figures(self, name: str) -> Floats | None:
        """A column that is typed as numbers, without a look at each."""
        column = self.columns[name]
        if column.dtype.kind not in "iuf":
            return None
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))


class Table:
    """Rows of a file: columns by name, as numbers or words.

    Args:
        name: of the file, for messages.
        columns: names of the columns.
        cells: what gives a column.
        lines: where each row stands in the file ``(n,)``.
        word: what such a place is called: ``"line"`` or ``"row"``.
    """

    def __init__(
        self, name: str, columns: Sequence[str], cells: _Cells | _Columns, lines: NDArray[np.int64], word: str
    ) -> None:
        self.name, self.columns, self.cells, self.lines, self.word = name, list(columns), cells, lines, word

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def need(self, *names: str) -> None:
        """Raise the error that names the columns which are missing, and what stands near them."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            near = [n for name in missing for n in get_close_matches(name, self.columns, n=1)]
            shown = ", ".join(near or self.columns[:12])
            raise DataError(
                f"{self.name} has no column {', '.join(missing)}",
                why=f"{'near it' if near else 'its columns'}: {shown}",
                todo="rename a column to that, or name the format that the file has with --format",
            )

    def raw(self, name: str) -> list[Any]:
        """Values of a column as they are, ``None`` where empty.

        Raises:
            DataError: there is no such column.
        """
        self.need(name)
        return self.cells.column(self.columns.index(name), name)

    def words(self, name: str) -> NDArray[Any]:
        """Values of a column as text ``(n,)``; empty text where a field is."""
        return np.array(["" if value is None else str(value) for value in self.raw(name)], dtype=object)

    def numbers(self, name: str) -> Floats:
        """Values of a column as numbers ``(n,)``; NaN where a field is empty.

        Raises:
            DataError: no such column, or a field that is not a finite number, with its line.
        """
        self.need(name)
        values = self.cells.figures(name)
        if values is None:
            raw = self.raw(name)
            try:
                values = np.array([np.nan if v is None else float(v) for v in raw], dtype=np.float64)
            except (TypeError, ValueError):
                at = next(i for i, v in enumerate(raw) if not _is_number(v))
                raise self.wrong(name, at, f"{raw[at]!r} is not a number") from None
        if np.isinf(values).any():
            raise self.wrong(name, int(np.flatnonzero(np.isinf(values))[0]), "it is infinite")
        return values

    def sizes(self, name: str, least: int = 1) -> Floats:
        """Whole numbers of at least ``least``; NaN where a field is empty.

        Raises:
            DataError: as :meth:`numbers`, and for a fraction or a smaller number, with its line; or all are empty.
        """
        values = self.numbers(name)
        self._not_all_empty(name, values)
        present = ~np.isnan(values)
        bad = np.flatnonzero(present & ((values < least) | (values != np.floor(values))))
        if len(bad):
            at = int(bad[0])
            raise self.wrong(name, at, f"{values[at]:g} is not a whole number from {least} on")
        return values

    def seconds(self, name: str, unit: float) -> Floats:
        """Times in seconds; NaN where a field is empty, 0 where the source's resolution left nothing.

        Args:
            name: the column.
            unit: seconds in a unit of the source: 1e-3 of milliseconds.

        Raises:
            DataError: as :meth:`numbers`, for a negative time, with its line; or all are empty.
        """
        values = self.numbers(name)
        self._not_all_empty(name, values)
        bad = np.flatnonzero(values < 0)
        if len(bad):
            at = int(bad[0])
            raise self.wrong(name, at, f"a time of {values[at]:g} is negative")
        return np.asarray(values * unit)

    def wrong(self, name: str, at: int, why: str) -> DataError:
        """The error of one field: ``at`` counts the rows of this table."""
        return DataError(
            f"{self.name}: {self.word} {self.lines[at]}, column {name}: {why}", todo="mend that field, or leave it out"
        )

    def _not_all_empty(self, name: str, values: Floats) -> None:
        if np.isnan(values).all():
            raise DataError(
                f"{self.name}: column {name} is empty in every {self.word}",
                why=f"{len(self)} of them, first: {self.word} {self.lines[0]}",
            )


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return value is None
    return True


def values_of(table: Table, name: str) -> Any:
    """A column as numbers, as truth values in words, or as text; words stay words, whatever they look like."""
    if name not in WORDS and table.cells.figures(name) is not None:
        return table.numbers(name)
    raw = table.raw(name)
    present = [value for value in raw if value is not None]
    if name in WORDS:
        return np.array([None if value is None else str(value) for value in raw], dtype=object)
    if present and all(isinstance(value, bool | np.bool_) or value in ("True", "False") for value in present):
        return np.array([None if v is None else str(v).lower() for v in raw], dtype=object)
    try:
        return np.array([np.nan if value is None else float(value) for value in raw], dtype=float)
    except (TypeError, ValueError):
        return np.array([None if value is None else str(value) for value in raw], dtype=object)


def name_of(words: Iterable[str]) -> str:
    """Words as a list in a sentence, the first few."""
    named = sorted(set(words))
    return ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
