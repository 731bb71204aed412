"""Data that does not lie in one piece, to the next rank and from the one before: packed first, or sent piece by piece.

Libraries send contiguous memory. A column of a matrix or a face of a cube is either copied together, sent and spread
out again, or sent as many small messages (Pearson et al., "TEMPI: an interposed MPI library with a canonical
representation of CUDA-aware datatypes", HPDC 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, Constraint, DType, Int, Params
from wattline.suites.collectives import data
from wattline.suites.collectives.kernel import (
    FORMATS,
    WORLD,
    GroupContext,
    GroupKernel,
    GroupWorkload,
    Verdict,
    backend_here,
    enough_ranks,
    unless,
)  # fmt: skip
from wattline.suites.registry import implementation, workload
from wattline.suites.workload import BuildContext, ParamValues

OP = "collectives.strided"
MOST_MESSAGES = 4096
"""Pieces beyond which sending each by itself is not tried: every one is an operation of the library."""


Part = tuple[slice, ...]


def layout_of(p: ParamValues) -> tuple[tuple[int, ...], list[Part], list[Part]]:
    """The shape of the array, its parts that are sent, and where what comes in belongs: apart from all of them.

    ``vector``: the first ``block`` columns of a ``count x stride`` array, into its last. ``face2d``: the last columns
    within a ghost layer ``block`` wide, into that of the other side. ``halo3d``: three faces of a cube of edge
    ``count``, ``block`` deep, one across each dimension, into the ghosts opposite.
    """
    count, block, stride = int(p["count"]), int(p["block"]), int(p["stride"])
    whole = slice(0, count)
    if p["layout"] == "vector":
        return (count, stride), [(whole, slice(0, block))], [(whole, slice(stride - block, stride))]
    if p["layout"] == "face2d":
        return (count, stride), [(whole, slice(stride - 2 * block, stride - block))], [(whole, slice(0, block))]
    near, far, inner = slice(block, 2 * block), slice(count - block, count), slice(0, count - block)
    faces = [[(inner, inner, side), (inner, side, inner), (side, inner, inner)] for side in (near, far)]
    return (count, count, count), list(faces[0]), list(faces[1])


def _lengths(part: Part) -> list[int]:
    return [each.stop - each.start for each in part]


def payload(p: ParamValues) -> int:
    """Elements that go to the next rank."""
    return sum(math.prod(_lengths(part)) for part in layout_of(p)[1])


def messages(p: ParamValues) -> int:
    """Pieces of contiguous memory that make up what is sent: rows, unless whole ones run on into each other."""
    shape, parts, _ = layout_of(p)
    return sum(math.prod(_lengths(part)[:-1]) for part in parts if _lengths(part)[-1] < shape[-1])


def runs(view: Any) -> list[Any]:
    """The contiguous pieces of a view, as views."""
    if view.is_contiguous():
        return [view.reshape(-1)]
    return [piece for row in view for piece in runs(row)]


def _too_many(p: ParamValues) -> str:
    found = messages(p)
    return f"it would send {found} messages, and {MOST_MESSAGES} are tried at most" if found > MOST_MESSAGES else ""


_FEW_MESSAGES = unless(f"at most {MOST_MESSAGES} pieces", "too_many_messages", _too_many)


class _Parts:
    """An array, what of it is sent and where what comes in goes."""

    def __init__(self, p: ParamValues, ctx: GroupContext) -> None:
        comm, self.fmt = ctx.comm, str(p["dtype"])
        shape, sent, ghosts = layout_of(p)
        self.x = ctx.empty(shape, self.fmt)
        data.fill(self.x.view(-1), self.fmt, comm.rank)
        self.sent = [self.x[part] for part in sent]
        self.ghosts = [self.x[part] for part in ghosts]
        self.count = payload(p)
        self.after, self.before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        other = ctx.empty(shape, self.fmt)
        data.fill(other.view(-1), self.fmt, self.before)
        self._want = [other[part].clone() for part in sent]

    def clear(self) -> None:
        """Put into the ghosts what no rank sends."""
        for ghost in self.ghosts:
            ghost.fill_(-1)

    def verdict(self) -> Verdict:
        """Compare the ghosts bit by bit with what the rank before sent: rows as numbers of one format."""
        wrong = sum(int((g != w).sum()) for g, w in zip(self.ghosts, self._want, strict=True))
        words = f": {wrong} of {self.count} elements are wrong" if wrong else ""
        return wrong / self.count, 0.0, "bit by bit" + words

    def kernel(self, call: Callable[[], None], pieces: int, **more: Any) -> GroupKernel:
        """The kernel of an implementation."""
        size = self.count * self.x.element_size()
        return GroupKernel(
            call=call, inputs={"x": self.x}, refresh=self.clear, token=f"{self.count} x {self.fmt}",
            verify=self.verdict, moved_bytes=size, facts={"actual_bytes": size, "messages": pieces}, **more,
        )  # fmt: skip


_ROOM = Constraint(
    "rows hold three blocks (what is sent, and ghosts apart from it), edges of a cube four",
    lambda p: int(p["count"]) >= 4 * int(p["block"])
    if p["layout"] == "halo3d"
    else int(p["stride"]) >= 3 * int(p["block"]),
)


@workload(OP, impl="pack", requires=[enough_ranks(2), backend_here()])
class StridedWorkload(GroupWorkload):
    """Strided data (a vector, a face, a halo) to the next rank: packed and sent, or sent piece by piece."""

    params = Params(
        _ROOM,
        layout=Choice("vector", "face2d", "halo3d", doc="what is sent"),
        count=Int(lo=1, doc="rows; edge of the cube"),
        block=Int(1, doc="elements side by side; depth of a halo"),
        stride=Int(64, doc="elements from row to row (vector, face2d)"),
        dtype=DType(*FORMATS, default="fp32"),
        **WORLD,
    )

    def footprint(self, p: ParamValues) -> float:
        """The array, and both packed buffers."""
        shape, _, _ = layout_of(p)
        return (2.0 * math.prod(shape) + 3.0 * payload(p)) * float(number_format(str(p["dtype"])).bytes)

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """Copied together, sent as one message, spread out again."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        comm, parts = ctx.comm, _Parts(p, ctx)
        out, room = ctx.empty([parts.count], parts.fmt), ctx.empty([parts.count], parts.fmt)
        lengths = [view.numel() for view in parts.sent]
        outs = [piece.view(view.shape) for piece, view in zip(out.split(lengths), parts.sent, strict=True)]
        rooms = [piece.view(view.shape) for piece, view in zip(room.split(lengths), parts.ghosts, strict=True)]

        def pack() -> None:
            for packed, view in zip(outs, parts.sent, strict=True):
                packed.copy_(view)

        def transfer() -> None:
            comm.exchange([("send", out, parts.after), ("recv", room, parts.before)])

        def unpack() -> None:
            for ghost, packed in zip(parts.ghosts, rooms, strict=True):
                ghost.copy_(packed)

        def call() -> None:
            pack()
            transfer()
            unpack()

        def finish(facts: dict[str, Any]) -> None:
            facts["packing_share"] = (facts["pack_s"] + facts["unpack_s"]) / facts["call_s"]

        return parts.kernel(call, 1, stages={"pack": pack, "transfer": transfer, "unpack": unpack}, finish=finish)


@implementation(OP, "direct", requires=[enough_ranks(2), backend_here(), _FEW_MESSAGES])
def direct(p: ParamValues, ctx: BuildContext) -> GroupKernel:
    """Every contiguous piece as a message of its own."""
    assert isinstance(ctx, GroupContext)  # the group runner makes no other
    comm, parts = ctx.comm, _Parts(p, ctx)
    sent = [piece for view in parts.sent for piece in runs(view)]
    ghosts = [piece for view in parts.ghosts for piece in runs(view)]
    steps = [
        step
        for out, room in zip(sent, ghosts, strict=True)
        for step in (("send", out, parts.after), ("recv", room, parts.before))
    ]
    return parts.kernel(lambda: comm.exchange(steps), len(sent))
