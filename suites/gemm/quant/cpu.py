"""Products of quantised matrices by loops on a CPU: bit planes and tables, laid out for :mod:`.numba_kernels`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from wattline.quantization import scheme_of
from wattline.suites.gemm.quant import quantized  # noqa: F401 - registers the op
from wattline.suites.gemm.quant.operands import Operands, integer, laid_out, operands
from wattline.suites.gemm.quant.pack import Operand
from wattline.suites.registry import implementation
from wattline.suites.requirements import module, never
from wattline.suites.workload import BuildContext, Kernel, ParamValues

WORD = 32
"""Codes in one word of a bit plane; groups of 32 fill one."""
_TERNARY = ("ternary", "ternary5")


def _overflows(p: ParamValues) -> bool:
    """Whether a group's count of weighted bits may leave 32 bits."""
    span = integer(p, "group") or integer(p, "k")
    largest: int = (2 ** integer(p, "bits") - 1) * (2 ** integer(p, "abits") - 1)
    return span * largest >= 2**31


def _grouped_by(operand: Operand, parts: Any) -> Any:
    """[rows, k] summed over groups, [groups, rows] as int32."""
    import torch

    rows, k = operand.shape
    group = operand.block[1]
    filled = torch.nn.functional.pad(parts.int(), (0, -k % group))
    return filled.view(rows, -1, group).sum(-1, dtype=torch.int32).t().contiguous()


