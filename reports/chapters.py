"""The chapters of the report's part on speed: which figures and findings belong together, in the order of the page.

A new figure module takes part by one line here: the page and the findings both walk through this list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wattline.reports import (
    comparisons,
    figures_collectives,
    figures_decode,
    figures_explain,
    figures_gap,
    figures_hybrid,
    figures_launch,
    figures_memory,
    figures_offload,
    figures_quantized,
    figures_sparse,
    figures_speed,
    figures_storage,
    tiles,
)
from wattline.reports.blocks import Figure
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding

Draw = Callable[[ReportData], Iterable[Figure | None]]
Tell = Callable[[ReportData], Iterable[Finding | None]]


@dataclass(frozen=True)
class Chapter:
    """A part of the section on speed.

    Attributes:
        id: anchor in the page.
        title: its heading.
        kinds: first words of the names of its operations; their comparisons along one size stand here.
        draw: its figures, before the comparisons.
        tell: its findings, before those of the comparisons.
        draw_after: figures after the comparisons.
        tell_after: findings after those of the comparisons.
    """

    id: str
    title: str
    kinds: tuple[str, ...]
    draw: Draw = lambda data: ()
    tell: Tell = lambda data: ()
    draw_after: Draw = lambda data: ()
    tell_after: Tell = lambda data: ()

    def records(self, data: ReportData) -> int:
        """How many records are of its operations."""
        return sum(record.case.op.partition(".")[0] in self.kinds for record in data.records)

    def figures(self, data: ReportData) -> list[Figure]:
        """Its figures in this run."""
        made = [*self.draw(data), *comparisons.figures(data, self.kinds), *self.draw_after(data)]
        return [figure for figure in made if figure]

    def findings(self, data: ReportData) -> list[Finding]:
        """Its findings in this run."""
        told = [*self.tell(data), *comparisons.find(data, self.kinds), *self.tell_after(data)]
        return [finding for finding in told if finding]


CHAPTERS = (
    Chapter(
        "bounds", "Against what the machine allows", (),
        lambda data: [figures_speed.rooflines(data), *figures_gap.figures(data)],
    ),
    Chapter(
        "products", "Products and convolutions", ("gemm", "conv", "fusion"),
        lambda data: [
            *figures_speed.products(data), *figures_sparse.figures(data), *figures_quantized.figures(data),
            *tiles.figures(data),
        ],
        lambda data: [figures_sparse.finding(data), figures_quantized.finding(data), tiles.finding(data)],
        figures_explain.figures, figures_explain.find,
    ),
    Chapter(
        "attention", "Attention and what surrounds it", ("attention", "rope", "softmax", "norm", "elementwise"),
        draw_after=lambda data: [*figures_decode.figures(data), *figures_hybrid.figures(data)],
        tell_after=lambda data: [figures_decode.finding(data), figures_hybrid.finding(data)],
    ),
    Chapter(
        "collectives", "Collectives", ("collectives", "coll"), figures_collectives.figures,
        lambda data: [figures_collectives.finding(data)],
    ),
    Chapter(
        "memory", "Memory", ("memory", "host"), figures_memory.figures, lambda data: [figures_memory.finding(data)]
    ),
    Chapter("storage", "Storage", ("storage",), figures_storage.figures, figures_storage.find),
    Chapter("offload", "Offload", ("offload",), figures_offload.figures, figures_offload.find),
    Chapter(
        "launch", "Launches", ("launch",), figures_launch.figures, lambda data: [figures_launch.finding(data)]
    ),
)  # fmt: skip
"""The order of the page."""


def chapters(data: ReportData) -> tuple[Chapter, ...]:
    """All chapters, the last of them for the operations of this run that no other speaks of."""
    known = {kind for chapter in CHAPTERS for kind in chapter.kinds}
    kinds = {record.case.op.partition(".")[0] for record in data.records}
    return (*CHAPTERS, Chapter("others", "Other operations", tuple(sorted(kinds - known))))
