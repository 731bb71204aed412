"""Torch's own kernels for quantised operands: integer products, packed 4- and 8-bit weights, scaled FP8 and FP4.

Most of them are private functions of torch, but its only entry to these products. What a kernel cannot take as it is
(a size off its alignment) is filled up with zeros, outside the timed call and told as ``padded_m``, ``padded_n`` and
``padded_k``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wattline.params import Value
from wattline.quantization import scheme_of
from wattline.reasons import Reason
from wattline.suites.gemm.quant.operands import Operands, integer, laid_out, operands
from wattline.suites.gemm.quant.pack import Operand, unpack
from wattline.suites.gemm.quant.quantized import FORMATS
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation
from wattline.suites.requirements import cuda, never, torch_at_least, when
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement

_INTEGER = ("w8a8", "w4a8", "w4a4", "ternary", "ternary5")
_SCALED = ("fp8-tensor", "fp8-row", "fp8-block", "mxfp8", "mxfp4", "nvfp4")
_INT4_INNER_TILES = 8  # of 16 columns each: what the packing for CUDA lays side by side


def _is(*names: str) -> Callable[[ParamValues], bool]:
    return lambda p: p["scheme"] in names


def _on_gpu(condition: Callable[[ParamValues], bool], requirement: Requirement, text: str) -> Requirement:
    """``requirement`` for parameters that meet ``condition``, on devices of type cuda."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        return requirement.unmet(p, machine) if machine.kind == "cuda" and condition(p) else None

    return Requirement(f"{text} on a GPU: {requirement.text}", unmet)


def _hopper(p: ParamValues, machine: Machine) -> bool:
    return p["scheme"] == "fp8-block" and machine.kind == "cuda" and (machine.hip or machine.sm != 90)


REQUIRES: tuple[Requirement, ...] = (
    *FORMATS,
    never(lambda p, m: scheme_of(str(p["scheme"])).planes, "no_kernel", "torch multiplies no bit planes"),
    never(
        lambda p, m: m.kind not in ("cpu", "cuda"), "no_kernel",
        "torch's products of quantised matrices are known on CPUs and on CUDA and ROCm GPUs only",
    ),
    never(
        lambda p, m: p["scheme"] in (*_INTEGER, "w8a16") and integer(p, "group") > 0, "no_groups",
        "torch multiplies 8-bit integers with one scale per row only: group must be 0",
    ),
    never(
        lambda p, m: p["scheme"] == "w4a16" and integer(p, "group") == 0, "only_groups",
        "torch multiplies 4-bit weights in groups of 32, 64, 128 or 256 only",
    ),
    never(
        lambda p, m: m.kind == "cpu" and p["scheme"] in ("fp8-block", "mxfp8", "mxfp4", "nvfp4"), "no_kernel",
        "torch has no product of matrices with block scales on a CPU",
    ),
    _on_gpu(_is(*_INTEGER), cuda(75), "8-bit integers"),
    _on_gpu(_is("w8a16"), torch_at_least(2, 9), "8-bit weights"),
    _on_gpu(_is("w4a16"), cuda(80), "4-bit weights"),
    never(
        lambda p, m: m.kind == "cuda" and p["scheme"] == "w4a16" and p["dtype"] != "bf16", "only_bf16",
        "torch multiplies 4-bit weights on a GPU with bf16 activations only",
    ),
    _on_gpu(_is("fp8-tensor"), cuda(89), "FP8"),
    _on_gpu(_is("fp8-row"), cuda(90), "FP8 with scales per row"),
    never(
        _hopper, "not_hopper",
        "torch multiplies FP8 with scales of 128x128 on NVIDIA GPUs of compute capability 9.0 only",
    ),
    _on_gpu(_is("fp8-block"), torch_at_least(2, 10), "FP8 with block scales"),
    _on_gpu(_is("mxfp8", "nvfp4"), cuda(100), "microscaling"),
    _on_gpu(_is("mxfp8", "nvfp4"), torch_at_least(2, 8), "microscaling"),
    never(
        lambda p, m: m.kind == "cuda" and not m.hip and p["scheme"] == "mxfp4", "no_kernel",
        "cuBLAS multiplies no MXFP4 matrices",
    ),
    _on_gpu(_is("mxfp4"), cuda(), "MXFP4"),
    never(
        lambda p, m: m.kind == "cuda" and p["scheme"] in _SCALED and p["dtype"] != "bf16", "only_bf16",
        "torch's scaled products on a GPU are written in bf16 here",
    ),
    when(_is("w4a16"), torch_at_least(2, 6), "4-bit weights"),
)  # fmt: skip


