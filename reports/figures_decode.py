"""Decoding: bandwidth at which a cache of keys and values is read, against the length of the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.comparisons import unsupported, words
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding, percent
from wattline.reports.lines import BANDWIDTH, Line, LinePanel, Question, common, panels
from wattline.reports.svg import Panel
from wattline.units import format_si

if TYPE_CHECKING:
    import pandas as pd

MAX_PANELS, MAX_LINES = 6, 8
SHARE = 0.8
"""A context is long enough once this share of the best bandwidth of its line is reached."""
_QUIET = {"page_size": (0,), "splits": (0,), "lengths": ("equal",), "length_seed": (0,), "kv_dtype": ("same",)}
"""Values that mean "not used", besides those that no title tells."""


def _ways(rows: pd.DataFrame) -> pd.DataFrame:
    """Pages and parts belong to the way a cache is read, not to the conditions: they go into the line's name."""
    names = [
        ", ".join([str(impl), *([f"pages of {int(page)}"] if page else []), *([f"{int(n)} parts"] if n else [])])
        for impl, page, n in zip(rows["impl"], rows["page_size"].fillna(0), rows["splits"].fillna(0), strict=True)
    ]
    return rows.assign(impl=names)


QUESTION = Question(
    "decode", "attention.decode", "Decoding: bandwidth against context", "Decoding", "kv_len",
    "tokens of the longest context",
    "Bytes of queries, results and the keys and values in reach, each once, per second. Decoding does a few operations "
    "for each byte, so memory bandwidth is its ceiling; short contexts are over before memory is busy, and copying "
    "pages together, or converting keys, moves every byte more than once.",
    quantity=BANDWIDTH, moving=("page_size", "splits"), prepare=_ways, unit="tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Ceiling:
    """A bandwidth that no reading of main memory exceeds.

    Attributes:
        source: ``"measured"`` or ``"datasheet"``.
        bytes_per_s: of it.
    """

    source: str
    bytes_per_s: float


def ceilings(data: ReportData) -> list[Ceiling]:
    """What the run knows of the memory bandwidth of its device, the measured one first."""
    device = data.device
    if device is None:
        return []
    known = (
        ("measured", device.measured.memory_bandwidth if device.measured else None),
        ("datasheet", device.memory_bandwidth),
    )
    return [Ceiling(source, float(value)) for source, value in known if value]


def _present(data: ReportData) -> bool:
    return any(record.case.op == QUESTION.op for record in data.records)


def figures(data: ReportData) -> list[Figure]:
    """Bandwidth against context: a drawing for each batch and set of conditions, a line for each implementation."""
    if not _present(data):
        return []
    drawn = panels(QUESTION, data)[:MAX_PANELS]
    if not drawn:
        return [absent("decode", QUESTION.title, "No way of decoding has figures at two lengths or more.")]
    names = list(dict.fromkeys(line.name for panel in drawn for line in panel.lines))
    shown = names[:MAX_LINES]
    roofs = ceilings(data)
    same, rest = common(drawn)
    made: list[Markup] = []
    for panel, left in zip(drawn, rest, strict=True):
        drawing = Panel(f"decode-{len(made)}", *natural_size(len(drawn))).log("y").log("x", 2, lambda v, _: f"{v:.0f}")
        drawing.titles(_told(left), QUESTION.axis_label, QUESTION.quantity.label)
        for line in (line for line in panel.lines if line.name in shown):
            series = shown.index(line.name)
            x, y = line.rows[QUESTION.axis].astype(float), QUESTION.quantity.of(line.rows)
            drawing.ax.plot(x, y, color=svg.SERIES[series], linewidth=1.2)
            drawing.points(x, y, line.rows["anchor"], series)
        for roof in roofs:
            style, colour = ("-", svg.INK) if roof.source == "measured" else ("--", svg.MUTED)
            drawing.ax.axhline(roof.bytes_per_s, linestyle=style, color=colour, linewidth=1.3)
        top, _ = best(panel)
        made.append(drawing.svg(
            f"Bandwidth of decoding{', ' + told if (told := _told(left)) else ''}: "
            f"{len(panel.lines)} line{'s' * (len(panel.lines) > 1)}, the best {format_si(top, 'B/s')}."
        ))  # fmt: skip
    caption = QUESTION.caption
    if _told(same):
        caption += f" The same throughout: {_told(same)}."
    if not roofs:
        caption += " The memory bandwidth of this device is not known, so no ceiling is drawn."
    if len(names) > len(shown):
        caption += f" {len(names) - len(shown)} further lines are in the table only."
    if lacking := unsupported(QUESTION, data):
        caption += f" Unsupported here: {lacking}."
    styles = {"measured": ("solid", "measured memory bandwidth"), "datasheet": ("dashed", "datasheet")}
    return [
        Figure(
            "decode", QUESTION.title, made, caption, list(enumerate(shown)), [styles[roof.source] for roof in roofs]
        )
    ]


def _told(given: dict[str, Any]) -> str:
    # A batch of one says something here: it stands beside larger ones.
    batch = [f"batch {int(given['batch'])}"] if "batch" in given else []
    others = words({k: v for k, v in given.items() if k != "batch" and v not in _QUIET.get(k, ())})
    return ", ".join([*batch, *([others] if others else [])])


def best(panel: LinePanel) -> tuple[float, tuple[Line, int]]:
    """The highest bandwidth of a panel, and the line and row where it was reached."""
    tops = []
    for i, line in enumerate(panel.lines):
        values = QUESTION.quantity.of(line.rows).to_numpy(float)
        row = int(values.argmax())
        tops.append((float(values[row]), -i, row))
    value, i, row = max(tops)
    return value, (panel.lines[-i], row)


def long_enough(line: Line) -> float | None:
    """The length from which on a line keeps :data:`SHARE` of its best bandwidth, at every longer one measured too.

    ``None`` where the best is at the last length: it may still rise.
    """
    values, lengths = QUESTION.quantity.of(line.rows).tolist(), line.rows[QUESTION.axis].astype(float).tolist()
    if len(values) < 2 or max(values) == values[-1] > values[-2] / SHARE:
        return None
    found = None
    for value, length in reversed(list(zip(values, lengths, strict=True))):
        if value < SHARE * max(values):
            break
        found = length
    return found


def finding(data: ReportData) -> Finding | None:
    """How close decoding comes to memory bandwidth, by which way; ``None`` without records along a context."""
    if not _present(data):
        return None
    found = panels(QUESTION, data, calm=True)
    # Data that stay in a cache are read faster than memory allows: only cold calls are held against it.
    cold = [p for p in found if p.given.get("regime") == "cold"] or found
    if not cold:
        if not panels(QUESTION, data):
            return None
        title = "How fast decoding reads its cache cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding("decode", title, text, "decode", "bandwidth against context", quiet=True)
    roof = next(iter(ceilings(data)), None)
    top, (line, row) = max((best(panel) for panel in cold), key=lambda found: found[0])
    where = line.rows.iloc[row]
    batch = f"{int(where['batch'])} sequences of " if where["batch"] > 1 else ""
    title = f"Decoding reads its cache at {format_si(top, 'B/s')} at best"
    if roof is not None:
        title += f", {percent(top / roof.bytes_per_s)} of the {roof.source} memory bandwidth"
    title += f" ({line.name}, {batch}{int(where[QUESTION.axis])} tokens)."
    items = tuple(_item(panel, line) for panel in cold for line in panel.lines if len(line.rows) > 1)
    text = (
        "The best of each line, and the context from which on it keeps "
        f"{percent(SHARE)} of it; {'calls with a cold cache' if cold[0].given.get('regime') == 'cold' else 'all calls'}"
        "."
    )
    return Finding("decode", title, text, "decode", "bandwidth against context", items)


def _item(panel: LinePanel, line: Line) -> str:
    values = QUESTION.quantity.of(line.rows)
    since = long_enough(line)
    text = f"{line.name}, batch {int(panel.given.get('batch', 1))}: {format_si(float(values.max()), 'B/s')}"
    return text + (f", from {since:.0f} tokens on" if since is not None else ", still rising at the longest context")
