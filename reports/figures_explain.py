"""What explains the time of convolutions and of chains: FLOPs, or what they write?

Dollar, Singh and Girshick ("Fast and accurate model scaling", arXiv:2103.06877) find that on accelerators the
elements which a network writes (activations) say more about its run time than its FLOPs. Here the same question is put
to the run: the coefficient of determination of the logarithm of time, over that of each candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from wattline.reports.blocks import Figure, format_series, natural_size
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding, percent
from wattline.reports.lines import DISTURBED
from wattline.reports.svg import Panel

if TYPE_CHECKING:
    import pandas as pd

OPS = ("conv.2d", "fusion.chain")
CANDIDATES = (
    ("flops", "FLOPs"), ("work.activations", "activations"), ("bytes_moved", "bytes moved at least"),
    ("fact.peak_bytes", "peak memory of a call"),
)  # fmt: skip
ENOUGH = 8
"""Fewer different shapes than this explain nothing."""


@dataclass(frozen=True)
class Explained:
    """How well each candidate explains the time of one operation.

    Attributes:
        op: the operation.
        rows: the records.
        shares: name of the candidate, and the share of the variance of log time that a straight line over its
            logarithm explains; best first.
    """

    op: str
    rows: pd.DataFrame
    shares: tuple[tuple[str, float], ...]


def explained(data: ReportData) -> list[Explained]:
    """The operations with enough shapes, each under its most frequent implementation, format and regime."""
    found = []
    for op in OPS:
        rows = data.usable_of([op])
        rows = rows[rows["variant"].fillna("") != "b"]
        rows = rows[~rows["flags"].fillna("").str.contains(DISTURBED)]
        for name in ("impl", "dtype", "regime", "data"):
            if len(rows):
                rows = rows[rows[name] == rows[name].value_counts().idxmax()]
        if rows["shape"].nunique() < ENOUGH:
            continue
        shares = [
            (label, share) for column, label in CANDIDATES
            if column in rows.columns and (share := determination(rows[column], rows["time_s"])) is not None
        ]  # fmt: skip
        if len(shares) > 1:
            found.append(Explained(op, rows, tuple(sorted(shares, key=lambda s: -s[1]))))
    return found


def determination(x: pd.Series[float], time_s: pd.Series[float]) -> float | None:
    """R^2 of ``log time = a + b log x``; ``None`` where x is absent, not above 0 or always the same."""
    known = x.notna() & (x.astype(float) > 0) & (time_s > 0)
    if int(known.sum()) < ENOUGH or x[known].nunique() < 2:
        return None
    a, b = np.log(x[known].to_numpy(float)), np.log(time_s[known].to_numpy(float))
    if np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1] ** 2)


def figures(data: ReportData) -> list[Figure]:
    """Time against each candidate, one figure per operation."""
    made = []
    for found in explained(data):
        columns = {label: column for column, label in CANDIDATES}
        panels: list[Markup] = []
        dtype = str(found.rows["dtype"].iloc[0])
        for label, share in found.shares:
            panel = Panel(f"explain-{OPS.index(found.op)}-{len(panels)}", *natural_size(len(found.shares))).log("xy")
            panel.titles(f"{label}: {percent(share)}", label, "s")
            panel.points(found.rows[columns[label]], found.rows["time_s"], found.rows["anchor"], format_series(dtype))
            panels.append(panel.svg(f"Time of {found.op} against {label}, which explains {percent(share)} of it."))
        caption = (
            "Each point is one shape. The percentage is the share of the variance of log time that a straight line "
            "over the logarithm of the axis explains; peak memory is what one call takes beyond its buffers."
        )
        title = f"What explains the time of {found.op}"
        made.append(Figure(f"explain-{found.op.replace('.', '-')}", title, panels, caption,
                           [(format_series(dtype), f"{dtype}, {found.rows['impl'].iloc[0]}")]))  # fmt: skip
    return made


def find(data: ReportData) -> list[Finding]:
    """For each operation, what explains its time best, FLOPs beside."""
    made = []
    for found in explained(data):
        best, share = found.shares[0]
        flops = dict(found.shares).get("FLOPs")
        if best == "FLOPs" or flops is None:
            title = f"The time of {found.op} is explained best by {best}: {percent(share)} of its variance."
        else:
            title = (
                f"The time of {found.op} is explained better by its {best} ({percent(share)} of the variance) than by "
                f"its FLOPs ({percent(flops)})."
            )
        anchor = f"explain-{found.op.replace('.', '-')}"
        others = ", ".join(f"{label} {percent(value)}" for label, value in found.shares)
        text = f"Over {len(found.rows)} shapes, log time over the log of each: {others}."
        made.append(Finding("explain", title, text, anchor, "time against each"))
    return made
