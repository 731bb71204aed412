"""The algorithm of a collective for a size and a topology, by latency and bandwidth of the links.

A step in which every rank sends ``w`` bytes takes ``alpha + w / B`` (R. Hockney, "The communication challenge for
MPP", Parallel Computing 20, 1994). With ``n`` ranks and S bytes (per rank for all-reduce; of the whole result for
all-gather, of the whole input for reduce-scatter; as nccl-tests counts):

================== ======================================= ==============================================
algorithm          all-reduce                              all-gather, reduce-scatter
================== ======================================= ==============================================
ring               ``2(n-1) alpha + 2(n-1)/n S/B``         ``(n-1) alpha + (n-1)/n S/B``
bidirectional_ring ``2(n-1) alpha + (n-1)/n S/B``          ``(n-1) alpha + (n-1)/(2n) S/B``
tree               ``2 ceil(log2 n) (alpha + S/B)``        ``ceil(log2 n) alpha + (n-1)/n S/B``
star               ``2 alpha + 2(n-1) S/B``                ``2 alpha + (n-1)(n+1)/n S/B``
hierarchical       see :func:`_hierarchical`               see :func:`_hierarchical`
================== ======================================= ==============================================

Steps of all-reduce are those of :func:`wattline.predictors.algorithms.steps_of`. Ring: P. Patarasuk and X. Yuan,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69, 2009. In the bidirectional ring each
half of the data goes one way round, which helps where the two neighbours are reached over links of their own. Tree: a
binomial reduction and a binomial broadcast, for all-gather Bruck's exchange with distances that double (R. Thakur,
R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH", 2005). Star: one rank
receives everything and sends the results out, its link the bottleneck. Hierarchical: inside each node, between nodes,
inside again (M. Cho et al., "BlueConnect", IBM J. Res. Dev. 63, 2019). Computation is left out of account.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from wattline.errors import DataError, ParamError, unknown_name
from wattline.predictors.algorithms import steps_of
from wattline.units import format_bytes, format_time

if TYPE_CHECKING:
    from wattline.predictors.alphabeta import AlphaBeta

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
KINDS = ("switch", "ring", "nodes")
Steps = tuple[float, float]
"""Rounds of latency, and bytes over the busiest link as a multiple of S."""


@dataclass(frozen=True)
class Link:
    """A link between two ranks.

    Attributes:
        alpha_s: seconds of latency a step.
        bandwidth: bytes/s one way.
        alpha_range, bandwidth_range: their intervals; ``None``: taken as exact.
    """

    alpha_s: float
    bandwidth: float
    alpha_range: tuple[float, float] | None = None
    bandwidth_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.alpha_s >= 0:
            raise ParamError(f"the latency of a link must not be below zero: {self.alpha_s!r}")
        if not self.bandwidth > 0:
            raise ParamError(f"the bandwidth of a link must be above zero, not {self.bandwidth!r}")
        alpha, rate = self.alpha_range, self.bandwidth_range
        if alpha is not None and not 0 <= alpha[0] <= self.alpha_s <= alpha[1]:
            raise ParamError(f"the interval of a link's latency must hold it: {self.alpha_s!r} in {alpha}")
        if rate is not None and not 0 < rate[0] <= self.bandwidth <= rate[1]:
            raise ParamError(f"the interval of a link's bandwidth must hold it: {self.bandwidth!r} in {rate}")

    @classmethod
    def fitted(cls, model: AlphaBeta, size: float) -> Link:
        """The link that a fit of messages to the next rank saw at a size.

        Args:
            model: of ``send_recv``, from :func:`wattline.predictors.alphabeta.fit_alpha_beta` or
                :func:`wattline.predictors.links.fit_links`. What other collectives show is a library's algorithm, and
                no link.
            size: S in bytes; the segment of the fit that holds for it counts.

        Raises:
            ParamError: the fit of another collective.
            DataError: a bandwidth that could not be fitted.
        """
        from wattline.predictors.alphabeta import ROUNDS

        if model.name != "send_recv":
            raise ParamError(
                f"a fit of {model.name} is of the algorithm that a library chose, not of a link",
                todo="fit send_recv: `wattline bench collectives.send_recv --ranks 2`, `wattline links`",
            )
        segment = [s for s in model.segments if s.begin <= size or s is model.segments[0]][-1]
        if not math.isfinite(segment.bandwidth.value):
            raise DataError(
                f"the fit of {model.name} has no bandwidth at {format_bytes(size)}", todo="measure larger sizes"
            )
        # The fit counts latency in rounds of all its ranks; a message to the next one takes them all.
        rounds = float(ROUNDS[model.growth](model.ranks.max()))
        alpha = segment.alpha_s
        return cls(
            rounds * alpha.value, segment.bandwidth.value, (rounds * max(alpha.lo, 0.0), rounds * alpha.hi),
            (segment.bandwidth.lo, segment.bandwidth.hi),
        )  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """Ranks and the links between them.

    Attributes:
        ranks: number of them.
        link: between any two (``"switch"``: one port a rank), between neighbours (``"ring"``: a link to either), or
            between ranks of a node (``"nodes"``).
        kind: one of :data:`KINDS`.
        per_node: ranks of a node, for ``"nodes"``.
        between: for ``"nodes"``: between nodes, of each rank while all ranks of its node send.
    """

    ranks: int
    link: Link
    kind: str = "switch"
    per_node: int = 0
    between: Link | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("topology", self.kind, KINDS)
        if self.ranks < 2:
            raise ParamError(f"a collective takes at least 2 ranks, not {self.ranks}")
        if self.kind != "nodes":
            if self.per_node or self.between:
                raise ParamError(f"per_node and between are of the topology 'nodes', not of {self.kind!r}")
            return
        if self.between is None:
            raise ParamError("the link between nodes is missing", todo="give between=Link(...)")
        if self.per_node < 1 or self.ranks % self.per_node or self.ranks == self.per_node:
            raise ParamError(
                f"{self.ranks} ranks are not two or more nodes of {self.per_node}", todo="give per_node=..., a divisor"
            )

    @property
    def nodes(self) -> int:
        """Number of nodes; 1 where there are none."""
        return self.ranks // self.per_node if self.kind == "nodes" else 1


@dataclass(frozen=True)
class Candidate:
    """One algorithm.

    Attributes:
        algorithm: its name.
        time_s, time_lo_s, time_hi_s: seconds, and their range over the intervals of the links.
    """

    algorithm: str
    time_s: float
    time_lo_s: float
    time_hi_s: float


@dataclass(frozen=True)
class Algorithms:
    """Algorithms from the quickest to the slowest.

    Attributes:
        collective, size, topology: what was asked.
        candidates: ranked by expected time.
        certain: whether the first is the quickest whatever values the links take within their intervals.
        switches: sizes (bytes) from which on another algorithm is the quickest, with its name; the first at 0.
    """

    collective: str
    size: float
    topology: Topology
    candidates: tuple[Candidate, ...]
    certain: bool
    switches: tuple[tuple[float, str], ...]

    @property
    def best(self) -> Candidate:
        """The quickest by expected time."""
        return self.candidates[0]

    def __str__(self) -> str:
        lines = [f"{self.collective} of {format_bytes(self.size)} by {self.topology.ranks} ranks"]
        for each in self.candidates:
            span = f"[{format_time(each.time_lo_s)}, {format_time(each.time_hi_s)}]"
            lines.append(f"  {each.algorithm}: {format_time(each.time_s)} {span}")
        if not self.certain:
            lines.append("  the first cannot be told apart from the next within the intervals of the links")
        from_ = [f"{name} from {format_bytes(size)}" if size else name for size, name in self.switches]
        lines.append(f"  quickest by size: {', '.join(from_)}")
        return "\n".join(lines)


def choose_algorithm(
    collective: str, size: float, topology: Topology, algorithms: Sequence[str] | None = None
) -> Algorithms:
    """Rank the algorithms of a collective.

    Args:
        collective: one of :data:`COLLECTIVES`, with or without ``collectives.``.
        size: S in bytes.
        topology: ranks and links.
        algorithms: only these; ``None``: all that the topology has links for.

    Raises:
        UnknownNameError: a collective or an algorithm that there is none of.
        ParamError: a size below zero, no algorithm, or one that the topology has no links for.
    """
    name = collective.removeprefix("collectives.")
    if name not in COLLECTIVES:
        raise unknown_name("collective", name, COLLECTIVES)
    if not 0 <= size < float("inf"):
        raise ParamError(f"the size must be a number of bytes, not {size!r}")
    there = _available(topology)
    if algorithms is not None and not algorithms:
        raise ParamError("there is no algorithm to choose from", todo=f"such as {there[0]}, or None for all")
    for algorithm in algorithms or ():
        if algorithm not in ALGORITHMS:
            raise unknown_name("algorithm", algorithm, ALGORITHMS)
        if algorithm not in there:
            raise ParamError(
                f"a topology of the kind {topology.kind!r} has no links for the algorithm {algorithm!r}",
                todo=f"there are {', '.join(there)}",
            )
    wanted = list(algorithms or there)
    values = [_lines(name, topology, corner) for corner in _corners(topology)]
    central = _lines(name, topology, _centre(topology))
    found = []
    for algorithm in wanted:
        times = [a + b * size for a, b in (lines[algorithm] for lines in values)]
        expected = central[algorithm][0] + central[algorithm][1] * size
        found.append(Candidate(algorithm, expected, min(*times, expected), max(*times, expected)))
    found.sort(key=lambda each: each.time_s)
    first = found[0].algorithm

    def quickest(lines: Mapping[str, Steps]) -> bool:
        own = lines[first][0] + lines[first][1] * size
        return all(own <= (lines[a][0] + lines[a][1] * size) * (1 + 1e-12) for a in wanted)

    # Differences of linear functions have their extremes at the corners.
    certain = all(quickest(lines) for lines in values)
    switches = _envelope({a: central[a] for a in wanted})
    return Algorithms(name, float(size), topology, tuple(found), certain, switches)


# -- the algorithms: rounds of latency and bytes over the busiest link as a multiple of S --------------------------


def _steps(algorithm: str, name: str, n: int) -> Steps:
    """Of every algorithm but the hierarchical one."""
    if name == "all_reduce":
        own = steps_of(algorithm, n)
        return float(own.steps), own.share
    rounds, share = n - 1.0, (n - 1.0) / n
    if algorithm == "ring":
        return rounds, share
    if algorithm == "bidirectional_ring":
        return rounds, share / 2
    if algorithm == "tree":
        return float((n - 1).bit_length()), share
    # Star, in: the shares of every other rank; out: S to every other rank. Reduce-scatter is the mirror image.
    return 2.0, share + n - 1.0


ALGORITHMS = ("ring", "bidirectional_ring", "tree", "star", "hierarchical")
_Costs = tuple[float, float]  # latency, inverse bandwidth


def _available(topology: Topology) -> list[str]:
    if topology.kind == "ring":
        return ["ring", "bidirectional_ring"]
    # Over one port a rank, both directions round the ring share what one has alone.
    flat = ["ring", "tree", "star"]
    return [*flat, "hierarchical"] if topology.kind == "nodes" else flat


def _hierarchical(name: str, topology: Topology, inside: _Costs, between: _Costs) -> Steps:
    """Seconds at S = 0, and seconds per byte.

    With ``g`` ranks a node and ``N`` nodes: rings inside the nodes over S (reduce-scatter before, all-gather after),
    and between them, each with its share of ``S / g``, a ring of ``N``.
    """
    g, nodes = topology.per_node, topology.nodes
    inner_rounds, inner_share = _steps("ring", "all_gather", g)
    passes = 2 if name == "all_reduce" else 1
    outer_rounds, outer_share = _steps("ring", name, nodes)
    latency = passes * inner_rounds * inside[0] + outer_rounds * between[0]
    return latency, passes * inner_share * inside[1] + outer_share / g * between[1]


def _lines(name: str, topology: Topology, costs: Sequence[_Costs]) -> dict[str, Steps]:
    """Seconds at S = 0 and seconds per byte of each algorithm."""
    slowest = (max(c[0] for c in costs), max(c[1] for c in costs))  # every step of a flat algorithm waits for it
    out = {}
    for algorithm in _available(topology):
        if algorithm == "hierarchical":
            out[algorithm] = _hierarchical(name, topology, costs[0], costs[1])
            continue
        rounds, share = _steps(algorithm, name, topology.ranks)
        out[algorithm] = (rounds * slowest[0], share * slowest[1])
    return out


def _centre(topology: Topology) -> list[_Costs]:
    links = [topology.link] + ([topology.between] if topology.between else [])
    return [(link.alpha_s, 1.0 / link.bandwidth) for link in links]


def _corners(topology: Topology) -> list[tuple[_Costs, ...]]:
    """Costs of the links between which times are linear: the ends of the intervals.

    Flat algorithms wait for the slower of two links, which is linear only where one is slower throughout: so the ends
    of one link's interval cut the other's.
    """
    links = [topology.link] + ([topology.between] if topology.between else [])
    alphas = [link.alpha_range or (link.alpha_s, link.alpha_s) for link in links]
    rates = [link.bandwidth_range or (link.bandwidth, link.bandwidth) for link in links]
    betas = [(1.0 / hi, 1.0 / lo) for lo, hi in rates]

    def values(spans: Sequence[tuple[float, float]], own: tuple[float, float]) -> list[float]:
        return sorted({*own, *(end for span in spans for end in span if own[0] < end < own[1])})

    costs = [list(product(values(alphas, a), values(betas, b))) for a, b in zip(alphas, betas, strict=True)]
    return list(product(*costs))


def _envelope(lines: Mapping[str, Steps]) -> tuple[tuple[float, str], ...]:
    """Where along the sizes which line is the lowest: from 0 on, always to the next that crosses first."""
    at = 0.0
    now = min(lines, key=lambda a: lines[a])
    out = [(0.0, now)]
    while True:
        start, slope = lines[now]
        crossings = [
            ((other[0] - start) / (slope - other[1]), other[1], name)
            for name, other in lines.items()
            if other[1] < slope
        ]
        later = [each for each in crossings if each[0] >= at]
        if not later:
            return tuple(out)
        at, _, now = min(later)
        if at == out[-1][0]:
            out.pop()
        out.append((at, now))
