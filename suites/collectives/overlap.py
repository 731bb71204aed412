"""A matrix product and a collective at once: what of the shorter one the longer one hides, and what each loses by it.

Both work on data of their own, so that nothing but the hardware couples them. ``t_both`` is the case's time; each side
alone is a stage. The collective is started first, as by a framework that has gradients to send while it computes.
Where sensors are, the joules of each side alone and of both at once say what overlap saves: the power of a device that
waits, for as long as it no longer has to.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, DType, Int, Params
from wattline.record import Energy
from wattline.suites.collectives import data
from wattline.suites.collectives.kernel import (
    WORLD,
    GroupContext,
    GroupKernel,
    GroupWorkload,
    backend_here,
    enough_ranks,
)  # fmt: skip
from wattline.suites.registry import workload
from wattline.suites.workload import BuildContext, ParamValues

OP = "collectives.overlap"
_KEPT = 2000  # calls whose inner times are kept


def efficiency(compute_s: float, comm_s: float, both_s: float) -> dict[str, float]:
    """What overlap gives.

    Returns:
        ``overlap_efficiency``: share of the shorter side that is hidden; 1: all of it, 0: none, below 0: together
        they take longer than one after the other. ``speedup`` over one after the other.
    """
    return {
        "overlap_efficiency": (compute_s + comm_s - both_s) / min(compute_s, comm_s),
        "speedup": (compute_s + comm_s) / both_s,
    }


def energies(compute: Energy, comm: Energy, both: Energy) -> dict[str, Any]:
    """The facts of three joules: of each side alone, of both at once, and what overlap saves.

    Returns:
        Per side ``_energy_j``, ``_energy_range_j`` (its interval) and ``_power_w``; ``energy_saving``: the share of
        the joules of one after the other that both at once do without, below 0 where they take more, and
        ``energy_saving_range``. The sensor's gain is the same in all three: it is in their intervals, not in that.
        The loads follow one another, so that how evenly each went (``pace``) is in that one and not in theirs.
    """
    facts: dict[str, Any] = {}
    for name, energy in (("compute", compute), ("comm", comm), ("both", both)):
        facts[f"{name}_energy_j"] = energy.energy_j
        facts[f"{name}_energy_range_j"] = [energy.energy_lo_j, energy.energy_hi_j]
        facts[f"{name}_power_w"] = energy.power_w
    low, high = ((side(compute), side(comm), side(both)) for side in (_least, _most))
    return facts | {
        "energy_saving": 1 - both.energy_j / (compute.energy_j + comm.energy_j),
        "energy_saving_range": [1 - high[2] / (low[0] + low[1]), 1 - low[2] / (high[0] + high[1])],
        "energy_source": both.source, "energy_scope": both.scope,
    }  # fmt: skip


def _least(energy: Energy) -> float:
    return energy.energy_lo_j * (1 + energy.budget.get("gain", 0.0)) * (1 - energy.budget.get("pace", 0.0))


def _most(energy: Energy) -> float:
    return energy.energy_hi_j * (1 - energy.budget.get("gain", 0.0)) * (1 + energy.budget.get("pace", 0.0))


class _HostClock:
    """When each side ended, by the host's clock: products run in the calling thread there, collectives in another."""

    def __init__(self) -> None:
        self.compute: deque[int] = deque(maxlen=_KEPT)
        self.comm: deque[int] = deque(maxlen=_KEPT)

    def run(self, start: Callable[[], Any], multiply: Callable[[], Any]) -> None:
        """Both at once."""
        begin = time.perf_counter_ns()
        handle = start()
        ended: list[int] = []
        future = handle.get_future()
        future.then(lambda _: ended.append(time.perf_counter_ns()))
        before = time.perf_counter_ns()
        multiply()
        self.compute.append(time.perf_counter_ns() - before)
        handle.wait()
        waited = time.perf_counter_ns()
        # The callback runs in the library's thread, and may come a little after the wait has ended.
        self.comm.append((ended[0] if ended else waited) - begin)

    def medians(self) -> tuple[float, float]:
        """Median seconds of product and collective, while both ran."""
        return statistics.median(self.compute) * 1e-9, statistics.median(self.comm) * 1e-9


