"""Offloading: how much of the fetching a pipeline hides, and whether a split optimizer does what a small model says."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.comparisons import unsupported, words
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding, percent
from wattline.reports.lines import Question, common, panels
from wattline.reports.svg import Panel, binary_tick
from wattline.units import format_time

if TYPE_CHECKING:
    import pandas as pd

MAX_PANELS = 6
LITTLE = 0.01
"""Least share of idle memory that is worth a headline."""
_BOUNDS = ("fact.no_overlap_s", "fact.perfect_overlap_s")
_SPLIT = ("fact.predicted_step_s", "fact.best_share", "fact.best_step_s")


def _with(*columns: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def keep(rows: pd.DataFrame) -> pd.DataFrame:
        if not set(columns) <= set(rows.columns):
            return rows.iloc[:0]
        return rows.dropna(subset=list(columns))

    return keep


def _layers(rows: pd.DataFrame) -> pd.DataFrame:
    rows = _with(*_BOUNDS)(rows)
    if rows.empty:
        return rows
    # The size of a layer and a computation's length belong in the title; a chunk of 0 is a whole layer.
    return rows.assign(
        chunk=rows["chunk"].where(rows["chunk"] > 0, rows["bytes"]),
        compute_s=[format_time(float(value)) for value in rows["compute_s"]],
    )


def _by_depth(rows: pd.DataFrame) -> pd.DataFrame:
    rows = _layers(rows)
    return rows if rows.empty else rows.assign(chunk=[binary_tick(float(value)) for value in rows["chunk"]])


DEPTH = Question(
    "pipeline_depth", "offload.pipeline", "Layers fetched ahead: time of a pass against their number",
    "Fetching ahead", "depth", "layers fetched ahead", "", prepare=_by_depth, log=False,
)  # fmt: skip
CHUNK = Question(
    "pipeline_chunk", "offload.pipeline", "Layers fetched ahead: time of a pass against the size of a request",
    "Fetching ahead", "chunk", "bytes of a request", "", prepare=_layers, binary=True,
)  # fmt: skip
SPLIT = Question(
    "optimizer_split", "offload.optimizer", "Adam split between CPU and device: time of a step against the CPU's share",
    "The split", "cpu_share", "share that the CPU updates", "", prepare=_with("fact.device_alone_s"), log=False,
)  # fmt: skip


def figures(data: ReportData) -> list[Figure]:
    """The figures of the pipeline and of the split optimizer; none in a run without either."""
    found = []
    present = {(record.case.op, record.case.impl) for record in data.records}
    if any(op == DEPTH.op for op, _ in present):
        found += [figure for figure in (_pipeline(DEPTH, data), _pipeline(CHUNK, data)) if figure]
        if not found:
            why = "No pipeline has figures at two depths or two sizes of a request."
            found.append(absent(DEPTH.id, DEPTH.title, why))
    if (SPLIT.op, "split") in present:
        found.append(_split(data))
    return found


# The pipeline


def _told(given: dict[str, Any]) -> str:
    """The conditions of a pipeline, sizes with the words that they need."""
    named = {
        "compute_s": "{} of computation", "layers": "{} layers", "chunk": "requests of {}", "bytes": "layers of {}",
    }  # fmt: skip
    parts = [f"{given['source']} to {given['to']}"] if "source" in given and "to" in given else []
    for name, value in given.items():
        if name == "bytes":
            parts.append(named[name].format(binary_tick(float(value))))
        elif name in named:
            parts.append(named[name].format(value))
    rest = {n: v for n, v in given.items() if n not in named and not (parts and n in ("source", "to"))}
    return ", ".join([*parts, *([told] if (told := words(rest)) else [])])


def _pipeline(question: Question, data: ReportData) -> Figure | None:
    drawn = [p for p in panels(question, data) if not (question is CHUNK and p.given.get("depth") == 0)][:MAX_PANELS]
    if not drawn:
        return None
    names = list(dict.fromkeys(line.name for panel in drawn for line in panel.lines))
    same, rest = common(drawn)
    made: list[Markup] = []
    for panel, left in zip(drawn, rest, strict=True):
        drawing = Panel(f"{question.id}-{len(made)}", *natural_size(len(drawn))).linear("y")
        if question.binary:
            drawing.log("x", 2, binary_tick)
        else:
            drawing.linear("x", svg.count_tick)
            drawing.ax.set_xticks(sorted({float(v) for line in panel.lines for v in line.rows[question.axis]}))
        drawing.titles(_told(left), question.axis_label, "s")
        for line in panel.lines:
            series = names.index(line.name)
            x = line.rows[question.axis].astype(float)
            for column, style in zip(_BOUNDS, ("--", "-"), strict=True):
                drawing.ax.plot(x, line.rows[column].astype(float), style, color=svg.MUTED, linewidth=1.1)
            drawing.ax.plot(x, line.rows["time_s"], color=svg.SERIES[series], linewidth=1.2)
            drawing.points(x, line.rows["time_s"], line.rows["anchor"], series)
        drawing.ax.set_ylim(bottom=0)
        hidden = [f"{value:g}" if not question.binary else binary_tick(value)
                  for line in panel.lines for value in line.rows[question.axis].astype(float)]  # fmt: skip
        made.append(drawing.svg(
            f"Time of a pass at {', '.join(hidden)}, between no overlap and perfect overlap."
        ))  # fmt: skip
    caption = (
        "A pass fetches all layers and computes with each. Dashed: no overlap, the sum of fetching and computing by "
        "themselves. Solid grey: perfect overlap, the longer of both and one layer of the other. Both were measured "
        "beside each point, so that they move with whatever else the machine did."
    )
    if _told(same):
        caption += f" The same throughout: {_told(same)}."
    if lacking := unsupported(question, data):
        caption += f" Unsupported here: {lacking}."
    lines = [("dashed", "no overlap"), ("solid", "perfect overlap")]
    return Figure(question.id, question.title, made, caption, list(enumerate(names)), lines)


def _pipeline_finding(data: ReportData) -> Finding | None:
    found = [(question, panel) for question in (DEPTH, CHUNK) for panel in panels(question, data, calm=True)]
    if not found:
        if not any(panels(question, data) for question in (DEPTH, CHUNK)):
            return None
        title = "How much of the fetching a pipeline hides cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding("pipeline", title, text, DEPTH.id, "the passes", quiet=True)
    _, rest = common([panel for _, panel in found])
    told: dict[str, tuple[float, str, pd.Series[Any]]] = {}
    for (question, panel), left in zip(found, rest, strict=True):
        given = _told({name: value for name, value in left.items() if name not in ("depth", "chunk")})
        for line in panel.lines:
            for _, row in line.rows.iterrows():
                efficiency = float(row.get("fact.overlap_efficiency", nan))
                if isnan(efficiency):  # no room between the lines
                    continue
                chunk = row["chunk"] if question is DEPTH else binary_tick(float(row["chunk"]))
                label = f"{given}{', ' if given else ''}{line.name}, depth {int(row['depth'])}, requests of {chunk}"
                told[str(row["anchor"])] = (efficiency, label, row)
    if not told:
        title = "Fetching ahead has nothing to hide here: one of fetching and computing is as long as both."
        text = "Perfect overlap and no overlap lie within 2 % of each other in every case."
        return Finding("pipeline", title, text, DEPTH.id, "the passes", quiet=True)
    efficiency, label, row = max(told.values(), key=lambda entry: entry[0])
    if efficiency > 0:
        title = (
            f"Fetching ahead hides {percent(efficiency)} of what could be hidden at best: "
            f"{format_time(float(row['time_s']))} a pass, beside {format_time(float(row[_BOUNDS[0]]))} without overlap "
            f"and {format_time(float(row[_BOUNDS[1]]))} at perfect overlap ({label})."
        )
    else:
        title = f"Fetching ahead hides nothing in any case of this run (at best: {label})."
    items = tuple(f"{text}: {_share(share)}" for share, text, _ in told.values())
    text = "How much of the way from no overlap to perfect overlap was made; depth 0 fetches nothing ahead."
    return Finding("pipeline", title, text, DEPTH.id, "the passes", items)


def _share(value: float) -> str:
    return percent(value) if value >= 0 else f"none, {percent(-value)} slower than no overlap"


# The optimizer


def _split(data: ReportData) -> Figure:
    drawn = panels(SPLIT, data)[:MAX_PANELS]
    if not drawn:
        lacking = unsupported(SPLIT, data)
        why = "No split has figures at two shares of the CPU."
        return absent(SPLIT.id, SPLIT.title, why + (f" Unsupported here: {lacking}." if lacking else ""))
    same, rest = common(drawn)
    made: list[Markup] = []
    for panel, left in zip(drawn, rest, strict=True):
        drawing = Panel(f"{SPLIT.id}-{len(made)}", *natural_size(len(drawn))).linear("y").linear("x", svg.percent_tick)
        drawing.titles(words(left), SPLIT.axis_label, "s")
        for series, line in enumerate(panel.lines):
            x = line.rows["cpu_share"].astype(float)
            drawing.ax.plot(x, line.rows["time_s"], color=svg.SERIES[series], linewidth=1.2)
            drawing.points(x, line.rows["time_s"], line.rows["anchor"], series)
            both = _predicted(line.rows)
            drawing.ax.plot(both["cpu_share"].astype(float), both[_SPLIT[0]].astype(float), "--", color=svg.MUTED)
            if len(both):
                drawing.ax.axvline(float(both[_SPLIT[1]].median()), color=svg.MUTED, linewidth=0.8)
        drawing.ax.set_ylim(bottom=0)
        made.append(drawing.svg(f"Time of a step of Adam at {panel.records} shares of the CPU."))
    caption = (
        "Dashed: what the parts by themselves let expect, max((1 - s) D, s (C + L)) with the seconds that CPU, link "
        "and device need for all parameters. The upright line is the share that it calls best."
    )
    if words(same):
        caption += f" The same throughout: {words(same)}."
    lines = [("dashed", "predicted"), ("solid", "best share, predicted")]
    return Figure(SPLIT.id, SPLIT.title, made, caption, [(0, "measured")], lines)


def _predicted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a prediction: those where both sides have parameters."""
    return rows.dropna(subset=list(_SPLIT)) if set(_SPLIT) <= set(rows.columns) else rows.iloc[:0]


