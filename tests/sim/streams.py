"""Streams of a device that run in any order that is allowed: a stand-in for the engine of suite `offload`."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from typing import Any

import torch

from wattline.suites.host.buffers import host_array
from wattline.suites.offload import engine


class Mark:
    """A moment of a stream, in milliseconds, as an event of torch has it."""

    def __init__(self) -> None:
        self.at = 0.0

    def elapsed_time(self, later: Mark) -> float:
        return later.at - self.at


class SimulatedEngine(engine.Engine):
    """Streams as queues. Nothing runs before somebody waits, and then in a random order among those allowed: whoever
    forgets to wait reads what is not there yet.
    """

    def __init__(self, seed: int = 0, free: int = 1 << 30) -> None:
        self.device = torch.device("cpu")
        self.free = free
        self.closed = 0
        self.clock = 0.0
        self._chance = random.Random(seed)
        self._main = self.stream_at(0)
        self._streams = [self._main]

    @staticmethod
    def stream_at(done: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(queue=[], done=done, added=0)

    def empty(self, count: int) -> Any:
        return torch.full((count,), 0xA5, dtype=torch.uint8)

    def free_bytes(self) -> int:
        return self.free

    def stream(self) -> Any:
        self._streams.append(self.stream_at(0))
        return self._streams[-1]

    def current(self) -> Any:
        return self._main

    def _add(self, stream: Any, *what: Any) -> None:
        stream.queue.append(what)
        stream.added += 1

    def run(self, stream: Any, action: Callable[[], Any]) -> None:
        self._add(stream, "run", action)

    def wait(self, stream: Any, before: Any) -> None:
        self._add(stream, "wait", before, before.added)

    def mark(self, stream: Any) -> Any:
        mark = Mark()
        self._add(stream, "run", lambda: setattr(mark, "at", self.clock))
        return mark

    def compute(self, seconds: float) -> Callable[[], Any]:
        return lambda: setattr(self, "clock", self.clock + 1e3 * seconds)

    def _step(self, stream: Any) -> bool:
        if not stream.queue:
            return False
        kind, *what = stream.queue[0]
        if kind == "wait" and what[0].done < what[1]:
            return False
        stream.queue.pop(0)
        if kind == "run":
            what[0]()
            self.clock += 1.0
        stream.done += 1
        return True

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            order = self._streams[:]
            self._chance.shuffle(order)
            assert any(self._step(stream) for stream in order), "streams wait for each other"

    def wait_for(self, stream: Any) -> None:
        self._until(lambda: not stream.queue)

    def synchronize(self) -> None:
        self._until(lambda: not any(stream.queue for stream in self._streams))

    def host(self, count: int, kind: str = "pinned", node: int = -1) -> engine.HostMemory:
        memory = torch.from_numpy(host_array(count, "uint8")).zero_()  # whole pages, as O_DIRECT wants them

        def close() -> None:
            self.closed += 1

        device = memory if kind in ("zero_copy", "managed") else None
        return engine.HostMemory(memory, device, close, {"memory_node": "0"})
