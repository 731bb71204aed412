"""Axes: product times zip, filtered, typed, and bounded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.axes import MAX_CASES, axis_values, expand
from wattline.errors import ParamError, PlanError, RangeError, UnknownNameError, UsageError
from wattline.params import Choice, DType, Flag, Float, Int, Params

SHAPE = Params(
    batch=Int(1), m=Int(), n=Int(1), dtype=DType(default="fp32"), layout=Choice("nn", "nt", "tn"), causal=Flag(),
    share=Float(0.5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "given_", "values"),
    [
        ("m", 8, [8]), ("m", "8:64:x2", [8, 16, 32, 64]), ("m", "1,2", [1, 2]),
        ("m", [1, "4:16:x2", "1K"], [1, 4, 8, 16, 1000]),
        ("dtype", "fp32, bf16", ["fp32", "bf16"]), ("dtype", ["fp32"], ["fp32"]), ("layout", "nn,tn", ["nn", "tn"]),
        ("causal", "true,false", [True, False]), ("causal", [True, False], [True, False]),
        ("share", "0.1,0.5", [0.1, 0.5]), ("share", [0.1, "0.5"], [0.1, 0.5]), ("share", "1:4:x2", [1.0, 2.0, 4.0]),
        ("m", (), []),
    ],
)  # fmt: skip
def test_axis_values_by_hand(name: str, given_: object, values: list[object]) -> None:
    assert axis_values(name, given_, SHAPE[name]) == values


def test_axis_values_are_checked_one_by_one() -> None:
    with pytest.raises(ParamError, match="m must be from 1"):
        axis_values("m", [1, 0], SHAPE["m"])
    with pytest.raises(UnknownNameError, match="fp23"):
        axis_values("dtype", "fp32,fp23", SHAPE["dtype"])
    with pytest.raises(RangeError):
        axis_values("m", "1:10:x1", SHAPE["m"])


def test_product_times_zip_in_order() -> None:
    rows = list(expand(SHAPE, fixed={"batch": 3}, product={"dtype": "fp32,bf16"}, zipped={"m": "1,2", "n": [10, 20]}))
    assert [(r["batch"], r["dtype"], r["m"], r["n"]) for r in rows] == [
        (3, "fp32", 1, 10), (3, "fp32", 2, 20), (3, "bf16", 1, 10), (3, "bf16", 2, 20),
    ]  # fmt: skip
    assert list(rows[0]) == list(SHAPE)  # complete, in declared order


def test_where_drops_combinations() -> None:
    rows = list(expand(SHAPE, product={"m": "1:4:+1", "n": "1:4:+1"}, where=["m <= n", "(m + n) % 2 == 0"]))
    assert [(r["m"], r["n"]) for r in rows] == [(1, 1), (1, 3), (2, 2), (2, 4), (3, 3), (4, 4)]


def test_without_axes_there_is_one_set() -> None:
    assert [row["m"] for row in expand(SHAPE, fixed={"m": 5})] == [5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zipped": {"m": [1, 2], "n": [1, 2, 3]}}, "differ in length"),
        ({"fixed": {"m": 1}, "product": {"m": [1]}}, "'m' is given twice"),
        ({"product": {"m": [1]}, "zipped": {"m": [1]}}, "'m' is given twice"),
        ({"fixed": {"m": 1}, "zipped": {"m": [1]}}, "'m' is given twice"),
        ({"product": {"mm": [1]}}, "unknown parameter of gemm 'mm'"),
        ({"zipped": {"mm": [1]}}, "unknown parameter of gemm 'mm'"),
        ({"fixed": {"m": 1, "mm": 1}}, "unknown parameter of gemm 'mm'"),
        ({"product": {"m": []}}, "'m' has no values"),
        ({"zipped": {"m": []}}, "'m' has no values"),
        ({"fixed": {"m": 1}, "where": ["q > 1"]}, "unknown parameter 'q' in the condition"),
    ],
)  # fmt: skip
def test_wrong_sweeps_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(expand(SHAPE, op="gemm", **arguments))  # type: ignore[arg-type]


def test_zipped_lengths_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        list(expand(SHAPE, zipped={"m": [1, 2], "n": [1, 2, 3]}))
    assert caught.value.why == "m: 2, n: 3"


def test_too_many_combinations_are_refused_before_the_first() -> None:
    sweep = expand(SHAPE, product={"m": "1:1000:+1", "n": "1:1000:+1"})
    with pytest.raises(PlanError, match=r"1,000,000 combinations, more than 200,000"):
        next(sweep)


def test_the_limit_itself_is_allowed_and_comes_one_at_a_time() -> None:
    sweep = expand(SHAPE, product={"m": "1:1000:+1", "n": f"1:{MAX_CASES // 1000}:+1"})
    assert [(r["m"], r["n"]) for r in itertools.islice(sweep, 2)] == [(1, 1), (1, 2)]


_AXIS = st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True)


@given(_AXIS, _AXIS, st.integers(1, 40))
def test_every_combination_that_meets_the_condition_comes_once(ms: list[int], ns: list[int], limit: int) -> None:
    rows = [(r["m"], r["n"]) for r in expand(SHAPE, product={"m": ms, "n": ns}, where=[f"m + n <= {limit}"])]
    assert rows == [(m, n) for m in ms for n in ns if m + n <= limit]
