"""The sum of gradients over all ranks, sent in a lossy code: what packing costs, the bytes, the error, where it pays.

Packed rows are gathered from all ranks, and each rank unpacks and adds them: the codes cannot be added as they are.
"""

from __future__ import annotations

from typing import Any

from wattline.params import Float, Int, Params
from wattline.suites.collectives.codecs import BLOCK, Codec, Int8, Scalars, Sign, TopK
from wattline.suites.collectives.kernel import (
    WORLD,
    GroupContext,
    GroupKernel,
    GroupWorkload,
    backend_here,
    enough_ranks,
)  # fmt: skip
from wattline.suites.collectives.shapes import SIZES
from wattline.suites.registry import implementation, workload
from wattline.suites.workload import BuildContext, ParamValues
from wattline.workmodels.collectives import busbw_factor

OP = "collectives.compressed"
_TOLERANCE = 1e-4  # of the reference's norm: both add in another order


def elements_of(p: ParamValues) -> int:
    """Elements of the gradient, fp32, rounded up to whole blocks."""
    return -(-max(1, int(p["bytes"]) // 4) // BLOCK) * BLOCK


def gradient(count: int, seed: int, rank: int, device: Any) -> Any:
    """A rank's gradient: normal numbers whose scale differs from block to block, as those of layers do. Made on the
    host, so that every rank can make every other's."""
    import torch

    generator = torch.Generator().manual_seed((seed * 1_000_003 + rank) % 2**62)
    x = torch.randn(count, generator=generator)
    scale = torch.exp(torch.randn(count // BLOCK, generator=generator))
    return x.view(-1, BLOCK).mul_(scale[:, None]).view(-1).to(device)


def break_even(saved_bytes: float, spent_s: float) -> float | None:
    """Bytes/s of a link below which a code pays: what it saves takes longer to send there than packing and unpacking
    take. ``None``: it saves nothing."""
    return saved_bytes / spent_s if saved_bytes > 0 and spent_s > 0 else None


@workload(OP, impl="dense", requires=[enough_ranks(2), backend_here()])
class CompressedWorkload(GroupWorkload):
    """The sum of gradients sent in a code (top-k, 8 bits, signs, scalars of a shared seed), or as they are."""

    params = Params(
        bytes=Int(lo=4, doc="of each rank's gradient (fp32), rounded up to blocks of 256 elements"),
        density=Float(0.01, lo=1e-6, hi=1.0, doc="share of the elements that top-k keeps"),
        scalars=Int(16, doc="numbers that stand for the whole gradient (shared_seed)"),
        **WORLD,
    )
    shape_sources = SIZES

    def footprint(self, p: ParamValues) -> float:
        """Gradient, result, room of the packing, and the rows of all ranks."""
        size = 4.0 * elements_of(p)
        return 4 * size + 2.0 * float(p["density"]) * size * int(p["world_size"])

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """All-reduce of the gradients as they are."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        import torch
        import torch.distributed as dist

        comm, count = ctx.comm, elements_of(p)
        kept = gradient(count, ctx.seed, comm.rank, ctx.torch_device)
        x = torch.empty_like(kept)

        moved = 4 * count
        facts = _facts(moved, comm.size, float(busbw_factor("all_reduce", comm.size)) * moved)

        def verify() -> tuple[float, float, str]:
            error, tolerance, method = _against(_exact(count, ctx), x, "fp64 sum")
            facts["relative_error"] = error
            return error, tolerance, method

        return GroupKernel(
            call=lambda: dist.all_reduce(x, group=comm.group), inputs={"x": kept}, refresh=lambda: x.copy_(kept),
            verify=verify, token=f"{count} x fp32", moved_bytes=moved,
            facts=facts,
        )  # fmt: skip


def _facts(wire: float, size: int, sent: float) -> dict[str, Any]:
    return {"wire_bytes": wire, "sent_bytes": sent, "ranks_summed": size}


def _exact(count: int, ctx: GroupContext) -> Any:
    """The sum of all ranks' gradients in fp64."""
    import torch

    total = torch.zeros(count, dtype=torch.float64, device=ctx.torch_device)
    for rank in range(ctx.comm.size):
        total += gradient(count, ctx.seed, rank, ctx.torch_device)
    return total


def _against(want: Any, found: Any, method: str) -> tuple[float, float, str]:
    return float((found.double() - want).norm() / want.norm()), _TOLERANCE, method


def _codec(name: str, p: ParamValues, ctx: GroupContext) -> Codec:
    count, device = elements_of(p), ctx.torch_device
    if name == "topk":
        return TopK(count, device, float(p["density"]))
    if name == "shared_seed":
        return Scalars(count, device, int(p["scalars"]), ctx.seed)
    return Int8(count, device) if name == "int8" else Sign(count, device)


def _build(name: str, p: ParamValues, ctx: BuildContext) -> GroupKernel:
    assert isinstance(ctx, GroupContext)  # the group runner makes no other
    import torch
    import torch.distributed as dist

    comm, codec = ctx.comm, _codec(name, p, ctx)
    n, count = comm.size, codec.count
    x = gradient(count, ctx.seed, comm.rank, ctx.torch_device)
    out = torch.empty(count, device=x.device)
    wire = torch.zeros(codec.wire_bytes, dtype=torch.uint8, device=x.device)
    wires = torch.zeros((n, codec.wire_bytes), dtype=torch.uint8, device=x.device)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    def pack() -> None:
        codec.pack(x, wire)

    def transfer() -> None:
        gather(wires.view(-1), wire, group=comm.group)

    def unpack() -> None:
        out.zero_()
        if isinstance(codec, Scalars):
            codec.add_all(wires, out)
            return
        for row in wires:
            codec.add(row, out)

    def call() -> None:
        pack()
        transfer()
        unpack()

    sent = float((n - 1) * codec.wire_bytes)  # every row to every other rank, once
    facts = _facts(codec.wire_bytes, n, sent)

    def verify() -> tuple[float, float, str]:
        exact = _exact(count, ctx)
        facts["relative_error"] = float((out.double() - exact).norm() / exact.norm())
        want = torch.zeros(count, dtype=torch.float64, device=x.device)
        row = torch.zeros_like(wire)
        for rank in range(n):
            codec.pack(gradient(count, ctx.seed, rank, x.device), row)
            codec.add(row, want)
        return _against(want, out, "the same codes, added in fp64")

    def finish(found: dict[str, Any]) -> None:
        spent = found["pack_s"] + found["unpack_s"]
        saved = float(busbw_factor("all_reduce", n)) * 4 * count - sent
        found["ratio"] = 4 * count / codec.wire_bytes
        found["saved_bytes"] = saved
        found["pays_below_bytes_per_s"] = break_even(saved, spent)

    return GroupKernel(
        call=call, inputs={"x": x}, output=out, token=f"{codec.wire_bytes} bytes of {name}", verify=verify,
        moved_bytes=4 * count, stages={"pack": pack, "transfer": transfer, "unpack": unpack}, finish=finish,
        facts=facts,
    )  # fmt: skip


def _register(name: str, doc: str) -> None:
    def build(p: ParamValues, ctx: BuildContext) -> GroupKernel:
        return _build(name, p, ctx)

    build.__doc__ = doc
    implementation(OP, name, requires=[enough_ranks(2), backend_here()])(build)


for _name, _doc in {
    "topk": "The largest elements: values and indices.",
    "int8": "8 bits and a scale for each block.",
    "sign": "1 bit and a scale for each block.",
    "shared_seed": "A few inner products with directions that a shared seed makes.",
}.items():
    _register(_name, _doc)
