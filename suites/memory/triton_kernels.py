"""Triton kernels of the suite: loops over a working set, and a pointer chase. Loaded only where Triton is used."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

BLOCK = 4096
"""Elements that a program moves at a time."""
_WAVES = 2


def programs_of(device: Any, count: int) -> int:
    """How many programs share a set: two for each multiprocessor, fewer for a small set."""
    import torch

    units = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    return max(1, min(_WAVES * units, count // BLOCK))


@triton.jit  # type: ignore[untyped-decorator]
def bandwidth_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    out, x, y, count, share, passes, factor, KERNEL: tl.constexpr, BLOCK: tl.constexpr
):
    """KERNEL: 0 read, 1 write, 2 copy, 3 triad; ``passes`` over elements [program * share, (program + 1) * share)."""
    program = tl.program_id(0).to(tl.int64)
    begin = program * share
    end = tl.minimum(begin + share, count)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=out.dtype.element_ty)
    for _ in range(passes):
        for offset in range(begin, end, BLOCK):
            at = offset + lanes
            mask = at < end
            if KERNEL == 0:
                total += tl.load(x + at, mask=mask, other=0.0)
            elif KERNEL == 1:
                tl.store(out + at, tl.full((BLOCK,), 0.625, dtype=out.dtype.element_ty), mask=mask)
            elif KERNEL == 2:
                tl.store(out + at, tl.load(x + at, mask=mask), mask=mask)
            else:
                tl.store(out + at, tl.load(x + at, mask=mask) + factor * tl.load(y + at, mask=mask), mask=mask)
    if KERNEL == 0:
        tl.store(out + program, tl.sum(total, axis=0))


@triton.jit
def chase_kernel(out, following, start, steps, stride):  # type: ignore[no-untyped-def]
    """``steps`` dependent loads: ``at = following[at * stride]``, beginning where ``start`` says and kept there."""
    at = tl.load(start)
    for _ in range(steps):
        at = tl.load(following + at.to(tl.int64) * stride)
    tl.store(start, at)
    tl.store(out, at)
