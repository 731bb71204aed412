"""Where one way of computing stops beating another: the crossing of two lines of times over one axis.

Times over a size or a density look straight in double-logarithmic space, so a crossing between two measured points is
found by linear interpolation of log(a / b) over log x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from wattline.errors import ParamError

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["a_wins", "b_wins", "crosses"]


@dataclass(frozen=True)
class Crossover:
    """How two lines of times lie to each other over one axis.

    Attributes:
        verdict: ``"a_wins"``: a is quicker at every x; ``"b_wins"``: at none; ``"crosses"``: on one side only.
        x: where they cross; ``None`` where they do not.
        first: which one is quicker below ``x`` (everywhere, where they do not cross).
        lo: the largest measured x below ``x`` at which the quicker one is told apart; ``None`` without such a point.
        hi: the smallest measured x above ``x`` at which the other one is; ``None`` without such a point.
        changes: how often the quicker one changes along the axis. More than once: ``x`` is the crossing that leaves
            the least on its wrong sides.
    """

    verdict: Verdict
    x: float | None
    first: Literal["a", "b"]
    lo: float | None = None
    hi: float | None = None
    changes: int = 0


def crossover(
    x: Sequence[float], a_s: Sequence[float], b_s: Sequence[float], apart: Sequence[bool] | None = None
) -> Crossover:
    """Where ``a`` stops (or begins) to be quicker than ``b``.

    Args:
        x: the axis: different, positive, in any order.
        a_s: seconds of a at each x.
        b_s: seconds of b at each x.
        apart: whether the two times can be told apart at each x; all can when it is left out.

    Returns:
        The verdict, the crossing and the measured points around it that are beyond doubt. Equal times count for
        neither; where all are equal, a does not win.

    Raises:
        ParamError: sequences of different lengths, none at all, repeated x, or values that are not finite and positive.
    """
    count = len(x)
    sure = [True] * count if apart is None else list(apart)
    if not count or not len(a_s) == len(b_s) == len(sure) == count:
        raise ParamError(f"a crossing needs as many times as points, and one at least ({count} points)")
    if not all(math.isfinite(v) and v > 0 for v in (*x, *a_s, *b_s)):
        raise ParamError("a crossing is sought among finite numbers above 0")
    if len(set(x)) < count:
        raise ParamError("a crossing needs one pair of times for each point of the axis")
    order = sorted(range(count), key=lambda i: x[i])
    at = [float(x[i]) for i in order]
    lead = [math.log(a_s[i] / b_s[i]) for i in order]  # below 0: a is quicker
    told = [sure[i] for i in order]
    signed = [i for i in range(count) if lead[i]]  # equal times lie on neither side
    breaks = [(i, j) for i, j in pairwise(signed) if (lead[i] < 0) != (lead[j] < 0)]
    if not breaks:
        a_wins = bool(signed) and lead[signed[0]] < 0
        return Crossover("a_wins" if a_wins else "b_wins", None, "a" if a_wins else "b")
    # Rounded: the same times the other way round must find the same crossing, the first of equals.
    i, j = min(breaks, key=lambda pair: round(_misfit(lead, pair[0]), 9))
    share = lead[i] / (lead[i] - lead[j])
    crossing = math.exp(math.log(at[i]) + share * (math.log(at[j]) - math.log(at[i])))
    below = [at[p] for p in range(i + 1) if told[p] and lead[p] * lead[i] > 0]
    above = [at[p] for p in range(j, count) if told[p] and lead[p] * lead[j] > 0]
    first: Literal["a", "b"] = "a" if lead[i] < 0 else "b"
    return Crossover(
        "crosses", crossing, first, max(below, default=None), min(above, default=None), len(breaks)
    )


def _misfit(lead: Sequence[float], last: int) -> float:
    """What lies on the wrong sides when the quicker one changes after point ``last``."""
    side = math.copysign(1.0, lead[last])
    return sum(max(0.0, -side * v) for v in lead[: last + 1]) + sum(max(0.0, side * v) for v in lead[last + 1 :])


def crossovers(
    a: pd.DataFrame, b: pd.DataFrame, axis: str, by: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Crossover]]:
    """The crossings of two kinds of records, one for each value of ``by`` that both have.

    Args:
        a: rows of :attr:`wattline.reports.data.ReportData.usable`.
        b: rows to hold them against.
        axis: the column along which they may cross, e.g. ``"m"``.
        by: columns that must agree, e.g. ``("n", "k")``.

    Yields:
        The values of ``by``, and the crossing over the values of ``axis`` that both have (two at least). Of records
        of one point the quickest counts; points whose intervals overlap are not told apart.
    """
    keys = [*by, axis]
    columns = [*keys, "time_s", "time_lo_s", "time_hi_s"]
    quickest = [part[columns].sort_values("time_s", kind="stable").drop_duplicates(keys) for part in (a, b)]
    both = quickest[0].merge(quickest[1], on=keys, suffixes=("_a", "_b"))
    groups = both.groupby(list(by), sort=True) if by else [((), both)]
    for names, rows in groups:
        if len(rows) < 2:
            continue
        apart = (rows["time_hi_s_a"] < rows["time_lo_s_b"]) | (rows["time_hi_s_b"] < rows["time_lo_s_a"])
        found = crossover(
            rows[axis].astype(float).tolist(), rows["time_s_a"].tolist(), rows["time_s_b"].tolist(), apart.tolist()
        )
        yield dict(zip(by, names, strict=True)), found
