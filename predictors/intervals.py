"""Prediction intervals from the errors made on groups left out.

Errors are log ratios. Each is divided by a local scale (what a ridge regression on the features expects the error to
be there), and the intervals are quantiles of those scaled errors (normalised split conformal prediction: Lei et al.,
JASA 113(523), 2018), taken per operation and format where there are enough rows. Because whole groups were left out,
the coverage holds for kernels of new groups, not merely for new rows of known ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.predictors.learners import Linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LEVELS = np.concatenate([np.linspace(0.0, 0.99, 100), [0.995, 0.999, 1.0]])
ENOUGH = 200
"""Rows that a class needs for quantiles of its own."""
ALL = "*"
_USUAL = 0.9
"""Coverage at which devices are held against each other."""
WIDEN = 0.6
"""By how much an interval widens with each octave outside the trained ranges."""


class Intervals:
    """Quantiles of scaled errors, by class of rows.

    Attributes:
        scale: log of the expected absolute error, as a function of standardised features.
        floor, ceiling: limits of that log scale.
        tables: for each class, the quantiles at :data:`LEVELS` and the number of rows.
    """

    def __init__(self, scale: Linear, floor: float, ceiling: float, tables: Mapping[str, tuple[Array, int]]) -> None:
        self.scale, self.floor, self.ceiling, self.tables = scale, float(floor), float(ceiling), dict(tables)

    @classmethod
    def fit(cls, x: Array, error: Array, classes: NDArray[Any] | None = None) -> Intervals:
        """From held-out errors.

        Args:
            x: standardised features ``(n, d)``.
            error: log(measured / predicted) ``(n,)`` on rows that the predicting model had not seen.
            classes: class of each row, or ``None``.
        """
        size = np.log(np.abs(error) + 1e-4)
        enough = len(error) >= 4 * x.shape[1]
        scale = Linear.fit(x, size, 0.03) if enough else Linear.constant(size, x.shape[1])
        floor, ceiling = np.quantile(size, [0.05, 0.98])
        own = cls(scale, floor, ceiling, {})
        score = np.abs(error) / own.width(x)
        own.tables[ALL] = cls._table(score)
        if classes is not None:
            for name in np.unique(classes):
                chosen = classes == name
                if ENOUGH <= chosen.sum() < len(score):
                    own.tables[str(name)] = cls._table(score[chosen])
        return own

    @classmethod
    def across(cls, x: Array, error: Array, devices: NDArray[Any]) -> Intervals:
        """From errors on devices that were left out, for one more device.

        Errors of one device are alike: however many rows there are, a new device is one more draw among a few. So the
        intervals are stretched until those of the other devices hold nine tenths of the errors of each, on average
        over the devices.

        Args:
            x, error: as of :meth:`fit`.
            devices: device of each row.
        """
        own = cls.fit(x, error)
        names, codes = np.unique(devices, return_inverse=True)
        if len(names) < 2:
            return own
        reach, weight = np.empty(len(error)), np.empty(len(error))
        for code in range(len(names)):
            mine = codes == code
            others = cls.fit(x[~mine], error[~mine])
            reach[mine] = np.abs(error[mine]) / (others.width(x[mine]) * others.factor(ALL, _USUAL))
            weight[mine] = 1.0 / mine.sum()
        order = np.argsort(reach, kind="stable")
        held = np.cumsum(weight[order]) / len(names)
        stretch = max(1.0, float(reach[order][np.searchsorted(held, _USUAL)]))
        own.tables = {name: (table * stretch, count) for name, (table, count) in own.tables.items()}
        return own

    @staticmethod
    def _table(score: Array) -> tuple[Array, int]:
        # `higher` never reads between two errors that were not made: conservative, as conformal quantiles are.
        return np.quantile(score, LEVELS, method="higher"), len(score)

    def width(self, x: Array) -> Array:
        """The local scale of the error, one per row."""
        return np.exp(np.clip(self.scale.predict(x), self.floor, self.ceiling))

    def width_of(self, product: float) -> float:
        """:meth:`width` of a single row, from the product of its features and the weights of :attr:`scale`."""
        return math.exp(min(max(product + self.scale.bias, self.floor), self.ceiling))

    def factor(self, name: str, coverage: float) -> float:
        """By what the local scale is multiplied to reach ``coverage`` for rows of class ``name``."""
        table, count = self.tables.get(name) or self.tables[ALL]
        level = coverage * (count + 1) / count
        found = float(np.interp(min(level, 1.0), LEVELS, table))
        # More coverage than the number of rows can certify: half as wide again for each tenfold rarer miss.
        return found if level <= 1 else found * (1 + 0.5 * np.log10(1 / max(1 - coverage, 1e-12)) / np.log10(count + 1))

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Plain facts and arrays."""
        facts = {"floor": self.floor, "ceiling": self.ceiling, "rows": {k: n for k, (_, n) in self.tables.items()}}
        arrays = {f"scale.{k}": v for k, v in self.scale.arrays().items()}
        return facts, {**arrays, "tables": np.array([t for t, _ in self.tables.values()])}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Intervals:
        """From :meth:`state`."""
        scale = Linear.from_arrays({k.removeprefix("scale."): v for k, v in arrays.items() if k.startswith("scale.")})
        rows = facts["rows"]
        tables = {k: (np.asarray(t, np.float64), int(rows[k])) for k, t in zip(rows, arrays["tables"], strict=True)}
        return cls(scale, facts["floor"], facts["ceiling"], tables)
