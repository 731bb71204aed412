"""Alpha-beta fits: what was put in comes out, with an interval that holds it and an error on what was not seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import DataError
from wattline.predictors.alphabeta import fit_alpha_beta
from wattline.workmodels.collectives import busbw_factor, rounds

SIZES = 8.0 * 4.0 ** np.arange(14)


def times(name: str, size: np.ndarray, ranks: np.ndarray, alpha: float, rate: float) -> np.ndarray:
    return np.asarray(alpha * rounds(ranks) + busbw_factor(name, ranks) * size / rate)


@settings(max_examples=8, deadline=None)
@given(st.floats(1e-6, 1e-2), st.floats(1e7, 1e12), st.sampled_from(["all_reduce", "all_gather", "broadcast"]))
def test_exact_times_give_exactly_their_latency_and_bandwidth(alpha: float, rate: float, name: str) -> None:
    ranks = np.repeat([2, 4, 16], len(SIZES))
    size = np.tile(SIZES, 3)
    model = fit_alpha_beta(name, size, ranks, times(name, size, ranks, alpha, rate), judged=False)
    (segment,) = model.segments
    assert model.growth == "log"
    assert not model.assumed
    assert segment.alpha_s.value == pytest.approx(alpha, rel=1e-6)
    assert segment.bandwidth.value == pytest.approx(rate, rel=1e-6) or alpha > 1e3 * SIZES[-1] / rate
    time_s, lo, hi = model.predict(1e10, 64)
    assert time_s == pytest.approx(times(name, np.array(1e10), np.array(64), alpha, rate), rel=1e-6)
    assert lo <= time_s <= hi


def test_noise_stays_within_the_interval_and_a_disturbed_size_does_not_bend_the_line() -> None:
    rng = np.random.default_rng(3)
    size = np.repeat(SIZES, 2)
    ranks = np.full_like(size, 2)
    t = times("all_reduce", size, ranks, 20e-6, 1e9) * (1 + rng.normal(0, 0.03, len(size)))
    t[9] *= 5
    model = fit_alpha_beta("all_reduce", size, ranks, t)
    (segment,) = model.segments
    assert segment.alpha_s.value == pytest.approx(20e-6, rel=0.05)
    assert segment.bandwidth.value == pytest.approx(1e9, rel=0.05)
    assert segment.alpha_s.lo <= 20e-6 * 1.02
    assert segment.alpha_s.hi >= 20e-6 * 0.98
    assert model.assumed
    assert len(model.held_out) == 1
    assert 0 < model.held_out[0].error < 0.15


def test_a_change_of_protocol_is_a_segment_of_its_own() -> None:
    size, ranks = np.tile(SIZES, 2), np.repeat([2, 8], len(SIZES))
    small = times("all_gather", size, ranks, 10e-6, 1e9)
    large = times("all_gather", size, ranks, 80e-6, 2e10)
    model = fit_alpha_beta("collectives.all_gather", size, ranks, np.where(size < 10_000, small, large))
    first, second = model.segments
    assert (first.end, second.begin) == (8192.0, 32768.0)
    assert first.bandwidth.value == pytest.approx(1e9)
    assert second.alpha_s.value == pytest.approx(80e-6)
    # By hand: 2 rounds of 10 us and 3/4 of 64 bytes; 2 rounds of 80 us and 3/4 of a gibibyte.
    assert model.predict([64, 2**30], [4, 4])[0] == pytest.approx([20e-6 + 48 / 1e9, 160e-6 + 0.75 * 2**30 / 2e10])


@pytest.mark.parametrize(
    ("growth", "steps"), [("linear", lambda n: n - 1.0), ("none", lambda n: 1.0), ("log", rounds)]
)
def test_how_latency_grows_with_the_ranks_is_found(growth: str, steps: Callable[[float], float]) -> None:
    rows = [(s, n, 1e-4 * steps(n) + busbw_factor("all_reduce", n) * s / 1e9) for s in SIZES for n in (2, 5, 12)]
    model = fit_alpha_beta("all_reduce", *zip(*rows, strict=True))
    assert model.growth == growth
    by_ranks = next(h for h in model.held_out if "ranks" in h.what)
    assert by_ranks.error < 1e-6
    assert by_ranks.points == len(SIZES)
    assert model.predict(8, 24)[0] == pytest.approx(1e-4 * steps(24), rel=1e-3)


def test_a_barrier_has_latency_alone() -> None:
    model = fit_alpha_beta("barrier", [0, 0, 0], [2, 4, 8], [1e-5, 2e-5, 3e-5])
    assert model.segments[0].alpha_s.value == pytest.approx(1e-5)
    assert model.segments[0].bandwidth.value == float("inf")
    assert model.to_dict()["segments"][0]["bandwidth_bytes_per_s"] == [None, None, None]


@pytest.mark.parametrize(
    ("name", "size", "ranks", "t", "words"),
    [
        ("all_reduce", [8, 8, 16], [2, 2, 2], [1, 1, 1], "2 sizes of all_reduce"),
        ("all_reduce", [8, 16, 32], [1, 1, 1], [1, 1, 1], "at least 2 ranks"),
        ("all_reduce", [8, 16, 32], [2, 2, 2], [1, 0, 1], "above zero"),
        ("all_chase", [8, 16, 32], [2, 2, 2], [1, 1, 1], "no alpha-beta model"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(
    name: str, size: list[float], ranks: list[float], t: list[float], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        fit_alpha_beta(name, size, ranks, t)


def test_equal_input_gives_equal_intervals() -> None:
    t = times("reduce", SIZES, np.full_like(SIZES, 4), 1e-5, 1e9) * (1 + 0.1 * np.sin(np.arange(14)))
    first, second = (fit_alpha_beta("reduce", SIZES, [4] * 14, t, seed=5) for _ in range(2))
    assert first.to_dict() == second.to_dict()
