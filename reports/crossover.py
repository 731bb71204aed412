"""Where one of two curves of time overtakes the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isfinite, log
from typing import Literal

from wattline.errors import ParamError

Verdict = Literal["below", "above", "always", "never", "several"]


@dataclass(frozen=True)
class Crossover:
    """Where a is quicker than b.

    Attributes:
        x: where the two are equal, interpolated; the first such place where there are several; ``None`` where there is
            none.
        verdict: ``"below"`` or ``"above"`` (a is quicker on that side of ``x``), ``"always"``, ``"never"``, or
            ``"several"`` (they cross more than once).
    """

    x: float | None
    verdict: Verdict


def crossover(x: Sequence[float], a_s: Sequence[float], b_s: Sequence[float]) -> Crossover:
    """Where a becomes quicker or slower than b.

    Between two points both times are taken as powers of x: straight lines in logarithms, where time that grows in
    proportion to x is one exactly. Where the times are equal a counts as not quicker.

    Args:
        x: places, above 0, in any order, none twice.
        a_s: times of a there, in seconds, above 0.
        b_s: times of b.

    Raises:
        ParamError: nothing to compare, lengths that differ, a place twice, or a number that is not above 0.
    """
    if not len(x) or not len(x) == len(a_s) == len(b_s) or len(set(x)) < len(x):
        raise ParamError(
            "a crossover needs times of both at the same places, each place once",
            why=f"{len(x)} places ({len(set(x))} different), {len(a_s)} and {len(b_s)} times",
        )
    if not all(isfinite(v) and v > 0 for v in (*x, *a_s, *b_s)):
        raise ParamError("a crossover needs places and times above 0")
    rows = sorted((log(at), log(a) - log(b)) for at, a, b in zip(x, a_s, b_s, strict=True))
    found = [
        x0 + (x1 - x0) * d0 / (d0 - d1) for (x0, d0), (x1, d1) in pairwise(rows) if (d0 < 0) != (d1 < 0)
    ]
    first_quicker = rows[0][1] < 0
    if not found:
        return Crossover(None, "always" if first_quicker else "never")
    if len(found) > 1:
        return Crossover(exp(found[0]), "several")
    return Crossover(exp(found[0]), "below" if first_quicker else "above")
