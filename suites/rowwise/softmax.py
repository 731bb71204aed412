"""Softmax over rows, written in the ways that the literature compares, and the library's.

Every variant is safe: the maximum is subtracted before anything is raised to a power, so inputs of 1e4 do not overflow.
A row of minus infinity alone gives NaN, as in torch; a NaN makes its row NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import module, never
from wattline.suites.rowwise.common import RowWise, row_kernel, shape_of
from wattline.suites.workload import BuildContext, Kernel, ParamValues

BLOCK = 4096
"""Columns that the blocked variants keep at hand: 16 KB of fp32, which fits a first-level cache."""


def three_pass(x: Any) -> Any:
    """Maximum; sum of exponentials; division: the row is read three times and written once (numbered passes as in
    Dukhan and Ablavatski, "Two-Pass Softmax Algorithm", arXiv:2001.04438, algorithm 1, exponentials recomputed).

    Args:
        x: ``[rows, cols]``.
    """
    import torch

    largest = x.amax(dim=1, keepdim=True)  # pass 1
    total = torch.exp(x - largest).sum(dim=1, keepdim=True)  # pass 2
    return torch.exp(x - largest) / total  # pass 3


def online(x: Any) -> Any:
    """Maximum and sum in one pass over blocks, the sum rescaled whenever the maximum rises (Milakov and Gimelshein,
    "Online normalizer calculation for softmax", arXiv:1805.02867); then the division: two reads, one write.

    Args:
        x: ``[rows, cols]``.
    """
    import torch

    rows, cols = x.shape
    work = x.dtype if x.dtype == torch.float64 else torch.float32
    largest = torch.full((rows, 1), -torch.inf, dtype=work, device=x.device)
    total = torch.zeros((rows, 1), dtype=work, device=x.device)
    for begin in range(0, cols, BLOCK):
        block = x[:, begin : begin + BLOCK].to(work)
        risen = torch.maximum(largest, block.amax(dim=1, keepdim=True))
        # While all is minus infinity there is nothing to rescale, and inf - inf would be NaN.
        shift = torch.where(risen == -torch.inf, 0.0, risen)
        total = total * torch.exp(largest - shift) + torch.exp(block - shift).sum(dim=1, keepdim=True)
        largest = risen
    return (torch.exp(x.to(work) - largest) / total).to(x.dtype)


def two_pass(x: Any) -> Any:
    """Exponentials kept as mantissa and exponent, so that no maximum is needed beforehand: one pass sums them, one
    divides (Dukhan and Ablavatski, arXiv:2001.04438, algorithm 3): two reads, one write.

    Args:
        x: ``[rows, cols]``.
    """
    import torch

    rows, cols = x.shape
    work = x.dtype if x.dtype == torch.float64 else torch.float32
    log2e = 1.4426950408889634
    exponent = torch.full((rows, 1), -torch.inf, dtype=work, device=x.device)
    mantissa = torch.zeros((rows, 1), dtype=work, device=x.device)
    for begin in range(0, cols, BLOCK):
        scaled = x[:, begin : begin + BLOCK].to(work) * log2e
        whole = torch.floor(scaled)
        part = torch.exp2(scaled - whole)  # in [1, 2): e**x = part * 2**whole
        part = torch.where(scaled == -torch.inf, 0.0, part)
        top = torch.maximum(exponent, whole.amax(dim=1, keepdim=True))
        base = torch.where(top == -torch.inf, 0.0, top)
        mantissa = mantissa * torch.exp2(exponent - base) + (part * torch.exp2(whole - base)).sum(dim=1, keepdim=True)
        exponent = top
    scaled = x.to(work) * log2e
    whole = torch.floor(scaled)
    part = torch.where(scaled == -torch.inf, 0.0, torch.exp2(scaled - whole))
    return (part * torch.exp2(whole - exponent) / mantissa).to(x.dtype)


@workload("softmax.rows")
class Softmax(RowWise):
    """Softmax of every row: exp(x - max) / sum."""

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch's own."""
        import torch

        x, out = ctx.tensor(shape_of(p), str(p["dtype"])), ctx.empty(shape_of(p), str(p["dtype"]))
        return Kernel(lambda: torch.softmax(x, 1, out=out), {"x": x}, out, lambda: torch.softmax(x, 1))

    def reference(self, p: ParamValues, rows: Any, inputs: Mapping[str, Any], which: Any) -> Any:
        """See :meth:`RowWise.reference`."""
        import torch

        return torch.softmax(rows, dim=1)


@implementation("softmax.rows", "three_pass")
def _three_pass(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Maximum, sum, division, each over the whole row, in torch operations."""
    return row_kernel(p, ctx, three_pass)


@implementation("softmax.rows", "online")
def _online(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Maximum and sum together over blocks, in torch operations."""
    return row_kernel(p, ctx, online)


@implementation("softmax.rows", "two_pass")
def _two_pass(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Mantissas and exponents over blocks, in torch operations."""
    return row_kernel(p, ctx, two_pass)


@implementation("softmax.rows", "compile", requires=(compiler(),))
def _compile(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The three passes through torch.compile, which fuses them."""
    x = ctx.tensor(shape_of(p), str(p["dtype"]))
    ready, seconds = compiled(three_pass, x)
    return Kernel(lambda: ready(x), {"x": x}, facts={"compile_s": seconds})


def _on_cpu() -> Any:
    return never(lambda p, m: m.kind != "cpu", "no_cpu", "the numba kernels run on CPUs only")


def _fp32_only() -> Any:
    return never(
        lambda p, m: p["dtype"] not in ("fp32", "fp64"), "no_kernel", "the numba kernels take fp32 and fp64 only"
    )


def _numba(name: str, p: ParamValues, ctx: BuildContext) -> Kernel:
    import time

    from wattline.suites.rowwise.softmax_numba import kernels

    x, out = ctx.tensor(shape_of(p), str(p["dtype"])), ctx.empty(shape_of(p), str(p["dtype"]))
    source, target = x.numpy(), out.numpy()
    run = kernels()[name]
    begin = time.perf_counter()
    run(source, target)
    seconds = time.perf_counter() - begin

    def call() -> Any:
        run(source, target)
        return out

    return Kernel(call, {"x": x}, out, facts={"compile_s": seconds})


for _name in ("three_pass", "online", "two_pass"):

    def _build(p: ParamValues, ctx: BuildContext, name: str = _name) -> Kernel:
        return _numba(name, p, ctx)

    _build.__doc__ = f"The {_name.replace('_', '-')} form as one loop per row, compiled by numba."
    implementation("softmax.rows", f"numba_{_name}", requires=(module("numba"), _on_cpu(), _fp32_only()))(_build)
