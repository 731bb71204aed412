"""The Triton kernel of :mod:`.triton_impl`; imported only where Triton is there."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

TILE_N = 64
TILE_K = 64


@triton.jit
def _e4m3(byte):  # the kernel compiler wants no docstring here
    # By arithmetic, so that GPUs without the format decode it too: 2^(e-7) (1 + f/8), below e = 1 2^-6 f/8.
    exponent = ((byte >> 3) & 15).to(tl.float32)
    fraction = (byte & 7).to(tl.float32) * 0.125
    size = tl.where(exponent == 0, fraction * 0.015625, (1 + fraction) * tl.exp2(exponent - 7))
    return tl.where(byte >= 128, -size, size)


@triton.jit
def _e2m1(code):
    exponent = ((code >> 1) & 3).to(tl.float32)
    fraction = (code & 1).to(tl.float32) * 0.5
    size = tl.where(exponent == 0, fraction, (1 + fraction) * tl.exp2(exponent - 1))
    return tl.where(code >= 8, -size, size)


@triton.jit
def _tile(  # noqa: PLR0917 - pointers and sizes, one register each
    data, scale, zero, rows, count, begin, k, stride, blocks,
    ELEMENT: tl.constexpr, SCALE: tl.constexpr, ZERO: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
    BK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    # Rows [R, 1] and BK columns of an operand, decoded; 0 outside. Addresses in 64 bits: matrices may be large.
    cols = begin + tl.arange(0, BK)[None, :]
    inside = (rows < count) & (cols < k)
    row = rows.to(tl.int64)
    if ELEMENT == 0:
        tile = tl.load(data + row * stride + cols, mask=inside, other=0.0)
    else:
        if ELEMENT == 1:
            value = tl.load(data + row * stride + cols, mask=inside, other=0).to(tl.float32)
        elif ELEMENT == 2:
            byte = tl.load(data + row * stride + cols // 2, mask=inside, other=0).to(tl.int32)
            value = ((byte >> ((cols % 2) * 4)) & 15).to(tl.float32) - 8
        elif ELEMENT == 3:
            byte = tl.load(data + row * stride + cols // 4, mask=inside, other=0).to(tl.int32)
            value = ((byte >> ((cols % 4) * 2)) & 3).to(tl.float32) - 1
        elif ELEMENT == 4:
            value = _e4m3(tl.load(data + row * stride + cols, mask=inside, other=0).to(tl.int32))
        else:
            byte = tl.load(data + row * stride + cols // 2, mask=inside, other=0).to(tl.int32)
            value = _e2m1((byte >> ((cols % 2) * 4)) & 15)
        # Extents of 0 stand for the whole matrix. Where a tile lies within one block, a row has one scale to load.
        at = row * 0 if TALL == 0 else row // TALL * blocks
        there = rows < count
        if WIDE > 0:
            if WIDE % BK == 0:
                at += begin // WIDE
            else:
                at = at + cols // WIDE
                there = inside
        step = tl.load(scale + at, mask=there, other=0)
        if SCALE == 2:
            value = value * tl.exp2(step.to(tl.float32) - 127)
        elif SCALE == 3:
            value = value * _e4m3(step.to(tl.int32))
        else:
            value = value * step.to(tl.float32)
        if ZERO:
            value = value + tl.load(zero + at, mask=there, other=0).to(tl.float32)
        tile = tl.where(inside, value, 0.0).to(DTYPE)
    return tile


@triton.jit
def _product(  # noqa: PLR0917 - pointers and sizes, one register each
    x, x_scale, x_zero, w, w_scale, w_zero, out, factor, m, n, k, x_stride, w_stride, x_blocks, w_blocks,
    X_ELEMENT: tl.constexpr, X_SCALE: tl.constexpr, X_ZERO: tl.constexpr, X_TALL: tl.constexpr, X_WIDE: tl.constexpr,
    W_ELEMENT: tl.constexpr, W_SCALE: tl.constexpr, W_ZERO: tl.constexpr, W_TALL: tl.constexpr, W_WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)[:, None]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    DTYPE: tl.constexpr = out.dtype.element_ty
    for begin in range(0, k, BK):
        left = _tile(x, x_scale, x_zero, rows, m, begin, k, x_stride, x_blocks,
                     X_ELEMENT, X_SCALE, X_ZERO, X_TALL, X_WIDE, BK, DTYPE)  # fmt: skip
        right = _tile(w, w_scale, w_zero, columns, n, begin, k, w_stride, w_blocks,
                      W_ELEMENT, W_SCALE, W_ZERO, W_TALL, W_WIDE, BK, DTYPE)  # fmt: skip
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    across = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    place = rows.to(tl.int64) * n + across
    tl.store(out + place, (total * tl.load(factor)).to(DTYPE), mask=(rows < m) & (across < n))


def multiply(left: tuple[Any, ...], right: tuple[Any, ...], out: Any, k: int, *, factor: Any, tile_m: int) -> None:
    """Write ``left @ right^T`` times ``factor`` into ``out``.

    Args:
        left: [m, k] as data, scales, zero points, element, kind of scale, whether there are zero points, and rows and
            columns of a block (0: all).
        right: [n, k], likewise.
        out: [m, n], contiguous.
        k: columns of both.
        factor: fp32 scalar on the device.
        tile_m: rows of a tile.
    """
    m, n = out.shape
    x, x_scale, x_zero, *x_form = left
    w, w_scale, w_zero, *w_form = right
    grid = (triton.cdiv(m, tile_m), triton.cdiv(n, TILE_N))
    _product[grid](
        x, x_scale, x_zero, w, w_scale, w_zero, out, factor, m, n, k, x.stride(0), w.stride(0),
        x_scale.shape[1], w_scale.shape[1], *x_form, *w_form,
        BM=tile_m, BN=TILE_N, BK=TILE_K, num_warps=4, num_stages=3,
    )  # fmt: skip
