"""All-reduce written on sends and receives: ring, two rings, tree, star, and hierarchies of rings.

Each function adds up a flat tensor in place over all ranks of a net. Nothing here knows of processes: a net is
whatever exchanges tensors, so that tests can run any number of ranks as threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Step = tuple[str, Any, int]
"""``("send" or "recv", tensor, rank)``."""


class Net(Protocol):
    """Ranks that exchange tensors.

    Attributes:
        rank: this one's number.
        size: how many there are.
    """

    rank: int
    size: int

    def exchange(self, steps: Sequence[Step]) -> None:
        """Start sends and receives together and wait for all of them."""
        ...


def _ring_of(ranks: Sequence[int], me: int) -> tuple[int, int, int]:
    """My place among some ranks, who comes before me and who after."""
    at, n = ranks.index(me), len(ranks)
    return at, ranks[(at - 1) % n], ranks[(at + 1) % n]


def _reduce_scatter(net: Net, x: Any, spare: Any, ranks: Sequence[int]) -> Any:
    """Ring reduce-scatter in ``n - 1`` steps; returns my part of ``x``, which holds the sum of all ranks' (the
    place-th of n equal parts)."""
    n = len(ranks)
    at, before, after = _ring_of(ranks, net.rank)
    parts, room = x.chunk(n), spare[: x.numel() // n]
    for step in range(n - 1):
        # After the last step the part that came in is the one of my own number.
        there, here = parts[(at - step - 1) % n], parts[(at - step - 2) % n]
        net.exchange([("send", there, after), ("recv", room, before)])
        here.add_(room)
    return parts[at]


def _all_gather(net: Net, x: Any, ranks: Sequence[int]) -> None:
    """Ring all-gather in ``n - 1`` steps: every rank has its own part of ``x`` and gets the others'."""
    n = len(ranks)
    at, before, after = _ring_of(ranks, net.rank)
    parts = x.chunk(n)
    for step in range(n - 1):
        net.exchange([("send", parts[(at - step) % n], after), ("recv", parts[(at - step - 1) % n], before)])


def ring(net: Net, x: Any, spare: Any) -> None:
    """Reduce-scatter and all-gather around one ring: ``2 (n - 1)`` steps of an n-th each (Patarasuk and Yuan,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69, 2009)."""
    everyone = range(net.size)
    _reduce_scatter(net, x, spare, everyone)
    _all_gather(net, x, everyone)


def bidirectional_ring(net: Net, x: Any, spare: Any) -> None:
    """Two rings at once, a half of the data each way round: both directions of every link carry data at once."""
    n, rank = net.size, net.rank
    halves, rooms = x.chunk(2), spare.chunk(2)
    parts = [half.chunk(n) for half in halves]
    after, before = (rank + 1) % n, (rank - 1) % n
    room = [each[: parts[0][0].numel()] for each in rooms]
    for step in range(n - 1):
        up, down = (rank - step - 1) % n, (rank + step + 1) % n
        net.exchange([
            ("send", parts[0][up], after), ("recv", room[0], before),
            ("send", parts[1][down], before), ("recv", room[1], after),
        ])  # fmt: skip
        parts[0][(up - 1) % n].add_(room[0])
        parts[1][(down + 1) % n].add_(room[1])
    for step in range(n - 1):
        up, down = (rank - step) % n, (rank + step) % n
        net.exchange([
            ("send", parts[0][up], after), ("recv", parts[0][(up - 1) % n], before),
            ("send", parts[1][down], before), ("recv", parts[1][(down + 1) % n], after),
        ])  # fmt: skip


def tree(net: Net, x: Any, spare: Any) -> None:
    """Binomial tree: the sum climbs to rank 0 in ``ceil(log2 n)`` steps of all the data, and comes down in as many."""
    rank, size, room = net.rank, net.size, spare[: x.numel()]
    step = 1
    while step < size:
        if rank % (2 * step) == step:
            net.exchange([("send", x, rank - step)])
            break
        if rank + step < size:
            net.exchange([("recv", room, rank + step)])
            x.add_(room)
        step *= 2
    while step < size:  # ranks that have sent wait at their own step, rank 0 at the top
        step *= 2
    while step > 1:
        step //= 2
        if rank % (2 * step) == step:
            net.exchange([("recv", x, rank - step)])
        elif rank % (2 * step) == 0 and rank + step < size:
            net.exchange([("send", x, rank + step)])


def star(net: Net, x: Any, spare: Any) -> None:
    """All send to rank 0, which adds up and sends back: two steps, and all data through one link."""
    if net.rank:
        net.exchange([("send", x, 0)])
        net.exchange([("recv", x, 0)])
        return
    rooms = [spare[i * x.numel() : (i + 1) * x.numel()] for i in range(net.size - 1)]
    net.exchange([("recv", room, rank) for rank, room in enumerate(rooms, 1)])
    for room in rooms:
        x.add_(room)
    net.exchange([("send", x, rank) for rank in range(1, net.size)])


def hierarchical(net: Net, x: Any, spare: Any, widths: Sequence[int]) -> None:
    """Rings within rings: reduce-scatter among neighbours, the same one level up on what each holds, and back.

    Rank ``r`` has the digits of r in the mixed base ``widths``, the lowest first: ranks that differ in the first digit
    alone share a host, say. Over the links of level ``i`` goes a share ``1 / (w0 .. w(i-1))`` of the data.

    Args:
        widths: ranks of a ring at each level; their product is the number of ranks.
    """
    held: list[tuple[Any, list[int]]] = []
    piece, stride = x, 1
    for width in widths:
        digit = net.rank // stride % width
        ranks = [net.rank + (other - digit) * stride for other in range(width)]
        held.append((piece, ranks))
        piece = _reduce_scatter(net, piece, spare, ranks)
        stride *= width
    for piece, ranks in reversed(held):
        _all_gather(net, piece, ranks)


def level_widths(size: int, levels: int, fan: int) -> list[int]:
    """Ranks of a ring at each of ``levels``: ``fan`` at all but the top, the rest there; none where it comes to less
    than two."""
    lower = fan ** (levels - 1)
    return [fan] * (levels - 1) + [size // lower] if size % lower == 0 and size // lower >= 2 else []


def spare_elements(name: str, count: int, size: int) -> int:
    """Elements that an algorithm needs beside the data."""
    return count * max(1, size - 1) if name == "star" else count


Algorithm = Callable[[Net, Any, Any], None]
PLAIN: dict[str, Algorithm] = {
    "ring": ring, "bidirectional_ring": bidirectional_ring, "tree": tree, "star": star,
}  # fmt: skip
"""Algorithms that any number of ranks can run."""
