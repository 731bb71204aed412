"""Alpha-beta models of collectives: latency and bandwidth out of times, and times of sizes and ranks not measured.

``t = alpha r(n) + beta w`` where ``w`` are the bytes over the busiest rank's link (S times the busbw factor) and
``r(n)`` the rounds in which latency is paid (Hockney, "The communication challenge for MPP", Parallel Computing 20,
1994; rounds and factors: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in
MPICH", 2005). Libraries change their protocol with the size, so that a model may have up to three segments of sizes,
each with an alpha and a beta of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.errors import DataError
from wattline.workmodels.collectives import COLLECTIVES, busbw_factor, rounds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Numbers = Sequence[float] | Array

MOST_SEGMENTS = 3
FEWEST = 3
"""Distinct sizes of a segment: two make any line fit."""
EVIDENCE = 6.0
"""By so much the information criterion must fall for one more segment (Kass and Raftery, "Bayes factors", JASA 90,
1995: "strong")."""
COVERAGE = 0.9
DRAWS = 200
_RESOLUTION = 1e-4  # relative error below which nothing is told apart
_ROBUST, _PASSES = 1.345, 8  # Huber's constant (95 % efficient for a normal error); passes of reweighting

ROUNDS: Mapping[str, Callable[[Any], Any]] = {
    "log": lambda n: np.maximum(rounds(n), 1.0),
    "linear": lambda n: np.maximum(n - 1.0, 1.0),
    "none": np.ones_like,
}
"""How latency may grow with the ranks: as in a tree, as in a ring, not at all."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds it with a probability of :data:`COVERAGE`."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Segment:
    """A range of sizes with one latency and one bandwidth.

    Attributes:
        begin: smallest S in bytes that it holds for; the first one's holds for all below.
        end: largest S that was measured in it; the last one's holds for all above.
        alpha_s: seconds per round.
        bandwidth: bytes/s over the busiest link, in busbw; infinite where size costs nothing that could be measured.
        draws: alpha and beta of the resampled fits, ``(draws, 2)``.
    """

    begin: float
    end: float
    alpha_s: Estimate
    bandwidth: Estimate
    draws: Array = field(repr=False)


@dataclass(frozen=True)
class HeldOut:
    """How well a fit says what it has not seen.

    Attributes:
        what: in words.
        error: median relative error.
        points: how many were left out.
    """

    what: str
    error: float
    points: int


@dataclass(frozen=True)
class AlphaBeta:
    """The model of one collective.

    Attributes:
        name: of the collective.
        segments: by size.
        growth: key of :data:`ROUNDS`.
        assumed: only one number of ranks was measured, and the growth of latency with them is the tree's.
        bytes, ranks, times_s: what it was fitted on, by size.
        residuals: measured over fitted time, less one, in the same order.
        held_out: errors on sizes and ranks that were left out.
    """

    name: str
    segments: tuple[Segment, ...]
    growth: str
    assumed: bool
    bytes: Array
    ranks: Array
    times_s: Array
    residuals: Array
    held_out: tuple[HeldOut, ...] = ()

    @property
    def error(self) -> float:
        """Median of the relative residuals."""
        return float(np.median(np.abs(self.residuals)))

    def predict(self, size: Any, ranks: Any) -> tuple[Array, Array, Array]:
        """Seconds for sizes S (bytes) and numbers of ranks: the time, and an interval for one measurement of it.

        Args:
            size: number or array.
            ranks: number or array of the same shape.
        """
        s, n = np.broadcast_arrays(np.asarray(size, np.float64), np.asarray(ranks, np.float64))
        x = _columns(self.name, s, n, self.growth)
        which = np.searchsorted([segment.begin for segment in self.segments[1:]], s, side="right")
        central = np.empty(s.shape)
        drawn = np.empty((*s.shape, len(self.segments[0].draws)))
        for i, segment in enumerate(self.segments):
            here = which == i
            central[here] = x[here] @ np.array([segment.alpha_s.value, 1.0 / segment.bandwidth.value])
            drawn[here] = x[here] @ segment.draws.T
        noise = np.random.default_rng(0).choice(np.log1p(self.residuals), drawn.shape[-1])
        lo, hi = np.quantile(drawn * np.exp(noise), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=-1)
        return central, np.minimum(lo, central), np.maximum(hi, central)

    def to_dict(self) -> dict[str, Any]:
        """JSON types: what the fit says, without its points."""
        return {
            "collective": self.name, "growth": self.growth, "growth_assumed": self.assumed,
            "points": len(self.bytes), "ranks": sorted({int(n) for n in self.ranks}), "median_error": self.error,
            "segments": [
                {
                    "begin_bytes": s.begin, "end_bytes": s.end,
                    "alpha_s": [s.alpha_s.value, s.alpha_s.lo, s.alpha_s.hi],
                    "bandwidth_bytes_per_s": [
                        None if not np.isfinite(v) else v for v in (s.bandwidth.value, s.bandwidth.lo, s.bandwidth.hi)
                    ],
                }
                for s in self.segments
            ],
            "held_out": [{"what": h.what, "median_error": h.error, "points": h.points} for h in self.held_out],
        }  # fmt: skip


