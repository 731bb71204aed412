"""The collectives of torch.distributed, one workload each, with the sizes of nccl-tests.

``bytes`` is S: what each rank holds for all-reduce, broadcast, reduce and send-recv; count times ranks for the
gather-like ones; for all_to_all_v the largest of what a rank sends to others or receives from them (NVIDIA
nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, DType, Float, Int, Param, Params
from wattline.suites.collectives import data
from wattline.suites.collectives.kernel import (
    FORMATS,
    WORLD,
    GroupContext,
    GroupKernel,
    GroupWorkload,
    backend_here,
    enough_ranks,
    summable,
)  # fmt: skip
from wattline.suites.collectives.shapes import SIZES
from wattline.suites.registry import workload
from wattline.suites.workload import BuildContext, ParamValues

_SUMS = ("all_reduce", "reduce_scatter", "reduce")


def elements(p: ParamValues, *, parts: int = 1) -> int:
    """Elements of each of ``parts`` equal parts of S, at least one: below that, S is rounded up (fact)."""
    return max(1, int(p["bytes"]) // (parts * int(number_format(str(p["dtype"])).bytes)))


class Collective(GroupWorkload):
    """A collective of torch.distributed; subclasses differ in ``name`` alone."""

    name = ""
    shape_sources = SIZES

    def footprint(self, p: ParamValues) -> float:
        """One set of buffers: input and output, and a kept input where calls change it."""
        return 3.0 * max(int(p.get("bytes", 0)), 64)

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """See :meth:`GroupWorkload.build`."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        kernel = _MAKERS[self.name](p, ctx)
        kernel.asynchronous = p.get("mode") == "async"
        kernel.facts.setdefault("actual_bytes", kernel.moved_bytes)
        return kernel


def _newer(name: str, older: str) -> Callable[..., Any]:
    """A function of torch.distributed, which renamed some: the older one warns at every call where there are both."""
    import torch.distributed as dist

    found: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, older)
    return found


def _asynchronous(p: ParamValues) -> bool:
    return p.get("mode") == "async"


def _token(count: int, p: ParamValues) -> str:
    return f"{count} x {p['dtype']}"


