"""Sparse products: time against density, with the same weights stored dense beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.crossover import Crossover, crossover
from wattline.reports.data import ReportData
from wattline.reports.findings import STEADY, Finding
from wattline.reports.svg import Panel

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

OP = "gemm.sparse"
_DISTURBED = "noisy|foreign_process"
"""Flags of records that must not carry the finding."""
MAX_PANELS = 6
MAX_CURVES = 7
_SHAPE = ["m", "n", "k", "dtype", "activations", "regime", "data"]
_STORAGE = ["impl", "pattern", "block", "block_fill", "skew"]
_TITLE = "Sparse products: time against density"


@dataclass(frozen=True)
class Curve:
    """One implementation and storage of one shape, over densities.

    Attributes:
        name: both in words.
        rows: its records, by rising density, one for each.
    """

    name: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Shape:
    """One shape under one set of conditions.

    Attributes:
        name: in words.
        curves: its sparse implementations.
        dense: records of the dense baseline, by rising density; may be empty.
    """

    name: str
    curves: tuple[Curve, ...]
    dense: pd.DataFrame

    def baseline(self, density: Array) -> Array:
        """Seconds of the dense product at these densities.

        Its time hardly depends on them, so it need not be measured at each: it is interpolated, and beyond the first
        and the last taken as there.
        """
        known = np.log(self.dense["density"].to_numpy(float))
        times = np.log(self.dense["time_s"].to_numpy(float))
        found: Array = np.exp(np.interp(np.log(density), known, times))
        return found

    def crossing(self, curve: Curve) -> Crossover | None:
        """Where a curve meets the baseline; ``None`` with fewer than two densities or no baseline."""
        if len(curve.rows) < 2 or self.dense.empty:
            return None
        density = curve.rows["density"].to_numpy(float)
        return crossover(density.tolist(), curve.rows["time_s"].tolist(), self.baseline(density).tolist())


def shapes(data: ReportData, rows: pd.DataFrame | None = None) -> list[Shape]:
    """The shapes with sparse weights in a run, those with the most records first."""
    rows = data.usable_of([OP]) if rows is None else rows
    if not {"density", "pattern", "activations"} <= set(rows.columns):
        return []
    rows = rows[(rows["op"] == OP) & (rows["variant"].fillna("") != "b")]
    rows = rows[rows["sparse"] == "weight"]
    found = []
    for key, group in rows.groupby(_SHAPE, sort=True):
        dense = group[group["impl"] == "dense"].drop_duplicates("density").sort_values("density")
        curves = []
        for storage, part in group[group["impl"] != "dense"].groupby(_STORAGE, sort=True):
            curves.append(Curve(_storage_text(storage), part.drop_duplicates("density").sort_values("density")))
        if curves:
            found.append(Shape(_shape_text(key), tuple(curves), dense))
    return sorted(found, key=lambda s: (-sum(len(c.rows) for c in s.curves), s.name))


def _storage_text(key: tuple[Any, ...]) -> str:
    impl, pattern, block, fill, skew = key
    words = f"{impl} {pattern}" + (f" {block}" if pattern == "block" else "")
    if pattern == "block" and fill < 1:
        words += f" filled to {fill:g}"
    return words + (f" skew {skew:g}" if skew else "")


def _shape_text(key: tuple[Any, ...]) -> str:
    m, n, k, dtype, activations, regime, fill = key
    words = [f"m = {m}, n = {n}, k = {k}", dtype, regime]
    words += [f"X stored {activations}"] if activations != "km" else []
    return ", ".join(words + ([fill] if fill != "uniform" else []))


def figures(data: ReportData) -> list[Figure]:
    """Time against density, one drawing per shape; none in a run without sparse products."""
    if not any(record.case.op == OP for record in data.records):
        return []
    drawn = [s for s in shapes(data) if any(len(c.rows) > 1 for c in s.curves)][:MAX_PANELS]
    if not drawn:
        return [absent("sparse", _TITLE, "No sparse product has figures at two densities or more.")]
    names = list(dict.fromkeys(c.name for s in drawn for c in s.curves))[:MAX_CURVES]
    panels: list[Markup] = []
    for shape in drawn:
        panel = Panel(f"sparse-{len(panels)}", *natural_size(len(drawn))).log("xy")
        panel.titles(shape.name, "density", "s")
        marked = 0
        for curve in (c for c in shape.curves if c.name in names):
            series = names.index(curve.name)
            x, y = curve.rows["density"], curve.rows["time_s"]
            panel.ax.plot(x, y, color=svg.SERIES[series], linewidth=1.2)
            panel.points(x, y, curve.rows["anchor"], series)
            meeting = shape.crossing(curve)
            if meeting is not None and meeting.x is not None:
                panel.ax.axvline(meeting.x, color=svg.SERIES[series], linewidth=0.8, linestyle=(0, (2, 2)))
                marked += 1
        if not shape.dense.empty:
            every = np.concatenate([c.rows["density"].to_numpy(float) for c in shape.curves])
            level = np.unique(np.concatenate([every, shape.dense["density"].to_numpy(float)]))
            panel.ax.plot(level, shape.baseline(level), "--", color=svg.MUTED, linewidth=1.3)
            panel.points(shape.dense["density"], shape.dense["time_s"], shape.dense["anchor"], MAX_CURVES)
        panels.append(panel.svg(f"Time against density for {shape.name}: {len(shape.curves)} kernels, {marked} meet "
                                "the dense one."))  # fmt: skip
    legend = [*enumerate(names), (MAX_CURVES, "stored dense")]
    caption = (
        "Time of one product as more of the weights are kept. The dashed level is the same product with its zeros "
        "stored; left of a dotted line that kernel is the quicker one. Sparse kernels do fewer operations but read an "
        "index for each element and fetch rows out of order, so they must leave out most of the work to gain."
    )
    return [Figure("sparse", _TITLE, panels, caption, legend)]


def finding(data: ReportData) -> Finding | None:
    """The density where sparse begins to beat dense, for each shape and kernel; ``None`` without such records."""
    rows = data.usable_of([OP])
    if not len(rows):
        return None
    calm = rows[~(rows["half_width"] > STEADY) & ~rows["flags"].fillna("").str.contains(_DISTURBED)]
    met = _crossings(shapes(data, calm))
    if not met:
        everything = _crossings(shapes(data))
        if not everything:
            return None
        # A thread that waits for a processor makes a kernel look many times slower: no verdict beats a wrong one.
        title = "Where sparse weights begin to beat dense ones cannot be told from this run."
        text = f"Too few of the records of {len(everything)} kernels and shapes are free of noise and other processes."
        return Finding("sparse_density", title, text, "sparse", "time against density", quiet=True)
    below = sorted(found.x for *_, found in met if found.x is not None and found.first == "a")
    if below:
        span = f"{below[0]:.2g}" if len(below) == 1 else f"{below[0]:.2g} to {below[-1]:.2g}"
        title = f"Sparse weights beat dense ones below a density of {span}."
    elif all(found.verdict == "a_wins" for *_, found in met):
        title = "Sparse weights beat dense ones at every density that was measured."
    elif all(found.verdict == "b_wins" for *_, found in met):
        title = "Sparse weights beat dense ones at no density that was measured."
    else:
        title = "Whether sparse weights beat dense ones depends on shape and kernel."
    items = tuple(f"{c.name}, {s.name}: {_verdict(found, c)}" for s, c, found in met)
    text = "Where a sparse kernel takes as long as the same product with its zeros stored, by kernel and shape."
    return Finding("sparse_density", title, text, "sparse", "time against density", items)


def _crossings(found: list[Shape]) -> list[tuple[Shape, Curve, Crossover]]:
    return [(s, c, meeting) for s in found for c in s.curves if (meeting := s.crossing(c)) is not None]


def _verdict(found: Crossover, curve: Curve) -> str:
    low, high = float(curve.rows["density"].min()), float(curve.rows["density"].max())
    span = f"between {low:g} and {high:g}"
    if found.x is None:
        word = "quicker" if found.verdict == "a_wins" else "slower"
        return f"{word} than dense at every density {span}"
    side = "below" if found.first == "a" else "above"
    several = f" (it changes {found.changes} times)" if found.changes > 1 else ""
    return f"quicker than dense {side} a density of {found.x:.2g}{several}"
