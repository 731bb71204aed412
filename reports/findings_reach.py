"""From which size on a format reaches its rate, and up to which memory bounds it, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wattline.reports.data import PARAMS_FIRST, ReportData, shape_params
from wattline.reports.findings import STEADY, Finding, percent

if TYPE_CHECKING:
    import pandas as pd

SIZES = 4
"""Fewer different sizes than this show no plateau."""
NEAR = 0.9
"""A size has reached the plateau when its median share comes to this part of it."""


@dataclass(frozen=True)
class Reach:
    """How one format climbs with size.

    Attributes:
        dtype: the format.
        plateau: share of the peak that large products reach.
        since: least of m, n and k from which on all sizes come near the plateau.
        memory_to: largest such size up to which memory bounds every product; ``None`` where it bounds none.
        anchor: the record with the largest share.
        source: of the peak, ``"datasheet"`` or ``"measured"``.
        shapes: number of products that this is told from.
    """

    dtype: str
    plateau: float
    since: int
    memory_to: int | None
    anchor: str
    source: str
    shapes: int

    def __str__(self) -> str:
        text = f"{self.dtype} reaches {percent(self.plateau)} of the {self.source} ceiling from {self.since} on"
        return text + (f"; up to {self.memory_to} it is bound by memory" if self.memory_to else "")


def reaches(data: ReportData) -> list[Reach]:
    """The formats whose products have a plateau, in the order of the list of formats."""
    rows = data.headline
    if rows.empty or not shape_params(rows):
        return []
    rows = rows[rows["share"].notna() & rows[list(PARAMS_FIRST)].notna().all(axis=1) & ~(rows["half_width"] > STEADY)]
    return [found for dtype in data.formats if (found := _reach(data, dtype, rows[rows["dtype"] == dtype]))]


def _reach(data: ReportData, dtype: str, rows: pd.DataFrame) -> Reach | None:
    size = rows[list(PARAMS_FIRST)].astype(float).min(axis=1).astype(int)
    by = rows.groupby(size)["share"].median().sort_index()
    if len(by) < SIZES:
        return None
    # The largest third of the sizes is the plateau; it must be one: as good as whatever came before.
    plateau = float(by.iloc[-max(1, len(by) // 3) :].median())
    low = by[by < NEAR * plateau]
    if plateau < NEAR * float(by.max()) or (len(low) and low.index[-1] >= by.index[-2]):
        return None  # one size alone is no plateau
    since = by.index[0] if low.empty else by.index[by.index > low.index[-1]][0]
    by_memory = (rows["bound_by"] == "memory").groupby(size).all().sort_index()
    first = by_memory[~by_memory]
    bound = by_memory.index if first.empty else by_memory.index[by_memory.index < first.index[0]]
    peak = data.peak(str(rows["rate_format"].iloc[0]))
    best = rows.iloc[int(rows["share"].argmax())]
    return Reach(
        dtype, plateau, int(since), int(bound[-1]) if len(bound) else None, str(best["anchor"]),
        peak.source if peak else "", len(rows),
    )  # fmt: skip


def finding(data: ReportData) -> Finding | None:
    """From which size on each format is as quick as it gets; ``None`` where none has a plateau."""
    found = reaches(data)
    if not found:
        return None
    first = max(found, key=lambda r: r.shapes)
    title = str(first).replace(f"from {first.since} on", f"from min(m, n, k) = {first.since} on") + "."
    text = (
        f"Medians over products of one least size, regime {data.regime}; a size counts from {percent(NEAR)} of what "
        "the largest third of the sizes reaches."
    )
    others = tuple(f"{r}." for r in found if r is not first)
    return Finding("reach", title, text, first.anchor, f"the best {first.dtype} record", others)