class _StreamClock:
    """When each side ended, by the device's events: the collective's on a stream of its own."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch, self._device = torch, device
        self._side = torch.Stream(device=device)
        self._events: deque[tuple[Any, Any, Any, Any]] = deque(maxlen=64)

    def _event(self) -> Any:
        return self._torch.Event(self._device, enable_timing=True)

    def run(self, start: Callable[[], Any], multiply: Callable[[], Any]) -> None:
        """Both at once."""
        torch = self._torch
        stream = torch.accelerator.current_stream()
        begin, product, after, arrived = (self._event() for _ in range(4))
        begin.record(stream)
        handle = start()
        product.record(stream)
        multiply()
        after.record(stream)
        torch.accelerator.set_stream(self._side)
        handle.wait()
        arrived.record(self._side)
        torch.accelerator.set_stream(stream)
        stream.wait_event(arrived)
        self._events.append((begin, product, after, arrived))

    def medians(self) -> tuple[float, float]:
        """See :meth:`_HostClock.medians`."""
        for *_, arrived in self._events:
            arrived.synchronize()
        compute = [product.elapsed_time(after) * 1e-3 for _, product, after, _ in self._events]
        comm = [begin.elapsed_time(arrived) * 1e-3 for begin, _, _, arrived in self._events]
        return statistics.median(compute), statistics.median(comm)


def _starter(p: ParamValues, ctx: GroupContext) -> tuple[Callable[[], Any], Callable[[], Any], Any, int, Any]:
    """Starts the collective; puts its input back; its result's verdict; S; its input."""
    import torch.distributed as dist

    comm, n = ctx.comm, ctx.comm.size
    name = str(p["collective"])
    # fp32 whatever the product's format: what is sent does not depend on what is computed.
    count = -(-max(1, int(p["bytes"]) // 4) // n) * n
    x, out = ctx.empty([count], "fp32"), ctx.empty([count], "fp32")
    part = count // n
    if name == "all_reduce":
        data.fill(x, "fp32", comm.rank, terms=n)
        want = data.summed("fp32", n, x.device)
        return (
            lambda: dist.all_reduce(out, group=comm.group, async_op=True), lambda: out.copy_(x),
            lambda: data.verdict([("the sum", out, want)]), count * 4, x,
        )  # fmt: skip
    data.fill(x, "fp32", comm.rank)
    if name == "all_gather":
        parts = [
            (f"rank {r}'s part", piece, data.moved("fp32", r, x.device)) for r, piece in enumerate(out.split(part))
        ]
        mine = x[:part]
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        start = lambda: gather(out, mine, group=comm.group, async_op=True)  # noqa: E731
    else:
        begin = part * comm.rank
        parts = [
            (f"rank {r}'s part", piece, data.moved("fp32", r, x.device, begin=begin))
            for r, piece in enumerate(out.split(part))
        ]
        start = lambda: dist.all_to_all_single(out, x, group=comm.group, async_op=True)  # noqa: E731
    return start, lambda: None, lambda: data.verdict(parts), count * 4, x


@workload(OP, requires=[enough_ranks(1), backend_here()])
class OverlapWorkload(GroupWorkload):
    """A matrix product while a collective is under way: each alone, and both at once."""

    params = Params(
        collective=Choice("all_reduce", "all_gather", "all_to_all", doc="what is sent meanwhile"),
        bytes=Int(lo=4, doc="S, of fp32"),
        m=Int(doc="rows of the product"),
        n=Int(doc="its columns"),
        k=Int(doc="what is summed over"),
        dtype=DType("fp32", "bf16", "fp16", default="fp32"),
        **WORLD,
    )

    def footprint(self, p: ParamValues) -> float:
        """The product's three matrices, and input and output of the collective."""
        m, n, k = (int(p[name]) for name in "mnk")
        return float((m * k + k * n + m * n) * number_format(str(p["dtype"])).bytes + 2 * int(p["bytes"]))

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """See :meth:`GroupWorkload.build`."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        import torch

        m, n, k, fmt = *(int(p[name]) for name in "mnk"), str(p["dtype"])
        a, b, c = ctx.empty([m, k], fmt), ctx.empty([k, n], fmt), ctx.empty([m, n], fmt)
        a.fill_(1.0)
        b.fill_(0.5)
        start, refresh, verify, moved, x = _starter(p, ctx)
        clock = _HostClock() if x.device.type == "cpu" else _StreamClock(x.device)

        def multiply() -> None:
            torch.mm(a, b, out=c)

        def comm_alone() -> None:
            start().wait()

        def verified() -> tuple[float, float, str]:
            # Half of k, exactly: sums of halves round nowhere below 2^7 in bf16, and the product is not the question.
            wrong = float((c.float() - 0.5 * k).abs().max()) / (0.5 * k)
            error, tolerance, words = verify()
            if wrong > 2.0**-7:
                return wrong, 2.0**-7, "the product is wrong"
            return error, tolerance, words

        def per_rank() -> dict[str, Any]:
            compute_s, comm_s = clock.medians()
            return {"compute_beside_s": compute_s, "comm_beside_s": comm_s}

        def finish(facts: dict[str, Any]) -> None:
            compute_s, comm_s, both_s = facts["compute_s"], facts["comm_s"], facts["call_s"]
            facts |= efficiency(compute_s, comm_s, both_s)
            facts["compute_slowdown"] = max(facts["compute_beside_s"]) / compute_s
            facts["comm_slowdown"] = max(facts["comm_beside_s"]) / comm_s
            if (joules := facts.get("joules")) is not None:
                facts |= energies(joules["compute"], joules["comm"], joules["call"])

        return GroupKernel(
            call=lambda: clock.run(start, multiply), inputs={"a": a, "b": b, "x": x}, refresh=refresh,
            token=f"{m} x {n} x {k}, {moved} bytes", verify=verified, moved_bytes=moved,
            stages={"compute": multiply, "comm": comm_alone}, metered_stages=("compute", "comm"), per_rank=per_rank,
            finish=finish,
            facts={"actual_bytes": moved},
        )  # fmt: skip
