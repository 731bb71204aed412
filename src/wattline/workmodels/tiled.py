"""Work of tiled matrix products, and what a choice of tiles means for a GPU's streaming multiprocessors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import ceil_div, least, most
from wattline.workmodels.gemm import dense

KB = 1024
DEFAULT_BLOCKS = {"block_m": 128, "block_n": 128, "block_k": 32, "warps": 4, "stages": 3}
"""What is left out of a case."""

CAPABILITY, SM_COUNT = 90, 132
"""The GPU that ``details`` speak of where none is named: an H100 or H200 (SXM)."""

_RESERVED = 1 * KB  # shared memory that the system takes of every block, compute capability 8.0 and newer
_REGISTER_UNIT = 256  # registers are given to a warp in such portions
_PARTITIONS = 4  # of an SM, each with a quarter of the registers; a warp lives in one


@dataclass(frozen=True)
class SmLimits:
    """What a streaming multiprocessor holds.

    Attributes:
        warps: resident warps.
        blocks: resident blocks.
        shared_bytes: shared memory.
        block_bytes: the most of it that one block may have.
        from_shared: tensor cores read their operands there (warp-group instructions), so every stage of a pipeline
            needs a buffer; others are fed through registers, which serve as one stage.
        ahead: copies into shared memory run beside the multiplications (``cp.async``, from 8.0 on); Triton makes no
            pipeline without them, whatever ``stages`` says.
        registers: 32-bit registers.
        thread_registers: the most that one thread may have.
    """

    warps: int
    blocks: int
    shared_bytes: int
    block_bytes: int
    from_shared: bool = False
    ahead: bool = True
    registers: int = 64 * KB
    thread_registers: int = 255


# CUDA C++ programming guide, "Compute capabilities", table "Technical specifications per compute capability".
SM_LIMITS: dict[int, SmLimits] = {
    70: SmLimits(64, 32, 96 * KB, 96 * KB, ahead=False),
    75: SmLimits(32, 16, 64 * KB, 64 * KB, ahead=False),
    80: SmLimits(64, 32, 164 * KB, 163 * KB),
    86: SmLimits(48, 16, 100 * KB, 99 * KB),
    87: SmLimits(48, 16, 164 * KB, 163 * KB),
    89: SmLimits(48, 24, 100 * KB, 99 * KB),
    90: SmLimits(64, 32, 228 * KB, 227 * KB, from_shared=True),
    100: SmLimits(64, 32, 228 * KB, 227 * KB, from_shared=True),
    120: SmLimits(48, 24, 100 * KB, 99 * KB),
}


def sm_limits(capability: int) -> SmLimits:
    """Limits of a compute capability (90 for 9.0): its own, or those of the nearest older one in the table."""
    known = [c for c in SM_LIMITS if c <= capability]
    return SM_LIMITS[max(known, default=min(SM_LIMITS))]


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of a case, the naive kernel's among them; numbers, or arrays of one shape.

    Attributes:
        m, n, k: rows and columns of a block of C, and the steps along k.
        warps: of a block.
        stages: of the pipeline.
        naive: 1 where the case names a square ``tile``, else 0.
    """

    m: Any
    n: Any
    k: Any
    warps: Any
    stages: Any
    naive: Any


