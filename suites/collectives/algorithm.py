"""All-reduce by algorithms of our own, beside the library's: which wins at which size and latency of the links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wattline.formats import number_format
from wattline.params import DType, Int, Params
from wattline.suites.collectives import data, rings
from wattline.suites.collectives.kernel import (
    FORMATS,
    WORLD,
    Comm,
    GroupContext,
    GroupKernel,
    GroupWorkload,
    backend_here,
    enough_ranks,
    summable,
    unless,
)  # fmt: skip
from wattline.suites.collectives.shapes import SIZES
from wattline.suites.registry import implementation, workload
from wattline.suites.workload import BuildContext, ParamValues, Requirement

OP = "collectives.algorithm"
LEVELS = {"hierarchical2": 2, "hierarchical3": 3}
"""Hierarchies, by the number of their levels."""


class Counted:
    """The ranks of a case, counting what this one sends; a net of :mod:`wattline.suites.collectives.rings`."""

    def __init__(self, comm: Comm) -> None:
        self.rank, self.size, self._comm = comm.rank, comm.size, comm
        self.steps, self.sent_bytes, self.messages = 0, 0, 0

    def exchange(self, steps: Sequence[rings.Step]) -> None:
        """See :class:`rings.Net`."""
        self.steps += 1
        for what, tensor, _ in steps:
            if what == "send":
                self.messages += 1
                self.sent_bytes += tensor.numel() * tensor.element_size()
        self._comm.exchange(steps)


def _sizes(p: ParamValues, size: int) -> int:
    """Elements: the parts of all algorithms are whole, so that all of them move the same."""
    count = max(1, int(p["bytes"]) // int(number_format(str(p["dtype"])).bytes))
    return -(-count // (2 * size)) * 2 * size


def _kernel(p: ParamValues, ctx: GroupContext, name: str, run: Callable[[Any, Any, Any], None] | None) -> GroupKernel:
    import torch.distributed as dist

    comm, fmt = ctx.comm, str(p["dtype"])
    count = _sizes(p, comm.size)
    x, kept = ctx.empty([count], fmt), ctx.empty([count], fmt)
    data.fill(kept, fmt, comm.rank, terms=comm.size)
    want = data.summed(fmt, comm.size, x.device)
    moved = count * x.element_size()
    kernel = GroupKernel(
        call=lambda: dist.all_reduce(x, group=comm.group), inputs={"x": kept}, refresh=lambda: x.copy_(kept),
        token=f"{count} x {fmt}", verify=lambda: data.verdict([("the sum", x, want)]), moved_bytes=moved,
        facts={"actual_bytes": moved},
    )  # fmt: skip
    if run is None:
        return kernel
    spare = ctx.empty([rings.spare_elements(name, count, comm.size)], fmt)
    kernel.call = lambda: run(comm, x, spare)

    def per_rank() -> dict[str, Any]:
        # One more call, after the measurement: on all ranks alike.
        counted = Counted(comm)
        run(counted, x, spare)
        return {"steps": counted.steps, "messages": counted.messages, "sent_bytes": counted.sent_bytes}

    kernel.per_rank = per_rank
    return kernel


@workload(OP, impl="library", requires=[enough_ranks(2), backend_here(), summable(data.most_ranks())])
class AlgorithmWorkload(GroupWorkload):
    """All-reduce by an algorithm on sends and receives; `library` is the backend's own."""

    params = Params(
        bytes=Int(lo=1, doc="S: what each rank holds, rounded up to whole parts"),
        dtype=DType(*FORMATS, default="fp32"),
        fan=Int(2, lo=2, doc="ranks of a ring below the top level of a hierarchy (those of a host, say)"),
        **WORLD,
    )
    shape_sources = SIZES

    def footprint(self, p: ParamValues) -> float:
        """Data, a kept input and the spare room of the star, which needs most."""
        return (2.0 + max(1, int(p["world_size"]) - 1)) * max(64, int(p["bytes"]))

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """The backend's own all-reduce."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        return _kernel(p, ctx, "library", None)


def _divides(levels: int) -> Requirement:
    def refusal(p: ParamValues) -> str:
        size, fan = int(p["world_size"]), int(p["fan"])
        lower = fan ** (levels - 1)
        words = f"{levels} levels of {fan} ranks need a multiple of {lower} from {2 * lower} ranks on"
        return "" if rings.level_widths(size, levels, fan) else f"{words}, and {size} take part"

    return unless(f"ranks that divide into {levels} levels", "no_hierarchy", refusal)


def _register(name: str) -> None:
    levels = LEVELS.get(name, 0)
    needs = [enough_ranks(2), backend_here(), summable(data.most_ranks())]

    def build(p: ParamValues, ctx: BuildContext) -> GroupKernel:
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        if not levels:
            return _kernel(p, ctx, name, rings.PLAIN[name])
        widths = rings.level_widths(ctx.comm.size, levels, int(p["fan"]))
        return _kernel(p, ctx, name, lambda net, x, spare: rings.hierarchical(net, x, spare, widths))

    source = rings.PLAIN.get(name, rings.hierarchical).__doc__ or ""
    build.__doc__ = source.split("\n")[0] if not levels else f"Rings within rings, on {levels} levels."
    implementation(OP, name, requires=[*needs, _divides(levels)] if levels else needs)(build)


for _name in (*rings.PLAIN, *LEVELS):
    _register(_name)
