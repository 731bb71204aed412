"""Layers fetched ahead of the computation that needs them: how much of the fetching can be hidden?"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, Constraint, Float, Int, Params, Value
from wattline.reasons import Reason
from wattline.suites.host.buffers import host_array
from wattline.suites.host.spin import burn, rounds_for
from wattline.suites.offload.engine import Engine, engine_for
from wattline.suites.offload.rows import page_locked
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import accelerator, module, never
from wattline.suites.storage.content import Content
from wattline.suites.storage.jobs import Access
from wattline.suites.storage.place import (
    IN_MEMORY,
    PATH,
    Scratch,
    folder_of,
    machine_is_linux,
    mount_facts,
    mount_of,
    why_not,
)
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload

if TYPE_CHECKING:
    from wattline.stats import TimeStats

SECTOR = 4096
SAMPLES = 64
"""Words of a layer that are looked at when its computation ends: a buffer that was filled again too early shows."""
_ALONE = 3
_TELLING = 0.02  # where the lines lie closer together than this share, no efficiency can be told


def source_ready() -> Requirement:
    """A folder on storage with room for all layers, where they are kept in a file."""

    def unmet(p: ParamValues, _: Machine) -> Reason | None:
        if p["source"] != "storage":
            return None
        folder = folder_of(p)
        kind = mount_of(folder).kind
        if kind in IN_MEMORY:
            return Reason("no_storage", f"{folder} lies on {kind}: memory, not storage; give a folder on a disk")
        return why_not(folder, int(p["layers"]) * int(p["bytes"]))

    return Requirement("storage with room, where layers are kept in a file", unmet)


class Source:
    """The layers, where they are kept.

    Args:
        p: the case.
        seed: of their content.
        memory: makes room on the host for layers that are kept there: uint8 ``[count]``.
    """

    def __init__(self, p: ParamValues, seed: int, memory: Callable[[int], Any]) -> None:
        self.layers, self.size, self.chunk = int(p["layers"]), int(p["bytes"]), int(p["chunk"]) or int(p["bytes"])
        total = self.layers * self.size
        self.content = Content(total, self.size, seed)
        self.facts: dict[str, Any] = {}
        self.scratch: Scratch | None = None
        self.access: Access | None = None
        self.memory: Any = None
        if p["source"] == "storage":
            self.scratch = Scratch(folder_of(p), total)
            self.content.write_to(self.scratch.descriptor)
            self.access = Access(self.scratch, "direct", "cold", SECTOR)
            self.facts = {**mount_facts(self.scratch.mount), **self.access.facts}
        else:
            self.memory = memory(total)
            for begin in range(0, total, self.content.period):
                count = min(self.content.period, total - begin)
                self.memory[begin : begin + count] = self.content.expected(begin, count)

    def load(self, layer: int, target: Any) -> None:
        """Bring a layer into host memory, ``chunk`` bytes at a time.

        Raises:
            OSError: it could not be read whole.
        """
        begin = layer * self.size
        for at in range(0, self.size, self.chunk):
            count = min(self.chunk, self.size - at)
            if self.access is None:
                target[at : at + count] = self.memory[begin + at : begin + at + count]
            elif os.preadv(self.access.descriptor, [memoryview(target)[at : at + count]], begin + at) != count:
                raise OSError(f"layer {layer} could not be read whole")

    def places(self) -> Any:
        """Where in a layer it is looked at: int64 word numbers ``[SAMPLES]``."""
        import numpy as np

        return np.unique(np.linspace(0, self.size // 8 - 1, SAMPLES).astype(np.int64))

    def wanted(self) -> Any:
        """The words that should be seen there: int64 ``[layers, samples]``."""
        import numpy as np

        layers = [self.content.expected(i * self.size, self.size).view(np.int64) for i in range(self.layers)]
        return np.stack([layer[self.places()] for layer in layers])

    @property
    def prepare(self) -> Callable[[], None] | None:
        """What a call needs before it: an empty page cache, where it cannot be gone around."""
        return self.access.drop if self.access is not None and self.access.drops else None

    def close(self) -> None:
        """Remove the file."""
        if self.scratch is not None:
            self.scratch.close()


class HostPipeline:
    """A thread that fetches, and the caller that computes.

    Args:
        source: of the layers.
        depth: layers fetched ahead; 0: fetched when needed, by the caller itself.
        rounds: of :func:`burn` for each layer.
    """

    def __init__(self, source: Source, depth: int, rounds: int) -> None:
        import numpy as np

        self._source, self._depth, self.rounds = source, depth, rounds
        self._buffers = [host_array(source.size, "uint8") for _ in range(depth + 1)]
        for buffer in self._buffers:
            buffer[:] = 0
        self._places = source.places()
        self.seen = np.zeros((source.layers, len(self._places)), np.int64)
        self.stalls: list[float] = []
        self._pool = ThreadPoolExecutor(1, "wattline-prefetch")

    def call(self) -> None:
        """All layers once."""
        source, buffers, stalled = self._source, self._buffers, 0.0
        if self._depth == 0:
            for layer in range(source.layers):
                begin = time.perf_counter()
                source.load(layer, buffers[0])
                stalled += time.perf_counter() - begin
                self._use(layer, buffers[0])
            self.stalls.append(stalled)
            return
        free, full = threading.Semaphore(len(buffers)), threading.Semaphore(0)
        fetching = self._pool.submit(self._fetch, free, full)
        for layer in range(source.layers):
            begin = time.perf_counter()
            full.acquire()
            stalled += time.perf_counter() - begin
            if fetching.done() and fetching.exception() is not None:
                break
            self._use(layer, buffers[layer % len(buffers)])
            free.release()
        fetching.result()
        self.stalls.append(stalled)

    def _fetch(self, free: threading.Semaphore, full: threading.Semaphore) -> None:
        try:
            for layer in range(self._source.layers):
                free.acquire()
                self._source.load(layer, self._buffers[layer % len(self._buffers)])
                full.release()
        except OSError:
            # The caller waits for layers that will not come: let it find out.
            full.release(self._source.layers)
            raise

    def _use(self, layer: int, buffer: Any) -> None:
        if self.rounds:
            burn()(self.rounds, 1.0)
        self.seen[layer] = buffer.view("int64")[self._places]

    def load_alone(self) -> None:
        """Fetch all layers with nothing beside it."""
        for layer in range(self._source.layers):
            self._source.load(layer, self._buffers[0])

    def compute_alone(self) -> None:
        """Compute for all layers with nothing beside it."""
        for layer in range(self._source.layers):
            self._use(layer, self._buffers[0])

    def wait(self) -> None:
        """Nothing is queued."""

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


class DevicePipeline:
    """Copies on a stream of their own, computation on the one that is timed.

    Args:
        engine: of the device.
        source: of the layers; those kept on the host must lie in page-locked memory.
        depth: layers fetched ahead; 0: all on one stream.
        seconds: of computation for each layer.
    """

    def __init__(self, engine: Engine, source: Source, depth: int, seconds: float) -> None:
        import torch

        self._engine, self._source, self._depth = engine, source, depth
        self._compute = engine.compute(seconds)
        count = depth + 1
        self._buffers = [engine.empty(source.size).zero_() for _ in range(count)]
        self._staging = [] if source.access is None else [engine.host(source.size, "pinned") for _ in range(count)]
        self._copies = engine.stream() if depth else None
        # One stream for each buffer carries nothing: it marks when the computation on that buffer has ended.
        self._used = [engine.stream() for _ in range(count)]
        self._copied = [engine.stream() for _ in range(count)]
        self._places = torch.from_numpy(source.places()).to(engine.device)
        self.seen = torch.zeros(source.layers, len(self._places), dtype=torch.int64, device=engine.device)

    def call(self) -> None:
        """All layers once; returns when they are queued."""
        engine, now = self._engine, self._engine.current()
        if self._copies is not None:
            engine.wait(self._copies, now)
        for layer in range(self._source.layers):
            self._copy(layer)
            slot = layer % len(self._buffers)
            if self._copies is not None:
                engine.wait(now, self._copied[slot])
            engine.run(now, self._compute)
            engine.run(now, lambda i=layer, b=self._buffers[slot]: self._look(i, b))  # type: ignore[misc]
            engine.wait(self._used[slot], now)

    def _copy(self, layer: int) -> None:
        engine, source, slot = self._engine, self._source, layer % len(self._buffers)
        stream = self._copies if self._copies is not None else engine.current()
        if source.access is None:
            import torch

            piece = torch.from_numpy(source.memory[layer * source.size : (layer + 1) * source.size])
        else:
            engine.wait_for(self._copied[slot])  # the copy before has left this staging buffer
            piece = self._staging[slot].host
            source.load(layer, piece.numpy())
        engine.wait(stream, self._used[slot])
        for at in range(0, source.size, source.chunk):
            end = min(source.size, at + source.chunk)
            target, part = self._buffers[slot][at:end], piece[at:end]
            engine.run(stream, lambda t=target, s=part: t.copy_(s, non_blocking=True))  # type: ignore[misc]
        engine.wait(self._copied[slot], stream)

    def _look(self, layer: int, buffer: Any) -> None:
        import torch

        self.seen[layer] = buffer.view(torch.int64)[self._places]

    def load_alone(self) -> None:
        """Fetch all layers with nothing beside it."""
        for layer in range(self._source.layers):
            self._copy(layer)
        self._engine.synchronize()

    def compute_alone(self) -> None:
        """Compute for all layers with nothing beside it."""
        for _ in range(self._source.layers):
            self._engine.run(self._engine.current(), self._compute)
        self._engine.synchronize()

    def wait(self) -> None:
        """Wait for what is queued."""
        self._engine.synchronize()

    def close(self) -> None:
        """Give the staging buffers back."""
        for memory in self._staging:
            memory.close()


def lines(load_s: float, compute_s: float, layers: int) -> tuple[float, float]:
    """What a pipeline takes at worst and at best, by what its parts take alone.

    Returns:
        Without overlap, their sum; with perfect overlap, the longer of the two and one layer of the other, which the
        first (or last) layer has nothing to hide behind.
    """
    return load_s + compute_s, max(load_s + compute_s / layers, compute_s + load_s / layers)


@workload(
    "offload.pipeline",
    impl="host",
    requires=(
        machine_is_linux(), module("numba"), source_ready(),
        never(lambda p, m: m.kind != "cpu", "host_only", "it fetches into host memory: add --device cpu"),
        never(lambda p, m: p["to"] != "host", "no_accelerator", "it fetches into host memory: to = host"),
    ),
)  # fmt: skip
class Pipeline(Workload):
    """Layers fetched ahead by a thread while the CPU computes: from storage, or from other host memory."""

    params = Params(
        Constraint(
            f"bytes and chunk are multiples of {SECTOR}, and chunk is no more than bytes (0: all)",
            lambda p: int(p["bytes"]) % SECTOR == int(p["chunk"]) % SECTOR == 0 and int(p["chunk"]) <= int(p["bytes"]),
        ),
        path=PATH,
        source=Choice("storage", "host", doc="where the layers are kept: in a file, or in host memory"),
        to=Choice("host", "device", doc="where they are needed"),
        layers=Int(16, lo=2, hi=10_000, doc="layers of a pass"),
        bytes=Int(1 << 22, lo=SECTOR, doc="bytes of a layer"),
        chunk=Int(0, lo=0, doc="bytes of one request or copy; 0: a layer"),
        depth=Int(1, lo=0, hi=256, doc="layers fetched ahead; 0: none, no overlap"),
        compute_s=Float(0.004, hi=1.0, doc="seconds of computation for each layer"),
    )
    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        source = Source(p, int(ctx.tensor((1,), "int8").item()) + 1000, lambda count: host_array(count, "uint8"))
        ctx.defer(source.close)
        rounds = rounds_for(float(p["compute_s"])) if p["compute_s"] else 0
        pipeline = HostPipeline(source, int(p["depth"]), rounds)
        ctx.defer(pipeline.close)
        inputs = {"pipeline": pipeline, "source": source}
        return Kernel(pipeline.call, inputs, facts=source.facts, prepare=source.prepare)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: words of every layer, as they were when its computation ended."""
        import torch

        pipeline, wanted = kernel.inputs["pipeline"], torch.from_numpy(kernel.inputs["source"].wanted())
        pipeline.wait()
        seen = torch.as_tensor(pipeline.seen).cpu()
        return float((seen != wanted).double().mean()), 0.0, f"{wanted.shape[1]} words of each layer"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the buffers, and the layers where memory holds them."""
        kept = int(p["layers"]) if p["source"] == "host" and p["to"] == "host" else 0
        return float((int(p["depth"]) + 1 + kept) * int(p["bytes"]))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`: between the two lines, and how much of the way was made."""
        pipeline, prepare = kernels[0].inputs["pipeline"], kernels[0].prepare
        load = _alone(pipeline.load_alone, pipeline.wait, prepare)
        compute = _alone(pipeline.compute_alone, pipeline.wait, None)
        worst, best = lines(load, compute, int(p["layers"]))
        facts = {
            "load_alone_s": load,
            "compute_alone_s": compute,
            "no_overlap_s": worst,
            "perfect_overlap_s": best,
            "stall_s": stats.median_s - compute,
            "bytes_per_s": int(p["layers"]) * int(p["bytes"]) / stats.median_s,
        }
        if worst - best > _TELLING * worst:
            facts["overlap_efficiency"] = (worst - stats.median_s) / (worst - best)
        waits = getattr(pipeline, "stalls", None)
        return {**facts, "waited_s": statistics.median(waits)} if waits else facts

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: few layers."""
        return None if int(p["layers"]) <= 2 else {**p, "layers": 2}


def _alone(part: Callable[[], None], wait: Callable[[], None], prepare: Callable[[], None] | None) -> float:
    spent = []
    for _ in range(_ALONE):
        if prepare is not None:
            prepare()
        wait()
        begin = time.perf_counter()
        part()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


@implementation(
    "offload.pipeline",
    "device",
    requires=(
        accelerator(), page_locked(), machine_is_linux(), source_ready(),
        never(lambda p, m: p["to"] != "device", "host_only", "it fetches into the device's memory: to = device"),
    ),
)  # fmt: skip
def _device(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Layers copied ahead on a stream of their own while the device computes, from host memory or by way of it."""
    engine = engine_for(ctx)

    def memory(count: int) -> Any:
        made = engine.host(count, "pinned")
        ctx.defer(made.close)
        return made.host.numpy()

    source = Source(p, int(ctx.tensor((1,), "int8").item()) + 1000, memory)
    ctx.defer(source.close)
    pipeline = DevicePipeline(engine, source, int(p["depth"]), float(p["compute_s"]))
    ctx.defer(pipeline.close)
    return Kernel(pipeline.call, {"pipeline": pipeline, "source": source}, facts=source.facts, prepare=source.prepare)