@implementation("gemm.quantized", "torch", requires=REQUIRES)
def native(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Torch's own kernel for the scheme: _int_mm, _weight_int8pack_mm, _weight_int4pack_mm or _scaled_mm."""
    set_precision(str(p["dtype"]))
    scheme = str(p["scheme"])
    both = operands(p, ctx, copy=scheme != "w4a16")
    if scheme in _INTEGER:
        return _integers(p, ctx, both)
    if scheme == "w8a16":
        return _int8_weights(ctx, both)
    if scheme == "w4a16":
        return _int4_weights(p, ctx, both)
    return _scaled(p, ctx, both)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _filled(tensor: Any, rows: int, cols: int) -> Any:
    """With zeros below and to the right, up to [rows, cols]; bytes and 8-bit floats alike."""
    import torch

    if tuple(tensor.shape) == (rows, cols):
        return tensor
    larger = torch.zeros(rows, cols, dtype=torch.uint8, device=tensor.device)
    larger[: tensor.shape[0], : tensor.shape[1]] = tensor.view(torch.uint8)
    return larger.view(tensor.dtype)


def _padding(**sizes: tuple[int, int]) -> dict[str, Value]:
    """Facts of the sizes (asked for, used) that are not the same."""
    return {f"padded_{name}": used for name, (asked, used) in sizes.items() if used != asked}


def _bytes_or_filled(operand: Operand, rows: int, cols: int) -> tuple[Any, Callable[[], Any]]:
    """Packed codes in memory and a function that gives them as int8 [rows, cols]: at once, or unpacked in the call."""
    if operand.element == "int8":
        ready = _filled(operand.data, rows, cols)
        return ready, lambda: ready
    data, element, k = operand.data, operand.element, operand.shape[1]
    return data, lambda: _filled(unpack(data, element, k).contiguous(), rows, cols)


def _integers(p: ParamValues, ctx: BuildContext, both: Operands) -> Kernel:
    """``_int_mm`` on codes, narrower ones unpacked to 8 bits in the call, and its sums scaled by row and column."""
    import torch

    assert both.act is not None
    (m, k), n = both.act.shape, both.weights.shape[0]
    # torch's rules on a GPU: more than 16 rows; n and k multiples of 8.
    gpu = ctx.machine.kind == "cuda"
    rows, cols, depth = (max(m, 17), _up(n, 8), _up(k, 8)) if gpu else (m, n, k)
    x_memory, x = _bytes_or_filled(both.act, rows, depth)
    w_memory, w = _bytes_or_filled(both.weights, cols, depth)
    row_scale, column_scale = both.act.scales(), both.weights.scales().t().contiguous()
    out = ctx.empty((m, n), str(p["dtype"]))

    def call() -> Any:
        sums = torch._int_mm(x(), w().t())[:m, :n]
        return torch.mul(sums * row_scale, column_scale, out=out)

    extra = 4 * rows * cols + (x_memory is not both.act.data) * x_memory.numel()
    extra += (w_memory is not both.weights.data) * w_memory.numel()
    return Kernel(call, both.inputs, out, extra_bytes=extra, facts=_padding(m=(m, rows), n=(n, cols), k=(k, depth)))


def _int8_weights(ctx: BuildContext, both: Operands) -> Kernel:
    import torch

    n, k = both.weights.shape
    # On x86 torch's kernel for bf16 reads whole vectors of k: past the end of a row, its last products are of whatever
    # lies behind (torch 2.13).
    depth = _up(k, 32) if ctx.machine.kind == "cpu" else k
    x = torch.nn.functional.pad(both.x, (0, depth - k)) if depth != k else both.x
    w, scale = _filled(both.weights.data, n, depth), both.weights.scale.flatten()
    return Kernel(lambda: torch._weight_int8pack_mm(x, w, scale), both.inputs, facts=_padding(k=(k, depth)))


def _int4_weights(p: ParamValues, ctx: BuildContext, both: Operands) -> Kernel:
    """Groups must be full and tiles too: codes of the middle fill up, under activations of zero."""
    import torch

    weights = both.weights
    (n, k), group, m = weights.shape, integer(p, "group"), both.x.shape[0]
    gpu = ctx.machine.kind == "cuda"
    depth = _up(k, max(group, 16 * _INT4_INNER_TILES) if gpu else group)
    cols = _up(n, 8 if gpu else 32)
    product = torch._weight_int4pack_mm if gpu else torch._weight_int4pack_mm_for_cpu

    def arrays() -> tuple[Any, ...]:
        x = both.x
        codes = torch.full((cols, depth), 8, dtype=torch.uint8, device=x.device)
        codes[:n, :k] = weights.codes()
        groups = weights.scale.shape[1]
        scales = torch.zeros(depth // group, cols, 2, dtype=x.dtype, device=x.device)
        scales[:groups, :n, 0], scales[:groups, :n, 1] = weights.scale.t(), weights.zero.t()
        left = x if depth == k else torch.nn.functional.pad(x, (0, depth - k))
        if not gpu:
            return left, torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1), scales
        pairs = (codes[:, ::2] << 4) | codes[:, 1::2]
        return left, torch._convert_weight_to_int4pack(pairs.contiguous(), _INT4_INNER_TILES), scales

    left, packed, scales = laid_out("torch", p, ctx, arrays)
    extra = packed.numel() * packed.element_size() + scales.numel() * scales.element_size()
    facts = _padding(n=(n, cols), k=(k, depth))
    return Kernel(
        lambda: product(left, packed, group, scales)[:m, :n], both.inputs, extra_bytes=extra, facts=facts
    )


def _scaled(p: ParamValues, ctx: BuildContext, both: Operands) -> Kernel:
    """``_scaled_mm``. cuBLAS wants n and k in multiples of 16, FP4 in multiples of 32, blocks of 128 whole."""
    import torch

    act, weights, scheme = both.act, both.weights, str(p["scheme"])
    assert act is not None
    (m, k), n = act.shape, weights.shape[0]
    dtype = getattr(torch, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[str(p["dtype"])])
    if scheme in ("fp8-tensor", "fp8-row"):
        step = 16 if ctx.machine.kind == "cuda" else 1
        cols, depth = _up(n, step), _up(k, step)
        x, w = _filled(act.data, m, depth), _filled(weights.data, cols, depth)
        left, right = act.scale, _filled_scales(weights.scale, cols if scheme == "fp8-row" else 1, 1).t()
        if scheme == "fp8-tensor":
            left, right = left.reshape(()), right.reshape(())
        facts = _padding(n=(n, cols), k=(k, depth))
        return Kernel(
            lambda: torch._scaled_mm(x, w.t(), scale_a=left, scale_b=right, out_dtype=dtype)[:, :n],
            both.inputs, facts=facts,
        )  # fmt: skip
    if scheme == "fp8-block":
        return _block_scaled(both, dtype)
    fp4 = scheme != "mxfp8"
    per_scale, per_byte = act.block[1], 2 if fp4 else 1
    rows, cols, depth = m, _up(n, 32), _up(k, 128)  # four scales of 32 elements side by side
    if fp4:
        rows = _up(m, 32)
    kind = torch.float4_e2m1fn_x2 if fp4 else torch.float8_e4m3fn
    x = _filled(act.data, rows, depth // per_byte).view(kind)
    w = _filled(weights.data, cols, depth // per_byte).view(kind)
    scale_kind = torch.float8_e8m0fnu if scheme != "nvfp4" else torch.float8_e4m3fn
    left, right = (
        swizzled(o.scale.view(torch.uint8), size, depth // per_scale).view(scale_kind)
        for o, size in ((act, rows), (weights, cols))
    )
    factor = None if act.tensor_scale is None else (act.tensor_scale * weights.tensor_scale).to(dtype)

    def call() -> Any:
        found = torch._scaled_mm(x, w.t(), scale_a=left, scale_b=right, out_dtype=dtype)[:m, :n]
        return found if factor is None else found * factor

    return Kernel(call, both.inputs, facts=_padding(m=(m, rows), n=(n, cols), k=(k, depth)))


def _filled_scales(scales: Any, rows: int, cols: int) -> Any:
    """Scales with ones below and to the right."""
    import torch

    larger = torch.ones(rows, cols, dtype=scales.dtype, device=scales.device)
    larger[: scales.shape[0], : scales.shape[1]] = scales
    return larger


def _block_scaled(both: Operands, dtype: Any) -> Kernel:
    """FP8 with a scale per 1x128 activations and per 128x128 weights, as cuBLAS wants them: those of the activations
    with the rows next to each other, those of the weights with the blocks of k next to each other, four at a time."""
    from torch.nn.functional import ScalingType, scaled_mm

    act, weights = both.act, both.weights
    assert act is not None
    (m, k), n = act.shape, weights.shape[0]
    cols, depth = _up(n, 128), _up(k, 128)
    x, w = _filled(act.data, m, depth), _filled(weights.data, cols, depth)
    left = act.scale.t().contiguous().t()
    right = _filled_scales(weights.scale, cols // 128, _up(depth // 128, 4)).t()

    def call() -> Any:
        return scaled_mm(
            x, w.t(), left, ScalingType.BlockWise1x128, right, ScalingType.BlockWise128x128, output_dtype=dtype
        )[:, :n]

    return Kernel(call, both.inputs, facts=_padding(n=(n, cols), k=(k, depth)))


def swizzled(scales: Any, rows: int, cols: int) -> Any:
    """Scales [rows, cols] of blocks in the order that cuBLAS reads them in (cuBLAS documentation, "1D block scaling
    factors layout"): tiles of 128 rows by 4, in a tile row r before row r + 32.

    Args:
        scales: bytes; filled up with zeros.
        rows: rows of the matrix as padded.
        cols: blocks in a row as padded.

    Returns:
        The bytes in one dimension.
    """
    tall, wide = -(-rows // 128), -(-cols // 4)
    tiles = _filled(scales, tall * 128, wide * 4).view(tall, 4, 32, wide, 4)
    return tiles.permute(0, 3, 2, 1, 4).contiguous().flatten()
