"""Matrix products in tiles of chosen sizes: what the choice is worth, on a GPU and on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wattline.params import Constraint, DType, Int, Params, Value
from wattline.reasons import Reason
from wattline.suites.gemm import shapes
from wattline.suites.gemm.dense import SCOUT_SIZE
from wattline.suites.gemm.shapes import ShapeSet
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import cuda, module, triton
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload
from wattline.units import format_bytes
from wattline.workmodels.tiled import DEFAULT_BLOCKS, SM_LIMITS, shared_bytes, sm_limits, tiled, tiles_of

FORMATS = ("fp64", "fp32", "tf32", "bf16", "fp16")
MAX_TILE = 32
"""Largest naive tile: 32 x 32 is as many threads as a block may have."""
TRITON_FORMATS = ("fp32", "tf32", "bf16", "fp16")
_CHOSEN = ("block_m", "block_n", "block_k", "warps", "stages", "group_m")
_DEFAULTS = {**DEFAULT_BLOCKS, "group_m": 8}

WARPS_RULE = Constraint(
    "warps is a power of two up to 32, and stages is at most 8",
    lambda p: int(p["warps"]) in (1, 2, 4, 8, 16, 32) and int(p["stages"]) <= 8,
)
NAIVE_RULE = Constraint(
    "a naive tile (tile above 0) stands in the place of blocks: block_m, block_n, block_k, warps, stages and group_m "
    "keep their defaults",
    lambda p: not p["tile"] or all(p[name] == default for name, default in _DEFAULTS.items()),
)


def refused(broken: Callable[[ParamValues, Machine], bool], code: str, message: str) -> Requirement:
    """A rule that reads the same in a list of requirements and as the reason why a case breaks it."""
    return Requirement(message, lambda p, m: Reason(code, message) if broken(p, m) else None)


def _powers(p: ParamValues) -> bool:
    return all((size := int(p[name])) >= 16 and size & (size - 1) == 0 for name in ("block_m", "block_n", "block_k"))


def shared_memory() -> Requirement:
    """A GPU's shared memory holds the operands of a block."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        if machine.kind != "cuda" or machine.hip or machine.sm < min(SM_LIMITS):
            return None  # what other devices hold, the driver says when the kernel is built
        limits = sm_limits(machine.sm)
        needed = int(shared_bytes(tiles_of(p), str(p["dtype"]), limits))
        if needed <= limits.block_bytes:
            return None
        message = (
            f"these blocks and stages take {format_bytes(needed)} of shared memory, and a block may have "
            f"{format_bytes(limits.block_bytes)} at compute capability {machine.sm / 10:.1f}"
        )
        return Reason("shared_memory", message)

    return Requirement("operands of a block that fit shared memory", unmet)


