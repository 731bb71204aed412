"""Figures of joules: per call, per operation, at rest, their error, and what a cap costs and saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from wattline.energy_terms import BUDGET
from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, format_series, natural_size
from wattline.reports.data import ReportData
from wattline.reports.findings import percent
from wattline.reports.svg import Panel
from wattline.units import format_si

if TYPE_CHECKING:
    import pandas as pd

_NONE = "No record that can be trusted carries joules."


def with_energy(data: ReportData) -> pd.DataFrame:
    """The trusted rows that carry joules, and ``j_per_flop`` and ``j_per_byte``."""
    rows = data.trusted
    rows = rows[rows["energy_j"].gt(0)].copy()
    rows["j_per_flop"] = rows["energy_j"] / rows["flops"].where(rows["flops"] > 0)
    rows["j_per_byte"] = rows["energy_j"] / rows["bytes_moved"].where(rows["bytes_moved"] > 0)
    return rows


def uncapped(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that no power limit or clock was set for."""
    return rows[rows["power_limit_w"].isna() & rows["clock_hz"].isna()]


def time_and_energy(data: ReportData) -> Figure:
    """Joules per call against seconds per call, with lines of equal power and the Pareto front of each problem."""
    title = "Energy against time, per call"
    rows = with_energy(data)
    if rows.empty:
        return absent("energy-time", title, _NONE)
    panel = Panel("energy-time", 560, 330).log("xy")
    panel.titles("", "median time of one call (s)", "energy of one call (J)")
    span = np.array([rows["time_s"].min() / 1.5, rows["time_s"].max() * 1.5], float)
    watts = sorted({_round(float(q)) for q in rows["power_w"].quantile([0.02, 0.5, 0.98])})
    watts = [w for i, w in enumerate(watts) if not i or w > 1.5 * watts[i - 1]]  # closer ones' names would overlap
    for power in watts:
        panel.ax.plot(span, span * power, "--", color=svg.MUTED, linewidth=0.9)
        panel.ax.annotate(
            format_si(power, "W"), (span[1], span[1] * power), xytext=(-3, -3), textcoords="offset points", ha="right",
            va="top", fontsize=10, color=svg.MUTED,
        )  # fmt: skip
    fronts = 0
    for _, group in rows.groupby(["op", "shape"], sort=False):
        front = pareto(group["time_s"].to_numpy(float), group["energy_j"].to_numpy(float))
        if len(front) > 1:
            at = group.iloc[front]
            panel.ax.plot(at["time_s"], at["energy_j"], "-", color=svg.INK, linewidth=1.1)
            fronts += 1
    for dtype in data.formats:
        part = rows[rows["dtype"] == dtype]
        panel.ax.vlines(part["time_s"], part["energy_lo_j"], part["energy_hi_j"], color=svg.GRID, linewidth=1.4)
        panel.points(part["time_s"], part["energy_j"], part["anchor"], format_series(dtype))
    caption = (
        "Each point is one record, its bar the interval with the whole error budget. Dashed lines are equal power. "
        + (
            f"Solid lines join the choices of one problem that nothing else beats in both time and energy "
            f"({fronts} problems have such a choice)."
            if fronts
            else "For no problem of this run does the quickest way cost more energy than another."
        )
    )
    drawing = panel.svg(f"Energy against time of {len(rows)} records.")
    return Figure("energy-time", title, [drawing], caption, [(format_series(f), f) for f in data.formats])


def pareto(time: np.ndarray, energy: np.ndarray) -> list[int]:
    """Positions of the points that no other beats in both, by rising time."""
    front: list[int] = []
    least = np.inf
    for i in np.lexsort((energy, time)):
        if energy[i] < least:
            front.append(int(i))
            least = float(energy[i])
    return front


def _round(power: float) -> float:
    """To two digits, so that a line has a readable name."""
    return float(f"{power:.2g}")


def per_operation(data: ReportData) -> Figure:
    """Joules per operation and per byte against arithmetic intensity."""
    title = "Energy per operation and per byte"
    rows = uncapped(with_energy(data))
    rows = rows[rows["intensity"].gt(0) & np.isfinite(rows["intensity"])]
    if rows.empty:
        return absent("energy-flop", title, _NONE)
    panels: list[Markup] = []
    for name, label in (("j_per_flop", "joules per operation"), ("j_per_byte", "joules per byte")):
        panel = Panel(f"energy-{name[6:]}", *natural_size(2)).log("xy").titles("", "operations per byte", label)
        for dtype in data.formats:
            part = rows[rows["dtype"] == dtype]
            panel.points(part["intensity"], part[name], part["anchor"], format_series(dtype))
        panels.append(panel.svg(f"{label.capitalize()} of {len(rows)} records against operations per byte."))
    best = rows.iloc[int(rows["j_per_flop"].argmin())]
    caption = (
        "All energy of the device while the kernel ran, power at rest included, over the operations and over the bytes "
        f"that must move. The least per operation: {format_si(float(best['j_per_flop']), 'J')} "
        f"({best['dtype']}, {best['shape']}). Left, where memory bounds, the energy per byte is the figure to read."
    )
    return Figure("energy-flop", title, panels, caption, [(format_series(f), f) for f in data.formats])


