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
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.errors import DataError
from wattline.predictors.lines import FEWEST, Pieces, inverse, line, pieces_of
from wattline.units import format_bytes
from wattline.workmodels.collectives import COLLECTIVES, busbw_factor, rounds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Numbers = Sequence[float] | Array

COVERAGE = 0.9
DRAWS = 200

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
    found = {g: pieces_of(_columns(name, s, n, g), s, t) for g in (("log",) if assumed else ROUNDS)}
    growth, best = min(found.items(), key=lambda item: item[1].criterion)
    residuals = t / best.fitted - 1.0
    segments = _with_intervals(_columns(name, s, n, growth), s, best, residuals, seed)
    held = _held_out(name, s, n, t, seed) if judged else ()
    return AlphaBeta(name, segments, growth, assumed, s, n, t, residuals, held)


def _columns(name: str, s: Array, n: Array, growth: str) -> Array:
    """Rounds and bytes over the busiest link of each point, ``(..., 2)``."""
    factor = np.asarray(busbw_factor(name, n), np.float64)
    return np.stack([np.asarray(ROUNDS[growth](n), np.float64), factor * s], axis=-1)


def _with_intervals(x: Array, s: Array, split: Pieces, residuals: Array, seed: int) -> tuple[Segment, ...]:
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
            draws[i] = line(x[lo:hi], made)
        ends = np.quantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
        alpha, beta = weights
        segments.append(
            Segment(
                float(s[lo]), float(s[hi - 1]),
                Estimate(float(alpha), min(float(ends[0, 0]), float(alpha)), max(float(ends[1, 0]), float(alpha))),
                Estimate(
                    inverse(beta), min(inverse(ends[1, 1]), inverse(beta)), max(inverse(ends[0, 1]), inverse(beta))
                ),
                draws,
            )
        )  # fmt: skip
    return tuple(segments)


def _held_out(name: str, s: Array, n: Array, t: Array, seed: int) -> tuple[HeldOut, ...]:
    """Errors on the largest quarter of the sizes, and on the most ranks, of fits that have not seen them."""
    found = []
    sizes, worlds = np.unique(s), np.unique(n)
    cut = max(1, len(sizes) // 4)
    trials: list[tuple[str, NDArray[np.bool_]]] = []
    if len(sizes) >= FEWEST + 1:
        trials.append((f"sizes from {format_bytes(sizes[-cut])}, from smaller ones", s >= sizes[-cut]))
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
