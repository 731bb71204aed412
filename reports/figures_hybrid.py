"""Batches of a prompt's chunk and others' newest tokens: from which chunk on do the latter ride free?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.comparisons import words
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding, percent
from wattline.reports.lines import DISTURBED, LinePanel, common
from wattline.reports.svg import Panel

if TYPE_CHECKING:
    import pandas as pd

OP = "attention.hybrid"
FREE = 0.1
"""Tokens ride free where they add at most this share of what they cost in a batch of their own."""
_TITLE = "Chunk and newest tokens in one batch: what the latter add"
_SAME = ("dtype", "regime", "data", "heads", "kv_heads", "head_dim", "hidden", "chunk_context", "decode_context")
_MAX_PANELS = 6


@dataclass(frozen=True)
class Ride:
    """The newest tokens of other sequences beside chunks of one size after another.

    Attributes:
        given: conditions, with the number of decodes.
        impl: how the batch is computed.
        alone_s: what the decodes cost without a chunk, in seconds.
        chunks: sizes, rising.
        extra_s: what the decodes add to each chunk, in seconds; below 0 only by noise.
        doubt_s: half-width of the interval of each ``extra_s``.
        chunk_s: what each chunk costs without them.
        anchors: of the records of both together.
    """

    given: dict[str, Any]
    impl: str
    alone_s: float
    chunks: tuple[int, ...]
    extra_s: tuple[float, ...]
    doubt_s: tuple[float, ...]
    chunk_s: tuple[float, ...]
    anchors: tuple[str, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """``extra_s`` as shares of ``alone_s``."""
        return tuple(extra / self.alone_s for extra in self.extra_s)

    def free_from(self) -> int | None:
        """The smallest chunk from which on, at every larger one too, the decodes ride free beyond doubt."""
        found = None
        for chunk, extra, doubt in reversed(list(zip(self.chunks, self.extra_s, self.doubt_s, strict=True))):
            if extra + doubt > FREE * self.alone_s:
                break
            found = chunk
        return found


def rides(data: ReportData, calm: bool = False) -> list[Ride]:
    """Everything of the kind that a run holds.

    Args:
        data: the run.
        calm: leave out records that noise or other processes disturbed.
    """
    rows = data.usable_of([OP])
    rows = rows[(rows["op"] == OP) & (rows["variant"].fillna("") != "b")]
    if rows.empty or not {"chunk", "decodes", *_SAME} <= set(rows.columns):
        return []
    if calm:
        rows = rows[~rows["flags"].fillna("").str.contains(DISTURBED)]
    found = []
    quickest = rows.sort_values("time_s", kind="stable").drop_duplicates([*_SAME, "impl", "chunk", "decodes"])
    for values, group in quickest.groupby([*_SAME, "impl"], sort=True, dropna=False):
        given = dict(zip(_SAME, values[:-1], strict=True))
        by = {(int(r["chunk"]), int(r["decodes"])): r for _, r in group.iterrows()}
        for decodes in sorted({d for _, d in by} - {0}):
            chunks = sorted(c for c, d in by if c and d == decodes and (c, 0) in by)
            if chunks and (0, decodes) in by:
                found.append(_ride({**given, "decodes": decodes}, str(values[-1]), by, chunks))
    return found


def _ride(given: dict[str, Any], impl: str, by: dict[tuple[int, int], pd.Series[Any]], chunks: list[int]) -> Ride:
    decodes = given["decodes"]
    both, alone = [by[c, decodes] for c in chunks], [by[c, 0] for c in chunks]
    pairs = list(zip(both, alone, strict=True))
    return Ride(
        given, impl, float(by[0, decodes]["time_s"]), tuple(chunks),
        tuple(float(b["time_s"] - a["time_s"]) for b, a in pairs),
        # The medians are independent: their half-widths add in squares.
        tuple(float((_half(b) ** 2 + _half(a) ** 2) ** 0.5) for b, a in pairs),
        tuple(float(a["time_s"]) for a in alone), tuple(str(b["anchor"]) for b in both),
    )  # fmt: skip


def _half(row: pd.Series[Any]) -> float:
    return float(row["time_hi_s"] - row["time_lo_s"]) / 2


def figures(data: ReportData) -> list[Figure]:
    """What the decodes add, as a share of their own cost, against the chunk; none in a run without such batches."""
    if not any(record.case.op == OP for record in data.records):
        return []
    found = rides(data)
    if not found:
        why = "Nowhere were a chunk, the newest tokens and both together measured under equal conditions."
        return [absent("hybrid", _TITLE, why)]
    same, _ = common([LinePanel(ride.given) for ride in found])
    groups: dict[str, list[Ride]] = {}
    for ride in found:
        groups.setdefault(_named(ride, same), []).append(ride)
    impls = sorted({ride.impl for ride in found})
    panels: list[Markup] = []
    for name, members in list(groups.items())[:_MAX_PANELS]:
        panel = Panel(f"hybrid-{len(panels)}", *natural_size(min(len(groups), _MAX_PANELS)))
        panel.log("x", 2, lambda v, _: f"{v:g}").linear("y", svg.percent_tick)
        panel.titles(name, "tokens of the chunk", "added / alone")
        for ride in members:
            series = impls.index(ride.impl)
            shares, doubts = ride.shares, [d / ride.alone_s for d in ride.doubt_s]
            panel.ax.errorbar(ride.chunks, shares, yerr=doubts, color=svg.SERIES[series], linewidth=1.2, capsize=2)
            panel.points(ride.chunks, shares, ride.anchors, series)
        panel.ax.axhline(FREE, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        panel.ax.axhline(1, color=svg.MUTED, linewidth=0.8)
        panels.append(panel.svg(f"What {members[0].given['decodes']} decodes add to a chunk, {len(members)} ways."))
    caption = (
        "Time of chunk and newest tokens together, less that of the chunk alone, as a share of what the newest tokens "
        "take in a batch of their own; bars are 95 % intervals. At 100 % (line) nothing is gained, at 0 % they cost "
        f"nothing: their weights were read for the chunk anyway. Below the dotted line ({percent(FREE)}) they ride "
        f"free. The same throughout: {words({k: v for k, v in same.items() if k != 'decodes'})}."
    )
    return [Figure("hybrid", _TITLE, panels, caption, list(enumerate(impls)))]


def _named(ride: Ride, same: dict[str, Any]) -> str:
    """The number of decodes, and what else tells it from the others."""
    left = {name: value for name, value in ride.given.items() if name not in same and name != "decodes"}
    return ", ".join(filter(None, (f"{ride.given['decodes']} decodes", words(left))))


def finding(data: ReportData) -> Finding | None:
    """The chunk from which on decodes ride free, or that there is none; ``None`` without such batches."""
    found = rides(data, calm=True)
    if not found:
        if not rides(data):
            return None
        title = "From which chunk on newest tokens ride free cannot be told from this run."
        text = "Too few of its records are free of noise and other processes."
        return Finding("hybrid", title, text, "hybrid", "what they add", quiet=True)
    best = min(found, key=lambda r: (r.free_from() or 1 << 60, min(r.shares)))
    free = best.free_from()
    decodes = best.given["decodes"]
    if free is not None:
        title = f"{decodes} newest tokens ride free beside chunks of {free} tokens and more ({best.impl})."
    else:
        least = min(best.shares)
        title = (
            f"{decodes} newest tokens never ride free beside the chunks measured: at best they add "
            f"{percent(max(0.0, least))} of their own cost ({best.impl})."
        )
    same, _ = common([LinePanel(ride.given) for ride in found])
    items = tuple(
        f"{r.impl}, {_named(r, same)}: "
        + ", ".join(f"chunk {c} {percent(max(0.0, s))}" for c, s in zip(r.chunks, r.shares, strict=True))
        for r in found
    )
    text = f"Added time as a share of their time in a batch of their own; free: at most {percent(FREE)}, doubt in it."
    return Finding("hybrid", title, text, "hybrid", "what they add", items)