def tiles_of(p: Mapping[str, Any]) -> Tiles:
    """The tiles that parameters mean. A naive tile has a thread for each element, in a square of a power of two."""
    tile = p.get("tile", 0)
    naive = 1 * (tile > 0)
    sizes = {name: p.get(name, default) for name, default in DEFAULT_BLOCKS.items()}
    m, n, k = (tile + (1 - naive) * sizes[name] for name in ("block_m", "block_n", "block_k"))
    side = 1 + (tile > 1) * 1 + (tile > 2) * 2 + (tile > 4) * 4 + (tile > 8) * 8 + (tile > 16) * 16
    warps = naive * most(1, side * side // 32) + (1 - naive) * sizes["warps"]
    return Tiles(m, n, k, warps, naive + (1 - naive) * sizes["stages"], naive)


def registers_per_thread(tiles: Tiles, limits: SmLimits) -> Any:
    """An estimate: each of a block's sums is kept in a register; addresses take some 45, operands a share of the sums.

    Fitted by hand to what ptxas (CUDA 13) makes of our kernel for compute capabilities 8.0 and 9.0: within a third of
    it for tf32 and 16-bit operands. Products without tensor cores (fp32) take up to twice as many.
    """
    sums = tiles.m * tiles.n / (32.0 * tiles.warps)
    return least(45.0 + (1.2 if limits.from_shared else 1.6) * sums, float(limits.thread_registers))


def shared_bytes(tiles: Tiles, dtype: str, limits: SmLimits) -> Any:
    """Shared memory of a block: ``(block_m block_k + block_k block_n) width`` for each buffer of the pipeline.

    As many buffers as stages where tensor cores read operands from there (whole warp groups: at least 64 rows and a
    multiple of four warps; no fp32 or fp64), else one fewer, and one where nothing is copied ahead: this is what Triton
    3.9 allocates for our kernel (at 10.0 a few bytes more, for barriers). The naive kernel has none: it relies on the
    cache.
    """
    cores = limits.from_shared and dtype not in ("fp32", "fp64")
    grouped = int(cores) * (tiles.m >= 64) * (tiles.warps % 4 == 0)
    buffers = most(1, tiles.stages - 1 + grouped) if limits.ahead else 1
    width = number_format(dtype).bytes
    return (1 - tiles.naive) * (tiles.m * tiles.k + tiles.k * tiles.n) * width * buffers


def blocks_per_sm(tiles: Tiles, shared: Any, limits: SmLimits) -> Any:
    """Resident blocks: what warps, shared memory and registers allow, whichever is least; 0 for a block that does not
    fit at all."""
    per_warp = ceil_div(registers_per_thread(tiles, limits) * 32, _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = (limits.registers / _PARTITIONS // per_warp) * _PARTITIONS // tiles.warps
    by_shared = limits.shared_bytes // (shared + _RESERVED)
    fits = 1 * (shared <= limits.block_bytes)
    return fits * least(least(limits.warps // tiles.warps, by_shared), least(by_registers, limits.blocks))


def tiled(p: Mapping[str, Any]) -> Work:
    """``C = A B`` computed in tiles.

    FLOPs and bytes are those of the product (:func:`wattline.workmodels.gemm.dense`), so that every tiling is held
    against the same bound. What the tiling adds stands in ``details``:

    ``blocks``: tiles of C. ``padding``: share of the multiplications that fall upon padding, since the last tiles
    along m, n and k are computed whole. ``loaded_bytes``: what all blocks load together, ``n / block_n`` times A and
    ``m / block_m`` times B. ``shared_traffic_bytes``: what they write into shared memory, padding included.
    ``block_bytes``: operands of one step and sums of one block, what a CPU's cache must hold.

    On a GPU (compute capability 9.0 with 132 multiprocessors unless ``capability`` and ``sm_count`` say otherwise):
    ``shared_bytes`` and ``registers`` (per thread, an estimate) of a block, ``blocks_per_sm`` and ``occupancy``
    (resident warps over the most that fit; CUDA C++ programming guide, table of compute capabilities), ``waves`` of
    blocks over the device, and ``wave_use``: the share of the last wave's time and of all before that is used,
    ``waves / ceil(waves)``.

    Args:
        p: ``m``, ``n``, ``k``, ``dtype``; may be left out: ``block_m``, ``block_n``, ``block_k``, ``warps``,
            ``stages``, ``tile`` (of the naive kernel; replaces the blocks where it is above 0), ``capability``,
            ``sm_count``.
    """
    work = dense(p)
    width = number_format(p["dtype"]).bytes
    m, n, k = 1.0 * p["m"], 1.0 * p["n"], 1.0 * p["k"]
    tiles, limits = tiles_of(p), sm_limits(int(p.get("capability", CAPABILITY)))
    rows, columns, steps = ceil_div(m, tiles.m), ceil_div(n, tiles.n), ceil_div(k, tiles.k)
    blocks = rows * columns
    shared = shared_bytes(tiles, str(p["dtype"]), limits)
    resident = blocks_per_sm(tiles, shared, limits)
    waves = blocks / (most(resident, 1) * p.get("sm_count", SM_COUNT))
    operands = (tiles.m * tiles.k + tiles.k * tiles.n) * width
    return Work(
        work.flops,
        work.bytes_read,
        work.bytes_written,
        details={
            "blocks": blocks,
            "padding": 1.0 - (m * n * k) / (blocks * steps * tiles.m * tiles.n * tiles.k),
            "loaded_bytes": (m * k * columns + k * n * rows) * width,
            "shared_traffic_bytes": (1 - tiles.naive) * blocks * steps * operands,
            "block_bytes": operands + tiles.m * tiles.n * most(width, 4.0),
            "shared_bytes": 1.0 * shared,
            "registers": registers_per_thread(tiles, limits),
            "blocks_per_sm": 1.0 * resident,
            "occupancy": resident * tiles.warps / limits.warps,
            "waves": waves,
            "wave_use": waves / ceil_div(waves, 1.0),
        },
    )
