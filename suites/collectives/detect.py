"""Finding who is slow: a rank or a link whose times stay above those of the others.

Ranks: per iteration each one's own work is divided by the median of the others', so that what slows all of them (a
longer iteration) cancels out. Its median over a window of iterations is what counts: fewer than half of them may be
anything. Links: a message waits for whoever is late, on either side, so that noise only ever adds; the second shortest
of a link's times over the window is compared with that of the others.

The idea is that of C4 (Dong et al., "Enhancing large-scale AI training efficiency: the C4 solution for real-time
anomaly detection and communication optimization", HPCA 2025) and of the per-rank heat maps of MegaScale (Jiang et
al., NSDI 2024); window and thresholds are our own.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WINDOW = 17
"""Iterations that are looked at; slowness is found after more than half of them."""
SLOW_RANK, SLOW_LINK = 1.4, 3.0
"""Ratios to the others from which a rank or a link is called slow: links are timed over microseconds."""
LEAST_S = 20e-6
"""Seconds per iteration below which a difference does not matter."""


@dataclass(frozen=True)
class Alarm:
    """One that was found slow.

    Attributes:
        number: of the rank, or of the rank that a link ends at.
        iteration: at which it was found, from 1.
        factor: its median ratio to the others, over the window.
    """

    number: int
    iteration: int
    factor: float


class Finder:
    """Watches times of ranks or links, iteration by iteration.

    Args:
        threshold: ratio from which one is slow.
        links: compare the shortest times over the window, not each iteration.
        window: iterations looked at.
        least_s: seconds that a difference must come to.
    """

    def __init__(
        self, threshold: float, *, links: bool = False, window: int = WINDOW, least_s: float = LEAST_S
    ) -> None:
        self._threshold, self._links, self._window, self._least_s = threshold, links, window, least_s
        self._seen = 0
        self._recent: deque[Sequence[float]] = deque(maxlen=window)
        self._found: set[int] = set()

    def add(self, times_s: Sequence[float]) -> list[Alarm]:
        """One iteration, a time of each; returns those that were not slow before."""
        self._recent.append(times_s)
        self._seen += 1
        if len(self._recent) < self._window:
            return []
        raised = []
        for number, (factor, excess_s) in enumerate(self._judged()):
            slow = factor >= self._threshold and excess_s >= self._least_s
            if slow and number not in self._found:
                raised.append(Alarm(number, self._seen, factor))
                self._found.add(number)
            elif factor < (1.0 + self._threshold) / 2:  # well below, so that one near the threshold is told once
                self._found.discard(number)
        return raised

    def _judged(self) -> list[tuple[float, float]]:
        """Ratio to the others and seconds above them, of each, over the window."""
        if self._links:
            low = [sorted(column)[1] for column in zip(*self._recent, strict=True)]
            return _against_others(low)
        judged = [_against_others(row) for row in self._recent]
        return [
            (statistics.median(ratio for ratio, _ in column), statistics.median(excess for _, excess in column))
            for column in zip(*judged, strict=True)
        ]


def _against_others(times_s: Sequence[float]) -> list[tuple[float, float]]:
    """Ratio to, and seconds above, the median of the others."""
    found = []
    for number, time_s in enumerate(times_s):
        others = [t for i, t in enumerate(times_s) if i != number]
        usual = statistics.median(others) if others else time_s
        found.append((time_s / max(usual, 1e-12), time_s - usual))
    return found


def find_slow(rows: Iterable[Sequence[float]], *, links: bool = False) -> list[Alarm]:
    """All alarms over a series, ``rows[iteration][rank]`` in seconds; of links by the rank that they end at."""
    finder = Finder(SLOW_LINK if links else SLOW_RANK, links=links)
    return [alarm for row in rows for alarm in finder.add(row)]