def sums_fit() -> Requirement:
    """The sums of a block stay in registers, of which a multiprocessor has 65536."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        sums, most = int(p["block_m"]) * int(p["block_n"]), SM_LIMITS[max(SM_LIMITS)].registers
        if sums <= most:
            return None
        return Reason("registers", f"{sums} sums of a block need as many registers, and a multiprocessor has {most}")

    return Requirement("sums of a block that fit the registers", unmet)


def triton_formats(*names: str) -> Requirement:
    """Formats that a Triton kernel multiplies; tf32 where tensor cores know it, and in the interpreter."""
    known, tensor_cores = names or TRITON_FORMATS, cuda(80)

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        if p["dtype"] not in known:
            return Reason("no_kernel", f"the Triton kernel multiplies {', '.join(known)}; this is {p['dtype']}")
        if p["dtype"] == "tf32" and machine.kind != "cpu":
            return tensor_cores.unmet(p, machine)
        return None

    also = "; tf32: compute capability 8.0 or newer" if "tf32" in known else ""
    return Requirement(f"one of {', '.join(known)}{also}", unmet)


def _on(kind_is_cpu: bool, requirement: Requirement) -> Requirement:
    """``requirement``, on CPUs only or elsewhere only."""
    where = "on a CPU" if kind_is_cpu else "on a GPU"

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        return requirement.unmet(p, machine) if (machine.kind == "cpu") == kind_is_cpu else None

    return Requirement(f"{where}: {requirement.text}", unmet)


_BLOCKS_ONLY = refused(lambda p, m: bool(p["tile"]), "no_kernel",
                       "a tile above 0 belongs to the naive kernel: tile must be 0")  # fmt: skip
_CPU_FORMATS = refused(lambda p, m: p["dtype"] not in ("fp32", "fp64"), "no_kernel",
                       "the numba kernel multiplies fp32 and fp64")  # fmt: skip


def random(
    count: int = 40, *, seed: int = 0, lo: int = 64, hi: int = 1024, block_lo: int = 16, block_hi: int = 256,
    warps: str | int = 4, stages: str | int = 3,
) -> Iterator[ShapeSet]:  # fmt: skip
    """Shapes and tiles together, spread log-uniformly, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most of m, n and k.
        block_lo, block_hi: least and most of block_m, block_n and block_k, which are powers of two.
        warps, stages: ranges or lists to take in turn, such as ``"4,8"``.
    """
    from wattline.ranges import parse_range

    several, deep = (parse_range(given) for given in (warps, stages))
    for i, u in enumerate(points(6, count, seed=seed)):
        sizes = {name: round(log_uniform(x, lo, hi)) for name, x in zip("mnk", u[:3], strict=True)}
        # Half a power of two beyond either end, so that the ends are as likely as the rest.
        blocks = {
            name: min(max(2 ** round(_log2(log_uniform(x, block_lo / 2**0.5, block_hi * 2**0.5))), block_lo), block_hi)
            for name, x in zip(("block_m", "block_n", "block_k"), u[3:], strict=True)
        }
        yield {**sizes, **blocks, "warps": several[i % len(several)], "stages": deep[i // len(several) % len(deep)]}


def _log2(value: float) -> float:
    from math import log2

    return log2(value)


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {"squares": shapes.squares, "random": random}


@workload(
    "gemm.tiled", impl="triton",
    requires=(
        triton(), _BLOCKS_ONLY, triton_formats(),
        refused(lambda p, m: not _powers(p), "block_size", "Triton wants blocks of 16, 32, 64 ... along m, n and k"),
        sums_fit(), shared_memory(),
    ),
)  # fmt: skip
class TiledGemm(Workload):
    """C[m, n] = A[m, k] @ B[k, n] in tiles: blocks of block_m x block_n, steps of block_k."""

    params = Params(
        WARPS_RULE, NAIVE_RULE,
        m=Int(doc="rows of A and C"),
        n=Int(doc="columns of B and C"),
        k=Int(doc="columns of A, rows of B"),
        dtype=DType(*FORMATS, doc="number format of A, B and C; sums are kept in fp32 (fp64: fp64)"),
        block_m=Int(_DEFAULTS["block_m"], doc="rows of a block of C"),
        block_n=Int(_DEFAULTS["block_n"], doc="columns of a block of C"),
        block_k=Int(_DEFAULTS["block_k"], doc="columns of A and rows of B in one step"),
        warps=Int(_DEFAULTS["warps"], hi=32, doc="warps that share a block (GPU)"),
        stages=Int(_DEFAULTS["stages"], hi=8, doc="steps that are loaded ahead, buffers in shared memory (GPU)"),
        group_m=Int(_DEFAULTS["group_m"], doc="rows of blocks in a band that is walked column by column"),
        tile=Int(0, lo=0, hi=MAX_TILE, doc="side of the naive kernel's tiles; 0: blocks"),
    )  # fmt: skip
    shape_sources = SOURCES

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: our Triton kernel."""
        from wattline.suites.gemm.tiled_triton import launcher

        inputs, out = _operands(p, ctx)
        a, b, dtype, tiles = inputs["a"], inputs["b"], str(p["dtype"]), chosen(p)
        return launched(lambda c: launcher(a, b, c, dtype, tiles), inputs, out, _facts(p, ctx))

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`; as for ``gemm.dense``."""
        from wattline.suites.gemm.checks import compare, tolerance

        a, dtype = kernel.inputs["a"], str(p["dtype"])
        allowed = tolerance(dtype, dtype, int(p["k"]), accelerator=a.device.type != "cpu")
        error, method = compare(a, kernel.inputs["b"], result)
        return error, allowed, method

    def scout(self, p: ParamValues, size: int = SCOUT_SIZE) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: a smaller product in the same tiles."""
        small = {**p, **{name: min(int(p[name]), size) for name in ("m", "n", "k")}}
        return None if small == dict(p) else small


def chosen(p: ParamValues) -> dict[str, int]:
    """The tile sizes of a case, warps and stages."""
    return {name: int(p[name]) for name in _CHOSEN}


def launched(
    launcher: Callable[[Any], Callable[[], Any]], inputs: Mapping[str, Any], out: Any, facts: Mapping[str, Any]
) -> Kernel:
    """A kernel of Triton launches, compiled here; a call is the launch and nothing beside it.

    Args:
        launcher: makes the launch that writes into a given result.
        inputs, out, facts: as :class:`Kernel` has them.
    """
    import torch

    from wattline.suites.gemm.tiled_triton import compile_facts

    launch = launcher(out)
    made = dict(facts) | compile_facts(launch)

    def call() -> Any:
        launch()
        return out

    def eager() -> Any:
        fresh = torch.empty_like(out)
        launcher(fresh)()
        return fresh

    return Kernel(call, inputs, out, eager, facts=made)


def _operands(p: ParamValues, ctx: BuildContext) -> tuple[dict[str, Any], Any]:
    m, n, k, dtype = int(p["m"]), int(p["n"]), int(p["k"]), str(p["dtype"])
    set_precision(dtype)
    return {"a": ctx.tensor((m, k), dtype), "b": ctx.tensor((k, n), dtype)}, ctx.empty((m, n), dtype)


def _facts(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """What the tiles mean on the GPU at hand; nothing elsewhere."""
    if ctx.machine.kind != "cuda" or ctx.machine.hip:
        return {}
    import torch

    count = torch.cuda.get_device_properties(ctx.torch_device).multi_processor_count
    details = tiled({**p, "capability": ctx.machine.sm, "sm_count": count}).details
    return {name: details[name] for name in ("blocks_per_sm", "occupancy", "waves", "wave_use")}


@implementation(
    "gemm.tiled", "numba",
    requires=(
        module("numba"), refused(lambda p, m: m.kind != "cpu", "no_kernel", "numba's kernel runs on a CPU"),
        _BLOCKS_ONLY, _CPU_FORMATS,
        refused(lambda p, m: p["warps"] != _DEFAULTS["warps"] or p["stages"] != _DEFAULTS["stages"], "no_kernel",
              "a CPU has no warps and stages: both must keep their defaults"),
    ),
)  # fmt: skip
def numba(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Own blocked kernel for a CPU, compiled by Numba, blocks over threads."""
    tiles = chosen(p)
    return _on_cpu("blocked", p, ctx, *(tiles[name] for name in ("block_m", "block_n", "block_k", "group_m")))


@implementation(
    "gemm.tiled", "naive",
    requires=(
        refused(lambda p, m: not p["tile"], "no_tile", "the naive kernel wants a tile of 1 to 32"),
        _on(True, module("numba")), _on(True, _CPU_FORMATS),
        _on(False, triton()), _on(False, triton_formats("fp32", "bf16", "fp16")),
    ),
)  # fmt: skip
def naive(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Square tiles and plain loops: Numba on a CPU, on a GPU a Triton kernel without tensor cores."""
    tile = int(p["tile"])
    if ctx.machine.kind == "cpu":
        return _on_cpu("naive", p, ctx, tile)
    from wattline.suites.gemm.tiled_triton import naive_launcher

    inputs, out = _operands(p, ctx)
    a, b, warps = inputs["a"], inputs["b"], int(tiles_of(p).warps)
    return launched(lambda c: naive_launcher(a, b, c, tile, warps), inputs, out, _facts(p, ctx))


def _on_cpu(name: str, p: ParamValues, ctx: BuildContext, *sizes: int) -> Kernel:
    import torch

    from wattline.suites.gemm.tiled_numba import kernel_for

    inputs, out = _operands(p, ctx)
    a, b, c = (t.numpy() for t in (inputs["a"], inputs["b"], out))
    kernel, seconds = kernel_for(name, c.dtype)

    def call() -> Any:
        kernel(a, b, c, *sizes)
        return out

    def eager() -> Any:
        fresh = torch.empty_like(out)
        kernel(a, b, fresh.numpy(), *sizes)
        return fresh

    return Kernel(call, inputs, out, eager, facts={"compile_s": seconds, "threads": torch.get_num_threads()})
