"""Every pair of ranks: what each link attains, one way and both ways, and which are slower than the rest.

The nominal speed of a link says little: hosts, switches and numbers of hops differ within one machine. The case's
own time is that of every rank sending to every other in turn; each pair alone is a stage of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from wattline.params import Choice, DType, Int, Params
from wattline.suites.collectives import data
from wattline.suites.collectives.kernel import (
    FORMATS,
    WORLD,
    GroupContext,
    GroupKernel,
    GroupWorkload,
    backend_here,
    enough_ranks,
)  # fmt: skip
from wattline.suites.collectives.ops import elements
from wattline.suites.collectives.shapes import SIZES
from wattline.suites.registry import workload
from wattline.suites.workload import BuildContext, ParamValues

OP = "collectives.p2p_matrix"
SLOW = 1.5
"""A pair is called slow when it takes so many times the median of all pairs."""


def pairs(size: int, way: str) -> list[tuple[int, int]]:
    """Pairs of ranks: ordered ones one way, unordered ones both ways."""
    return [(i, j) for i in range(size) for j in range(size) if i != j and (way == "one" or i < j)]


def table(times: dict[tuple[int, int], float], size: int, moved: int, way: str) -> dict[str, Any]:
    """The facts of a matrix.

    Args:
        times: seconds of each pair.
        size: ranks.
        moved: bytes each way.
        way: ``"one"`` or ``"both"``.

    Returns:
        ``matrix_s`` and ``matrix_bytes_per_s`` by row (who sends) and column, ``None`` on the diagonal; the slowest
        pair, and those that take :data:`SLOW` times the median.
    """
    rows: list[list[float | None]] = [[None] * size for _ in range(size)]
    for (i, j), time_s in times.items():
        rows[i][j] = time_s
        if way == "both":
            rows[j][i] = time_s
    median = statistics.median(times.values())
    slowest = max(times, key=lambda pair: times[pair])
    return {
        "matrix_s": rows,
        "matrix_bytes_per_s": [[None if t is None else moved / t for t in row] for row in rows],
        "median_pair_s": median,
        "slowest_pair": list(slowest),
        "slowest_over_median": times[slowest] / median,
        "slow_pairs": [list(pair) for pair, time_s in sorted(times.items()) if time_s > SLOW * median],
    }


@workload(OP, requires=[enough_ranks(2), backend_here()])
class MatrixWorkload(GroupWorkload):
    """Every pair of ranks alone: the attained speed of each link, one way or both ways at once."""

    params = Params(
        bytes=Int(lo=1, doc="what goes each way"),
        way=Choice("one", "both", doc="one: sent, and answered by one element; both: exchanged"),
        dtype=DType(*FORMATS, default="fp32"),
        **WORLD,
    )
    shape_sources = SIZES

    def footprint(self, p: ParamValues) -> float:
        """A buffer to send, and one to receive from each rank."""
        return float(max(64, int(p["bytes"])) * (int(p["world_size"]) + 1))

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """See :meth:`GroupWorkload.build`."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        comm, fmt, way, count = ctx.comm, str(p["dtype"]), str(p["way"]), elements(p)
        n, rank = comm.size, comm.rank
        x, rooms = ctx.empty([count], fmt), ctx.empty([n, count], fmt)
        answer = ctx.empty([1], fmt)
        data.fill(x, fmt, rank)

        def call() -> None:
            for distance in range(1, n):
                before = (rank - distance) % n
                comm.exchange([("send", x, (rank + distance) % n), ("recv", rooms[before], before)])

        def stage(i: int, j: int) -> Callable[[], None]:
            if rank not in (i, j):
                return lambda: None
            other = j if rank == i else i
            if way == "both":
                return lambda: comm.exchange([("send", x, other), ("recv", rooms[other], other)])
            if rank == i:

                def send() -> None:
                    comm.exchange([("send", x, j)])
                    comm.exchange([("recv", answer, j)])

                return send

            def receive() -> None:
                comm.exchange([("recv", rooms[i], i)])
                comm.exchange([("send", rooms[i, :1], i)])

            return receive

        wanted = pairs(n, way)
        moved = count * x.element_size()

        def finish(facts: dict[str, Any]) -> None:
            times = {(i, j): facts.pop(f"pair_{i}_{j}_s") for i, j in wanted}
            facts |= table(times, n, moved, way)

        parts = [
            (f"what rank {other} sent", rooms[other], data.moved(fmt, other, x.device))
            for other in range(n)
            if other != rank
        ]
        return GroupKernel(
            call=call, inputs={"x": x}, output=rooms, token=f"{count} x {fmt}", moved_bytes=moved,
            verify=lambda: data.verdict(parts), stages={f"pair_{i}_{j}": stage(i, j) for i, j in wanted},
            finish=finish, facts={"actual_bytes": moved},
        )  # fmt: skip
