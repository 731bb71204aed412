"""The tables by operation and by number format of a report on several runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from wattline.reports.comparing.comparison import Comparison, Group, group_by
from wattline.reports.comparing.judging import LESS, MORE, SAME
from wattline.reports.comparing.words import percent_change
from wattline.reports.findings import times
from wattline.reports.several import figures

_LONGEST_NAME = 12
"""Most letters of a name that cells repeat; three columns of figures stand beside it in half a screen."""


@dataclass(frozen=True)
class Cell:
    """What a row of a table of groups says of one side: text, drawing and verdict."""

    text: str
    bar: Markup | str = ""
    word: str = ""
    title: str = ""


@dataclass(frozen=True)
class GroupRow:
    """One operation or format: its name, number of cases, a cell per quantity and side, and the best side."""

    name: str
    cases: int
    time: Sequence[Cell]
    energy: Sequence[Cell]
    best: str


def short_names(names: Sequence[str]) -> list[str]:
    """The names of two sides for the cells of a table: ``A`` and ``B`` where one is too long for that."""
    return list(names) if max(map(len, names)) <= _LONGEST_NAME else ["A", "B"]


def group_rows(comparisons: Sequence[Comparison], names: Sequence[str], by: str) -> list[GroupRow]:
    """The rows of one table.

    Between two versions those that are told to differ come first, the largest change before all. Between two machines
    the formats of an operation stand together, and what only one of them measured has a row that says so.

    Args:
        comparisons: of each further side with the first.
        names: of all sides.
        by: as of :func:`wattline.reports.comparing.comparison.group_by`.
    """
    tables = {
        quantity: [{g.name: g for g in group_by(c, quantity, by)} for c in comparisons]
        for quantity in ("time", "energy")
    }
    choice = len(comparisons) == 1 and not comparisons[0].same_machine
    found = dict.fromkeys(name for table in tables["time"] for name, group in table.items() if group.count)
    everything = [g for quantity in tables.values() for table in quantity for g in table.values() if g.count]
    span = figures.span_of([math.log(g.ratio) for g in everything])
    rows = []
    for name in found:
        cells = {
            quantity: [
                _better(table.get(name), comparison, short_names(names), span, quantity) if choice
                else _cell(table.get(name), comparison, span, quantity)
                for table, comparison in zip(tables[quantity], comparisons, strict=True)
            ]
            for quantity in tables
        }  # fmt: skip
        count = max((table[name].count for table in tables["time"] if name in table), default=0)
        mine = [table.get(name) for table in tables["time"]]
        rows.append(GroupRow(name, count, cells["time"], cells["energy"], _best(mine, names)))
    if choice:
        (table,) = tables["time"]
        alone = [group for group in table.values() if not group.count and _lacking(group)[1]]
        rows += [_one_sided(group, short_names(names)) for group in alone]
        sizes: Counter[str] = Counter()
        for row in rows:
            sizes[row.name.split(" ")[0]] += row.cases
        return sorted(rows, key=lambda row: (-sizes[first := row.name.split(" ")[0]], first, -row.cases))

    def changed(row: GroupRow) -> float:
        groups = [table.get(row.name) for table in tables["time"]]
        return max(abs(g.share) if g and g.verdict and g.verdict.word in (MORE, LESS) else 0.0 for g in groups)

    return sorted(rows, key=lambda row: (-changed(row), -row.cases))


def _one_sided(group: Group, names: Sequence[str]) -> GroupRow:
    """The row of what only one of two machines measured."""
    side, count = _lacking(group)
    other = names[1 - side]
    cell = Cell(f"{other} only", "", "", f"{names[side]} has no figure for these cases; the table of cases says why")
    return GroupRow(group.name, count, [cell], [Cell("")], other)


def _lacking(group: Group) -> tuple[int, int]:
    """The side that has no figures for a group that the other has, and for how many cases; of both the larger."""
    of_b = group.counts.get("broken", 0) + group.counts.get("missing", 0)
    of_a = group.counts.get("fixed", 0) + group.counts.get("new", 0)
    return (1, of_b) if of_b >= of_a else (0, of_a)


def _better(group: Group | None, comparison: Comparison, names: Sequence[str], span: float, quantity: str) -> Cell:
    """Which of two machines is the better one for a group, and by what factor."""
    cell = _cell(group, comparison, span, quantity)
    if group is None or not group.count:
        return cell
    if group.verdict is None or group.verdict.word not in (MORE, LESS):
        alike = group.verdict is not None and group.verdict.word == SAME
        return Cell("alike" if alike else f"not told ({cell.text})", cell.bar, "", cell.title)
    better = names[1] if group.ratio < 1 else names[0]
    factor = times(math.exp(abs(math.log(group.ratio))))
    return Cell(f"{better} {factor}\N{NO-BREAK SPACE}x", cell.bar, "", f"{cell.title} in {names[1]}")


def _cell(group: Group | None, comparison: Comparison, span: float, quantity: str) -> Cell:
    if group is None or not group.count:
        return Cell("")
    contrast = comparison.time if quantity == "time" else comparison.energy
    offset = contrast.shift.value if contrast and contrast.shift.removed else 0.0
    words = {MORE: "slower", LESS: "faster"} if quantity == "time" else {MORE: "more", LESS: "less"}
    word = words.get(group.verdict.word, group.verdict.word) if group.verdict else ""
    low, high = (group.verdict.lo + offset, group.verdict.hi + offset) if group.verdict else (math.nan, math.nan)
    colour = {"more": "slower", "less": "faster"}.get(word, word)
    drawn = figures.bar(math.log(group.ratio), low, high, span, colour)
    title = (
        f"{percent_change(math.exp(min(low, 50)) - 1)} to {percent_change(math.exp(min(high, 50)) - 1)}"
        if group.verdict
        else "fewer than four cases"
    )
    return Cell(percent_change(group.ratio - 1), drawn, word, title)


def _best(groups: Sequence[Group | None], names: Sequence[str]) -> str:
    """The side that is told to be fastest; ``"alike"`` where all are the same."""
    if all(group and group.verdict and group.verdict.word == SAME for group in groups):
        return "alike"
    ratios = [(1.0, names[0], True)]
    for group, name in zip(groups, names[1:], strict=True):
        if group and group.count:
            told = bool(group.verdict and group.verdict.word in (MORE, LESS))
            ratios.append((group.ratio, name, told))
    if len(ratios) < 2:
        return ""
    quickest = min(ratios)
    # The first side is best only where every other one is told to be slower.
    if quickest[1] == names[0]:
        return names[0] if all(told for *_, told in ratios[1:]) else ""
    return quickest[1] if quickest[2] else ""
