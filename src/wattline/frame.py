"""Records as a table with typed columns: what predictors learn from, reports draw and `export` writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wattline.record import Record

if TYPE_CHECKING:
    import pandas as pd

_TEXT = ("run", "key", "variant", "op", "impl", "regime", "data", "device", "dtype", "status")
_REASON = ("reason_code", "reason")
_TIME = ("time_s", "time_lo_s", "time_hi_s", "min_s", "p5_s", "p95_s", "p99_s", "iqr_s", "mean_s")
_FIGURES = (
    "power_w", "energy_j", "energy_lo_j", "energy_hi_j", "idle_w", "power_limit_w", "clock_hz",
    "flops", "bytes_moved", "bound_s", "efficiency", "flops_per_s", "bytes_per_s",
    "check_error", "warmup_s", "first_call_s", "timed_s", "wall_s",
)  # fmt: skip
_COUNTS = ("samples", "calls_per_sample", "rotations", "seed", "sequence")
_WORDS = ("bound_by", "stop", "timer", "energy_source", "energy_scope", "flags", "started_at")
FIXED_COLUMNS: tuple[str, ...] = (*_TEXT, *_REASON, *_TIME, *_FIGURES, *_COUNTS, *_WORDS, "valid")
"""The columns that every frame has; the operations' parameters follow, then ``telemetry.<name>``,
``work.<detail>`` and ``fact.<name>`` (those that are one number or word)."""


def to_frame(records: Iterable[Record], *, run: str = "") -> pd.DataFrame:
    """One row per record.

    Args:
        records: any number of records.
        run: written into the column ``run``.

    Returns:
        The columns of :data:`FIXED_COLUMNS`, one per parameter (``m``, ``n`` ...) and one per figure of
        telemetry, detail of the work and fact of the kernel. Text is ``string``, whole numbers ``Int64``, flags of
        parameters ``boolean``, the rest ``float64``; absent is NA. Raw samples stay in the records. ``time_s`` is the
        median in seconds.
    """
    import pandas as pd

    # Column by column: some ten times faster than DataFrame(list of dicts) on wide rows, and a row is freed at once.
    columns: dict[str, list[Any]] = {name: [] for name in FIXED_COLUMNS}
    for count, record in enumerate(records):
        row = _row(record, run)
        for name in row:
            if name not in columns:
                columns[name] = [None] * count
        for name, values in columns.items():
            values.append(row.get(name))
    return pd.DataFrame({name: _typed(name, values) for name, values in columns.items()})


def _row(record: Record, run: str) -> dict[str, Any]:
    case, m = record.case, record.measurement
    row: dict[str, Any] = {
        "run": run, "key": case.key, "variant": record.variant, "op": case.op, "impl": case.impl,
        "regime": case.regime, "data": case.data, "device": record.device, "dtype": case.dtype,
        "status": record.status, "bound_s": record.bound_s, "bound_by": record.bound_by or None,
        "wall_s": record.wall_s, "seed": record.seed, "sequence": record.sequence,
        "started_at": record.started_at or None, "valid": record.valid,
        "power_limit_w": case.power_limit_w, "clock_hz": case.clock_hz,
    }  # fmt: skip
    if record.reason:
        row |= {"reason_code": record.reason.code, "reason": record.reason.message}
    if record.work:
        row |= {"flops": record.work.total_flops, "bytes_moved": record.work.bytes_at()}
        row |= {f"work.{name}": value for name, value in record.work.details.items()}
    if m:
        s = m.stats
        row |= {
            "time_s": s.median_s, "time_lo_s": s.lo_s, "time_hi_s": s.hi_s, "min_s": s.min_s, "p5_s": s.p5_s,
            "p95_s": s.p95_s, "p99_s": s.p99_s, "iqr_s": s.iqr_s, "mean_s": s.mean_s, "samples": s.n,
            "calls_per_sample": m.calls_per_sample, "rotations": m.rotations, "warmup_s": m.warmup_s,
            "first_call_s": m.first_call_s, "timed_s": m.timed_s, "stop": m.stop, "timer": m.timer,
            "flags": ",".join(record.flags), "efficiency": record.efficiency,
        }  # fmt: skip
        if record.work and s.median_s > 0:
            row["flops_per_s"] = record.work.total_flops / s.median_s
            row["bytes_per_s"] = record.work.bytes_at() / s.median_s
        if m.check:
            row["check_error"] = m.check.error
        if m.energy:
            e = m.energy
            row |= {
                "power_w": e.power_w, "energy_j": e.energy_j, "energy_lo_j": e.energy_lo_j,
                "energy_hi_j": e.energy_hi_j, "idle_w": e.idle_w, "energy_source": e.source,
                "energy_scope": e.scope,
            }  # fmt: skip
        row |= {f"telemetry.{name}": value for name, value in m.telemetry.items()}
        row |= {f"fact.{name}": value for name, value in m.facts.items() if isinstance(value, int | float | str)}
    # Fixed columns win: a parameter that shares a name with one keeps its own under a prefix.
    for name, value in case.params.items():
        if name != "dtype":
            row[f"param.{name}" if name in FIXED_COLUMNS else name] = value
    return row


def _typed(name: str, values: list[Any]) -> Any:
    import numpy as np
    import pandas as pd

    if name in _TEXT or name in _REASON or name in _WORDS:
        return pd.array(values, dtype="string")
    if name in _COUNTS:
        return pd.array(values, dtype="Int64")
    if name == "valid":
        return pd.array(values, dtype="bool")
    if name in _TIME or name in _FIGURES or name.startswith(("telemetry.", "work.")):
        return np.array(values, dtype="float64")  # None becomes NaN
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {bool}:
        return pd.array(values, dtype="boolean")
    if kinds <= {int}:
        return pd.array(values, dtype="Int64")
    if kinds <= {int, float}:
        return np.array(values, dtype="float64")  # None becomes NaN
    return pd.array([None if v is None else str(v) for v in values], dtype="string")
