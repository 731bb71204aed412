"""STREAM: copy, scale, add and triad over arrays in host memory, by threads and nodes that are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.suites.host.buffers import host_array, nodes_exist, on_the_host, placed_on
from wattline.suites.host.loops import FACTOR
from wattline.suites.host.team import Team, shares
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import module, never
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

if TYPE_CHECKING:
    from wattline.stats import TimeStats

NUMPY = {"fp64": "float64", "fp32": "float32", "int64": "int64"}
_WHOLE = 2**22
_PIECE = 2**12
_PIECES = 512
SLICE = 64
"""Shares of threads begin at multiples of so many elements: no two write into one cache line."""


def processors(p: ParamValues) -> tuple[int, ...]:
    """The processors that threads are held to: those of ``cpu_node`` that this process may use; ``()``: anywhere."""
    from wattline.collectors.host import allowed_cpus
    from wattline.collectors.numa import cpus_of

    if int(p["cpu_node"]) < 0:
        return ()
    own = cpus_of(int(p["cpu_node"]))
    return tuple(cpu for cpu in own if cpu in set(allowed_cpus())) or own


def thread_count(p: ParamValues) -> int:
    """``threads``, or as many as there are processors for 0."""
    from wattline.collectors.host import allowed_cpus

    return int(p["threads"]) or len(processors(p)) or len(allowed_cpus()) or 1


def team_facts(p: ParamValues) -> dict[str, Any]:
    """What a record says of its threads."""
    from wattline.collectors.host import allowed_cpus

    threads, cpus = thread_count(p), processors(p)
    facts: dict[str, Any] = {"threads": threads}
    if cpus:
        facts["cpus"] = list(cpus)
    if threads > len(cpus or allowed_cpus()):
        facts["oversubscribed"] = f"{threads} threads on {len(cpus or allowed_cpus())} processors"
    return facts


def loop_kernel(p: ParamValues, ctx: BuildContext, kernel: str) -> Kernel:
    """A loop compiled by numba, run by a team of threads on memory that they touch first."""
    import numpy as np
    import torch

    from wattline.suites.host.loops import loops
    from wattline.workmodels.memory import arrays_of, elements_of, passes_of

    width = NUMPY[str(p["dtype"])]
    count = int(elements_of(p))
    names = {1: "o", 2: "ox", 3: "oxy"}[arrays_of(kernel)]
    if kernel == "read":
        names = "x"
    threads, cpus = thread_count(p), processors(p)
    made = {name: host_array(count, width, node=int(p["node"])) for name in names}
    team = Team(threads, cpus)
    ctx.defer(team.close)
    parts = shares(count, threads, SLICE)
    # Values of both signs that differ everywhere, and the same on every machine.
    rng = np.random.default_rng(int(ctx.tensor((1,), "int8").item()) + 1000)
    block = rng.uniform(-1, 1, 1 << 16)

    def touch(i: int) -> None:
        lo, hi = parts[i]
        for name, array in made.items():
            if name == "o":
                array[lo:hi] = 0
                continue
            for begin in range(lo, hi, len(block)):
                end = min(hi, begin + len(block))
                array[begin:end] = block[: end - begin]
                array[begin:end] += begin % 977  # so that a share in the wrong place shows

    team.run(touch)
    zero = np.zeros(threads * SLICE, width)
    o, x, y = (made.get(name, zero) for name in "oxy")
    if kernel == "read":
        x = x.view("int64")
        parts = shares(len(x), threads, SLICE)
        o = np.zeros(threads * SLICE, "int64")
    if kernel == "write":
        x = zero
        x[0] = 0.625
    run = loops()[kernel]
    passes = int(passes_of(count * made[names[0]].itemsize * len(names)))

    def part(i: int) -> None:
        lo, hi = parts[i]
        run(o[i * SLICE :] if kernel == "read" else o, x, y, passes, lo, hi)

    part(0)  # compiles
    out = torch.from_numpy(o)

    def call() -> Any:
        team.run(part)
        return out

    facts = {**team_facts(p), "passes": passes}
    if int(p["node"]) >= 0 or int(p["cpu_node"]) >= 0:
        facts["memory_node"] = placed_on(made[names[0]])
    inputs = {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}
    return Kernel(call, inputs, out, facts=facts)


def loop_error(kernel: str, p: ParamValues, made: Kernel, result: Any) -> tuple[float, float, str]:
    """How far a loop's result is from the same in higher precision; of long arrays many blocks are compared."""
    import torch

    from wattline.formats import number_format
    from wattline.suites.rowwise.common import distance

    x, y = made.inputs["x"], made.inputs["y"]
    if kernel == "read":
        # Wrapping sums of 64-bit words, pass numbers added: exact.
        passes, threads = int(made.facts["passes"]), int(made.facts["threads"])
        for i, (lo, hi) in enumerate(shares(len(x), threads, SLICE)):
            part, total = int(x[lo:hi].sum().item()), 0
            for k in range(passes):
                total ^= (part + k) & (2**64 - 1)
            if int(result[i * SLICE].item()) & (2**64 - 1) != total:
                return 1.0, 0.0, "full"
        return 0.0, 0.0, "full"
    if len(result) != len(x) and kernel != "write":
        return nan, 0.0, f"length {len(result)} instead of {len(x)}"
    how = "full"
    if len(result) > _WHOLE:
        # Blocks that are spread evenly, first and last among them: a share that a thread left out holds many.
        starts = torch.linspace(0, len(result) - _PIECE, _PIECES).long()
        which = (starts[:, None] + torch.arange(_PIECE)).view(-1)
        result, how = result[which], f"{_PIECES} blocks of {_PIECE}"
        if kernel != "write":
            x, y = x[which], (y[which] if len(y) == len(x) else y)
    x, y = x.double(), y.double()
    ref = {
        "copy": lambda: x, "scale": lambda: FACTOR * x, "add": lambda: x + y, "triad": lambda: x + FACTOR * y,
        "write": lambda: torch.full((len(result),), 0.625, dtype=torch.float64),
    }[kernel]()  # fmt: skip
    allowed = 0.0 if kernel in ("copy", "write") else number_format(str(p["dtype"])).tolerance
    return distance(result, ref), allowed, how


