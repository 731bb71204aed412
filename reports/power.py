"""The power section: what was measured over time, at rest, per call and per operation, and how sure it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattline.energy_terms import ENERGY_FLAGS
from wattline.reports.blocks import Figure
from wattline.reports.data import ReportData
from wattline.reports.figures_power import budget, capped, levels, per_operation, time_and_energy
from wattline.reports.figures_traces import one_case, whole_run
from wattline.reports.findings import percent
from wattline.units import format_time

DISTURBS = 1.005
"""Ratio of latencies with and without the samplers above which watching disturbs what it watches."""

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class PowerSection:
    """The section as the page shows it.

    Attributes:
        lead: sentences on what was measured, or why nothing was.
        remedy: what would enable it, where nothing was.
        sensor: facts of the sensor.
        profiles: its readings: source, update period, window, delay, gain error, where these come from.
        reservations: flags of the joules: code, number of records, meaning.
        watching: a sentence on what the samplers cost.
        figures: the drawings.
    """

    lead: str
    remedy: str
    sensor: Pairs
    profiles: list[tuple[str, ...]]
    reservations: list[tuple[str, int, str]]
    watching: str
    figures: list[Figure]


def build(data: ReportData) -> PowerSection:
    """The section of a run."""
    energy = data.section("energy")
    measured = [r for r in data.records if r.measurement and r.measurement.energy]
    figures = [whole_run(data), one_case(data)]
    if measured:
        figures += [time_and_energy(data), per_operation(data), levels(data), budget(data)]
        if any(r.case.capped for r in data.records):
            figures.append(capped(data))
    else:
        figures = [f for f in figures if not f.missing]
    lead, remedy = _lead(energy, len(measured), len(data.records))
    return PowerSection(
        lead, remedy, _sensor(energy) if measured else [], _profiles(energy) if measured else [],
        _reservations(data), watching(data.section("sampler_overhead")), figures,
    )  # fmt: skip


def _lead(energy: Mapping[str, Any], measured: int, records: int) -> tuple[str, str]:
    if measured:
        source = energy.get("source") or "a sensor"
        text = (
            f"{measured} of {records} records carry joules, from {source}. Each figure comes from one uninterrupted "
            "load of the same kernel right after its time was measured, at the same clocks."
        )
        return text, ""
    reason = energy.get("reason")
    if isinstance(reason, Mapping) and reason.get("message"):
        text = f"No joules: {reason['message']}."
    elif energy.get("available"):
        text = "No joules: a sensor was there, but no record holds energy; the flags of the records say why."
    else:
        text = "No joules: the run does not say whether a sensor was there."
    return text + " An estimate is never shown in place of a measurement.", str(energy.get("remedy") or "")


def _sensor(energy: Mapping[str, Any]) -> Pairs:
    found = [
        ("sensor", str(energy.get("name") or "")),
        ("source", str(energy.get("source") or "")),
        ("scope", str(energy.get("scope") or "")),
        ("calibration", _calibration(energy)),
        ("power at rest", str(energy.get("levels_missing") or "")),
    ]
    return [(name, value) for name, value in found if value]


def _profile_list(energy: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = energy.get("profiles")
    return [p for p in found if isinstance(p, Mapping)] if isinstance(found, Sequence) else []


def _calibration(energy: Mapping[str, Any]) -> str:
    profiles = _profile_list(energy)
    if not profiles:
        return ""
    done = sum(bool(p.get("calibrated")) for p in profiles)
    if done == len(profiles):
        return "every reading was calibrated on this machine"
    which = "none" if not done else f"{done} of {len(profiles)}"
    return f"{which} of its readings was calibrated on this machine; `wattline calibrate` narrows the intervals"


def _profiles(energy: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for number, p in enumerate(_profile_list(energy), start=1):

        def seconds(name: str, p: Mapping[str, Any] = p) -> str:
            value = p.get(name)
            return format_time(float(value)) if isinstance(value, int | float) and value > 0 else "-"

        gain = p.get("gain_error")
        rows.append((
            str(p.get("source") or f"reading {number}"), seconds("period_s"), seconds("window_s"), seconds("lag_s"),
            f"+-{percent(float(gain))}" if isinstance(gain, int | float) else "-", str(p.get("note") or ""),
        ))  # fmt: skip
    return rows


def _reservations(data: ReportData) -> list[tuple[str, int, str]]:
    counts: Counter[str] = Counter()
    for record in data.records:
        if record.measurement and record.measurement.energy:
            counts.update(set(record.measurement.energy.flags))
    return [(code, n, ENERGY_FLAGS.get(code, "unknown to this version")) for code, n in counts.most_common()]


def watching(cost: Mapping[str, Any]) -> str:
    """A sentence on what the samplers cost, from the ``sampler_overhead`` of a run."""
    figures = [cost.get(name) for name in ("ratio", "ratio_lo", "ratio_hi", "off_s")]
    if not all(isinstance(value, int | float) for value in figures):
        reason = cost.get("reason")
        why = f": {reason['message']}" if isinstance(reason, Mapping) and reason.get("message") else ""
        return f"What watching costs was not measured in this run{why}."
    ratio, low, high, off_s = (float(value) for value in figures if isinstance(value, int | float))
    verdict = (
        "the samplers slow it down" if low > DISTURBS
        else "no effect can be told" if low <= 1.0 <= high else "the effect is below half a percent" if high < DISTURBS
        else "the effect is small"
    )  # fmt: skip
    return (
        f"Watching: a kernel of {format_time(off_s)} took {ratio - 1:+.2%} with all samplers on "
        f"[{low - 1:+.2%}, {high - 1:+.2%}], measured in turns with and without; {verdict}."
    )
