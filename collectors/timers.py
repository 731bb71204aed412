"""Timers: how long a batch of calls takes, by the host's clock or by the device's own events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattline.collectors.device import AcceleratorDevice

Call = Callable[[], Any]

_LONGEST_HOLD_S = 0.02
_GAPS = 0.02  # share of a batch that gaps between kernels may take unmentioned


class Timer(ABC):
    """Times a batch of calls.

    Attributes:
        name: the clock, as records name it.
        min_batch_s: batches shorter than this are dominated by the clock's own resolution and cost.
        max_batch_calls: most calls that one batch may hold.
    """

    name: str = ""
    min_batch_s: float = 200e-6
    max_batch_calls: int = 100_000

    @abstractmethod
    def time(self, calls: Sequence[Call]) -> float:
        """Run the calls in order and return the seconds that all of them took."""

    @abstractmethod
    def sustain(self, take: Callable[[int], Sequence[Call]], count: int, seconds: float) -> tuple[int, float]:
        """Run one uninterrupted load: the device never waits for the host between batches.

        Args:
            take: gives the next calls, so many of them.
            count: calls of one batch.
            seconds: for at least how long.

        Returns:
            The number of calls and the seconds that they took together.
        """

    def overhead_s(self) -> float:
        """Median cost of timing an empty batch: what every sample carries in excess."""
        return sorted(self.time(()) for _ in range(101))[50]


class HostTimer(Timer):
    """``perf_counter_ns`` around the calls, then a device synchronisation where one is given."""

    name = "perf_counter_ns"

    def __init__(self, synchronize: Call | None = None) -> None:
        self._synchronize = synchronize

    def time(self, calls: Sequence[Call]) -> float:
        """See :meth:`Timer.time`."""
        clock = time.perf_counter_ns
        if self._synchronize is None:
            begin = clock()
            for call in calls:
                call()
            return (clock() - begin) * 1e-9
        self._synchronize()
        begin = clock()
        for call in calls:
            call()
        self._synchronize()
        return (clock() - begin) * 1e-9


    def sustain(self, take: Callable[[int], Sequence[Call]], count: int, seconds: float) -> tuple[int, float]:
        """See :meth:`Timer.sustain`. With a synchronisation, a caller waits for every batch, as it does in a sample."""
        clock, wait = time.perf_counter_ns, self._synchronize
        made, begin = 0, clock()
        deadline = begin + round(seconds * 1e9)
        while True:
            for call in take(count):
                call()
            if wait is not None:
                wait()
            made += count
            now = clock()
            if now >= deadline:
                return made, (now - begin) * 1e-9


class EventTimer(Timer):
    """Device events around the calls.

    Where the device can be held (a spin kernel), all launches are queued behind the hold before the first event
    fires, so that short kernels run back to back and the host's launch cost stays out.

    Attributes:
        launch_bound: in the last batch the device outran the host, and gaps between kernels may make up more than
            2 % of its time.
    """

    name = "device events"
    min_batch_s = 500e-6  # events tick at about 0.5 us (CUDA runtime API, cudaEventElapsedTime)
    # A stream takes about a thousand launches before the host must wait, and a call may launch several kernels.
    max_batch_calls = 256

    def __init__(self, device: AcceleratorDevice) -> None:
        import torch

        self._device = device
        self._begin = torch.Event(device.torch_device, enable_timing=True)
        self._end = torch.Event(device.torch_device, enable_timing=True)
        self._call_s = 0.0  # what the host took to enqueue a call of the last batch
        self.launch_bound = False

    def time(self, calls: Sequence[Call]) -> float:
        """See :meth:`Timer.time`."""
        # Hold for as long as enqueuing should take, and half as much again. Where the launch queue is full the host
        # waits for the hold itself, and each would be longer than the last: hence the limit.
        self._device.hold(min(1.5 * self._call_s * len(calls) + 20e-6, _LONGEST_HOLD_S))
        begin = time.perf_counter_ns()
        self._begin.record()
        for call in calls:
            call()
        self._end.record()
        enqueue_s = (time.perf_counter_ns() - begin) * 1e-9
        # Asked of the device, not of the hold's length, which follows a clock that changes.
        outrun = self._begin.query()
        self._end.synchronize()
        took = float(self._begin.elapsed_time(self._end)) * 1e-3
        self._call_s = enqueue_s / max(1, len(calls))
        # A host that enqueues faster than the device runs is waited for once, a slower one at every call.
        gaps_s = self._call_s if enqueue_s < 0.5 * took else enqueue_s
        self.launch_bound = bool(outrun) and gaps_s > _GAPS * took
        return took

    def sustain(self, take: Callable[[int], Sequence[Call]], count: int, seconds: float) -> tuple[int, float]:
        """See :meth:`Timer.sustain`. Two batches are always queued: while one runs, the next is being enqueued."""
        import torch

        device = self._device.torch_device
        began = torch.Event(device, enable_timing=True)
        began.record()
        ends: list[Any] = []
        made = 0
        deadline = time.perf_counter_ns() + round(seconds * 1e9)
        while True:
            for call in take(count):
                call()
            end = torch.Event(device, enable_timing=True)
            end.record()
            ends.append(end)
            made += count
            if len(ends) >= 2:
                ends.pop(0).synchronize()
                if time.perf_counter_ns() >= deadline:
                    ends[-1].synchronize()
                    return made, float(began.elapsed_time(ends[-1])) * 1e-3
