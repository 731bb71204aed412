"""Bandwidth over working sets: the first cache, the last one and main memory show as steps of one curve."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, DType, Int, Params
from wattline.suites.host.buffers import nodes_exist, on_the_host
from wattline.suites.host.loops import FACTOR
from wattline.suites.host.stream import HOST_PARAMS, ROOM, Loops
from wattline.suites.memory.caches import level_of
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import accelerator, module, never, triton
from wattline.suites.rowwise.common import distance
from wattline.suites.workload import BuildContext, Kernel, ParamValues

if TYPE_CHECKING:
    pass

KERNELS = ("read", "write", "copy", "triad")


@workload("memory.bandwidth", impl="numba", requires=(on_the_host(), nodes_exist(), module("numba")))
class Bandwidth(Loops):
    """Bytes per second of read, write, copy or triad over a working set: loops compiled by numba, on the host."""

    params = Params(
        ROOM,
        kernel=Choice(*KERNELS, doc="sum of a; a = s; b = a; a = b + q c"),
        bytes=Int(doc="working set: all arrays of the kernel together, in equal shares for all threads or programs"),
        dtype=DType("fp32", "fp64", default="fp32", doc="number format"),
        **HOST_PARAMS,
    )

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        kernel = super().build(p, ctx)
        kernel.facts |= level_of(int(p["bytes"]), int(kernel.facts["threads"]))
        return kernel

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        if "programs" in kernel.facts or kernel.inputs["x"].device.type != "cpu":
            return _device_error(p, kernel, result)
        return super().check(p, kernel, result)


def _device_error(p: ParamValues, made: Kernel, result: Any) -> tuple[float, float, str]:
    import torch

    from wattline.formats import number_format

    kernel, x, y = str(p["kernel"]), made.inputs["x"].double(), made.inputs["y"].double()
    allowed = 16 * number_format(str(p["dtype"])).tolerance
    if kernel == "read":
        # Each pass adds the whole set once: the partial sums of all programs, against one sum in double precision.
        found, want = result.double().sum(), int(made.facts["passes"]) * x.sum()
        scale = int(made.facts["passes"]) * x.abs().sum()
        error = float((found - want).abs() / scale)
        return (error if torch.isfinite(found) else nan), allowed, "full"
    ref = {
        "copy": lambda: x, "triad": lambda: x + FACTOR * y,
        "write": lambda: torch.full_like(result, 0.625, dtype=torch.float64),
    }[kernel]()  # fmt: skip
    return distance(result, ref), allowed, "full"


_NO_NODES = never(
    lambda p, m: int(p["node"]) >= 0 or int(p["cpu_node"]) >= 0 or int(p["threads"]) > 0, "no_placing",
    "threads, node and cpu_node are for the host",
)  # fmt: skip


@implementation("memory.bandwidth", "triton", requires=(triton(), _NO_NODES))
def _triton(p: ParamValues, ctx: BuildContext) -> Kernel:
    """One program for each multiprocessor and its warps; each passes over its own share of the set again and again."""
    import torch

    from wattline.suites.memory.triton_kernels import BLOCK, bandwidth_kernel, programs_of
    from wattline.workmodels.memory import arrays_of, elements_of, passes_of

    kernel = str(p["kernel"])
    count, fmt = int(elements_of(p)), str(p["dtype"])
    programs = programs_of(ctx.torch_device, count)
    share = -(-count // programs // BLOCK) * BLOCK
    passes = int(passes_of(count * arrays_of(kernel) * (8 if fmt == "fp64" else 4)))
    x = ctx.tensor((count,), fmt)
    y = ctx.tensor((count,), fmt) if kernel == "triad" else x
    out = ctx.empty((programs,) if kernel == "read" else (count,), fmt)

    def call() -> Any:
        bandwidth_kernel[(programs,)](
            out, x, y, count, share, passes, FACTOR, KERNEL=KERNELS.index(kernel), BLOCK=BLOCK, num_warps=8
        )
        return out

    del torch  # only its presence matters to triton
    facts = {"programs": programs, "passes": passes, "share_bytes": share * arrays_of(kernel) * x.element_size()}
    return Kernel(call, {"x": x, "y": y}, out, facts=facts)


@implementation("memory.bandwidth", "torch", requires=(accelerator(), _NO_NODES))
def _torch(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Operations of torch, one launch for each pass: small sets show the launch, not the cache."""
    import torch

    from wattline.workmodels.memory import arrays_of, elements_of, passes_of

    kernel, count, fmt = str(p["kernel"]), int(elements_of(p)), str(p["dtype"])
    passes = int(passes_of(count * arrays_of(kernel) * (8 if fmt == "fp64" else 4)))
    x = ctx.tensor((count,), fmt)
    y = ctx.tensor((count,), fmt) if kernel == "triad" else x
    out = ctx.empty((1,) if kernel == "read" else (count,), fmt)
    once: Callable[[], Any] = {
        "read": lambda: torch.sum(x, dim=0, keepdim=True, out=out),
        "write": lambda: out.fill_(0.625),
        "copy": lambda: out.copy_(x),
        "triad": lambda: torch.add(x, y, alpha=FACTOR, out=out),
    }[kernel]

    def call() -> Any:
        for _ in range(passes):
            once()
        return out

    # The sum is not accumulated over passes here: the check counts one.
    facts = {"passes": 1 if kernel == "read" else passes, "launches": passes}
    return Kernel(call, {"x": x, "y": y}, out, facts=facts)
