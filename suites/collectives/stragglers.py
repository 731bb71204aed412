"""Who holds the others up: own work, the sum over all ranks, a message to the next, each timed on every rank.

A rank that is slow shows in its own work, not in the sum, where the others wait for it. The sum brings all ranks
together again, so that the message after it shows the link alone. Slowness can be injected to see that it is found.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

from wattline.params import Choice, Float, Int, Params
from wattline.suites.collectives import data
from wattline.suites.collectives.detect import Alarm, find_slow
from wattline.suites.collectives.kernel import (
    WORLD,
    GroupContext,
    GroupKernel,
    GroupWorkload,
    backend_here,
    enough_ranks,
    unless,
)  # fmt: skip
from wattline.suites.registry import workload
from wattline.suites.workload import BuildContext, ParamValues

OP = "collectives.stragglers"
_KEPT = 4000  # iterations of a case that are looked at
_PRODUCTS = 4
_LEAST_USUAL_S = 1e-4  # of a message, where none has been timed yet


def verdict_of(work: list[list[float]], links: list[list[float]], inject: str, victim: int) -> dict[str, Any]:
    """The facts of a case.

    Args:
        work: seconds of own work, ``[iteration][rank]``.
        links: seconds until the message came in, ``[iteration][receiving rank]``.
        inject: what was injected.
        victim: the rank that it was injected on; a link begins there.
    """
    size = len(work[0])
    ranks, ends = find_slow(work), find_slow(links, links=True)
    facts: dict[str, Any] = {
        "iterations_watched": len(work),
        "slow_ranks": _told(ranks),
        "slow_links": [[(a.number - 1) % size, a.number, a.iteration, a.factor] for a in ends],
    }
    if inject != "none":
        wanted = (victim + 1) % size if inject == "link" else victim
        hits = [alarm.iteration for alarm in (ends if inject == "link" else ranks) if alarm.number == wanted]
        facts["found_after"] = hits[0] if hits else None
    on_work, on_link = inject in {"sleep", "load"}, inject == "link"
    facts["other_alarms"] = sum(not on_work or alarm.number != victim for alarm in ranks) + sum(
        not on_link or alarm.number != (victim + 1) % size for alarm in ends
    )
    return facts


def _told(alarms: list[Alarm]) -> list[list[float]]:
    return [[alarm.number, alarm.iteration, alarm.factor] for alarm in alarms]


def _no_victim(p: ParamValues) -> str:
    victim, size = int(p["victim"]), int(p["world_size"])
    return "" if victim < size or p["inject"] == "none" else f"rank {victim} is to be slowed, and {size} take part"


_VICTIM_THERE = unless("a victim among the ranks", "no_victim", _no_victim)


@workload(OP, requires=[enough_ranks(2), backend_here(), _VICTIM_THERE])
class StragglersWorkload(GroupWorkload):
    """Work, a sum over all ranks and a message to the next: a slow rank or a slow link is found and named."""

    params = Params(
        bytes=Int(lo=4, doc="of the sum, and of the message to the next rank (fp32)"),
        work=Int(192, lo=1, doc="edge of the matrices that are multiplied, four times"),
        inject=Choice("none", "sleep", "load", "link", doc="slowness that is put in: sleep, more work, a late message"),
        victim=Int(0, lo=0, doc="the rank that is slowed; a slow link leads from it to the next"),
        factor=Float(3.0, lo=1.0, doc="how many times as long its work takes, or its message"),
        **WORLD,
    )

    def footprint(self, p: ParamValues) -> float:
        """Sum, its kept input, what is sent and received, and three matrices."""
        return 4.0 * int(p["bytes"]) + 12.0 * int(p["work"]) ** 2

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """See :meth:`GroupWorkload.build`."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        import torch
        import torch.distributed as dist

        comm, edge, count = ctx.comm, int(p["work"]), max(1, int(p["bytes"]) // 4)
        inject, victim, factor = str(p["inject"]), int(p["victim"]), float(p["factor"])
        n, rank = comm.size, comm.rank
        a, b, c = (ctx.empty([edge, edge], "fp32").fill_(1.0) for _ in range(3))
        x, kept = ctx.empty([count], "fp32"), ctx.empty([count], "fp32")
        room = ctx.empty([count], "fp32")
        data.fill(kept, "fp32", rank, terms=n)
        message = ctx.empty([count], "fp32")
        data.fill(message, "fp32", rank)
        after, before = comm.peer(rank + 1), comm.peer(rank - 1)
        work_s: deque[float] = deque(maxlen=_KEPT)
        link_s: deque[float] = deque(maxlen=_KEPT)
        on_host = x.device.type == "cpu"
        slowed = rank == victim
        clock = time.perf_counter

        def settle() -> None:
            if not on_host:
                torch.accelerator.synchronize()

        def work() -> None:
            rounds = _PRODUCTS * factor if inject == "load" and slowed else _PRODUCTS
            begin = clock()
            for _ in range(round(rounds)):
                torch.mm(a, b, out=c)
            settle()
            if inject == "sleep" and slowed:
                time.sleep((factor - 1.0) * (clock() - begin))
            work_s.append(clock() - begin)

        def pass_on() -> None:
            if inject == "link" and slowed:
                # The next rank waits as for a slow link; what comes in here is timed from here on, and is not slowed.
                usual = statistics.median(link_s) if link_s else 0.0
                time.sleep((factor - 1.0) * max(usual, _LEAST_USUAL_S))
            begin = clock()
            if comm.backend == "gloo":
                came = dist.irecv(room, before, group=comm.group)
                gone = dist.isend(message, after, group=comm.group)
                came.wait()
                link_s.append(clock() - begin)  # what this rank sends is the next one's to time
                gone.wait()
                return
            ops = [
                dist.P2POp(dist.irecv, room, before, group=comm.group),
                dist.P2POp(dist.isend, message, after, group=comm.group),
            ]
            for handle in dist.batch_isend_irecv(ops):
                handle.wait()
            settle()
            link_s.append(clock() - begin)

        def call() -> None:
            work()
            x.copy_(kept)
            dist.all_reduce(x, group=comm.group)
            settle()
            pass_on()

        want, came_from = data.summed("fp32", n, x.device), data.moved("fp32", (rank - 1) % n, x.device)

        def per_rank() -> dict[str, Any]:
            return {"work_series_s": list(work_s), "link_series_s": list(link_s)}

        def finish(facts: dict[str, Any]) -> None:
            works, links = facts.pop("work_series_s"), facts.pop("link_series_s")
            facts |= verdict_of(_rows(works), _rows(links), inject, victim)
            facts["work_median_s"] = [sorted(series)[len(series) // 2] for series in works]
            facts["link_median_s"] = [sorted(series)[len(series) // 2] for series in links]

        return GroupKernel(
            metered=False,
            call=call, inputs={"message": message}, token=f"{count} x fp32", moved_bytes=4 * count,
            verify=lambda: data.verdict([("the sum", x, want), ("what the rank before sent", room, came_from)]),
            per_rank=per_rank, finish=finish, facts={"actual_bytes": 4 * count},
        )  # fmt: skip


def _rows(series: list[list[float]]) -> list[list[float]]:
    """Series by rank as rows by iteration."""
    return [list(row) for row in zip(*series, strict=True)]
