"""Declared parameters: types, limits, defaults, rules between them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError
from wattline.formats import BENCH_FORMATS, FORMATS, WIDER, number_format
from wattline.params import ABSURD, Choice, Constraint, DType, Flag, Float, Int, Params

SHAPE = Params(
    Constraint("k is at most m", lambda p: p["k"] <= p["m"]),
    batch=Int(1), m=Int(), k=Int(), dtype=DType("fp32", "bf16"), share=Float(0.5, lo=0.0, hi=1.0),
    causal=Flag(), layout=Choice("nn", "nt"),
)  # fmt: skip


def test_defaults_are_filled_in_in_declared_order() -> None:
    typed = SHAPE.parse({"dtype": "fp32", "k": "1K", "m": 4000})
    assert list(typed.items()) == [
        ("batch", 1), ("m", 4000), ("k", 1000), ("dtype", "fp32"), ("share", 0.5), ("causal", False), ("layout", "nn"),
    ]  # fmt: skip
    assert list(SHAPE) == list(typed)
    assert "m" in SHAPE
    assert "q" not in SHAPE
    assert SHAPE["m"].required
    assert not SHAPE["batch"].required


def test_none_means_not_given() -> None:
    assert SHAPE.parse({"m": 1, "k": 1, "dtype": "fp32", "batch": None})["batch"] == 1
    with pytest.raises(ParamError, match="'m' of gemm is missing"):
        SHAPE.parse({"m": None, "k": 1, "dtype": "fp32"}, op="gemm")


def test_an_unknown_parameter_shows_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown parameter of gemm 'batches'") as caught:
        SHAPE.parse({"batches": 1}, op="gemm")
    assert "batch" in caught.value.why
    assert "wattline list gemm" in caught.value.todo


def test_a_broken_rule_shows_the_values() -> None:
    with pytest.raises(ParamError, match="k is at most m") as caught:
        SHAPE.parse({"m": 4, "k": 5, "dtype": "fp32"})
    assert "m=4, k=5" in caught.value.why


@pytest.mark.parametrize(("given_", "typed"), [(8, 8), ("8", 8), ("8K", 8000), (8.0, 8), ("1e3", 1000)])
def test_integers(given_: object, typed: int) -> None:
    value = Int().parse(given_, "m")
    assert (value, type(value)) == (typed, int)


@pytest.mark.parametrize("given_", [0, -1, "0", "-8", 1.5, "1.5", True, False, None, [], "abc", "", math.nan, math.inf,
                                    2**60, "1e30", "1P5", 10**400, "9" * 5000])  # fmt: skip
def test_bad_integers_are_refused_by_name(given_: object) -> None:
    with pytest.raises(ParamError, match=r"^size ") as caught:
        Int().parse(given_, "size")
    assert len(str(caught.value)) < 400


def test_absurd_sizes_are_a_slip_of_the_pen() -> None:
    assert Int().parse(ABSURD, "m") == ABSURD
    with pytest.raises(ParamError, match="must be from 1 to"):
        Int().parse(ABSURD + 1, "m")
    assert Int(lo=0, hi=4).parse(0, "x") == 0
    with pytest.raises(ParamError, match="from 0 to 4, not 5"):
        Int(lo=0, hi=4).parse(5, "x")


@pytest.mark.parametrize("given_", [-0.1, 1.1, True, None, "x", math.nan, 10**400, [0.5]])
def test_bad_floats_are_refused_by_name(given_: object) -> None:
    with pytest.raises(ParamError, match=r"^density "):
        Float(lo=0, hi=1).parse(given_, "density")


def test_floats_take_whole_numbers_and_suffixes() -> None:
    assert Float().parse(3, "x") == 3.0
    assert isinstance(Float().parse(3, "x"), float)
    assert Float().parse("1.5K", "x") == 1500.0


def test_choices() -> None:
    layout = Choice("nn", "nt", "tn")
    assert layout.default == "nn"
    assert Choice("a", "b", default="b").default == "b"
    assert layout.parse("tn", "layout") == "tn"
    assert layout.describe() == "nn|nt|tn"
    with pytest.raises(UnknownNameError, match="unknown value of layout 'mm'"):
        layout.parse("mm", "layout")
    with pytest.raises(ParamError):
        Choice()


@pytest.mark.parametrize(("given_", "typed"), [(True, True), (False, False), ("true", True), ("No", False), (1, True),
                                               (0, False), ("YES", True)])  # fmt: skip
def test_flags(given_: object, typed: bool) -> None:
    assert Flag().parse(given_, "causal") is typed


@pytest.mark.parametrize("given_", ["maybe", 2, None, ""])
def test_bad_flags(given_: object) -> None:
    with pytest.raises(ParamError, match="causal must be true or false"):
        Flag().parse(given_, "causal")


def test_formats_are_required_and_checked_twice() -> None:
    dtype = DType("fp32", "bf16")
    assert dtype.required
    assert DType(default="fp32").values == BENCH_FORMATS
    with pytest.raises(UnknownNameError, match="unknown number format 'fp23'") as caught:
        dtype.parse("fp23", "dtype")
    assert "fp32" in caught.value.why
    # A format that exists, but that this operation does not take, is another fault.
    with pytest.raises(UnknownNameError, match="unknown value of dtype 'fp64'"):
        dtype.parse("fp64", "dtype")


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers())))
def test_anything_at_all_is_typed_or_refused(value: object) -> None:
    for param, kind in ((Int(), int), (Float(), float), (Choice("a"), str), (DType(), str), (Flag(), bool)):
        try:
            assert type(param.parse(value, "x")) is kind
        except ParamError:
            pass
        except UnknownNameError:
            assert kind is str


@given(st.integers(1, ABSURD), st.integers(1, ABSURD), st.sampled_from(["fp32", "bf16"]), st.floats(0, 1))
def test_parsing_what_was_parsed_changes_nothing(m: int, batch: int, dtype: str, share: float) -> None:
    once = SHAPE.parse({"m": m, "k": 1, "batch": str(batch), "dtype": dtype, "share": share})
    assert SHAPE.parse(once) == once


def test_the_table_of_formats_hangs_together() -> None:
    for name, fmt in FORMATS.items():
        assert fmt.name == name
        assert fmt.bytes * 8 == fmt.bits
        assert (fmt.tolerance == 0) == (fmt.kind == "int")
    for fmt_name, wider in WIDER.items():
        assert fmt_name not in wider
    assert number_format("bf16").bytes == 2
    for unknown in ("fp33", None, [], 8):
        with pytest.raises(UnknownNameError):
            number_format(unknown)  # type: ignore[arg-type]
