"""Some of the training rows, kept with a model so that an estimate can name the measurements nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.predictors.table import Block

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

KEPT = 400
"""Most rows kept of one family."""


class Samples:
    """Training rows: features, seconds, and what each row was.

    Attributes:
        x: standardised features ``(n, d)``.
        time: seconds ``(n,)``.
        rows: words and numbers of each.
    """

    def __init__(self, x: NDArray[np.float32], time: Array, rows: Sequence[Mapping[str, Any]]) -> None:
        self.x, self.time, self.rows = x, time, list(rows)

    @classmethod
    def none(cls, d: int) -> Samples:
        """No rows."""
        return cls(np.zeros((0, d), np.float32), np.zeros(0), [])

    @classmethod
    def draw(cls, blocks: Sequence[Block], x: Array, time: Array, seed: int) -> Samples:
        """At most :data:`KEPT` rows at random.

        Args:
            blocks: the blocks, in the order of ``x`` and ``time``.
            x: standardised features ``(n, d)``.
            time: seconds ``(n,)``.
            seed: of the draw.
        """
        chosen = np.sort(np.random.default_rng(seed).permutation(len(time))[:KEPT])
        ends = np.cumsum([len(b.rows) for b in blocks])
        rows = []
        for i in chosen:
            which = int(np.searchsorted(ends, i, side="right"))
            block = blocks[which]
            at = int(i - (ends[which - 1] if which else 0))
            numbers = {k: float(v[at]) for k, v in block.numbers.items() if not np.isnan(v[at])}
            rows.append({**dict(block.words.categories()), **numbers})
        return cls(x[chosen].astype(np.float32), time[chosen], rows)

    def nearest(self, x: Array, count: int = 3) -> list[dict[str, Any]]:
        """The rows nearest to features ``(d,)``: what each was, its ``time_s`` and ``distance`` (in deviations)."""
        distance = np.sqrt(((self.x - x) ** 2).mean(axis=1))
        order = np.argsort(distance, kind="stable")[:count]
        return [{**self.rows[i], "time_s": float(self.time[i]), "distance": float(distance[i])} for i in order]

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Facts and arrays."""
        return {"rows": self.rows}, {"x": self.x, "time": self.time}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Samples:
        """From :meth:`state`."""
        return cls(arrays["x"], arrays["time"], facts["rows"])
