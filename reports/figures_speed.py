"""Figures of speed: rooflines, heat map, line sweep, regimes, skinny products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, format_series, natural_size, regime_series
from wattline.reports.data import PARAMS_FIRST, ReportData
from wattline.reports.findings import all_cliffs, percent
from wattline.reports.svg import Panel
from wattline.reports.sweeps import fine_lines, skinny_lines
from wattline.units import format_si

if TYPE_CHECKING:
    import pandas as pd

    from wattline.reports.sweeps import Cliff

_NOTHING = "No record has a figure that can be trusted; see what could not be measured."
MAX_MAPS = 4
"""Most heat maps of one format: those with the most cells are shown."""
MAX_CELLS = 400
"""Most cells of one heat map: beyond it nobody can read them."""


def unit(dtype: str) -> str:
    """Operations per second of a format."""
    return "OP/s" if dtype.startswith("int") else "FLOP/s"


def rooflines(data: ReportData) -> Figure:
    """Achieved speed against arithmetic intensity, one drawing per number format."""
    title = "Roofline by number format"
    rows = data.usable[["intensity", "flops_per_s", "dtype", "regime", "rate_format", "anchor"]]
    rows = rows[rows["intensity"].gt(0) & rows["flops_per_s"].gt(0) & np.isfinite(rows["intensity"])]
    if rows.empty:
        return absent("roofline", title, _NOTHING)
    panels: list[Markup] = []
    roofs: set[str] = set()
    formats = [f for f in data.formats if f in set(rows["dtype"])]
    for dtype in formats:
        part = rows[rows["dtype"] == dtype]
        panel = Panel(f"roof-{len(panels)}", *natural_size(len(formats))).log("xy")
        panel.titles(dtype, "operations per byte", unit(dtype))
        span = _roofs(panel, data, part, roofs)
        for regime, group in part.groupby("regime", sort=True):
            panel.points(group["intensity"], group["flops_per_s"], group["anchor"], regime_series(str(regime)))
        panel.ax.set_xlim(*span)
        panel.ax.set_ylim(float(part["flops_per_s"].min()) / 2, None)
        best = format_si(float(part["flops_per_s"].max()), unit(dtype))
        panels.append(panel.svg(f"Roofline of {dtype}: {len(part)} records, the fastest at {best}."))
    lines = [entry for entry in (("solid", "measured ceiling"), ("dashed", "datasheet ceiling")) if entry[0] in roofs]
    note = "" if roofs else " No ceiling of this device is known, so none is drawn."
    if "dashed" not in roofs and roofs:
        note = " The device is not in the list of datasheets, so only measured ceilings are drawn."
    caption = (
        "Each point is one record; bytes are the least that must cross main memory. The sloped part of a roof is "
        "memory bandwidth times intensity, the flat part the arithmetic rate; a point far under the roof leaves "
        "speed unused. Points of the hot regime may lie above the "
        "slope, because their data comes from a cache." + note
    )
    return Figure("roofline", title, panels, caption, _regime_legend(rows), lines)


def _roofs(panel: Panel, data: ReportData, rows: pd.DataFrame, drawn: set[str]) -> tuple[float, float]:
    low, high = float(rows["intensity"].min()) / 2, float(rows["intensity"].max()) * 2
    device = data.device
    if device is None:
        return low, high
    fmt = str(rows["rate_format"].iloc[0])
    measured = device.measured
    roofs = [
        ("dashed", device.peak_flops.get(fmt), device.memory_bandwidth, svg.MUTED, "--"),
        ("solid", measured.flops.get(fmt) if measured else None, measured.memory_bandwidth if measured else None,
         svg.INK, "-"),
    ]  # fmt: skip
    for name, flops, bandwidth, colour, style in roofs:
        if not flops:
            continue
        x = np.geomspace(low, high, 3)
        y = np.full_like(x, flops)
        if bandwidth:
            ridge = flops / bandwidth
            x = np.array(sorted({low, min(max(ridge, low), high), high}))
            y = np.minimum(flops, x * bandwidth)
        panel.ax.plot(x, y, style, color=colour, linewidth=1.3)
        drawn.add(name)
    return low, high


def _regime_legend(rows: pd.DataFrame) -> list[tuple[int, str]]:
    return [(regime_series(r), r) for r in sorted(set(rows["regime"]), key=regime_series)]


def products(data: ReportData) -> list[Figure]:
    """The figures of matrix products. Why one of them is missing is said only in a run that has any."""
    expected = not data.records or any(set(PARAMS_FIRST) <= set(record.case.params) for record in data.records)
    found = [heat_map(data), line_sweep(data), regimes(data), skinny(data)]
    return [figure for figure in found if expected or not figure.missing]


def heat_map(data: ReportData) -> Figure:
    """Share of the arithmetic peak over m x n, one drawing per format and k."""
    title = f"Share of the peak over m x n{', ' + data.regime if data.regime else ''}"
    rows = data.headline
    if rows.empty:
        return absent("heat", title, _NOTHING)
    if not set(PARAMS_FIRST) <= set(rows.columns):
        return absent("heat", title, "The operations of this run have no m, n and k.")
    rows = rows[rows["share"].notna() & rows[list(PARAMS_FIRST)].notna().all(axis=1)]
    if rows.empty:
        return absent(
            "heat", title, "No arithmetic peak of this device is known, so there is nothing to take a share of."
        )
    rows = _same_rest(data, rows)[[*PARAMS_FIRST, "dtype", "share", "rate_format", "anchor"]]
    panels: list[Markup] = []
    sources: dict[str, str] = {}
    for dtype in data.formats:
        mine = rows[rows["dtype"] == dtype]
        grids = {k: _grid(mine[mine["k"] == k]) for k in sorted(int(k) for k in mine["k"].unique())}
        largest = sorted((k for k, grid in grids.items() if len(grid)), key=lambda k: (-len(grids[k]), k))[:MAX_MAPS]
        for k in sorted(largest):
            grid = grids[k]
            peak = data.peak(str(grid["rate_format"].iloc[0]))
            sources[dtype] = f"{dtype} {peak.source} {format_si(peak.flops, unit(dtype))}" if peak else dtype
            panels.append(_heat_panel(f"heat-{len(panels)}", dtype, k, grid))
    if not panels:
        return absent("heat", title, "At no k were at least two m and two n combined, so a map would be empty.")
    caption = (
        "Each cell is one product, labelled with the percentage of the peak it reaches; darker (in dark mode, "
        "brighter) is faster. Empty cells were not measured. Peaks: " + "; ".join(sources.values()) + "."
    )
    return Figure("heat", title, panels, caption)


def _same_rest(data: ReportData, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose other parameters (batch, layout ...) have their most frequent value."""
    names = {name for record in data.records for name in record.case.params} - {*PARAMS_FIRST, "dtype"}
    for name in sorted(names & set(rows.columns)):
        if rows[name].notna().any():
            rows = rows[rows[name] == rows[name].value_counts().idxmax()]
    return rows


