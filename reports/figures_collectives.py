"""Collectives: time and bandwidth against size with their fits, algorithms, pairs, overlap, codes and stragglers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from wattline.record import Record
from wattline.reports import svg
from wattline.reports.blocks import Figure, natural_size
from wattline.reports.collective_rows import (
    MAX_PANELS,
    MAX_SERIES,
    PREFIX,
    Row,
    facts_of,
    rows_of,
    size_of,
    time_of,
)  # fmt: skip
from wattline.reports.data import ReportData
from wattline.reports.figures_algorithms import algorithms
from wattline.reports.figures_overlap import overlap
from wattline.reports.findings import Finding
from wattline.reports.svg import Panel
from wattline.units import format_bytes, format_time


def figures(data: ReportData) -> list[Figure]:
    """The figures of a run of several ranks; none in any other."""
    if not any(record.case.op.startswith(PREFIX) for record in data.records):
        return []
    made = [*_fits(data), algorithms(data), _matrix(data), overlap(data), _codes(data), _stragglers(data)]
    return [figure for figure in made if figure]


# Time and bandwidth against size


def _fits(data: ReportData) -> Iterator[Figure]:
    from wattline.predictors.links import fit_links

    rows = rows_of(data)
    fitted = [f for f in fit_links([r for r, _ in rows]) if f.model and f.name != "barrier"] if _sized(rows) else []
    if not fitted:
        return
    fitted.sort(key=lambda f: (-len(np.unique(f.model.bytes)) if f.model else 0, f.label()))
    shown = sorted(fitted[:MAX_PANELS], key=lambda f: f.label())
    by_label: dict[str, list[Row]] = {}
    for record, anchor in rows:
        for f in fitted:
            if record.case.op == PREFIX + f.name and _fits_conditions(record, f.conditions):
                by_label.setdefault(f.label(), []).append((record, anchor))
    panels: list[Markup] = []
    items: list[str] = []
    for f in shown:
        model = f.model
        assert model is not None  # only such are shown
        panel = Panel(f"coll-fit-{len(panels)}", *natural_size(len(shown))).log("xy")
        panel.titles(f.label(), "S (bytes)", "s")
        for series, ranks in enumerate(sorted({int(n) for n in model.ranks})[:MAX_SERIES]):
            grid = np.geomspace(model.bytes.min(), model.bytes.max(), 60)
            time_s, lo, hi = model.predict(grid, ranks)
            panel.ax.fill_between(grid, lo, hi, color=svg.SERIES[series], alpha=0.15, linewidth=0)
            panel.ax.plot(grid, time_s, color=svg.SERIES[series], linewidth=1.2)
            mine = [(r, a) for r, a in by_label[f.label()] if int(r.case.params["world_size"]) == ranks]
            panel.points([size_of(r) for r, _ in mine], [time_of(r) for r, _ in mine], [a for _, a in mine], series)
        panels.append(panel.svg(f"Time of {f.label()} against its size, with the fit."))
        last = model.segments[-1]
        rate = "unbounded" if np.isinf(last.bandwidth.value) else f"{last.bandwidth.value / 1e9:.3g} GB/s"
        left_out = ", ".join(f"{held.what}: {held.error:.0%} off" for held in model.held_out)
        unseen = f"; left out and predicted: {left_out}" if left_out else ""
        items.append(f"{f.label()}: {format_time(model.segments[0].alpha_s.value)} a round, {rate} ({model.error:.0%} "
                     f"median error of the fit{unseen})")  # fmt: skip
    worlds = sorted({int(n) for f in shown if f.model for n in f.model.ranks})
    caption = (
        "Median time of the slowest rank. Lines are fits of latency per round and bandwidth over the busiest link, "
        "with the range in which 90 % of measurements are expected. " + "; ".join(items) + "."
    )
    legend = [(i, f"{n} ranks") for i, n in enumerate(worlds[:MAX_SERIES])]
    yield Figure("collectives", "Collectives: time against size", panels, caption, legend)
    yield _bandwidth(fitted[:MAX_SERIES], by_label)


def _bandwidth(fitted: Sequence[Any], by_label: Mapping[str, Sequence[Row]]) -> Figure:
    panel = Panel("coll-busbw", 470, 290).log("xy").titles("", "S (bytes)", "bus bandwidth (bytes/s)")
    labels = sorted(f.label() for f in fitted)
    for series, label in enumerate(labels):
        rows = sorted(by_label[label], key=lambda row: size_of(row[0]))
        x = [size_of(r) for r, _ in rows]
        y = [float(facts_of(r).get("busbw_bytes_per_s") or 0.0) for r, _ in rows]
        panel.ax.plot(x, y, color=svg.SERIES[series], linewidth=1.0)
        panel.points(x, y, [a for _, a in rows], series)
    caption = "Bus bandwidth, by nccl-tests' definition: what the busiest rank's link carries one way."
    drawing = panel.svg(f"Bus bandwidth of {len(labels)} collectives against size.")
    return Figure("busbw", "Collectives: bus bandwidth against size", [drawing], caption, list(enumerate(labels)))


def _sized(rows: Sequence[Row]) -> bool:
    from wattline.workmodels.collectives import COLLECTIVES

    return any(
        r.case.op.removeprefix(PREFIX) in COLLECTIVES and int(r.case.params.get("world_size", 0)) > 1 for r, _ in rows
    )


def _fits_conditions(record: Record, conditions: Sequence[tuple[str, str]]) -> bool:
    case = record.case
    told = {**{name: str(value) for name, value in case.params.items()}, "regime": case.regime, "impl": case.impl}
    return all(told.get(name) == value for name, value in conditions)


# What is built on them


def _matrix(data: ReportData) -> Figure | None:
    rows = [(r, a) for r, a in rows_of(data, "p2p_matrix") if facts_of(r).get("matrix_bytes_per_s")][:MAX_PANELS]
    if not rows:
        return None
    panels: list[Markup] = []
    slow: list[str] = []
    for record, anchor in rows:
        facts, p = facts_of(record), record.case.params
        title = f"{p['way']} way{'s' if p['way'] == 'both' else ''}, {format_bytes(size_of(record))}"
        panels.append(_cells(f"coll-pairs-{len(panels)}", title, facts["matrix_bytes_per_s"], anchor))
        slow += [f"{i} to {j} ({title})" for i, j in facts.get("slow_pairs", ())]
    caption = (
        "GB/s that each pair of ranks attains alone; rows send. Darker (in dark mode, brighter) is faster. "
        + (f"Slower than the rest by half or more: {', '.join(slow)}." if slow else "No pair stands out.")
    )  # fmt: skip
    return Figure("pairs", "Pairs of ranks", panels, caption)


def _cells(name: str, title: str, matrix: Sequence[Sequence[float | None]], anchor: str) -> Markup:
    size = len(matrix)
    panel = Panel(name, 275, 62 + 27 * size if size < 9 else 300)
    ax = panel.titles(title, "receives", "sends").ax
    ax.grid(visible=False)
    ax.set_xlim(-0.5, size - 0.5)
    ax.set_ylim(size - 0.5, -0.5)
    ax.set_xticks(range(size))
    ax.set_yticks(range(size))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    top = max(value for row in matrix for value in row if value)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value is None:
                continue
            shade = 0.06 + 0.94 * value / top
            ax.fill([j - 0.48, j + 0.48, j + 0.48, j - 0.48], [i - 0.47, i - 0.47, i + 0.47, i + 0.47],
                    color=svg.HEAT, alpha=shade, linewidth=0)  # fmt: skip
            if size <= 8:
                colour = svg.HEAT_INK if shade > 0.55 else svg.INK
                ax.text(j, i, f"{value / 1e9:.3g}", ha="center", va="center", color=colour, fontsize=9)
    panel.box(-0.5, size - 0.5, size - 0.5, -0.5, anchor)  # rows go down
    return panel.svg(f"Bandwidth of {size * (size - 1)} pairs of ranks, {title}.")


def _codes(data: ReportData) -> Figure | None:
    rows = [(r, a) for r, a in rows_of(data, "compressed") if "relative_error" in facts_of(r)]
    names = sorted({r.case.impl for r, _ in rows})
    if len(names) < 2:
        return None
    panel = Panel("coll-codes", 470, 290).log("xy").titles("", "bytes of a row / bytes of the gradient", "s")
    for series, name in enumerate(names):
        mine = [(r, a) for r, a in rows if r.case.impl == name]
        x = [facts_of(r)["wire_bytes"] / (4 * -(-int(r.case.params["bytes"]) // 4)) for r, _ in mine]
        panel.points(x, [time_of(r) for r, _ in mine], [a for _, a in mine], series % MAX_SERIES)
    told = []
    for record, _ in rows:
        rate, error = facts_of(record).get("pays_below_bytes_per_s"), facts_of(record)["relative_error"]
        if rate:
            told.append(f"{record.case.impl} below {rate / 1e9:.3g} GB/s (error {error:.2g})")
    caption = "Gradients summed in a lossy code, or as they are. A code pays on links slower than what its packing "
    caption += f"costs: {'; '.join(told)}." if told else "costs; here none saves bytes."
    drawing = panel.svg(f"Time of {len(rows)} sums of gradients against what they send.")
    return Figure("codes", "Lossy codes for gradients", [drawing], caption, list(enumerate(names)))


def _stragglers(data: ReportData) -> Figure | None:
    rows = [(r, a) for r, a in rows_of(data, "stragglers") if facts_of(r).get("work_median_s")]
    if not rows:
        return None
    ranks = len(facts_of(rows[0][0])["work_median_s"])
    panel = Panel("coll-stragglers", 470, 290).log("y").titles("", "rank", "own work (s)")
    legend = []
    for series, (record, anchor) in enumerate(rows[:MAX_SERIES]):
        medians = facts_of(record)["work_median_s"]
        panel.ax.plot(range(len(medians)), medians, color=svg.SERIES[series], linewidth=1.0)
        panel.points(range(len(medians)), medians, [anchor] * len(medians), series)
        legend.append((series, str(record.case.params["inject"])))
    panel.ax.set_xticks(range(ranks) if ranks <= 16 else range(0, ranks, max(1, ranks // 8)))
    caption = "Median of each rank's own work, by what was injected. " + " ".join(
        _said(r.case.params["inject"], facts_of(r)) for r, _ in rows
    )
    drawing = panel.svg(f"Own work of {ranks} ranks in {len(rows)} cases.")
    return Figure("stragglers", "Who holds the others up", [drawing], caption, legend)


def _said(inject: Any, facts: Mapping[str, Any]) -> str:
    watched = facts.get("iterations_watched")
    if inject == "none":
        found = [f"rank {int(rank)}" for rank, *_ in facts.get("slow_ranks", ())]
        found += [f"link {int(i)} to {int(j)}" for i, j, *_ in facts.get("slow_links", ())]
        named = ", ".join(dict.fromkeys(found))
        return f"Nothing injected: {named or 'none'} called slow in {watched} iterations."
    after = facts.get("found_after")
    said = f"found after {after}" if after else f"not found in {watched}"
    return f"{str(inject).capitalize()}: {said} iterations."


def finding(data: ReportData) -> Finding | None:
    """Ranks and links that were found slow although nothing slowed them; ``None`` where all keep up."""
    named: list[str] = []
    for record, _ in rows_of(data, "stragglers"):
        facts = facts_of(record)
        if record.case.params.get("inject") != "none":
            continue
        named += [f"rank {int(rank)}, {factor:.1f} times the others' work" for rank, _, factor in facts["slow_ranks"]]
        named += [
            f"the link from rank {int(i)} to {int(j)}, {factor:.1f} times the others"
            for i, j, _, factor in facts["slow_links"]
        ]
    if not named:
        return None
    title = "Some ranks or links hold the others up."
    text = "Found while nothing was injected, for as long as a window of iterations at least."
    return Finding("stragglers", title, text, "stragglers", "who holds the others up", tuple(named[:8]))
