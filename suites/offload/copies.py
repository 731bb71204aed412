"""Copies between host and device, whole or in chunks over streams, from every kind of host memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, Constraint, Int, Param, Params, Value
from wattline.suites.host.buffers import nodes_exist
from wattline.suites.offload.engine import KINDS, Engine, engine_for, thread_node
from wattline.suites.registry import workload
from wattline.suites.requirements import accelerator, cuda, never, when
from wattline.suites.storage.content import words
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

if TYPE_CHECKING:
    from wattline.stats import TimeStats

WORD = 8
_TIMINGS = 5

_RULES = (
    Constraint(
        f"bytes and chunk are multiples of {WORD}", lambda p: int(p["bytes"]) % WORD == int(p["chunk"]) % WORD == 0
    ),
    Constraint("chunk is no more than bytes (0: all of them)", lambda p: int(p["chunk"]) <= int(p["bytes"])),
)  # fmt: skip
_SIZES: dict[str, Param] = {
    "bytes": Int(lo=WORD, doc="bytes of each direction"),
    "chunk": Int(0, lo=0, doc="bytes of one copy; 0: all"),
    "streams": Int(1, hi=64, doc="streams that the copies are dealt to in turn"),
}
_HOST: dict[str, Param] = {
    "memory": Choice(*KINDS, doc="of the host: page-locked, ordinary, migrated by the driver, or read over the link"),
    "node": Int(-1, lo=-1, hi=1023, doc="memory node that holds the host's buffer; -1: the nearest"),
}
LINKED = (
    accelerator(),
    nodes_exist(),
    when(
        lambda p: p["memory"] == "managed", cuda(), "memory = managed"
    ),
    never(
        lambda p, m: m.kind not in ("cpu", "cuda") and p["memory"] != "pageable", "no_pinned_memory",
        "page-locked memory is asked of CUDA and ROCm only: memory = pageable",
    ),
    never(
        lambda p, m: p["memory"] == "managed" and (int(p["node"]) >= 0 or int(p["streams"]) > 1 or bool(p["chunk"])),
        "no_placing", "the driver moves managed memory as it likes: no node, no streams, no chunks",
    ),
)  # fmt: skip


def chunks(first: Any, second: Any, chunk: int) -> list[tuple[Any, Any]]:
    """Two tensors of equal length in pairs of pieces of ``chunk`` bytes; 0: whole."""
    step = chunk or len(first)
    return [(first[at : at + step], second[at : at + step]) for at in range(0, len(first), step)]


def through_kernel(target: Any, source: Any) -> None:
    """Copy by a kernel of the device, which reads or writes the host's memory itself: a copy engine would not do."""
    import torch

    torch.bitwise_or(source.view(torch.int64), 0, out=target.view(torch.int64))


