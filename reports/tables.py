"""The table of records, and what each of its rows unfolds to."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from wattline.case import Case
from wattline.record import FLAGS, Record
from wattline.reports.data import PARAMS_FIRST, ReportData, rate_format
from wattline.reports.findings import percent
from wattline.units import format_si, format_time

SPARK = 48
"""Most samples that a row's drawing holds; more are thinned evenly (all are in the run folder)."""


STATIC = 300
"""Rows that stand in the page itself, for readers without JavaScript; the script draws those that are looked at."""
LARGE = 5000
"""From this many records on, a row unfolds to less: the page must open in a browser; the run folder has it all."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: short, unique; the name in the URL.
        title: head of the column.
        numeric: whether it holds numbers, right-aligned and sorted as such.
        filter: whether a drop-down list narrows the table to one of its values.
        doc: what it says, shown on hover.
    """

    name: str
    title: str
    numeric: bool = False
    filter: bool = False
    doc: str = ""


@dataclass(frozen=True)
class Row:
    """One row: its anchor, number, whether it ended well, and the shown text of each column."""

    anchor: str
    number: int
    status: str
    cells: Sequence[str]


@dataclass(frozen=True)
class Table:
    """The table of records.

    Attributes:
        columns: its columns.
        rows: the first :data:`STATIC` rows.
        count: number of all rows.
        common: what all rows share, pairs of name and value.
        filters: the values of each filter.
        payload: all rows and what they unfold to, for the script.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    count: int
    common: Sequence[tuple[str, str]]
    filters: Mapping[str, Sequence[str]]
    payload: Markup


def build(data: ReportData) -> Table:
    """The table of a run. Conditions that all records share become a line above instead of a column."""
    words = {name: [str(getattr(r.case, name)) for r in data.records] for name in ("op", "impl", "regime", "data")}
    words["dtype"] = [r.case.dtype or "" for r in data.records]
    words = {name: words[name] for name in ("op", "impl", "dtype", "regime", "data")}
    words["variant"] = [r.variant for r in data.records]
    params: dict[str, list[Any]] = {}
    names = dict.fromkeys(name for r in data.records for name in r.case.params if name != "dtype")
    for name in sorted(names, key=lambda n: (PARAMS_FIRST.index(n) if n in PARAMS_FIRST else 9, n)):
        params[name] = [r.case.params.get(name) for r in data.records]
    common = [
        (name, str(values[0])) for name, values in (words | params).items() if len(set(values)) == 1 and values[0] != ""
    ]
    fixed = {name for name, _ in common}

    columns = [Column("status", "Status", filter=True)]
    titles = ("Operation", "Impl.", "Format", "Regime", "Data", "A/A")
    for name, title in zip(words, titles, strict=True):
        if name not in fixed and any(words[name]):
            columns.append(Column(name, title, filter=True))
    for name, values in params.items():
        if name not in fixed:
            numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values if v is not None)
            columns.append(Column(f"p.{name}", name, numeric=numeric))
    columns += [
        Column("time_s", "Time", numeric=True, doc="median time of one call"),
        Column("half_width", "+/-", numeric=True, doc="half-width of the median's 95 % interval"),
        Column("flops_per_s", "Speed", numeric=True, doc="operations per second"),
        Column("bytes_per_s", "Traffic", numeric=True, doc="compulsory bytes per second"),
        Column("share", "Of peak", numeric=True, doc="share of the arithmetic peak"),
        Column("efficiency", "Of bound", numeric=True, doc="roofline bound over time"),
    ]
    if any(r.measurement and r.measurement.energy for r in data.records):
        columns.append(Column("energy_j", "Energy", numeric=True, doc="joules per call, measured"))
    columns.append(Column("flags", "Flags", filter=True, doc="validity flags"))

    frame = data.frame
    raw: list[list[Any]] = []
    texts: list[list[str]] = []
    rows = []
    series = {c.name: frame[c.name].tolist() for c in columns if c.name in frame.columns}
    for i, record in enumerate(data.records):
        values = [_value(c, record, series, i) for c in columns]
        raw.append(values)
        shown = [_shown(c.name, v, record) for c, v in zip(columns, values, strict=True)]
        texts.append(shown)
        if i < STATIC:
            rows.append(Row(data.anchors[i], number_of(record, i), record.status, shown))
    filters = {c.name: _choices([v[j] for v in raw]) for j, c in enumerate(columns) if c.filter}
    filters = {name: values for name, values in filters.items() if len(values) > 1 or name == "flags"}
    return Table(columns, rows, len(raw), common, filters, _payload(data, columns, raw, texts))


def number_of(record: Record, position: int) -> int:
    """The number of a row, counted from 1 in the order of the run."""
    return record.sequence + 1 if record.sequence >= 0 else position + 1


def _value(column: Column, record: Record, series: Mapping[str, list[Any]], i: int) -> Any:
    name = column.name
    if name.startswith("p."):
        return record.case.params.get(name[2:])
    if name == "flags":
        return " ".join(record.flags)
    if name in series:
        value = series[name][i]
        if isinstance(value, str):
            return value
        return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else None
    return None


def _shown(name: str, value: Any, record: Record) -> str:
    if value is None:
        return ""
    if name in ("time_s", "half_width", "share", "efficiency", "flops_per_s", "bytes_per_s", "energy_j"):
        if name == "time_s":
            return format_time(value)
        if name in ("flops_per_s", "bytes_per_s"):
            unit = "B/s" if name[0] == "b" else "OP/s" if (rate_format(record) or "").startswith("int") else "FLOP/s"
            return format_si(value, unit)
        return format_si(value, "J") if name == "energy_j" else percent(value)
    if name == "flags":
        return ", ".join(word.replace("_", " ") for word in value.split())
    return value.replace("_", " ") if name == "status" else str(value)


def _choices(values: Sequence[Any]) -> list[str]:
    return sorted({word for value in values for word in str(value or "").split(" ") if word})


def repeat_command(record: Record, seed: int = 0, device: str = "") -> str:
    """The shell command that measures the case of a record again.

    Every parameter is written out, so that defaults of another version change nothing.

    Args:
        record: the record.
        seed: of its run; the inputs follow from it and the case.
        device: as the run was told, empty for the default.
    """
    case: Case = record.case
    words = ["wattline", "bench", case.op, "--impl", case.impl, "--regime", case.regime]
    if case.data != "uniform":
        words += ["--data", case.data]
    if case.power_limit_w is not None:
        words += ["--power-limits", f"{case.power_limit_w:g}"]
    if case.clock_hz is not None:
        words += ["--clocks", f"{case.clock_hz / 1e6:g}MHz"]
    if case.dtype:
        words += ["--dtype", case.dtype]
    for name, value in case.params.items():
        if name == "dtype":
            continue
        words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    if device and device != "auto":
        words += ["--device", device]
    words += ["--seed", str(seed), "--out", f"runs/again-{case.key[:8]}"]
    return " ".join(shlex.quote(word) for word in words)


def _payload(
    data: ReportData, columns: Sequence[Column], raw: Sequence[Sequence[Any]], texts: Sequence[Sequence[str]]
) -> Markup:
    """What the script reads: values to sort by, their texts and details, as JSON that cannot end its script element."""
    seed = data.section("plan").get("seed")
    device = str(data.manifest.get("device_name") or "")
    large = len(data.records) > LARGE
    records = [_detail(r, repeat_command(r, seed if isinstance(seed, int) else 0, device), large) for r in data.records]
    strings, records = _interned(records)
    # A text is sent where it is not simply the value: figures with units.
    told = [j for j in range(len(columns)) if any(_differs(v[j], t[j]) for v, t in zip(raw, texts, strict=True))]
    return embed(
        {
            "strings": strings,
            "columns": [c.name for c in columns],
            "numeric": [c.numeric for c in columns],
            "filters": [c.name for c in columns if c.filter],
            "anchors": data.anchors,
            "numbers": [number_of(record, i) for i, record in enumerate(data.records)],
            # Column and value in turn: of the many parameters of a mixed run each record has a few.
            "values": [[x for j, v in enumerate(row) if v is not None for x in (j, v)] for row in raw],
            "told": told,
            "texts": [[text[j] for j in told] for text in texts],
            "large": large,
            "details": records,
            "flags": {code: FLAGS.get(code, "") for r in data.records for code in r.flags},
            "environment": str(data.manifest.get("environment_id") or ""),
        }
    )


def _differs(value: Any, text: str) -> bool:
    """Whether the script could not tell the text from the value."""
    return text != ("" if value is None else str(value)) or isinstance(value, bool | float)


def _interned(records: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Texts that occur more than once, and the records with places in that list instead of them.

    Records of one run say mostly the same words; this halves the file.
    """
    counts = Counter(text for record in records for name in _WORDY for text in record.get(name, ()))
    strings = sorted((text for text, n in counts.items() if n > 1), key=lambda text: (-counts[text], text))
    place = {text: i for i, text in enumerate(strings)}
    short = [
        {name: [place.get(v, v) for v in values] if name in _WORDY else values for name, values in record.items()}
        for record in records
    ]
    return strings, short


