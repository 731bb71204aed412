"""From a frame to blocks: rows that share every word, with their numbers as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.errors import DataError, ParamError
from wattline.formats import FORMATS, unknown_format

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

REQUIRED_COLUMNS = ("op", "device", "impl", "dtype")
NAMED = (*REQUIRED_COLUMNS, "regime", "data")
"""Columns of words that every row has; ``regime`` and ``data`` may be left out (then '')."""
TARGETS = ("time_s", "power_w")
FLAGS = frozenset({"causal", "gated"})
"""Parameters that are true or false, also where a table writes 1 and 0; they count as words."""


@dataclass(frozen=True)
class Words:
    """The words of a block: what is not a number.

    Attributes:
        op, device, impl, dtype, regime, data: as the columns of those names.
        others: other text parameters (``kv_dtype``, ``routing`` ...), sorted by name.
    """

    op: str
    device: str
    impl: str
    dtype: str
    regime: str = ""
    data: str = ""
    others: tuple[tuple[str, str], ...] = ()

    def categories(self) -> list[tuple[str, str]]:
        """Column and value of every word that may matter to speed."""
        named = [(name, getattr(self, name)) for name in NAMED]
        return [(name, value) for name, value in (*named, *self.others) if value]


@dataclass
class Block:
    """Rows that share their words.

    Attributes:
        words: the words.
        rows: positions in the frame ``(n,)``.
        numbers: numeric parameters present in these rows, float64 arrays ``(n,)``; NaN where a row has none.
    """

    words: Words
    rows: NDArray[np.int64]
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def blocks_of(X: pd.DataFrame) -> list[Block]:
    """Split a frame into blocks.

    Args:
        X: columns op, device, impl, dtype, and the parameters; numbers, truth values or text; NaN where absent.

    Raises:
        DataError: not a frame, a column missing or named twice, or a word missing in a row.
        ParamError: a number that is infinite or not a number.
        UnknownNameError: an unknown number format.
    """
    import pandas as pd

    if not isinstance(X, pd.DataFrame):
        raise DataError(f"X must be a pandas DataFrame, not {type(X).__name__}")
    missing = [c for c in REQUIRED_COLUMNS if c not in X.columns]
    if missing:
        raise DataError(
            f"X has no column {', '.join(missing)}",
            why=f"its columns: {', '.join(map(str, X.columns))}",
            todo=f"give {', '.join(REQUIRED_COLUMNS)} and the parameters of the operations",
        )
    if not X.columns.is_unique:
        raise DataError("X names a column twice", todo="drop or rename one")
    wrong = [c for c in TARGETS if c in X.columns]
    if wrong:
        raise DataError(f"X holds {', '.join(wrong)}: that is what a predictor predicts", todo="move it to y")
    words: dict[str, tuple[NDArray[np.int64], list[str]]] = {}
    numbers: dict[str, NDArray[np.float64]] = {}
    for name in X.columns:
        column = X[name]
        if name in NAMED or name in FLAGS or _is_text(column):
            words[str(name)] = _text(column, str(name), required=name in REQUIRED_COLUMNS)
        else:
            numbers[str(name)] = _numbers(column, str(name))
    if not len(X):
        return []
    codes = np.zeros(len(X), np.int64)
    for own, found in words.values():
        if len(found) > 1:
            codes = pd.factorize(codes * len(found) + own)[0].astype(np.int64)
    order = np.argsort(codes, kind="stable")
    names, columns = list(numbers), list(numbers.values())
    given = np.array([~np.isnan(column) for column in columns]).reshape(len(columns), len(X))
    out = []
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        first = {name: found[own[rows[0]]] for name, (own, found) in words.items()}
        others = tuple(sorted((k, v) for k, v in first.items() if k not in NAMED and v))
        named = Words(**{k: first.get(k, "") for k in NAMED}, others=others)
        check_format(named.dtype)
        present = np.flatnonzero(given[:, rows].any(axis=1))
        out.append(Block(named, rows, {names[i]: columns[i][rows] for i in present}))
    return out


PIECE = 16384
"""Rows answered at once: long enough that calls of numpy cost little, short enough for a core's cache."""


def in_pieces(blocks: list[Block]) -> list[list[Block]]:
    """The same rows in pieces of at most :data:`PIECE` rows; many short blocks share a piece."""
    out: list[list[Block]] = []
    room = 0
    for block in blocks:
        for start in range(0, len(block.rows), PIECE):
            part = slice(start, start + PIECE)
            numbers = {name: values[part] for name, values in block.numbers.items()}
            cut = Block(block.words, block.rows[part], {k: v for k, v in numbers.items() if not np.isnan(v).all()})
            if not out or len(cut.rows) > room:
                out.append([])
                room = PIECE
            out[-1].append(cut)
            room -= len(cut.rows)
    return out


