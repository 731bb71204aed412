"""The findings of a run in words: what an expert would say after an hour with the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, cast

import numpy as np

from wattline.reports.data import ReportData
from wattline.reports.sweeps import Cliff, cliffs, fine_lines
from wattline.units import format_si, format_time

if TYPE_CHECKING:
    import pandas as pd

    from wattline.reports.predicted import Prediction

HEADLINES = 5
STEADY = 0.1
"""Largest relative half-width of the interval of a record that may carry a headline."""
RESTLESS = 0.25
"""Smallest difference that can be told, above which the machine was too restless for the rest to mean much."""
_MANY = 3
"""Fewer rows than this carry no statement about a whole format or regime."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: a stable word for programs and tests.
        title: the finding in one sentence.
        text: the figures behind it.
        anchor: where to look: a record or a section, without the ``#``.
        see: what the link says.
        items: figures that read better as a list, one line each.
        quiet: nothing remarkable was found.
    """

    kind: str
    title: str
    text: str
    anchor: str = ""
    see: str = ""
    items: tuple[str, ...] = ()
    quiet: bool = False


def find(data: ReportData, prediction: Prediction | None = None) -> list[Finding]:
    """The findings that the records support, most telling first; empty where nothing was measured."""
    from wattline.reports import findings_energy, findings_reach  # they need the words of this module
    from wattline.reports.chapters import chapters

    general = [_ceiling(data), _far(data)]
    own = sorted(chapters(data), key=lambda chapter: -chapter.records(data))
    groups: list[list[Finding]] = [
        [f for f in (findings_reach.finding(data), _cliffs(data), _formats(data)) if f],
        findings_energy.find(data),
        *(chapter.findings(data) for chapter in own),
        [prediction.finding()] if prediction else [],
        [f for f in (_regimes(data),) if f],
        [f for f in (noise(data),) if f],
    ]
    told = [f for f in general if f] + in_turn(groups)
    # Where nothing can be told apart, that comes first; what was looked for and not found comes last.
    restless = (resolution(data) or 0.0) > RESTLESS
    return sorted(told, key=lambda f: 0 if restless and f.kind == "noise" else 2 if f.quiet else 1)


def in_turn(groups: Sequence[Sequence[Finding]]) -> list[Finding]:
    """The first of each group, then the second of each, and so on: no subject crowds out the others at the top."""
    return [f for row in zip_longest(*groups) for f in row if f]


def percent(share: float) -> str:
    """A share for people: ``0.42 %``, ``7.3 %``, ``85 %``; from tenfold on as a factor."""
    value = share * 100
    if value >= 1000:
        return f"{share:.0f} times"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %" if value >= 0.95 else f"{value:.2g} %"


def times(ratio: float) -> str:
    """A ratio for people: ``1.7``, ``14``."""
    if ratio < 0.095:
        return f"{ratio:.2g}"
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 1.95 else f"{ratio:.2f}"


def resolution(data: ReportData) -> float | None:
    """The smallest relative difference that can be told on this machine, from the A/A pairs of the run."""
    value = data.section("aa").get("smallest_difference")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _steady(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose median is known to a tenth, where enough are; a disturbed record must not become a headline."""
    kept = rows[~(rows["half_width"] > STEADY)]
    return kept if len(kept) >= _MANY else rows


