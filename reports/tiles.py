"""Tiled products: which tile is best by time, by energy and by power, and what a wrong one costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.data import ReportData
from wattline.reports.findings import STEADY, Finding, percent, times
from wattline.reports.svg import Panel
from wattline.units import format_si, format_time

if TYPE_CHECKING:
    import pandas as pd

OP = "gemm.tiled"
MAX_PANELS = 6
MAX_TILES = 16
"""Most tiles of one drawing; of more the quickest and a few of the slowest are drawn."""
_SLOWEST = 4
_DISTURBED = "noisy|foreign_process"
"""Flags of records that must not carry the finding."""
_PROBLEM = ["m", "n", "k", "dtype", "impl", "regime", "data"]
_TILE = ["block_m", "block_n", "block_k", "tile", "warps", "stages", "group_m"]
_UNITS = {"warps": "{} warps", "stages": "{} stages", "group_m": "bands of {}"}
_TITLE = "Tiles: time, energy and power against the best"
_SERIES = {"time_s": (0, "time"), "energy_j": (1, "energy"), "power_w": (2, "power")}


@dataclass(frozen=True)
class Problem:
    """One product by one kernel, under one set of conditions, in several tiles.

    Attributes:
        name: in words.
        kernel: implementation and format, in words.
        rows: a record for each tile, the quickest first, with its name in the column ``tiles``.
    """

    name: str
    kernel: str
    rows: pd.DataFrame

    def measured(self, column: str) -> pd.DataFrame:
        """The rows that have a figure in ``"time_s"``, ``"energy_j"`` or ``"power_w"``, the least first."""
        return self.rows[self.rows[column] > 0].sort_values(column, kind="stable")

    def excess(self, column: str) -> pd.Series:
        """How many times the least of its kind each tile takes, by position of its row."""
        rows = self.measured(column)
        ratio: pd.Series = rows[column] / rows[column].min()
        return ratio


def problems(data: ReportData, rows: pd.DataFrame | None = None) -> list[Problem]:
    """The products of a run that were measured in two tiles or more, those with the most tiles first."""
    rows = data.usable_of([OP]) if rows is None else rows
    if not {*_TILE, "m", "n", "k"} <= set(rows.columns):
        return []
    rows = rows[(rows["op"] == OP) & (rows["variant"].fillna("") != "b")]
    found = []
    for key, group in rows.groupby(_PROBLEM, sort=True):
        each = group.drop_duplicates(_TILE).sort_values("time_s", kind="stable")
        if len(each) < 2:
            continue
        # What was left alone need not be read.
        varied = [name for name in _UNITS if each[name].nunique() > 1]
        named = each.assign(tiles=[_tile_text(row, varied) for _, row in each[_TILE].iterrows()])
        found.append(Problem(_problem_text(key), f"{key[4]} {key[3]}", named))
    return sorted(found, key=lambda p: (-len(p.rows), p.name))


def _tile_text(row: Any, varied: list[str]) -> str:
    if row["tile"] > 0:
        return f"{row['tile']}x{row['tile']}"
    sizes = "x".join(str(row[name]) for name in ("block_m", "block_n", "block_k"))
    return ", ".join([sizes, *(_UNITS[name].format(row[name]) for name in varied)])


def _problem_text(key: tuple[Any, ...]) -> str:
    m, n, k, dtype, impl, regime, fill = key
    words = [f"{m} x {n} x {k}", str(dtype), str(impl), str(regime)]
    return ", ".join(words + ([str(fill)] if fill != "uniform" else []))


def figures(data: ReportData) -> list[Figure]:
    """Tiles by their time against the best, one drawing per product; none in a run without tiled products."""
    if not any(record.case.op == OP for record in data.records):
        return []
    drawn = problems(data)[:MAX_PANELS]
    if not drawn:
        return [absent("tiles", _TITLE, "No product has figures in two tiles or more.")]
    panels: list[Markup] = []
    present: set[str] = set()
    for problem in drawn:
        rows = _some(problem.rows)
        width, _ = natural_size(len(drawn))
        panel = Panel(f"tiles-{len(panels)}", width, 95 + 17 * len(rows)).log("x", label=_ratio)
        panel.titles(problem.name, "times the least", "")
        place = {index: float(len(rows) - 1 - i) for i, index in enumerate(rows.index)}
        ratio = problem.excess("time_s")
        panel.ax.hlines([place[i] for i in rows.index], 1.0, ratio[rows.index], color=svg.GRID, linewidth=1.4)
        least = float(rows["time_s"].min())
        panel.ax.hlines([place[i] for i in rows.index], rows["time_lo_s"] / least, rows["time_hi_s"] / least,
                        color=svg.SERIES[0], linewidth=1.4)  # fmt: skip
        for column, (series, label) in _SERIES.items():
            excess = problem.excess(column)
            excess = excess[[i for i in rows.index if i in excess.index]]
            if len(excess):
                panel.points(excess, [place[i] for i in excess.index], rows.loc[excess.index, "anchor"], series)
                present.add(label)
        panel.ax.set_yticks(list(place.values()), [svg.printable(name) for name in rows["tiles"]])
        panel.ax.set_ylim(-0.7, len(rows) - 0.3)
        panel.ax.grid(visible=False, axis="y")
        panels.append(panel.svg(
            f"{len(rows)} tiles of {problem.name}: the slowest takes {times(float(ratio.max()))} times as long as the "
            "quickest."
        ))  # fmt: skip
    legend = [entry for entry in _SERIES.values() if entry[1] in present]
    caption = (
        "Each row is one tile, the quickest on top: block_m x block_n x block_k, or the side of the naive kernel's "
        "square, and what else was varied. Its points say how many times the least of all tiles it takes, and its bar "
        "is the 95 % interval of the time. A small tile loads its operands more often than a large one; one that is "
        "too large leaves processors idle at the edges, or overflows what is near them."
    )
    if any(len(p.rows) > MAX_TILES for p in drawn):
        caption += f" Of more than {MAX_TILES} tiles the quickest and the {_SLOWEST} slowest are drawn."
    more = len(problems(data)) - len(drawn)
    return [Figure("tiles", _TITLE, panels, caption + (f" {more} further products are in the table." if more else ""),
                   legend)]  # fmt: skip


def _ratio(value: float, _position: object = None) -> str:
    return f"x {value:g}"


def _some(rows: pd.DataFrame) -> pd.DataFrame:
    """The quickest rows and a few of the slowest, where there are too many."""
    if len(rows) <= MAX_TILES:
        return rows
    quick = list(range(MAX_TILES - _SLOWEST))
    return rows.iloc[quick + list(range(len(rows) - _SLOWEST, len(rows)))]


def finding(data: ReportData) -> Finding | None:
    """The best tile by time, energy and power for each product; ``None`` without such records."""
    rows = data.usable_of([OP])
    everything = problems(data)
    if not everything:
        return None
    calm = rows[~(rows["half_width"] > STEADY) & ~rows["flags"].fillna("").str.contains(_DISTURBED)]
    told = problems(data, calm)
    if not told:
        # A thread that waits for a processor makes a tile look many times slower: no verdict beats a wrong one.
        title = "Which tile is best cannot be told from this run."
        text = f"Too few of the records of {len(everything)} products are free of noise and other processes."
        return Finding("tiles", title, text, "tiles", "the tiles", quiet=True)
    worst = max(told, key=lambda p: float(p.excess("time_s").max()))
    best, last = worst.rows.iloc[0], worst.rows.iloc[-1]
    title = (
        f"A wrong tile costs up to {times(float(worst.excess('time_s').max()))} times the time: for {worst.name} "
        f"{best['tiles']} is the quickest, {last['tiles']} the slowest."
    )
    parts = [_by_energy(told), _compromise(told)]
    return Finding(
        "tiles", title, " ".join(part for part in parts if part), str(best["anchor"]), "the best tile",
        tuple(_verdict(p) for p in told),
    )  # fmt: skip


def _verdict(problem: Problem) -> str:
    """Best and worst of one product in words."""
    rows = problem.rows
    quick, slow = rows.iloc[0], rows.iloc[-1]
    equal = int((rows["time_lo_s"] <= quick["time_hi_s"]).sum()) - 1
    tied = f", {equal} more within its interval" if equal else ""
    parts = [
        f"{problem.name}: quickest {quick['tiles']} ({format_time(float(quick['time_s']))}{tied}); slowest of "
        f"{len(rows)}: {slow['tiles']}, {times(float(slow['time_s'] / quick['time_s']))} times as long"
    ]
    energy = problem.measured("energy_j")
    if len(energy) > 1:
        least, most = energy.iloc[0], energy.iloc[-1]
        joules, more = format_si(float(least["energy_j"]), "J"), _over(quick, least, "energy_j")
        factor = times(float(most["energy_j"] / least["energy_j"]))
        parts.append(f"least energy {least['tiles']} ({joules}{more}); most: {most['tiles']}, {factor} times as much")
    power = problem.measured("power_w")
    if len(power) > 1:
        least = power.iloc[0]
        watts, more = format_si(float(least["power_w"]), "W"), _over(quick, least, "power_w")
        factor = times(float(least["time_s"] / quick["time_s"]))
        parts.append(
            f"least power {least['tiles']} ({watts}{more}), which takes {factor} times as long as the quickest"
        )
    return "; ".join(parts)


def _over(quick: Any, least: Any, column: str) -> str:
    """How much more the quickest tile takes than the least, where they differ and both were measured."""
    if quick["tiles"] == least["tiles"] or not quick[column] > 0:
        return ""
    return f", the quickest {percent(float(quick[column] / least[column] - 1))} more"


def _by_energy(told: list[Problem]) -> str:
    """Whether time and joules choose the same tile."""
    with_joules = [p for p in told if len(p.measured("energy_j")) > 1]
    if not with_joules:
        return "No joules were measured, so tiles are compared by time alone."
    pairs = [(p.measured("time_s").iloc[0], p.measured("energy_j").iloc[0]) for p in with_joules]
    others = sum(1 for quick, frugal in pairs if quick["tiles"] != frugal["tiles"])
    costs = max(float(p.excess("energy_j").max()) for p in with_joules)
    which = "In none" if not others else f"In {others}"
    return (
        f"{which} of {len(with_joules)} products does another tile than the quickest take the least energy; the most "
        f"wasteful tile takes up to {times(costs)} times as much of it."
    )


def _compromise(told: list[Problem]) -> str:
    """One tile for all products of a kernel: the one whose worst loss is least."""
    kernels: dict[str, list[Problem]] = {}
    for problem in told:
        kernels.setdefault(problem.kernel, []).append(problem)
    name, members = max(kernels.items(), key=lambda item: len(item[1]))
    if len(members) < 2:
        return ""
    ratios = [dict(zip(p.rows["tiles"], p.excess("time_s"), strict=True)) for p in members]
    common = reduce(lambda a, b: a & b, (set(r) for r in ratios))
    if not common:
        return ""
    loss = {tile: max(float(r[tile]) for r in ratios) for tile in common}
    tile = min(sorted(loss), key=loss.__getitem__)
    if loss[tile] < 1 + np.finfo(float).eps:
        return f"{tile} is the quickest for all {len(members)} products of {name}."
    return (
        f"One tile for all {len(members)} products of {name}: {tile}, which takes at most {percent(loss[tile] - 1)} "
        "more time than the quickest."
    )
