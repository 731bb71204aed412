"""Storage: bandwidth against block and depth with the latencies beside it, and what checkpoints cost the steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.comparisons import closing, words
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding, percent, times
from wattline.reports.lines import Line, Question, common, panels, rows_of
from wattline.reports.questions import RATE, each
from wattline.reports.svg import Panel, binary_tick
from wattline.units import format_si, format_time

if TYPE_CHECKING:
    import pandas as pd

MAX_PANELS, MAX_LINES = 2, 8
P50, P99 = "fact.block_p50_s", "fact.block_p99_s"
_MOVING = ("span", "bytes", "pattern", "access", "cache", "pages", "threads", "fio")


def _ways(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Seconds per byte; how blocks are moved goes into the name of the line, the axis left out of it."""
    from wattline.workmodels.storage import span_of

    moved = each(rows, span_of({name: rows[name] for name in ("span", "bytes")}))
    return moved.assign(impl=[_way(row, axis) for _, row in rows.iterrows()])


def _way(row: pd.Series[Any], axis: str) -> str:
    access = str(row["access"])
    parts = [*([str(row["impl"])] if row["impl"] != "posix" else []), f"{row['pattern']} {access}"]
    if access != "direct":
        parts.append(f"{row['cache']} cache")
    if axis != "block":
        parts.append(binary_tick(float(row["block"])))
    if axis != "depth" and int(row["depth"]) > 1:
        parts.append(f"depth {int(row['depth'])}")
    if int(row["threads"]) > 1:
        parts.append(f"{int(row['threads'])} threads")
    if row["pages"] == "huge":
        parts.append("huge pages")
    if row["op"] == "storage.write" and row["sync"] != "call":
        parts.append("a sync for each block" if row["sync"] == "block" else "no sync")
    return ", ".join(parts)


def _question(op: str, axis: str) -> Question:
    verb = op.removeprefix("storage.")
    label = "bytes of a block" if axis == "block" else "requests in flight for each thread"
    return Question(
        f"storage_{verb}_{axis}", op, f"Storage, {verb}s: bandwidth and latency against {axis}",
        "Reading a file" if verb == "read" else "Writing a file", axis, label, "", quantity=RATE,
        moving=(*_MOVING, "sync")[: None if verb == "write" else -1] + (("depth",) if axis == "block" else ("block",)),
        prepare=partial(_ways, axis=axis), binary=axis == "block", unit="" if axis == "block" else "requests in flight",
    )  # fmt: skip


QUESTIONS = tuple(_question(op, axis) for op in ("storage.read", "storage.write") for axis in ("block", "depth"))
CHECKPOINT = "storage.checkpoint"
_STALLS = ("fact.stall_s", "fact.compute_alone_s")


def figures(data: ReportData) -> list[Figure]:
    """Bandwidth and latencies of reads and writes, and the stalls of checkpoints; none in a run without them."""
    present = {record.case.op for record in data.records}
    found = [figure for question in QUESTIONS if question.op in present if (figure := _figure(question, data))]
    if not found and any(question.op in present for question in QUESTIONS):
        why = "No way of moving blocks has figures at two sizes of a block or two depths."
        found.append(absent("storage", "Storage: bandwidth and latency", why))
    if CHECKPOINT in present:
        found.append(_checkpoints(data))
    return found


