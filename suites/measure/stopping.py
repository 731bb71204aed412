"""Stopping criteria: small interchangeable classes that look at the samples so far.

Every criterion is asked at a geometrically growing number of samples, so that looking costs a vanishing share
of measuring and a lucky short streak has few chances to end a measurement early.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from wattline.stats import median_interval, relative_half_width
from wattline.suites.settings import MeasureSettings

GROWTH = 1.25


class Stopping(ABC):
    """Decides when enough samples are there.

    Attributes:
        reason: what a record gives as the reason when this criterion ended its measurement.
        precision: relative half-width at the last look, infinite before the first.
    """

    reason: str = ""

    def __init__(self, min_samples: int) -> None:
        self.precision = math.inf
        self._next = max(3, min_samples)

    def done(self, samples: Sequence[float]) -> bool:
        """Whether to stop after these samples."""
        if len(samples) < self._next:
            return False
        self._next = max(self._next + 1, math.ceil(len(samples) * GROWTH))
        lo, hi = median_interval(samples)
        self.precision = relative_half_width(len(samples), (lo + hi) / 2, lo, hi)
        return self.enough(samples)

    @abstractmethod
    def enough(self, samples: Sequence[float]) -> bool:
        """The criterion itself, asked at the growing counts only."""


class Precise(Stopping):
    """The relative half-width of the bootstrap 95 % interval of the median is small enough."""

    reason = "precise"

    def __init__(self, min_samples: int, precision: float) -> None:
        super().__init__(min_samples)
        self._wanted = precision

    def enough(self, samples: Sequence[float]) -> bool:
        """See :meth:`Stopping.enough`."""
        return self.precision <= self._wanted


class StableNoise(Stopping):
    """The relative standard deviation has stopped moving: more samples would not tell more about the noise.

    It ends when the last four looks agree within a twentieth (or all lie below ``precision``).
    """

    reason = "stable_noise"

    def __init__(self, min_samples: int, precision: float) -> None:
        super().__init__(min_samples)
        self._wanted = precision
        self._history: list[float] = []

    def enough(self, samples: Sequence[float]) -> bool:
        """See :meth:`Stopping.enough`."""
        import numpy as np

        values = np.asarray(samples)
        self._history.append(float(values.std(ddof=1) / values.mean()))
        recent = self._history[-4:]
        return len(recent) == 4 and (max(recent) <= self._wanted or max(recent) - min(recent) <= 0.05 * max(recent))


class TimeLimit(Stopping):
    """Never enough: the time limit of the case ends it."""

    reason = "time_limit"

    def enough(self, samples: Sequence[float]) -> bool:
        """See :meth:`Stopping.enough`."""
        return False


def stopping(settings: MeasureSettings) -> Stopping:
    """The criterion that the settings name."""
    if settings.stopping == "precise":
        return Precise(settings.min_samples, settings.precision)
    if settings.stopping == "stable_noise":
        return StableNoise(settings.min_samples, settings.precision)
    return TimeLimit(settings.min_samples)