def _ceiling(data: ReportData) -> Finding | None:
    rows = data.headline
    # Operations without a format (a step of Adam, say) have a peak, but no format to speak for.
    rows = _steady(rows[rows["share"].notna() & rows["dtype"].notna()]) if len(rows) else rows
    bounded = rows[rows["bound_by"] == "compute"]
    rows = rows if bounded.empty else bounded
    if rows.empty:
        return None
    # The format with the most shapes speaks for the run: of the others a single lucky shape may be all there is.
    dtype = str(rows["dtype"].value_counts(sort=False).reindex(data.formats).idxmax())
    mine = rows[rows["dtype"] == dtype]
    best = mine.iloc[int(mine["share"].argmax())]
    parts = []
    for name in data.formats:
        part = rows[rows["dtype"] == name]
        if part.empty:
            continue
        top = part.iloc[int(part["flops_per_s"].argmax())]
        peak = data.peak(str(top["rate_format"]))
        typical = (
            f", {percent(float(part['share'].median()))} at the median of {len(part)} shapes"
            if len(part) >= _MANY
            else ""
        )
        widened = f" (executed as {peak.executed})" if peak and peak.executed != top["rate_format"] else ""
        parts.append(
            f"{name}{widened}: {format_si(float(top['flops_per_s']), _unit(name))} at {top['shape']}, "
            f"{percent(float(top['share']))} of the {peak.source if peak else ''} peak{typical}"
        )
    peak = data.peak(str(best["rate_format"]))
    title = (
        f"The best {dtype} product reaches {percent(float(best['share']))} of the {peak.source if peak else ''} peak"
    )
    title += f", the typical one {percent(float(mine['share'].median()))}." if len(mine) >= _MANY else "."
    kind = "shapes that arithmetic bounds" if (rows["bound_by"] == "compute").all() else "all shapes"
    text = f"Best and typical speed by format, regime {data.regime}, {kind}."
    return Finding("ceiling", title, text, str(best["anchor"]), f"the best {dtype} record", tuple(parts))


def _unit(dtype: str) -> str:
    return "OP/s" if dtype.startswith("int") else "FLOP/s"


def _far(data: ReportData) -> Finding | None:
    rows = data.headline
    rows = _steady(rows[rows["efficiency"].notna() & (rows["efficiency"] > 0)]) if len(rows) else rows
    launch = data.device.measured.launch_s if data.device and data.device.measured else None
    if launch and len(rows):
        # Calls that are little more than a launch say nothing about the kernel.
        longer = rows[rows["time_s"] >= 5 * launch]
        rows = longer if len(longer) >= _MANY else rows
    if len(rows) < _MANY:
        return None
    worst = rows.nsmallest(3, "efficiency")
    first = worst.iloc[0]
    below = int((rows["efficiency"] < 0.5).sum())
    shapes = tuple(
        f"{r['dtype']} {r['shape']} takes {format_time(float(r['time_s']))}, {times(1 / float(r['efficiency']))} "
        f"times its {r['bound_by']} bound of {format_time(float(r['bound_s']))}"
        for _, r in worst.iterrows()
    )
    title = (
        f"Furthest from its bound: {first['dtype']} {first['shape']}, {times(1 / float(first['efficiency']))} times "
        f"slower than the {first['bound_by']} bound allows."
    )
    text = f"{below} of {len(rows)} shapes stay below half of what the roofline allows (regime {data.regime})."
    return Finding("below_bound", title, text, str(first["anchor"]), "its record", shapes)


def all_cliffs(data: ReportData) -> tuple[int, list[Cliff]]:
    """The number of fine lines, and the cliffs on them, largest first; one per record."""
    return cast("tuple[int, list[Cliff]]", data.once("cliffs", lambda: _all_cliffs(data)))


def _all_cliffs(data: ReportData) -> tuple[int, list[Cliff]]:
    lines = fine_lines(data)
    found: dict[str, Cliff] = {}
    for line in lines:
        for cliff in cliffs(line, resolution(data) or 0.0):
            if cliff.anchor not in found or found[cliff.anchor].loss < cliff.loss:
                found[cliff.anchor] = cliff
    return len(lines), sorted(found.values(), key=lambda c: (-c.loss, c.at))


def _cliffs(data: ReportData) -> Finding | None:
    count, found = all_cliffs(data)
    if not count:
        return None
    where = "1 fine line" if count == 1 else f"{count} fine lines"
    if not found:
        text = f"Along {where} no step to the next size loses 8 % of the speed beyond what noise explains."
        return Finding("cliffs", "No cliffs were found.", text, "line", "the line sweep", quiet=True)
    top = found[0]
    title = (
        f"Speed falls by {percent(top.loss)} between {top.line.axis} = {top.before} and {top.at} ({top.line.fixed})."
    )
    others = tuple(f"{c.line.axis} = {c.before} to {c.at} ({c.line.fixed}): {percent(c.loss)}" for c in found[1:4])
    number = f"{len(found)} cliff{'s' if len(found) > 1 else ''} on {where}"
    text = f"{number}, where the step to the next size loses at least 8 %."
    return Finding("cliffs", title, text, top.anchor, "the slow side", others)