def _figure(question: Question, data: ReportData) -> Figure | None:
    drawn = panels(question, data)[:MAX_PANELS]
    if not drawn:
        return None
    # Lines before single points, which stand beside them only where one size of a block is comparable with another.
    least = 1 if question.binary else 2
    lines = [line for panel in drawn for line in panel.lines if len(line.rows) >= least]
    lines.sort(key=lambda line: (-len(line.rows), line.name))
    names = list(dict.fromkeys(line.name for line in lines))
    shown = names[:MAX_LINES]
    same, rest = common(drawn)
    made: list[Markup] = []
    size = natural_size(2 * len(drawn))
    for panel, left in zip(drawn, rest, strict=True):
        kept = [line for line in panel.lines if line.name in shown]
        drawing = _panel(f"{question.id}-{len(made)}", size, question, words(left), "B/s")
        for line in kept:
            series = shown.index(line.name)
            x, y = line.rows[question.axis].astype(float), question.quantity.of(line.rows)
            drawing.ax.plot(x, y, color=svg.SERIES[series], linewidth=1.2)
            drawing.points(x, y, line.rows["anchor"], series)
        made.append(drawing.svg(f"{question.title.split(' and')[0]}: {len(kept)} ways."))
        timed = [line for line in kept if _has_tail(line.rows)]
        if not timed:
            continue
        drawing = _panel(f"{question.id}-{len(made)}", size, question, words(left), "s of a block")
        for line in timed:
            series = shown.index(line.name)
            x = line.rows[question.axis].astype(float)
            for column, style in ((P50, "-"), (P99, "--")):
                y = line.rows[column].astype(float)
                drawing.ax.plot(x, y, style, color=svg.SERIES[series], linewidth=1.2)
                drawing.points(x, y, line.rows["anchor"], series)
        made.append(drawing.svg(f"Median and 99th percentile of a block, {len(timed)} ways."))
    caption = (
        "First: bytes moved per second. Second: what a single block takes, median (solid) and 99th percentile "
        "(dashed), warm-up included. Deeper queues buy bandwidth with latency."
    ) if len(made) > len(drawn) else "Bytes moved per second; no block was timed by itself."  # fmt: skip
    caption += closing(question, data, same, len(names) - len(shown), "way")
    return Figure(question.id, question.title, made, caption, list(enumerate(shown)))


def _panel(name: str, size: tuple[float, float], question: Question, title: str, unit: str) -> Panel:
    panel = Panel(name, *size).log("y")
    tick: Callable[[float, object], str] = binary_tick if question.binary else lambda v, _: f"{v:g}"
    return panel.log("x", 2, tick).titles(title, question.axis_label, unit)


def _has_tail(rows: pd.DataFrame) -> bool:
    return {P50, P99} <= set(rows.columns) and bool(rows[P99].notna().any())


def _checkpoints(data: ReportData) -> Figure:
    title = "Checkpoints: how long steps wait"
    rows = _saved(data)
    if rows.empty:
        return absent("checkpoints", title, "No checkpoint has figures that can be trusted.")
    rows = rows.sort_values("fact.stall_s", kind="stable")
    panel = Panel("checkpoints-0", *natural_size(1)).linear("y").titles("", "", "s")
    x = range(len(rows))
    stall = rows["fact.stall_s"].astype(float).tolist()
    panel.ax.bar(x, stall, width=0.5, color=svg.SERIES[0])
    panel.points(x, stall, rows["anchor"], 0)
    writes = rows["fact.write_s"].astype(float).tolist()
    panel.points(x, writes, rows["anchor"], 1)
    panel.ax.axhline(0, color=svg.MUTED, linewidth=0.8)
    panel.ax.set_xticks(list(x), [str(i + 1) for i in x])
    panel.ax.set_xlim(-0.6, len(rows) - 0.4)
    ways = "; ".join(f"{i + 1}: {_saving(row)}" for i, (_, row) in enumerate(rows.iterrows()))
    caption = (
        "Stall: what the steps between checkpoints take longer than by themselves; writing: until the bytes are on the "
        "device, which a snapshot lets the steps go on beside. A stall below zero is other load on the machine. "
        f"{ways}."
    )
    drawing = panel.svg(f"Stalls of {len(rows)} ways of saving a state.")
    return Figure("checkpoints", title, [drawing], caption, [(0, "stall"), (1, "writing")])


def _saved(data: ReportData, calm: bool = False) -> pd.DataFrame:
    question = Question("checkpoints", CHECKPOINT, "", "", "bytes", "", "")
    rows = rows_of(question, data, calm)
    columns = [*_STALLS, "fact.write_s"]
    return rows.dropna(subset=columns) if set(columns) <= set(rows.columns) else rows.iloc[:0]


