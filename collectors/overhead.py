"""What watching costs: a kernel's latency with a sampler on and off, in turns.

A poll every 100 ms meets one call in a thousand of a 100 us kernel, so the median of single calls would not see it.
Each block of back-to-back calls therefore gives one mean, and blocks with and without the sampler alternate, so that
heat and drift fall on both alike; which of a pair comes first is drawn. The cost is the median over the pairs of the
ratio of their means, with the same bootstrap interval that measurements have.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from wattline.errors import ParamError
from wattline.stats import median_interval


@dataclass(frozen=True)
class SamplerOverhead:
    """Latency with and without a sampler.

    Attributes:
        off_s, on_s: seconds per call: median of the blocks' means.
        ratio: median over the pairs of on / off; 1.005 is half a percent slower.
        ratio_lo, ratio_hi: its interval at 95 %.
        pairs: pairs of blocks.
        calls: calls in all blocks together.
        block_s: mean length of a block in seconds.
    """

    off_s: float
    on_s: float
    ratio: float
    ratio_lo: float
    ratio_hi: float
    pairs: int
    calls: int
    block_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the run's manifest."""
        return asdict(self)


def sampler_overhead(
    sampler: AbstractContextManager[Any],
    run_calls: Callable[[int], float],
    calls: int,
    *,
    pairs: int = 8,
    block_s: float = 0.3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> SamplerOverhead:
    """Measure what a sampler adds to the latency of a kernel; takes about ``2 * pairs * block_s`` seconds.

    Args:
        sampler: entered before each block with the sampler on, left after it: a
            :class:`~wattline.collectors.telemetry.Telemetry` as it is, several through ``contextlib.ExitStack``. It
            is entered ``pairs`` times.
        run_calls: runs that many calls back to back and returns the seconds that they took, e.g.
            ``lambda n: timer.time(ring.take(n))``. The kernel is warm already.
        calls: calls of one batch, as a sample of the measurement has them.
        pairs: pairs of blocks; at least 3, since fewer have no interval.
        block_s: shortest length of a block: several polls of the sampler must fall into it.
        seed: of the order within the pairs.
        clock: seconds, for tests.

    Raises:
        ParamError: fewer than 3 pairs, no calls, or no time.
    """
    if pairs < 3 or calls < 1 or not block_s > 0:
        raise ParamError(
            f"no overhead from {pairs} pairs of blocks of {block_s} s with {calls} calls a batch",
            todo="take at least 3 pairs, 1 call and a time above zero",
        )
    rng = random.Random(seed)
    made = 0
    spent = 0.0

    def block() -> float:
        nonlocal made, spent
        count, took, begin = 0, 0.0, clock()
        while True:
            took += run_calls(calls)
            count += calls
            if (length := clock() - begin) >= block_s:
                break
        made += count
        spent += length
        if not took > 0:
            raise ParamError("no overhead from calls that took no time", why=f"{count} calls in {took} s")
        return took / count

    def watched() -> float:
        with sampler:
            return block()

    off: list[float] = []
    on: list[float] = []
    for _ in range(pairs):
        if rng.random() < 0.5:
            off.append(block())
            on.append(watched())
        else:
            on.append(watched())
            off.append(block())
    ratios = [b / a for a, b in zip(off, on, strict=True)]
    lo, hi = median_interval(ratios)
    return SamplerOverhead(
        off_s=statistics.median(off),
        on_s=statistics.median(on),
        ratio=statistics.median(ratios),
        ratio_lo=lo,
        ratio_hi=hi,
        pairs=pairs,
        calls=made,
        block_s=spent / (2 * pairs),
    )
