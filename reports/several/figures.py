"""Drawings of a report on several runs: intervals in a table, ratios of all cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.comparing.comparison import CaseResult, Comparison
from wattline.reports.comparing.words import percent_change
from wattline.reports.svg import Panel

VERDICT_SERIES = {"same": 0, "slower": 1, "faster": 2, "cannot tell": 6}
"""Colour and marker of each verdict."""
MOST_POINTS = 500
"""Most cases in one drawing: all that changed, and as many others evenly."""
_WIDTH, _HEIGHT, _EDGE = 150.0, 16.0, 6.0


def bar(centre: float, low: float, high: float, span: float, word: str) -> Markup:
    """An interval on a logarithmic axis that is the same for all rows of a table.

    Args:
        centre, low, high: log ratios; an interval that is not known is NaN.
        span: log ratio at both edges of the drawing.
        word: verdict, for the colour.
    """

    def place(value: float) -> float:
        return _WIDTH / 2 + max(-1.0, min(1.0, value / span)) * (_WIDTH / 2 - _EDGE)

    series = VERDICT_SERIES.get(word, 6)
    middle = _HEIGHT / 2
    known = math.isfinite(low) and math.isfinite(high)
    line = f'<path class="range" d="M{place(low):.1f} {middle}H{place(high):.1f}"/>' if known else ""
    return Markup(
        f'<svg class="ratio s{series}" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" aria-hidden="true">'
        f'<path class="zero" d="M{_WIDTH / 2:g} 0V{_HEIGHT:g}"/>{line}'
        f'<use href="#mk{series}" x="{place(centre):.1f}" y="{middle:g}"/></svg>'
    )


def span_of(values: Sequence[float]) -> float:
    """The edge of the axis for log ratios: a round one that holds nearly all of them."""
    finite = [abs(v) for v in values if math.isfinite(v)]
    reach = float(np.quantile(finite, 0.95)) if finite else 0.0
    return max(math.log(1.02), reach * 1.15)


def ratios(comparison: Comparison, number: int, anchors: dict[str, str]) -> Figure:
    """The ratio of every case with its interval: by rank, and against the time in A.

    Args:
        comparison: of side ``number`` with the first.
        number: of the side.
        anchors: row of each case, by key.
    """
    id_ = f"ratios-{number}"
    title = f"{comparison.b.name} against {comparison.a.name}: every case"
    results = [r for r in comparison.cases if r.time]
    if not results:
        return absent(id_, title, "No case has a time on both sides.")
    shown = _thinned(results)
    shown.sort(key=lambda r: (r.time.ratio if r.time else 0.0, r.key))
    panels = [_by_rank(shown, number, comparison, anchors), _by_time(shown, number, comparison, anchors)]
    left_out = len(results) - len(shown)
    note = f" {left_out} cases that did not change are left out, evenly." if left_out else ""
    shift = comparison.time.shift
    if shift.removed and abs(shift.share) >= 0.001:
        note += f" The dashed line is the shift of all cases together, {percent_change(shift.share)}."
    caption = (
        "Which cases changed, and is it the small or the large ones? Each point is the time of a case in "
        f"{comparison.b.name} over that in {comparison.a.name}, as measured; bars are the intervals at "
        f"{comparison.confidence:.0%} with the noise between equal measurements. Left: by rising ratio. Right: against "
        "the time of one call." + note
    )
    present = [word for word in VERDICT_SERIES if any(r.verdict == word for r in shown)]
    lines = [("dashed", "shift of all")] if shift.removed and abs(shift.share) >= 0.001 else []
    return Figure(id_, title, panels, caption, [(VERDICT_SERIES[word], word) for word in present], lines)


def _thinned(results: Sequence[CaseResult]) -> list[CaseResult]:
    changed = [r for r in results if r.verdict in ("slower", "faster")][:MOST_POINTS]
    rest = [r for r in results if r.verdict not in ("slower", "faster")]
    room = max(MOST_POINTS - len(changed), MOST_POINTS // 5)
    step = max(1, math.ceil(len(rest) / room))
    return [*changed, *rest[::step]]


def _by_rank(shown: Sequence[CaseResult], number: int, comparison: Comparison, anchors: dict[str, str]) -> Markup:
    panel = Panel(f"rank-{number}", *natural_size(2)).log("y", label=svg.ratio_tick)
    panel.titles("", "case, by rising ratio", "time against A")
    _draw(panel, shown, list(range(1, len(shown) + 1)), comparison, anchors)
    panel.ax.set_xlim(0, len(shown) + 1)
    panel.linear("x", svg.count_tick)
    return panel.svg(f"Ratios of {len(shown)} cases by rising ratio.")


def _by_time(shown: Sequence[CaseResult], number: int, comparison: Comparison, anchors: dict[str, str]) -> Markup:
    panel = Panel(f"size-{number}", *natural_size(2)).log("x").log("y", label=svg.ratio_tick)
    panel.titles("", "time of one call in A (s)", "time against A")
    times = [r.time.a for r in shown if r.time]
    _draw(panel, shown, times, comparison, anchors)
    panel.ax.set_xlim(min(times) / 1.3, max(times) * 1.3)
    return panel.svg(f"Ratios of {len(shown)} cases against their time.")


def _draw(
    panel: Panel, shown: Sequence[CaseResult], x: Sequence[float], comparison: Comparison, anchors: dict[str, str]
) -> None:
    panel.ax.axhline(1, color=svg.MUTED, linewidth=1)
    shift = comparison.time.shift
    offset = shift.value if shift.removed else 0.0
    if shift.removed and abs(shift.share) >= 0.001:
        panel.ax.axhline(math.exp(offset), color=svg.MUTED, linewidth=1, linestyle="--")
    ratios_ = [r.time.ratio for r in shown if r.time]
    low, high = min(ratios_), max(ratios_)
    # A single restless case must not flatten the rest: bars end at the edge, points never do.
    edge = max(high / low, 1.02) ** 0.25
    for word, series in VERDICT_SERIES.items():
        mine = [(at, r) for at, r in zip(x, shown, strict=True) if r.verdict == word and r.time]
        if not mine:
            continue
        ends = [(math.exp(min(r.time.verdict.lo + offset, 50)), math.exp(min(r.time.verdict.hi + offset, 50)))
                for _, r in mine if r.time]  # fmt: skip
        panel.ax.vlines(
            [at for at, _ in mine], [max(lo, low / edge) for lo, _ in ends], [min(hi, high * edge) for _, hi in ends],
            color=svg.SERIES[series], linewidth=0.8, alpha=0.5,
        )  # fmt: skip
        panel.points(
            [at for at, _ in mine], [r.time.ratio for _, r in mine if r.time],
            [anchors.get(r.key, "cases") for _, r in mine], series,
        )  # fmt: skip
    panel.ax.set_ylim(low / edge, high * edge)
