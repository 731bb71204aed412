"""What surrounds the figures: the machine, what was run, what could not be measured, the method, the environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any

from wattline.case import REGIMES
from wattline.errors import WattlineError
from wattline.formats import FORMATS
from wattline.record import DISQUALIFYING, FLAGS, STATUSES
from wattline.reports.data import ReportData, shape_text
from wattline.reports.findings import percent
from wattline.units import format_bytes, format_duration, format_si, format_time

Pairs = list[tuple[str, str]]
NONE = "-"
"""Stands for a value that is not there."""


@dataclass(frozen=True)
class Unmeasured:
    """A kind of thing that has no figure.

    Attributes:
        what: in words.
        count: number of cases, 0 where it is no matter of cases.
        why: the reason as recorded.
        code: its code.
        example: label of a case.
        anchor: its record.
    """

    what: str
    count: int
    why: str
    code: str = ""
    example: str = ""
    anchor: str = ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def machine(data: ReportData) -> Pairs:
    """The device in a few facts."""
    d = data.device
    if d is None:
        return [("device", "not recorded in this run")]
    cores = {"cpu": "cores"}.get(d.kind, "multiprocessors")
    facts = [
        ("device", d.name or d.id),
        ("kind", " ".join(part for part in (d.vendor, d.kind, d.arch) if part)),
        (cores, str(d.sm_count) if d.sm_count else ""),
        ("memory", format_bytes(d.memory_bytes) if d.memory_bytes else ""),
        ("last-level cache", format_bytes(d.l2_bytes) if d.l2_bytes else ""),
        ("highest clock", format_si(d.clock_hz, "Hz") if d.clock_hz else ""),
        ("power limit", format_si(d.tdp_w, "W") if d.tdp_w else ""),
        ("datasheet", "listed" if d.listed else "not listed: shares are of measured ceilings"),
    ]
    return [(name, value) for name, value in facts if value]


def what_ran(data: ReportData) -> Pairs:
    """What was run, when, and how it ended."""
    plan, totals = data.section("plan"), data.section("totals")
    counts = Counter(r.status for r in data.records)
    ops = _operations({r.case.op for r in data.records})
    wall, share, kernel = (_number(totals.get(k)) for k in ("wall_s", "kernel_share", "kernel_s"))
    in_kernels = f", {percent(share)} of it in warm-up or timed kernels" if share is not None else ""
    if share is None and kernel is not None:
        in_kernels = f", {format_duration(kernel)} of it in warm-up or timed kernels"
    planned = _number(totals.get("planned"))
    facts = [
        ("preset", str(plan.get("preset") or "")),
        ("operations", ops),
        ("formats", ", ".join(data.formats)),
        (
            "records",
            f"{counts['ok']} measured of {len(data.records)}" + (f", {planned:.0f} planned" if planned else ""),
        ),
        ("wall time", f"{format_duration(wall)}{in_kernels}" if wall is not None else ""),
        ("budget", format_duration(b) if (b := _number(plan.get("budget_s"))) is not None else "none given"),
        ("started", str(data.manifest.get("created_at") or "")),
        ("ended", str(data.manifest.get("finished_at") or "")),
        ("state", data.run.state.replace("_", " ")),
    ]
    return [(name, value) for name, value in facts if value]


def flag_counts(data: ReportData) -> list[tuple[str, int, str, bool]]:
    """Flags that were raised: code, number of records, meaning, and whether the record is left out for it."""
    counts = Counter(flag for record in data.records for flag in record.flags)
    return [
        (code, n, FLAGS.get(code, "unknown to this version"), code in DISQUALIFYING) for code, n in counts.most_common()
    ]


def status_counts(data: ReportData) -> list[tuple[str, int, str]]:
    """Statuses met: code, number, meaning."""
    counts = Counter(r.status for r in data.records)
    order = list(STATUSES)
    return [(s, counts[s], STATUSES.get(s, "unknown to this version"))
            for s in sorted(counts, key=lambda s: order.index(s) if s in order else 99)]  # fmt: skip


def unmeasured(data: ReportData) -> list[Unmeasured]:
    """Everything that has no figure, with the reason: energy, cases by reason, cases never reached."""
    found = []
    energy = data.section("energy")
    measured = sum(1 for r in data.records if r.measurement and r.measurement.energy)
    if energy.get("available") is False or (not measured and energy.get("available") is not True):
        reason = energy.get("reason") if isinstance(energy.get("reason"), Mapping) else {}
        why = str(reason.get("message") or "the run does not say whether a sensor was there") if reason else (
            "the run does not say whether a sensor was there"
        )  # fmt: skip
        name = f" ({energy['name']})" if energy.get("name") else ""
        found.append(Unmeasured(f"Energy and power{name}", 0, why, str(reason.get("code", "")) if reason else ""))
    elif energy.get("available") is True and not measured:
        found.append(Unmeasured("Energy and power", 0, "a sensor was there, but no record holds energy"))
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, record in enumerate(data.records):
        if record.status != "ok":
            code, _ = _why(record)
            groups.setdefault((record.status, code, record.case.dtype or ""), []).append(i)
    for (status, code, dtype), members in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])):
        first = data.records[members[0]]
        what = f"{status.replace('_', ' ').capitalize()}{': ' + dtype if dtype else ''}"
        found.append(
            Unmeasured(
                what,
                len(members),
                _why(first)[1],
                code,
                f"{shape_text(first)} {first.case.regime}",
                data.anchors[members[0]],
            )
        )
    try:
        left = _left(data)
    except WattlineError as error:
        left = 0
        found.append(Unmeasured("What was not reached", 0, f"{error}: what else was planned is not known"))
    if left:
        state = data.run.state.replace("_", " ")
        found.append(Unmeasured("Not reached", left, f"the run ended before ({state}); --resume goes on with it"))
    return found


def _why(record: Any) -> tuple[str, str]:
    if record.reason:
        return record.reason.code, record.reason.message
    check = record.measurement.check if record.measurement else None
    if check and not check.passed:
        if not isfinite(check.error):
            return "check_failed", "the result holds values that are no numbers, or was not written everywhere"
        return "check_failed", f"the result is off by {check.error:.2g}; the tolerance is {check.tolerance:.2g}"
    return "", "no reason was recorded"


def _left(data: ReportData) -> int:
    done = {r.identity for r in data.records}
    return sum(1 for planned in data.run.plan() if planned.identity not in done)


def ceilings(data: ReportData) -> list[tuple[str, str, str, str]]:
    """Rows of the table of ceilings: what, datasheet, measured, how the measured one was found."""
    d = data.device
    if d is None:
        return []
    measured = d.measured
    probe = data.section("probe")
    notes = probe.get("notes") if isinstance(probe.get("notes"), Mapping) else {}
    how = {str(name): str(text) for name, text in (notes or {}).items()}
    by_rate: dict[str, list[str]] = {}
    for name in (n.removeprefix("flops.") for n in how if n.startswith("flops.")):
        by_rate.setdefault(FORMATS[name].rate if name in FORMATS else name, []).append(name)
    rows = []
    for fmt in dict.fromkeys([*d.peak_flops, *(measured.flops if measured else {}), *by_rate]):
        unit = "OP/s" if fmt.startswith("int") else "FLOP/s"
        found = measured.flops.get(fmt) if measured else None
        texts = dict.fromkeys(how[f"flops.{name}"] for name in by_rate.get(fmt, ()))
        sheet = _or_dash(d.peak_flops.get(fmt), unit)
        rows.append((f"arithmetic, {fmt}", sheet, _or_dash(found, unit), "; ".join(texts)))
    bandwidth = _or_dash(measured.memory_bandwidth if measured else None, "B/s")
    rows.append(("memory bandwidth", _or_dash(d.memory_bandwidth, "B/s"), bandwidth, how.get("memory_bandwidth", "")))
    if measured and measured.launch_s:
        rows.append(("smallest call", "-", format_time(measured.launch_s), how.get("launch_s", "")))
    return rows


def _or_dash(value: float | None, unit: str) -> str:
    return format_si(value, unit) if value else "-"


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested tables as pairs of dotted name and text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list | tuple):
        if all(not isinstance(v, Mapping | list | tuple) for v in value):
            yield prefix, ", ".join(_text(v) for v in value) or "none"
        else:
            for i, inner in enumerate(value):
                yield from flatten(inner, f"{prefix}.{i}" if prefix else str(i))
    else:
        yield prefix, _text(value)


def _text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def environment(data: ReportData) -> list[tuple[str, Pairs]]:
    """Groups of environment facts; loose ones come first."""
    loose: Pairs = []
    groups: list[tuple[str, Pairs]] = []
    if data.manifest.get("environment_id"):
        loose.append(("environment id", str(data.manifest["environment_id"])))
    source = data.section("environment")
    for name, value in source.items():
        if isinstance(value, Mapping) and value:
            groups.append((str(name).replace("_", " "), list(flatten(value))))
        elif not isinstance(value, Mapping):
            loose += [(n.replace("_", " "), text) for n, text in flatten(value, str(name))]
    resumed = data.manifest.get("resumed")
    for i, entry in enumerate(resumed if isinstance(resumed, list) else [], 1):
        # The run went on under other conditions; only what differs would be kept apart by a reader.
        if isinstance(entry, Mapping):
            groups.append((f"after resuming, {i}", list(flatten(entry))))
    return ([("general", loose)] if loose else []) + groups


def plan_facts(data: ReportData) -> Pairs:
    """The arguments and settings of the run; what was left to its default of "nothing" is left out."""
    plan = {k: v for k, v in data.section("plan").items() if k not in ("command", "refused")}
    names = dict(flatten({k: v for k, v in plan.items() if v not in (None, [], {}, "")}))
    # "settings.time_limit_s" reads better as "time_limit_s"; a name met twice keeps its section.
    short = Counter(name.rpartition(".")[2] for name in names)
    return [
        (tail if short[tail := name.rpartition(".")[2]] == 1 else name, text)
        for name, text in names.items() if text not in ("none", NONE)
    ]  # fmt: skip


_STATISTICS = (
    "The figure of a record is the median of its samples. Its interval is the exact bootstrap percentile interval at "
    "95 %. No sample is dropped."
)
_BOUND = (
    "The roofline bound: operations over the arithmetic rate, or compulsory bytes over memory bandwidth, whichever "
    "takes longer. The datasheet's rate is used where the device is listed, else the measured one. In the hot regime "
    "data that fits the cache is not bounded by main memory."
)
_CHECK = (
    "Each result is compared with one of higher precision by ||out - ref|| / ||ref||; a record that fails is kept, "
    "marked, and used nowhere."
)


def method(data: ReportData) -> list[tuple[str, str]]:
    """How it was measured, told from the records of this run."""
    timer = data.section("timer")
    timers = sorted({r.measurement.timer for r in data.records if r.measurement and r.measurement.timer})
    clock = str(timer.get("name") or "") or ", ".join(timers) or "not recorded"
    details = []
    for label, key in (("resolution", "resolution_s"), ("cost of one reading", "overhead_s")):
        if (value := _number(timer.get(key))) is not None:
            details.append(f"{label} {format_time(value)}")
    about = f" ({', '.join(details)})" if details else ""
    parts = [("Clock", f"{clock}{about}. The cost of reading it is recorded, not subtracted.")]
    for name, text in REGIMES.items():
        if any(r.case.regime == name for r in data.records):
            parts.append((f"Regime {name}", f"{text[0].upper()}{text[1:]}."))
    stops = Counter(r.measurement.stop for r in data.records if r.measurement)
    if stops:
        counted = ", ".join(f"{stop.replace('_', ' ')} {n}" for stop, n in stops.most_common())
        parts.append(("Stopping", f"Why sampling stopped: {counted}."))
    return [*parts, ("Statistics", _STATISTICS), ("Bound", _BOUND), ("Check", _CHECK)]


def when(data: ReportData) -> str:
    """The day of the run, or an empty text where the manifest has no readable date."""
    try:
        day = datetime.fromisoformat(str(data.manifest.get("created_at")).replace("Z", "+00:00"))
    except ValueError:
        return ""
    return f"{day.day} {day.strftime('%B %Y')}"


def lead(data: ReportData) -> str:
    """One sentence that says what this is."""
    ok = sum(1 for r in data.records if r.status == "ok")
    device = (data.device.name or data.device.id) if data.device else "an unnamed device"
    what = _operations({r.case.op for r in data.records}) or "nothing"
    return (
        f"{ok} of {len(data.records)} cases of {what} measured on {device}"
        + (f", {when(data)}" if when(data) else "")
        + "."
    )


def _operations(ops: set[str]) -> str:
    """Their names while these are few, then how many of each kind."""
    if len(ops) <= _MOST_NAMED:
        return ", ".join(sorted(ops))
    kinds = Counter(op.partition(".")[0] for op in ops)
    return f"{len(ops)} operations ({', '.join(f'{kind} {kinds[kind]}' for kind in sorted(kinds))})"


_MOST_NAMED = 6
