"""Ways of computing the same thing, along one size: lines that can be compared, who is quickest where, and since when.

A :class:`Question` says which operation, along which parameter, and what distinguishes the lines; :func:`panels` finds
in a run every set of records that agree in all else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from wattline.reports.crossover import crossover
from wattline.reports.data import ReportData
from wattline.reports.findings import STEADY

if TYPE_CHECKING:
    import pandas as pd

DISTURBED = "noisy|foreign_process"
"""Flags of records that must not carry a statement about who is quicker."""


@dataclass(frozen=True)
class Quantity:
    """What stands on the vertical axis.

    Attributes:
        label: with its unit.
        of: its values for the rows.
        word: for sentences.
    """

    label: str
    of: Callable[[pd.DataFrame], pd.Series[float]]
    word: str


TIME = Quantity("s", lambda rows: rows["time_s"], "time")
SPEED = Quantity("FLOP/s", lambda rows: rows["flops_per_s"], "speed")
BANDWIDTH = Quantity("B/s", lambda rows: rows["bytes_per_s"], "bandwidth")


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        id: anchor of its figure.
        op: the operation.
        title: of the figure.
        subject: begins the sentences of its finding.
        axis: the column along which the lines run.
        axis_label: for the drawing.
        caption: what is seen and how to read it.
        quantity: the vertical axis.
        series: columns that tell the lines apart.
        moving: parameters that may change along a line, because they follow from the axis.
        prepare: rows and derived columns of interest, from all rows of the operation and of :attr:`beside`.
        beside: further operations whose rows stand as lines of their own.
        unit: what one step of the axis is, for sentences: ``"tokens"``.
        log: whether the axis is logarithmic.
        binary: whether the axis counts bytes, told by powers of 1024.
    """

    id: str
    op: str
    title: str
    subject: str
    axis: str
    axis_label: str
    caption: str
    quantity: Quantity = TIME
    series: tuple[str, ...] = ("impl",)
    moving: tuple[str, ...] = ()
    prepare: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    beside: tuple[str, ...] = ()
    unit: str = ""
    log: bool = True
    binary: bool = False


@dataclass(frozen=True)
class Line:
    """One way of computing, along the axis.

    Attributes:
        name: in words.
        rows: its records by rising axis, one for each value.
        beside: another operation, held against and not compared with.
    """

    name: str
    rows: pd.DataFrame
    beside: bool = False


@dataclass(frozen=True)
class LinePanel:
    """Lines that agree in everything but the axis and what tells them apart.

    Attributes:
        given: what they agree in: names and values.
        lines: in the order of their names.
    """

    given: dict[str, Any]
    lines: tuple[Line, ...] = field(default=())

    @property
    def records(self) -> int:
        """Number of records."""
        return sum(len(line.rows) for line in self.lines)

    @property
    def rivals(self) -> tuple[Line, ...]:
        """The lines that are compared with each other."""
        return tuple(line for line in self.lines if not line.beside)


def rows_of(question: Question, data: ReportData, calm: bool = False) -> pd.DataFrame:
    """The usable rows that a question is about.

    Args:
        question: the question.
        data: the run.
        calm: leave out those that noise or other processes disturbed.
    """
    rows = data.usable_of([question.op, *question.beside])
    kept = (rows["variant"].fillna("") != "b").to_numpy(bool)
    if calm:
        kept &= ~(rows["half_width"] > STEADY).to_numpy(bool)
        kept &= ~rows["flags"].fillna("").str.contains(DISTURBED).to_numpy(bool)
    rows = rows if kept.all() else rows[kept]  # a frame of many columns is not copied for nothing
    if len(rows) and question.prepare is not None:
        rows = question.prepare(rows)
    return rows


def panels(question: Question, data: ReportData, calm: bool = False) -> list[LinePanel]:
    """The sets of lines that a run supports, those with the most records first.

    A set is kept where at least one line has two points.
    """
    key = ("panels", question, calm)  # a figure and a finding ask the same
    return cast("list[LinePanel]", data.once(key, lambda: _panels(question, data, calm)))