def _grid(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at those m and n that form a grid; none where there is no grid worth drawing."""
    rows = rows.drop_duplicates(["m", "n"])
    while len(rows):
        # A size met only once (a point of another sweep) would add a row or column that is otherwise empty.
        lonely = (rows.groupby("m")["n"].transform("size") < 2) | (rows.groupby("n")["m"].transform("size") < 2)
        if not lonely.any():
            break
        rows = rows[~lonely]
    if rows["m"].nunique() < 2 or rows["n"].nunique() < 2 or rows["m"].nunique() * rows["n"].nunique() > MAX_CELLS:
        return rows.iloc[:0]
    return rows


def _heat_panel(name: str, dtype: str, k: int, grid: pd.DataFrame) -> Markup:
    ms, ns = sorted(int(v) for v in grid["m"].unique()), sorted(int(v) for v in grid["n"].unique())
    panel = Panel(name, 275, 62 + 27 * len(ms) if len(ms) < 9 else 300)
    ax = panel.titles(f"{dtype}, k = {k}", "n", "m").ax
    ax.grid(visible=False)
    ax.set_xlim(-0.5, len(ns) - 0.5)
    ax.set_ylim(-0.5, len(ms) - 0.5)
    ax.set_xticks(range(len(ns)), [str(n) for n in ns], rotation=0 if len(ns) < 7 else 90)
    ax.set_yticks(range(len(ms)), [str(m) for m in ms])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    size = 9.5 if max(len(ms), len(ns)) <= 8 else 6
    columns = (grid[name].tolist() for name in ("m", "n", "share", "anchor"))
    for m, n, share, anchor in zip(*columns, strict=True):
        x, y = ns.index(int(n)), ms.index(int(m))
        shade = 0.06 + 0.94 * min(1.0, max(0.0, share))
        ax.fill([x - 0.48, x + 0.48, x + 0.48, x - 0.48], [y - 0.47, y - 0.47, y + 0.47, y + 0.47],
                color=svg.HEAT, alpha=shade, linewidth=0)  # fmt: skip
        ax.text(x, y, f"{share * 100:.0f}", ha="center", va="center", fontsize=size,
                color=svg.HEAT_INK if shade > 0.66 else svg.INK, in_layout=False)  # fmt: skip
        panel.box(x - 0.48, y - 0.47, x + 0.48, y + 0.47, str(anchor))
    low, high = float(grid["share"].min()), float(grid["share"].max())
    return panel.svg(
        f"Heat map of {dtype} at k = {k}: {len(grid)} cells from {percent(low)} to {percent(high)} of the peak."
    )


def line_sweep(data: ReportData) -> Figure:
    """Speed along the fine lines, cliffs marked."""
    title = "Line sweep in fine steps"
    lines = fine_lines(data)
    if not lines:
        return absent(
            "line", title, "No size was swept in fine steps (at least eight neighbours within 15 % of each other)."
        )
    _, found = all_cliffs(data)
    panels: list[Markup] = []
    marked = 0
    shown = lines[:4]
    for line in shown:
        panel = Panel(f"line-{len(panels)}", 920, 265).titles(line.fixed, line.axis, unit(line.dtype))
        rows, name = line.rows, line.moving[0]
        x, y = rows[name].astype(float), rows["flops_per_s"]
        panel.ax.fill_between(x, rows["flops"] / rows["time_hi_s"], rows["flops"] / rows["time_lo_s"],
                              color=svg.SERIES[format_series(line.dtype)], alpha=0.25, linewidth=0)  # fmt: skip
        panel.ax.plot(x, y, color=svg.SERIES[format_series(line.dtype)], linewidth=1.2)
        here = [c for c in found if c.line.axis == line.axis and c.line.fixed == line.fixed]
        for cliff in here:
            panel.ax.axvline(cliff.at, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for cliff in _apart(here, float(x.max() - x.min()) * 0.08)[:6]:
            panel.ax.annotate(f"-{percent(cliff.loss)}", (cliff.at, 0), xycoords=("data", "axes fraction"),
                              xytext=(3, 4),
                              textcoords="offset points", fontsize=9, color=svg.INK)  # fmt: skip
        panel.points(x, y, rows["anchor"], format_series(line.dtype))
        panel.linear("x", lambda v, _: f"{v:g}", 9).linear("y")
        panel.ax.set_ylim(0, float((rows["flops"] / rows["time_lo_s"]).max()) * 1.08)
        marked += len(here)
        panels.append(panel.svg(f"Speed along {line.axis} at {line.fixed}: {len(rows)} sizes, {len(here)} cliffs."))
    more = f" {len(lines) - len(shown)} further lines are in the table only." if len(lines) > len(shown) else ""
    caption = (
        "Speed as one size grows in small steps and the others stay. The band is the 95 % interval of the median. "
        "Dashed lines mark cliffs: the step to that size loses at least 8 % of the speed, more than noise explains; "
        "the figure beside it is the loss. Such steps come from tiles and waves that the size no longer fills. "
        f"Cliffs marked: {marked}.{more}"
    )
    return Figure("line", title, panels, caption, wide=True)


def _apart(found: list[Cliff], distance: float) -> list[Cliff]:
    """The largest cliffs that stand far enough apart to be labelled."""
    kept: list[Cliff] = []
    for cliff in found:
        if all(abs(cliff.at - other.at) >= distance for other in kept):
            kept.append(cliff)
    return kept


def regimes(data: ReportData) -> Figure:
    """Speed by regime for the shapes measured in more than one."""
    title = "Speed by regime"
    rows = data.main
    if rows.empty:
        return absent("regimes", title, _NOTHING)
    params = sorted({p for r in data.records for p in r.case.params if p in rows.columns and p != "dtype"})
    several = rows.groupby(["dtype", *params], dropna=False)["regime"].transform("nunique") > 1
    rows = rows[several & rows["flops_per_s"].gt(0)]
    if rows.empty:
        return absent("regimes", title, "No shape was measured in more than one regime.")
    panels: list[Markup] = []
    formats = [f for f in data.formats if f in set(rows["dtype"])]
    for dtype in formats:
        part = rows[rows["dtype"] == dtype]
        panel = (
            Panel(f"regime-{len(panels)}", *natural_size(len(formats)))
            .log("xy")
            .titles(dtype, "operations of one call", unit(dtype))
        )
        bars = part.groupby(params, dropna=False).agg(
            x=("flops", "first"), low=("flops_per_s", "min"), high=("flops_per_s", "max")
        )
        kept = svg.apart(np.log(bars.to_numpy(float)[:, :2]) * 40, svg.MOST_MARKS)
        panel.ax.vlines(*(bars[name].to_numpy(float)[kept] for name in ("x", "low", "high")),
                        color=svg.GRID, linewidth=2.5)  # fmt: skip
        for regime, group in part.groupby("regime"):
            panel.points(group["flops"], group["flops_per_s"], group["anchor"], regime_series(str(regime)))
        panels.append(panel.svg(f"Speed of {dtype} by regime: {len(part)} records."))
    caption = (
        "The same product under different conditions; bars join the records of one shape. Cold: inputs come from "
        "main memory. Hot: they lie in a cache. Graph: launch cost removed. Eager: launch and allocation included, "
        "as a Python caller sees it. Where the regimes meet, the product is large enough for none of it to matter."
    )
    return Figure("regimes", title, panels, caption, _regime_legend(rows))


def skinny(data: ReportData) -> Figure:
    """Share of the roofline bound as m grows from 1, for the weight matrices of model layers."""
    title = "Few rows: from one token to a batch"
    lines = skinny_lines(data)
    if not lines:
        return absent("skinny", title, "No weight matrix was multiplied with m from 1 upwards at four sizes or more.")
    formats = [f for f in data.formats if f in {line.dtype for line in lines}]
    panels: list[Markup] = []
    for dtype in formats:
        panel = (
            Panel(f"skinny-{len(panels)}", *natural_size(len(formats)))
            .log("x", 2, lambda v, _: f"{v:g}")
            .linear("y", svg.percent_tick)
        )
        panel.titles(dtype, "m (rows)", "bound / time")
        mine = [line for line in lines if line.dtype == dtype]
        for line in mine:
            series = lines.index(line)
            rows = line.rows[line.rows["efficiency"].notna()]
            panel.ax.plot(rows["m"].astype(float), rows["efficiency"], color=svg.SERIES[series], linewidth=1.2)
            panel.points(rows["m"].astype(float), rows["efficiency"], rows["anchor"], series)
        panel.ax.set_ylim(0, max(1.05, *(float(line.rows["efficiency"].max()) * 1.05 for line in mine)))
        panels.append(panel.svg(f"Share of the bound against m for {dtype}: {len(mine)} weight matrices."))
    legend = [(i, f"{line.dtype}, {line.fixed}") for i, line in enumerate(lines)]
    caption = (
        "The roofline bound divided by the measured time; 100 % is as fast as the device allows. With one row the "
        "weights must be read for a single token and memory bounds the product; with many rows arithmetic does. A "
        "dip between them is where a library changes its kernel."
    )
    return Figure("skinny", title, panels, caption, legend)
