"""Dense matrix products beside the library's: our own Triton kernel, and what torch.compile makes of the product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wattline.suites.compiled import compiled, compiler
from wattline.suites.gemm.dense import FP8, operands
from wattline.suites.gemm.tiled import launched, refused, triton_formats
from wattline.suites.registry import implementation
from wattline.suites.requirements import cuda, triton, when
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues
from wattline.workmodels.tiled import (
    CAPABILITY,
    SM_COUNT,
    SM_LIMITS,
    SmLimits,
    blocks_per_sm,
    shared_bytes,
    sm_limits,
    tiles_of,
)

_SHAPES = (
    (16, 64, 2), (16, 128, 4), (32, 64, 4), (32, 128, 4), (64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 4),
    (128, 256, 8), (256, 128, 8),
)  # fmt: skip
_BALANCE = 64
"""Side of a square block that loads its operands about as long as it multiplies them."""
_MOST_STAGES = 4
_GRID_DEPTH = 65535  # CUDA's limit along the axis that the batch takes
_AMD = replace(SM_LIMITS[75], ahead=True)
"""AMD's compute units have 64 KiB of shared memory, as the multiprocessors of compute capability 7.5, but stages."""


@implementation(
    "gemm.dense", "triton",
    requires=(
        triton(), triton_formats(),
        refused(lambda p, m: p["acc"] not in ("default", "fp32"), "no_kernel",
                "the Triton kernel keeps its sums in fp32: acc must be default or fp32"),
        refused(lambda p, m: int(p["batch"]) > _GRID_DEPTH, "no_kernel",
                f"the Triton kernel takes a batch of at most {_GRID_DEPTH}"),
    ),
)  # fmt: skip
def dense_triton(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Our tiled Triton kernel, its tiles chosen by shape."""
    from wattline.suites.gemm.tiled_triton import launcher

    a, b, out = operands(p, ctx)
    dtype, machine = str(p["dtype"]), ctx.machine
    limits, sm_count = _device(ctx, machine)
    m, n, k, batch = (int(p[name]) for name in ("m", "n", "k", "batch"))
    tiles = tiles_for(m, n, k, batch=batch, dtype=dtype, limits=limits, sm_count=sm_count)
    facts = {name: tiles[name] for name in ("block_m", "block_n", "block_k", "warps", "stages")}
    return launched(lambda c: launcher(a, b, c, dtype, tiles), {"a": a, "b": b}, out, facts)


def _device(ctx: BuildContext, machine: Machine) -> tuple[SmLimits, int]:
    """What a multiprocessor holds, and how many there are."""
    if machine.kind != "cuda":
        return sm_limits(CAPABILITY), SM_COUNT
    import torch

    count = int(torch.cuda.get_device_properties(ctx.torch_device).multi_processor_count)
    return _AMD if machine.hip else sm_limits(machine.sm), count


def tiles_for(
    m: int, n: int, k: int, *, batch: int = 1, dtype: str = "bf16", limits: SmLimits = SM_LIMITS[CAPABILITY],
    sm_count: int = SM_COUNT,
) -> dict[str, int]:  # fmt: skip
    """Tiles for a product, by rule of thumb.

    The multiprocessor with the most blocks is the last to finish: its blocks, each with its multiplications and a
    surcharge for loads that falls with its sides, are what is made least. Of a block too large to have company on its
    multiprocessor nobody hides the waiting, so it counts a tenth more.

    Args:
        m, n, k, batch: sizes of the product.
        dtype: a format that the kernel knows.
        limits: of a multiprocessor.
        sm_count: how many the GPU has.

    Returns:
        ``block_m``, ``block_n``, ``block_k``, ``warps``, ``stages`` and ``group_m``; the tiles fit shared memory.
    """
    from wattline.formats import number_format

    deep = int(128 // number_format(dtype).bytes)  # rows of A are read in lines of 128 bytes
    best: tuple[float, dict[str, int]] | None = None
    for block_m, block_n, warps in _SHAPES:
        # Without tensor cores operands of large blocks do not fit the registers beside the sums.
        if dtype == "fp32" and block_m * block_n > 64 * 128:
            continue
        block_k = max(16, min(deep, 1 << max(k - 1, 1).bit_length()))
        tiles = {"block_m": block_m, "block_n": block_n, "block_k": block_k, "warps": warps, "group_m": 8}
        for stages in range(_MOST_STAGES, 0, -1):
            shape = tiles_of(tiles | {"stages": stages})
            shared = shared_bytes(shape, dtype, limits)
            if shared <= limits.block_bytes:
                break
        else:
            continue
        alone = 1.1 if blocks_per_sm(shape, shared, limits) < 2 else 1.0
        blocks = -(-m // block_m) * -(-n // block_n) * batch
        loads = 1.0 + _BALANCE * (1.0 / block_m + 1.0 / block_n)
        cost = -(-blocks // sm_count) * block_m * block_n * loads * alone
        if best is None or cost < best[0]:
            best = cost, tiles | {"stages": stages}
    assert best is not None  # the smallest blocks fit every capability in the table
    return best[1]


_products: dict[tuple[str, str], Callable[[Any, Any], Any]] = {}


def product_of(dtype: str, acc: str) -> Callable[[Any, Any], Any]:
    """The product as a function, one for each precision: torch.compile keeps what it compiled by function and types,
    and fp32 and tf32 have one type."""
    if (dtype, acc) not in _products:

        def product(a: Any, b: Any) -> Any:
            return a @ b

        _products[dtype, acc] = product
    return _products[dtype, acc]


@implementation(
    "gemm.dense", "compile",
    requires=(
        compiler(),
        refused(lambda p, m: p["dtype"] in (*FP8, "int8"), "no_kernel",
                "torch has no 8-bit product that a compiler could take apart"),
        when(lambda p: p["dtype"] == "tf32", cuda(80), "tf32"),
        refused(lambda p, m: p["out_dtype"] != "same", "no_kernel",
                "a compiled product has its operands' format: out_dtype must be same"),
        refused(lambda p, m: p["acc"] not in ("default", "fp32"), "no_kernel",
                "the compiler's kernels keep their sums in fp32: acc must be default or fp32"),
        refused(lambda p, m: p["acc"] == "fp32" and m.kind != "cuda", "no_acc_choice",
                "torch lets the accumulate format be chosen on CUDA and ROCm only"),
    ),
)  # fmt: skip
def dense_compile(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The product through torch.compile: on a GPU the quickest of the library's and the compiler's own kernels."""
    a, b, _ = operands(p, ctx)
    # Graphs are a regime of their own here.
    mode = None if ctx.machine.kind == "cpu" else "max-autotune-no-cudagraphs"
    ready, seconds = compiled(product_of(str(p["dtype"]), str(p["acc"])), a, b, mode=mode)
    return Kernel(lambda: ready(a, b), {"a": a, "b": b}, facts={"compile_s": seconds})