def _panels(question: Question, data: ReportData, calm: bool) -> list[LinePanel]:
    rows = rows_of(question, data, calm)
    if rows.empty or question.axis not in rows.columns:
        return []
    known = {name for r in data.records if r.case.op == question.op for name in r.case.params}
    out = {question.axis, "impl", "dtype", *question.series, *question.moving}
    keys = [k for k in ("dtype", "regime", "data", *sorted(known - out)) if k in rows.columns]
    keys += [c for c in rows.columns if c.startswith("given.")]
    points = _points(rows, question, keys)
    own = [point for point in points if point.op == question.op]
    others = {op: [point for point in points if point.op == op] for op in question.beside}
    # Parameters that an operation beside does not have are absent in its rows: it goes along with every value.
    shared = {
        op: [i for i in range(len(keys)) if any(point.given[i] is not None for point in other)]
        for op, other in others.items()
    }
    found = []
    for values, group in _grouped(own, lambda point: point.given):
        lines = [(name, at, False) for name, at in _lines(group, question)]
        for op, other in others.items():
            along = [p for p in other if all(p.given[i] == values[i] is not None for i in shared[op])]
            lines += [(f"{op} {name}", at, True) for name, at in _lines(along, question)]
        if any(len(at) > 1 for _, at, _ in lines):
            given = {key.removeprefix("given."): value for key, value in zip(keys, values, strict=True)}
            found.append(LinePanel(given, tuple(Line(name, rows.iloc[at], beside) for name, at, beside in lines)))
    return sorted(found, key=lambda p: (-p.records, str(p.given)))


class _Point(NamedTuple):
    """What tells a row apart: operation, conditions, what names its line, and its position; absent is ``None``."""

    op: str
    given: tuple[Any, ...]
    names: tuple[Any, ...]
    at: int


def _points(rows: pd.DataFrame, question: Question, keys: Sequence[str]) -> list[_Point]:
    """The rows by rising axis; of several of one point the quickest counts.

    Plain tuples: rows are few, and a frame takes a millisecond for each step of what follows.
    """
    given, names = (
        list(zip(*(_values(rows[name]) for name in columns), strict=True)) if columns else [()] * len(rows)
        for columns in (keys, question.series)
    )
    place, ops = rows[question.axis].to_numpy(float, na_value=np.nan), rows["op"].tolist()
    quickest: dict[tuple[Any, ...], int] = {}
    for i in np.argsort(rows["time_s"].to_numpy(float), kind="stable").tolist():
        if place[i] == place[i]:
            quickest.setdefault((ops[i], given[i], names[i], place[i]), i)
    return [_Point(ops[i], given[i], names[i], i) for i in sorted(quickest.values(), key=lambda i: place[i])]


def _values(column: pd.Series[Any]) -> list[Any]:
    absent = column.isna().tolist()
    return [None if gone else value for value, gone in zip(column.tolist(), absent, strict=True)]


