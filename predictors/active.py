"""Active sampling: which cases to measure next, so that few of them teach what all of them would.

A Gaussian process (:mod:`wattline.predictors.surrogate`) over the features of the physics encoder stands for the
predictor, one for each family of operations. A batch is chosen row by row: the next one is that whose measurement takes
most variance off a random part of all candidates, given what is measured and what the batch already holds (D. Cohn,
Z. Ghahramani, M. Jordan, "Active learning with statistical models", JAIR 4, 1996, for Gaussian processes as in
S. Seo et al., "Gaussian process regression: active data selection and test point rejection", IJCNN 2000), for each
second that it is expected to cost.

A part of every batch is drawn at random, from one order that the seed fixes. The rows of that order that are measured
are a fair sample of all candidates, which those chosen for what they teach are not; so the error is judged on them
alone, each predicted without the rows of its own shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec, known_devices
from wattline.errors import DataError, ParamError, unknown_name
from wattline.predictors.base import Base, Curve, launch_floor
from wattline.predictors.families import family_of
from wattline.predictors.physics import Machine, many
from wattline.predictors.rows import Encoder
from wattline.predictors.surrogate import Surrogate
from wattline.predictors.table import Block, blocks_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Positions = NDArray[np.int64]

FEWEST_JUDGED = 16
"""Rows drawn at random below which no error is told."""
CONFIDENCE = 0.9
RANDOM_SHARE = 0.3
"""Of every batch: what it costs to know the error."""
MOST_LEARNED = 2000
"""Rows that one process learns, as its time grows with their cube."""
_POOL, _REFERENCE = 1500, 800
_LEAST = 3
"""Rows of a family below which nothing is learned of it."""
_TINY = 1e-12


@dataclass(frozen=True)
class HeldOut:
    """The error on rows that were not chosen for what they teach, each predicted without its own shape.

    Attributes:
        rows: measured rows that the process had learned.
        judged: rows that the error is the mean of.
        error: mean of ``|predicted / measured - 1|``.
        upper: what the error on all candidates is below, with a probability of :data:`CONFIDENCE`.
        median: median of the same errors.
    """

    rows: int
    judged: int
    error: float
    upper: float
    median: float

    def __str__(self) -> str:
        below = f"below {self.upper:.1%} at {CONFIDENCE:.0%} confidence"
        return f"mean error {self.error:.1%} ({below}, {self.judged} rows judged) after {self.rows} rows"


@dataclass
class _Part:
    """The candidates of one family: their positions, features, log of base, and group."""

    rows: Positions
    x: Array
    base: Array


class Sampler:
    """Chooses rows of a table of candidates; equal arguments give equal choices, however the rows were measured.

    Args:
        X: candidates, as :meth:`wattline.predictors.KernelPredictor.fit` takes them.
        devices: specifications by id, beyond the known ones.
        groups: a label per row; rows of one group never judge a process that learned another of it. Default: rows of
            equal operation and numeric parameters form a group.
        seed: of the random order, and of the parts of the candidates that are looked at.

    Raises:
        DataError: no candidates, or groups of another length.
        ParamError, UnknownNameError: candidates that no predictor could learn either.
        UnsupportedError: a device has no rate for a format.
    """

    def __init__(
        self, X: pd.DataFrame, devices: Mapping[str, DeviceSpec] | None = None, *, groups: Any = None, seed: int = 0
    ) -> None:
        blocks = blocks_of(X)
        if not blocks:
            raise DataError("there is no candidate to choose from", todo="widen the selection")
        self.count = len(X)
        self.seed = seed
        self.groups = _codes(X, groups)
        self.order: Positions = np.random.default_rng(seed).permutation(self.count)
        self._parts = _parts(blocks, devices or {})
        self._last: dict[int, tuple[bytes, Surrogate]] = {}  # by family: what it learned, and the process

    def next(
        self, measured: Sequence[int], times_s: Any, count: int, *, walls_s: Any = None, lost: Sequence[int] = ()
    ) -> Positions:
        """The rows to measure next, in the order to measure them.

        Args:
            measured: positions of the rows that are measured.
            times_s: their times ``(n,)``.
            count: rows of the batch; fewer where fewer are left.
            walls_s: seconds that measuring them took ``(n,)``; not given: every row costs the same.
            lost: positions that were tried and gave no time; they are not proposed again.

        Raises:
            ParamError: a count below 1.
            DataError: positions that are no candidates, or times that are not above zero.
        """
        if count < 1:
            raise ParamError(f"a batch holds at least one row, not {count}")
        times = self._checked(measured, times_s)
        done = np.zeros(self.count, bool)
        done[np.asarray(measured, np.int64)] = True
        done[np.asarray(lost, np.int64)] = True
        left = self.order[~done[self.order]]
        # The first batch has nothing to go by but the features: half of it is spread, half of it drawn.
        drawn = left[: max(1, round(RANDOM_SHARE * count)) if len(times) else max(1, count // 2)]
        done[drawn] = True
        wanted = min(count - len(drawn), len(left) - len(drawn))
        if wanted < 1:
            return drawn[:count]
        known = dict(zip(map(int, measured), times, strict=True))
        found: list[tuple[float, int]] = []
        price = _price(times, None if walls_s is None else np.asarray(walls_s, np.float64))
        rng = np.random.default_rng([self.seed, len(times), len(lost)])
        for part in self._parts:
            found += self._best(part, known, ~done[part.rows], wanted, price=price, rng=rng)
        # Within a family each gain counts what was chosen before it: never rising, but for the price of a row.
        found.sort(key=lambda each: -each[0])
        return np.concatenate([drawn, np.array([row for _, row in found[:wanted]], np.int64)])

    def held_out(self, measured: Sequence[int], times_s: Any, *, lost: Sequence[int] = ()) -> HeldOut | None:
        """The present error; ``None`` below :data:`FEWEST_JUDGED` rows that can be judged.

        Args:
            measured, times_s, lost: as :meth:`next` takes them.
        """
        times = self._checked(measured, times_s)
        known = dict(zip(map(int, measured), times, strict=True))
        judged = self.judged(measured, lost)
        if len(judged) < FEWEST_JUDGED:
            return None
        errors = np.full(self.count, np.nan)
        for part in self._parts:
            surrogate, own, target = self._learned(part, known)
            rows = part.rows[own]
            if len(rows) < _LEAST:  # nothing was learned: the physical base is the prediction
                errors[rows] = np.abs(np.expm1(-target))
                continue
            errors[rows] = np.abs(np.expm1(-surrogate.left_out(self.groups[rows])))
        judged = judged[np.isfinite(errors[judged])]  # all, but for what was beyond the most that are learned
        return HeldOut(len(times), len(judged), *interval(errors[judged], self.groups[judged]))

    def predict(self, measured: Sequence[int], times_s: Any) -> Array:
        """The seconds that the sampler's own process expects of every candidate ``(count,)``.

        Args:
            measured, times_s: as :meth:`next` takes them.
        """
        times = self._checked(measured, times_s)
        known = dict(zip(map(int, measured), times, strict=True))
        out = np.empty(self.count)
        for part in self._parts:
            surrogate, own, _ = self._learned(part, known)
            # Of too few rows nothing is learned: the physical base is the prediction.
            out[part.rows] = np.exp(part.base + (surrogate.predict(part.x) if len(own) >= _LEAST else 0.0))
        return out

    def judged(self, measured: Sequence[int], lost: Sequence[int] = ()) -> Positions:
        """The measured rows that are a fair sample of the candidates: as far as the random order has been followed."""
        state = np.zeros(self.count, np.int8)
        state[np.asarray(measured, np.int64)] = 1
        state[np.asarray(lost, np.int64)] = 2
        ordered = state[self.order]
        open_ = np.flatnonzero(ordered == 0)
        end = open_[0] if len(open_) else self.count
        return np.asarray(self.order[:end][ordered[:end] == 1], np.int64)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _checked(self, measured: Sequence[int], times_s: Any) -> Array:
        times = np.asarray(times_s, np.float64)
        rows = np.asarray(measured, np.int64)
        if len(times) != len(rows):
            raise DataError(f"{len(rows)} measured rows and {len(times)} times")
        if len(rows) and (rows.min() < 0 or rows.max() >= self.count):
            raise DataError(f"a measured row is none of the {self.count} candidates")
        if not (np.isfinite(times).all() and (times > 0).all()):
            raise DataError("times must be above zero", todo="pass rows without a time as lost")
        return times

    def _learned(self, part: _Part, known: Mapping[int, float]) -> tuple[Surrogate, Positions, Array]:
        """The process of one family, the places within it that are measured, and their targets."""
        own = np.array([i for i, row in enumerate(part.rows) if int(row) in known], np.int64)
        if len(own) > MOST_LEARNED:
            own = np.sort(np.random.default_rng([self.seed, len(own)]).permutation(own)[:MOST_LEARNED])
        target = np.log([known[int(row)] for row in part.rows[own]]) - part.base[own]
        if len(own) < _LEAST:
            return Surrogate(Surrogate.usual(part.x.shape[1])), own, target
        rows, same = int(part.rows[0]), own.tobytes() + target.tobytes()
        if self._last.get(rows, (b"",))[0] != same:  # the error and the next batch are asked of the same rows
            self._last[rows] = same, Surrogate.fit(part.x[own], target, seed=self.seed)
        return self._last[rows][1], own, target

    def _best(
        self, part: _Part, known: Mapping[int, float], free: NDArray[np.bool_], wanted: int, *,
        price: Callable[[Array], Array], rng: np.random.Generator,
    ) -> list[tuple[float, int]]:  # fmt: skip
        """Gain and position of the rows of one family that teach most, in the order of choice."""
        pool = rng.permutation(np.flatnonzero(free))[:_POOL]
        if not len(pool):
            return []
        reference = rng.permutation(len(part.rows))[:_REFERENCE]
        surrogate, own, target = self._learned(part, known)
        expected = part.base[pool]
        weight = np.full(len(reference), len(part.rows) / len(reference))
        if len(own) >= _LEAST:
            expected = expected + surrogate.predict(part.x[pool])
            weight *= surrogate.scale**2
        elif len(own):
            expected = expected + target.mean()
        gains = _greedy(
            surrogate, part.x[pool], part.x[reference], weight, cost=price(np.exp(expected)), wanted=wanted
        )
        return [(gain, int(part.rows[pool[i]])) for gain, i in gains]


def _greedy(
    surrogate: Surrogate, pool: Array, reference: Array, weight: Array, *, cost: Array, wanted: int
) -> list[tuple[float, int]]:
    """Rows of the pool, one after the other, that take most variance off the reference for each second."""
    inner, outer = surrogate.whitened(pool), surrogate.whitened(reference)
    shared = surrogate.kernel(reference, pool) - outer.T @ inner
    variance = np.maximum(surrogate.prior_variance(pool) - (inner**2).sum(axis=0), _TINY)
    taken = np.zeros(len(pool), bool)
    steps: list[Array] = []
    out = []
    for _ in range(min(wanted, len(pool))):
        gain = (weight @ shared**2) / (variance + surrogate.noise) / cost
        gain[taken] = -1.0
        best = int(gain.argmax())
        out.append((float(gain[best]), best))
        taken[best] = True
        # Conditioning on one more row is one step of a Cholesky factorisation.
        column = surrogate.kernel(pool, pool[best : best + 1])[:, 0] - inner.T @ inner[:, best]
        for step in steps:
            column -= step * step[best]
        root = float(np.sqrt(variance[best] + surrogate.noise))
        step = column / root
        steps.append(step)
        shared -= np.outer(shared[:, best] / root, step)
        variance = np.maximum(variance - step**2, _TINY)
    return out


def _price(times: Array, walls: Array | None) -> Callable[[Array], Array]:
    """Seconds that measuring a row takes, from its expected time: ``fixed + factor * time``, both from 0."""
    if walls is None or len(walls) < 4:
        return np.ones_like
    from scipy.optimize import nnls

    design = np.stack([np.ones_like(times), times], axis=1)
    weights = 1.0 / np.maximum(walls, 1e-3)
    (fixed, factor), _ = nnls(design * weights[:, None], walls * weights)
    least = max(0.1 * float(np.median(walls)), 1e-3)
    return lambda expected: np.maximum(fixed + factor * expected, least)


def interval(errors: Array, groups: NDArray[Any]) -> tuple[float, float, float]:
    """Mean error, the one-sided upper end of its interval (Student's t over the means of groups), and the median."""
    from scipy.stats import t as student

    error, median = float(errors.mean()), float(np.median(errors))
    _, codes = np.unique(groups, return_inverse=True)
    count = int(codes.max()) + 1
    if count < 2:
        return error, float("inf"), median
    # Rows of one group err alike: the spread is that of the groups' summed deviations (cluster-robust).
    deviations = np.bincount(codes, weights=errors - error, minlength=count)
    spread = float(np.sqrt(count / (count - 1) * (deviations**2).sum())) / len(errors)
    return error, error + float(student.ppf(CONFIDENCE, count - 1)) * spread, median


def _codes(X: pd.DataFrame, groups: Any) -> NDArray[np.int64]:
    from wattline.predictors.datasets import shape_groups

    labels = np.asarray(shape_groups(X) if groups is None else groups)
    if len(labels) != len(X):
        raise DataError(f"groups has {len(labels)} entries and X {len(X)} rows")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _parts(blocks: Sequence[Block], devices: Mapping[str, DeviceSpec]) -> list[_Part]:
    """The candidates by family, encoded and standardised."""
    by_family: dict[str, list[Block]] = {}
    for block in blocks:
        by_family.setdefault(family_of(block.words.op).name, []).append(block)
    out = []
    for own in by_family.values():
        family = family_of(own[0].words.op)
        categories = sorted({pair for block in own for pair in block.words.categories()})
        extras = {name: 0.0 for block in own for name in block.numbers if name not in family.params}
        features, bases = [], []
        for block in own:
            spec = devices.get(block.words.device) or known_devices().get(block.words.device)
            if spec is None:
                raise unknown_name("device", block.words.device, {*devices, *known_devices()})
            floor = Curve((0.0,), (launch_floor(spec),), (1.0,))
            encoder = Encoder(family, Base({"*": floor}), extras, categories)
            plan = encoder.plan(block.words, Machine(spec))
            physics = encoder.physics(plan, block.numbers, many(), many=True)
            features.append(encoder.matrix(plan, physics.features, len(block.rows)))
            bases.append(np.broadcast_to(np.log(np.asarray(physics.base, np.float64)), len(block.rows)))
        x = np.concatenate(features)
        varies = x.std(axis=0) > 1e-9
        x = x[:, varies] if varies.any() else np.zeros((len(x), 1))
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
        out.append(_Part(np.concatenate([b.rows for b in own]), x, np.concatenate(bases)))
    return out
