"""Algorithms of collectives: their times by hand, and what more ranks, bytes or better links must do to them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import DataError, ParamError, UnknownNameError
from wattline.predictors.alphabeta import fit_alpha_beta
from wattline.predictors.planning import Link, Topology, choose_algorithm
from wattline.predictors.planning.collectives import COLLECTIVES, KINDS

UNIT = Link(1.0, 1.0)
"""A second of latency, a byte a second: times read as rounds + multiples of S."""


def times(collective: str, size: float, topology: Topology) -> dict[str, float]:
    return {each.algorithm: each.time_s for each in choose_algorithm(collective, size, topology).candidates}


def test_all_reduce_of_eight_bytes_by_four_ranks_by_hand() -> None:
    """Ring: 6 rounds, 6/4 of S. Tree: 2 log2(4) rounds of S each. Star: 2 rounds, 3 S in and 3 S out."""
    assert times("all_reduce", 8.0, Topology(4, UNIT)) == {
        "ring": 6 + 12.0, "tree": 4 + 32.0, "star": 2 + 48.0,
    }  # fmt: skip
    assert times("all_reduce", 8.0, Topology(4, UNIT, "ring")) == {"ring": 18.0, "bidirectional_ring": 6 + 6.0}


def test_all_gather_of_eight_bytes_by_four_ranks_by_hand() -> None:
    """Ring: 3 rounds, 3/4 of S. Tree: 2 rounds, 3/4 of S. Star: 3/4 of S in, 3 S out."""
    expected = {"ring": 3 + 6.0, "tree": 2 + 6.0, "star": 2 + 30.0}
    for name in ("all_gather", "reduce_scatter", "collectives.all_gather"):
        assert times(name, 8.0, Topology(4, UNIT)) == expected


def test_hierarchical_all_reduce_by_hand() -> None:
    """Two nodes of four ranks, twice the latency and half the bandwidth between them, 16 bytes.

    Inside: 2 x (3 rounds, 3/4 of 16 bytes) = 6 + 24 s. Between: a ring of two over a share of 4 bytes: 2 rounds of
    2 s, and 2 x 1/2 x 4 bytes at 2 s each = 4 + 8 s.
    """
    nodes = Topology(8, UNIT, "nodes", per_node=4, between=Link(2.0, 0.5))
    assert times("all_reduce", 16.0, nodes)["hierarchical"] == pytest.approx(6 + 24 + 4 + 8)
    # Flat algorithms wait for the slow link in every step: 14 rounds of 2 s, 14/8 of 16 bytes at 2 s each.
    assert times("all_reduce", 16.0, nodes)["ring"] == pytest.approx(28 + 56)


def test_small_messages_take_few_rounds_and_large_ones_few_bytes() -> None:
    """On 8 ranks: star 2 + 14 S, tree 6 + 6 S, ring 14 + 1.75 S. They cross at 0.5 and at 8 / 4.25 bytes."""
    found = choose_algorithm("all_reduce", 1.0, Topology(8, UNIT))
    assert found.best.algorithm == "tree"
    assert found.switches[0] == (0.0, "star")
    assert found.switches[1] == (pytest.approx(0.5), "tree")
    assert found.switches[2] == (pytest.approx(8 / 4.25), "ring")
    assert "quickest by size: star" in str(found)


def test_intervals_say_what_cannot_be_told_apart() -> None:
    """At 1.8 bytes tree and ring are close: more latency favours the tree, less bandwidth the ring."""
    vague = Link(1.0, 1.0, (0.5, 2.0), (0.8, 1.25))
    found = choose_algorithm("all_reduce", 1.8, Topology(8, vague))
    assert not found.certain
    assert "cannot be told apart" in str(found)
    assert found.best.time_lo_s == pytest.approx(3.0 + 6 * 1.8 / 1.25)
    assert found.best.time_hi_s == pytest.approx(12.0 + 6 * 1.8 / 0.8)
    assert choose_algorithm("all_reduce", 100.0, Topology(8, vague)).certain
    assert choose_algorithm("all_reduce", 1.8, Topology(8, UNIT)).certain


def test_a_fitted_link_is_that_of_messages_to_the_next_rank() -> None:
    """5 us and 10 GB/s, however many ranks there are."""
    sizes = 2.0 ** np.arange(10, 24)
    for ranks in (2, 4, 16):
        model = fit_alpha_beta("send_recv", sizes, np.full(14, ranks), 5e-6 + sizes / 1e10, judged=False)
        link = Link.fitted(model, 2.0**20)
        assert link.alpha_s == pytest.approx(5e-6, rel=0.02)
        assert link.bandwidth == pytest.approx(1e10, rel=0.02)
        assert link.bandwidth_range is not None
    assert choose_algorithm("all_reduce", 2.0**20, Topology(4, link)).best.algorithm == "ring"
    other = fit_alpha_beta("all_reduce", sizes, np.full(14, 4), 1e-5 + sizes / 1e10, judged=False)
    with pytest.raises(ParamError, match="fit send_recv"):
        Link.fitted(other, 1e6)
    flat = fit_alpha_beta("send_recv", sizes, np.full(14, 2), np.full(14, 1e-5), judged=False)
    with pytest.raises(DataError, match="no bandwidth"):
        Link.fitted(flat, 1e6)


links = st.builds(Link, st.floats(0.0, 1e-3), st.floats(1e6, 1e12))
asked = st.tuples(st.sampled_from(COLLECTIVES), st.floats(0.0, 1e10))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    kind = draw(st.sampled_from(KINDS))
    if kind != "nodes":
        return Topology(draw(st.integers(2, 64)), draw(links), kind)
    per_node = draw(st.integers(1, 8))
    return Topology(per_node * draw(st.integers(2, 8)), draw(links), kind, per_node, draw(links))


@given(asked, topologies(), st.floats(1.0, 10.0))
def test_more_bytes_or_slower_links_never_quicken(
    question: tuple[str, float], topology: Topology, factor: float
) -> None:
    name, size = question
    before = times(name, size, topology)
    slower = dataclasses.replace(topology.link, bandwidth=topology.link.bandwidth / factor)
    later = dataclasses.replace(topology.link, alpha_s=topology.link.alpha_s * factor)
    changed = [times(name, size, dataclasses.replace(topology, link=link)) for link in (slower, later)]
    for after in (times(name, size * factor, topology), *changed):
        assert all(after[algorithm] >= before[algorithm] * (1 - 1e-12) for algorithm in before)


@given(asked, links, st.integers(2, 63), st.sampled_from(("switch", "ring")))
def test_more_ranks_never_quicken(question: tuple[str, float], link: Link, ranks: int, kind: str) -> None:
    name, size = question
    fewer, more = (times(name, size, Topology(n, link, kind)) for n in (ranks, ranks + 1))
    assert all(more[algorithm] >= fewer[algorithm] * (1 - 1e-12) for algorithm in fewer)


@given(asked, topologies())
def test_the_first_is_the_quickest_and_the_switches_agree(question: tuple[str, float], topology: Topology) -> None:
    name, size = question
    found = choose_algorithm(name, size, topology)
    spent = [each.time_s for each in found.candidates]
    assert spent == sorted(spent)
    assert found.certain  # exact links
    sizes = [at for at, _ in found.switches]
    assert sizes == sorted(sizes)
    named = [algorithm for at, algorithm in found.switches if at <= size][-1]
    assert times(name, size, topology)[named] == pytest.approx(found.best.time_s)


@given(
    asked, topologies(), st.tuples(st.floats(0.5, 1.0), st.floats(1.0, 2.0)),
    st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
)  # fmt: skip
def test_what_is_certain_holds_anywhere_within_the_intervals(
    question: tuple[str, float], topology: Topology, span: tuple[float, float], places: tuple[float, float]
) -> None:
    (lo, hi), (where, elsewhere) = span, places

    def vague(link: Link) -> Link:
        return dataclasses.replace(
            link, alpha_range=(link.alpha_s * lo, link.alpha_s * hi),
            bandwidth_range=(link.bandwidth * lo, link.bandwidth * hi),
        )  # fmt: skip

    def at(link: Link, share: float) -> Link:
        factor = lo + share * (hi - lo)
        return Link(link.alpha_s * factor, link.bandwidth * factor)

    between = topology.between
    unsure = dataclasses.replace(topology, link=vague(topology.link), between=between and vague(between))
    drawn = dataclasses.replace(topology, link=at(topology.link, where), between=between and at(between, elsewhere))
    name, size = question
    found = choose_algorithm(name, size, unsure)
    spent = times(name, size, drawn)
    for each in found.candidates:
        assert each.time_lo_s * (1 - 1e-9) <= spent[each.algorithm] <= each.time_hi_s * (1 + 1e-9)
    if found.certain:
        assert spent[found.best.algorithm] <= min(spent.values()) * (1 + 1e-9)


def test_faults_are_told() -> None:
    four = Topology(4, UNIT)
    with pytest.raises(UnknownNameError, match="all_sum"):
        choose_algorithm("all_sum", 1.0, four)
    with pytest.raises(ParamError, match="number of bytes"):
        choose_algorithm("all_reduce", -1.0, four)
    with pytest.raises(ParamError, match="no algorithm to choose"):
        choose_algorithm("all_reduce", 1.0, four, [])
    with pytest.raises(UnknownNameError, match="algorithm 'rings'"):
        choose_algorithm("all_reduce", 1.0, four, ["rings"])
    with pytest.raises(ParamError, match="no links for the algorithm"):
        choose_algorithm("all_reduce", 1.0, four, ["hierarchical"])
    with pytest.raises(ParamError, match="at least 2 ranks"):
        Topology(1, UNIT)
    with pytest.raises(UnknownNameError, match="topology"):
        Topology(4, UNIT, "mesh")
    with pytest.raises(ParamError, match="link between nodes is missing"):
        Topology(4, UNIT, "nodes", 2)
    with pytest.raises(ParamError, match="not two or more nodes"):
        Topology(4, UNIT, "nodes", 3, UNIT)
    with pytest.raises(ParamError, match="of the topology 'nodes'"):
        Topology(4, UNIT, "switch", 2)
    with pytest.raises(ParamError, match="latency"):
        Link(-1.0, 1.0)
    with pytest.raises(ParamError, match="bandwidth"):
        Link(1.0, 0.0)
    with pytest.raises(ParamError, match="interval of a link's latency"):
        Link(1.0, 1.0, alpha_range=(2.0, 3.0))
    with pytest.raises(ParamError, match="interval of a link's bandwidth"):
        Link(1.0, 1.0, bandwidth_range=(0.0, 3.0))
