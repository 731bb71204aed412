"""A comparison as JSON: everything, in SI units."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wattline.reports.comparing.comparison import CaseResult, Comparison, group_by
from wattline.reports.comparing.contrast import Change, Contrast
from wattline.reports.comparing.gate import Gate, Violation
from wattline.reports.comparing.reading import Side
from wattline.reports.comparing.statistic import told_aside

SCHEMA = 1


def to_json(comparison: Comparison, gates: Sequence[Gate] = (), violations: Sequence[Violation] = ()) -> str:
    """The whole comparison as one JSON document."""
    return json.dumps(_finite(to_dict(comparison, gates, violations)), indent=1, allow_nan=False) + "\n"


def to_dict(
    comparison: Comparison, gates: Sequence[Gate] = (), violations: Sequence[Violation] = ()
) -> dict[str, Any]:
    """Plain types; figures that are unknown are NaN (``null`` in JSON)."""
    return {
        "schema": SCHEMA,
        "a": _side(comparison.a),
        "b": _side(comparison.b),
        "same_machine": comparison.same_machine,
        "margin": comparison.margin,
        "confidence": comparison.confidence,
        "problems": list(comparison.problems),
        "differences": [asdict(d) for d in comparison.differences],
        "counts": comparison.counts,
        "energy_counts": comparison.energy_counts,
        "statistic": comparison.statistic,
        "time": _contrast(comparison.time),
        "time_aside": {**_contrast(comparison.aside), "told": told_aside(comparison.time, comparison.aside)}
        if comparison.aside
        else None,
        "energy": _contrast(comparison.energy) if comparison.energy else None,
        "groups": {
            quantity: [
                {"name": g.name, "cases": g.count, "ratio": g.ratio, "change": g.share,
                 "counts": dict(g.counts),
                 "verdict": asdict(g.verdict) if g.verdict else None}
                for g in group_by(comparison, quantity)
            ]
            for quantity in ("time", "energy")
        },
        "gates": [str(gate) for gate in gates],
        "violations": [
            {"gate": str(v.gate), "text": v.text, "cases": [case.key for case in v.cases]} for v in violations
        ],
        "cases": [_case(result) for result in comparison.cases],
    }  # fmt: skip


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": side.name, "path": str(side.path), "runs": [run.id for run in side.runs], "records": side.records,
        "device": side.device_id, "device_name": side.device_name,
    }  # fmt: skip


def _contrast(contrast: Contrast) -> dict[str, Any]:
    return {
        "noise": {**asdict(contrast.noise), "twentieth": contrast.noise.twentieth},
        "shift": {**asdict(contrast.shift), "share": contrast.shift.share},
        "aa": {"pairs": contrast.aa_pairs, "apart_by_intervals": contrast.aa_apart, "told": contrast.aa_told},
    }


def _case(result: CaseResult) -> dict[str, Any]:
    data: dict[str, Any] = {
        "key": result.key, "label": result.label, "case": result.case.to_dict(), "verdict": result.verdict,
    }  # fmt: skip
    if result.why:
        data["why"] = result.why
    if result.notes:
        data["notes"] = list(result.notes)
    if result.time:
        data["time"] = _change(result.time, "s")
    if result.energy:
        data["energy"] = {"verdict": result.energy_verdict, **_change(result.energy, "j")}
    elif result.energy_why:
        data["energy_why"] = result.energy_why
    return data


def _change(change: Change, unit: str) -> dict[str, Any]:
    low, high = change.bounds
    return {
        f"a_{unit}": change.a, f"b_{unit}": change.b, "ratio": change.ratio, "change": change.share, "change_lo": low,
        "change_hi": high, "p_different": change.verdict.p_different, "p_same": change.verdict.p_same,
        "resolution": change.verdict.resolution, "readings": list(change.readings),
    }  # fmt: skip


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
