"""The cost of a sampler, on a clock made by hand: drift cancels, the mean sees what the median of calls would not."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import TracebackType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.collectors.overhead import sampler_overhead
from wattline.collectors.telemetry import NullTelemetry
from wattline.errors import ParamError


class Kernel:
    """Takes 100 us a call; each 100 ms that the sampler is on adds one poll."""

    def __init__(self, *, poll_s: float = 0.0, drift: float = 0.0) -> None:
        self.now = 0.0
        self.on = False
        self.entered = 0
        self.order: list[bool] = []
        self._poll_s, self._drift = poll_s, drift

    def __enter__(self) -> None:
        self.on = True
        self.entered += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on = False

    def run(self, calls: int) -> float:
        self.order.append(self.on)
        took = calls * 100e-6 * (1 + self._drift * self.now)
        took *= 1 + self._poll_s / 0.1 if self.on else 1
        self.now += took
        return took

    def clock(self) -> float:
        return self.now


@given(st.floats(0, 5e-3), st.integers(1, 300))
def test_the_ratio_is_what_the_polls_take(poll_s: float, calls: int) -> None:
    kernel = Kernel(poll_s=poll_s)
    found = sampler_overhead(kernel, kernel.run, calls, pairs=5, block_s=0.1, clock=kernel.clock)
    assert found.off_s == pytest.approx(100e-6)
    assert found.ratio == pytest.approx(1 + poll_s / 0.1)
    assert found.ratio_lo <= found.ratio <= found.ratio_hi
    assert found.on_s / found.off_s == pytest.approx(found.ratio)
    assert kernel.entered == found.pairs == 5
    assert not kernel.on
    assert found.block_s >= 0.1
    assert found.calls * 100e-6 <= kernel.now * (1 + 1e-9)


def test_drift_falls_on_both_alike() -> None:
    kernel = Kernel(poll_s=1e-3, drift=0.05)  # 5 % slower every second
    found = sampler_overhead(kernel, kernel.run, 10, pairs=16, block_s=0.05, seed=3, clock=kernel.clock)
    assert found.off_s > 102e-6
    assert found.ratio == pytest.approx(1.01, abs=0.004)
    assert len(set(kernel.order)) == 2


def test_the_order_within_pairs_is_drawn_from_the_seed() -> None:
    def order(seed: int) -> list[bool]:
        kernel = Kernel()
        sampler_overhead(kernel, kernel.run, 1000, pairs=12, block_s=0.05, seed=seed, clock=kernel.clock)
        return kernel.order

    assert order(1) == order(1) != order(2)
    assert order(1).count(True) == order(1).count(False) == 12


def test_it_goes_into_a_manifest() -> None:
    kernel = Kernel(poll_s=1e-3)
    found = sampler_overhead(kernel, kernel.run, 100, pairs=3, block_s=0.02, clock=kernel.clock)
    assert json.loads(json.dumps(found.to_dict()))["ratio"] == pytest.approx(1.01)


def test_a_telemetry_is_taken_as_it_is() -> None:
    kernel = Kernel()
    found = sampler_overhead(NullTelemetry("off"), kernel.run, 100, pairs=3, block_s=0.02, clock=kernel.clock)
    assert found.ratio == pytest.approx(1.0)


def test_a_kernel_that_fails_leaves_the_sampler_stopped() -> None:
    kernel = Kernel()

    def fails(calls: int) -> float:
        if kernel.on:
            raise RuntimeError("device error")
        return kernel.run(calls)

    with pytest.raises(RuntimeError, match="device error"):
        sampler_overhead(kernel, fails, 10, block_s=0.01, clock=kernel.clock)
    assert not kernel.on


@pytest.mark.parametrize("wrong", [{"pairs": 2}, {"block_s": 0.0}, {"calls": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    kernel = Kernel()
    settings: dict[str, float] = {"pairs": 3, "block_s": 0.1, "calls": 1, **wrong}
    run: Callable[[int], float] = kernel.run
    with pytest.raises(ParamError, match="no overhead"):
        sampler_overhead(
            kernel, run, int(settings["calls"]), pairs=int(settings["pairs"]), block_s=settings["block_s"],
            clock=kernel.clock,
        )  # fmt: skip


def test_calls_that_take_no_time_are_refused() -> None:
    ticks = iter(range(1000))
    with pytest.raises(ParamError, match="no time"):
        sampler_overhead(NullTelemetry("off"), lambda n: 0.0, 1, clock=lambda: float(next(ticks)))
