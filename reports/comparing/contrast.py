"""One quantity of two sides: its noise, the shift that all cases share, and the verdict on each case."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from wattline.reports.comparing import judging
from wattline.reports.comparing.judging import Verdict
from wattline.reports.comparing.location import ENOUGH, TRIM, Located, located
from wattline.reports.comparing.noise import FEWEST_RATIOS, Noise, core_scale, estimate, fit, quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wattline.reports.comparing.reading import Reading

_MEDIAN = math.sqrt(math.pi / 2)
"""Standard error of a median, in those of a mean."""


@dataclass(frozen=True)
class Change:
    """How one quantity of one case changed.

    Attributes:
        a, b: values of both sides, in SI units: the geometric mean of their readings (see :mod:`.location`).
        ratio: b / a as measured.
        change: the log ratio less the shift that was taken off.
        error, freedom: standard error of ``change`` and its degrees of freedom.
        shared: the part of its variance that is the same error in every case, and averages out over none of them.
        readings: number of readings of each side.
        verdict: what can be said.
    """

    a: float
    b: float
    ratio: float
    change: float
    error: float
    freedom: float
    shared: float
    readings: tuple[int, int]
    verdict: Verdict

    @property
    def share(self) -> float:
        """``change`` as a share: 0.03 is 3 % more."""
        return math.expm1(self.change)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval of :attr:`share`."""
        return math.expm1(self.verdict.lo), math.expm1(min(self.verdict.hi, 700.0))


@dataclass(frozen=True)
class Shift:
    """What all cases changed by together.

    Attributes:
        value: the median log ratio; 0 where none was sought.
        error, freedom: of its value being a change between the sides rather than between runs.
        statistical: standard error of the median among the cases alone.
        word: verdict, as of :mod:`judging`; empty where no shift was sought.
        lo, hi: its interval.
        removed: whether it was taken off every case. That is for a shift that the noise of whole runs explains.
        beyond: whether it is larger, and beyond the margin: then it is a change, and cases are judged as measured, each
            with the noise of whole runs.
        why_not: why none was sought; empty where it was.
    """

    value: float = 0.0
    error: float = math.nan
    freedom: float = math.nan
    statistical: float = 0.0
    word: str = ""
    lo: float = math.nan
    hi: float = math.nan
    removed: bool = False
    beyond: bool = False
    why_not: str = ""

    @property
    def share(self) -> float:
        """As a share: 0.03 is 3 % more."""
        return math.expm1(self.value)


@dataclass(frozen=True)
class Contrast:
    """Everything about one quantity.

    Attributes:
        noise: how far equal measurements differ.
        shift: what all cases share.
        changes: by key of the case.
        aa_pairs: A/A pairs within the runs; of these :attr:`aa_apart` lie outside of each other's intervals, and
            :attr:`aa_told` differ by the test that the cases are put to (each for itself).
    """

    noise: Noise
    shift: Shift
    changes: Mapping[str, Change]
    aa_pairs: int = 0
    aa_apart: int = 0
    aa_told: int = 0


Readings = Mapping[str, "Sequence[Reading]"]