def _words(bits: Any, words: int) -> Any:
    """0 or 1 [rows, k] as uint32 [rows, words] in the memory of int32, column 0 in the lowest bit."""
    import torch

    rows, k = bits.shape
    filled = torch.nn.functional.pad(bits.to(torch.uint8), (0, words * WORD - k)).view(rows, -1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    return (filled * weights).sum(-1, dtype=torch.uint8).view(torch.int32)


def _floats(operand: Operand, blocks: Any) -> Any:
    """Scales or zero points [n, groups] as the loops want them: float32 [groups, n]."""
    return blocks.float().t().contiguous().numpy()


@implementation(
    "gemm.quantized",
    "planes",
    requires=(
        module("numba"),
        never(lambda p, m: m.kind != "cpu", "cpu_only", "bit planes are multiplied by loops of a CPU here"),
        never(
            lambda p, m: p["scheme"] not in ("bits", *_TERNARY), "scheme",
            "bit planes are multiplied in the schemes bits, ternary and ternary5: both operands must be whole numbers",
        ),
        never(
            lambda p, m: p["scheme"] == "bits" and _overflows(p), "overflow",
            "a group's sum of products of codes must stay below 2^31",
        ),
    ),
)  # fmt: skip
def planes(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Bit planes of weights and activations: AND and count; ternary weights as a plane of +1 and one of -1."""
    import numpy as np
    import torch

    from wattline.suites.gemm.quant.numba_kernels import plane_product

    both = operands(p, ctx, copy=False)
    weights, act = both.weights, both.act
    assert act is not None
    m, n = act.shape[0], weights.shape[0]
    if scheme_of(str(p["scheme"])).planes:
        plane_weight = np.array([1 << i for i in range(weights.bits)], dtype=np.int32)
        x_planes, x_middle = act.bits, act.middle
    else:
        plane_weight = np.array([1, -1], dtype=np.int32)
        x_planes, x_middle = 8, 128.0
    arrays = laid_out("planes", p, ctx, lambda: _planes(weights, act, x_planes, x_middle))
    w, x, scale, zero, code_sum, x_sum, x_scale = arrays
    span = -(-weights.block[1] // WORD)
    out = ctx.empty((m, n), str(p["dtype"]))
    result = out if out.dtype == torch.float32 else torch.empty((m, n))
    product = plane_product(x_planes)
    arguments = (
        w, plane_weight, x, span, scale, zero, weights.middle, code_sum, x_middle, x_sum, x_scale, result.numpy()
    )
    took = _first(("planes", x_planes), lambda: product(*arguments))

    def call() -> Any:
        product(*arguments)
        return out if result is out else out.copy_(result)

    facts = {"planes": len(plane_weight), "activation_planes": x_planes, "compile_s": took}
    return Kernel(call, both.inputs, out, extra_bytes=sum(a.nbytes for a in arrays), facts=facts)


def _planes(weights: Operand, act: Operand, x_planes: int, x_middle: float) -> tuple[Any, ...]:
    """Both operands as :func:`~wattline.suites.gemm.quant.numba_kernels.plane_product` takes them."""
    import numpy as np
    import torch

    words = -(-weights.shape[1] // WORD)
    codes, x_codes = weights.codes(), act.codes()
    if weights.element == "planes":
        stacked = torch.stack([_words((codes >> i) & 1, words) for i in range(weights.bits)])
    else:
        stacked = torch.stack([_words(codes == 1, words), _words(codes == -1, words)])
        x_codes = (x_codes.int() + int(x_middle)).to(torch.uint8)
    w = stacked.transpose(1, 2).contiguous()
    x = torch.stack([_words((x_codes >> j) & 1, words) for j in range(x_planes)], -1).contiguous()
    scale = _floats(weights, weights.scales())
    zero = np.zeros_like(scale) if weights.zero is None else _floats(weights, weights.zero)
    x_groups = Operand(act.element, act.bits, act.shape, (1, weights.block[1]), act.data, act.scale)
    # Twice the codes minus twice the middle is whole even where the middle is a half.
    x_sum = (_grouped_by(x_groups, 2 * x_codes.int() - int(2 * x_middle)).t().float() / 2).contiguous()
    return (
        w.numpy().view(np.uint32), x.numpy().view(np.uint32), scale, zero, _grouped_by(weights, codes).numpy(),
        x_sum.numpy(), act.scales().flatten().numpy(),
    )  # fmt: skip


@implementation(
    "gemm.quantized",
    "lut",
    requires=(
        module("numba"),
        never(lambda p, m: m.kind != "cpu", "cpu_only", "tables are looked up by loops of a CPU here"),
        never(
            lambda p, m: p["scheme"] not in ("lut", *_TERNARY), "scheme",
            "table look-up is for the schemes lut, ternary and ternary5, whose bytes hold 4 to 8 weights of one plane",
        ),
        never(
            lambda p, m: p["scheme"] == "ternary5" and integer(p, "group") > 0, "bytes_across_groups",
            "five weights to a byte do not end where groups do: the scheme ternary5 by table needs group 0",
        ),
    ),
)  # fmt: skip
def lut(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Tables of partial sums of the activations, made in the call, indexed by bytes of weights."""
    import numpy as np
    import torch

    from wattline.suites.gemm.quant.numba_kernels import table_product

    both = operands(p, ctx, copy=False)
    weights = both.weights
    n, k = weights.shape
    m = integer(p, "m")
    radix, per_byte, least = {"ternary": (4, 4, -1.0), "ternary5": (3, 5, -1.0)}.get(weights.element, (2, 8, 0.0))
    arrays = laid_out("lut", p, ctx, lambda: _bytes(both, m))
    w, scale, zero, x_scale, source = arrays
    count = w.shape[1]
    span = -(-weights.block[1] // per_byte)
    plane_weight = np.array([1 << i for i in range(len(w))], dtype=np.float32)
    # Activations of rows that end within a byte are followed by zeros.
    x = torch.zeros(m, count * per_byte)
    out = ctx.empty((m, n), str(p["dtype"]))
    result = out if out.dtype == torch.float32 else torch.empty((m, n))
    table, sums = np.empty((count, 256), np.float32), np.empty(count, np.float32)
    product = table_product()
    arguments = (
        w, plane_weight, radix, per_byte, least, x.numpy(), span, scale, zero, weights.middle, x_scale, table, sums,
        result.numpy(),
    )  # fmt: skip
    took = _first("lut", lambda: product(*arguments))

    def call() -> Any:
        x[:, :k].copy_(source)
        product(*arguments)
        return out if result is out else out.copy_(result)

    facts = {"table_bytes": int(table.nbytes), "compile_s": took}
    extra = table.nbytes + sum(a.nbytes for a in arrays)
    return Kernel(call, both.inputs, out, extra_bytes=extra, facts=facts)


def _bytes(both: Operands, m: int) -> tuple[Any, ...]:
    """Both operands as :func:`~wattline.suites.gemm.quant.numba_kernels.table_product` takes them; the activations
    as they are stored."""
    import numpy as np

    weights, act = both.weights, both.act
    data = weights.data if weights.data.dim() == 3 else weights.data[None]
    scale = _floats(weights, weights.scales())
    zero = np.zeros_like(scale) if weights.zero is None else _floats(weights, weights.zero)
    x_scale = np.ones(m, dtype=np.float32) if act is None else act.scales().flatten().numpy()
    return data.transpose(1, 2).contiguous().numpy(), scale, zero, x_scale, both.x if act is None else act.data


_compile_s: dict[Any, float] = {}


def _first(key: Any, run: Callable[[], None]) -> float:
    """Run a kernel once, before anything is timed; the seconds that its first run in this process took, which are those
    of its compilation."""
    begin = time.perf_counter()
    run()
    return _compile_s.setdefault(key, time.perf_counter() - begin)
