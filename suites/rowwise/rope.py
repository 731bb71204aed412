"""Rotary position embedding: pairs of elements turned by an angle that depends on the position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.params import Constraint, Int
from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.rowwise.common import RowWise, row_params, shape_of
from wattline.suites.workload import BuildContext, Kernel, ParamValues

BASE = 10000.0
HEADS = Constraint("rows is a multiple of heads", lambda p: int(p["rows"]) % int(p["heads"]) == 0)
EVEN = Constraint("cols is even: elements are turned in pairs", lambda p: int(p["cols"]) % 2 == 0)


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Element ``i`` and ``i + cols / 2`` turned together (Su et al., "RoFormer", arXiv:2104.09864, in the order of
    halves that most models use).

    Args:
        x: ``[rows, cols]``.
        cos, sin: ``[rows / heads, cols / 2]``, of the angle of each token and pair; successive rows are the heads of a
            token.
    """
    import torch

    half = x.shape[1] // 2
    heads = x.view(cos.shape[0], -1, 2 * half)
    a, b = heads[..., :half], heads[..., half:]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=2).view(x.shape)


def angles(rows: int, cols: int, device: Any) -> tuple[Any, Any]:
    """Cosine and sine of ``row * BASE**(-2 i / cols)``, ``[rows, cols / 2]``, double."""
    import torch

    rate = BASE ** (-torch.arange(0, cols, 2, dtype=torch.float64, device=device) / cols)
    turned = torch.arange(rows, dtype=torch.float64, device=device)[:, None] * rate
    return torch.cos(turned), torch.sin(turned)


@workload("rope", impl="torch")
class Rope(RowWise):
    """Pairs of elements of every row turned by the angle of its position."""

    params = row_params(EVEN, HEADS, heads=Int(1, doc="successive rows that are heads of one token"))

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the tables of angles take a row for each token."""
        from wattline.formats import number_format

        tables = 1.0 * int(p["rows"]) // int(p["heads"]) * int(p["cols"])
        return super().footprint(p) + tables * number_format(str(p["dtype"])).bytes

    def inputs(self, p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
        """The rows, and the angles as tables in their format."""
        x = ctx.tensor(shape_of(p), str(p["dtype"]))
        tokens = int(p["rows"]) // int(p["heads"])
        cos, sin = (t.to(x.dtype) for t in angles(tokens, int(p["cols"]), x.device))
        return {"x": x, "cos": cos, "sin": sin}

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch operations, one after the other."""
        inputs = self.inputs(p, ctx)
        x, cos, sin = inputs.values()
        return Kernel(lambda: rotate(x, cos, sin), inputs)

    def reference(self, p: ParamValues, rows: Any, inputs: Mapping[str, Any], which: Any) -> Any:
        """See :meth:`RowWise.reference`."""
        token = which // int(p["heads"])
        return rotate(rows, inputs["cos"][token].double(), inputs["sin"][token].double())


@implementation("rope", "compile", requires=(compiler(),))
def fused(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The same through torch.compile."""
    inputs = Rope().inputs(p, ctx)
    x, cos, sin = inputs.values()
    ready, seconds = compiled(rotate, x, cos, sin)
    return Kernel(lambda: ready(x, cos, sin), inputs, facts={"compile_s": seconds})
