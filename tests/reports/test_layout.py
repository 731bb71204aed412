"""The layout of one axes: as large as Matplotlib's own would make it, and everything inside the drawing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.layout_engine import ConstrainedLayoutEngine

from wattline.reports.layout import PAD, OneAxes, Renderer
from wattline.reports.svg import Panel, percent_tick


def plain(panel: Panel) -> None:
    panel.titles("a title", "tokens", "seconds").log("xy")


def bare(panel: Panel) -> None:
    panel.linear("x").linear("y")


def named_ticks(panel: Panel) -> None:
    panel.titles("", "share", "").ax.set_yticks([1, 50, 99], ["a short name", "a much longer name of a group", "b"])


def turned(panel: Panel) -> None:
    panel.titles("a title", "n", "m").ax.set_xticks([1, 50, 100], ["1024 columns", "2048", "4096"], rotation=90)


def wide_at_the_end(panel: Panel) -> None:
    panel.titles("", "x", "y").ax.set_xticks([1, 100], ["first", "the last of all the labels"])
    panel.ax.set_xlim(1, 100)


def counted(panel: Panel) -> None:
    panel.titles("ticks by the room there is", "x", "y")


def written_upon(panel: Panel) -> None:
    plain(panel)
    panel.ax.annotate("beyond the right end", (100, 10), xytext=(3, 0), textcoords="offset points")
    panel.ax.text(1, 1, "not in the layout" * 9, in_layout=False)


def percentages(panel: Panel) -> None:
    panel.titles("", "m", "bound / time").log("x", 2).linear("y", percent_tick)


SHAPES = [plain, bare, named_ticks, turned, wide_at_the_end, counted, written_upon, percentages]


def drawn(shape: Callable[[Panel], None], engine: Any) -> tuple[Any, str]:
    """The drawn figure of a panel of this shape, and what was written."""
    panel = Panel("p")
    panel.ax.plot([1, 10, 100], [1, 50, 99])
    shape(panel)
    panel.figure.set_layout_engine(engine)
    return panel.figure, str(panel.svg("a drawing"))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_the_drawing_is_the_one_of_the_constrained_layout(shape: Callable[[Panel], None]) -> None:
    own, text = drawn(shape, OneAxes())
    reference, expected = drawn(shape, ConstrainedLayoutEngine(w_pad=PAD / 72, h_pad=PAD / 72))
    assert own.axes[0].bbox.extents == pytest.approx(reference.axes[0].bbox.extents, abs=0.05)
    assert text == expected


def test_where_there_is_no_room_the_axes_stays_where_it_was() -> None:
    panel = Panel("p", 40, 40).titles("", "x", "y")
    panel.ax.set_yticks([0.5], ["a name wider than the whole drawing"])
    before = panel.ax.get_position().extents
    assert "<svg" in panel.svg("too small")
    assert panel.ax.get_position().extents == pytest.approx(before)


def test_a_text_is_measured_as_matplotlib_measures_it() -> None:
    from matplotlib.backends.backend_svg import RendererSVG
    from matplotlib.font_manager import FontProperties

    renderer = Renderer(10, 10)
    for size, weight in ((10, "normal"), (11.5, "bold")):
        font = FontProperties(family=["DejaVu Sans"], size=size, weight=weight)
        for text in ("10 G", "wattline", "x"):
            found = renderer.get_text_width_height_descent(text, font, False)
            assert found == RendererSVG.get_text_width_height_descent(renderer, text, font, False)
