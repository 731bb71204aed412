"""Rows as numbers: the plan that a set of words gives, and the features that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.predictors.base import Base, Curve
from wattline.predictors.families import Family
from wattline.predictors.physics import TINY, WARM_REGIMES, Machine, Terms, terms_of
from wattline.predictors.table import Words, complete
from wattline.workmodels import WorkModel, work_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TRUTH = {"true": True, "false": False}
"""What the words of a truth value mean to a work model."""
BASE_NAMES = ("log_floor_share", "floor_share", "log_base")
"""Features that every family ends with: how much of the base is launch floor, and the base itself."""


def kernel_of(words: Words) -> str:
    """Name of a kernel on a device, whatever the regime."""
    return f"{words.device}|{words.impl}|{words.dtype}"


@dataclass
class Plan:
    """Everything that the words of a row decide, worked out once.

    Attributes:
        words: the words.
        machine: the device.
        model: the work model.
        fixed: text parameters of the work model.
        warm: inputs may lie in the cache.
        curve: launch floor, or latency and share of the link.
        hot: one-hot part of the features ``(c,)``.
        unseen: columns whose word no training row had.
    """

    words: Words
    machine: Machine
    model: WorkModel
    fixed: dict[str, Any]
    warm: bool
    curve: Curve
    hot: Array
    unseen: tuple[str, ...]


Grounds = tuple[dict[str, Any], dict[str, Any], dict[str, Any], Terms, Any, list[Any]]
"""Parameters of the family, others, those of them that every row has, terms, busy seconds, the family's features."""


@dataclass
class Physics:
    """The analytical figures of rows: terms, base, numeric features, and octaves outside the trained ranges.

    ``busy`` holds the seconds ``passed`` that passes over the activations take.
    """

    terms: Terms
    busy: Any
    alpha: Any
    base: Any
    features: list[Any]
    outside: Any
    passed: Any = 0.0


