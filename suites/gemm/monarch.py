"""Products with Monarch matrices: two block-diagonal products with a permutation between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isnan
from typing import Any

from wattline.errors import ParamError
from wattline.params import Constraint, DType, Int, Params, Value
from wattline.suites.compiled import compiled, compiler
from wattline.suites.gemm.copies import in_turn
from wattline.suites.gemm.shapes import ShapeSet
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.units import parse_number

FORMATS = ("fp64", "fp32", "bf16", "fp16")
DIVISION_RULE = Constraint(
    "size is a multiple of blocks", lambda p: int(p["size"]) % int(p["blocks"]) == 0
)
BLOCKS_RULE = Constraint(
    "blocks is from 2 to size / 2: with 1 or size blocks one of the factors is a whole dense matrix",
    lambda p: 2 <= int(p["blocks"]) <= int(p["size"]) // 2,
)
SAMPLED_ROWS = 16
CHUNK = 2**22
"""Elements of the explicit matrix that are made at a time in double precision (32 MB)."""


def random(
    count: int = 24, *, seed: int = 0, m_lo: int = 1, m_hi: int = 2048, lo: int = 4, hi: int = 128,
    max_size: int = 8192, max_flops: float | str = "4G",
) -> Iterator[ShapeSet]:  # fmt: skip
    """Points spread log-uniformly over m, the number of blocks and their side, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        m_lo, m_hi: least and most rows.
        lo, hi: least (2 or more) and most blocks, and likewise of their side.
        max_size: points of a larger size are passed over, as are those with
        max_flops: more FLOPs.

    Raises:
        ParamError: limits that hardly a point meets.
    """
    if not (count > 0 and 2 <= lo <= hi):
        raise ParamError("random Monarch shapes need count above 0 and 2 <= lo <= hi")
    most, found = parse_number(max_flops), 0
    for u in points(3, 1000 * count, seed=seed):
        m = round(log_uniform(u[0], m_lo, m_hi))
        blocks, side = (round(log_uniform(part, lo, hi)) for part in u[1:])
        if blocks * side > max_size or 2.0 * m * blocks * side * (blocks + side) > most:
            continue
        yield {"m": m, "size": blocks * side, "blocks": blocks}
        found += 1
        if found == count:
            return
    raise ParamError(
        f"found only {found} of {count} random shapes within the limits",
        todo="raise max_size or max_flops, or lower hi",
    )


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {"random": random}


def monarch(x: Any, right: Any, left: Any) -> Any:
    """``P^T L P R x`` for each row of x.

    Args:
        x: ``[m, size]``.
        right: ``[blocks, side, side]``: block a maps elements ``a side .. (a + 1) side``, output by input.
        left: ``[side, blocks, blocks]``: block j maps the j-th element of every one of those, output by input.
    """
    m = x.shape[0]
    blocks, side, _ = right.shape
    import torch

    inner = torch.bmm(x.view(m, blocks, side).transpose(0, 1), right.transpose(1, 2))  # [blocks, m, side]
    outer = torch.bmm(inner.permute(2, 1, 0), left.transpose(1, 2))  # [side, m, blocks]
    return outer.permute(1, 2, 0).reshape(m, blocks * side)


def explicit(right: Any, left: Any) -> Any:
    """The same operator as a dense matrix ``[size, size]``, output by input.

    Element ``(c side + j, a side + i)`` is ``left[j, c, a] right[a, j, i]``: each is one product.
    """
    blocks, side, _ = right.shape
    size = blocks * side
    # [c, j, a, 1] * [1, j, a, i]
    return (left.permute(1, 0, 2)[..., None] * right.permute(1, 0, 2)[None]).reshape(size, size)


def _inputs(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    m, size, blocks, dtype = int(p["m"]), int(p["size"]), int(p["blocks"]), str(p["dtype"])
    set_precision(dtype)
    side = size // blocks
    return {
        "x": ctx.tensor((m, size), dtype),
        "right": ctx.tensor((blocks, side, side), dtype),
        "left": ctx.tensor((side, blocks, blocks), dtype),
    }


@workload("gemm.monarch")
class Monarch(Workload):
    """y = P^T L P R x: two block-diagonal products with a permutation between, for m rows x.

    R has ``blocks`` blocks of ``size / blocks`` squared, L ``size / blocks`` blocks of ``blocks`` squared.
    """

    params = Params(
        DIVISION_RULE, BLOCKS_RULE,
        m=Int(doc="rows of x"),
        size=Int(lo=4, doc="elements of a row, in and out"),
        blocks=Int(lo=2, doc="blocks of the first factor"),
        dtype=DType(*FORMATS, doc="number format of x, both factors and y"),
    )  # fmt: skip
    shape_sources = SOURCES

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: two batched products into buffers, the permutations as views and one copy."""
        import torch

        inputs = _inputs(p, ctx)
        x, right, left = inputs["x"], inputs["right"], inputs["left"]
        m, blocks, side = int(p["m"]), right.shape[0], right.shape[1]
        dtype = str(p["dtype"])
        inner, outer = ctx.empty((blocks, m, side), dtype), ctx.empty((side, m, blocks), dtype)
        out = ctx.empty((m, blocks * side), dtype)
        first, first_weights = x.view(m, blocks, side).transpose(0, 1), right.transpose(1, 2)
        second, second_weights = inner.permute(2, 1, 0), left.transpose(1, 2)
        source, target = outer.permute(1, 2, 0), out.view(m, blocks, side)

        def call() -> Any:
            torch.bmm(first, first_weights, out=inner)
            torch.bmm(second, second_weights, out=outer)
            target.copy_(source)
            return out

        extra = 2 * m * blocks * side * x.element_size()
        return Kernel(call, inputs, out, lambda: monarch(x, right, left), extra)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: all rows factor by factor in double precision, some by the explicit matrix."""
        import torch

        from wattline.suites.gemm.checks import tolerance

        x, right, left = (kernel.inputs[name].double() for name in ("x", "right", "left"))
        m, size = x.shape
        blocks, side, _ = right.shape
        step = max(1, CHUNK // size)
        ref = torch.cat([monarch(part, right, left) for part in x.split(step)])
        out = result.double()
        errors = [_relative(out, ref)]
        few = sorted({round(i * (m - 1) / (SAMPLED_ROWS - 1)) for i in range(SAMPLED_ROWS)})
        rows = x[few]
        width = max(1, CHUNK // (size * blocks))  # of the second index of the output
        for j in range(0, side, width):
            part = slice(j, min(j + width, side))
            matrix = (left.permute(1, 0, 2)[:, part, :, None] * right.permute(1, 0, 2)[None, part]).reshape(-1, size)
            asked = out[few].view(-1, blocks, side)[:, :, part].reshape(len(few), -1)
            errors.append(_relative(asked, rows @ matrix.t()))
        found = float("nan") if any(map(isnan, errors)) else max(errors)
        # Two products, one after the other, and what passes between them rounded in the format.
        terms = max(blocks, side)
        allowed = 2.0 * tolerance(str(p["dtype"]), str(p["dtype"]), terms, accelerator=x.device.type != "cpu")
        return found, allowed, f"all rows factor by factor, {len(few)} by the explicit dense matrix"

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer rows, and blocks of the same number but smaller."""
        blocks, whole = int(p["blocks"]), int(p["size"])
        blocks_small = min(blocks, 8)
        small = {**p, "m": min(int(p["m"]), size)}
        if whole > size:
            small |= {"blocks": blocks_small, "size": blocks_small * max(2, min(whole // blocks, size // blocks_small))}
        return None if small == dict(p) else small


def _relative(out: Any, ref: Any) -> float:
    import torch

    size, difference = float(torch.linalg.vector_norm(ref)), float(torch.linalg.vector_norm(out - ref))
    return difference / size if size else (0.0 if difference == 0 else float("inf") if difference > 0 else difference)


@implementation("gemm.monarch", "compile", requires=(compiler(),))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The same through torch.compile."""
    inputs = _inputs(p, ctx)
    x, right, left = inputs["x"], inputs["right"], inputs["left"]
    ready, seconds = compiled(monarch, x, right, left)
    return Kernel(lambda: ready(x, right, left), inputs, facts={"compile_s": seconds})


@implementation("gemm.monarch", "dense")
def dense(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The operator multiplied out to a dense matrix beforehand: what the structure has to beat."""
    import torch

    inputs = _inputs(p, ctx)
    x, out = inputs["x"], ctx.empty((int(p["m"]), int(p["size"])), str(p["dtype"]))
    extra = int(p["size"]) ** 2 * x.element_size()
    matrix = in_turn(ctx, extra, lambda: explicit(inputs["right"], inputs["left"])).t()
    return Kernel(lambda: torch.mm(x, matrix, out=out), inputs, out, lambda: torch.mm(x, matrix), extra)
