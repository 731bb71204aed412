"""Overlap of computation and communication: times and joules of each alone, one after the other, and at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from wattline.record import Record
from wattline.reports.blocks import Figure, natural_size
from wattline.reports.collective_rows import Row, facts_of, rows_of, size_of, time_of
from wattline.reports.data import ReportData
from wattline.reports.svg import Panel
from wattline.units import format_bytes, format_si

LEGEND = ((0, "product alone"), (1, "collective alone"), (2, "one after the other"), (3, "at once"))


def overlap(data: ReportData) -> Figure | None:
    """The figure, or ``None`` where nothing was overlapped."""
    rows = [row for row in rows_of(data, "overlap") if "overlap_efficiency" in facts_of(row[0])]
    if not rows:
        return None
    names = [f"{r.case.params['collective']} {format_bytes(size_of(r))} beside m = {r.case.params['m']}"
             for r, _ in rows]  # fmt: skip
    metered = [(row, name) for row, name in zip(rows, names, strict=True) if "energy_saving" in facts_of(row[0])]
    width, _ = natural_size(2 if metered else 1)
    panels = [
        _panel(
            "coll-overlap", "s", rows, names,
            [lambda r: facts_of(r)["compute_s"], lambda r: facts_of(r)["comm_s"],
             lambda r: facts_of(r)["compute_s"] + facts_of(r)["comm_s"], time_of],
            words=f"Times of {len(rows)} products and collectives, alone and together.", width=width,
        )
    ]  # fmt: skip
    told = "; ".join(
        f"{name}: {facts_of(r)['overlap_efficiency']:.0%} of the shorter side hidden, product x "
        f"{facts_of(r)['compute_slowdown']:.2f}, collective x {facts_of(r)['comm_slowdown']:.2f}"
        for name, (r, _) in zip(names, rows, strict=True)
    )
    if metered:
        some, whose = [row for row, _ in metered], [name for _, name in metered]
        panels.append(_joules(some, whose, width))
    caption = f"A product and a collective: each alone, one after the other, and at once. {told}. "
    return Figure("overlap", "Computing while sending", panels, caption + _said(data, metered), LEGEND)


def _joules(rows: Sequence[Row], names: Sequence[str], width: float) -> Markup:
    return _panel(
        "coll-overlap-joules", "J, all devices of the ranks", rows, names,
        [lambda r: facts_of(r)["compute_energy_j"], lambda r: facts_of(r)["comm_energy_j"],
         lambda r: facts_of(r)["compute_energy_j"] + facts_of(r)["comm_energy_j"],
         lambda r: facts_of(r)["both_energy_j"]],
        words=f"Joules of {len(rows)} products and collectives, alone and together.", width=width,
    )  # fmt: skip


def _panel(
    name: str, unit: str, rows: Sequence[Row], names: Sequence[str], values: Sequence[Callable[[Record], float]], *,
    words: str, width: float,
) -> Markup:  # fmt: skip
    panel = Panel(name, width, 90 + 34 * len(rows)).log("x").titles("", unit, "")
    anchors, places = [anchor for _, anchor in rows], range(len(rows))
    for series, value in enumerate(values):
        panel.points([value(record) for record, _ in rows], places, anchors, series)
    panel.ax.set_yticks(list(places), names)
    panel.ax.set_ylim(-0.6, len(rows) - 0.4)
    return panel.svg(words)


def _said(data: ReportData, metered: Sequence[tuple[Row, str]]) -> str:
    """What overlap saves in joules, or why nobody knows."""
    if metered:
        first = facts_of(metered[0][0][0])
        each = "; ".join(f"{name}: {_saving(facts_of(record))}" for (record, _), name in metered)
        return (
            f"Joules of one call on all devices of the ranks together ({first['energy_source']}; scope: "
            f"{first['energy_scope']}): {each}."
        )
    energy = data.section("energy")
    reason = energy.get("reason")
    if isinstance(reason, Mapping) and reason.get("message"):
        return f"No joules: {reason['message']}."
    if energy.get("available"):
        return "No joules: a sensor was there, and the flags of the records say why it gave none."
    return "No joules: the run does not say whether a sensor was there."


def _saving(facts: Mapping[str, Any]) -> str:
    sides = ", ".join(
        f"{words} {format_si(facts[f'{name}_energy_j'], 'J')} "
        f"[{format_si(facts[f'{name}_energy_range_j'][0], 'J')}, {format_si(facts[f'{name}_energy_range_j'][1], 'J')}]"
        for name, words in (("compute", "product"), ("comm", "collective"), ("both", "at once"))
    )
    low, high = facts["energy_saving_range"]
    if low > 0:
        verdict = f"{facts['energy_saving']:.0%} [{low:.0%}, {high:.0%}] less than one after the other"
    elif high < 0:
        verdict = f"{-facts['energy_saving']:.0%} [{-high:.0%}, {-low:.0%}] more than one after the other"
    else:
        verdict = f"not told apart from one after the other ({low:+.0%} to {high:+.0%} saved)"
    return f"{sides}: {verdict}"
