"""Figures over time: power, clock, temperature and throttling on one axis, with the kernels as bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import isfinite

import numpy as np
from markupsafe import Markup

from wattline.errors import WattlineError
from wattline.reports import svg
from wattline.reports.blocks import Figure, absent
from wattline.reports.data import ReportData
from wattline.reports.svg import Panel
from wattline.trace import Series, Trace, read_traces
from wattline.units import format_si

MOST_POINTS = 700
"""Of one line: of longer ones the least and the largest value of each stretch are drawn, so that no peak is lost."""

THROTTLES = {
    "gpu_throttle_power": "power", "gpu_throttle_thermal": "heat", "gpu_throttle_hardware": "hardware",
    "gpu_throttle_sync_boost": "sync boost",
}  # fmt: skip
"""Reasons for lowered clocks that are drawn; idle clocks and those that a user set are none."""


@dataclass(frozen=True)
class Row:
    """One drawing of the stack: quantities of one unit.

    Attributes:
        label: of its axis.
        names: of series, the first that is there is drawn; several where they are drawn together.
        together: draw all that are there.
    """

    label: str
    names: tuple[str, ...]
    together: bool = False
    height: float = 150


ROWS = (
    Row("power (W)", ("gpu_power_instant_w", "gpu_power_usage_w"), height=190),
    Row("clock (Hz)", ("gpu_sm_clock_hz", "host_clock_hz")),
    Row("temperature (C)", ("gpu_temperature_c", "host_temperature_c")),
    Row("throttled", tuple(THROTTLES), together=True, height=110),
)


@lru_cache(maxsize=4)
def _traces(path: str) -> tuple[Trace, ...] | str:
    """The traces of a run by start, or why they cannot be read."""
    try:
        return tuple(sorted(read_traces(path), key=lambda t: t.zero_unix_s))
    except WattlineError as error:
        return str(error)


def whole_run(data: ReportData) -> Figure:
    """The run from its first to its last trace, on its own clock."""
    title = "Power, clock, temperature and throttling over the run"
    traces = _traces(str(data.run.path))
    if isinstance(traces, str):
        return absent("power-run", title, f"The traces cannot be read: {traces}")
    if not traces:
        return absent("power-run", title, "Nothing was sampled over time in this run.")
    zero = traces[0].zero_unix_s
    shifted = [t.since(zero) for t in traces]
    bands = [(b.start_s, b.end_s, b.label) for t in shifted for b in t.bands]
    end = max([b[1] for b in bands] + [t.zero_unix_s - zero + t.span_s for t in traces])
    panels = _stack("power-run", shifted, bands, (0.0, end), "seconds since the first case")
    if not panels:
        return absent("power-run", title, "The traces hold neither power nor clocks nor temperatures.")
    caption = (
        f"{len(traces)} cases, each sampled while it was measured; between them nothing is. Grey bands are kernels "
        "back to back: timed samples (light) and the load that energy is measured over (dark)."
    )
    return Figure("power-run", title, panels, caption, wide=True)


def one_case(data: ReportData) -> Figure:
    """The case that drew the most power, closer."""
    title = "One case closer: the one that drew the most"
    traces = _traces(str(data.run.path))
    if isinstance(traces, str) or not traces:
        return absent("power-case", title, "Nothing was sampled over time in this run.")
    chosen = max(traces, key=_hottest)
    anchors = dict(zip((r.identity for r in data.records), data.anchors, strict=True))
    bands = [(b.start_s, b.end_s, b.label) for b in chosen.bands]
    end = max([chosen.span_s] + [b[1] for b in bands])
    panels = _stack("power-case", [chosen], bands, (0.0, end), "seconds since its start")
    if not panels:
        return absent("power-case", title, "Its trace holds neither power nor clocks nor temperatures.")
    names = ", ".join(dict.fromkeys(label for _, _, label in bands))
    missing = "; ".join(f"{name.replace('_', ' ')}: {why}" for name, why in chosen.missing.items())
    where = f" (record {anchors[chosen.identity]})" if chosen.identity in anchors else ""
    caption = f"{chosen.label}{where}. Bands: {names}." + (f" Not sampled: {missing}." if missing else "")
    return Figure("power-case", title, panels, caption, wide=True)


def _hottest(trace: Trace) -> float:
    for name in ROWS[0].names:
        if name in trace.series:
            values = [v for v in trace.series[name].values if isfinite(v)]
            return float(np.median(values)) if values else 0.0
    return 0.0


def _stack(
    name: str, traces: Sequence[Trace], bands: Sequence[tuple[float, float, str]], span: tuple[float, float], x: str
) -> list[Markup]:
    """One drawing below the other, with the same time axis."""
    found = []
    there = [row for row in ROWS if any(n in t.series for n in row.names for t in traces)]
    for number, row in enumerate(there):
        last = number == len(there) - 1
        panel = Panel(f"{name}-{number}", 1080, row.height + (40 if last else 0))
        panel.titles("", x if last else "", row.label)
        for start, stop, label in _merged(bands, span):
            dark = label == "energy"
            panel.ax.axvspan(start, stop, color=svg.MUTED, alpha=0.26 if dark else 0.12, linewidth=0)
        peak = _lines(panel, row, traces)
        panel.ax.set_xlim(*span)
        panel.linear("x", ticks=10)
        if row.together:
            used = [n for n in row.names if any(n in t.series for t in traces)]
            panel.ax.set_yticks(range(len(used)), [THROTTLES.get(n, n) for n in used])
            panel.ax.set_ylim(-0.5, len(used) - 0.1)
        else:
            panel.linear("y", ticks=4)
            panel.ax.set_ylim(min(0.0, panel.ax.get_ylim()[0]), None)
        # Equal margins, so that the same second stands above itself in every drawing.
        panel.figure.set_layout_engine(None)
        below = 48 if last else 8
        panel.figure.subplots_adjust(left=0.085, right=0.995, top=1 - 10 / panel.height, bottom=below / panel.height)
        if not last:
            panel.ax.tick_params(axis="x", labelbottom=False)
        found.append(panel.svg(f"{row.label} over {span[1] - span[0]:.3g} s{peak}."))
    return found


def _lines(panel: Panel, row: Row, traces: Sequence[Trace]) -> str:
    """Draw the series of a row; returns what to say of their largest value."""
    if row.together:
        used = [n for n in row.names if any(n in t.series for t in traces)]
        for level, n in enumerate(used):
            spans = [span for t in traces if n in t.series for span in _active(t.series[n])]
            if spans:
                panel.ax.hlines(
                    [level] * len(spans), [a for a, _ in spans], [b for _, b in spans], color=svg.SERIES[1], linewidth=7
                )
        return ""
    name = next(n for n in row.names if any(n in t.series for t in traces))
    x: list[float] = []
    y: list[float] = []
    unit = ""
    share = max(20, MOST_POINTS // max(1, len(traces)))
    for trace in traces:
        if name in trace.series:
            series = trace.series[name]
            unit = series.unit
            times, values = thinned(series, share)
            x += [*times, np.nan]  # a gap between cases is no line
            y += [*values, np.nan]
    panel.ax.plot(x, y, "-", color=svg.SERIES[0], linewidth=1.2, marker=".", markersize=2.2)
    finite = [v for v in y if isfinite(v)]
    return f", at most {format_si(max(finite), unit)}" if finite and unit in ("W", "Hz") else ""


def _active(series: Series) -> list[tuple[float, float]]:
    """The stretches in which a reason held, from one reading to the next."""
    ends = [*series.times_s[1:], series.times_s[-1]] if series.times_s else []
    found: list[tuple[float, float]] = []
    for begin, end, value in zip(series.times_s, ends, series.values, strict=True):
        if not value:
            continue
        if found and abs(found[-1][1] - begin) < 1e-9:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


def thinned(series: Series, most: int) -> tuple[list[float], list[float]]:
    """At most about ``most`` points of a series: of each stretch the least and the largest, in their order."""
    n = len(series.values)
    if n <= most:
        return list(series.times_s), list(series.values)
    edges = np.linspace(0, n, max(2, most // 2) + 1).astype(int)
    keep: list[int] = []
    values = np.asarray(series.values, float)
    for begin, end in pairwise(edges):
        part = values[begin:end]
        if np.isfinite(part).any():
            keep += sorted({begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))})
    return [series.times_s[i] for i in keep], [float(values[i]) for i in keep]


def _merged(bands: Sequence[tuple[float, float, str]], span: tuple[float, float]) -> list[tuple[float, float, str]]:
    """Bands with those of one label that nearly touch made one: on a long run thousands would be drawn upon a pixel."""
    close = (span[1] - span[0]) / 400
    found: list[tuple[float, float, str]] = []
    for start, stop, label in sorted(bands):
        kind = "energy" if label == "energy" else "timing"
        if found and found[-1][2] == kind and start - found[-1][1] < close:
            found[-1] = (found[-1][0], max(found[-1][1], stop), kind)
        else:
            found.append((start, stop, kind))
    return found
