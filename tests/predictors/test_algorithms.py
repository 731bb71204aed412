"""Steps and bytes of all-reduce algorithms, by hand, and the sizes at which one overtakes another."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.predictors.algorithms import Steps, crossing_bytes, steps_of


@pytest.mark.parametrize(
    ("name", "widths", "steps", "share"),
    [
        ("ring", (), 14, 1.75),
        ("bidirectional_ring", (), 14, 0.875),
        ("tree", (), 6, 6.0),
        ("star", (), 2, 14.0),
        ("hierarchical", (2, 4), 8, 1.75),
        ("hierarchical", (2, 2, 2), 6, 1.75),
    ],
)
def test_eight_ranks_by_hand(name: str, widths: tuple[int, ...], steps: int, share: float) -> None:
    assert steps_of(name, 8, widths) == Steps(steps, share)


def test_the_star_beats_the_ring_below_a_size_that_grows_with_latency_and_bandwidth() -> None:
    # 4 ranks: ring 6 L + 3/2 S/B, star 2 L + 6 S/B: equal at S = 4/4.5 L B.
    ring, star = steps_of("ring", 4), steps_of("star", 4)
    at = crossing_bytes(star, ring, 50e-6, 1e9)
    assert at == pytest.approx(4 / 4.5 * 50e3)
    assert star.time_s(at, 50e-6, 1e9) == pytest.approx(ring.time_s(at, 50e-6, 1e9))
    assert star.time_s(1024, 50e-6, 1e9) == pytest.approx(100e-6 + 6 * 1.024e-6)
    assert star.time_s(1024, 50e-6, 1e9) < ring.time_s(1024, 50e-6, 1e9)
    assert star.time_s(1 << 20, 50e-6, 1e9) > ring.time_s(1 << 20, 50e-6, 1e9)
    # A link of a hundredth of the bandwidth moves it to a hundredth; ten times the latency to ten times.
    assert crossing_bytes(star, ring, 50e-6, 1e7) == pytest.approx(at / 100)
    assert crossing_bytes(star, ring, 500e-6, 1e9) == pytest.approx(at * 10)


def test_of_two_ranks_the_ring_is_never_worse() -> None:
    assert crossing_bytes(steps_of("star", 2), steps_of("ring", 2), 1.0, 1e9) == 0.0
    assert crossing_bytes(steps_of("ring", 4), steps_of("ring", 4), 1.0, 1e9) == inf


@given(
    st.integers(3, 64), st.sampled_from(["star", "tree"]), st.floats(1e-7, 1e-2), st.floats(1e6, 1e12),
    st.floats(0.01, 0.99),
)  # fmt: skip
def test_few_steps_win_below_the_crossing_and_few_bytes_above(
    ranks: int, name: str, latency_s: float, bandwidth: float, share: float
) -> None:
    few, many = steps_of(name, ranks), steps_of("ring", ranks)
    at = crossing_bytes(few, many, latency_s, bandwidth)
    if few.steps == many.steps:  # a tree of three ranks takes as many
        assert at == 0.0
        return
    assert few.time_s(at * share, latency_s, bandwidth) < many.time_s(at * share, latency_s, bandwidth)
    assert few.time_s(at / share, latency_s, bandwidth) > many.time_s(at / share, latency_s, bandwidth)


def test_what_is_no_algorithm_is_refused() -> None:
    with pytest.raises(ParamError, match="no steps are known of the algorithm library"):
        steps_of("library", 4)
    with pytest.raises(ParamError, match="rings of 2, 2 ranks are 4, not 8"):
        steps_of("hierarchical", 8, (2, 2))
    with pytest.raises(ParamError, match="2 ranks or more"):
        steps_of("ring", 1)
