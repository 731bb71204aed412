"""Scattered pieces: rows of a table on the host that the device needs, and blocks of a KV cache that come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, Constraint, Int, Params, Value
from wattline.suites.host.buffers import host_array, nodes_exist
from wattline.suites.offload.copies import Lane, pattern, share_wrong
from wattline.suites.offload.engine import engine_for, thread_node
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import accelerator, never
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Requirement, Workload

if TYPE_CHECKING:
    from wattline.stats import TimeStats

LINE = 128
"""Bytes of a GPU's cache line: the offset of rows is counted from a multiple of it."""


def page_locked() -> Requirement:
    """CUDA or ROCm, which page-locked memory is asked of."""
    return never(
        lambda p, m: m.kind not in ("cpu", "cuda"), "no_pinned_memory",
        "page-locked memory is asked of CUDA and ROCm only",
    )  # fmt: skip


def _speed(size: int, stats: TimeStats) -> dict[str, Any]:
    return {"bytes_per_s": size / stats.median_s}


def _numbers(p: ParamValues, ctx: BuildContext, of: int, count: int) -> Any:
    """``count`` different numbers below ``of`` in random order, int64."""
    import numpy as np
    import torch

    rng = np.random.default_rng(int(ctx.tensor((1,), "int8").item()) + 1000)
    return torch.from_numpy(rng.permutation(of)[:count].astype(np.int64))


def _table(p: ParamValues, raw: Any) -> Any:
    """The table ``[table_rows, row_bytes]`` in memory with room for its offset."""
    rows, width, offset = int(p["table_rows"]), int(p["row_bytes"]), int(p["offset"])
    return raw[offset : offset + rows * width].view(rows, width)


