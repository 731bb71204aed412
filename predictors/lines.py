"""Latency and bandwidth by pieces: robust lines through times, and where one ends and the next begins.

Of :mod:`wattline.predictors.alphabeta` (collectives, by rounds) and :mod:`wattline.predictors.transfers` (copies).
Where pieces begin is found by dynamic programming over all places, as R. Bellman and R. Roth did ("Curve fitting by
segmented straight lines", Journal of the American Statistical Association 64(327), 1969).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MOST_SEGMENTS = 3
"""Pieces at most."""
FEWEST = 3
"""Distinct sizes of a piece: two determine a line, the third tells whether it is one."""
EVIDENCE = 6.0
"""By so much the information criterion must fall for one more piece (Kass and Raftery, "Bayes factors", JASA 90,
1995: "strong")."""
_RESOLUTION = 1e-4  # relative error below which nothing is told apart
_ROBUST, _PASSES = 1.345, 8  # Huber's constant (95 % efficient for a normal error); passes of reweighting


@dataclass(frozen=True)
class Pieces:
    """A division of points into pieces, each with a line.

    Attributes:
        edges: indices of points, ``begin .. end`` of each piece.
        weights: the two coefficients of each.
        fitted: seconds of every point.
        criterion: the information criterion; less is better.
    """

    edges: tuple[tuple[int, int], ...]
    weights: tuple[Array, ...]
    fitted: Array
    criterion: float


def line(x: Array, t: Array) -> Array:
    """Two coefficients, neither below zero, by robust least squares of relative errors (Huber, 1964)."""
    trust = np.ones_like(t)
    fitted = t
    weights = np.zeros(2)
    for _ in range(_PASSES):
        weights = _least_squares(x, t, trust / fitted**2)
        fitted = np.maximum(x @ weights, 1e-15)
        r = np.abs(t / fitted - 1.0)
        scale = max(float(np.median(r)) / 0.6745, _RESOLUTION)
        trust = np.minimum(1.0, _ROBUST * scale / np.maximum(r, 1e-300))
    return weights


def _least_squares(x: Array, t: Array, weight: Array) -> Array:
    """Two non-negative coefficients: of the solution and those on the borders, the allowed one with the least error."""
    a, b = x[:, 0], x[:, 1]
    aa, ab, bb = (weight * a * a).sum(), (weight * a * b).sum(), (weight * b * b).sum()
    at, bt = (weight * a * t).sum(), (weight * b * t).sum()
    determinant = aa * bb - ab * ab
    if determinant > 1e-12 * aa * bb:
        both = np.array([at * bb - bt * ab, aa * bt - ab * at]) / determinant
        if (both >= 0).all():
            found: Array = both
            return found
    borders = [np.array([at / aa, 0.0])]
    if bb > 0:
        borders.append(np.array([0.0, bt / bb]))
    return min(borders, key=lambda w: float((weight * (x @ w - t) ** 2).sum()))


def pieces_of(x: Array, s: Array, t: Array, *, most: int = MOST_SEGMENTS) -> Pieces:
    """The division that explains best for its number of parameters (Schwarz's criterion, errors as of Laplace).

    Args:
        x: what the two coefficients stand beside ``(n, 2)``.
        s: sizes in ascending order ``(n,)``, at least :data:`FEWEST` different ones unless all are one; points of one
            size stay together.
        t: seconds ``(n,)``.
        most: pieces at most.
    """
    starts = np.flatnonzero(np.r_[True, np.diff(s) > 0])  # the first point of each size
    edges = [*starts.tolist(), len(s)]
    sizes = len(starts)
    memo: dict[tuple[int, int], tuple[Array, float]] = {}

    def piece(i: int, j: int) -> tuple[Array, float]:
        if (i, j) not in memo:
            rows = slice(edges[i], edges[j])
            weights = line(x[rows], t[rows])
            memo[i, j] = weights, float(np.abs(t[rows] / np.maximum(x[rows] @ weights, 1e-15) - 1.0).sum())
        return memo[i, j]

    best: Pieces | None = None
    # tables[k][j]: least error of the first j sizes in k + 1 segments, and where the last one begins.
    tables: list[dict[int, tuple[float, int]]] = [
        {j: (piece(0, j)[1], 0) for j in range(min(FEWEST, sizes), sizes + 1)}
    ]
    for count in range(1, most + 1):
        if count > 1:
            row = {}
            for j in range(count * FEWEST, sizes + 1):
                found = [
                    (tables[-1][i][0] + piece(i, j)[1], i) for i in range((count - 1) * FEWEST, j - FEWEST + 1)
                ]
                row[j] = min(found)
            tables.append(row)
        if sizes not in tables[-1]:
            break
        error = tables[-1][sizes][0]
        criterion = 2 * len(t) * np.log(max(error / len(t), _RESOLUTION)) + (3 * count - 1) * np.log(len(t))
        if best is None or criterion < best.criterion - EVIDENCE:
            cuts, j = [sizes], sizes
            for k in range(count - 1, -1, -1):
                j = tables[k][j][1]
                cuts.insert(0, j)
            spans = list(pairwise(cuts))
            weights = tuple(piece(i, j)[0] for i, j in spans)
            points = tuple((edges[i], edges[j]) for i, j in spans)
            fitted = np.concatenate([x[lo:hi] @ w for (lo, hi), w in zip(points, weights, strict=True)])
            best = Pieces(points, weights, np.maximum(fitted, 1e-15), float(criterion))
    assert best is not None  # one segment always is
    return best


def inverse(value: float) -> float:
    """Bandwidth of seconds a byte: infinite where the time does not grow."""
    return 1.0 / float(value) if value > 0 else float("inf")
