"""Chains of element-wise operations: apart, fused by the compiler, and replayed as a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wattline.params import Choice, Int, Value
from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import cuda_api
from wattline.suites.rowwise.common import RowWise, distance, row_params, shape_of, some_rows
from wattline.suites.workload import BuildContext, Kernel, ParamValues

MIXES = ("arithmetic", "activation")


def step(x: Any, index: int, mix: str) -> Any:
    """One operation of a chain, values kept between about -1 and 1 however long it is.

    Args:
        x: any shape.
        index: which operation it is.
        mix: ``"arithmetic"`` (one multiplication or addition) or ``"activation"`` (tanh, sigmoid, ReLU in turn).
    """
    import torch

    if mix == "arithmetic":
        return x * -0.75 if index % 2 == 0 else x + 0.125
    return (torch.tanh, torch.sigmoid, torch.relu)[index % 3](x)


_chains: dict[tuple[int, str, str], Callable[[Any], Any]] = {}


def chain_of(length: int, mix: str, ending: str) -> Callable[[Any], Any]:
    """The chain as one function; the same object for equal arguments, so that it is compiled once for each shape."""
    key = (length, mix, ending)
    if key not in _chains:

        def chain(x: Any) -> Any:
            for index in range(length):
                x = step(x, index, mix)
            return x.sum(dim=1, keepdim=True) if ending == "row_sum" else x

        _chains[key] = chain
    return _chains[key]


def _chain(p: ParamValues) -> Callable[[Any], Any]:
    return chain_of(int(p["length"]), str(p["mix"]), str(p["ending"]))


@workload("fusion.chain", impl="eager")
class FusionChain(RowWise):
    """Element-wise operations in a row: how much of their time is memory traffic and launches that fusion saves."""

    params = row_params(
        length=Int(doc="operations in a row"),
        mix=Choice(*MIXES, doc="kind of operations"),
        ending=Choice("none", "row_sum", doc="what follows: nothing, or a sum over each row"),
    )
    tracks_memory = True
    factor = 6.0

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: one kernel after the other."""
        x, chain = ctx.tensor(shape_of(p), str(p["dtype"])), _chain(p)
        return Kernel(lambda: chain(x), {"x": x})

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        from wattline.formats import number_format

        rows, cols = shape_of(p)
        wanted = (rows, 1 if p["ending"] == "row_sum" else cols)
        if tuple(result.shape) != wanted:
            return float("nan"), 0.0, f"shape {tuple(result.shape)} instead of {wanted}"
        which = some_rows(rows, cols).to(result.device)
        ref = self.reference(p, kernel.inputs["x"][which].double(), kernel.inputs, which)
        allowed = self.factor * number_format(str(p["dtype"])).tolerance
        return distance(result[which], ref), allowed, "full" if len(which) == rows else f"{len(which)} rows"

    def reference(self, p: ParamValues, rows: Any, inputs: Mapping[str, Any], which: Any) -> Any:
        """See :meth:`RowWise.reference`."""
        return _chain(p)(rows)

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`."""
        return super().scout(p, size)


@implementation("fusion.chain", "compile", requires=(compiler(),))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The chain through torch.compile, which makes one kernel of it."""
    x = ctx.tensor(shape_of(p), str(p["dtype"]))
    ready, seconds = compiled(_chain(p), x)
    return Kernel(lambda: ready(x), {"x": x}, facts={"compile_s": seconds})


@implementation("fusion.chain", "graph", requires=(cuda_api(),))
def graph(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The kernels of the chain apart, but launched together as a captured graph."""
    import torch

    x, chain = ctx.tensor(shape_of(p), str(p["dtype"])), _chain(p)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # as torch asks for: a warm-up outside of the default stream
        chain(x)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = chain(x)

    def call() -> Any:
        captured.replay()
        return out

    return Kernel(call, {"x": x}, out)