def _saving(row: pd.Series[Any]) -> str:
    shards, writers = int(row["shards"]), int(row["writers"])
    more = f", {shards} shards by {writers} writer{'s' * (writers > 1)}" if shards > 1 else ""
    return f"{row['mode']}, {row['access']}, {binary_tick(float(row['bytes']))}{more}"


def find(data: ReportData) -> list[Finding]:
    """What storage gives at best and what its tail is; what a checkpoint costs. From undisturbed records only."""
    return [f for f in (_moves_finding(data, "storage.read"), _moves_finding(data, "storage.write"),
                        _checkpoint_finding(data)) if f]  # fmt: skip


def _moves_finding(data: ReportData, op: str) -> Finding | None:
    asked = [question for question in QUESTIONS if question.op == op]
    found = [(q, panel) for q in asked for panel in panels(q, data, calm=True)]
    kind = op.replace(".", "_")
    verb = "Reads" if op == "storage.read" else "Writes"
    if not found:
        first = next((q for q in asked if panels(q, data)), None)
        if first is None:
            return None
        title = f"What {verb.lower()} reach of storage cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding(kind, title, text, first.id, "the curves", quiet=True)
    long = [(q, line) for q, panel in found for line in panel.lines if len(line.rows) > 1]
    question, line = max(long, key=lambda entry: (len(entry[1].rows), entry[1].name))
    title = f"{verb}, {line.name}: {_change(question, line)}."
    items = tuple(f"{name}: {_change(q, x)}" for q, x in long for name in [x.name])
    text = "Bandwidth from the first to the last value along each line, and the 99th percentile of a block's time."
    return Finding(kind, title, text, question.id, "the curves", items)


def _change(question: Question, line: Line) -> str:
    speed = question.quantity.of(line.rows)
    ends = [line.rows.iloc[0], line.rows.iloc[-1]]
    at = [binary_tick(float(r["block"])) + " blocks" if question.binary else f"depth {int(r['depth'])}" for r in ends]
    text = (
        f"{format_si(float(speed.iloc[-1]), 'B/s')} at {at[1]}, {times(float(speed.iloc[-1] / speed.iloc[0]))} times "
        f"that at {at[0]}"
    )
    if _has_tail(line.rows) and all(float(r[P99]) == float(r[P99]) for r in ends):
        last, first = (format_time(float(row[P99])) for row in ends[::-1])
        text += f"; 99 % of blocks within {last}, at {at[0]} {first}"
    return text


def _checkpoint_finding(data: ReportData) -> Finding | None:
    rows = _saved(data, calm=True)
    if rows.empty:
        if _saved(data).empty:
            return None
        title = "What a checkpoint costs the steps cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding("checkpoints", title, text, "checkpoints", "the stalls", quiet=True)
    rows = rows.sort_values("fact.stall_s", kind="stable")
    best, worst = rows.iloc[0], rows.iloc[-1]
    title = f"A checkpoint holds the steps up for {_stall(best)} at least ({_saving(best)})"
    if len(rows) > 1:
        title += f", {_stall(worst)} at most ({_saving(worst)})"
    items = tuple(
        f"{_saving(row)}: stall {_stall(row)} beside {format_time(float(row['fact.compute_alone_s']))} of steps, "
        f"{_share(row)}written in {format_time(float(row['fact.write_s']))}"
        for _, row in rows.iterrows()
    )
    text = "What the steps take longer than by themselves; below zero, other load on the machine came and went."
    return Finding("checkpoints", title + ".", text, "checkpoints", "the stalls", items)


def _stall(row: pd.Series[Any]) -> str:
    value = float(row["fact.stall_s"])
    return format_time(value) if value >= 0 else f"-{format_time(-value)}"


def _share(row: pd.Series[Any]) -> str:
    hidden = 1 - float(row["fact.stall_s"]) / float(row["fact.write_s"])
    return f"{percent(min(1.0, hidden))} of the writing hidden, " if row["mode"] == "snapshot" and hidden > 0 else ""