def fit_alpha_beta(
    name: str, size: Numbers, ranks: Numbers, times_s: Numbers, *, seed: int = 0,
    judged: bool = True,
) -> AlphaBeta:  # fmt: skip
    """Fit one collective.

    Relative errors count, robustly (Huber): a size that a busy machine disturbed does not bend the line.

    Args:
        name: the collective, with or without ``collectives.``.
        size: S in bytes of each measurement (anything for a barrier).
        ranks: ranks that took part in each, from 2.
        times_s: seconds of each.
        seed: of the resampling behind the intervals.
        judged: leave out the largest sizes and the most ranks in turn, and say how well they are predicted.

    Raises:
        DataError: fewer than :data:`FEWEST` points or sizes, one rank, or times that are not positive.
    """
    name = name.removeprefix("collectives.")
    if name not in COLLECTIVES:
        raise DataError(f"{name} has no alpha-beta model", why=f"there are {', '.join(COLLECTIVES)}")
    s, n, t = (np.asarray(values, np.float64) for values in (size, ranks, times_s))
    plain = name == "barrier"
    if plain:
        s = np.zeros_like(t)
    distinct = len(np.unique(n if plain else s))
    if len(t) < 1 or (not plain and distinct < FEWEST):
        raise DataError(
            f"{distinct} sizes of {name}; a fit of latency and bandwidth needs at least {FEWEST}",
            todo="measure more sizes: `wattline bench collectives --ranks 2 -b 8 -e 64M -f 4`",
        )
    if not (np.isfinite(t).all() and (t > 0).all() and (n >= 2).all()):
        raise DataError(f"times of {name} must be above zero, and of at least 2 ranks")
    order = np.lexsort((n, s))
    s, n, t = s[order], n[order], t[order]
    assumed = len(np.unique(n)) == 1
    found = [_segmented(name, s, n, t, growth) for growth in (("log",) if assumed else ROUNDS)]
    best = min(found, key=lambda each: each.criterion)
    residuals = t / best.fitted - 1.0
    segments = _with_intervals(_columns(name, s, n, best.growth), s, best, residuals, seed)
    held = _held_out(name, s, n, t, seed) if judged else ()
    return AlphaBeta(name, segments, best.growth, assumed, s, n, t, residuals, held)


@dataclass(frozen=True)
class _Split:
    """A division of the points into segments.

    Attributes:
        edges: indices of points, ``begin .. end`` of each segment.
        weights: alpha and beta of each.
        fitted: seconds of every point.
        criterion: the information criterion; less is better.
        growth: of latency with the ranks.
    """

    edges: tuple[tuple[int, int], ...]
    weights: tuple[Array, ...]
    fitted: Array
    criterion: float
    growth: str


def _columns(name: str, s: Array, n: Array, growth: str) -> Array:
    """Rounds and bytes over the busiest link of each point, ``(..., 2)``."""
    factor = np.asarray(busbw_factor(name, n), np.float64)
    return np.stack([np.asarray(ROUNDS[growth](n), np.float64), factor * s], axis=-1)