def _grouped(
    points: Sequence[_Point], key: Callable[[_Point], tuple[Any, ...]]
) -> list[tuple[tuple[Any, ...], list[_Point]]]:
    """Points of equal keys together, in their order; keys rise, what is absent last."""
    groups: dict[tuple[Any, ...], list[_Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return sorted(groups.items(), key=lambda group: [(v is None, 0 if v is None else v) for v in group[0]])


def _lines(points: Sequence[_Point], question: Question) -> list[tuple[str, list[int]]]:
    """Name and positions of each line among points that agree in all else."""
    lines = []
    for names, part in _grouped(points, lambda point: point.names):
        words = [str(n) if c == "impl" else f"{c.replace('_', ' ')} {n}"
                 for c, n in zip(question.series, names, strict=True)]  # fmt: skip
        lines.append((", ".join(words), [point.at for point in part]))
    return lines


@dataclass(frozen=True)
class Stretch:
    """A stretch of the axis with one quickest line.

    Attributes:
        names: the lines that cannot be told from the quickest; the quickest first.
        first, last: the first and the last value of the axis at which it was seen.
        since: where it overtook the stretch before, interpolated; ``None`` for the first one.
    """

    names: tuple[str, ...]
    first: float
    last: float
    since: float | None = None


def stretches(panel: LinePanel, question: Question) -> list[Stretch]:
    """Who is quickest along the axis, at the values where at least two lines were measured."""
    table: dict[float, list[tuple[float, float, float, str]]] = {}
    for line in panel.rivals:
        columns = (line.rows[c].astype(float) for c in (question.axis, "time_s", "time_lo_s", "time_hi_s"))
        for x, time, low, high in zip(*columns, strict=True):
            table.setdefault(x, []).append((time, low, high, line.name))
    seen: list[tuple[float, tuple[str, ...]]] = []
    for x in sorted(x for x, entries in table.items() if len(entries) > 1):
        entries = sorted(table[x])
        quickest = entries[0]
        seen.append((x, tuple(name for _, low, _, name in entries if low <= quickest[2])))
    found: list[Stretch] = []
    for names, group in groupby(seen, key=lambda s: s[1][0]):
        here = list(group)
        # A name stands beside the quickest only where it could not be told from it anywhere on the stretch.
        ties = tuple(n for n in here[0][1] if n != names and all(n in s[1] for s in here))
        found.append(Stretch((names, *ties), here[0][0], here[-1][0], None))
    return [
        s if i == 0 else Stretch(s.names, s.first, s.last, _overtakes(panel, question, found[i - 1], s))
        for i, s in enumerate(found)
    ]


def _overtakes(panel: LinePanel, question: Question, before: Stretch, after: Stretch) -> float | None:
    """Where one line overtakes another, between the last point of the one and the first of the other."""
    span = [before.last, after.first]
    if span[0] <= 0:
        return None
    times = []
    for name in (before.names[0], after.names[0]):
        line = next(line for line in panel.lines if line.name == name)
        at = dict(zip(line.rows[question.axis].astype(float), line.rows["time_s"], strict=True))
        if not all(x in at for x in span):
            return None
        times.append([float(at[x]) for x in span])
    return crossover(span, times[0], times[1]).x


def edge(panel: LinePanel, question: Question) -> tuple[float, str, str, float] | None:
    """The quickest and the slowest line at the last value of the axis that two lines or more share.

    Returns:
        The value, both names and the ratio of their times; ``None`` without such a value.
    """
    shared: dict[float, list[tuple[float, str]]] = {}
    for line in panel.rivals:
        for x, time in zip(line.rows[question.axis].astype(float), line.rows["time_s"], strict=True):
            shared.setdefault(x, []).append((float(time), line.name))
    values = [x for x, entries in shared.items() if len(entries) > 1]
    if not values:
        return None
    x = max(values)
    low, high = min(shared[x]), max(shared[x])
    return x, low[1], high[1], high[0] / low[0]


def shares(panel: LinePanel, question: Question) -> list[tuple[str, float, float]]:
    """How close each line comes to the one that stands beside: name, least and largest ratio of their times.

    Returns:
        One entry for each line that shares a value of the axis with the line beside, in their order; none where no
        line stands beside. 1 is as quick as that one.
    """
    ideal: dict[float, float] = {}
    for line in (line for line in panel.lines if line.beside):
        for x, time in zip(line.rows[question.axis].astype(float), line.rows["time_s"], strict=True):
            ideal[x] = min(float(time), ideal.get(x, float("inf")))
    found = []
    for line in panel.rivals:
        pairs = zip(line.rows[question.axis].astype(float), line.rows["time_s"], strict=True)
        reached = [ideal[x] / float(time) for x, time in pairs if x in ideal]
        if reached:
            found.append((line.name, min(reached), max(reached)))
    return found


def common(found: Sequence[LinePanel]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all panels agree in, and what is left to name each of them."""
    if not found:
        return {}, []
    same = {
        name: value for name, value in found[0].given.items()
        if all(name in p.given and _equal(p.given[name], value) for p in found)
    }  # fmt: skip
    return same, [{n: v for n, v in p.given.items() if n not in same} for p in found]


def _equal(a: Any, b: Any) -> bool:
    import pandas as pd

    if pd.isna(a) or pd.isna(b):
        return bool(pd.isna(a) and pd.isna(b))
    return bool(a == b)


def growth(line: Line, question: Question) -> float | None:
    """The factor by which the quantity grows from the first to the last point of a line; ``None`` for one point."""
    if len(line.rows) < 2:
        return None
    y = question.quantity.of(line.rows)
    return float(y.iloc[-1] / y.iloc[0]) if float(y.iloc[0]) > 0 else None

