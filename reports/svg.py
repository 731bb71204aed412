"""Matplotlib figures as inline SVG: small, themeable, deterministic, and with points that link to their records.

Matplotlib writes stand-alone files with fixed colours and ids. :meth:`Panel.svg` rewrites its output for a page
that holds many drawings: colours become CSS variables (light and dark from one drawing), text stays text in the
page's font, ids are dropped or made unique, coordinates are rounded, dates and metadata go. Points that belong to
records are written here rather than by Matplotlib: one short ``<a><use/></a>`` each.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from wattline.reports.layout import OneAxes, Renderer

INK, MUTED, GRID, PAPER, HEAT, HEAT_INK = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
SERIES = tuple(f"#0101{i:02x}" for i in range(16, 24))
"""Stand-in colours that the drawing code uses; each becomes the CSS variable of :data:`VARIABLES`."""

VARIABLES = {
    INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)", HEAT: "var(--heat)",
    HEAT_INK: "var(--heat-ink)", **{colour: f"var(--s{i})" for i, colour in enumerate(SERIES)},
}  # fmt: skip

MARKERS = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z", "M0-3.7 3.4 2.4H-3.4z", "M-2.7-2.7h5.4v5.4h-5.4z",
    "M0-3.9 3.9 0 0 3.9-3.9 0z",
    "M0 3.7 3.4-2.4H-3.4z", "M-1.2-3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4z",
    "M-3.7 0 2.4-3.4v6.8z", "M3.7 0-2.4-3.4v6.8z",
)  # fmt: skip
"""One shape per series, so that colour is never the only difference."""

MOST_MARKS = 500
"""Most points of one series in one drawing: of more, those that lie upon each other are drawn as one."""

_RC = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"], "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.labelsize": 10.5, "xtick.labelsize": 10, "ytick.labelsize": 10, "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "lines.linewidth": 1.6, "axes.titlelocation": "left",
    "axes.unicode_minus": False, "axes.titlepad": 8.0, "axes.titley": 1.0,  # given, it is not sought again and again
}  # fmt: skip

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))


def si_tick(value: float, _position: object = None) -> str:
    """A tick label with an SI prefix: ``100 G``, ``2 m``."""
    if value == 0:
        return "0"
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale * 0.9999:
            return f"{value / scale:g} {prefix}".rstrip()
    return f"{value / 1e-9:g} n"


def binary_tick(value: float, _position: object = None) -> str:
    """A size in bytes by powers of 1024, as caches and blocks are: ``48 KiB``, ``1.5 MiB``."""
    for power, prefix in ((3, "Gi"), (2, "Mi"), (1, "Ki")):
        if abs(value) >= 1024**power * 0.9995:
            return f"{value / 1024**power:.4g} {prefix}B"
    return f"{value:.4g} B"


def count_tick(value: float, _position: object = None) -> str:
    """A number of things: ``4096``, from a hundred thousand on ``1.05 M``."""
    return f"{value / 1e6:.3g} M" if abs(value) >= 1e5 else f"{value:g}"


def percent_tick(value: float, _position: object = None) -> str:
    """A share as a percentage: ``2.5 %``."""
    return f"{value * 100:g} %"


def printable(text: str, most: int = 90) -> str:
    """The text without characters that XML forbids (control characters, halves of surrogate pairs), and cut where no
    drawing has room for more."""
    return _FORBIDDEN.sub("\ufffd", text if len(text) <= most else text[: most - 3] + "...")


def ratio_tick(value: float, _position: object = None) -> str:
    """A ratio as a difference while that is easy to read, else as a factor: ``+12 %``, ``x 40``."""
    return f"{(value - 1) * 100:+.3g} %".replace("+0 %", "0 %") if 0.2 <= value <= 5 else f"x {value:g}"


def log_ticks(low: float, high: float, base: int = 10, most: int = 6) -> list[float]:
    """Tick positions of a logarithmic axis: powers of the base; where too few fit, round numbers between them."""
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    found: list[float] = []
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)) if base == 10 else ((1.0,),):
        found = [s * float(base) ** e for e in range(first, last + 1) for s in steps]
        found = [v for v in found if low <= v <= high]
        if len(found) >= 3:
            break
    if len(found) < 2:  # a narrow range: round numbers as on a linear axis
        found = [float(v) for v in MaxNLocator(4).tick_values(low, high) if low <= v <= high and v > 0]
    return found[:: math.ceil(len(found) / most)] if len(found) > most else found


class Panel:
    """One drawing: a Matplotlib figure with one axes, and the points of records upon it.

    Args:
        name: unique in the page; ids are made from it.
        width, height: in CSS pixels at natural size.
    """

    def __init__(self, name: str, width: float = 370, height: float = 265) -> None:
        self.name, self.width, self.height = name, width, height
        with mpl.rc_context(_RC):
            layout: Any = OneAxes()
            self.figure: Any = Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)
            FigureCanvasSVG(self.figure)
            self.ax: Any = self.figure.add_subplot()
        self._points: list[tuple[int, Any, Any, list[str]]] = []
        self._boxes: list[tuple[float, float, float, float, str]] = []
        self._bases: dict[str, int] = {}
        self._hidden = 0

    def titles(self, title: str = "", x: str = "", y: str = "") -> Panel:
        """Title and axis labels; returns the panel."""
        with mpl.rc_context(_RC):
            self.ax.set_title(printable(title))
            self.ax.set_xlabel(printable(x))
            self.ax.set_ylabel(printable(y))
        return self

    def log(self, axis: str, base: int = 10, label: Callable[[float, object], str] = si_tick) -> Panel:
        """Make ``"x"``, ``"y"`` or both (``"xy"``) logarithmic; returns the panel."""
        for name in axis:
            getattr(self.ax, f"set_{name}scale")("log", base=base)
            which = getattr(self.ax, f"{name}axis")
            which.set_minor_locator(NullLocator())
            self._bases[name] = base
            which.set_major_formatter(FuncFormatter(label))
            which.set_minor_formatter(NullFormatter())
        return self

    def linear(self, axis: str, label: Callable[[float, object], str] = si_tick, ticks: int = 6) -> Panel:
        """Few round ticks on a linear axis; returns the panel."""
        which = getattr(self.ax, f"{axis}axis")
        which.set_major_locator(MaxNLocator(ticks))
        which.set_major_formatter(FuncFormatter(label))
        return self

    def points(self, x: Iterable[float], y: Iterable[float], anchors: Iterable[str], series: int = 0) -> None:
        """Points that link to records; those that are not finite (or not above 0 on a log axis) are left out."""
        xs, ys, names = np.asarray(list(x), float), np.asarray(list(y), float), list(anchors)
        keep = np.isfinite(xs) & np.isfinite(ys)
        if self.ax.get_xscale() == "log":
            keep &= xs > 0
        if self.ax.get_yscale() == "log":
            keep &= ys > 0
        xs, ys, names = xs[keep], ys[keep], [n for n, k in zip(names, keep, strict=True) if k]
        if len(xs):
            self.ax.update_datalim(np.column_stack([xs, ys]))
            self.ax.autoscale_view()
            self._points.append((series % len(SERIES), xs, ys, names))

    def box(self, left: float, bottom: float, right: float, top: float, anchor: str) -> None:
        """An area, in data coordinates, that links to a record (the cell of a heat map)."""
        self._boxes.append((left, bottom, right, top, anchor))

    @property
    def count(self) -> int:
        """Number of linked points and areas."""
        return sum(len(names) for *_, names in self._points) + len(self._boxes)

    def svg(self, alt: str) -> Markup:
        """The drawing as an inline ``<svg>``.

        Args:
            alt: what it shows, for those who cannot see it.
        """
        for axis, base in self._bases.items():
            low, high = getattr(self.ax, f"get_{axis}lim")()
            most = max(3, int((self.width if axis == "x" else self.height) / (62 if axis == "x" else 36)))
            getattr(self.ax, f"{axis}axis").set_major_locator(FixedLocator(log_ticks(low, high, base, most)))
        with mpl.rc_context({**_RC, "svg.hashsalt": self.name}):
            renderer = Renderer(self.width, self.height)
            self.figure.draw(renderer)
            renderer.finalize()
        root = _plain(ET.fromstring(renderer.buffer.getvalue()), self.name)
        drawing = "".join(ET.tostring(child, encoding="unicode", short_empty_elements=True) for child in root)
        # The linked points stand outside the image: an image hides what is in it from assistive technology,
        # which reads the same records from the table.
        links = self._links()
        label = escape(printable(alt, 1000))
        hidden = f' data-hidden="{self._hidden}"' if self._hidden else ""
        return Markup(
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" class="plot" style="--w:{self.width:g}px" '
            f'xmlns="http://www.w3.org/2000/svg"{hidden}><g role="img" aria-label="{label}">{drawing}</g>'
            f"{links}</svg>"
        )

    def _links(self) -> str:
        # Read after drawing: the layout is final then.
        transform = self.ax.transData.transform
        parts = []
        for left, bottom, right, top, anchor in self._boxes:
            (x0, y0), (x1, y1) = transform([(left, bottom), (right, top)])
            parts.append(
                f'<a href="#{escape(anchor)}" tabindex="-1"><rect x="{_n(x0)}" y="{_n(self.height - y1)}" '
                f'width="{_n(x1 - x0)}" height="{_n(y1 - y0)}"/></a>'
            )
        boxes = f'<g class="cells">{"".join(parts)}</g>' if parts else ""
        groups = []
        for series, xs, ys, anchors in self._points:
            placed = transform(np.column_stack([xs, ys]))
            kept = apart(placed, MOST_MARKS)
            self._hidden += len(placed) - len(kept)
            uses = "".join(
                f'<a href="#{escape(anchors[i])}" tabindex="-1">'
                f'<use href="#mk{series}" x="{_n(placed[i, 0])}" y="{_n(self.height - placed[i, 1])}"/></a>'
                for i in kept
            )
            groups.append(f'<g class="pts s{series}">{uses}</g>')
        inner = boxes + "".join(groups)
        return f'<g aria-hidden="true">{inner}</g>' if inner else ""


def apart(placed: np.ndarray, most: int) -> list[int]:
    """Which points to draw: all of few; of many the first in each cell of a grid that is as coarse as it must be.

    Args:
        placed: positions in pixels, of shape ``(n, 2)``.
        most: largest number of points to draw.

    Returns:
        Positions in rising order.
    """
    kept = np.arange(len(placed))
    step = 1.5
    while len(kept) > most:
        _, kept = np.unique(np.floor(placed / step), axis=0, return_index=True)
        step *= 1.25
    return [int(i) for i in np.sort(kept)]


def marker_definitions() -> Markup:
    """The marker shapes, once per page."""
    paths = "".join(f'<path id="mk{i}" d="{d}"/>' for i, d in enumerate(MARKERS))
    return Markup(f'<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{paths}</defs></svg>')


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font:\s*([^;']*?)\b(\d+(?:\.\d+)?)px[^;]*")
_GEOMETRY = ("d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "points", "transform", "cx", "cy", "r")


def _plain(root: Any, name: str) -> Any:
    """Matplotlib's tree without namespaces, metadata, global styles, fixed colours, fixed fonts and idle ids."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
        if element.get("href", "").startswith("#"):
            used.add(element.get("href")[1:])
    new = {old: f"{name}-{i}" for i, old in enumerate(sorted(used))}
    for parent in root.iter():
        for child in list(parent):
            if child.tag in ("metadata", "style") or (child.tag == "path" and child.get("style") == "fill: none"):
                parent.remove(child)
    for element in root.iter():
        _rewrite(element, new)
    _unwrap(root)
    return root


