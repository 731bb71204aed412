"""All-reduce algorithms: which one is quickest at which size, where it changes, and on what links that was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from wattline.reports import svg
from wattline.reports.blocks import Figure, natural_size
from wattline.reports.collective_rows import MAX_PANELS, MAX_SERIES, Row, ranks_of, rows_of, size_of, time_of
from wattline.reports.crossover import crossover
from wattline.reports.data import ReportData
from wattline.reports.svg import Panel
from wattline.units import format_bytes, format_time


def algorithms(data: ReportData) -> Figure | None:
    """The figure: a drawing for each number of ranks; ``None`` without two algorithms at two sizes."""
    rows = rows_of(data, "algorithm")
    names = sorted({record.case.impl for record, _ in rows})[:MAX_SERIES]
    sizes = {n: {size_of(r) for r, _ in rows if ranks_of(r) == n} for n in sorted({ranks_of(r) for r, _ in rows})}
    worlds = [n for n, found in sizes.items() if len(found) > 1][:MAX_PANELS]
    if not worlds or len(names) < 2:
        return None
    panels, told = [], []
    for ranks in worlds:
        panel = Panel(f"coll-algorithms-{ranks}", *natural_size(len(worlds))).log("xy")
        panel.titles(f"{ranks} ranks", "S (bytes)", "s")
        here = [row for row in rows if ranks_of(row[0]) == ranks]
        for series, name in enumerate(names):
            mine = sorted((row for row in here if row[0].case.impl == name), key=lambda row: size_of(row[0]))
            x, y = [size_of(r) for r, _ in mine], [time_of(r) for r, _ in mine]
            panel.ax.plot(x, y, color=svg.SERIES[series], linewidth=1.0)
            panel.points(x, y, [a for _, a in mine], series)
        panels.append(panel.svg(f"Time of {len(names)} all-reduce algorithms of {ranks} ranks against size."))
        told.append(_told(here, ranks) + _link(data, ranks))
    caption = f"All-reduce by algorithms on sends and receives, beside the library's. {' '.join(told)}"
    return Figure("algorithms", "All-reduce algorithms", panels, caption, list(enumerate(names)))


def _told(rows: Sequence[Row], ranks: int) -> str:
    """The quickest at each size, and where one of our own overtakes another, as measured."""
    best: list[str] = []
    winners: list[str] = []
    for size in sorted({size_of(r) for r, _ in rows}):
        there = sorted((r for r, _ in rows if size_of(r) == size), key=time_of)
        first = there[0]
        assert first.measurement is not None  # rows have times
        level = [
            r.case.impl for r in there[1:] if r.measurement and r.measurement.stats.lo_s <= first.measurement.stats.hi_s
        ]
        unsure = f" ({', '.join(level)} not told apart)" if level else ""
        best.append(f"{first.case.impl} at {format_bytes(size)}{unsure}")
        winners += [r.case.impl for r in there if r.case.impl != "library"][:1]
    said = f"{ranks} ranks. Quickest: {', '.join(best)}."
    for a, b in combinations(dict.fromkeys([*winners, *({"ring", "star"} & {r.case.impl for r, _ in rows})]), 2):
        said += _crossing(rows, a, b)
    return said


def _crossing(rows: Sequence[Row], a: str, b: str) -> str:
    times = {name: {size_of(r): time_of(r) for r, _ in rows if r.case.impl == name} for name in (a, b)}
    sizes = sorted(times[a].keys() & times[b].keys())
    if len(sizes) < 2:
        return ""
    found = crossover(sizes, [times[a][s] for s in sizes], [times[b][s] for s in sizes])
    if found.x is None:
        quick, slow = (a, b) if found.first == "a" else (b, a)
        return f" The {quick} is quicker than the {slow} at every size measured."
    quick, late = (a, b) if found.first == "a" else (b, a)
    below, above = max(s for s in sizes if s <= found.x), min(s for s in sizes if s >= found.x)
    return (
        f" The {late} overtakes the {quick} at about {format_bytes(found.x)} (measured: {format_bytes(below)} and "
        f"{format_bytes(above)})."
    )


def _link(data: ReportData, ranks: int) -> str:
    """Latency and bandwidth of a message between neighbours in this run, and where star and ring cross by them."""
    from wattline.predictors.algorithms import crossing_bytes, steps_of
    from wattline.predictors.links import fit_links

    sent = [r for r, _ in rows_of(data, "send_recv") if ranks_of(r) == ranks and r.case.regime == "hot"]
    fitted = next((f.model for f in fit_links(sent) if f.model), None) if sent and ranks > 1 else None
    if fitted is None:
        return " The latency of the links is not known: no `collectives.send_recv` of several sizes was measured."
    first, last = fitted.segments[0], fitted.segments[-1]
    latency_s, alpha, rate = float(fitted.predict(0.0, ranks)[0]), first.alpha_s, last.bandwidth.value
    if alpha.value <= 0 or math.isinf(rate):
        return " By the fit of `send_recv` a message to the next rank has no latency, or no size, that shows."
    low, high = (format_time(latency_s * end / alpha.value) for end in (alpha.lo, alpha.hi))
    crossing = crossing_bytes(steps_of("star", ranks), steps_of("ring", ranks), latency_s, rate)
    by_steps = f"the star would win below {format_bytes(crossing)}" if crossing else "the star would never win"
    return (
        f" Measured where a message to the next rank takes {format_time(latency_s)} [{low}, {high}] however short, and "
        f"{rate / 1e9:.3g} GB/s pass (fit of send_recv): by steps and bytes alone {by_steps}."
    )
