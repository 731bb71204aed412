"""Samples that all ranks take together: rank 0 decides how many calls, all begin at one moment, the slowest counts.

The loop around the calls does nothing but read a clock after each of them. Everything else (agreeing, waiting,
putting inputs back, collecting durations) lies between samples.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattline.collectors.device import Device
from wattline.suites.collectives.clocks import Offset, Starter
from wattline.suites.collectives.join import World
from wattline.suites.collectives.kernel import GroupKernel
from wattline.suites.measure.case import KERNEL_ERRORS

OUTSTANDING = 4
"""Asynchronous operations that are under way at a time."""
Run = Callable[[Sequence[Any]], tuple[int, list[int]]]
"""Runs calls; returns the nanoseconds of all of them, and of each."""


def host_run(calls: Sequence[Any]) -> tuple[int, list[int]]:
    """Calls that have ended when they return, by the host's clock."""
    clock = time.perf_counter_ns
    stamps: list[int] = []
    stamp = stamps.append
    begin = clock()
    for call in calls:
        call()
        stamp(clock())
    return _durations(begin, stamps)


def host_run_async(calls: Sequence[Any]) -> tuple[int, list[int]]:
    """Calls that return a handle, :data:`OUTSTANDING` of them under way; each counts from the end of the one before."""
    clock = time.perf_counter_ns
    stamps: list[int] = []
    pending: deque[Any] = deque()
    begin = clock()
    for call in calls:
        pending.append(call())
        if len(pending) >= OUTSTANDING:
            pending.popleft().wait()
            stamps.append(clock())
    while pending:
        pending.popleft().wait()
        stamps.append(clock())
    return _durations(begin, stamps)


def synchronised_run(synchronize: Callable[[], None]) -> Run:
    """Calls whose end the device must be asked for, one by one: what a caller sees."""

    def run(calls: Sequence[Any]) -> tuple[int, list[int]]:
        clock = time.perf_counter_ns
        stamps: list[int] = []
        begin = clock()
        for call in calls:
            handle = call()
            if hasattr(handle, "wait"):
                handle.wait()
            synchronize()
            stamps.append(clock())
        return _durations(begin, stamps)

    return run


def event_run(device: Device, *, asynchronous: bool, each: bool = True) -> Run:
    """Calls that are queued on an accelerator, by its events on the current stream; ``each``: of every call."""
    import torch

    events: list[Any] = []

    def run(calls: Sequence[Any]) -> tuple[int, list[int]]:
        while len(events) <= (len(calls) if each else 1):
            events.append(torch.Event(device.torch_device, enable_timing=True))
        pending: deque[Any] = deque()
        at = 0

        def mark() -> None:
            nonlocal at
            at += 1
            events[at].record()

        events[0].record()
        for call in calls:
            handle = call()
            if asynchronous:
                pending.append(handle)
                if len(pending) < OUTSTANDING:
                    continue
                pending.popleft().wait()  # the stream waits, not the host
            if each:
                mark()
        while pending:
            pending.popleft().wait()
            if each:
                mark()
        if not each:
            mark()
        events[at].synchronize()
        steps = [round(events[i].elapsed_time(events[i + 1]) * 1e6) for i in range(at)]
        return round(events[0].elapsed_time(events[at]) * 1e6), steps

    return run


def _durations(begin: int, stamps: list[int]) -> tuple[int, list[int]]:
    each = [end - start for start, end in zip([begin, *stamps], stamps, strict=False)]
    return (stamps[-1] - begin if stamps else 0), each


def runner_for(device: Device, kernel: GroupKernel, regime: str, *, each: bool = True) -> Run:
    """How the calls of a kernel are timed on a device in a regime; ``each``: every call, or all of them together."""
    if device.kind == "cpu":
        return host_run_async if kernel.asynchronous else host_run
    if regime == "eager":
        return synchronised_run(device.synchronize)
    return event_run(device, asynchronous=kernel.asynchronous and regime != "graph", each=each)


@dataclass
class Taken:
    """Samples of one case or stage, seen from one rank.

    Attributes:
        count: calls of each sample.
        slowest_ns: per sample the nanoseconds of the slowest rank; on rank 0 only.
        by_rank_ns: per sample those of each rank; on rank 0 only.
        late_ns: per sample how late each rank was; on rank 0 only.
        mine_ns: this rank's samples.
        each_ns: this rank's iterations, all samples in a row.
        stop: why it ended; on rank 0 only.
        precision: relative half-width reached; on rank 0 only.
    """

    count: int = 1
    slowest_ns: list[int] = field(default_factory=list)
    by_rank_ns: list[list[int]] = field(default_factory=list)
    late_ns: list[list[int]] = field(default_factory=list)
    mine_ns: list[int] = field(default_factory=list)
    each_ns: list[int] = field(default_factory=list)
    stop: str = ""
    precision: float = float("inf")

    def per_call_s(self) -> list[float]:
        """Seconds per call of the slowest rank, one a sample."""
        return [ns * 1e-9 / self.count for ns in self.slowest_ns]


class Lockstep:
    """Takes samples on all ranks at once.

    Args:
        world: the ranks.
        offsets: their clocks.
        alive: told that there is progress.
    """

    def __init__(self, world: World, offsets: Sequence[Offset], alive: Callable[[], None]) -> None:
        self._world = world
        self._starter = Starter(world, offsets[world.rank])
        self._alive = alive

    def take(
        self, kernels: Sequence[GroupKernel], run: Run, calls: Sequence[Any], next_count: Callable[[Taken], int]
    ) -> Taken:
        """Take samples for as long as rank 0 wants.

        Args:
            kernels: one per set of buffers.
            run: times calls.
            calls: the call of each kernel (or a stage of it, or a replay).
            next_count: asked on rank 0: calls of the next sample, 0 to end.
        """
        import torch
        import torch.distributed as dist

        world, taken, position = self._world, Taken(), 0
        mine = torch.zeros(2, dtype=torch.int64)
        rows = [torch.zeros(2, dtype=torch.int64) for _ in range(world.size)] if world.rank == 0 else None
        while True:
            for kernel in kernels:
                if kernel.refresh is not None:
                    kernel.refresh()
            count, moment = self._starter.agree(next_count(taken) if world.rank == 0 else 0)
            if count == 0:
                return taken
            ring = [calls[(position + i) % len(calls)] for i in range(count)]
            position = (position + count) % len(calls)
            with world.guarded("measuring", KERNEL_ERRORS):
                self._starter.wait(moment)
                whole, each = run(ring)
            mine[0], mine[1] = whole, self._starter.late_ns
            with world.guarded("collecting times"):
                dist.gather(mine, rows, dst=0)
            self._alive()
            taken.count = count
            taken.mine_ns.append(whole)
            taken.each_ns += each
            if rows is not None:
                pairs = [row.tolist() for row in rows]
                taken.by_rank_ns.append([pair[0] for pair in pairs])
                taken.late_ns.append([pair[1] for pair in pairs])
                taken.slowest_ns.append(max(taken.by_rank_ns[-1]))
                self._starter.learn(max(taken.late_ns[-1]))