def contrast(
    a: Readings,
    b: Readings,
    keys: Sequence[str],
    *,
    runs: tuple[int, int],
    same_machine: bool,
    margin: float,
    confidence: float,
) -> Contrast:
    """Compare the readings of two sides.

    Args:
        a, b: readings of all cases of each side; those of one side only still tell of the noise.
        keys: the cases that are compared.
        runs: number of runs of each side.
        same_machine: whether the ratios of most cases are expected to be equal.
        margin: what counts as the same, as a share.
        confidence: of verdicts and intervals.
    """
    sides = [Leveled(a, runs[0]), Leveled(b, runs[1])]
    several = min(runs) > 1
    # A case is trimmed on both sides or on neither: what is left of trimmed readings is steadier than one alone.
    trimmed = {k for k in keys if min(runs) >= ENOUGH and all(len(side.logs[k]) >= ENOUGH for side in sides)}
    for side in sides:
        side.trim(trimmed)
    d, c, own_a, own_b, systematic = _ratios(sides, keys)
    enough = same_machine and len(keys) >= FEWEST_RATIOS
    centre = float(np.median(d)) if enough else 0.0
    usual = np.sqrt(2 / c) if len(keys) else c
    noise = estimate(
        *repeats(sides), several_runs=several, ratios=(d - centre) * usual if enough else np.empty(0),
        ratios_own=(own_a + own_b) * usual**2 if enough else np.empty(0),
    )  # fmt: skip
    plain = noise.scale, noise.freedom
    steadier = fit(*repeats(sides, trimmed)) if trimmed else plain
    margin_log = math.log1p(margin)
    shift = _shift(d, noise, sides, several, margin_log, confidence) if enough else _no_shift(same_machine)
    values = d - (shift.value if shift.removed else 0.0)
    errors, degrees, shared = (np.empty(len(keys)) for _ in range(3))
    for i, key in enumerate(keys):
        # A/A pairs of single runs say nothing of what differs from run to run: only repeated runs moderate.
        found = [side.found[key] for side in sides]
        scale, freedom = steadier if key in trimmed else plain
        total, count = (sum(f.squares for f in found), sum(f.held - 1 for f in found)) if max(runs) > 1 else (0.0, 0)
        readings = [side.readings[key] for side in sides]
        typical = scale**2 + sum(sum(r.own**2 for r in rs) for rs in readings) / sum(map(len, readings))
        variance = (freedom * typical + total) / (freedom + count)
        # A case's own intervals hold at any rate.
        shared[i] = _shared(shift, same_machine, systematic[i])
        errors[i] = math.sqrt(max(variance * c[i], own_a[i] + own_b[i]) + shared[i])
        degrees[i] = min(freedom + count, shift.freedom if shift.beyond else 1e6)
    verdicts = judging.judge(values, errors, degrees, margin=margin_log, confidence=confidence)
    changes = {}
    for i, key in enumerate(keys):
        first, second = (math.exp(side.found[key].mean) for side in sides)
        changes[key] = Change(
            first, second, math.exp(min(float(d[i]), 700.0)), float(values[i]), float(errors[i]),
            float(degrees[i]), float(shared[i]), (len(sides[0].readings[key]), len(sides[1].readings[key])),
            verdicts[i],
        )  # fmt: skip
    return Contrast(noise, shift, changes, *_aa(sides, noise, confidence))


def _shared(shift: Shift, same_machine: bool, systematic: float) -> float:
    """Variance beyond that between measurements: of the shift that was taken off, or of runs where none was."""
    if not same_machine:
        return float(systematic)
    return shift.statistical**2 if shift.removed else shift.error**2 if shift.beyond else 0.0


class Leveled:
    """The readings of a side as logarithms, less the level of the run that each comes from.

    Attributes:
        readings: by key.
        logs: by key, in the order of the readings.
        plain: by key, where the logarithms lie, with all of them.
        found: the same; of cases that :meth:`trim` was called for, without the outermost.
        levels: log level of each run about that of the side; zeros where they cannot be told from the cases.
    """

    def __init__(self, readings: Readings, runs: int) -> None:
        self.readings = {key: list(values) for key, values in readings.items() if values}
        self.logs = {key: [math.log(r.value) for r in values] for key, values in self.readings.items()}
        self.levels = np.zeros(runs)
        self.leveled = False
        if runs > 1:
            self._level(runs)
        self.plain: dict[str, Located] = {key: located(values, 0.0) for key, values in self.logs.items()}
        self.found = dict(self.plain)

    def _level(self, runs: int) -> None:
        """Median polish: a run's level is the median of what its readings exceed their case by."""
        everywhere = [k for k, values in self.readings.items() if len({r.run for r in values}) == runs]
        if len(everywhere) < FEWEST_RATIOS:
            return
        table = np.array([
            [np.mean([y for y, r in zip(self.logs[k], self.readings[k], strict=True) if r.run == run])
             for run in range(runs)]
            for k in everywhere
        ])  # fmt: skip
        for _ in range(3):
            rest = table - self.levels
            found = np.median(rest - rest.mean(axis=1, keepdims=True), axis=0)
            self.levels = self.levels + found - found.mean()
        self.leveled = True
        for key, values in self.readings.items():
            self.logs[key] = [y - self.levels[r.run] for y, r in zip(self.logs[key], values, strict=True)]

    def trim(self, keys: Collection[str]) -> None:
        """Leave out the outermost readings of some cases."""
        self.found |= {key: located(self.logs[key], TRIM) for key in keys}