def _same_case(rows: pd.DataFrame, data: ReportData, vary: str) -> pd.DataFrame:
    """Median times with one column per value of ``vary`` and one row per case that else agrees."""
    params = sorted({p for r in data.records for p in r.case.params if p in rows.columns} - {vary})
    keys = [k for k in ("op", "impl", "regime", "data") if k != vary] + params
    keys += ["dtype"] if vary != "dtype" and "dtype" not in keys else []
    keys = [k for k in keys if rows[k].notna().all()]
    table: pd.DataFrame = rows.pivot_table(index=keys, columns=vary, values="time_s", aggfunc="first")
    return table


def _formats(data: ReportData) -> Finding | None:
    rows = _steady(data.headline)
    if rows.empty or rows["dtype"].nunique() < 2:
        return None
    base = "fp32" if "fp32" in set(rows["dtype"]) else str(rows["dtype"].value_counts().idxmax())
    table = _same_case(rows, data, "dtype")
    parts: list[tuple[float, str, str]] = []
    for dtype in (f for f in data.formats if f != base and f in table.columns):
        both = table[[base, dtype]].dropna()
        if len(both) < _MANY:
            continue
        ratio = both[base] / both[dtype]
        mean = float(np.exp(np.log(ratio).mean()))
        parts.append((mean, dtype, f"{dtype}: {times(mean)} times ({times(float(ratio.min()))} to "
                                   f"{times(float(ratio.max()))}, {len(both)} shapes)"))  # fmt: skip
    if not parts:
        return None
    mean, dtype, _ = max(parts)
    word = "as fast as" if mean >= 1 else "the speed of"
    title = f"Best of the formats: {dtype} is {times(mean)} times {word} {base} on the same shapes."
    text = f"Geometric mean of the speed relative to {base}, with its range, over the shapes measured in both."
    return Finding("formats", title, text, "roofline", "the rooflines", tuple(p for *_, p in parts))


def _regimes(data: ReportData) -> Finding | None:
    rows = _steady(data.main)
    if rows.empty or rows["regime"].nunique() < 2:
        return None
    table = _same_case(rows, data, "regime")
    base = data.regime
    parts: list[tuple[float, str, str]] = []
    for regime in sorted(c for c in table.columns if c != base):
        both = table[[base, regime]].dropna()
        if len(both) >= _MANY:
            ratio = both[regime] / both[base]
            low, middle, high = (float(v) for v in ratio.quantile([0, 0.5, 1]))
            span = f"from {times(low)} to {times(high)}"
            text = f"{regime}: {times(middle)} times at the median of {len(both)} shapes, {span}"
            parts.append((max((low, high), key=lambda r: abs(np.log(r))), regime, text))
    if not parts:
        return None
    extreme, regime, _ = max(parts, key=lambda p: abs(np.log(p[0])))
    size = f"up to {times(extreme)} times as long as" if extreme >= 1 else f"down to {percent(extreme)} of the time of"
    title = f"Calls in the {regime} regime take {size} the same {base} ones."
    text = f"Time relative to {base}, over the shapes measured in both."
    return Finding("regimes", title, text, "regimes", "speed by regime", tuple(p for *_, p in parts))


def noise(data: ReportData) -> Finding | None:
    """How well times can be told apart: the interval widths and the A/A pairs."""
    widths = data.usable["half_width"].dropna()
    if widths.empty:
        return None
    typical, wide = float(widths.median()), int((widths > 0.01).sum())
    aa = data.section("aa")
    smallest, pairs, false = resolution(data), aa.get("pairs"), aa.get("false_positives")
    text = (
        f"The 95 % interval of the median is {percent(typical)} to either side at the middle record; {wide} of "
        f"{len(widths)} are wider than 1 %."
    )
    if smallest is None:
        return Finding("noise", f"A time is known to {percent(typical)}, typically.",
                       text + " No case was measured twice, so the smallest difference that can be told is not known.",
                       "noise", "the noise")  # fmt: skip
    text += f" {pairs} cases were measured twice without a change; {false} of the pairs looked different all the same."
    title = f"Differences below {percent(smallest)} cannot be told apart on this machine."
    if smallest > RESTLESS:
        title = "This machine was too restless to compare times: one in twenty equal cases differed by a factor of "
        title += f"{times(1 + smallest)} or more."
    return Finding("noise", title, text, "noise", "the noise")
