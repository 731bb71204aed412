"""Records of what several ranks do, as the figures of collectives want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.record import Record
from wattline.reports.data import ReportData

PREFIX = "collectives."
MAX_PANELS = 6
MAX_SERIES = 8
Row = tuple[Record, str]
"""A record and its anchor."""


def rows_of(data: ReportData, name: str = "") -> list[Row]:
    """Records that can be trusted, of one operation or of all that several ranks do; repeats left out."""
    kept = set(data.usable["anchor"]) if len(data.records) else set()
    found = zip(data.records, data.anchors, strict=True)
    return [
        (record, anchor)
        for record, anchor in found
        if anchor in kept and record.variant != "b" and record.case.op.startswith(PREFIX + name)
        and (not name or record.case.op == PREFIX + name)
    ]  # fmt: skip


def facts_of(record: Record) -> Mapping[str, Any]:
    """What the measurement says beside its times."""
    return record.measurement.facts if record.measurement else {}


def time_of(record: Record) -> float:
    """Seconds of the slowest rank, median."""
    return float(record.time_s or 0.0)


def size_of(record: Record) -> float:
    """S in bytes, as really used."""
    return float(facts_of(record).get("actual_bytes") or record.case.params.get("bytes") or 0)


def ranks_of(record: Record) -> int:
    """Ranks of a group."""
    return int(record.case.params.get("world_size", 0))
