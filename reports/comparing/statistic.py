"""What of a measurement's samples is compared: their median, or their 5th percentile.

What disturbs a kernel makes it longer, never shorter. On a machine that others use as well, the fast end of the samples
is what the kernel takes alone, and repeats better than the middle (J. Chen and J. Revels, "Robust benchmarking in noisy
environments", arXiv:1608.04295, 2016, who take the minimum). It does not see what changes the middle alone, such as a
slow mode that comes up more often: that is counted, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wattline.errors import UsageError
from wattline.reports.comparing.contrast import Contrast
from wattline.reports.comparing.judging import LESS, MORE
from wattline.reports.comparing.reading import Side

STATISTICS = ("auto", "median", "p5")
"""What can be asked for; ``auto`` is the one that repeats better."""
STEADIER = 0.8
"""The 5th percentile stands in for the median where the intervals of half of the cases are so much narrower by it."""


def chosen(
    asked: str,
    held: Callable[[str, Sequence[str]], Contrast],
    keys: Sequence[str],
    sides: tuple[Side, Side],
    *,
    same_machine: bool,
) -> tuple[str, Contrast, Contrast | None]:
    """The statistic that is compared, what comes of it, and what comes of the other one.

    Which of them repeats better is seen by the width of the intervals; whether any case changed is not looked at.

    Args:
        asked: one of :data:`STATISTICS`.
        held: compares a quantity (``"time"`` or ``"fast"``) of the cases with the given keys.
        keys: the cases that are compared.
        sides: both sides.
        same_machine: whether they are of one machine; between machines ``auto`` is the median.

    Raises:
        UsageError: the 5th percentile is asked for, and some records do not hold it.
    """
    lacking = [key for side in sides for key in keys if len(side.cases[key].fast) < len(side.cases[key].time)]
    if asked == "p5" and lacking:
        raise UsageError(
            f"the 5th percentiles of {len(set(lacking))} cases are not known",
            why=f"records do not hold p5_s, such as those of {sides[0].cases[lacking[0]].label}",
            todo="compare medians (--statistic median), or measure again",
        )  # fmt: skip
    median = held("time", keys)
    if asked == "median" or lacking or not keys or not (same_machine or asked == "p5"):
        return "median", median, None
    fast = held("fast", keys)
    if asked == "p5" or half_width(fast) < STEADIER * half_width(median):
        return "p5", fast, median
    return "median", median, fast


def half_width(contrast: Contrast) -> float:
    """Half of the width of the intervals, in half of the cases; a logarithm."""
    return float(np.median([c.verdict.hi - c.verdict.lo for c in contrast.changes.values()])) / 2


def told_aside(compared: Contrast, aside: Contrast | None) -> int:
    """Cases that are called changed by the statistic that was left aside, and not by the one that was compared."""
    if aside is None:
        return 0
    told, others = (
        {k for k, c in each.changes.items() if c.verdict.word in (MORE, LESS)} for each in (compared, aside)
    )
    return len(others - told)
