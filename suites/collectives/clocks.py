"""Clocks of several hosts, and a start at the same moment on all of them.

Offsets come from round trips: of several, the quickest bounds the error by half its time (Cristian, "Probabilistic
clock synchronization", Distributed Computing 3, 1989). Ranks under one kernel read one clock; theirs are measured all
the same, as a figure of what the method resolves, but not applied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from wattline.suites.collectives.join import World

ROUND_TRIPS = 8
_FIRST_MARGIN_NS = 100_000
_LONGEST_MARGIN_NS = 5_000_000
_SPIN_NS = 200_000  # a wait longer than this sleeps first


@dataclass(frozen=True)
class Offset:
    """A rank's clock against that of rank 0.

    Attributes:
        offset_s: its reading minus rank 0's at the same moment.
        error_s: half the quickest round trip: the true offset is no further away than that.
        applied: it is used to convert times; not where both read one clock.
    """

    offset_s: float
    error_s: float
    applied: bool


def measure_offsets(world: World) -> list[Offset]:
    """Every rank's offset, known on every rank afterwards. Called by all ranks."""
    import torch
    import torch.distributed as dist

    clock = time.perf_counter_ns
    found: list[Offset] | None = None
    with world.guarded("comparing clocks"):
        if world.rank == 0:
            found = [Offset(0.0, 0.0, applied=False)]
            word = torch.zeros(1, dtype=torch.int64)
            for rank in range(1, world.size):
                best: tuple[int, float] | None = None
                for _ in range(ROUND_TRIPS):
                    sent = clock()
                    dist.send(word, rank)
                    dist.recv(word, rank)
                    back = clock()
                    trip = back - sent
                    if best is None or trip < best[0]:
                        best = trip, int(word.item()) - (sent + back) / 2
                assert best is not None  # there is at least one round trip
                found.append(Offset(best[1] * 1e-9, best[0] * 0.5e-9, applied=not world.one_clock(rank)))
        else:
            word = torch.zeros(1, dtype=torch.int64)
            for _ in range(ROUND_TRIPS):
                dist.recv(word, 0)
                word[0] = clock()
                dist.send(word, 0)
    told: list[Offset] = world.tell(found)
    return told


class Starter:
    """Agrees on a number and on a moment to begin at, and waits for it.

    Rank 0 chooses a moment a little ahead of its broadcast; where ranks hear of it too late, the next is further ahead.

    Args:
        world: the ranks.
        offset: this rank's clock.

    Attributes:
        late_ns: how late this rank was at the latest start, from 0.
    """

    def __init__(self, world: World, offset: Offset) -> None:
        import torch

        self._world = world
        self._offset_ns = round(offset.offset_s * 1e9) if offset.applied else 0
        self._word = torch.zeros(2, dtype=torch.int64)
        self._margin_ns = _FIRST_MARGIN_NS
        self.late_ns = 0

    def agree(self, number: int = 0) -> tuple[int, int]:
        """Rank 0's number, and the moment to begin at on this rank's clock (``perf_counter_ns``)."""
        import torch.distributed as dist

        word = self._word
        if self._world.rank == 0:
            word[0], word[1] = number, time.perf_counter_ns() + self._margin_ns
        with self._world.guarded("agreeing on a start"):
            dist.broadcast(word, src=0)
        values: list[int] = word.tolist()
        return values[0], values[1] + self._offset_ns

    def wait(self, moment: int) -> None:
        """Wait for the moment; spinning at its end, so that no rank is woken late."""
        clock = time.perf_counter_ns
        left = moment - clock()
        if left > 2 * _SPIN_NS:
            time.sleep((left - _SPIN_NS) * 1e-9)
        now = clock()
        while now < moment:
            now = clock()
        self.late_ns = now - moment

    def learn(self, latest_ns: int) -> None:
        """Told on rank 0 how late the latest rank was: the next moment lies further ahead, or nearer again."""
        if latest_ns > self._margin_ns // 4:
            self._margin_ns = min(_LONGEST_MARGIN_NS, self._margin_ns * 3 // 2)
        else:
            self._margin_ns = max(_FIRST_MARGIN_NS, self._margin_ns * 15 // 16)


def spread_s(lateness_ns: list[list[int]]) -> float:
    """Median over samples of the time between the first and the last rank's start."""
    import statistics

    spreads: list[Any] = [max(row) - min(row) for row in lateness_ns if row]
    return statistics.median(spreads) * 1e-9 if spreads else 0.0
