"""Ranges: `8:1G:x2`, `0:100:+10`, lists, and every way of never ending."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import RangeError
from wattline.ranges import MAX_POINTS, parse_range


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8", [8]), (8, [8]), ("8K", [8000]), ("1,2,4", [1, 2, 4]), ("4,1,4,2", [4, 1, 2]), (" 1 , 2 ", [1, 2]),
        ("8:64:x2", [8, 16, 32, 64]), ("8:100:x2", [8, 16, 32, 64]), ("8:64", [8, 16, 32, 64]), ("5:5", [5]),
        ("0:100:+25", [0, 25, 50, 75, 100]), ("0:90:+25", [0, 25, 50, 75]), ("-4:4:+4", [-4, 0, 4]),
        ("1:10:x1.5", [1, 2, 3, 5, 8]), ("1,4:16:x2,100:102:+1", [1, 4, 8, 16, 100, 101, 102]),
        ("1Ki:4Ki:x2", [1024, 2048, 4096]), ("0:0:+1", [0]), ("1:1000:x10", [1, 10, 100, 1000]),
    ],
)  # fmt: skip
def test_by_hand(text: str | int, values: list[int]) -> None:
    assert parse_range(text) == values


def test_the_doubling_that_everyone_writes() -> None:
    values = parse_range("8:1G:x2")
    assert values[0] == 8
    assert values[-1] == 2**29  # the last power of two below 1e9
    assert len(values) == 27
    assert parse_range("8:1Gi:x2")[-1] == 2**30


@pytest.mark.parametrize("text", ["1:100:x1", "1:100:x0.5", "1:100:x0", "1:100:x-2", "0:100:x2", "-1:8:x2", "0:100",
                                  "0:100:+0", "0:100:+-5"])  # fmt: skip
def test_a_range_that_never_ends_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(RangeError, match="never ends") as caught:
        parse_range(text)
    assert "never passes" in caught.value.why
    assert caught.value.todo


@pytest.mark.parametrize("text", ["0:1G:+1", "1:100000:x1.00001", f"1:{MAX_POINTS + 1}:+1", "0:1G:+1,5"])
def test_too_many_points_are_refused_at_once(text: str) -> None:
    with pytest.raises(RangeError, match="more than 100,000 points"):
        parse_range(text)


def test_the_limit_counts_all_parts_together() -> None:
    assert len(parse_range(f"1:{MAX_POINTS}:+1")) == MAX_POINTS
    with pytest.raises(RangeError, match="points"):
        parse_range(f"1:{MAX_POINTS}:+1,200000:200001:+1")


@pytest.mark.parametrize("text", ["1:1e300:x1e200", "1:2:x1e999", f"{10**400}:{10**401}:x2", f"1:{2**63 + 1}:x2",
                                  "9" * 5000, "1:1e19:x1e18"])  # fmt: skip
def test_huge_ends_are_an_error_and_no_overflow(text: str) -> None:
    with pytest.raises(RangeError):
        parse_range(text)


def test_a_step_beyond_every_float_ends_after_the_first_point() -> None:
    assert parse_range(f"{2**62}:{2**63}:x1e300") == [2**62]


@pytest.mark.parametrize("text", ["", ",", "1,,2", "1,", "a", "1:b", "1:2:3", "1:2:*2", "1:2:x", "1:2:+", "1:2:3:4",
                                  "1.5", "1:2.5", "0:10:+0.5", "x2", ":", "1:", "::x2"])  # fmt: skip
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(RangeError):
        parse_range(text)


def test_a_range_that_runs_backwards_says_so() -> None:
    with pytest.raises(RangeError, match="ends before it starts"):
        parse_range("100:8:x2")


@given(st.integers(-1000, 1000), st.integers(0, 2000), st.integers(1, 500))
def test_adding_is_pythons_range(start: int, length: int, step: int) -> None:
    assert parse_range(f"{start}:{start + length}:+{step}") == list(range(start, start + length + 1, step))


@given(st.integers(1, 1000), st.integers(0, 10**9), st.sampled_from(["1.1", "1.5", "2", "3", "10"]))
def test_multiplying_grows_strictly_within_its_ends(start: int, length: int, factor: str) -> None:
    stop = start + length
    values = parse_range(f"{start}:{stop}:x{factor}")
    assert values[0] == start
    assert all(a < b for a, b in itertools.pairwise(values))
    assert values[-1] <= stop
    # One more step would have passed the end (half a unit is the rounding of earlier steps).
    assert (values[-1] + 0.5) * float(factor) > stop - 0.5


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_a_list_keeps_its_order_and_drops_repeats(values: list[int]) -> None:
    assert parse_range(",".join(map(str, values))) == list(dict.fromkeys(values))


@given(st.text("0123456789:,x+-.KMG ", max_size=14))
def test_any_text_gives_a_list_or_a_range_error(text: str) -> None:
    try:
        values = parse_range(text)
    except RangeError:
        return
    assert values
    assert len(set(values)) == len(values) <= MAX_POINTS
