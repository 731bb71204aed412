"""Where the axes of a drawing lie, and a renderer that measures each text once.

Matplotlib's own layouts serve figures of many axes: each tick label is measured some six times before it is drawn. A
drawing of a report has one axes, whose margins follow from the sizes of its labels.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import LayoutEngine
from matplotlib.textpath import text_to_path
from matplotlib.ticker import AutoLocator
from matplotlib.transforms import Bbox

PAD = 3.0
"""Between the edge of the drawing and what is in it, in pixels."""


@lru_cache(maxsize=8192)
def _measured(text: str, family: tuple[str, ...], weight: Any, size: float) -> tuple[float, float, float]:
    prop = FontProperties(family=list(family), weight=weight, size=size)
    width, height, descent = text_to_path.get_text_width_height_descent(text, prop, False)
    return float(width), float(height), float(descent)


class Renderer(RendererSVG):  # type: ignore[misc]  # Matplotlib comes without types
    """Matplotlib's writer of SVG; texts that it has measured before, in whichever drawing, it does not measure again.

    Args:
        width, height: of the drawing, in pixels.
    """

    def __init__(self, width: float, height: float) -> None:
        self.buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        super().__init__(width, height, self.buffer, image_dpi=72, metadata=nothing)

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        """See :class:`matplotlib.backend_bases.RendererBase`."""
        if ismath:
            found: tuple[float, float, float] = super().get_text_width_height_descent(s, prop, ismath)
            return found
        return _measured(s, tuple(prop.get_family()), prop.get_weight(), prop.get_size_in_points())


@lru_cache(maxsize=1)
def _ruler() -> Renderer:
    """A renderer that nothing is drawn with."""
    return Renderer(1, 1)


class OneAxes(LayoutEngine):
    """Makes one axes as large as its labels and texts allow, as ``layout="constrained"`` does."""

    _adjust_compatible = False
    _colorbar_gridspec = False

    def execute(self, fig: Any) -> None:
        """Place the axes of ``fig``, and the labels of its axes below and beside what they stand by."""
        (ax,) = fig.axes
        width, height = fig.bbox.width, fig.bbox.height
        for _ in range(2):
            inner, ticks = ax.bbox.frozen(), (_ticks(ax.xaxis, ax.bbox), _ticks(ax.yaxis, ax.bbox))
            outer, settled = _extent(ax, *ticks)
            left, bottom = inner.x0 - outer.x0 + PAD, inner.y0 - outer.y0 + PAD
            right, top = outer.x1 - inner.x1 + PAD, outer.y1 - inner.y1 + PAD
            if left + right < width and bottom + top < height:
                ends = (left / width, bottom / height, 1 - right / width, 1 - top / height)
                ax.set_position(Bbox.from_extents(*ends))
            if settled:
                break
        below, beside = inner.y0 - ticks[0].y0 + ax.xaxis.labelpad, inner.x0 - ticks[1].x0 + ax.yaxis.labelpad
        ax.xaxis.set_label_coords(0.5, -below / ax.bbox.height)
        ax.yaxis.set_label_coords(-beside / ax.bbox.width, 0.5)


def _ticks(axis: Any, inner: Bbox) -> Bbox:
    """The axes and the labels of the ticks in sight, in pixels."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    labels = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    boxes = [label.get_window_extent(_ruler()) for at, label in labels if low - slack <= at <= high + slack]
    return Bbox.union([inner, *(box for box in boxes if box.width)])


def _extent(ax: Any, below: Bbox, beside: Bbox) -> tuple[Bbox, bool]:
    """The axes with all that belongs to it, in pixels, and whether its margins stay when its size changes.

    How far a title or the label of an axis runs does not count.

    Args:
        ax: the axes.
        below, beside: the axes with the labels of the ticks of x and of y.
    """
    x, y, inner, ruler = ax.xaxis, ax.yaxis, ax.bbox, _ruler()
    lowest, leftmost = below.y0, beside.x0
    if x.get_label_text():
        lowest -= x.labelpad + x.label.get_window_extent(ruler).height
    if y.get_label_text():
        leftmost -= y.labelpad + y.label.get_window_extent(ruler).width
    titles = [title.get_window_extent(ruler).y1 for title in (ax.title, ax._left_title) if title.get_text()]
    highest = max([inner.y1, *titles])
    texts = [text.get_tightbbox(ruler) for text in ax.texts if text.get_in_layout() and text.get_visible()]
    # What stands out over an end of an axis does so by another width once the axis has its size.
    within = leftmost <= below.x0 and below.x1 <= inner.x1 and lowest <= beside.y0 and beside.y1 <= highest
    counted = any(isinstance(axis.get_major_locator(), AutoLocator) for axis in (x, y))
    outer = Bbox.from_extents(
        min(leftmost, below.x0), min(lowest, beside.y0), max(inner.x1, below.x1), max(highest, beside.y1)
    )
    return Bbox.union([outer, *(box for box in texts if box)]), within and not counted and not texts