def _split_finding(data: ReportData) -> Finding | None:
    found = [(panel, line, _predicted(line.rows)) for panel in panels(SPLIT, data, calm=True) for line in panel.lines]
    found = [entry for entry in found if len(entry[2])]
    if not found:
        if not panels(SPLIT, data):
            return None
        title = "Which split of the optimizer is best cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding("optimizer_split", title, text, SPLIT.id, "the steps", quiet=True)
    _, line, both = found[0]
    quickest = line.rows.iloc[int(line.rows["time_s"].argmin())]
    best = float(both[_SPLIT[1]].median())
    title = (
        f"A step of Adam is quickest with {percent(float(quickest['cpu_share']))} of the parameters on the CPU "
        f"({format_time(float(quickest['time_s']))}); the parts by themselves let expect {percent(best)} "
        f"({format_time(float(both[_SPLIT[2]].median()))})."
    )
    items = tuple(
        f"{words(panel.given)}, {percent(float(row['cpu_share']))} on the CPU: {format_time(float(row['time_s']))}, "
        f"predicted {format_time(float(row[_SPLIT[0]]))} ({float(row[_SPLIT[0]]) / float(row['time_s']) - 1:+.0%})"
        for panel, _, both in found for _, row in both.iterrows()
    )  # fmt: skip
    text = "Measured and predicted time of a step, where both sides have parameters."
    return Finding("optimizer_split", title, text, SPLIT.id, "the steps", items)


