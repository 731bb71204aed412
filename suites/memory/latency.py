"""A pointer chase: how long one load takes, by the size of the set that it walks through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, Constraint, Int, Params
from wattline.suites.host.buffers import host_array, huge_share, nodes_exist, on_the_host, placed_on
from wattline.suites.memory.caches import level_of
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import module, never, triton
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.workmodels.memory import LINE

if TYPE_CHECKING:
    from wattline.stats import TimeStats

WORDS = LINE // 8
"""64-bit words of a line; the first of them says which line comes next."""


def one_cycle(lines: int, seed: int) -> Any:
    """A permutation ``[lines]`` that is one cycle: following it from anywhere visits every line once before it returns
    (S. Sattolo, "An algorithm to generate a random cyclic permutation", Information Processing Letters 22(6), 1986).
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(lines)
    following = np.empty(lines, np.int64)
    following[order] = np.roll(order, -1)  # each to the next of a random order: one cycle, as Sattolo's
    return following


@workload("memory.latency", impl="numba", requires=(on_the_host(), nodes_exist(), module("numba")))
class Latency(Workload):
    """Seconds per load of a pointer chase through a working set, in random order: a loop compiled by numba."""

    params = Params(
        Constraint("bytes hold at least two lines of 64 bytes", lambda p: int(p["bytes"]) >= 2 * LINE),
        bytes=Int(doc="working set: lines of 64 bytes, each visited once in a round"),
        steps=Int(1 << 16, doc="loads of a call; the next call goes on where it ended"),
        pages=Choice("small", "huge", doc="huge pages are asked for: addresses are then translated without a miss"),
        node=Int(-1, lo=-1, hi=1023, doc="memory node that holds the set, a CXL node for one; -1: the nearest"),
        cpu_node=Int(-1, lo=-1, hi=1023, doc="node whose first processor chases; -1: the system decides"),
    )
    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        import numpy as np
        import torch

        from wattline.suites.host.stream import processors
        from wattline.suites.host.team import Team
        from wattline.suites.memory.chase import chase

        lines, steps = int(p["bytes"]) // LINE, int(p["steps"])
        cpus = processors(p)
        team = Team(1, cpus[:1])
        ctx.defer(team.close)
        array = host_array(lines * WORDS, "int64", node=int(p["node"]), huge=p["pages"] == "huge")
        following = one_cycle(lines, int(ctx.tensor((1,), "int8").item()) + 1000)

        def touch(_: int) -> None:
            array[:] = -1
            array[::WORDS] = following * WORDS

        team.run(touch)
        at, run = np.zeros(1, np.int64), chase()
        seen = torch.from_numpy(at)

        def part(_: int) -> None:
            at[0] = run(array, at[0], steps)

        run(array, 0, 1)  # compiles

        def round_() -> None:
            run(array, 0, min(lines, 1 << 22))

        round_()  # so that the caches hold what they will hold

        def call() -> Any:
            team.run(part)
            return seen

        facts: dict[str, Any] = {"lines": lines, **level_of(lines * LINE, 1)}
        if p["pages"] == "huge":
            share = huge_share(array)
            facts["huge_share"] = "unknown" if share is None else share
        if int(p["node"]) >= 0 or cpus:
            facts["memory_node"] = placed_on(array)
        return Kernel(call, {"following": torch.from_numpy(following)}, facts=facts)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: the line that the walk reached, against a walk over the permutation alone."""
        following = kernel.inputs["following"].cpu().numpy()
        at, steps = 0, int(p["steps"]) % len(following)
        for _ in range(steps):
            at = int(following[at])
        words = 1 if "stride" in kernel.facts else WORDS
        error = 0.0 if int(result.view(-1)[0].item()) == at * words else 1.0
        return error, 0.0, "full"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the working set, however few of its lines a call visits."""
        return float(int(p["bytes"]))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`."""
        return {"load_s": stats.median_s / int(p["steps"])}


@implementation(
    "memory.latency",
    "triton",
    requires=(
        triton(),
        never(
            lambda p, m: int(p["node"]) >= 0 or int(p["cpu_node"]) >= 0 or p["pages"] != "small", "no_placing",
            "pages, node and cpu_node are for the host",
        ),
    ),
)  # fmt: skip
def _triton(p: ParamValues, ctx: BuildContext) -> Kernel:
    """One thread of the device follows the pointers."""
    import torch

    from wattline.suites.memory.triton_kernels import chase_kernel

    lines, steps = int(p["bytes"]) // LINE, int(p["steps"])
    following = torch.from_numpy(one_cycle(lines, int(ctx.tensor((1,), "int8").item()) + 1000))
    array = torch.full((lines, WORDS), -1, dtype=torch.int64)
    array[:, 0] = following
    array = array.to(ctx.torch_device)
    start = torch.zeros(1, dtype=torch.int64, device=ctx.torch_device)
    out = torch.zeros(1, dtype=torch.int64, device=ctx.torch_device)

    def call() -> Any:
        chase_kernel[(1,)](out, array, start, steps, WORDS, num_warps=1)
        return out

    return Kernel(call, {"following": following}, facts={"lines": lines, "stride": WORDS})
