"""Our own Triton kernel: both operands are unpacked, decoded and scaled in registers, then multiplied in ``dtype``."""

from __future__ import annotations

from typing import Any

from wattline.quantization import ELEMENTS, scheme_of
from wattline.suites.gemm.quant.operands import integer, operands
from wattline.suites.gemm.quant.pack import Operand
from wattline.suites.gemm.quant.quantized import FORMATS
from wattline.suites.registry import implementation
from wattline.suites.requirements import never, triton
from wattline.suites.workload import BuildContext, Kernel, ParamValues

_CODES = {"": 0, "int8": 1, "int4": 2, "uint4": 2, "ternary": 3, "e4m3": 4, "e2m1": 5}
"""What the kernel knows how to decode: numbers of :data:`wattline.suites.gemm.quant.triton_kernel`."""


@implementation(
    "gemm.quantized",
    "triton",
    requires=(
        *FORMATS,
        triton(),
        never(
            lambda p, m: 0 in (ELEMENTS[e].bits for e in _elements(p)) or "ternary5" in _elements(p), "no_kernel",
            "the Triton kernel decodes codes of 2, 4 or 8 bits that lie side by side: no bit planes, no base 3",
        ),
        never(
            lambda p, m: m.kind == "cpu" and p["dtype"] == "bf16", "interpreter",
            "Triton's interpreter multiplies the bits of bf16 as if they were whole numbers (triton 3.9)",
        ),
    ),
)  # fmt: skip
def decoded(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Our own Triton kernel: codes decoded and scaled in registers, products in dtype (no quantised arithmetic)."""
    import torch

    from wattline.suites.gemm.quant.triton_kernel import multiply

    both = operands(p, ctx)
    weights = both.weights
    (n, k), m = weights.shape, integer(p, "m")
    out = ctx.empty((m, n), str(p["dtype"]))
    factor = torch.ones((), dtype=torch.float32, device=out.device)
    for operand in (weights, both.act):
        if operand is not None and operand.tensor_scale is not None:
            factor = factor * operand.tensor_scale
    left = _plain(both.x) if both.act is None else _described(both.act)
    right = _described(weights)
    # Tensor cores want 16 rows at least; more than 64 leave too few registers for the decoding.
    rows = 16 if m <= 16 else 32 if m <= 32 else 64

    def call() -> Any:
        multiply(left, right, out, k, factor=factor, tile_m=rows)
        return out

    return Kernel(call, both.inputs, out, facts={"tile_m": rows})


def _elements(p: ParamValues) -> tuple[str, ...]:
    scheme = scheme_of(str(p["scheme"]))
    return tuple(filter(None, (scheme.weight, scheme.act)))


def _plain(x: Any) -> tuple[Any, ...]:
    """An unquantised matrix as :func:`~wattline.suites.gemm.quant.triton_kernel.multiply` takes an operand."""
    return x, x, x, 0, 0, False, 0, 0


def _described(operand: Operand) -> tuple[Any, ...]:
    """A quantised one. Blocks as large as the matrix become 0, so that one kernel serves all its sizes."""
    import torch

    data = operand.data.view(torch.uint8) if operand.element == "e4m3" else operand.data
    kind = {torch.uint8: 2, torch.float8_e4m3fn: 3}.get(operand.scale.dtype, 1)
    scale = operand.scale.view(torch.uint8) if kind == 3 else operand.scale
    zero = scale if operand.zero is None else operand.zero
    block = (0 if extent >= size else extent for extent, size in zip(operand.block, operand.shape, strict=True))
    return data, scale, zero, _CODES[operand.element], kind, operand.zero is not None, *block
