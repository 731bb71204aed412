"""Work of collectives: the bytes that the busiest rank must send or receive, and the rounds it takes.

``bytes`` is the size S of nccl-tests: per rank for all-reduce, broadcast, reduce and send-recv; count times ranks
for the gather-like ones. The busbw factor turns S into the bytes that cross the busiest rank's link one way
(NVIDIA nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wattline.work import Work
from wattline.workmodels.arith import least

_GATHER_LIKE = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
_ONE = ("broadcast", "reduce", "send_recv")
COLLECTIVES: tuple[str, ...] = ("all_reduce", *_GATHER_LIKE, "all_to_all_v", *_ONE, "barrier")
"""The collectives that have a work model."""

# Share of S that the busiest rank reads from and writes to its own memory: (read, written), as functions of 1/n.
_MEMORY: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "all_reduce": lambda inverse: (1.0, 1.0),
    "all_gather": lambda inverse: (inverse, 1.0),
    "reduce_scatter": lambda inverse: (1.0, inverse),
    "all_to_all": lambda inverse: (1.0, 1.0),
    "all_to_all_v": lambda inverse: (1.0, 0.0),
    "gather": lambda inverse: (0.0, 1.0),
    "scatter": lambda inverse: (1.0, 0.0),
    "broadcast": lambda inverse: (1.0, 0.0),
    "reduce": lambda inverse: (1.0, 0.0),
    "send_recv": lambda inverse: (1.0, 0.0),
}


def busbw_factor(name: str, ranks: Any) -> Any:
    """Bytes over the busiest rank's link, one way, as a share of S.

    ``2(n-1)/n`` for all-reduce, ``(n-1)/n`` for gather-like ones, 1 for broadcast, reduce and send-recv; 0 with
    one rank.
    """
    if name == "all_reduce":
        return 2.0 * (ranks - 1.0) / ranks
    if name in _GATHER_LIKE:
        return (ranks - 1.0) / ranks
    if name == "barrier":
        return 0.0 * ranks
    return least(1.0 * ranks - 1.0, 1.0)


def rounds(ranks: Any) -> Any:
    """Least rounds in which every rank can hear of every other: ``ceil(log2 n)`` (each round doubles who knows)."""
    if isinstance(ranks, int | float):
        return float((int(ranks) - 1).bit_length())
    import numpy as np

    return np.ceil(np.log2(ranks))


def collective_model(op: str) -> Callable[[Mapping[str, Any]], Work]:
    """The work model of ``collectives.<name>``.

    Its parameters are ``bytes`` (S; for ``all_to_all_v`` the largest of sent and received) and ``world_size``;
    a barrier takes ``world_size`` alone.
    """
    name = op.removeprefix("collectives.")

    def model(p: Mapping[str, Any]) -> Work:
        ranks = p["world_size"]
        size = 1.0 * p.get("bytes", 0)
        link = {"fabric": busbw_factor(name, ranks) * size}
        if name == "barrier":
            return Work(messages={"fabric": rounds(ranks)})
        read, written = _MEMORY[name](1.0 / ranks)
        return Work(
            bytes_read={"device": read * size},
            bytes_written={"device": written * size},
            messages={"fabric": rounds(ranks)},
            link_bytes=link,
        )

    model.__doc__ = f"Work of ``{op}``: S times the busbw factor over the link, in at least log2(n) rounds."
    return model
