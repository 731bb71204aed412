"""Figures and findings of :mod:`wattline.reports.questions`: implementations of one thing along one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.data import SILENT, ReportData
from wattline.reports.findings import Finding, percent, times
from wattline.reports.lines import (
    LinePanel,
    Question,
    Stretch,
    common,
    edge,
    growth,
    panels,
    shares,
    stretches,
)
from wattline.reports.questions import QUESTIONS
from wattline.reports.svg import Panel

MAX_PANELS = 6
MAX_LINES = 8
_BESIDE = (svg.MUTED, "--")


def asked_of(data: ReportData, kinds: Sequence[str] | None = None) -> list[Question]:
    """The questions about operations of a run, of all or of those whose names begin with one of ``kinds``."""
    present = {r.case.op for r in data.records if kinds is None or r.case.op.partition(".")[0] in kinds}
    return [question for question in QUESTIONS if question.op in present]


def figures(data: ReportData, kinds: Sequence[str] | None = None) -> list[Figure]:
    """One figure for each question that the run can answer; the others are named together at the end."""
    asked = asked_of(data, kinds)
    made = [(question, _figure(question, data)) for question in asked]
    found = [figure for _, figure in made if figure is not None]
    missing = [f"{question.op} over {question.axis}" for question, figure in made if figure is None]
    if missing:
        why = f"These have figures at fewer than two values, or at none that can be trusted: {'; '.join(missing)}."
        where = f"comparisons-{'-'.join(kinds)}" if kinds else "comparisons"
        found.append(absent(where, "Implementations along one size", why))
    return found


def _figure(question: Question, data: ReportData) -> Figure | None:
    drawn = panels(question, data)[:MAX_PANELS]
    if not drawn:
        return None
    names = list(dict.fromkeys(line.name for panel in drawn for line in panel.lines))
    shown = names[:MAX_LINES]
    same, rest = common(drawn)
    made: list[Markup] = []
    for panel, left in zip(drawn, rest, strict=True):
        drawing = Panel(f"{question.id}-{len(made)}", *natural_size(len(drawn))).log("y")
        if question.log:
            drawing.log("x", 2, svg.binary_tick if question.binary else svg.count_tick)
        else:
            drawing.linear("x", lambda v, _: f"{v:g}")
        drawing.titles(words(left), question.axis_label, question.quantity.label)
        for line in (line for line in panel.lines if line.name in shown):
            series = shown.index(line.name)
            x, y = line.rows[question.axis].astype(float), question.quantity.of(line.rows)
            colour, style = _BESIDE if line.beside else (svg.SERIES[series], "-")
            drawing.ax.plot(x, y, style, color=colour, linewidth=1.2)
            drawing.points(x, y, line.rows["anchor"], series)
        found = stretches(panel, question)
        for stretch in (s for s in found if s.since is not None):
            drawing.ax.axvline(stretch.since, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        made.append(drawing.svg(
            f"{question.title}{'; ' + words(left) if left else ''}: {len(panel.lines)} lines, "
            f"{sum(s.since is not None for s in found)} crossings of the quickest."
        ))  # fmt: skip
    caption = question.caption
    if any(s.since is not None for panel in drawn for s in stretches(panel, question)):
        caption += " Dotted: where another line becomes the quickest."
    caption += closing(question, data, same, len(names) - len(shown))
    return Figure(question.id, question.title, made, caption, list(enumerate(shown)))


def closing(question: Question, data: ReportData, same: dict[str, Any], hidden: int = 0, what: str = "line") -> str:
    """The end of a caption: what all panels agree in, how many lines are not drawn, and what cannot run here."""
    text = f" The same throughout: {words(same)}." if words(same) else ""
    if hidden:
        text += f" {hidden} further {what}{'s are' if hidden > 1 else ' is'} in the table only."
    if lacking := unsupported(question, data):
        text += f" Unsupported here: {lacking}."
    return text


def unsupported(question: Question, data: ReportData) -> str:
    """The implementations that this machine cannot run, or not in every case, with the first reason given."""
    reasons: dict[str, str] = {}
    measured = {record.case.impl for record in data.records if record.case.op == question.op and record.valid}
    for record in data.records:
        if record.case.op == question.op and record.status == "unsupported" and record.reason:
            # What, without why and what to do: those stand in the table of what could not be measured.
            reasons.setdefault(record.case.impl, record.reason.message.partition("; ")[0])
    return "; ".join(
        f"{impl}{' in part' if impl in measured else ''}, because {reasons[impl]}" for impl in sorted(reasons)
    )


def words(given: dict[str, Any]) -> str:
    """Conditions for people: ``fp32, cold, heads 14``; what is absent or a default that says nothing is left out."""
    parts = []
    for name, value in given.items():
        if pd.isna(value) or value in SILENT.get(name, ()):
            continue
        if name in _SIZES:
            parts.append(f"{svg.binary_tick(float(value))}{_SIZES[name]}")
        elif name in ("dtype", "regime", "data") or value is True:
            parts.append(name.replace("_", " ") if value is True else str(value))
        elif value is False:
            parts.append(f"not {name.replace('_', ' ')}")
        else:
            parts.append(f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else
                         f"{name.replace('_', ' ')} {value}")  # fmt: skip
    return ", ".join(parts)


_SIZES = {"bytes": "", "row_bytes": " a row", "block_bytes": " a block"}
"""Conditions in bytes, and what follows them in a title."""


def find(data: ReportData, kinds: Sequence[str] | None = None) -> list[Finding]:
    """For each question: who is quickest where, from records that nothing disturbed."""
    found = [_finding(question, data) for question in asked_of(data, kinds)]
    return [f for f in found if f]


def _finding(question: Question, data: ReportData) -> Finding | None:
    told = [(p, s) for p in panels(question, data, calm=True) if (s := stretches(p, question))]
    if not told:
        if not any(stretches(p, question) for p in panels(question, data)):
            return None
        title = f"{question.subject}: who is quickest where cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding(question.id, title, text, question.id, "the lines", quiet=True)
    _, rest = common([panel for panel, _ in told])
    first, where = told[0]
    title = f"{question.subject}: {_told(where, question)}"
    last = edge(first, question)
    if last and last[3] >= 1.05:
        x, low, high, ratio = last
        title += f"; at {_at(x, question)} {high} takes {times(ratio)} times as long as {low}"
    reached = shares(first, question)
    if reached:
        name, _, best = max(reached, key=lambda r: r[2])
        title += f"; {name} reaches {percent(best)} of the {question.quantity.word} of {', '.join(question.beside)}"
    items = tuple(
        f"{words(left) or 'all'}: {_told(s, question)}{_shares(panel, question) or _growths(panel, question)}"
        for (panel, s), left in zip(told, rest, strict=True)
    )
    text = "The quickest line along the axis, where two or more were measured; those whose intervals overlap are equal."
    more = len(items) > 1 or reached or _growths(first, question)
    return Finding(question.id, title + ".", text, question.id, "the lines", items if more else ())


def _told(found: list[Stretch], question: Question) -> str:
    if len(found) == 1:
        return f"{_names(found[0])} quickest throughout"
    parts = []
    for i, stretch in enumerate(found):
        name = _names(stretch)
        if i == 0:
            span = "at" if stretch.first == stretch.last else "up to"
            parts.append(f"{name} quickest {span} {_at(stretch.last, question)}")
        else:
            even = f" (even near {_near(stretch.since, question)})" if stretch.since else ""
            parts.append(f"{name} from {_at(stretch.first, question)}{even}")
    return ", ".join(parts)


def _names(stretch: Stretch) -> str:
    names = stretch.names
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} equally"


def _at(x: float, question: Question) -> str:
    if question.binary:
        return svg.binary_tick(x) + (f" {question.unit}" if question.unit else "")
    if not question.unit:
        return f"{question.axis} {_number(x)}"
    return f"{_number(x)} {question.unit.removesuffix('s') if x == 1 else question.unit}"


def _near(x: float, question: Question) -> str:
    """A value between those measured, to as few figures as it is known to."""
    if not question.binary:
        return _number(x)
    unit = 1024 ** min(3, max(0, int(math.log(x, 1024))))
    return svg.binary_tick(max(1, round(x / unit)) * unit)


def _number(x: float) -> str:
    """Sizes as they are, values between them to two figures."""
    return f"{x:.0f}" if x == int(x) else f"{x:.2g}" if x < 100 else f"{round(x, 1 - len(str(int(x))) + 1):.0f}"


def _shares(panel: LinePanel, question: Question) -> str:
    parts = [
        f"{name} {percent(low)} to {percent(high)}" if high > 1.02 * low else f"{name} {percent(high)}"
        for name, low, high in shares(panel, question)
    ]
    return f" (of {', '.join(question.beside)}: {', '.join(parts)})" if parts else ""


def _growths(panel: LinePanel, question: Question) -> str:
    """How each line's quantity changes along the axis, for the questions that are about growth."""
    if question.quantity.word == "time":
        return ""
    parts = []
    for line in panel.lines:
        change = growth(line, question)
        if change:
            parts.append(f"{line.name} {times(change)} times")
    return f" ({question.quantity.word} from first to last: {', '.join(parts)})" if parts else ""
