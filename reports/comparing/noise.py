"""How far measurements of the same thing differ: the noise that a change must stand out from.

The interval of one measurement says how well its median is known while it ran. It holds nothing of what changes between
minutes (clocks, neighbours, where memory lies), so that most A/A pairs lie outside of each other's intervals although
nothing differs. The noise is therefore estimated between measurements of the same case, from three sources:

* repeats within a side: A/A pairs of a run, and several runs of the same thing;
* the spread of the ratios of all cases about their median, where most cases did not change;
* the own interval of each measurement, which is added to either.

Variances differ from case to case. They are modelled as in G. Smyth, "Linear models and empirical Bayes methods for
assessing differential expression in microarray experiments", Stat. Appl. Genet. Mol. Biol. 3(1), 2004: case i has a
variance of v_i d0 / chi2(d0), so that one difference follows Student's t with d0 degrees of freedom (a small d0: heavy
tails), and a case that was repeated has a moderated variance between its own and that of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRIOR_SCALE, PRIOR_SCALE_SPREAD = 0.03, 1.5
"""Belief about the scale before anything is seen: 3 %, times or divided by e^1.5. Between calm and restless machines
that this was developed on lie 0.9 to 10 %."""
PRIOR_FREEDOM, PRIOR_FREEDOM_SPREAD = 3.5, 0.6
"""Belief about the degrees of freedom: 3.5, times or divided by 1.8. Heavy tails, since taking them for light ones
calls the restless cases of a machine changed."""
FEWEST_RATIOS = 8
"""Fewer cases have no spread and no common shift worth the name."""
_STEPS, _NARROWER, _PRECISION, _MOST_STEPS = 2, 0.6, 0.002, 60
_BOUNDS = ((math.log(1e-6), math.log(3.0)), (0.0, math.log(200.0)))


@dataclass(frozen=True)
class Noise:
    """How far two measurements of the same thing differ, as natural logarithms (about relative differences).

    Attributes:
        scale: of one measurement: the difference of two is ``sqrt(2) scale`` times Student's t.
        freedom: degrees of freedom of that t.
        repeats: repeated measurements (those beyond the first of each case and side) that it rests on.
        ratios: cases whose spread about the common shift it rests on; 0: none.
        within: the scale by repeats alone; NaN without any.
        spread: the scale by the spread of the ratios alone; NaN where it was not used.
        source: ``"repeated runs"``, ``"A/A pairs"``, ``"spread of the ratios"`` or ``"assumed"``: what decided.
    """

    scale: float
    freedom: float
    repeats: int
    ratios: int
    within: float
    spread: float
    source: str

    @property
    def twentieth(self) -> float:
        """What one of twenty pairs of equal measurements differs by at least, as a share."""
        return math.expm1(min(math.sqrt(2) * self.scale * quantile(0.975, self.freedom), 700.0))


@lru_cache(maxsize=4096)
def quantile(share: float, freedom: float) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def fit(sums: NDArray[np.float64], freedoms: NDArray[np.float64], own: NDArray[np.float64]) -> tuple[float, float]:
    """Scale and degrees of freedom from repeated measurements.

    The most probable pair: the likelihood of the sums of squares (a scaled F distribution each) times the priors
    above, which matter where there are few repeats.

    Args:
        sums: shape (n,), sum of squared deviations from its mean of each case that was repeated.
        freedoms: shape (n,), degrees of freedom of each sum: measurements less means.
        own: shape (n,), variance of a measurement within itself, from its interval.

    Returns:
        ``scale`` (without the own part) and ``d0``.
    """
    from scipy.special import gammaln

    def scale_of(log_quartile: float, log_freedom: float) -> float:
        # The quartile of a difference is known far better than scale and freedom, which trade against each other.
        return math.exp(log_quartile) / quantile(0.75, round(math.exp(log_freedom), 3))

    def cost(log_quartile: float, log_freedom: float) -> float:
        scale, d0 = scale_of(log_quartile, log_freedom), math.exp(log_freedom)
        variance = scale**2 + own
        total = (kinds + d0) / 2
        likelihood = d0 / 2 * np.log(variance * d0) - (freedoms + d0) / 2 * np.log(sums + d0 * variance)
        constant = float(np.sum(counts * (gammaln(total) - float(gammaln(d0 / 2)))))
        prior = ((math.log(scale / PRIOR_SCALE)) / PRIOR_SCALE_SPREAD) ** 2
        prior += ((log_freedom - math.log(PRIOR_FREEDOM)) / PRIOR_FREEDOM_SPREAD) ** 2
        return prior / 2 - float(np.sum(likelihood)) - constant

    kinds, counts = np.unique(freedoms, return_counts=True)
    # A grid that narrows down: sure and quick enough for two numbers, and nothing to import.
    middle, half = [sum(b) / 2 for b in _BOUNDS], [(b[1] - b[0]) / 2 for b in _BOUNDS]
    for _ in range(_MOST_STEPS):
        tried = [
            [min(max(m + h * i / _STEPS, b[0]), b[1]) for i in range(-_STEPS, _STEPS + 1)]
            for m, h, b in zip(middle, half, _BOUNDS, strict=True)
        ]
        best = list(min((cost(x, y), x, y) for x in tried[0] for y in tried[1])[1:])
        # Where the best lies at the edge of what was tried, the next look is as wide; else it is narrower.
        inside = [abs(new - old) < h * 0.99 for new, old, h in zip(best, middle, half, strict=True)]
        middle, half = best, [h * _NARROWER if i else h for h, i in zip(half, inside, strict=True)]
        if max(half) < _PRECISION:
            break
    return scale_of(*middle), math.exp(middle[1])


def core_scale(values: NDArray[np.float64], freedom: float) -> float:
    """The scale of most of the values, whatever the rest does.

    The shortest interval that holds half of them (P. Rousseeuw, "Least median of squares regression", JASA 79(388),
    1984, with its correction for small samples): it lies among the unchanged cases as long as these are most, and
    changes to one side only widen it little.

    Args:
        values: shape (n,), at least two.
        freedom: of Student's t that they follow.
    """
    ordered = np.sort(values)
    n = len(ordered)
    held = n // 2 + 1
    width = float(np.min(ordered[held - 1 :] - ordered[: n - held + 1]))
    return width / (2 * quantile(0.75, freedom)) * (1 + 5 / (n - 1))


def estimate(
    sums: Sequence[float] | NDArray[np.float64],
    freedoms: Sequence[float] | NDArray[np.float64],
    own: Sequence[float] | NDArray[np.float64],
    *,
    ratios: NDArray[np.float64],
    ratios_own: NDArray[np.float64],
    several_runs: bool,
) -> Noise:
    """The noise of a comparison.

    Where both sides were run several times, the repeats hold everything that changes from run to run, and decide.
    A/A pairs of single runs do not (they share a process and its memory): there the larger of the two scales is taken,
    theirs and that of the ratios.

    Args:
        sums, freedoms, own: of the repeats, see :func:`fit`.
        ratios: shape (n,), log ratios less their shift, as if of two single measurements; empty where ratios say
            nothing of noise (other devices, few cases).
        ratios_own: shape (n,), variance of each that its own intervals explain.
        several_runs: whether both sides were run more than once.
    """
    repeated = np.asarray(freedoms, dtype=np.float64)
    count = int(repeated.sum())
    scale, freedom = fit(np.asarray(sums, dtype=np.float64), repeated, np.asarray(own, dtype=np.float64))
    within = scale if count else math.nan
    if several_runs and count:
        return Noise(scale, freedom, count, 0, within, math.nan, "repeated runs")
    if len(ratios) < FEWEST_RATIOS:
        return Noise(scale, freedom, count, 0, within, math.nan, "A/A pairs" if count else "assumed")
    total = core_scale(ratios, freedom) ** 2 - float(np.median(ratios_own))
    spread = math.sqrt(max(total, 0.0) / 2)
    if count and within >= spread:
        return Noise(within, freedom, count, len(ratios), within, spread, "A/A pairs")
    return Noise(max(spread, math.exp(_BOUNDS[0][0])), freedom, count, len(ratios), within, spread,
                 "spread of the ratios")  # fmt: skip