def repeats(sides: Sequence[Leveled], trimmed: Collection[str] | None = None) -> tuple[NDArray[np.float64], ...]:
    """Sum of squares, degrees of freedom and own variance of each case of a side with several readings.

    Args:
        sides: the sides.
        trimmed: take these cases alone, trimmed; else all, with all of their readings.
    """
    rows = []
    for side in sides:
        for key, values in side.logs.items():
            if len(values) < 2 or (trimmed is not None and key not in trimmed):
                continue
            found = (side.plain if trimmed is None else side.found)[key]
            rows.append((found.squares, found.held - 1, sum(r.own**2 for r in side.readings[key]) / len(values)))
    return tuple(np.array(rows, dtype=np.float64).reshape(len(rows), 3).T)


def _ratios(sides: Sequence[Leveled], keys: Sequence[str]) -> tuple[NDArray[np.float64], ...]:
    """Log ratios, what one reading's variance counts in them, own variances of each side, systematic variance."""
    rows = []
    for key in keys:
        first, second = (side.readings[key] for side in sides)
        one, other = (side.found[key] for side in sides)
        rows.append((
            other.mean - one.mean,
            1 / one.held + 1 / other.held,
            sum(r.own**2 for r in first) / len(first) / one.held,
            sum(r.own**2 for r in second) / len(second) / other.held,
            first[0].systematic ** 2 + second[0].systematic ** 2,
        ))  # fmt: skip
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 5)
    return tuple(table.T)


def _shift(  # noqa: PLR0917 - what it rests on
    d: NDArray[np.float64],
    noise: Noise,
    sides: Sequence[Leveled],
    several: bool,
    margin: float,
    confidence: float,
) -> Shift:
    value = float(np.median(d))
    statistical = _MEDIAN * core_scale(d, noise.freedom) / math.sqrt(len(d))
    if several and all(side.leveled for side in sides):
        counts = [len(side.levels) for side in sides]
        freedom = float(sum(counts) - 2)
        between = sum(float(np.sum(side.levels**2)) for side in sides) / freedom
        variance = between * sum(1 / n for n in counts)
    else:
        # One run a side: nothing says how far whole runs differ. They are taken to drift as much as one measurement.
        freedom, variance = noise.freedom, 2 * noise.scale**2
    error = math.sqrt(variance + statistical**2)
    error = max(error, 1e-12)
    (found,) = judging.judge([value], [error], [freedom], margin=margin, confidence=confidence)
    beyond = found.word in (judging.MORE, judging.LESS)  # neither noise nor within the margin
    return Shift(value, error, freedom, statistical, found.word, found.lo, found.hi, not beyond, beyond)


def _no_shift(same_machine: bool) -> Shift:
    if not same_machine:
        return Shift(why_not="the sides are different machines: every case is judged as it was measured")
    return Shift(why_not=f"fewer than {FEWEST_RATIOS} cases have no shift that could be told from their own changes")


def _aa(sides: Sequence[Leveled], noise: Noise, confidence: float) -> tuple[int, int, int]:
    pairs = apart = told = 0
    reach = quantile(round(1 - (1 - confidence) / 2, 9), round(noise.freedom, 2))
    for side in sides:
        for values in side.readings.values():
            for one, other in combinations(values, 2):
                if one.run != other.run or {one.variant, other.variant} != {"a", "b"}:
                    continue
                pairs += 1
                apart += one.hi < other.lo or other.hi < one.lo
                error = math.sqrt(2 * noise.scale**2 + one.own**2 + other.own**2)
                told += abs(math.log(one.value / other.value)) > reach * error
    return pairs, apart, told
