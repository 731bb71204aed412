"""Conditions in plan files: Python's arithmetic, and nothing that runs code or fills the memory."""

from __future__ import annotations

import contextlib
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError, UsageError
from wattline.expressions import evaluate, names_in

VALUES = {"m": 64, "n": 100, "share": 0.25, "dtype": "bf16", "causal": True}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("m * n <= 2**13", True), ("m == n", False), ("m < n < 200", True), ("m < n < 100", False),
        ("dtype in ('bf16', 'fp16')", True), ("dtype not in ['bf16']", False), ("dtype != 'fp32' and causal", True),
        ("not causal", False), ("m % 16 == 0", True), ("n // 3 == 33", True), ("n / 8 == 12.5", True),
        ("min(m, n) == 64 and max(m, n, 1000) == 1000", True), ("abs(m - n) == 36", True), ("-m == 0 - 64", True),
        ("share <= 0.25 or m > 1000", True), ("m", True), ("m - 64", False), ("2 ** -1 == 0.5", True),
    ],
)  # fmt: skip
def test_by_hand(text: str, holds: bool) -> None:
    assert evaluate(text, VALUES) is holds


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "open('/etc/passwd')", "m.real", "dtype.upper()", "dtype[0]",
        "[x for x in m]",
        "lambda: 1", "(m := 3)", "m if n else 1", "{1: 2}", "f'{m}'", "print", "min(*[1, 2])", "min(1, key=abs)",
        "abs.__class__", "eval('1')", "m @ n", "m | n", "m << 3", "~m", "b'x' == 1", "None", "1j", "...", "m is 64",
        "dtype is not m", "exec", "await m", "min(m, n)(1)",
    ],
)  # fmt: skip
def test_what_is_outside_the_language_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        evaluate(text, VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "2 ** 10000000000", "9 ** 129", "(9 ** 128) ** 128", "((((9**99)**99)**99)**99)**99 > 1", "2 ** -129",
        "'x' * 10 ** 12", "'%9999999999d' % 5", "dtype * m", "[1] * 10 ** 12", "dtype + dtype",
        " * ".join(["(2**120)"] * 60), "2.5 ** 'a'", "10.0 ** 128 ** 128", "(-8) ** 0.5",
    ],
)  # fmt: skip
def test_what_would_fill_the_memory_is_refused_at_once(text: str) -> None:
    with pytest.raises(UsageError):
        evaluate(text, VALUES)


@pytest.mark.parametrize(
    "text",
    ["", "m <", "m n", "(m", "'", "\0", "m;n", "m = 3", "not " * 700 + "m", "-" * 3000 + "m",
     "(" * 500 + "m" + ")" * 500, "+".join(["m"] * 700), "9" * 6000],
    ids=lambda text: repr(text[:10]),
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        evaluate(text, VALUES)


@pytest.mark.parametrize(
    "text", ["m / 0", "m % 0", "m // 0", "0 ** -1", "m < 'a'", "'a' in m", "-dtype", "min()", "min(m)"]
)
def test_what_has_no_value_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(UsageError, match="cannot evaluate") as caught:
        evaluate(text, VALUES)
    assert caught.value.why


def test_an_unknown_name_shows_the_near_ones() -> None:
    with pytest.raises(UnknownNameError) as caught:
        evaluate("shar < 1", VALUES)
    assert "share" in caught.value.why


def test_an_exponent_beyond_the_limit_names_it() -> None:
    assert evaluate("2 ** 128 > 1", {})
    with pytest.raises(ParamError, match="exponent"):
        evaluate("2 ** 129 > 1", {})


# A small grammar in which Python itself is the reference: numbers below comparisons below and/or/not.
_NUMBERS = st.recursive(
    st.sampled_from(["m", "n", "k", "0", "1", "2", "7", "1.5", "64"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(lambda t: f"({' '.join(t)})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        inner.map(lambda text: f"(-{text})"),
        inner.map(lambda text: f"abs({text})"),
        inner.map(lambda text: f"({text} ** 2)"),
    ),
    max_leaves=8,
)
_CONDITIONS = st.recursive(
    st.tuples(_NUMBERS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), _NUMBERS).map(" ".join),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({' '.join(t)})"),
        inner.map(lambda text: f"(not ({text}))"),
    ),
    max_leaves=4,
)


@given(_CONDITIONS, st.integers(-100, 100), st.integers(0, 10**6), st.floats(-1e6, 1e6))
def test_agrees_with_python(text: str, m: int, n: int, k: float) -> None:
    values = {"m": m, "n": n, "k": k}
    try:
        expected = bool(eval(text, {"__builtins__": {"min": min, "max": max, "abs": abs}}, dict(values)))
    except (ZeroDivisionError, OverflowError):
        with pytest.raises(UsageError):
            evaluate(text, values)
    else:
        assert evaluate(text, values) is expected


@given(st.text("mn()<>=+-*/%,'[] 0123456789.andornti_", max_size=30))
def test_any_text_gives_a_verdict_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert evaluate(text, VALUES) in (True, False)


def test_the_names_of_a_condition_are_those_of_values_and_odd_spelling_prints_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names_in("min(m, 2*n) <= 8 and dtype != 'k'") == {"m", "n", "dtype"}
        assert names_in("1if m else 2") == {"m"}  # Python warns of the missing space
    with pytest.raises(UsageError, match="cannot read the condition"):
        names_in("m <")
