"""Finding who is slow: a rank or a link whose times stay above those of the others.

Ranks: per iteration each one's own work is divided by the median of the others', so that what slows all of them (a
longer iteration) cancels out. A rank that is slow is so nearly always, one that now and then waits for a core is not:
over a window of iterations both the median and the lower quarter of the ratios must be high. Links: a message waits for
whoever is late, on either side, so that noise only ever adds, and on a busy machine it comes in steps (a process that
was put to sleep, one that lost its core). The second shortest of a link's times over the window is therefore compared
with what the others *usually* take: of two links that are alike, by chance the best of one may be several times the
best of the other, but not several times its median. What is found must hold for two iterations in a row.

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
"""Iterations that are looked at."""
IN_A_ROW = 2
"""Iterations that must agree; with the window, slowness from the start on is found after 18."""
SLOW_RANK, SLOW_LINK = 1.4, 6.0
"""Ratios to the others from which a rank or a link is called slow: links are timed over microseconds."""
STEADY = 1.3
"""Ratio of a slow rank that all but :data:`_EXCEPT` iterations of the window must reach."""
_EXCEPT = WINDOW // 4
LEAST_S = 20e-6
"""Seconds per iteration below which a difference does not matter."""


@dataclass(frozen=True)
class Alarm:
    """One that was found slow.

    Attributes:
        number: of the rank, or of the rank that a link ends at.
        iteration: at which it was found, from 1.
        factor: over the window, its median ratio to the others; of a link, its second shortest time over the median of
            the others.
    """

    number: int
    iteration: int
    factor: float


class Finder:
    """Watches times of ranks or links, iteration by iteration.

    Args:
        threshold: ratio from which one is slow.
        links: compare times over the window, not within each iteration.
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
        self._held: dict[int, int] = {}  # iterations in a row that it is slow, and that it is not
        self._quiet: dict[int, int] = {}

    def add(self, times_s: Sequence[float]) -> list[Alarm]:
        """One iteration, a time of each; returns those that were not slow before."""
        self._recent.append(times_s)
        self._seen += 1
        if len(self._recent) < self._window:
            return []
        raised = []
        for number, (factor, excess_s) in enumerate(self._judged()):
            slow = factor >= self._threshold and excess_s >= self._least_s
            self._held[number] = self._held.get(number, 0) + 1 if slow else 0
            if self._held[number] >= IN_A_ROW and number not in self._found:
                raised.append(Alarm(number, self._seen, factor))
                self._found.add(number)
            # One that is near the threshold, or once in a while looks like the others, is told once.
            self._quiet[number] = self._quiet.get(number, 0) + 1 if factor < (1.0 + self._threshold) / 2 else 0
            if self._quiet[number] >= self._window:
                self._found.discard(number)
        return raised

    def _judged(self) -> list[tuple[float, float]]:
        """Ratio to the others and seconds above them, of each, over the window."""
        if self._links:
            columns = [sorted(column) for column in zip(*self._recent, strict=True)]
            usual = [statistics.median(column) for column in columns]
            return [_against(column[1], usual, number) for number, column in enumerate(columns)]
        judged = [[_against(time_s, row, number) for number, time_s in enumerate(row)] for row in self._recent]
        found = []
        for column in zip(*judged, strict=True):
            ratios = sorted(ratio for ratio, _ in column)
            steady = ratios[min(_EXCEPT, len(ratios) - 1)] >= STEADY
            excess_s = statistics.median(excess for _, excess in column)
            found.append((statistics.median(ratios), excess_s if steady else 0.0))
        return found


def _against(time_s: float, all_s: Sequence[float], number: int) -> tuple[float, float]:
    """Ratio to, and seconds above, the median of all but one."""
    others = [t for i, t in enumerate(all_s) if i != number]
    usual = statistics.median(others) if others else time_s
    return time_s / max(usual, 1e-12), time_s - usual


def find_slow(rows: Iterable[Sequence[float]], *, links: bool = False) -> list[Alarm]:
    """All alarms over a series, ``rows[iteration][rank]`` in seconds; of links by the rank that they end at."""
    finder = Finder(SLOW_LINK if links else SLOW_RANK, links=links)
    return [alarm for row in rows for alarm in finder.add(row)]