class Encoder:
    """Turns rows of one family into features.

    Attributes:
        family: the family.
        base: its curves.
        extras: numeric parameters beyond the family's, with the value that stands in where absent.
        categories: (column, word) of each one-hot feature, in order.
        details: figures of the work model, beyond FLOPs and bytes, that varied in the training rows.
        ranges: smallest and largest trained value of each numeric parameter.
        twins: device and implementation that a kernel (``device|impl|dtype``) of which few rows are known is taken to
            be like.
    """

    def __init__(
        self, family: Family, base: Base, extras: Mapping[str, float], categories: Sequence[tuple[str, str]]
    ) -> None:
        self.family, self.base, self.extras = family, base, dict(extras)
        self.categories = list(categories)
        self.ranges = {}
        self.details: tuple[str, ...] = ()
        self.twins: dict[str, tuple[str, str]] = {}
        self._index = {pair: i for i, pair in enumerate(self.categories)}

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest trained value by parameter; set as a whole."""
        return self._ranges

    @ranges.setter
    def ranges(self, found: Mapping[str, tuple[float, float]]) -> None:
        self._ranges = dict(found)
        self._octaves = [(name, math.log2(1 + lo), math.log2(1 + hi)) for name, (lo, hi) in found.items()]

    @property
    def names(self) -> list[str]:
        """Names of all features, in order."""
        words = [f"{column}={word}" for column, word in self.categories]
        own = [f"log_{name}" for name in (*self.extras, *self.details)]
        return [*self.family.names, *BASE_NAMES, *own, *words]

    @property
    def numeric(self) -> int:
        """How many features are not one-hot."""
        return len(self.family.names) + len(BASE_NAMES) + len(self.extras) + len(self.details)

    @property
    def collective(self) -> bool:
        """Whether latency and bandwidth are looked up by number of ranks."""
        return self.family.name == "collectives"

    def twin(self, words: Words) -> tuple[str, str] | None:
        """Device and implementation that a kernel is taken to be like, or ``None``."""
        return self.twins.get(kernel_of(words))

    def plan(self, words: Words, machine: Machine) -> Plan:
        """The plan of one set of words."""
        hot = np.zeros(len(self.categories))
        unseen = []
        twin = self.twin(words)
        like = {"device": twin[0], "impl": twin[1]} if twin else {}
        for column, word in words.categories():
            if (column, word) not in self._index:
                unseen.append(column)
            index = self._index.get((column, like.get(column, word)))
            if index is not None:
                hot[index] = 1.0
        seen = {column for column, _ in self.categories}
        # A word that every training row had and this one lacks is just as new.
        unseen += [c for c in seen - {column for column, _ in words.categories()} if c not in ("regime", "data")]
        fixed: dict[str, Any] = {k: TRUTH.get(v, v) for k, v in words.others}
        return Plan(
            words=words,
            machine=machine,
            model=work_model(words.op),
            fixed={**fixed, "dtype": words.dtype},
            warm=words.regime in WARM_REGIMES,
            curve=self.base.find(self.collective, words),
            hot=hot,
            unseen=tuple(dict.fromkeys(unseen)),
        )

    def grounds(self, plan: Plan, numbers: Mapping[str, Any], xp: Any, *, many: bool) -> Grounds:
        """What of :meth:`physics` follows from rows and machine alone, whatever was learned; arguments as there."""
        given = complete(numbers, self.family.params, plan.words.op, many=many)
        rest = {k: v for k, v in numbers.items() if k not in given}
        whole = {k: v for k, v in rest.items() if not np.isnan(v).any()}
        terms = terms_of(plan.model, {**whole, **given, **plan.fixed}, plan.machine, plan.warm, xp)
        return given, rest, whole, terms, *self.family.features(given, terms, plan.machine, xp)

    def physics(
        self, plan: Plan, numbers: Mapping[str, Any], xp: Any, *, many: bool, grounds: Grounds | None = None
    ) -> Physics:
        """The analytical figures and numeric features.

        Args:
            plan: what the words decide.
            numbers: numeric parameters: floats, or arrays of one shape.
            xp: the namespace of functions.
            many: whether the numbers are arrays.
            grounds: those of these rows, where they are known already.
        """
        given, rest, whole, terms, busy, own = grounds or self.grounds(plan, numbers, xp, many=many)
        position = xp.log2(given["world_size"]) if self.collective else 0.0
        alpha, beta, extra = plan.curve(position)
        sharp, passes = plan.curve.sharp, plan.curve.passes
        passed: Any = 0.0
        if passes and self.family.streamed:
            passed = passes * self.family.streamed(given, plan.machine)
            busy = busy + passed
        linked = beta * busy
        base = alpha + linked + extra * linked / (linked + extra + TINY)
        if sharp != 1.0:
            base = (alpha**sharp + linked**sharp) ** (1.0 / sharp)
        share = alpha / base
        features = [*own, xp.log2(share), share, xp.log2(base)]
        for name, stand_in in self.extras.items():
            value = rest.get(name, stand_in)
            value = np.where(np.isnan(value), stand_in, value) if many else stand_in if math.isnan(value) else value
            features.append(xp.log2(1.0 + abs(value)))
        features += [xp.log2(1.0 + abs(terms.details.get(name, 0.0))) for name in self.details]
        outside: Any = 0.0
        for name, lo, hi in self._octaves:
            value = given[name] if name in given else whole.get(name)
            if value is not None:
                octave = xp.log2(1.0 + abs(value))
                outside = xp.most(outside, xp.most(octave - hi, lo - octave))
        return Physics(terms, busy, alpha, base, features, xp.where(outside > 1e-9, outside, 0.0), passed)

    def matrix(self, plan: Plan, features: list[Any], n: int) -> Array:
        """Features of ``n`` rows as a matrix ``(n, d)``, one-hot part included; each column lies together in memory."""
        out = np.empty((self.numeric + len(plan.hot), n)).T
        for i, column in enumerate(features):
            out[:, i] = column
        out[:, self.numeric :] = plan.hot
        return out

    def state(self) -> dict[str, Any]:
        """Plain facts."""
        categories = [list(c) for c in self.categories]
        ranges = {k: list(v) for k, v in self.ranges.items()}
        return {"base": self.base.state(), "extras": self.extras, "categories": categories, "ranges": ranges,
                "details": list(self.details), "twins": {k: list(v) for k, v in self.twins.items()}}  # fmt: skip

    @classmethod
    def from_state(cls, family: Family, facts: Mapping[str, Any]) -> Encoder:
        """From :meth:`state`."""
        categories = [(str(a), str(b)) for a, b in facts["categories"]]
        out = cls(family, Base.from_state(facts["base"]), facts["extras"], categories)
        out.details = tuple(str(name) for name in facts.get("details", ()))
        out.ranges = {k: (float(lo), float(hi)) for k, (lo, hi) in facts["ranges"].items()}
        out.twins = {k: (str(device), str(impl)) for k, (device, impl) in facts.get("twins", {}).items()}
        return out