def _all_reduce(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, count, later = ctx.comm, str(p["dtype"]), elements(p), _asynchronous(p)
    x, kept = ctx.empty([count], fmt), ctx.empty([count], fmt)
    data.fill(kept, fmt, comm.rank, terms=comm.size)
    want = data.summed(fmt, comm.size, x.device)
    return GroupKernel(
        call=lambda: dist.all_reduce(x, group=comm.group, async_op=later),
        inputs={"x": kept}, refresh=lambda: x.copy_(kept), token=_token(count, p),
        verify=lambda: data.verdict([("the sum", x, want)]), moved_bytes=count * x.element_size(),
    )  # fmt: skip


def _reduce(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, count, later = ctx.comm, str(p["dtype"]), elements(p), _asynchronous(p)
    x, kept = ctx.empty([count], fmt), ctx.empty([count], fmt)
    data.fill(kept, fmt, comm.rank, terms=comm.size)
    want, root = data.summed(fmt, comm.size, x.device), comm.peer(0)
    # Elsewhere than on the root the buffer holds whatever the library left there.
    parts = [("the sum", x, want)] if comm.rank == 0 else []
    return GroupKernel(
        call=lambda: dist.reduce(x, root, group=comm.group, async_op=later),
        inputs={"x": kept}, refresh=lambda: x.copy_(kept), token=_token(count, p),
        verify=lambda: data.verdict(parts), moved_bytes=count * x.element_size(),
    )  # fmt: skip


def _reduce_scatter(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    reduce_scatter = _newer("reduce_scatter_single", "reduce_scatter_tensor")
    comm, fmt, later = ctx.comm, str(p["dtype"]), _asynchronous(p)
    count = elements(p, parts=comm.size)
    x, out = ctx.empty([count * comm.size], fmt), ctx.empty([count], fmt)
    data.fill(x, fmt, comm.rank, terms=comm.size)
    want = data.summed(fmt, comm.size, x.device, begin=count * comm.rank)
    return GroupKernel(
        call=lambda: reduce_scatter(out, x, group=comm.group, async_op=later),
        inputs={"x": x}, output=out, token=_token(count, p), verify=lambda: data.verdict([("the sum", out, want)]),
        moved_bytes=x.numel() * x.element_size(),
    )  # fmt: skip


def _all_gather(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    all_gather = _newer("all_gather_single", "all_gather_into_tensor")
    comm, fmt, later = ctx.comm, str(p["dtype"]), _asynchronous(p)
    count = elements(p, parts=comm.size)
    x, out = ctx.empty([count], fmt), ctx.empty([count * comm.size], fmt)
    data.fill(x, fmt, comm.rank)
    parts = [
        (f"rank {rank}'s part", out[rank * count : (rank + 1) * count], data.moved(fmt, rank, x.device))
        for rank in range(comm.size)
    ]
    return GroupKernel(
        call=lambda: all_gather(out, x, group=comm.group, async_op=later),
        inputs={"x": x}, output=out, token=_token(count, p), verify=lambda: data.verdict(parts),
        moved_bytes=out.numel() * x.element_size(),
    )  # fmt: skip


def _all_to_all(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, later = ctx.comm, str(p["dtype"]), _asynchronous(p)
    count = elements(p, parts=comm.size)
    x, out = ctx.empty([count * comm.size], fmt), ctx.empty([count * comm.size], fmt)
    data.fill(x, fmt, comm.rank)
    begin = count * comm.rank  # of what every rank has for this one
    parts = [
        (f"rank {rank}'s part", out[rank * count : (rank + 1) * count], data.moved(fmt, rank, x.device, begin=begin))
        for rank in range(comm.size)
    ]
    return GroupKernel(
        call=lambda: dist.all_to_all_single(out, x, group=comm.group, async_op=later),
        inputs={"x": x}, output=out, token=_token(count, p), verify=lambda: data.verdict(parts),
        moved_bytes=out.numel() * x.element_size(),
    )  # fmt: skip


def uneven_counts(size: int, skew: float, total: int) -> list[list[int]]:
    """Elements that rank i sends to rank j, the largest total sent to others or received from them being ``total``.

    Destination j has weight ``(1 - skew) / n``, and rank 0 ``skew`` on top: 0 is even, 1 sends all to rank 0.
    """
    weights = [(1 - skew) / size + (skew if rank == 0 else 0.0) for rank in range(size)]
    if size == 1:
        return [[total]]
    heaviest = max((size - 1) * weights[0], 1 - weights[size - 1])
    return [[round(total * weights[j] / heaviest) for j in range(size)] for _ in range(size)]


def busiest(counts: list[list[int]]) -> int:
    """The most that a rank sends to others or receives from others."""
    size = len(counts)
    if size == 1:
        return counts[0][0]
    sent = [sum(row) - row[i] for i, row in enumerate(counts)]
    received = [sum(counts[i][j] for i in range(size) if i != j) for j in range(size)]
    return max(*sent, *received)


def _all_to_all_v(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, later = ctx.comm, str(p["dtype"]), _asynchronous(p)
    counts = uneven_counts(comm.size, float(p["skew"]), elements(p))
    mine, theirs = counts[comm.rank], [counts[rank][comm.rank] for rank in range(comm.size)]
    x, out = ctx.empty([sum(mine)], fmt), ctx.empty([sum(theirs)], fmt)
    data.fill(x, fmt, comm.rank)
    parts, at = [], 0
    for rank, count in enumerate(theirs):
        begin = sum(counts[rank][: comm.rank])
        part = out[at : at + count]
        parts.append((f"rank {rank}'s part", part, data.moved(fmt, rank, x.device, begin=begin)))
        at += count
    return GroupKernel(
        call=lambda: dist.all_to_all_single(out, x, theirs, mine, group=comm.group, async_op=later),
        inputs={"x": x}, output=out, verify=lambda: data.verdict(parts),
        moved_bytes=busiest(counts) * x.element_size(), facts={"elements_from_to": counts},
    )  # fmt: skip


def _broadcast(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, count, later = ctx.comm, str(p["dtype"]), elements(p), _asynchronous(p)
    x, root = ctx.empty([count], fmt), comm.peer(0)
    data.fill(x, fmt, 0)
    want = data.moved(fmt, 0, x.device)
    return GroupKernel(
        call=lambda: dist.broadcast(x, root, group=comm.group, async_op=later),
        # The root's buffer is input and must stay; the others' are poisoned.
        inputs={"x": x}, output=None if comm.rank == 0 else x, token=_token(count, p),
        verify=lambda: data.verdict([("the copy", x, want)]), moved_bytes=count * x.element_size(),
    )  # fmt: skip


def _gather(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, later = ctx.comm, str(p["dtype"]), _asynchronous(p)
    count = elements(p, parts=comm.size)
    x, root = ctx.empty([count], fmt), comm.peer(0)
    data.fill(x, fmt, comm.rank)
    out = ctx.empty([count * comm.size], fmt) if comm.rank == 0 else None
    pieces = None if out is None else list(out.split(count))
    parts = [(f"rank {r}'s part", t, data.moved(fmt, r, x.device)) for r, t in enumerate(pieces or ())]
    return GroupKernel(
        call=lambda: dist.gather(x, pieces, root, group=comm.group, async_op=later),
        inputs={"x": x}, output=out, token=_token(count, p), verify=lambda: data.verdict(parts),
        moved_bytes=count * comm.size * x.element_size(),
    )  # fmt: skip


def _scatter(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, later = ctx.comm, str(p["dtype"]), _asynchronous(p)
    count = elements(p, parts=comm.size)
    out, root = ctx.empty([count], fmt), comm.peer(0)
    pieces = None
    if comm.rank == 0:
        x = ctx.empty([count * comm.size], fmt)
        data.fill(x, fmt, 0)
        pieces = list(x.split(count))
    want = data.moved(fmt, 0, out.device, begin=count * comm.rank)
    return GroupKernel(
        call=lambda: dist.scatter(out, pieces, root, group=comm.group, async_op=later),
        inputs={}, output=out, token=_token(count, p), verify=lambda: data.verdict([("the part", out, want)]),
        moved_bytes=count * comm.size * out.element_size(),
    )  # fmt: skip


def _send_recv(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt, count = ctx.comm, str(p["dtype"]), elements(p)
    x, out = ctx.empty([count], fmt), ctx.empty([count], fmt)
    data.fill(x, fmt, comm.rank)
    before = (comm.rank - 1) % comm.size
    want = data.moved(fmt, before, x.device)
    there, here = comm.peer(comm.rank + 1), comm.peer(before)

    def call() -> None:
        ops = [
            dist.P2POp(dist.isend, x, there, group=comm.group), dist.P2POp(dist.irecv, out, here, group=comm.group)
        ]  # fmt: skip
        for work in dist.batch_isend_irecv(ops):
            work.wait()

    return GroupKernel(
        call=call, inputs={"x": x}, output=out, token=_token(count, p),
        verify=lambda: data.verdict([("what the rank before sent", out, want)]), moved_bytes=count * x.element_size(),
    )  # fmt: skip


def _barrier(p: ParamValues, ctx: GroupContext) -> GroupKernel:
    import torch.distributed as dist

    comm, later = ctx.comm, _asynchronous(p)
    return GroupKernel(call=lambda: dist.barrier(group=comm.group, async_op=later), inputs={})


_MAKERS: dict[str, Callable[[ParamValues, GroupContext], GroupKernel]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "all_to_all_v": _all_to_all_v,
    "broadcast": _broadcast,
    "reduce": _reduce,
    "gather": _gather,
    "scatter": _scatter,
    "send_recv": _send_recv,
    "barrier": _barrier,
}
_DOCS = {
    "all_reduce": "The sum over all ranks, on all of them.",
    "all_gather": "Every rank's part, on all of them.",
    "reduce_scatter": "The sum over all ranks, a part on each.",
    "all_to_all": "From every rank an equal part to every other.",
    "all_to_all_v": "From every rank uneven parts to every other: rank 0 gets the share `skew` on top.",
    "broadcast": "Rank 0's data, on all ranks.",
    "reduce": "The sum over all ranks, on rank 0.",
    "gather": "Every rank's part, on rank 0.",
    "scatter": "A part of rank 0's data on each rank.",
    "send_recv": "Every rank sends to the next and receives from the one before.",
    "barrier": "No rank goes on before all have come.",
}


def _params(name: str) -> Params:
    declared: dict[str, Param] = dict(WORLD)
    if name != "barrier":
        declared = {"bytes": Int(lo=1, doc="S"), "dtype": DType(*FORMATS, default="fp32"), **declared}
    if name != "send_recv":
        declared["mode"] = Choice("sync", "async", doc="async: four operations under way at a time")
    if name == "all_to_all_v":
        declared["skew"] = Float(0.5, lo=0.0, hi=1.0, doc="share of everything that goes to rank 0 on top")
    return Params(**declared)


def _register(name: str) -> None:
    lowest = 2 if name == "send_recv" else 1
    needs = [enough_ranks(lowest), backend_here()]
    if name in _SUMS:
        needs.append(summable(data.most_ranks()))
    kind = type(
        name, (Collective,), {"name": name, "params": _params(name), "__doc__": _DOCS[name], "__module__": __name__}
    )
    workload(f"collectives.{name}", requires=needs)(kind)


for _name in _MAKERS:
    _register(_name)