def levels(data: ReportData) -> Figure:
    """Power at rest without and with a context, and while kernels run."""
    title = "Power at rest and at work"
    rows = uncapped(with_energy(data))
    found = data.section("energy").get("levels")
    rest = {
        name: float(level["power_w"])
        for name in ("idle", "resident")
        if isinstance(found, dict) and isinstance(level := found.get(name), dict) and "power_w" in level
    }
    if rows.empty:
        return absent("energy-levels", title, _NONE)
    names = {"idle": "idle, no context", "resident": "idle, context resident"}
    bars = [(names[name], value, value, value) for name, value in rest.items()]
    for dtype in data.formats:
        power = rows.loc[rows["dtype"] == dtype, "power_w"]
        if len(power):
            bars.append((f"active, {dtype}", float(power.median()), float(power.min()), float(power.max())))
    panel = Panel("energy-levels", 470, 70 + 30 * len(bars)).titles("", "watts", "")
    y = np.arange(len(bars))[::-1]
    panel.ax.barh(y, [b[1] for b in bars], height=0.55, color=[svg.MUTED if i < len(rest) else svg.SERIES[0]
                                                              for i in range(len(bars))])  # fmt: skip
    panel.ax.hlines(y, [b[2] for b in bars], [b[3] for b in bars], color=svg.INK, linewidth=1.3)
    panel.ax.set_yticks(y, [b[0] for b in bars])
    panel.ax.grid(visible=False, axis="y")
    missing = str(data.section("energy").get("levels_missing") or "")
    idle = rest.get("idle") or rest.get("resident")
    if idle:
        share = 1 - idle / rows["power_w"]
        dynamic = (
            f"Of the energy of a call {percent(float(share.median()))} is dynamic (median of {len(rows)} records): "
            "what it takes beyond the same time at rest. Every energy in this report is the total."
        )
    else:
        dynamic = f"The power at rest is not known{': ' + missing if missing else ''}, so no share of it is given."
    caption = f"Medians over the records of a format; the lines span from the least to the most. {dynamic}"
    return Figure("energy-levels", title, [panel.svg("Watts at rest and per number format at work.")], caption)


def budget(data: ReportData) -> Figure:
    """The error budget: relative half-width by cause."""
    title = "Error budget of the joules"
    causes: dict[str, list[float]] = {}
    for record in data.records:
        if record.measurement and record.measurement.energy:
            for cause, value in record.measurement.energy.budget.items():
                causes.setdefault(cause, []).append(float(value))
    if not causes:
        return absent("energy-budget", title, _NONE)
    known = [c for c in BUDGET if c in causes] + sorted(set(causes) - set(BUDGET))
    panel = Panel("energy-budget", 470, 70 + 30 * len(known)).titles("", "relative half-width", "")
    y = np.arange(len(known))[::-1]
    middle = [float(np.median(causes[c])) for c in known]
    special = {"gain": svg.SERIES[1], "cross_check": svg.MUTED, "pace": svg.MUTED}  # muted: for information
    colours = [special.get(c, svg.SERIES[0]) for c in known]
    panel.ax.barh(y, middle, height=0.55, color=colours)
    panel.ax.hlines(y, [min(causes[c]) for c in known], [max(causes[c]) for c in known], color=svg.INK, linewidth=1.3)
    panel.ax.set_yticks(y, [c.replace("_", " ") for c in known])
    panel.ax.grid(visible=False, axis="y")
    panel.linear("x", svg.percent_tick, ticks=5)
    panel.ax.set_xlim(0, None)
    text = "; ".join(f"{c.replace('_', ' ')}: {BUDGET[c]}" for c in known if c in BUDGET)
    caption = f"Medians over the records; the lines span from the least to the most. {text[0].upper()}{text[1:]}."
    return Figure("energy-budget", title, [panel.svg("Error of the joules by cause.")], caption)


def capped(data: ReportData) -> Figure:
    """What a power limit or a locked clock costs in time and saves in energy."""
    title = "What a cap costs and saves"
    rows = with_energy(data)
    free = uncapped(rows)
    keys = ["op", "impl", "shape", "dtype", "regime", "data"]
    base = free.groupby(keys, dropna=False)[["time_s", "energy_j"]].median().add_suffix("_free")
    panels: list[Markup] = []
    said: list[str] = []
    for column, label, unit in (("power_limit_w", "power limit (W)", "W"), ("clock_hz", "locked clock (Hz)", "Hz")):
        part = rows[rows[column].notna() & rows["clock_hz" if column == "power_limit_w" else "power_limit_w"].isna()]
        part = part.merge(base, left_on=keys, right_index=True)
        if part.empty:
            continue
        part["time"], part["energy"] = part["time_s"] / part["time_s_free"], part["energy_j"] / part["energy_j_free"]
        panel = Panel(f"energy-cap-{len(panels)}", *natural_size(2)).titles("", label, "against no cap")
        panel.ax.axhline(1, color=svg.MUTED, linewidth=1)
        middle = part.groupby(column)[["time", "energy"]].median()
        for series, name in enumerate(("time", "energy")):
            panel.ax.plot(middle.index, middle[name], "-", color=svg.SERIES[series], linewidth=1.4)
            panel.points(part[column], part[name], part["anchor"], series)
        panel.linear("x").linear("y", svg.ratio_tick)
        panels.append(panel.svg(f"Time and energy of {len(part)} records under a {label}, against none."))
        at = int(middle["energy"].argmin())
        frugal, time, energy = (float(v) for v in (middle.index[at], *middle.iloc[at][["time", "energy"]]))
        said.append(
            f"At {format_si(frugal, unit)} a call takes {_change(energy)} energy and {_change(time)} time (medians)"
        )
    if not panels:
        return absent("energy-caps", title, "No case was measured both with a cap and without one.")
    caption = "Each point is one record against the same case without a cap; lines join the medians. " + "; ".join(said)
    return Figure("energy-caps", title, panels, caption + ".", [(0, "time"), (1, "energy")])


def _change(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "as much"
    return f"{percent(abs(ratio - 1))} {'more' if ratio > 1 else 'less'}"
