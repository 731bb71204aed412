"""Transfers: a latency and a bandwidth for each regime of sizes, fitted to measured times.

Small transfers cost their latency, large ones their bytes; in between drivers change their ways (a copy by the command
itself, staging in pieces, copy engines), so that one line is not enough. The line of a regime is R. Hockney's
(``t = latency + bytes / bandwidth``: "The communication challenge for MPP", Parallel Computing 20(3), 1994), robust and
of relative errors; where regimes begin is found as for collectives (:mod:`wattline.predictors.lines`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattline.errors import ParamError
from wattline.predictors.lines import FEWEST, inverse, pieces_of


@dataclass(frozen=True)
class Regime:
    """Sizes that one line describes.

    Attributes:
        least, most: bytes, both included.
        latency_s: seconds that a transfer of no bytes would take.
        bandwidth: bytes per second; infinite where the time does not grow.
    """

    least: float
    most: float
    latency_s: float
    bandwidth: float

    def seconds(self, size: float) -> float:
        """The time of a transfer of ``size`` bytes."""
        return self.latency_s + size / self.bandwidth


@dataclass(frozen=True)
class TransferFit:
    """Regimes in order of size.

    Attributes:
        regimes: one to three.
        error: root mean square of the relative errors.
    """

    regimes: tuple[Regime, ...]
    error: float

    def seconds(self, size: float) -> float:
        """The time of a transfer; beyond the measured sizes by the first or the last line."""
        at = next((r for r in self.regimes if size <= r.most), self.regimes[-1])
        return at.seconds(size)


def fit_transfers(sizes: Sequence[float], seconds: Sequence[float], *, most: int = 3) -> TransferFit:
    """Fit regimes to measured transfers.

    Args:
        sizes: bytes.
        seconds: of each, positive.
        most: regimes.

    Raises:
        ParamError: fewer than three different sizes, lengths that differ, or values that are not positive.
    """
    if len(sizes) != len(seconds):
        raise ParamError(f"{len(sizes)} sizes and {len(seconds)} times do not belong together")
    s, t = np.asarray(sizes, np.float64), np.asarray(seconds, np.float64)
    if len(np.unique(s)) < FEWEST:
        raise ParamError(f"a fit of transfers needs at least {FEWEST} different sizes")
    if s.min() < 0 or t.min() <= 0:
        raise ParamError("sizes must not be negative, and times must be positive")
    order = np.argsort(s, kind="stable")
    s, t = s[order], t[order]
    found = pieces_of(np.stack([np.ones_like(s), s], axis=1), s, t, most=most)
    regimes = tuple(
        Regime(float(s[i]), float(s[j - 1]), float(latency), inverse(slope))
        for (i, j), (latency, slope) in zip(found.edges, found.weights, strict=True)
    )
    return TransferFit(regimes, float(np.sqrt(np.mean((found.fitted / t - 1.0) ** 2))))
