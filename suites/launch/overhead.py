"""What it costs to start something that does next to nothing: one at a time, many in a row, or as a graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, Constraint, Int, Params, Value
from wattline.suites.launch.empty import COUNTS
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import accelerator, module, never, triton
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Requirement, Workload

if TYPE_CHECKING:
    from wattline.stats import TimeStats

Launch = Callable[[], Any]
_ENQUEUES = 9


def queue_for_async() -> Requirement:
    """A device that runs launches later: on a CPU a call has run when it returns."""
    return never(
        lambda p, m: m.kind == "cpu" and p["mode"] == "async", "no_queue",
        "nothing is queued on a CPU, where a call has run when it returns: mode = sync",
    )  # fmt: skip


def graphs() -> Requirement:
    """A device whose launches can be captured."""
    return never(
        lambda p, m: m.kind != "cuda" and p["mode"] == "graph", "no_graphs",
        "torch captures graphs of launches on CUDA and ROCm only",
    )  # fmt: skip


def _on_the_cpu(what: str) -> Requirement:
    return never(lambda p, m: m.kind != "cpu", "host_only", f"{what} runs on the host: add --device cpu")


def _synchronize(ctx: BuildContext) -> Launch:
    import torch

    if ctx.torch_device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(ctx.torch_device)


def launches_kernel(p: ParamValues, ctx: BuildContext, launch: Launch, counter: Any) -> Kernel:
    """A kernel that launches as the case's mode says.

    Args:
        p: the case.
        ctx: of the build.
        launch: one launch.
        counter: tensor whose first element every launch adds one to; ``None`` where it has no arguments.
    """
    count, mode, wait = int(p["launches"]), str(p["mode"]), _synchronize(ctx)
    facts: dict[str, Any] = {}
    launch()  # compiles
    wait()
    if mode == "graph":
        from wattline.collectors.device import AcceleratorDevice

        begin = time.perf_counter()
        replay = AcceleratorDevice(ctx.torch_device.index or 0).capture([launch] * count)
        facts["capture_s"] = time.perf_counter() - begin
        call = replay
    elif mode == "async":

        def call() -> None:
            for _ in range(count):
                launch()
    else:

        def call() -> None:
            for _ in range(count):
                launch()
                wait()

    if counter is not None:
        wait()
        counter.zero_()
    return Kernel(call, {"counter": counter, "wait": wait}, facts=facts)


@workload(
    "launch.overhead",
    impl="torch",
    requires=(
        queue_for_async(),
        graphs(),
        never(lambda p, m: int(p["arguments"]) != 1, "fixed_arguments", "the operation of torch has one tensor"),
    ),
)
class Overhead(Workload):
    """Launches of something that does next to nothing: an operation of torch on one element."""

    params = Params(
        Constraint(f"arguments are one of {COUNTS}", lambda p: int(p["arguments"]) in COUNTS),
        mode=Choice("sync", "async", "graph", doc="each waited for; all in a row, then waited; one graph of all"),
        launches=Int(1000, hi=1_000_000, doc="launches of a call; of a graph its nodes"),
        arguments=Int(1, lo=0, hi=16, doc="arguments of what is launched, all of them tensors"),
    )
    regime = "eager"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        counter = ctx.empty((1,), "fp64").zero_()
        return launches_kernel(p, ctx, lambda: counter.add_(1), counter)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: as many launches as asked for were counted since the last check."""
        counter = kernel.inputs["counter"]
        kernel.inputs["wait"]()
        if counter is None:
            return 0.0, 0.0, "nothing to compare: it has no arguments"
        seen = float(counter.reshape(-1)[0])
        counter[0] = 0
        return abs(seen - int(p["launches"])) / int(p["launches"]), 0.0, "launches counted"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: one element for each argument."""
        return 8.0 * max(1, int(p["arguments"]))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`: seconds of a launch, and what of it the host is busy for."""
        count, kernel = int(p["launches"]), kernels[0]
        facts = {"launch_s": stats.median_s / count}
        if p["mode"] != "sync":
            spent = []
            for _ in range(_ENQUEUES):
                kernel.inputs["wait"]()
                begin = time.perf_counter()
                kernel.call()
                spent.append(time.perf_counter() - begin)
            kernel.inputs["wait"]()
            facts["enqueue_s"] = statistics.median(spent) / count
        return facts

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer launches."""
        return None if int(p["launches"]) <= size else {**p, "launches": size}


@implementation("launch.overhead", "python", requires=(queue_for_async(), graphs(), _on_the_cpu("Python")))
def _python(p: ParamValues, ctx: BuildContext) -> Kernel:
    """A Python function: the floor under all the others, the loop around it included."""
    from wattline.suites.launch.empty import FUNCTIONS

    return _of_arrays(p, ctx, FUNCTIONS[int(p["arguments"])])


@implementation(
    "launch.overhead",
    "numba",
    requires=(queue_for_async(), graphs(), _on_the_cpu("a function compiled by numba"), module("numba")),
)
def _numba(p: ParamValues, ctx: BuildContext) -> Kernel:
    """A function compiled by numba, called from Python: arguments are unpacked and types looked up."""
    from wattline.suites.launch.empty import compiled

    begin = time.perf_counter()
    kernel = _of_arrays(p, ctx, compiled(int(p["arguments"])))
    kernel.facts["compile_s"] = time.perf_counter() - begin
    return kernel


def _of_arrays(p: ParamValues, ctx: BuildContext, function: Callable[..., None]) -> Kernel:
    import numpy as np

    arrays = tuple(np.zeros(1) for _ in range(int(p["arguments"])))
    kernel = launches_kernel(p, ctx, lambda: function(*arrays), None)
    if arrays:
        arrays[0][0] = 0
        kernel.inputs = {**kernel.inputs, "counter": arrays[0]}
    return kernel


@implementation("launch.overhead", "triton", requires=(triton(), accelerator(), queue_for_async(), graphs()))
def _triton(p: ParamValues, ctx: BuildContext) -> Kernel:
    """A Triton kernel of one program, through Triton's own launcher."""
    from wattline.suites.launch.triton_kernels import KERNELS

    arguments = int(p["arguments"])
    kernel, tensors = KERNELS[arguments], [ctx.empty((1,), "fp64").zero_() for _ in range(arguments)]
    grid = kernel[(1,)]
    begin = time.perf_counter()
    made = launches_kernel(p, ctx, lambda: grid(*tensors, num_warps=1), tensors[0] if tensors else None)
    made.facts["compile_s"] = time.perf_counter() - begin - float(made.facts.get("capture_s", 0.0))
    return made
