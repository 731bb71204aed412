"""The order of a run: permutation, shares in every prefix, seeds, A/A pairs."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.case import Case
from wattline.run import PlannedCase
from wattline.suites.order import cut, gather, pair_up, spread, van_der_corput

STRATA = st.lists(st.integers(1, 60), min_size=1, max_size=15)


def _items(sizes: list[int]) -> list[tuple[str, int]]:
    return [(f"s{i}", size) for i, count in enumerate(sizes) for size in range(count)]


def _spread(sizes: list[int], seed: int) -> list[tuple[str, int]]:
    return spread(_items(sizes), lambda item: item[0], lambda item: float(item[1]), seed)


def _cases(count: int) -> list[Case]:
    return [Case("gemm.dense", "torch", {"m": i + 1}) for i in range(count)]


def test_van_der_corput_of_eight() -> None:
    assert van_der_corput(8) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert van_der_corput(5) == [0, 4, 2, 1, 3]
    assert van_der_corput(1) == [0]
    assert van_der_corput(0) == []
    assert van_der_corput(8, flip=3) == [3, 7, 1, 5, 2, 6, 0, 4]


@given(st.integers(0, 500), st.integers(0, 2**64))
def test_van_der_corput_is_a_permutation(count: int, flip: int) -> None:
    assert sorted(van_der_corput(count, flip)) == list(range(count))


@given(STRATA, st.integers(0, 2**32))
def test_spread_is_a_permutation_that_the_seed_decides(sizes: list[int], seed: int) -> None:
    order = _spread(sizes, seed)
    assert sorted(order) == sorted(_items(sizes))
    assert order == _spread(sizes, seed)


def test_another_seed_gives_another_order() -> None:
    orders = {tuple(_spread([20, 10, 5], seed)) for seed in range(20)}
    assert len(orders) == 20


@settings(max_examples=200)
@given(STRATA, st.integers(0, 2**32))
def test_every_prefix_holds_each_stratum_in_its_share(sizes: list[int], seed: int) -> None:
    order, total, strata = _spread(sizes, seed), sum(sizes), len(sizes)
    counts: Counter[str] = Counter()
    for length, item in enumerate(order, start=1):
        counts[item[0]] += 1
        if length < 2 * strata:
            continue
        for i, size in enumerate(sizes):
            share = length * size / total
            # Two items of rounding, and what the early start of small strata takes from the large ones.
            assert abs(counts[f"s{i}"] - share) <= 2 + strata * size / total
        assert len(counts) == strata


@given(st.integers(16, 200), st.integers(0, 2**32))
def test_a_prefix_of_one_stratum_spans_its_sizes(count: int, seed: int) -> None:
    first = sorted(size for _, size in _spread([count], seed)[:8])
    gaps = [b - a for a, b in zip([*first[-1:], *first], [*first, first[0]], strict=True)]
    # Eight points on a circle of `count` sizes (the seed turns it): no arc without one longer than 3/8 of it.
    assert max(gap % count for gap in gaps) <= 3 * count / 8


@given(st.integers(1, 80), st.integers(0, 20))
def test_pairs_are_added_and_nothing_is_lost(count: int, pairs: int) -> None:
    order = _cases(count)
    planned = pair_up(order, pairs, lambda case: float(case.params["m"]))
    assert len(planned) == count + min(pairs, count)
    assert len({p.identity for p in planned}) == len(planned)
    assert {p.case for p in planned} == set(order)
    a = {p.case.key: i for i, p in enumerate(planned) if p.variant == "a"}
    b = {p.case.key: i for i, p in enumerate(planned) if p.variant == "b"}
    assert a.keys() == b.keys()
    assert all(a[key] < b[key] for key in a)


def test_pairs_stand_far_apart_and_early_and_are_cheap() -> None:
    order = _cases(90)
    planned = pair_up(order, 4, lambda case: float(case.params["m"] % 9))
    for key in {p.case.key for p in planned if p.variant}:
        a, b = (next(i for i, p in enumerate(planned) if p.identity == (key, v)) for v in "ab")
        assert b - a >= 30
        assert b <= 0.8 * len(planned)
    assert [p.case.params["m"] % 9 for p in planned if p.variant == "a"] == [0, 0, 0, 0]


def test_cases_that_cannot_run_are_never_paired() -> None:
    planned = pair_up(_cases(10), 3, lambda case: float("inf") if case.params["m"] != 7 else 1.0)
    assert [(p.case.params["m"], p.variant) for p in planned if p.variant] == [(7, "a"), (7, "b")]
    assert not any(p.variant for p in pair_up(_cases(3), 2, lambda _: float("inf")))


def test_cut_makes_half_a_pair_an_ordinary_case() -> None:
    one, two = _cases(2)
    whole = [PlannedCase(one, "a"), PlannedCase(two), PlannedCase(one, "b")]
    assert cut(whole, 2) == [PlannedCase(one), PlannedCase(two)]
    assert cut(whole, 3) == whole


@settings(max_examples=200)
@given(STRATA, st.integers(0, 2**32), st.integers(1, 8))
def test_gathering_moves_nothing_out_of_its_stretch_and_changes_groups_seldom(
    sizes: list[int], seed: int, each: int
) -> None:
    order = _spread(sizes, seed)
    gathered = gather(order, lambda item: item[0], seed, each)
    groups = len(sizes)
    stretch = groups * max(1, min(each, len(order) // (4 * groups)))
    parts = range(0, len(order), stretch)
    for begin in parts:
        assert sorted(gathered[begin : begin + stretch]) == sorted(order[begin : begin + stretch])
    changes = sum(one[0] != following[0] for one, following in pairwise(gathered))
    assert changes <= len(parts) * groups - 1  # one more where a stretch lacks the last group of the one before
    assert gathered == gather(order, lambda item: item[0], seed, each)


def test_gathering_by_hand() -> None:
    order = [f"{limit}{i}" for i in range(8) for limit in "abc"]
    gathered = gather(order, lambda item: item[0], 0)  # six of each would be three quarters of it: two
    blocks = [[item[0] for item in gathered[i : i + 2]] for i in range(0, 24, 2)]
    assert all(len(set(block)) == 1 for block in blocks)
    for end in (2, 5, 8):
        assert blocks[end] == blocks[end + 1]  # a stretch begins with what the one before ended with
        assert len({*blocks[end - 2], *blocks[end - 1], *blocks[end]}) == 3
    assert gather([], lambda item: item, 0) == []
    assert gather(order, lambda item: 0, 0) == order
    # Within a block the order is that of before.
    assert all(first[1] <= second[1] for first, second in zip(gathered[::2], gathered[1::2], strict=True))