HOST_PARAMS: dict[str, Any] = {
    "threads": Int(0, lo=0, hi=4096, doc="threads; 0: one for each processor"),
    "node": Int(-1, lo=-1, hi=1023, doc="memory node that holds the arrays, a CXL node for one; -1: the nearest"),
    "cpu_node": Int(-1, lo=-1, hi=1023, doc="node whose processors run the threads; -1: the system decides"),
}
ROOM = Constraint("bytes give every array at least 64 elements", lambda p: int(p["bytes"]) >= 3 * 64 * 8)


class Loops(Workload):
    """Loops over a working set; the parameters are those of who inherits it."""

    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        return loop_kernel(p, ctx, str(p["kernel"]))

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        return loop_error(str(p["kernel"]), p, kernel, result)

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`: bytes per second, every pass counted."""
        return {"bytes_per_s": self.work(p).details["traffic_bytes"] / stats.median_s}

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: a smaller working set."""
        smaller = size * 512 * 1024
        return None if int(p["bytes"]) <= smaller else {**p, "bytes": smaller}


@workload("host.stream", impl="numba", requires=(on_the_host(), nodes_exist(), module("numba")))
class Stream(Loops):
    """copy, scale, add, triad over arrays in host memory: loops compiled by numba, threads placed where asked."""

    params = Params(
        ROOM,
        kernel=Choice("triad", "copy", "scale", "add", doc="c = a; b = q c; c = a + b; a = b + q c"),
        bytes=Int(doc="working set: all arrays of the kernel together"),
        dtype=DType("fp64", "fp32", default="fp64", doc="number format"),
        **HOST_PARAMS,
    )


@implementation(
    "host.stream",
    "torch",
    requires=(
        on_the_host(),
        nodes_exist(),
        never(lambda p, m: int(p["cpu_node"]) >= 0, "no_placing", "threads of torch cannot be held to a node"),
    ),
)
def _torch(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Operations of torch, by its own threads."""
    import torch

    from wattline.workmodels.memory import arrays_of, elements_of, passes_of

    kernel, count = str(p["kernel"]), int(elements_of(p))
    threads, before = thread_count(p), torch.get_num_threads()
    torch.set_num_threads(threads)
    ctx.defer(lambda: torch.set_num_threads(before))
    made = [torch.from_numpy(host_array(count, NUMPY[str(p["dtype"])], node=int(p["node"]))) for _ in range(3)]
    out, x, y = made[0].zero_(), made[1], made[2]
    x.copy_(ctx.tensor((count,), str(p["dtype"])))
    if arrays_of(kernel) == 3:
        y.copy_(ctx.tensor((count,), str(p["dtype"])))
    passes = int(passes_of(count * out.element_size() * arrays_of(kernel)))
    once: Callable[[], Any] = {
        "copy": lambda: out.copy_(x),
        "scale": lambda: torch.mul(x, FACTOR, out=out),
        "add": lambda: torch.add(x, y, out=out),
        "triad": lambda: torch.add(x, y, alpha=FACTOR, out=out),
    }[kernel]

    def call() -> Any:
        for _ in range(passes):
            once()
        return out

    facts = {**team_facts(p), "passes": passes}
    if int(p["node"]) >= 0:
        facts["memory_node"] = placed_on(out.numpy())
    return Kernel(call, {"x": x, "y": y}, out, facts=facts)
