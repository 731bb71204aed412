"""Tiled matrix products as Triton kernels. Imported by builds only: Triton compiles at import what it finds here.

Blocks of C are dealt to programs in bands of ``GROUP`` rows of blocks, so that programs which run together share
operands in the second-level cache. Every size is masked: none needs to be a multiple of a tile.
"""

# Kernels carry no annotations: Triton reads them and knows none of Python's types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl

from wattline.errors import UnsupportedError


@triton.jit
def _place(program, rows, columns, GROUP: tl.constexpr):
    """Row and column of the block that a program computes: bands of GROUP rows, each walked column by column."""
    band = program // (GROUP * columns)
    first = band * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = program - band * GROUP * columns
    return first + within % height, within // height


@triton.jit
def product(  # noqa: PLR0917 - Triton's launcher takes arguments by position
    a, b, c, m, n, k,
    a_batch, a_row, a_column, b_batch, b_row, b_column, c_batch, c_row, c_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, WHOLE_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """``C = A B`` for one block of C, sums in fp32; axis 1 of the grid is the batch."""
    row, column = _place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP)
    # 64-bit offsets: matrices may have more than 2**31 elements.
    batch = tl.program_id(1).to(tl.int64)
    rows = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_K)
    in_rows, in_columns = rows[:, None] < m, columns[None, :] < n
    at_a = a + batch * a_batch + rows[:, None] * a_row + steps[None, :] * a_column
    at_b = b + batch * b_batch + steps[:, None] * b_row + columns[None, :] * b_column
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for begin in range(0, k, BLOCK_K):
        if WHOLE_K:
            left = tl.load(at_a, mask=in_rows, other=0.0)
            right = tl.load(at_b, mask=in_columns, other=0.0)
        else:
            left = tl.load(at_a, mask=in_rows & (steps[None, :] < k - begin), other=0.0)
            right = tl.load(at_b, mask=(steps[:, None] < k - begin) & in_columns, other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
        at_a += BLOCK_K * a_column
        at_b += BLOCK_K * b_row
    at_c = c + batch * c_batch + rows[:, None] * c_row + columns[None, :] * c_column
    tl.store(at_c, sums.to(c.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def naive(  # noqa: PLR0917
    a, b, c, m, n, k, a_row, b_row, c_row,
    TILE: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """``C = A B`` in squares of TILE x TILE: one multiply-add at a time, no tensor cores and no shared memory. SIDE is
    the next power of two, which Triton wants."""
    row, column = _place(tl.program_id(0), tl.cdiv(m, TILE), tl.cdiv(n, TILE), 1)
    across = tl.arange(0, SIDE)
    rows = row.to(tl.int64) * TILE + across
    columns = column.to(tl.int64) * TILE + across
    in_rows, in_columns = (across < TILE) & (rows < m), (across < TILE) & (columns < n)
    at_a, at_b = a + rows * a_row, b + columns
    sums = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    for _ in range(0, k):
        left = tl.load(at_a, mask=in_rows, other=0.0).to(tl.float32)
        right = tl.load(at_b, mask=in_columns, other=0.0).to(tl.float32)
        sums += left[:, None] * right[None, :]
        at_a += 1
        at_b += b_row
    at_c = c + rows[:, None] * c_row + columns[None, :]
    tl.store(at_c, sums.to(c.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


Launch = Callable[[], Any]


def interpreted() -> bool:
    """Whether Triton interprets its kernels. Its interpreter multiplies bf16 as the integers that it keeps them in
    (Triton 3.9), so such operands are widened there: products of bf16 are exact in fp32."""
    return not isinstance(product, triton.JITFunction)


def launcher(a: Any, b: Any, c: Any, dtype: str, tiles: Mapping[str, int]) -> Launch:
    """A call that writes ``a @ b`` into ``c``; it does nothing but launch.

    Args:
        a: ``[m, k]`` or ``[batch, m, k]``, any strides.
        b: ``[k, n]`` or ``[batch, k, n]``, any strides.
        c: ``[m, n]`` or ``[batch, m, n]``.
        dtype: the case's; ``"tf32"`` rounds fp32 operands, ``"fp32"`` forbids that.
        tiles: ``block_m``, ``block_n``, ``block_k``, ``warps``, ``stages``, ``group_m``.

    Returns:
        The call. What it returns is Triton's own: the compiled kernel.
    """
    (m, k), n = a.shape[-2:], b.shape[-1]
    batch = a.shape[0] if a.dim() == 3 else 1
    grid = (triton.cdiv(m, tiles["block_m"]) * triton.cdiv(n, tiles["block_n"]), batch)
    strides = [stride for t in (a, b, c) for stride in ((t.stride(0) if t.dim() == 3 else 0), *t.stride()[-2:])]
    arguments = (
        a, b, c, m, n, k, *strides, tiles["block_m"], tiles["block_n"], tiles["block_k"], tiles["group_m"],
        k % tiles["block_k"] == 0, "tf32" if dtype == "tf32" else "ieee", dtype == "bf16" and interpreted(),
    )  # fmt: skip
    start, warps, stages = product[grid], tiles["warps"], tiles["stages"]
    return lambda: start(*arguments, num_warps=warps, num_stages=stages)


def naive_launcher(a: Any, b: Any, c: Any, tile: int, warps: int) -> Launch:
    """The naive kernel as a call, for row-major matrices ``[m, k]``, ``[k, n]``, ``[m, n]``."""
    (m, k), n = a.shape, b.shape[1]
    arguments = (a, b, c, m, n, k, a.stride(0), b.stride(0), c.stride(0), tile, triton.next_power_of_2(tile))
    start = naive[(triton.cdiv(m, tile) * triton.cdiv(n, tile),)]
    return lambda: start(*arguments, num_warps=warps)


def compile_facts(launch: Launch) -> dict[str, Any]:
    """Launch once, so that compilation is over, and say what came of it.

    Returns:
        ``compile_s`` (compilation and the first launch) and, of a compiled kernel, what it really takes:
        ``registers`` of a thread, ``spills``, ``shared_bytes`` of a block.

    Raises:
        UnsupportedError: the device has too little shared memory, registers or threads for it.
    """
    from triton.runtime.errors import OutOfResources

    begin = time.perf_counter()
    try:
        compiled = launch()
    except OutOfResources as error:
        text = " ".join(str(error).split())
        raise UnsupportedError(
            "the tiles do not fit the device", why=text, todo="take smaller blocks or fewer stages",
            code="out_of_resources",
        ) from None  # fmt: skip
    facts: dict[str, Any] = {"compile_s": time.perf_counter() - begin}
    # The interpreter compiles nothing; Triton's versions differ in what they tell.
    found = {"registers": getattr(compiled, "n_regs", None), "spills": getattr(compiled, "n_spills", None),
             "shared_bytes": getattr(getattr(compiled, "metadata", None), "shared", None)}  # fmt: skip
    return facts | {name: int(value) for name, value in found.items() if value is not None}
