"""Figures and sentences of a comparison, as every output says them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wattline.reports.comparing.statistic import half_width, told_aside

if TYPE_CHECKING:
    from wattline.reports.comparing.comparison import Comparison
    from wattline.reports.comparing.contrast import Change, Contrast

CHANGE_LIMIT = 9.995
"""Changes from here on are told as factors."""
ROOM = 80
"""Columns of a terminal that everything fits."""


def percent_change(share: float) -> str:
    """A change for people: ``+3.2 %``, ``-12 %``, from tenfold on ``x 14``."""
    if not math.isfinite(share):
        return "n/a"
    if share >= CHANGE_LIMIT:
        return f"x {share + 1:.3g}"
    value = share * 100
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.095 else 2
    text = f"{value:+.{digits}f} %"
    return "0 %" if not any(c in text for c in "123456789") else text


def share_text(share: float) -> str:
    """A share without sign: ``3.2 %``."""
    return percent_change(share).lstrip("+")


def interval(change: Change) -> str:
    """The interval of a change: ``+1.2 to +5.4 %``."""
    low, high = (percent_change(value) for value in change.bounds)
    if low.endswith(" %") and high.endswith(" %") and low != high:
        low = low[:-2]
    return f"{low} to {high}" if low != high else low


def shortened(text: str, room: int) -> str:
    """The text within so many columns; the middle gives way, since the sizes of a case stand at its end."""
    if len(text) <= room:
        return text
    tail = room // 2
    return f"{text[: room - tail - 2]}..{text[-tail:]}"


def verdict_counts(comparison: Comparison) -> str:
    """``3 slower, 1 faster, 70 same (within 2 %), 18 cannot tell``."""
    parts = []
    for word, count in comparison.counts.items():
        about = f" (within {share_text(comparison.margin)})" if word == "same" else ""
        parts.append(f"{count} {word}{about}")
    return ", ".join(parts) or "no cases"


def noise_sentence(contrast: Contrast) -> str:
    """How far equal measurements differ, and how that is known."""
    noise = contrast.noise
    sources = {
        "repeated runs": f"from {noise.repeats} repeats over several runs",
        "A/A pairs": f"from {noise.repeats} repeat{'s' if noise.repeats != 1 else ''} within the runs",
        "spread of the ratios": f"from the spread of {noise.ratios} ratios",
        "assumed": "assumed: no case was measured twice and too few were compared",
    }
    return (
        f"one of twenty equal measurements differs by {share_text(noise.twentieth)} or more "
        f"({sources[noise.source]}; Student's t with {noise.freedom:.1f} degrees of freedom)"
    )


def statistic_sentence(comparison: Comparison) -> str:
    """What of the samples is compared, and what the other statistic says."""
    aside, by = comparison.aside, {"median": "the median", "p5": "the 5th percentile"}
    other = "median" if comparison.statistic == "p5" else "p5"
    said = f"{by[comparison.statistic]} of each measurement's samples"
    if aside is None:
        return said
    mine, theirs = (share_text(math.expm1(half_width(each))) for each in (comparison.time, aside))
    said += f" (intervals of +-{mine} in half of the cases, by {by[other]} +-{theirs})"
    if count := told_aside(comparison.time, aside):
        verb = "case differs" if count == 1 else "cases differ"
        said += f"; {count} {verb} by {by[other]} alone, which --statistic {other} lists"
    return said


def aa_sentence(contrast: Contrast) -> str:
    """What the A/A pairs say of false positives; empty without any."""
    if not contrast.aa_pairs:
        return ""
    return (
        f"of {contrast.aa_pairs} A/A pairs, in which nothing differs, {contrast.aa_told} would look different by this "
        f"noise, and {contrast.aa_apart} by their intervals alone"
    )


def shift_sentence(contrast: Contrast, quantity: str = "time") -> str:
    """What all cases changed by together, and what is made of it."""
    shift = contrast.shift
    if shift.why_not:
        return shift.why_not
    more, less = ("slower", "faster") if quantity == "time" else ("more", "less")
    size = percent_change(shift.share)
    if size == "0 %":
        return "none"
    spread = f"{percent_change(math.expm1(shift.lo))} to {percent_change(math.expm1(min(shift.hi, 50)))}"
    how = "cases are judged against it" if shift.removed else "cases are judged as measured"
    if shift.word == "same":
        return f"{size}, within the margin; {how}"
    if shift.beyond:
        word = more if shift.value > 0 else less
        return (
            f"{size} ({word}), more than runs differ by: most cases changed, or the machine was in another state; {how}"
        )
    return f"{size}, no more than whole runs may differ by (it could be {spread}); {how}"


def resolution_sentence(comparison: Comparison) -> str:
    """What could have been told; empty where nothing was compared."""
    values = sorted(c.verdict.resolution for c in comparison.time.changes.values())
    if not values:
        return ""
    middle, least, most = (_resolved(v) for v in (values[len(values) // 2], values[0], values[-1]))
    return (
        f"a change of {middle} would be told nine times out of ten in half of the cases ({least} in the steadiest, "
        f"{most} in the most restless)"
    )


def _resolved(share: float) -> str:
    return share_text(share) if share < CHANGE_LIMIT - 1 else "more than tenfold"


def advice(comparison: Comparison) -> str:
    """How to tell more, where much cannot be told; empty otherwise."""
    if comparison.counts.get("cannot tell", 0) * 2 < max(comparison.compared, 1) or not comparison.compared:
        return ""
    if min(len(comparison.a.runs), len(comparison.b.runs)) > 1:
        return "to tell more: further runs into each side's folder, taken in turn"
    return (
        "to tell more: measure each side several times, in turn, into folders such as base/1, new/1, base/2, new/2, "
        "and compare base with new"
    )
