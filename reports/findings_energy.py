"""What the joules of a run say, in words."""

from __future__ import annotations

from math import isnan
from statistics import median
from typing import TYPE_CHECKING

from wattline.reports.data import ReportData
from wattline.reports.figures_power import uncapped, with_energy
from wattline.reports.findings import Finding, percent, times
from wattline.units import format_si

if TYPE_CHECKING:
    import pandas as pd

MANY = 5
"""Fewer records with joules than this carry no statement about the run."""
NOTICED = 0.01
"""Disagreement of two readings of the same energy that is worth a headline."""
TELLING = 0.05
"""Difference in energy below which two choices cost the same, so to say: about the gain error of a sensor cancels
between two records of one device, the rest does not."""


def find(data: ReportData) -> list[Finding]:
    """The findings that the joules support."""
    rows = with_energy(data)
    if len(rows) < MANY:
        return []
    return [f for f in (_frugal(data, uncapped(rows)), _sure(data), _trade(rows), _caps(rows)) if f]


def _sure(data: ReportData) -> Finding | None:
    """How far the joules can be trusted: do two ways of reading them agree?"""
    found = [r.measurement.energy for r in data.records if r.valid and r.measurement and r.measurement.energy]
    crossed = [e.budget["cross_check"] for e in found if "cross_check" in e.budget]
    widths = [(e.energy_hi_j - e.energy_lo_j) / (2 * e.energy_j) for e in found if e.energy_j > 0]
    if len(crossed) < MANY or len(widths) < MANY:
        return None
    apart, worst, width = float(median(crossed)), max(crossed), float(median(widths))
    verb = "disagree" if apart >= NOTICED else "agree"
    title = (
        f"The counter and the integrated power {verb} {'by' if apart >= NOTICED else 'to'} {percent(apart)}: treat "
        f"joules as +-{percent(width)}."
    )
    causes = {c: median([e.budget[c] for e in found if c in e.budget]) for e in found for c in e.budget}
    largest = max(causes, key=lambda c: causes[c])
    text = (
        f"Medians over {len(crossed)} records; the worst disagrees by {percent(worst)}. The largest part of the error "
        f"is {largest.replace('_', ' ')}, {percent(float(causes[largest]))}."
    )
    return Finding("energy_sure", title, text, "energy-budget", "the error budget", quiet=apart < NOTICED)


def _frugal(data: ReportData, rows: pd.DataFrame) -> Finding | None:
    """Joules per operation by format."""
    rows = rows[rows["j_per_flop"].notna()]
    if len(rows) < MANY:
        return None
    best = rows.iloc[int(rows["j_per_flop"].argmin())]
    worst = rows.iloc[int(rows["j_per_flop"].argmax())]
    items = []
    for dtype in data.formats:
        part = rows[rows["dtype"] == dtype]
        if len(part):
            least = part.iloc[int(part["j_per_flop"].argmin())]
            items.append(
                f"{dtype}: from {format_si(float(least['j_per_flop']), 'J')} per operation at {least['shape']}, "
                f"{format_si(float(least['power_w']), 'W')}"
            )
    ratio = float(worst["j_per_flop"] / best["j_per_flop"])
    return Finding(
        "energy",
        f"An operation costs from {format_si(float(best['j_per_flop']), 'J')} to "
        f"{format_si(float(worst['j_per_flop']), 'J')}, {times(ratio)} times as much.",
        f"The least is {best['dtype']} at {best['shape']} ({best['impl']}, {best['regime']}), the most "
        f"{worst['dtype']} at {worst['shape']} ({worst['impl']}, {worst['regime']}). All energy of the device counts, "
        "power at rest included.",
        str(best["anchor"]), "the most frugal record", tuple(items),
    )  # fmt: skip


def _trade(rows: pd.DataFrame) -> Finding | None:
    """Problems whose quickest implementation is not the most frugal."""
    rows = uncapped(rows)
    keys = ["op", "shape", "dtype", "regime", "data"]
    several = rows.groupby(keys).filter(lambda g: g["impl"].nunique() > 1)
    if several.empty:
        return None
    found = []
    problems = 0
    for _, group in several.groupby(keys, sort=False):
        problems += 1
        quick, frugal = group.iloc[int(group["time_s"].argmin())], group.iloc[int(group["energy_j"].argmin())]
        # Told apart only where the intervals without the common gain would not meet: a margin stands for it.
        if quick["impl"] != frugal["impl"] and frugal["energy_j"] < (1 - TELLING) * quick["energy_j"]:
            found.append((float(1 - frugal["energy_j"] / quick["energy_j"]), quick, frugal))
    if not found:
        return Finding(
            "energy_trade",
            f"In all {problems} problems with several implementations the quickest is also the most frugal.",
            f"None saves {percent(TELLING)} of the energy or more against the quickest.", "energy-time", "the figure",
            quiet=True,
        )  # fmt: skip
    saved, quick, frugal = max(found, key=lambda entry: entry[0])
    return Finding(
        "energy_trade",
        f"In {len(found)} of {problems} problems another implementation than the quickest needs less energy.",
        f"Most telling: {frugal['op']} {frugal['shape']} {frugal['dtype']}, where {frugal['impl']} takes "
        f"{percent(saved)} less energy than {quick['impl']} and "
        f"{percent(float(frugal['time_s'] / quick['time_s'] - 1))} more time.",
        str(frugal["anchor"]), "the record",
    )  # fmt: skip


def _caps(rows: pd.DataFrame) -> Finding | None:
    """The cap that saves most, and what it costs."""
    capped = rows[rows["power_limit_w"].notna() | rows["clock_hz"].notna()]
    keys = ["op", "impl", "shape", "dtype", "regime", "data"]
    free = uncapped(rows).groupby(keys, dropna=False)[["time_s", "energy_j"]].median().add_suffix("_free")
    pairs = capped.merge(free, left_on=keys, right_index=True)
    if len(pairs) < MANY:
        return None
    pairs["time"], pairs["energy"] = pairs["time_s"] / pairs["time_s_free"], pairs["energy_j"] / pairs["energy_j_free"]
    # Named before they are grouped: a limit alone has no clock, and a NaN is no name.
    caps = zip(pairs["power_limit_w"], pairs["clock_hz"], strict=True)
    pairs["held"] = [_held(float(limit), float(clock)) for limit, clock in caps]
    by = pairs.groupby("held")[["time", "energy"]].median()
    held = str(by["energy"].idxmin())
    energy, time = (float(pairs.loc[pairs["held"] == held, name].median()) for name in ("energy", "time"))
    if energy > 1 - TELLING:
        return Finding(
            "energy_caps", "No cap that was tried saves energy worth the name.",
            f"The best, {held}, changes it by {percent(abs(energy - 1))} in the median.", "energy-caps",
            "the figure", quiet=True,
        )  # fmt: skip
    return Finding(
        "energy_caps",
        f"Held to {held}, a call takes {percent(1 - energy)} less energy and {percent(abs(time - 1))} "
        f"{'more' if time > 1 else 'less'} time.",
        f"Medians over {int((pairs['held'] == held).sum())} records against the same cases without a cap.",
        "energy-caps", "the figure",
    )  # fmt: skip


def _held(limit: float, clock: float) -> str:
    """What a device was held to, in words; NaN is nothing."""
    parts = [] if isnan(limit) else [f"{limit:g} W"]
    return " and ".join(parts if isnan(clock) else [*parts, format_si(clock, "Hz")])
