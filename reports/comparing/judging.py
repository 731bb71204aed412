"""Verdicts: what differs, what is the same, and what cannot be told, with many cases asked at once.

Two questions are asked of each case. Does it differ at all (Student's t)? Is it the same within a margin (two one-sided
tests, D. Schuirmann, J. Pharmacokin. Biopharm. 15, 1987)? The answers of each question are held to a false discovery
rate over all cases (Y. Benjamini and Y. Hochberg, J. R. Stat. Soc. B 57(1), 1995): of the cases that are called
different, at most that share is expected not to be. Where nothing changed this also bounds the chance that any case
is called different, which is what a gate needs; Holm's method, which bounds that chance whatever changed, would cost
most of the power that a few per cent need among hundreds of cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wattline.reports.comparing.noise import quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

MORE, LESS, SAME, UNTOLD = "more", "less", "same", "cannot tell"
"""Verdicts: the quantity rose, fell, stayed within the margin, or none of these can be told."""
_NINE_IN_TEN = 0.9


@dataclass(frozen=True)
class Verdict:
    """The verdict on one change.

    Attributes:
        word: :data:`MORE`, :data:`LESS`, :data:`SAME` or :data:`UNTOLD`.
        p_different, p_same: adjusted for the number of cases.
        lo, hi: interval of the log ratio at the confidence asked for (of this case alone).
        resolution: the change (a share) that would have been told nine times out of ten.
    """

    word: str
    p_different: float
    p_same: float
    lo: float
    hi: float
    resolution: float


def adjusted(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values adjusted by Benjamini and Hochberg: those at most q are rejected at false discovery rate q."""
    n = len(p)
    if not n:
        return p
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n / np.arange(1, n + 1)
    result = np.empty(n)
    result[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return result


def two_sided(
    values: NDArray[np.float64], errors: NDArray[np.float64], freedoms: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P-values of values being 0, by Student's t."""
    from scipy.special import stdtr

    return np.asarray(2 * stdtr(freedoms, -np.abs(values) / errors))


def within(
    values: NDArray[np.float64], errors: NDArray[np.float64], freedoms: NDArray[np.float64], margin: float
) -> NDArray[np.float64]:
    """P-values of values lying outside of +-margin: the larger of two one-sided tests."""
    from scipy.special import stdtr

    return np.asarray(stdtr(freedoms, -(margin - np.abs(values)) / errors))


def judge(
    values: Sequence[float] | NDArray[np.float64],
    errors: Sequence[float] | NDArray[np.float64],
    freedoms: Sequence[float] | NDArray[np.float64],
    *,
    margin: float,
    confidence: float,
) -> list[Verdict]:
    """The verdicts on log ratios.

    Args:
        values: shape (n,), log ratios B / A.
        errors: shape (n,), their standard errors, above 0.
        freedoms: shape (n,), degrees of freedom of the errors.
        margin: what counts as the same, as a log ratio.
        confidence: one less the false discovery rate; of the intervals too.
    """
    v, e, f = (np.asarray(x, dtype=np.float64) for x in (values, errors, freedoms))
    alpha = 1 - confidence
    different = adjusted(two_sided(v, e, f))
    same = adjusted(within(v, e, f, margin))
    told = different <= alpha
    alike = same <= alpha
    # A p-value as small as this would have been rejected beside those that were.
    needed = alpha * min(int(told.sum()) + 1, max(len(v), 1)) / max(len(v), 1)
    found = []
    for i in range(len(v)):
        word = SAME if alike[i] else (MORE if v[i] > 0 else LESS) if told[i] else UNTOLD
        d0 = round(float(f[i]), 2)
        reach = quantile(round(1 - alpha / 2, 9), d0) * e[i]
        least = (quantile(1 - needed / 2, d0) + quantile(_NINE_IN_TEN, d0)) * e[i]
        found.append(
            Verdict(
                word, float(different[i]), float(same[i]), float(v[i] - reach), float(v[i] + reach),
                math.expm1(min(float(least), 700.0)),
            )
        )  # fmt: skip
    return found