@workload("offload.gather", impl="copy", requires=(accelerator(), page_locked(), nodes_exist()))
class Gather(Workload):
    """Rows gathered by the CPU into page-locked memory, then copied to the device at once."""

    params = Params(
        Constraint("rows are no more than table_rows", lambda p: int(p["rows"]) <= int(p["table_rows"])),
        rows=Int(doc="rows that are needed, each once, in random order"),
        row_bytes=Int(512, doc="bytes of a row"),
        table_rows=Int(1 << 20, doc="rows of the table on the host"),
        offset=Int(0, lo=0, hi=LINE - 1, doc=f"bytes from a multiple of {LINE} to the table's first row"),
        node=Int(-1, lo=-1, hi=1023, doc="memory node that holds the table; -1: the nearest"),
    )
    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        import torch

        engine, count, width = engine_for(ctx), int(p["rows"]), int(p["row_bytes"])
        size = int(p["table_rows"]) * width + LINE
        memory, staging = engine.host(size, "pageable", int(p["node"])), engine.host(count * width, "pinned")
        ctx.defer(staging.close)
        table, numbers = _table(p, memory.host), _numbers(p, ctx, int(p["table_rows"]), count)
        memory.host.copy_(pattern(size, 77))
        there = engine.empty(count * width).zero_()
        packed = staging.host.view(count, width)

        def call() -> Any:
            # The copy before must have left the staging buffer; whoever streams batches has two of them.
            engine.synchronize()
            torch.index_select(table, 0, numbers, out=packed)
            engine.run(engine.current(), lambda: there.copy_(staging.host, non_blocking=True))
            return there

        inputs = {"table": table, "numbers": numbers, "wait": engine.synchronize}
        return Kernel(call, inputs, facts={**memory.facts, "thread_node": thread_node()})

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: every byte."""
        kernel.inputs["wait"]()
        wanted = kernel.inputs["table"][kernel.inputs["numbers"]].reshape(-1)
        return share_wrong(result.reshape(-1), wanted), 0.0, "full"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the rows; the table lies on the host, which may be the device."""
        return float(int(p["rows"]) * int(p["row_bytes"]))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`."""
        return {**_speed(int(p["rows"]) * int(p["row_bytes"]), stats), "rows_per_s": int(p["rows"]) / stats.median_s}

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer rows of a smaller table."""
        smaller = size * 16
        if int(p["rows"]) <= smaller:
            return None
        return {**p, "rows": smaller, "table_rows": min(int(p["table_rows"]), 16 * smaller)}


@implementation("offload.gather", "zero_copy", requires=(accelerator(), page_locked(), nodes_exist()))
def _zero_copy(p: ParamValues, ctx: BuildContext) -> Kernel:
    """A kernel of the device reads the rows where they lie, over the link."""
    import torch

    engine, count, width = engine_for(ctx), int(p["rows"]), int(p["row_bytes"])
    size = int(p["table_rows"]) * width + LINE
    memory = engine.host(size, "zero_copy", int(p["node"]))
    ctx.defer(memory.close)
    numbers = _numbers(p, ctx, int(p["table_rows"]), count)
    memory.host.copy_(pattern(size, 77))
    table, there = _table(p, memory.device), engine.empty(count * width).zero_().view(count, width)
    on_device = numbers.to(engine.device)

    def call() -> Any:
        engine.run(engine.current(), lambda: torch.index_select(table, 0, on_device, out=there))
        return there

    inputs = {"table": _table(p, memory.host), "numbers": numbers, "wait": engine.synchronize}
    return Kernel(call, inputs, facts={**memory.facts, "thread_node": thread_node()})


@implementation(
    "offload.gather",
    "host",
    requires=(
        nodes_exist(),
        never(lambda p, m: m.kind != "cpu", "host_only", "it measures the host's part alone: add --device cpu"),
    ),
)
def _host(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The CPU's part alone: rows gathered into one piece of memory."""
    import torch

    count, width = int(p["rows"]), int(p["row_bytes"])
    size = int(p["table_rows"]) * width + LINE
    raw = torch.from_numpy(host_array(size, "uint8", node=int(p["node"])))
    raw.copy_(pattern(size, 77))
    table, numbers = _table(p, raw), _numbers(p, ctx, int(p["table_rows"]), count)
    packed = torch.zeros(count, width, dtype=torch.uint8)

    def call() -> Any:
        return torch.index_select(table, 0, numbers, out=packed)

    return Kernel(call, {"table": table, "numbers": numbers, "wait": lambda: None})


@workload("offload.swap", impl="block", requires=(accelerator(), page_locked()))
class Swap(Workload):
    """Blocks of a KV cache moved one by one, each with a copy of its own."""

    params = Params(
        Constraint("blocks are no more than pool", lambda p: int(p["blocks"]) <= int(p["pool"])),
        blocks=Int(doc="blocks that move, scattered on both sides"),
        block_bytes=Int(1 << 16, doc="bytes of a block"),
        pool=Int(1024, doc="blocks that either side has room for"),
        direction=Choice("out", "in", doc="from the device to the host, or back"),
    )
    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        return _swap(p, ctx, coalesced=False)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: every byte of the blocks, and that no other block was touched."""
        kernel.inputs["wait"]()
        return share_wrong(kernel.inputs["target"], kernel.inputs["wanted"]), 0.0, "full"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the device's pool, and what packing needs."""
        return float((int(p["pool"]) + int(p["blocks"])) * int(p["block_bytes"]))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`."""
        return _speed(int(p["blocks"]) * int(p["block_bytes"]), stats)

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer blocks."""
        smaller = max(1, size // 16)
        return None if int(p["blocks"]) <= smaller else {**p, "blocks": smaller, "pool": 2 * smaller}


@implementation("offload.swap", "coalesced", requires=(accelerator(), page_locked()))
def _coalesced(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Blocks packed on the device, moved in one copy, and spread on the other side."""
    return _swap(p, ctx, coalesced=True)


def _swap(p: ParamValues, ctx: BuildContext, *, coalesced: bool) -> Kernel:
    import torch

    engine, count, width, pool = engine_for(ctx), int(p["blocks"]), int(p["block_bytes"]), int(p["pool"])
    made = engine.host(pool * width, "pinned")
    ctx.defer(made.close)
    near, far = made.host.view(pool, width), engine.empty(pool * width).view(pool, width)
    here, there = _numbers(p, ctx, pool, count), _numbers(p, ctx, pool, count)
    outwards = p["direction"] == "out"
    content = pattern(pool * width, 78).view(pool, width)
    (far if outwards else near).copy_(content)
    (near if outwards else far).zero_()
    engine.synchronize()
    wanted = torch.zeros_like(content)
    wanted[here if outwards else there] = content[there if outwards else here]
    target = near if outwards else far

    if not coalesced:
        lanes = []
        for on_host, on_device in zip(here.tolist(), there.tolist(), strict=True):
            pair = (near[on_host], far[on_device]) if outwards else (far[on_device], near[on_host])
            lanes.append(Lane(engine, *pair))

        def each() -> Any:
            for lane in lanes:
                lane.begin()
            return target

        return Kernel(each, {"target": target, "wanted": wanted, "wait": engine.synchronize}, facts={"copies": count})
    staging = engine.host(count * width, "pinned")
    ctx.defer(staging.close)
    packed, numbers = engine.empty(count * width).view(count, width), there.to(engine.device)
    on_host = staging.host.view(count, width)

    def out() -> Any:
        now = engine.current()
        engine.run(now, lambda: torch.index_select(far, 0, numbers, out=packed))
        engine.run(now, lambda: on_host.copy_(packed, non_blocking=True))
        engine.synchronize()  # the host spreads what has arrived
        near[here] = on_host
        return target

    def back() -> Any:
        engine.synchronize()  # the copy before has left the staging buffer
        torch.index_select(near, 0, here, out=on_host)
        now = engine.current()
        engine.run(now, lambda: packed.copy_(on_host, non_blocking=True))
        engine.run(now, lambda: far.index_copy_(0, numbers, packed))
        return target

    inputs = {"target": target, "wanted": wanted, "wait": engine.synchronize}
    return Kernel(out if outwards else back, inputs, facts={"copies": 1})
