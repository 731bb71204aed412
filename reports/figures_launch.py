"""Traces of blocks run operator by operator: who waits for whom, from few tokens to many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.comparisons import closing, words
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding, percent
from wattline.reports.lines import Question, common, panels
from wattline.reports.svg import Panel
from wattline.units import format_time

if TYPE_CHECKING:
    import pandas as pd

MAX_PANELS = 6
PARTS = (
    ("fact.span_s", "from the first operator to the end of the last kernel"),
    ("fact.busy_s", "in which a kernel ran"),
    ("fact.tklqt_s", "launching and queueing, summed over kernels"),
)
"""What is drawn, each with its own colour."""


def _traced(rows: pd.DataFrame) -> pd.DataFrame:
    columns = [name for name, _ in PARTS] + ["fact.verdict", "fact.idle_share"]
    return rows.dropna(subset=columns) if set(columns) <= set(rows.columns) else rows.iloc[:0]


QUESTION = Question(
    "launch_trace", "launch.trace", "Traces of a model: who waits for whom, by tokens", "A traced model", "tokens",
    "tokens",
    "Where the span is far above the time in which kernels ran, the device waits for the host, and fewer launches "
    "(graphs, fusion) would help; where both lie together it is the work that takes the time. On a CPU operators stand "
    "for kernels. The profiler slows calls down: these are figures of traced calls.",
    prepare=_traced, unit="tokens",
)  # fmt: skip


def figures(data: ReportData) -> list[Figure]:
    """Span, busy time and launch time against tokens; none in a run without traces."""
    if not any(record.case.op == QUESTION.op for record in data.records):
        return []
    drawn = panels(QUESTION, data)[:MAX_PANELS]
    if not drawn:
        return [absent(QUESTION.id, QUESTION.title, "No model was traced at two numbers of tokens.")]
    same, rest = common(drawn)
    made: list[Markup] = []
    for panel, left in zip(drawn, rest, strict=True):
        drawing = Panel(f"{QUESTION.id}-{len(made)}", *natural_size(len(drawn))).log("y")
        drawing.log("x", 2, lambda v, _: f"{v:g}").titles(words(left), QUESTION.axis_label, "s")
        for line in panel.lines:
            x = line.rows["tokens"].astype(float)
            for series, (column, _) in enumerate(PARTS):
                y = line.rows[column].astype(float)
                drawing.ax.plot(x, y.where(y > 0), color=svg.SERIES[series], linewidth=1.2)
                drawing.points(x, y, line.rows["anchor"], series)
        verdicts = [f"{int(r['tokens'])} tokens {r['fact.verdict']}" for x in panel.lines for _, r in x.rows.iterrows()]
        made.append(drawing.svg(f"Time of traced calls: {', '.join(verdicts)}."))
    caption = QUESTION.caption + closing(QUESTION, data, same)
    return [Figure(QUESTION.id, QUESTION.title, made, caption, [(i, label) for i, (_, label) in enumerate(PARTS)])]


def finding(data: ReportData) -> Finding | None:
    """The verdict by tokens, and what fusing would save; from records that nothing disturbed."""
    found = panels(QUESTION, data, calm=True)
    if not found:
        if not panels(QUESTION, data):
            return None
        title = "Whether the host or the device bounds a traced model cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding(QUESTION.id, title, text, QUESTION.id, "the traces", quiet=True)
    facts = {
        anchor: record.measurement.facts
        for record, anchor in zip(data.records, data.anchors, strict=True) if record.measurement
    }  # fmt: skip
    same, rest = common(found)
    rows = found[0].lines[0].rows
    verdicts: dict[str, list[str]] = {}
    for _, row in rows.iterrows():
        verdicts.setdefault(str(row["fact.verdict"]), []).append(f"{int(row['tokens'])}")
    told = "; ".join(f"{verdict} at {_listed(tokens)} tokens" for verdict, tokens in verdicts.items())
    given = words({**same, **rest[0]})
    title = f"A model run operator by operator{f' ({given})' if given else ''} is {told}."
    items = tuple(
        _item(row, words(left), facts.get(str(row["anchor"]), {}))
        for panel, left in zip(found, rest, strict=True) for line in panel.lines for _, row in line.rows.iterrows()
    )  # fmt: skip
    text = (
        "Host-bound: the device is idle for more than half of the span; device-bound: for less than a tenth. With the "
        "chain of kernels that one kernel in their place would save most time of."
    )
    return Finding(QUESTION.id, title, text, QUESTION.id, "the traces", items)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _item(row: pd.Series[Any], given: str, facts: Mapping[str, Any]) -> str:
    tokens = int(row["tokens"])
    text = (
        f"{given}{', ' if given else ''}{tokens} token{'s' * (tokens != 1)}: {row['fact.verdict']}, "
        f"idle {percent(float(row['fact.idle_share']))} of {format_time(float(row['fact.span_s']))}"
    )
    if "kernels" in facts and "kernel_s" in facts:
        text += f", {int(facts['kernels'])} kernels of {format_time(float(facts['kernel_s']))}"
    chains = facts.get("fusion")
    return f"{text}; {chains[0]}" if isinstance(chains, list | tuple) and chains else text
