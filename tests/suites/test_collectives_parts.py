"""What the operations on collectives are made of, without processes: detection, codes, layouts, routing, matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.case import Case
from wattline.suites.collectives import codecs, compressed, matrix, moe, overlap, strided
from wattline.suites.collectives.detect import IN_A_ROW, SLOW_LINK, SLOW_RANK, WINDOW, find_slow
from wattline.suites.collectives.sampling import above_peak, bandwidths
from wattline.suites.collectives.stragglers import verdict_of
from wattline.work import Work
from wattline.workmodels import work_of

torch = pytest.importorskip("torch")

# Stragglers


def clean(rng: np.random.Generator, iterations: int, ranks: int) -> np.ndarray:
    """Times as a busy machine has them: 15 % of noise, and one in twenty up to ten times as long."""
    times = 1e-3 * np.exp(rng.normal(0, 0.15, (iterations, ranks)))
    times *= np.where(rng.random(times.shape) < 0.05, rng.uniform(1, 10, times.shape), 1.0)
    return np.asarray(times)


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_no_false_alarm_in_a_thousand_clean_iterations(ranks: int) -> None:
    for seed in range(5 if ranks < 64 else 1):
        times = clean(np.random.default_rng(seed), 1000, ranks)
        times *= np.random.default_rng(seed).uniform(0.2, 5, (1000, 1))  # iterations that are long for all
        assert find_slow(times.tolist()) == []


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_links_are_judged_by_their_good_iterations(ranks: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        # Many messages wait for a rank that is late, up to fifty times as long as the link takes.
        waits = np.where(rng.random((1000, ranks)) < 0.3, rng.exponential(1e-3, (1000, ranks)), 0.0)
        times = 1e-4 * np.exp(rng.normal(0, 0.1, (1000, ranks))) + waits
        assert find_slow(times.tolist(), links=True) == []
        times[500:, 1] += 9e-4
        (alarm,) = find_slow(times.tolist(), links=True)
        assert alarm.number == 1
        assert 500 < alarm.iteration <= 520


@pytest.mark.parametrize("ranks", [2, 4])
def test_links_of_a_machine_whose_cores_are_shared(ranks: int) -> None:
    # What two ranks on two cores with a load of five showed: messages come at once, after the receiver was put to sleep
    # and woken, or after somebody else had the core; and each of these holds for some iterations.
    for seed in range(10):
        rng = np.random.default_rng(seed)
        steps = np.array([1.2e-4, 3.3e-4, 3.5e-3])
        state = np.zeros((1000, ranks), int)
        for i in range(1, 1000):
            moved = rng.random(ranks) < 0.6
            state[i] = np.where(moved, rng.choice(3, ranks, p=[0.45, 0.4, 0.15]), state[i - 1])
        times = steps[state] * np.exp(rng.normal(0, 0.2, state.shape))
        assert find_slow(times.tolist(), links=True) == []


def test_a_rank_that_waits_for_a_core_now_and_then_is_not_slow() -> None:
    times = np.full((1000, 2), 1e-3)
    times[:, 1] *= np.where(np.arange(1000) % 17 < 10, 2.0, 1.0)  # more than half of the time
    assert find_slow(times.tolist()) == []


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("factor", [1.6, 2.0, 5.0])
def test_a_slow_rank_is_named_within_twenty_iterations(ranks: int, factor: float) -> None:
    for seed in range(5):
        times = clean(np.random.default_rng(seed), 200, ranks)
        times[100:, 1] *= factor
        (alarm,) = find_slow(times.tolist())
        assert alarm.number == 1
        assert 100 < alarm.iteration <= 120


def test_one_that_recovers_can_be_found_again_and_small_differences_do_not_matter() -> None:
    times = np.full((200, 3), 1e-3)
    times[20:60, 2] *= 2
    times[120:160, 2] *= 2
    found = find_slow(times.tolist())
    assert [alarm.number for alarm in found] == [2, 2]
    # Three quarters of a window must be slow, and one more iteration confirms it.
    after = WINDOW - WINDOW // 4 + IN_A_ROW - 1
    assert [alarm.iteration for alarm in found] == [20 + after, 120 + after]
    assert found[0].factor == pytest.approx(2.0)
    assert find_slow((times * 1e-2).tolist()) == []  # 10 microseconds


FIRST = WINDOW + IN_A_ROW - 1


def test_the_facts_of_a_case() -> None:
    fast, slow = [1e-3, 1e-3, 1e-3], [1e-3, 4e-3, 1e-3]
    facts = verdict_of([slow] * 30, [fast] * 30, "sleep", 1)
    assert facts["slow_ranks"] == [[1, FIRST, pytest.approx(4.0)]]
    assert (facts["found_after"], facts["other_alarms"], facts["slow_links"]) == (FIRST, 0, [])
    # The link from 0 ends at rank 1.
    late = [1e-3, 8e-3, 1e-3]
    facts = verdict_of([fast] * 30, [late] * 30, "link", 0)
    assert facts["slow_links"] == [[0, 1, FIRST, pytest.approx(8.0)]]
    assert (facts["found_after"], facts["other_alarms"]) == (FIRST, 0)
    facts = verdict_of([slow] * 30, [fast] * 30, "none", 0)
    assert "found_after" not in facts
    assert facts["other_alarms"] == 1
    assert verdict_of([fast] * 30, [fast] * 30, "load", 2)["found_after"] is None
    assert SLOW_LINK > SLOW_RANK > 1


# Codes

COUNT = 4 * codecs.BLOCK


def coded(codec: codecs.Codec, x: Any) -> Any:
    wire = torch.zeros(codec.wire_bytes, dtype=torch.uint8)
    codec.pack(x, wire)
    out = torch.zeros(codec.count)
    codec.add(wire, out)
    return out


def test_top_k_keeps_the_largest_exactly_and_nothing_else() -> None:
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(1))
    codec = codecs.TopK(COUNT, x.device, 0.01)
    out = coded(codec, x)
    assert codec.wire_bytes == 8 * 10
    kept = out != 0
    assert int(kept.sum()) == 10
    assert torch.equal(out[kept], x[kept])
    assert x[kept].abs().min() >= x[~kept].abs().max()
    assert torch.equal(coded(codecs.TopK(COUNT, x.device, 1.0), x), x)


def test_8_bits_err_by_half_a_step_and_signs_by_what_they_say() -> None:
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(2))
    step = x.view(-1, codecs.BLOCK).abs().amax(1, keepdim=True) / 127
    codec = codecs.Int8(COUNT, x.device)
    assert codec.wire_bytes == COUNT + 4 * 4
    assert ((coded(codec, x) - x).view(-1, codecs.BLOCK).abs() <= 0.5001 * step).all()
    signs = codecs.Sign(COUNT, x.device)
    assert signs.wire_bytes == COUNT // 8 + 4 * 4
    want = torch.where(x >= 0, 1.0, -1.0).view(-1, codecs.BLOCK) * x.view(-1, codecs.BLOCK).abs().mean(1, keepdim=True)
    assert torch.allclose(coded(signs, x).view(-1, codecs.BLOCK), want)
    assert torch.equal(coded(codec, torch.zeros(COUNT)), torch.zeros(COUNT))


def test_scalars_of_a_shared_seed_are_unbiased_and_add_up() -> None:
    x = torch.randn(codecs.BLOCK, generator=torch.Generator().manual_seed(3))
    estimates = torch.stack([coded(codecs.Scalars(codecs.BLOCK, x.device, 16, seed), x) for seed in range(200)])
    along = (estimates @ x) / (x @ x)
    # <estimate, x> / |x|^2 has mean 1 and standard deviation sqrt(2 / 16) each; of 200, a fourteenth of that.
    assert float(along.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 16 / 200))
    codec = codecs.Scalars(codecs.BLOCK, x.device, 4, 1)
    wires = torch.zeros((2, codec.wire_bytes), dtype=torch.uint8)
    codec.pack(x, wires[0])
    codec.pack(-3 * x, wires[1])
    out, each = torch.zeros(codecs.BLOCK), torch.zeros(codecs.BLOCK)
    codec.add_all(wires, out)
    for wire in wires:
        codec.add(wire, each)
    assert torch.allclose(out, each, atol=1e-3)


def test_below_which_bandwidth_a_code_pays() -> None:
    assert compressed.break_even(3e6, 1e-3) == pytest.approx(3e9)
    assert compressed.break_even(-5.0, 1e-3) is None  # it sends more


# Layouts

LAYOUTS = [
    {"layout": "vector", "count": 5, "block": 2, "stride": 8},
    {"layout": "face2d", "count": 4, "block": 1, "stride": 6},
    {"layout": "face2d", "count": 3, "block": 2, "stride": 6},
    {"layout": "halo3d", "count": 6, "block": 1, "stride": 64},
    {"layout": "halo3d", "count": 8, "block": 2, "stride": 64},
]


@pytest.mark.parametrize("p", LAYOUTS)
def test_parts_are_apart_from_ghosts_and_as_large(p: dict[str, Any]) -> None:
    shape, sent, ghosts = strided.layout_of(p)
    marks = torch.zeros(shape)
    for part in sent:
        marks[part] += 1
    of_sent = marks > 0
    marks.zero_()
    for ghost in ghosts:
        marks[ghost] += 1
    assert marks.max() == 1  # no element comes in twice
    assert not (of_sent & (marks > 0)).any()
    x = torch.zeros(shape)
    assert [x[a].shape for a in sent] == [x[b].shape for b in ghosts]
    assert sum(x[a].numel() for a in sent) == strided.payload(p)
    assert sum(len(strided.runs(x[a])) for a in sent) == strided.messages(p)
    assert work_of("collectives.strided", {**p, "world_size": 2}).link_bytes["fabric"] == 4 * strided.payload(p)


def test_pieces_by_hand() -> None:
    assert (strided.payload(LAYOUTS[0]), strided.messages(LAYOUTS[0])) == (10, 5)
    assert (strided.payload(LAYOUTS[3]), strided.messages(LAYOUTS[3])) == (3 * 25, 25 + 5 + 5)


# Experts


@given(st.integers(1, 30), st.sampled_from([2, 4]), st.integers(1, 4), st.floats(0, 3), st.integers(0, 99))
def test_every_copy_goes_somewhere_and_experts_of_a_token_differ(
    tokens: int, size: int, top_k: int, skew: float, seed: int
) -> None:
    p = {"tokens": tokens, "experts": 8, "top_k": top_k, "skew": skew}
    experts = moe.routing(p, seed, 1)
    assert experts.shape == (tokens, top_k)
    assert all(len(set(row)) == top_k for row in experts.tolist())
    counts = moe.sent_counts(p, seed, size)
    assert [sum(row) for row in counts] == [tokens * top_k] * size
    assert 1 <= moe.imbalance(counts) <= size


def test_skew_makes_it_uneven() -> None:
    even, skewed = (
        moe.imbalance(moe.sent_counts({"tokens": 4000, "experts": 16, "top_k": 1, "skew": skew}, 3, 4))
        for skew in (0.0, 2.0)
    )
    assert even < 1.1
    assert skewed > 1.5


# Matrix and overlap


def test_the_matrix_names_the_slow_pair() -> None:
    times = dict.fromkeys(matrix.pairs(3, "one"), 1e-3) | {(2, 0): 4e-3}
    facts = matrix.table(times, 3, 2000, "one")
    assert facts["matrix_s"] == [[None, 1e-3, 1e-3], [1e-3, None, 1e-3], [4e-3, 1e-3, None]]
    assert facts["matrix_bytes_per_s"][2] == [5e5, 2e6, None]
    assert facts["slow_pairs"] == [[2, 0]] == [facts["slowest_pair"]]
    assert facts["slowest_over_median"] == 4.0
    both = matrix.table({(0, 1): 1e-3}, 2, 2000, "both")
    assert both["matrix_s"] == [[None, 1e-3], [1e-3, None]]
    assert both["slow_pairs"] == []


def test_overlap_by_hand() -> None:
    assert overlap.efficiency(3.0, 1.0, 3.0) == {"overlap_efficiency": 1.0, "speedup": pytest.approx(4 / 3)}
    assert overlap.efficiency(3.0, 1.0, 4.0)["overlap_efficiency"] == 0.0
    assert overlap.efficiency(3.0, 1.0, 5.0)["overlap_efficiency"] == -1.0


# Work


def test_work_by_hand() -> None:
    def link(op: str, **p: Any) -> float:
        work: Work = work_of(f"collectives.{op}", p)
        return work.link_bytes.get("fabric", 0.0)

    assert link("algorithm", bytes=1000, world_size=4) == 1500
    assert link("p2p_matrix", bytes=1000, world_size=4) == 3000
    assert link("moe", tokens=10, hidden=8, top_k=2, dtype="bf16", world_size=4) == 2 * 10 * 2 * 16 * 3 / 4
    assert link("stragglers", bytes=1000, work=8, world_size=4) == 1500 + 1000
    assert link("compressed", bytes=1000, world_size=4) == 0
    assert work_of("collectives.compressed", {"bytes": 1000, "world_size": 4}).details == {"dense_link_bytes": 1500}
    both = work_of("collectives.overlap", {"m": 4, "n": 5, "k": 6, "dtype": "bf16", "bytes": 800, "world_size": 2})
    assert both.flops == {"bf16": 240}
    assert both.link_bytes["fabric"] == 800
    assert work_of("collectives.stragglers", {"bytes": 8, "work": 8, "world_size": 2}).total_flops == 4 * 2 * 8**3


# Bandwidths


def test_a_bus_bandwidth_above_the_peak_is_kept_and_flagged() -> None:
    case = Case("collectives.all_reduce", "torch", {"world_size": 4, "bytes": 3_000_000})
    facts = bandwidths(case, 3_000_000, 1e-3)
    # 2 (n - 1) / n = 1.5 of 3 GB/s
    assert facts == pytest.approx({"algbw_bytes_per_s": 3e9, "busbw_bytes_per_s": 4.5e9, "busbw_factor": 1.5})
    flag = above_peak(facts, 4.4e9)
    assert flag is not None
    assert flag.code == "above_link_peak"
    assert "4.5 GB/s" in flag.message
    assert "4.4 GB/s" in flag.message
    assert facts["busbw_bytes_per_s"] == pytest.approx(4.5e9)  # not cut to what the link lists


def test_no_bus_bandwidth_is_above_a_peak_that_it_keeps_or_that_nobody_knows() -> None:
    assert above_peak({"busbw_bytes_per_s": 4.4e9}, 4.4e9) is None
    assert above_peak({"busbw_bytes_per_s": 4.4e9}, None) is None
    assert above_peak({}, 1.0) is None  # a barrier has none
