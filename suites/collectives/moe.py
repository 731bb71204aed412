"""Dispatch and combine of a mixture of experts: tokens to the ranks of their experts, and back.

Every rank holds an equal share of the experts. Routing is drawn with a seed from a Zipf distribution over experts;
what each rank sends to each other is therefore uneven, and the busiest rank decides (Hwang et al., "Tutel", MLSys
2023; Yao et al., "ExFlow", IPDPS 2024). The experts themselves are not computed: what comes back is what went out.
"""

from __future__ import annotations

from typing import Any

from wattline.formats import number_format
from wattline.params import Constraint, DType, Float, Int, Params
from wattline.suites.collectives import data
from wattline.suites.collectives.kernel import (
    FORMATS,
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

OP = "collectives.moe"


def routing(p: ParamValues, seed: int, rank: int) -> Any:
    """Experts of a rank's tokens, ``[tokens, top_k]``, distinct for each token: the ``top_k`` first of an order drawn
    with probabilities ``1 / (1 + e) ** skew`` (exponential races; numpy)."""
    import numpy as np

    tokens, experts, top_k = int(p["tokens"]), int(p["experts"]), int(p["top_k"])
    weights = 1.0 / (1.0 + np.arange(experts)) ** float(p["skew"])
    rng = np.random.default_rng([seed, rank])
    # Popular experts lie on all ranks alike or not as the seed has it, not all on rank 0.
    weights = weights[np.random.default_rng(seed).permutation(experts)]
    race = rng.exponential(size=(tokens, experts)) / weights
    return np.argpartition(race, top_k - 1, axis=1)[:, :top_k]


def sent_counts(p: ParamValues, seed: int, size: int) -> list[list[int]]:
    """Copies of tokens that rank i sends to rank j (to itself included)."""
    import numpy as np

    per_rank = int(p["experts"]) // size
    return [
        np.bincount(routing(p, seed, rank).reshape(-1) // per_rank, minlength=size).tolist() for rank in range(size)
    ]


def imbalance(counts: list[list[int]]) -> float:
    """The most that a rank receives over the mean."""
    received = [sum(row[j] for row in counts) for j in range(len(counts))]
    return max(received) * len(counts) / max(1, sum(received))


def _unshared(p: ParamValues) -> str:
    experts, size = int(p["experts"]), int(p["world_size"])
    return f"{experts} experts cannot be shared equally by {size} ranks" if experts % size else ""


_SHARED_EQUALLY = unless("experts that divide over the ranks", "uneven_experts", _unshared)


@workload(OP, requires=[enough_ranks(2), backend_here(), _SHARED_EQUALLY])
class MoeWorkload(GroupWorkload):
    """Tokens to the ranks of their experts and back: permute, dispatch, combine, add up."""

    params = Params(
        Constraint("top_k is at most experts", lambda p: int(p["top_k"]) <= int(p["experts"])),
        tokens=Int(doc="of each rank"),
        hidden=Int(doc="elements of a token"),
        experts=Int(8, doc="of all ranks together"),
        top_k=Int(2, doc="experts of a token"),
        skew=Float(0.0, lo=0.0, hi=4.0, doc="exponent of the experts' popularity (Zipf); 0: equal"),
        dtype=DType(*FORMATS, default="bf16"),
        **WORLD,
    )

    def footprint(self, p: ParamValues) -> float:
        """Tokens, their copies before and after, and room for all to come to one rank."""
        row = float(int(p["hidden"]) * number_format(str(p["dtype"])).bytes)
        copies = int(p["tokens"]) * int(p["top_k"])
        return row * (2.0 * int(p["tokens"]) + copies * (2.0 + int(p["world_size"])))

    def build(self, p: ParamValues, ctx: BuildContext) -> GroupKernel:
        """See :meth:`GroupWorkload.build`."""
        assert isinstance(ctx, GroupContext)  # the group runner makes no other
        import numpy as np
        import torch
        import torch.distributed as dist

        comm, fmt = ctx.comm, str(p["dtype"])
        n, tokens, hidden, top_k = comm.size, int(p["tokens"]), int(p["hidden"]), int(p["top_k"])
        per_rank = int(p["experts"]) // n
        counts = sent_counts(p, ctx.seed, n)
        mine, theirs = counts[comm.rank], [row[comm.rank] for row in counts]
        experts = routing(p, ctx.seed, comm.rank).reshape(-1)
        order = np.argsort(experts // per_rank, kind="stable")
        device = ctx.torch_device
        # Which token each copy is of, in the order in which copies leave, and where each copy of a token is.
        source = torch.from_numpy(order // top_k).to(device)
        place = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
        x = ctx.empty([tokens, hidden], fmt)
        data.fill(x.view(-1), fmt, comm.rank, terms=top_k)
        sent = ctx.empty([sum(mine), hidden], fmt)
        came = ctx.empty([sum(theirs), hidden], fmt)
        back = ctx.empty([sum(mine), hidden], fmt)
        out = ctx.empty([tokens, hidden], fmt)

        def permute() -> None:
            torch.index_select(x, 0, source, out=sent)

        def dispatch() -> None:
            dist.all_to_all_single(came, sent, theirs, mine, group=comm.group)

        def combine() -> None:
            dist.all_to_all_single(back, came, mine, theirs, group=comm.group)

        def add_up() -> None:
            torch.sum(back[place].view(tokens, top_k, hidden), dim=1, dtype=x.dtype, out=out)

        def call() -> None:
            permute()
            dispatch()
            combine()
            add_up()

        def verify() -> tuple[float, float, str]:
            # Experts give back what they get: every token is its own sum, top_k times, exactly.
            wrong = int((out != x * top_k).sum())
            first = 0
            for rank, count in enumerate(theirs):
                wrong += _misplaced(p, ctx, rank, came[first : first + count], fmt)
                first += count
            return wrong / (out.numel() + came.numel()), 0.0, "bit by bit" + (f": {wrong} wrong" if wrong else "")

        row_bytes = hidden * x.element_size()
        received = [sum(row[j] for row in counts) for j in range(n)]
        over = max(sum(row) - row[i] for i, row in enumerate(counts))
        inward = max(received[j] - counts[j][j] for j in range(n))
        facts = {
            "copies_from_to": counts, "imbalance": imbalance(counts), "experts_per_rank": per_rank,
            "busiest_bytes": max(over, inward) * row_bytes,
        }  # fmt: skip

        def finish(found: dict[str, Any]) -> None:
            found["exchange_share"] = (found["dispatch_s"] + found["combine_s"]) / found["call_s"]
            found["dispatch_bytes_per_s"] = found["busiest_bytes"] / found["dispatch_s"]

        return GroupKernel(
            call=call, inputs={"x": x}, output=out, verify=verify, token=f"{tokens} x {hidden} x {fmt}", facts=facts,
            stages={"permute": permute, "dispatch": dispatch, "combine": combine, "add_up": add_up}, finish=finish,
        )  # fmt: skip


def _misplaced(p: ParamValues, ctx: GroupContext, rank: int, came: Any, fmt: str) -> int:
    """Elements that are not what a rank's routing sends here."""
    import numpy as np
    import torch

    n, per_rank, top_k = ctx.comm.size, int(p["experts"]) // ctx.comm.size, int(p["top_k"])
    target = routing(p, ctx.seed, rank).reshape(-1) // per_rank
    order = np.argsort(target, kind="stable")
    copies = order[target[order] == ctx.comm.rank] // top_k
    assert n > ctx.comm.rank
    theirs = ctx.empty([int(p["tokens"]), int(p["hidden"])], fmt)
    data.fill(theirs.view(-1), fmt, rank, terms=top_k)
    return int((came != theirs[torch.from_numpy(copies).to(came.device)]).sum())
