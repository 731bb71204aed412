"""What a section of the page consists of: figures with a legend and a caption, or the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_HIDDEN = re.compile(r'^<svg [^>]* data-hidden="(\d+)"')
FORMAT_SERIES = {
    "fp32": 0, "bf16": 1, "fp64": 2, "int8": 3, "fp16": 4, "tf32": 5, "fp8_e4m3": 6, "fp8_e5m2": 7, "fp8": 6,
}  # fmt: skip
REGIME_SERIES = {"cold": 0, "hot": 1, "eager": 2, "graph": 3}


def format_series(dtype: str) -> int:
    """The colour and marker of a number format, the same in every figure."""
    return FORMAT_SERIES.get(dtype, 7)


def regime_series(regime: str) -> int:
    """The colour and marker of a regime, the same in every figure."""
    return REGIME_SERIES.get(regime, 7)


@dataclass(frozen=True)
class Figure:
    """A figure of one or more drawings.

    Attributes:
        id: anchor in the page.
        title: what it shows.
        panels: the drawings, as inline SVG.
        caption: what is seen and how to read it.
        legend: pairs of series number and label.
        lines: further legend entries: pairs of CSS class of a line sample and label.
        wide: whether each drawing takes the whole width.
    """

    id: str
    title: str
    panels: Sequence[Markup]
    caption: str
    legend: Sequence[tuple[int, str]] = ()
    lines: Sequence[tuple[str, str]] = ()
    wide: bool = False
    missing: str = ""

    @property
    def hidden(self) -> int:
        """Number of points that are not drawn because others lie where they would."""
        return sum(int(n) for panel in self.panels for n in _HIDDEN.findall(panel[:400]))

    @property
    def columns(self) -> int:
        """Drawings beside each other on a wide page: as many as leave none alone in the last row."""
        return columns_of(len(self.panels))


def columns_of(count: int) -> int:
    """Columns for a number of drawings."""
    return count if count <= 4 else 4 if count in (7, 8) else 3


def natural_size(count: int) -> tuple[float, float]:
    """Width and height in CSS pixels of each of ``count`` drawings, such that text has one size on every page."""
    return {1: (470, 290), 2: (430, 280), 4: (300, 250)}.get(columns_of(count), (370, 265))


def absent(id_: str, title: str, why: str) -> Figure:
    """A figure that the records do not support, with the reason."""
    return Figure(id_, title, (), "", missing=why)
