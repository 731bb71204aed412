"""The measurement loop against torch's own timer, on the same kernels in the same process.

Run with ``pytest tests/benchmarks/test_loop.py --benchmark-only``; the ratios stand in each row's extra info and
are printed. The kernels are matrix products sized on the spot to last about as long as asked.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from wattline.collectors.timers import HostTimer
from wattline.suites.measure.loop import Ring, sample, warm_up
from wattline.suites.settings import MeasureSettings

torch = pytest.importorskip("torch")
ROUNDS = 7


def kernel(seconds: float) -> Any:
    """A product of matrices that takes about as long as asked, sized on the spot."""
    size = 16
    while True:
        # The fastest of four: the first call of a size initialises lazily.
        a, b = torch.rand(size, size), torch.rand(size, size)
        out = torch.empty(size, size)
        took = []
        for _ in range(4):
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            took.append(time.perf_counter() - begin)
        if min(took) >= seconds or size >= 8192:
            return lambda: torch.mm(a, b, out=out)
        size = int(size * 1.2) + 1


@pytest.mark.parametrize("seconds", [10e-6, 1e-3, 100e-3], ids=["10us", "1ms", "100ms"])
def test_median_against_torch_timer(benchmark: Any, seconds: float) -> None:
    from torch.utils.benchmark import Timer as TorchTimer

    # One thread: two threads meet at a barrier in every call, and any other process on the machine then shows.
    torch.set_num_threads(1)
    call = kernel(seconds)
    span = max(0.2, 10 * seconds)
    settings = MeasureSettings(min_time_s=span, time_limit_s=span)
    timer, ring = HostTimer(), Ring([call])
    theirs = TorchTimer("call()", globals={"call": call}, num_threads=1)
    ratios: list[float] = []

    def both() -> None:
        # In turn, so that a machine that changes speed meets both alike.
        warm = warm_up(ring, timer, 0.05)
        ours = statistics.median(sample(ring, timer, settings, warm.call_s).per_call_s)
        ratios.append(ours / theirs.blocked_autorange(min_run_time=span).median)

    benchmark.pedantic(both, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    ratio = statistics.median(ratios[1:])
    benchmark.extra_info["ours_over_torch"] = round(ratio, 4)
    print(f"\n{seconds:g} s kernel: ours / torch.utils.benchmark.Timer = {ratio:.4f} (median of {ROUNDS})")