def check_format(dtype: str) -> None:
    """Raise the error that names the nearest formats, where ``dtype`` is none."""
    if dtype not in FORMATS:
        raise unknown_format(dtype)


def _is_text(column: pd.Series[Any]) -> bool:
    import pandas as pd

    kind = column.dtype
    if pd.api.types.is_bool_dtype(kind):
        return True
    if pd.api.types.is_numeric_dtype(kind):
        return False
    if kind.kind == "O" and not isinstance(kind, pd.api.extensions.ExtensionDtype):
        # A column of numbers with None in it arrives as objects.
        return bool(column.map(lambda v: isinstance(v, str | bool | np.bool_)).any())
    return True


def _text(column: pd.Series[Any], name: str, *, required: bool) -> tuple[NDArray[np.int64], list[str]]:
    """A column of words as numbers of words, and the words; '' where there is none."""
    import pandas as pd

    codes, found = pd.factorize(column)
    absent = codes < 0
    if required and absent.any():
        raise DataError(f"column {name} is empty in {int(absent.sum())} rows", why=f"first: row {_first(absent)}")
    words = [word_of(value) for value in found]
    if absent.any():
        codes = np.where(absent, len(words), codes)
        words.append("")
    # Different values may be one word (True and 1); they must be one number as well.
    distinct = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return np.array([distinct[word] for word in words], np.int64)[codes], list(distinct)


def word_of(value: object) -> str:
    """A truth value (or 0 and 1) as the word ``"true"`` or ``"false"``; text as it is."""
    if isinstance(value, str):
        return value
    return "true" if value else "false"


def _numbers(column: pd.Series[Any], name: str) -> NDArray[np.float64]:
    import pandas as pd

    try:
        values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ParamError(f"column {name} holds something that is not a number", why=str(error)) from None
    if np.isinf(values).any():
        raise ParamError(f"{name} must be finite", why=f"row {_first(np.isinf(values))} is infinite")
    return np.asarray(values)


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])


def complete(
    numbers: Mapping[str, Any], family_params: Mapping[str, float | None], op: str, *, many: bool
) -> dict[str, Any]:
    """The parameters of an operation, defaults filled in.

    Args:
        numbers: what was given, plain numbers or arrays.
        family_params: numeric parameters with defaults, ``None`` where one must be given.
        op: for messages.
        many: whether the numbers are arrays.

    Raises:
        ParamError: a needed parameter is missing (or NaN), or a size is not above zero.
    """
    out: dict[str, Any] = {}
    for name, default in family_params.items():
        value = numbers.get(name)
        if value is None:
            if default is None:
                raise ParamError(f"parameter {name!r} of {op} is missing", todo=f"give {name}=...")
            out[name] = default
            continue
        if many:
            absent = np.isnan(value)
            if absent.any():
                if default is None:
                    raise ParamError(
                        f"parameter {name!r} of {op} is missing (NaN) in {int(absent.sum())} rows",
                        todo=f"give {name} for every {op} row",
                    )
                value = np.where(absent, default, value)
            smallest = float(value.min()) if len(value) else 1.0
        else:
            if isinstance(value, str) or not -1e300 < value < 1e300:
                raise ParamError(f"parameter {name!r} of {op} must be a finite number, not {value!r}")
            smallest = value = float(value)
        if smallest < 0 or (smallest == 0 and default != 0.0):
            raise ParamError(f"parameter {name!r} of {op} must be above zero, not {smallest:g}")
        out[name] = value
    return out


def targets_of(y: pd.DataFrame, X: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds and watts of the training rows.

    Raises:
        DataError: no column time_s, another number of rows than X, or a figure that is not above zero.
    """
    import pandas as pd

    if not isinstance(y, pd.DataFrame) or "time_s" not in y.columns:
        raise DataError("y must be a DataFrame with the column time_s (and power_w where measured)")
    if len(y) != len(X):
        raise DataError(f"X has {len(X)} rows and y {len(y)}", todo="give one row of y for each of X, in its order")
    time = _numbers(y["time_s"], "time_s")
    power = _numbers(y["power_w"], "power_w") if "power_w" in y.columns else np.full(len(y), np.nan)
    bad = ~(time > 0)
    if bad.any():
        raise DataError(
            f"time_s is not above zero in {int(bad.sum())} rows", why=f"first: row {_first(bad)}",
            todo="leave out rows that failed",
        )  # fmt: skip
    if (power <= 0).any():
        raise DataError(
            f"power_w is not above zero in {int((power <= 0).sum())} rows", why=f"first: row {_first(power <= 0)}",
            todo="leave power empty (NaN) where nobody measured it",
        )  # fmt: skip
    return time, power
