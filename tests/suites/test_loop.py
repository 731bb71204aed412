"""The loop on a simulated device: every sample is known, so every decision can be worked out by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.collectors.timers import Call, Timer
from wattline.stats import median_interval
from wattline.suites.measure.loop import Ring, Samples, calls_per_sample, sample, warm_up
from wattline.suites.measure.stopping import Precise, StableNoise, TimeLimit, stopping
from wattline.suites.settings import MeasureSettings


class SimulatedTimer(Timer):
    """Time passes only when calls run: the i-th call takes ``cost(i)`` seconds."""

    name = "simulated"
    min_batch_s = 200e-6
    max_batch_calls = 1000

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.cost = cost
        self.made = 0
        self.now = 0.0
        self.batches: list[int] = []

    def time(self, calls: Sequence[Call]) -> float:
        took = 0.0
        for call in calls:
            call()
            took += self.cost(self.made)
            self.made += 1
        self.now += took
        self.batches.append(len(calls))
        return took

    def sustain(self, take: Callable[[int], Sequence[Call]], count: int, seconds: float) -> tuple[int, float]:
        raise NotImplementedError("the loop takes samples only")

    def clock(self) -> float:
        return self.now


def constant(seconds: float) -> SimulatedTimer:
    return SimulatedTimer(lambda _: seconds)


def nothing() -> None:
    return None


def test_a_ring_hands_out_every_buffer_set_in_turn() -> None:
    seen: list[int] = []
    ring = Ring([lambda i=i: seen.append(i) for i in range(5)])
    for count in (2, 7, 1, 12):
        for call in ring.take(count):
            call()
    assert seen == [i % 5 for i in range(22)]


@given(st.integers(1, 40), st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_a_ring_never_skips_or_repeats(size: int, counts: list[int]) -> None:
    seen: list[int] = []
    ring = Ring([lambda i=i: seen.append(i) for i in range(size)])
    for count in counts:
        taken = ring.take(count)
        assert len(taken) == count
        for call in taken:
            call()
    assert seen == [i % size for i in range(sum(counts))]


def test_an_empty_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Ring([])


def test_warm_up_settles_on_a_steady_kernel() -> None:
    warm = warm_up(Ring([nothing]), constant(1e-3), limit_s=1.0)
    assert warm.stop == "settled"
    assert warm.call_s == pytest.approx(1e-3)
    assert warm.calls == 10  # two windows of five batches of one call each


def test_warm_up_waits_for_a_clock_that_rises() -> None:
    # 40 % slower at first, settling exponentially: the end of the warm-up must see the settled speed.
    timer = SimulatedTimer(lambda i: 1e-3 * (1 + 0.4 * math.exp(-i / 20)))
    warm = warm_up(Ring([nothing]), timer, limit_s=1.0)
    assert warm.stop == "settled"
    assert warm.calls > 30
    assert warm.call_s == pytest.approx(1e-3, rel=0.12)


def test_warm_up_ends_at_its_limit_on_a_kernel_that_never_settles() -> None:
    timer = SimulatedTimer(lambda i: 1e-3 * 1.05 ** (i // 5))
    warm = warm_up(Ring([nothing]), timer, limit_s=0.05)
    assert warm.stop == "time_limit"
    assert 0.05 <= warm.spent_s < 0.08


def test_warm_up_of_a_kernel_slower_than_its_limit_is_one_call() -> None:
    timer = constant(2.0)
    warm = warm_up(Ring([nothing]), timer, limit_s=0.3)
    assert (warm.stop, warm.calls, timer.made) == ("shrunk", 1, 1)


def test_warm_up_grows_the_batch_until_the_clock_resolves_it() -> None:
    timer = constant(1e-6)
    warm_up(Ring([nothing]), timer, limit_s=0.1)
    assert timer.batches[-1] * 1e-6 >= timer.min_batch_s
    assert timer.batches == sorted(timer.batches)


@pytest.mark.parametrize(
    ("call_s", "expected"), [(1e-3, 1), (200e-6, 1), (100e-6, 2), (10e-6, 20), (1e-9, 1000), (0.0, 1000)]
)
def test_calls_per_sample_by_hand(call_s: float, expected: int) -> None:
    assert calls_per_sample(call_s, constant(call_s)) == expected


def test_calls_per_sample_obeys_a_cap() -> None:
    assert calls_per_sample(1e-6, constant(1e-6), most_calls=1) == 1


def run(timer: SimulatedTimer, call_s: float, **settings: float | str) -> Samples:
    chosen = MeasureSettings(**{"min_time_s": 0.0, **settings})  # type: ignore[arg-type]
    return sample(Ring([nothing]), timer, chosen, call_s, now=timer.clock)


def test_a_noiseless_kernel_stops_at_the_first_look() -> None:
    taken = run(constant(1e-3), 1e-3, min_samples=10)
    assert taken.stop == "precise"
    assert len(taken.per_call_s) == 10
    assert taken.precision == 0.0
    assert taken.timed_s == pytest.approx(10e-3)


def test_a_noiseless_kernel_is_measured_for_the_shortest_time_all_the_same() -> None:
    taken = run(constant(1e-3), 1e-3, min_time_s=0.5)
    assert taken.stop == "precise"
    assert 0.5 <= taken.timed_s <= 0.5 * 1.25 + 1e-3


def test_a_quick_kernel_gets_larger_samples_rather_than_more() -> None:
    taken = run(constant(10e-6), 10e-6, min_time_s=0.5)
    assert taken.calls_per_sample == 200  # 0.5 s / 250 samples / 10 us
    assert 250 <= len(taken.per_call_s) <= 320


def test_a_noisy_kernel_is_sampled_until_the_interval_is_narrow() -> None:
    rng = random.Random(1)
    timer = SimulatedTimer(lambda _: 1e-3 * rng.lognormvariate(0, 0.05))
    taken = run(timer, 1e-3, precision=0.01, time_limit_s=100.0)
    assert taken.stop == "precise"
    lo, hi = median_interval(taken.per_call_s)
    assert (hi - lo) / (hi + lo) <= 0.01
    assert 20 < len(taken.per_call_s) < 1000


def test_the_time_limit_ends_a_kernel_that_stays_noisy() -> None:
    rng = random.Random(2)
    timer = SimulatedTimer(lambda _: 1e-2 * rng.uniform(0.2, 3.0))
    taken = run(timer, 1e-2, precision=1e-4, time_limit_s=0.5)
    assert taken.stop == "time_limit"
    assert 0.5 <= taken.timed_s < 0.55


def test_a_kernel_slower_than_the_limit_still_gets_three_samples() -> None:
    timer = constant(2.0)
    taken = run(timer, 2.0, time_limit_s=0.5)
    assert taken.stop == "time_limit"
    assert len(taken.per_call_s) == 3


def test_the_sample_limit_ends_it() -> None:
    values = itertools.cycle([1e-3, 2e-3])
    timer = SimulatedTimer(lambda _: next(values))
    taken = run(timer, 1e-3, max_samples=50, precision=1e-6, time_limit_s=100.0)
    assert (taken.stop, len(taken.per_call_s)) == ("sample_limit", 50)


def test_stable_noise_stops_although_the_interval_is_wide() -> None:
    rng = random.Random(3)
    timer = SimulatedTimer(lambda _: 1e-3 * rng.uniform(0.5, 1.5))
    taken = run(timer, 1e-3, stopping="stable_noise", precision=1e-3, time_limit_s=100.0)
    assert taken.stop == "stable_noise"
    assert taken.precision > 1e-3


def test_samples_keep_their_order_and_none_is_dropped() -> None:
    timer = SimulatedTimer(lambda i: 1e-3 * (1 + i % 7))
    taken = run(timer, 1e-3, stopping="time_limit", time_limit_s=0.2, max_samples=10_000)
    assert list(taken.per_call_s) == pytest.approx([1e-3 * (1 + i % 7) for i in range(len(taken.per_call_s))])


def test_progress_is_told_and_not_too_often() -> None:
    told: list[tuple[str, float | None, float | None]] = []
    timer = constant(0.05)
    settings = MeasureSettings(stopping="time_limit", time_limit_s=2.0)
    sample(Ring([nothing]), timer, settings, 0.05, progress=lambda *a: told.append(a), now=timer.clock)
    assert 5 <= len(told) <= 11
    assert all(phase == "timing" and time == pytest.approx(0.05) for phase, time, _ in told)


def test_the_settings_name_the_criterion() -> None:
    assert isinstance(stopping(MeasureSettings()), Precise)
    assert isinstance(stopping(MeasureSettings(stopping="stable_noise")), StableNoise)
    assert isinstance(stopping(MeasureSettings(stopping="time_limit")), TimeLimit)


def test_looks_grow_geometrically() -> None:
    class Counting(TimeLimit):
        looks = 0

        def enough(self, samples: Sequence[float]) -> bool:
            self.looks += 1
            return False

    rule = Counting(10)
    values: list[float] = []
    for _ in range(2000):
        values.append(1.0)
        rule.done(values)
    assert 20 <= rule.looks <= 30