# Page-locked memory


def _waste_finding(data: ReportData) -> Finding | None:
    """How much of page-locked memory lies idle: a count of bytes, which noise does not touch."""
    rows = _with("fact.waste_share", "fact.got_bytes")(data.usable)
    rows = rows[rows["op"] == "offload.pinned_alloc"].drop_duplicates(["impl", "bytes", "count"])
    if rows.empty:
        return None
    rows = rows.sort_values("fact.waste_share", ascending=False, kind="stable")
    worst = rows.iloc[0]
    if float(worst["fact.waste_share"]) < LITTLE:
        title = "Page-locked buffers take no more memory than was asked for"
    else:
        title = f"Of page-locked memory {percent(float(worst['fact.waste_share']))} lies idle at worst"
    title += f" ({', '.join(dict.fromkeys(rows['impl']))})."
    items = tuple(
        f"{row['impl']}, {int(row['count'])} x {binary_tick(float(row['bytes']))}: "
        f"{binary_tick(float(row['fact.got_bytes']))} taken, {percent(float(row['fact.waste_share']))} idle"
        for _, row in rows.iterrows()
    )
    text = "Bytes that an allocator takes beyond those that were asked for: sizes that it rounds up to."
    quiet = float(worst["fact.waste_share"]) < LITTLE
    return Finding("pinned_waste", title, text, str(worst["anchor"]), "the allocation", items, quiet=quiet)


def find(data: ReportData) -> list[Finding]:
    """What a pipeline hides, which split is best, and what page-locking wastes; times from undisturbed records."""
    return [found for found in (_pipeline_finding(data), _split_finding(data), _waste_finding(data)) if found]