def _rewrite(element: Any, new: dict[str, str]) -> None:
    identity = element.attrib.pop("id", None)
    if identity in new:
        element.set("id", new[identity])
    for key in list(element.attrib):
        value = element.attrib.pop(key)
        if key == "href" and value[1:] in new:
            value = "#" + new[value[1:]]
        elif key == "clip-path":
            value = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{new[m.group(1)]})", value)
        elif key in _GEOMETRY:
            value = " ".join(_NUMBER.sub(lambda m: _n(float(m.group())), value).split())
            if re.fullmatch(r"rotate\(-?0 [^)]*\)", value):
                continue
        elif key == "style":
            value = _COLOUR.sub(lambda m: VARIABLES.get(m.group(), m.group()), value)
            value = _FONT.sub(
                lambda m: f"font-size:{m.group(2)}px{';font-weight:700' if 'bold' in m.group(1) else ''}", value
            )
            value = (
                re.sub(r";?\s*stroke-linejoin: miter|font-family:[^;]*;?\s*", "", value)
                .replace("; ", ";")
                .replace(": ", ":")
            )
        element.set(key, value)


def _unwrap(parent: Any) -> None:
    """Put the children of groups that say nothing in the group's place."""
    for child in list(parent):
        _unwrap(child)
        if child.tag == "g" and not child.attrib:
            place = list(parent).index(child)
            parent.remove(child)
            for i, grandchild in enumerate(list(child)):
                parent.insert(place + i, grandchild)
