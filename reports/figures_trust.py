"""Figures of trust: how wide the intervals are, and what repeating the same case says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, format_series
from wattline.reports.data import ReportData
from wattline.reports.findings import resolution
from wattline.reports.svg import Panel

MOST_PAIRS = 300
"""Most pairs that are drawn beside each other."""


def noise(data: ReportData) -> Figure:
    """Relative half-width of the median's interval against time."""
    title = "Noise: width of the intervals"
    rows = data.usable[["half_width", "dtype", "time_s", "anchor"]]
    rows = rows[rows["half_width"].notna()]
    if rows.empty:
        return absent("noise", title, "No record has an interval.")
    floor = 1e-5
    panel = Panel("noise", 450, 270).log("x").log("y", label=svg.percent_tick)
    panel.titles("", "median time of one call (s)", "half-width / median")
    target = _target(data)
    panel.ax.axhline(target, color=svg.MUTED, linewidth=1, linestyle="--")
    for dtype in data.formats:
        part = rows[rows["dtype"] == dtype]
        panel.points(part["time_s"], part["half_width"].clip(lower=floor), part["anchor"], format_series(dtype))
    caption = (
        "How well each median is known: half of its 95 % bootstrap interval, relative to it. The dashed line is the "
        f"target of {svg.percent_tick(target)}, at which sampling stops; the records above it ran into a limit of time "
        f"or number before. Intervals narrower than {svg.percent_tick(floor)} are drawn there."
    )
    drawing = panel.svg(f"Relative half-width of {len(rows)} intervals against time.")
    return Figure("noise", title, [drawing], caption, [(format_series(f), f) for f in data.formats])


def _target(data: ReportData) -> float:
    """The precision at which the run stopped sampling; 1 % is the default of the stopping rule."""
    settings = data.section("plan").get("settings")
    value = settings.get("precision") if isinstance(settings, Mapping) else None
    return float(value) if isinstance(value, int | float) and 0 < value < 1 else 0.01


def repeats(data: ReportData) -> Figure:
    """The ratio of the two measurements of each A/A pair."""
    title = "The same case measured twice (A/A)"
    rows = data.usable[["variant", "key", "time_s", "time_lo_s", "time_hi_s", "anchor"]]
    rows = rows[rows["variant"].isin(["a", "b"])]
    pairs = [
        (group[group["variant"] == "a"].iloc[0], group[group["variant"] == "b"].iloc[0])
        for _, group in rows.groupby("key", sort=False)
        if {"a", "b"} <= set(group["variant"].dropna())
    ]
    if not pairs:
        return absent("aa", title, "No case was measured twice, so how far two equal runs differ is not known.")
    pairs.sort(key=lambda p: (float(p[1]["time_s"] / p[0]["time_s"]), str(p[0]["anchor"])))
    count = len(pairs)
    pairs = [pairs[i] for i in np.unique(np.linspace(0, count - 1, min(count, MOST_PAIRS)).round().astype(int))]
    panel = (
        Panel("aa", 450, 270).titles("", "pair, by rising ratio", "second against first").log("y", label=svg.ratio_tick)
    )
    x = np.arange(1, len(pairs) + 1)
    ratio = np.array([float(b["time_s"] / a["time_s"]) for a, b in pairs])
    low = np.array([float(b["time_lo_s"] / a["time_hi_s"]) for a, b in pairs])
    high = np.array([float(b["time_hi_s"] / a["time_lo_s"]) for a, b in pairs])
    smallest = resolution(data)
    if smallest is not None:
        panel.ax.axhspan(1 / (1 + smallest), 1 + smallest, color=svg.MUTED, alpha=0.14, linewidth=0)
    panel.ax.axhline(1, color=svg.MUTED, linewidth=1)
    panel.ax.vlines(x, low, high, color=svg.SERIES[0], linewidth=1.4)
    panel.points(x, ratio, [str(b["anchor"]) for _, b in pairs], 0)
    panel.ax.set_xlim(0.5, len(pairs) + 0.5)
    panel.ax.set_xticks([*range(1, len(pairs) + 1, max(1, len(pairs) // 6))])
    caption = (
        "Nothing differs between the two, so every distance from zero is noise. Bars span the intervals of both; a "
        "bar that misses zero is a false positive. "
        + (
            "The grey band holds 95 % of the pairs: smaller differences cannot be told on this machine."
            if smallest
            else ""
        )
        + (f" Of {count} pairs {len(pairs)} are drawn, evenly over their order." if count > len(pairs) else "")
    )
    return Figure("aa", title, [panel.svg(f"Ratio of {count} repeated measurements.")], caption)
