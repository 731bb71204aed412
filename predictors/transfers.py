"""Transfers: a latency and a bandwidth for each regime of sizes, fitted to measured times.

Small transfers cost their latency, large ones their bytes; in between drivers change their ways (a copy by the command
itself, staging in pieces, copy engines), so that one line is not enough. The line of a regime is R. Hockney's
(``t = latency + bytes / bandwidth``: "The communication challenge for MPP", Parallel Computing 20(3), 1994), and where
regimes begin is found by dynamic programming over all places, as R. Bellman and R. Roth did ("Curve fitting by
segmented straight lines", Journal of the American Statistical Association 64(327), 1969).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from wattline.errors import ParamError

FEWEST = 3
"""Sizes that a regime must hold: two determine a line, the third tells whether it is one."""
GAIN = 0.5
"""A further regime must bring the error down to this share, or it is not taken."""
CLOSE = 0.02
"""Where the typical relative error is below this, no further regime is looked for."""


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
    pairs = sorted(zip(map(float, sizes), map(float, seconds), strict=True))
    if len({size for size, _ in pairs}) < FEWEST:
        raise ParamError(f"a fit of transfers needs at least {FEWEST} different sizes")
    if pairs[0][0] < 0 or min(took for _, took in pairs) <= 0:
        raise ParamError("sizes must not be negative, and times must be positive")
    count = len(pairs)
    line = {
        (i, j): _line(pairs[i:j]) for i in range(count) for j in range(i + FEWEST, count + 1)
        if len({size for size, _ in pairs[i:j]}) >= FEWEST
    }  # fmt: skip
    # best[j]: least squared relative error of the first j points in so many regimes, and where the last one begins.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    chosen: tuple[float, tuple[int, ...]] | None = None
    for _ in range(most):
        step: dict[int, tuple[float, tuple[int, ...]]] = {}
        for (i, j), (_, _, wrong) in line.items():
            if i in best and (j not in step or best[i][0] + wrong < step[j][0]):
                # Points of one size must not be torn apart.
                if i and pairs[i][0] == pairs[i - 1][0]:
                    continue
                step[j] = (best[i][0] + wrong, (*best[i][1], i))
        if count not in step:
            break
        if chosen is not None and (
            (chosen[0] / count) ** 0.5 < CLOSE or step[count][0] ** 0.5 > GAIN * chosen[0] ** 0.5
        ):
            break
        chosen, best = step[count], step
    assert chosen is not None  # one regime of all points is always possible
    begins = [*chosen[1], count]
    regimes = []
    for i, j in pairwise(begins):
        latency, slope, _ = line[i, j]
        regimes.append(Regime(pairs[i][0], pairs[j - 1][0], latency, 1 / slope if slope > 0 else float("inf")))
    return TransferFit(tuple(regimes), (chosen[0] / count) ** 0.5)


def _line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Latency, seconds per byte (neither negative) and squared relative error of the line where that error is least."""
    best = (0.0, 0.0, float("inf"))
    # Weights 1 / t^2: a relative error. Of a least-squares problem in two unknowns that may not be negative the answer
    # is the free one, or one with a zero.
    w = [1 / took**2 for _, took in pairs]
    s0, s1 = sum(w), sum(a * x for a, (x, _) in zip(w, pairs, strict=True))
    s2 = sum(a * x * x for a, (x, _) in zip(w, pairs, strict=True))
    t0 = sum(a * t for a, (_, t) in zip(w, pairs, strict=True))
    t1 = sum(a * x * t for a, (x, t) in zip(w, pairs, strict=True))
    options = [(t0 / s0, 0.0)]
    if s2 > 0:
        options.append((0.0, t1 / s2))
    if (determinant := s0 * s2 - s1 * s1) > 0:
        options.append(((t0 * s2 - t1 * s1) / determinant, (s0 * t1 - s1 * t0) / determinant))
    for latency, slope in options:
        if latency < 0 or slope < 0:
            continue
        wrong = sum(((latency + slope * x) / t - 1) ** 2 for x, t in pairs)
        if wrong < best[2]:
            best = (latency, slope, wrong)
    return best