def _line(x: Array, t: Array) -> Array:
    """Alpha and beta, neither below zero, by robust least squares of relative errors."""
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


def _segmented(name: str, s: Array, n: Array, t: Array, growth: str) -> _Split:
    """The division that explains best for its number of parameters (Schwarz's criterion, errors as of Laplace)."""
    x = _columns(name, s, n, growth)
    starts = np.flatnonzero(np.r_[True, np.diff(s) > 0])  # the first point of each size
    edges = [*starts.tolist(), len(s)]
    sizes = len(starts)
    memo: dict[tuple[int, int], tuple[Array, float]] = {}

    def piece(i: int, j: int) -> tuple[Array, float]:
        if (i, j) not in memo:
            rows = slice(edges[i], edges[j])
            weights = _line(x[rows], t[rows])
            memo[i, j] = weights, float(np.abs(t[rows] / np.maximum(x[rows] @ weights, 1e-15) - 1.0).sum())
        return memo[i, j]

    best: _Split | None = None
    # tables[k][j]: least error of the first j sizes in k + 1 segments, and where the last one begins.
    tables: list[dict[int, tuple[float, int]]] = [
        {j: (piece(0, j)[1], 0) for j in range(min(FEWEST, sizes), sizes + 1)}
    ]
    for count in range(1, MOST_SEGMENTS + 1):
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
            best = _Split(points, weights, np.maximum(fitted, 1e-15), float(criterion), growth)
    assert best is not None  # one segment always is
    return best


def _with_intervals(x: Array, s: Array, split: _Split, residuals: Array, seed: int) -> tuple[Segment, ...]:
    """The segments with intervals from resampled relative residuals (Efron and Tibshirani, 1993, chapter 9)."""
    rng = np.random.default_rng(seed)
    # Residuals of a fit are smaller than errors, by the parameters that it spent.
    inflation = np.sqrt(len(s) / max(1, len(s) - 2 * len(split.edges)))
    logs = np.log1p(residuals)  # errors are factors: a disturbed call takes five times as long, none a fifth of zero
    centred = (logs - np.median(logs)) * inflation
    segments = []
    for (lo, hi), weights in zip(split.edges, split.weights, strict=True):
        draws = np.empty((DRAWS, 2))
        for i in range(DRAWS):
            made = split.fitted[lo:hi] * np.exp(rng.choice(centred, hi - lo))
            draws[i] = _line(x[lo:hi], made)
        ends = np.quantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
        alpha, beta = weights
        segments.append(
            Segment(
                float(s[lo]), float(s[hi - 1]),
                Estimate(float(alpha), min(float(ends[0, 0]), float(alpha)), max(float(ends[1, 0]), float(alpha))),
                Estimate(
                    _inverse(beta), min(_inverse(ends[1, 1]), _inverse(beta)), max(_inverse(ends[0, 1]), _inverse(beta))
                ),
                draws,
            )
        )  # fmt: skip
    return tuple(segments)


def _inverse(value: float) -> float:
    return 1.0 / float(value) if value > 0 else float("inf")


def _held_out(name: str, s: Array, n: Array, t: Array, seed: int) -> tuple[HeldOut, ...]:
    """Errors on the largest quarter of the sizes, and on the most ranks, of fits that have not seen them."""
    found = []
    sizes, worlds = np.unique(s), np.unique(n)
    cut = max(1, len(sizes) // 4)
    trials: list[tuple[str, NDArray[np.bool_]]] = []
    if len(sizes) >= FEWEST + 1:
        trials.append((f"sizes from {sizes[-cut]:.0f} bytes, from smaller ones", s >= sizes[-cut]))
    if len(worlds) > 1:
        trials.append((f"{worlds[-1]:.0f} ranks, from fewer", n == worlds[-1]))
    for what, out in trials:
        try:
            model = fit_alpha_beta(name, s[~out], n[~out], t[~out], seed=seed, judged=False)
        except DataError:
            continue  # too few are left
        errors = np.abs(model.predict(s[out], n[out])[0] / t[out] - 1.0)
        found.append(HeldOut(what, float(np.median(errors)), int(out.sum())))
    return tuple(found)
