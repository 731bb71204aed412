"""Finding, among the records, the lines that a sweep walked along, and the cliffs on them.

Records do not say which sweep they came from: a line is recognised by what changes along it. So it is found in
runs of other origin as well, and in parts of a run that a budget cut short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import pandas as pd

from wattline.reports.data import PARAMS_FIRST, ReportData

MIN_POINTS = 8
"""Fewer points make no line worth drawing."""
FINE = 1.15
"""Largest median ratio of neighbouring sizes on a fine line."""
CLIFF = 0.08
"""Smallest loss of speed between neighbours that counts as a cliff, where the noise allows to see it."""

_CONDITIONS = ("op", "impl", "regime", "data", "dtype")
_FIGURES = ("flops", "flops_per_s", "time_s", "time_lo_s", "time_hi_s", "efficiency", "anchor")
"""Columns of a line, beside its conditions and sizes: of a hundred, few are copied with every group."""
_MOVING = (("m",), ("n",), ("k",), ("m", "n"), ("m", "k"), ("n", "k"), ("m", "n", "k"))


@dataclass(frozen=True)
class Line:
    """Records along which one size (or several, kept equal) changes in small steps.

    Attributes:
        moving: the parameters that change together, e.g. ``("n",)``.
        fixed: the other sizes and conditions, for people.
        dtype: number format.
        rows: the records, by rising size.
    """

    moving: tuple[str, ...]
    fixed: str
    dtype: str
    rows: pd.DataFrame

    @property
    def axis(self) -> str:
        """What changes: ``m = n``."""
        return " = ".join(self.moving)


@dataclass(frozen=True)
class Cliff:
    """A loss of speed between two neighbours on a line.

    Attributes:
        line: where.
        at: the size at which it is slow.
        before: the size just below.
        loss: share of the FLOP/s lost.
        anchor: record of the slow side.
    """

    line: Line
    at: int
    before: int
    loss: float
    anchor: str


def fine_lines(data: ReportData) -> list[Line]:
    """The fine lines of a run, longest first; a record may lie on several."""
    return cast("list[Line]", data.once("fine_lines", lambda: _fine_lines(data)))


def _fine_lines(data: ReportData) -> list[Line]:
    rows = data.usable[[c for c in ("op", "variant", *PARAMS_FIRST) if c in data.usable.columns]]
    if not set(PARAMS_FIRST) <= set(rows.columns) or rows.empty:
        return []
    rows = rows[(rows["variant"].fillna("") != "b") & rows[list(PARAMS_FIRST)].notna().all(axis=1)]
    if rows.empty:
        return []
    rows = data.usable_of(rows["op"].unique()).loc[rows.index]
    others = _other_params(data, rows)
    rows = rows[[*_CONDITIONS, *PARAMS_FIRST, *others, *_FIGURES]]
    lines = [line for moving in _MOVING for line in _lines(rows, moving, others)]
    lines.sort(key=lambda line: (-len(line.rows), line.axis, line.dtype, line.fixed))
    return lines


def _other_params(data: ReportData, rows: pd.DataFrame) -> list[str]:
    names = {name for record in data.records for name in record.case.params}
    return sorted(names & set(rows.columns) - {*PARAMS_FIRST, "dtype"})


def _lines(rows: pd.DataFrame, moving: tuple[str, ...], others: list[str]) -> Iterator[Line]:
    still = [name for name in PARAMS_FIRST if name not in moving]
    tied = rows
    for name in moving[1:]:
        tied = tied[tied[name] == tied[moving[0]]]
    keys = [*_CONDITIONS, *still, *others]
    if tied.empty:
        return
    # Most groups are single records: dropping them first is what keeps this quick.
    tied = tied[tied.groupby(keys, dropna=False)[moving[0]].transform("size") >= MIN_POINTS]
    for _, group in tied.groupby(keys, dropna=False, sort=True):
        line = _fine_part(group.drop_duplicates(moving[0]).sort_values(moving[0]), moving[0])
        if line is None:
            continue
        first = line.iloc[0]
        fixed = ", ".join(f"{name} = {first[name]}" for name in still)
        fixed = ", ".join(part for part in (fixed, str(first["dtype"]), str(first["regime"])) if part)
        yield Line(moving, fixed, str(first["dtype"]), line)


def _fine_part(rows: pd.DataFrame, name: str) -> pd.DataFrame | None:
    """The longest stretch of neighbours in small steps, or ``None`` where it is too short."""
    sizes = rows[name].astype(float).tolist()
    best, start = (0, 0), 0
    for i in range(1, len(sizes) + 1):
        if i == len(sizes) or sizes[i] > FINE * sizes[i - 1]:
            if i - start > best[1] - best[0]:
                best = (start, i)
            start = i
    return rows.iloc[best[0] : best[1]] if best[1] - best[0] >= MIN_POINTS else None


def cliffs(line: Line, resolution: float = 0.0) -> list[Cliff]:
    """Losses of speed between neighbours that noise does not explain, largest first.

    A step counts when FLOP/s fall by at least :data:`CLIFF` and by twice ``resolution``, and the intervals of
    FLOP/s of the two records do not overlap.

    Args:
        line: a fine line.
        resolution: smallest relative difference that can be told on this machine (from the A/A pairs).
    """
    least = max(CLIFF, 2 * resolution)
    found = []
    rows = line.rows
    work, size = rows["flops"].to_numpy(float), rows[line.moving[0]].astype(int).tolist()
    speed = rows["flops_per_s"].to_numpy(float)
    low, high = work / rows["time_hi_s"].to_numpy(float), work / rows["time_lo_s"].to_numpy(float)
    anchors = rows["anchor"].tolist()
    for i in range(1, len(rows)):
        loss = 1 - speed[i] / speed[i - 1]
        if loss >= least and high[i] < low[i - 1]:
            found.append(Cliff(line, size[i], size[i - 1], float(loss), anchors[i]))
    return sorted(found, key=lambda c: (-c.loss, c.at))


def skinny_lines(data: ReportData, most: int = 6) -> list[Line]:
    """Products with few rows over one weight matrix: ``m`` grows from at most 4, ``n`` and ``k`` stay.

    These are what a layer of a language model asks for between one token and a full batch.
    """
    rows = data.main
    if not set(PARAMS_FIRST) <= set(rows.columns) or rows.empty:
        return []
    lines = []
    rows = rows[[*_CONDITIONS, *PARAMS_FIRST, *_FIGURES]]
    for _, group in rows.groupby(["dtype", "regime", "n", "k"], sort=True):
        line = group.drop_duplicates("m").sort_values("m")
        n, k = int(line["n"].iloc[0]), int(line["k"].iloc[0])
        if len(line) >= 4 and line["m"].iloc[0] <= 4 and line["m"].iloc[-1] >= 16 and n * k >= 2**16:
            fixed = f"n = {n}, k = {k}, {line['regime'].iloc[0]}"
            lines.append(Line(("m",), fixed, str(line["dtype"].iloc[0]), line))
    lines.sort(key=lambda line: (-len(line.rows), line.dtype, line.fixed))
    return lines[:most]