class Lane:
    """Copies in one direction, dealt to streams.

    Args:
        engine: of the device.
        target, source: uint8 ``[count]``.
        chunk: bytes of a copy; 0: all.
        streams: how many; one and ``apart`` not set: the one that is timed.
        kernel: whether kernels copy, rather than the device's copy engines.
        apart: use streams of its own in any case.
    """

    def __init__(
        self, engine: Engine, target: Any, source: Any, *, chunk: int = 0, streams: int = 1, kernel: bool = False,
        apart: bool = False,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._pairs = chunks(target, source, chunk)
        self._streams = [engine.stream() for _ in range(streams)] if streams > 1 or apart else []
        self._marks: tuple[Any, Any] = (None, None)
        self._copy: Callable[[Any, Any], Any] = through_kernel if kernel else _copy

    def begin(self) -> None:
        """Queue the copies behind what the timed stream holds."""
        engine, now = self._engine, self._engine.current()
        for stream in self._streams:
            engine.wait(stream, now)
        for i, (target, source) in enumerate(self._pairs):
            stream = self._streams[i % len(self._streams)] if self._streams else now
            engine.run(stream, lambda t=target, s=source: self._copy(t, s))  # type: ignore[misc]

    def end(self) -> None:
        """Let the timed stream wait for them."""
        for stream in self._streams:
            self._engine.wait(self._engine.current(), stream)

    def begin_marked(self) -> None:
        """As :meth:`begin`, between two marks on its first stream."""
        stream = self._streams[0]
        first = self._engine.mark(stream)
        self.begin()
        for other in self._streams[1:]:
            self._engine.wait(stream, other)
        last = self._engine.mark(stream)
        self._marks = (first, last)

    def elapsed(self) -> float:
        """Seconds between the marks of :meth:`begin_marked`, once the device has been waited for."""
        return float(self._marks[0].elapsed_time(self._marks[1])) * 1e-3


def _copy(target: Any, source: Any) -> None:
    target.copy_(source, non_blocking=True)


def pattern(count: int, seed: int) -> Any:
    """Bytes ``[count]`` that follow from their position, on the host."""
    import numpy as np
    import torch

    return torch.from_numpy(words(-(-count // 8), seed).view(np.uint8)[:count].copy())


def share_wrong(found: Any, wanted: Any) -> float:
    """The share of bytes that differ."""
    return float((found.cpu() != wanted).double().mean())


class Copy(Workload):
    """What copies in one direction have in common."""

    params = Params(*_RULES, **_SIZES, **_HOST)
    regime = "hot"
    to_device = True

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        engine, size, kind = engine_for(ctx), int(p["bytes"]), str(p["memory"])
        made = engine.host(size, kind, int(p["node"]))
        ctx.defer(made.close)
        there = engine.empty(size)
        wanted = pattern(size, int(ctx.tensor((1,), "int8").item()) + 1000)
        kernels = kind in ("managed", "zero_copy")
        near = made.device if kernels else made.host
        target, source = (there, near) if self.to_device else (near, there)
        (made.host if self.to_device else there).copy_(wanted)
        (there if self.to_device else made.host).zero_()
        engine.synchronize()
        lane = Lane(engine, target, source, chunk=int(p["chunk"]), streams=int(p["streams"]), kernel=kernels)

        def call() -> Any:
            lane.begin()
            lane.end()
            return target

        prepare = None
        if kind == "managed":
            # The host's writing brings the pages back to it, so that every call moves them anew.
            def prepare() -> None:
                made.host.bitwise_xor_(0)
                engine.synchronize()

        facts = {**made.facts, "thread_node": thread_node(), "copies": len(chunks(target, source, int(p["chunk"])))}
        result = made.host if not self.to_device else there
        inputs = {"wanted": wanted, "result": result, "wait": engine.synchronize}
        return Kernel(call, inputs, facts=facts, prepare=prepare)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: every byte."""
        kernel.inputs["wait"]()
        return share_wrong(kernel.inputs["result"], kernel.inputs["wanted"]), 0.0, "full"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the device's buffer; the host has another."""
        return float(int(p["bytes"]))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`."""
        return {"bytes_per_s": int(p["bytes"]) / stats.median_s}

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer bytes."""
        smaller = size * 8192
        if int(p["bytes"]) <= smaller:
            return None
        return {**p, "bytes": smaller, "chunk": min(int(p["chunk"]), smaller)}


@workload("offload.h2d", requires=LINKED)
class HostToDevice(Copy):
    """Bytes from the host to the device."""


@workload(
    "offload.d2h",
    requires=(
        *LINKED,
        never(
            lambda p, m: p["memory"] == "managed", "one_way",
            "managed memory comes back when the host touches it, which no stream sees: memory = pinned, pageable or "
            "zero_copy",
        ),
    ),
)  # fmt: skip
class DeviceToHost(Copy):
    """Bytes from the device to the host."""

    to_device = False


@workload("offload.d2d", requires=(accelerator(),))
class Within(Copy):
    """Bytes from one place of the device's memory to another."""

    params = Params(*_RULES, **_SIZES)

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        engine, size = engine_for(ctx), int(p["bytes"])
        wanted = pattern(size, int(ctx.tensor((1,), "int8").item()) + 1000)
        source, target = engine.empty(size), engine.empty(size)
        source.copy_(wanted)
        target.zero_()
        engine.synchronize()
        lane = Lane(engine, target, source, chunk=int(p["chunk"]), streams=int(p["streams"]))

        def call() -> Any:
            lane.begin()
            lane.end()
            return target

        return Kernel(call, {"wanted": wanted, "result": target, "wait": engine.synchronize})

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`."""
        return 2.0 * int(p["bytes"])


@workload(
    "offload.bidirectional",
    requires=(
        *LINKED,
        never(
            lambda p, m: p["memory"] not in ("pinned", "pageable"), "one_way",
            "both directions at once need copy engines: memory = pinned or pageable",
        ),
    ),
)  # fmt: skip
class Bidirectional(Copy):
    """Bytes in both directions at once, on streams of their own."""

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        engine, size = engine_for(ctx), int(p["bytes"])
        seed = int(ctx.tensor((1,), "int8").item()) + 1000
        wanted = [pattern(size, seed), pattern(size, seed + 1)]
        down, up = (engine.host(size, str(p["memory"]), int(p["node"])) for _ in range(2))
        ctx.defer(down.close)
        ctx.defer(up.close)
        target, source = engine.empty(size), engine.empty(size)
        up.host.copy_(wanted[0])
        source.copy_(wanted[1])
        down.host.zero_()
        target.zero_()
        engine.synchronize()
        chunk, streams = int(p["chunk"]), int(p["streams"])
        lanes = (
            Lane(engine, target, up.host, chunk=chunk, streams=streams, apart=True),
            Lane(engine, down.host, source, chunk=chunk, streams=streams, apart=True),
        )

        def call() -> Any:
            for lane in lanes:
                lane.begin()
            for lane in lanes:
                lane.end()
            return target

        inputs = {"wanted": wanted, "results": (target, down.host), "wait": engine.synchronize, "lanes": lanes}
        return Kernel(call, inputs, facts={**up.facts, "thread_node": thread_node()})

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: every byte of both directions."""
        kernel.inputs["wait"]()
        pairs = zip(kernel.inputs["results"], kernel.inputs["wanted"], strict=True)
        return max(share_wrong(found, wanted) for found, wanted in pairs), 0.0, "full"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`."""
        return 2.0 * int(p["bytes"])

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`: each direction while the other runs, and the sum."""
        lanes, wait = kernels[0].inputs["lanes"], kernels[0].inputs["wait"]
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(_TIMINGS):
            for lane in lanes:
                lane.begin_marked()
            for lane in lanes:
                lane.end()
            wait()
            for spent, lane in zip(taken, lanes, strict=True):
                spent.append(lane.elapsed())
        size = int(p["bytes"])
        up, down = (size / statistics.median(spent) for spent in taken)
        return {"h2d_bytes_per_s": up, "d2h_bytes_per_s": down, "bytes_per_s": 2 * size / stats.median_s}