_WORDY = ("l", "c", "w", "r")
"""Entries of a row's details that are lists of texts: label and command by word, facts, reason."""
_UNSAFE = re.compile(r"[<>&\u2028\u2029]")


def embed(value: Any) -> Markup:
    """JSON for a script element: no character in it can end the element or start a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(_UNSAFE.sub(lambda m: f"\\u{ord(m.group()):04x}", text))


def _round(value: float | None, digits: int = 4) -> float | None:
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def _detail(record: Record, command: str, large: bool = False) -> dict[str, Any]:
    """What a row unfolds to; only what is there."""
    m = record.measurement
    facts = _facts(record, large)
    detail: dict[str, Any] = {"l": record.case.label().split(" "), "c": command.split(" "), "w": facts}
    if record.reason:
        detail["r"] = [record.reason.code, record.reason.message]
    if m:
        detail["f"] = [[flag.code, flag.message] for flag in m.flags]
        detail["n"] = len(m.samples_s)
        if not large:
            step = max(1, math.ceil(len(m.samples_s) / SPARK))
            median = m.stats.median_s or 1.0
            detail["s"] = [round(1000 * v / median) - 1000 for v in m.samples_s[::step]]
    return {k: v for k, v in detail.items() if v not in ([], None)}


_BRIEF = ("median", "samples", "check", "energy", "bound", "started", "key")
"""The facts of a row in a large run."""


def _facts(record: Record, large: bool = False) -> list[str]:
    """Name and value in turn, as text: short enough to embed for a thousand records."""
    facts = list(_measured(record, large)) if record.measurement else []
    if record.bound_s:
        facts.append(("bound", f"{format_time(record.bound_s)} by {record.bound_by}"))
    if record.work and not large:
        facts.append(("work", f"{format_si(record.work.total_flops, 'OP')}, {format_si(record.work.bytes_at(), 'B')}"))
    facts += [("device", record.device), ("data, seed", f"{record.case.data}, {record.seed}")]
    if record.started_at:
        facts.append(("started", f"{record.started_at}, {format_si(record.wall_s, 's')} in all"))
    facts.append(("key", record.case.key + (f" {record.variant}" if record.variant else "")))
    return [text for fact in facts if not large or fact[0] in _BRIEF for text in fact]


def _measured(record: Record, large: bool) -> Iterator[tuple[str, str]]:
    """The facts of a measurement."""
    m = record.measurement
    if m is None:
        return
    s, calls = m.stats, f"{m.calls_per_sample} call{'s' if m.calls_per_sample > 1 else ''}"
    yield "median", f"{format_time(s.median_s)} [{format_time(s.lo_s)}, {format_time(s.hi_s)}]"
    if not large:
        yield "p5, p95, p99", ", ".join(format_time(v) for v in (s.p5_s, s.p95_s, s.p99_s))
        yield "min, mean, max", ", ".join(format_time(v) for v in (s.min_s, s.mean_s, s.max_s))
        yield "IQR", format_time(s.iqr_s)
    yield "samples", f"{s.n} of {calls} each; stopped: {m.stop.replace('_', ' ')}"
    if not large:
        yield "warm-up", f"{m.warmup_calls} calls, {format_time(m.warmup_s)}, {m.warmup_stop}"
        yield "first call", format_time(m.first_call_s)
        yield "buffer sets", str(m.rotations)
        yield "timer", f"{m.timer}, {format_time(m.timer_overhead_s)} a reading"
    if m.check:
        error = f"{m.check.error:.2g}" if math.isfinite(m.check.error) else "not a number"
        verdict = "passed" if m.check.passed else "failed"
        yield "check", f"{verdict}: error {error}, tolerance {m.check.tolerance:.2g}, {m.check.method}"
    if m.energy:
        e = m.energy
        joules, low, high = (format_si(v, "J") for v in (e.energy_j, e.energy_lo_j, e.energy_hi_j))
        yield "energy", f"{joules} [{low}, {high}], {format_si(e.power_w, 'W')}, {e.source}, {e.scope}"
    for name, value in m.telemetry.items():
        yield name, _telemetry(name, value)


def _telemetry(name: str, value: float) -> str:
    unit = next(
        (u for suffix, u in (("_hz", "Hz"), ("_w", "W"), ("_j", "J"), ("_bytes", "B")) if name.endswith(suffix)), ""
    )
    return format_si(value, unit) if unit else f"{value:.4g}"
