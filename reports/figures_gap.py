"""Achieved time as ideal and gap: which cases lose most against their bound, and how high the water stands overall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, format_series, natural_size
from wattline.reports.data import ReportData
from wattline.reports.findings import STEADY, percent, times
from wattline.reports.lines import DISTURBED
from wattline.reports.svg import Panel
from wattline.units import format_si, format_time

if TYPE_CHECKING:
    from markupsafe import Markup

SHOWN = 8
"""Slow cases on the first screen; twice as many in the figure."""
EACH = 2
"""Most slow cases of one operation, so that one shape in all its variants does not hide the rest."""
SLOW = 1.05
"""What takes less than this many times its bound is not called slow."""
ABOVE_LAUNCH = 5.0
"""A case that takes less than this many launches says nothing about its kernel."""
CLOCKS = ("telemetry.gpu_sm_clock_hz", "telemetry.host_clock_hz")
"""Mean clocks while a record was measured; the first that a run has is drawn."""


@dataclass(frozen=True)
class Slow:
    """A case that takes longer than its bound allows.

    Attributes:
        anchor: its record.
        name: operation, implementation, format and sizes.
        time_s, bound_s: seconds of one call, and the least that the device's ceilings allow.
        by: what bounds it, ``"compute"`` or ``"memory"``.
        dtype: its format.
    """

    anchor: str
    name: str
    time_s: float
    bound_s: float
    by: str
    dtype: str

    @property
    def factor(self) -> float:
        """How many times the bound it takes."""
        return self.time_s / self.bound_s

    @property
    def cells(self) -> tuple[str, str, str]:
        """Time, bound and factor for people."""
        return format_time(self.time_s), f"{format_time(self.bound_s)} ({self.by})", f"x {times(self.factor)}"


def bounded(data: ReportData) -> pd.DataFrame:
    """The usable rows with a bound that nothing disturbed and that are more than a launch."""
    rows: pd.DataFrame = data.once("bounded", lambda: _bounded(data))
    return rows


def _bounded(data: ReportData) -> pd.DataFrame:
    rows = data.usable
    rows = rows[rows["bound_s"].gt(0) & rows["time_s"].gt(0) & (rows["variant"].fillna("") != "b")]
    calm = rows[~(rows["half_width"] > STEADY) & ~rows["flags"].fillna("").str.contains(DISTURBED)]
    rows = calm if len(calm) else rows
    launch = data.device.measured.launch_s if data.device and data.device.measured else None
    if launch:
        # What could end within one launch is bounded by launching, which the roofline does not know.
        rows = rows[(rows["time_s"] >= ABOVE_LAUNCH * launch) & (rows["bound_s"] >= launch)]
    return rows


def slowest(data: ReportData, most: int = SHOWN) -> list[Slow]:
    """The cases furthest from their bound, at most two of one operation, the furthest first."""
    rows = bounded(data)
    if rows.empty:
        return []
    rows = rows.assign(factor=rows["time_s"] / rows["bound_s"]).sort_values("factor", ascending=False, kind="stable")
    rows = rows[rows["factor"] >= SLOW].groupby("op", sort=False).head(EACH).head(most)
    columns = (rows[c].tolist() for c in ("anchor", "op", "impl", "dtype", "shape", "time_s", "bound_s", "bound_by"))
    return [
        Slow(
            anchor, " ".join(str(w) for w in (op, impl, dtype, shape) if w is not None and not pd.isna(w)),
            float(time_s), float(bound_s), str(by), "" if pd.isna(dtype) else str(dtype),
        )
        for anchor, op, impl, dtype, shape, time_s, bound_s, by in zip(*columns, strict=True)
    ]  # fmt: skip


def figures(data: ReportData) -> list[Figure]:
    """The gap of the slowest cases, the waterline of all, and speed beside clock and power."""
    return [gap(data), waterline(data), beside_clock(data)]


def gap(data: ReportData) -> Figure:
    """Ideal and gap of the cases furthest from their bound."""
    title = "Efficiency gap: which cases lose most, and how much?"
    found = slowest(data, 2 * SHOWN)
    if not found:
        why = "No undisturbed record that is longer than a few launches misses its bound, or has one."
        return absent("gap", title, why)
    panel = Panel("gap", 920, 70 + 21 * len(found)).log("x").titles("", "one call (s)", "")
    y = np.arange(len(found))[::-1]
    launch = (data.device.measured.launch_s or 0.0) if data.device and data.device.measured else 0.0
    bound = np.array([s.bound_s for s in found])
    time = np.array([s.time_s for s in found])
    panel.ax.hlines(y, bound, time, color=svg.SERIES[1], linewidth=5, alpha=0.35)
    if launch:
        panel.ax.hlines(y, bound, np.minimum(bound + launch, time), color=svg.SERIES[1], linewidth=5)
    panel.ax.vlines(bound, y - 0.34, y + 0.34, color=svg.INK, linewidth=2)
    for i, case in enumerate(found):
        panel.points([case.time_s], [y[i]], [case.anchor], format_series(case.dtype))
        panel.ax.annotate(
            f"x {times(case.factor)}", (case.time_s, y[i]), xytext=(7, 0), textcoords="offset points", va="center",
            fontsize=9,
        )  # fmt: skip
    panel.ax.set_yticks(y, [svg.printable(_short(case.name)) for case in found], fontsize=9)
    panel.ax.set_ylim(-0.7, len(found) - 0.3)
    panel.ax.set_xlim(float(bound.min()) / 1.3, float(time.max()) * 2.2)
    panel.ax.grid(visible=False, axis="y")
    caption = (
        "Each row is one case: the upright bar is the ideal, the time that the roofline bound allows; from there to "
        "the point reaches the gap. The axis is logarithmic, so the length of a gap is the factor beside it"
        + ("; its dark part is what one launch takes" if launch else "")
        + f". At most {EACH} cases of one operation, those that noise or other processes disturbed left out."
    )
    legend = [(format_series(d), d or "no format") for d in dict.fromkeys(case.dtype for case in found)]
    alt = f"{len(found)} cases from x {times(found[-1].factor)} to x {times(found[0].factor)} of their bound."
    return Figure("gap", title, [panel.svg(alt)], caption, legend, wide=True)


def _short(name: str, most: int = 52) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."


def waterline(data: ReportData) -> Figure:
    """Share of the ideal in the time of all cases: by number of cases, and by the time that they take."""
    title = "Waterline: how much of the time is ideal, over all cases?"
    rows = bounded(data)
    if len(rows) < 2:
        return absent("waterline", title, "Fewer than two undisturbed records have a bound.")
    rows = rows.assign(ideal=(rows["bound_s"] / rows["time_s"]).clip(upper=1)).sort_values("ideal", kind="stable")
    ideal = rows["ideal"].to_numpy(float)
    panels: list[Markup] = []
    said = []
    for name, label, weight in (
        ("cases", "share of the cases", np.ones(len(rows))),
        ("time", "share of the time of one call of each", rows["time_s"].to_numpy(float)),
    ):
        edges = np.concatenate([[0.0], np.cumsum(weight) / weight.sum()])
        level = float((ideal * weight).sum() / weight.sum())
        panel = Panel(f"water-{name}", *natural_size(2)).linear("x", svg.percent_tick).linear("y", svg.percent_tick)
        panel.titles("", label, "bound / time")
        keep = np.unique(np.concatenate([np.linspace(0, len(ideal) - 1, 400).astype(int), [0, len(ideal) - 1]]))
        x, y = np.append(edges[keep], 1.0), np.append(ideal[keep], ideal[-1])
        panel.ax.fill_between(x, y, step="post", color=svg.SERIES[0], alpha=0.3, linewidth=0)
        panel.ax.fill_between(x, y, 1.0, step="post", color=svg.SERIES[1], alpha=0.18, linewidth=0)
        panel.ax.axhline(level, color=svg.INK, linewidth=1.1, linestyle="--")
        panel.ax.set_xlim(0, 1)
        panel.ax.set_ylim(0, 1)
        panel.points((edges[:-1] + edges[1:]) / 2, ideal, rows["anchor"], 0)
        panels.append(panel.svg(f"Share of the ideal over {len(rows)} cases by {name}: {percent(level)} on average."))
        said.append(level)
    caption = (
        f"All {len(rows)} cases with a bound, the furthest from it on the left. Under the line lies the ideal, above "
        f"it the gap. Left every case counts the same: "
        f"{percent(said[0])} of a case's time is ideal on average (dashed). "
        f"Right each counts by its time, so areas are seconds: {percent(said[1])} of all time is ideal. Cases faster "
        "than their bound (data in caches) count as ideal."
    )
    return Figure("waterline", title, panels, caption)


def beside_clock(data: ReportData) -> Figure:
    """Share of the bound against the clock and the power at which it was reached."""
    title = "Speed beside clock and power: were slow cases slowed down by the machine?"
    rows = data.trusted
    rows = rows[rows["efficiency"].gt(0)]
    clock = next((name for name in CLOCKS if name in rows.columns and rows[name].gt(0).any()), None)
    axes = [(clock, "mean clock", "Hz")] if clock else []
    if rows["power_w"].gt(0).any():
        axes.append(("power_w", "power", "W"))
    if rows.empty or not axes:
        return absent("clock", title, "Neither a clock nor power was recorded beside the times.")
    panels: list[Markup] = []
    said = []
    for name, label, unit in axes:
        part = rows[rows[name].gt(0)]
        panel = Panel(f"clock-{len(panels)}", *natural_size(2)).log("y", label=svg.percent_tick).linear("x", ticks=5)
        panel.titles("", f"{label} ({unit})", "bound / time")
        for dtype in [*data.formats, None]:
            here = part[part["dtype"].isna()] if dtype is None else part[part["dtype"] == dtype]
            panel.points(here[name], here["efficiency"], here["anchor"], format_series(str(dtype)))
        panels.append(panel.svg(f"Share of the bound of {len(part)} records against {label}."))
        low, high = (float(v) for v in part[name].quantile([0.05, 0.95]))
        said.append(f"{label} from {format_si(low, unit)} to {format_si(high, unit)}")
    caption = (
        "Each point is one record with the mean of what was read while it was measured. Slow points at a low clock "
        "were slowed by the machine (heat, power limit, a locked clock); slow points at full clock have another cause. "
        f"The middle 90 % of the records: {', '.join(said)}."
    )
    legend = [(format_series(f), f) for f in data.formats]
    return Figure("clock", title, panels, caption, legend)
