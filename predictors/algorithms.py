"""What all-reduce algorithms cost on a link of known latency and bandwidth, and at which size one overtakes another.

``t = steps L + share S / B``: L seconds a step (one message to a neighbour, however short), S bytes of each rank, and
the bytes that the busiest link carries as a share of S (ring: Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", JPDC 69, 2009; the others count alike). It knows nothing of what adding up
costs, nor of ranks that share cores or a switch: measured crossings lie where these put them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from wattline.errors import ParamError


@dataclass(frozen=True)
class Steps:
    """What an algorithm does, whatever the link.

    Attributes:
        steps: messages one after the other.
        share: bytes over the busiest link, one way at a time, over S.
    """

    steps: int
    share: float

    def time_s(self, size: float, latency_s: float, bandwidth: float) -> float:
        """Seconds of S bytes where a step takes ``latency_s`` and a link carries ``bandwidth`` bytes/s."""
        return self.steps * latency_s + self.share * size / bandwidth


def steps_of(name: str, ranks: int, widths: Sequence[int] = ()) -> Steps:
    """Steps and bytes of an algorithm.

    Args:
        name: ``"ring"``, ``"bidirectional_ring"``, ``"tree"``, ``"star"``, or ``"hierarchical"`` (rings within rings).
        ranks: how many, from 2.
        widths: of a hierarchy: ranks of the rings by level, lowest first; their product is ``ranks``. All links are
            taken to be alike.

    Raises:
        ParamError: another name, too few ranks, or widths of other ranks.
    """
    if ranks < 2:
        raise ParamError(f"an all-reduce is one of 2 ranks or more, not {ranks}")
    ring = 2.0 * (ranks - 1) / ranks
    if name == "ring":
        return Steps(2 * (ranks - 1), ring)
    if name == "bidirectional_ring":  # a half each way round, and links carry both ways at once
        return Steps(2 * (ranks - 1), ring / 2)
    if name == "tree":
        rounds = (ranks - 1).bit_length()
        return Steps(2 * rounds, 2.0 * rounds)
    if name == "star":  # all to one, which adds up and sends it back
        return Steps(2, 2.0 * (ranks - 1))
    if name != "hierarchical":
        raise ParamError(f"no steps are known of the algorithm {name}")
    product = 1
    for width in widths:
        product *= width
    if product != ranks:
        raise ParamError(f"rings of {', '.join(map(str, widths))} ranks are {product}, not {ranks}")
    return Steps(2 * sum(width - 1 for width in widths), ring)


def crossing_bytes(few: Steps, many: Steps, latency_s: float, bandwidth: float) -> float:
    """The size S above which the algorithm of many steps and few bytes is the quicker one.

    Args:
        few: few steps, many bytes: quicker where latency rules.
        many: the other one.
        latency_s: seconds a step.
        bandwidth: bytes/s.

    Returns:
        Bytes; 0 where ``many`` is quicker at every size, infinite where ``few`` is.
    """
    more_steps, more_bytes = many.steps - few.steps, few.share - many.share
    if more_bytes <= 0:
        return inf if more_steps >= 0 else 0.0
    return max(0.0, more_steps * latency_s * bandwidth / more_bytes)
