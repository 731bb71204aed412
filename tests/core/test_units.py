"""Units: what a person writes is read exactly, and what is shown has the digits it claims."""

from __future__ import annotations

import contextlib
import math
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.units import (
    format_bytes,
    format_duration,
    format_si,
    format_time,
    parse_duration,
    parse_int,
    parse_number,
)

SCALES = {
    "": 1, "K": 10**3, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip
SHOWN = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("8K", 8_000), ("8k", 8_000), ("8Ki", 8_192), ("1.5G", 1.5e9), ("1GiB", 2**30), ("64MB", 64e6),
        ("12B", 12), (".5", 0.5), ("5.", 5), ("-3", -3), ("+3M", 3e6), ("1e3", 1000), ("2.5e-3K", 2.5), ("  7 ", 7),
        ("7 K", 7_000), (2.5, 2.5), (3, 3), ("1Pi", 2**50),
    ],
)  # fmt: skip
def test_numbers_by_hand(text: str | float, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text", ["", " ", "K", "8Q", "8KK", "1,000", "0x10", "nan", "inf", "1e999", "1e99999999999999999999", "--1",
             "1 2", "8_000", True, math.nan, math.inf, 10**400],
)  # fmt: skip
def test_what_is_no_number_is_refused(text: str | float) -> None:
    with pytest.raises(ParamError):
        parse_number(text)


@given(st.integers(-(10**6), 10**6), st.sampled_from(sorted(SCALES)))
@example(8193, "Pi")  # beyond 2**53: exact all the same
def test_a_suffix_multiplies(number: int, suffix: str) -> None:
    assert parse_int(f"{number}{suffix}") == number * SCALES[suffix]
    assert parse_number(f"{number}{suffix}B") == float(number * SCALES[suffix])


@given(st.integers(0, 10**6), st.sampled_from("KMGTP"))
@example(1005, "K")  # 1.005 * 1000 is 1004.9999999999999 in binary floating point
@example(4_350, "K")
def test_decimal_fractions_are_read_exactly(thousandths: int, suffix: str) -> None:
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{suffix}"
    assert parse_int(text) == thousandths * SCALES[suffix] // 1000


@given(st.integers())
def test_plain_integers_are_exact(number: int) -> None:
    assert parse_int(str(number)) == number
    assert parse_int(number) == number


@given(st.text(max_size=12))
def test_no_text_does_anything_but_parse_or_raise_a_param_error(text: str) -> None:
    for parse in (parse_number, parse_int, parse_duration):
        with contextlib.suppress(ParamError):
            assert math.isfinite(parse(text))


@pytest.mark.parametrize("text", ["1.5", "0.3", "1.0005K", True, math.nan, "9" * 5000])
def test_what_is_no_whole_number_is_refused(text: str | float) -> None:
    with pytest.raises(ParamError) as caught:
        parse_int(text)
    assert len(str(caught.value)) < 300  # thousands of digits are not repeated


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (90, 90), (0.5, 0.5), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("80us", 8e-5),
     ("1h 2m 3s", 3723), ("1.5h", 5400), ("2.5", 2.5)],
)  # fmt: skip
def test_durations_by_hand(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5", "5x", "1m30", "m", "inf", "nan", 0, -1, math.nan, math.inf, True]
)
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(ParamError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.83e-4, "183 us"), (1.2e-3, "1.20 ms"), (2.5, "2.50 s"), (0.0, "0 s"),
        # Rounding crosses a prefix, or a power of ten inside one.
        (999.6e-6, "1.00 ms"), (999.4e-6, "999 us"), (9.996e-6, "10.0 us"), (99.96e-6, "100 us"), (0.9996, "1.00 s"),
        (999.6, "1.00 ks"), (1e-5, "10.0 us"), (1e-9, "1.00 ns"), (1e-12, "0.00100 ns"), (-1.83e-4, "-183 us"),
        (1.5e18, "1500 Ps"), (math.nan, "n/a"), (math.inf, "n/a"), (None, "n/a"),
    ],
)  # fmt: skip
def test_times_by_hand(value: float | None, text: str) -> None:
    assert format_time(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1, "1.00 B"), (1500, "1.50 kB"), (1.5e9, "1.50 GB"), (2**30, "1.07 GB")]
)
def test_bytes_by_hand(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_digits_and_unit_are_the_callers() -> None:
    assert format_si(1234.5, "W", digits=5) == "1.2345 kW"
    assert format_si(6.69e13, "FLOP/s", digits=2) == "67 TFLOP/s"
    assert format_si(5, "") == "5.00"


@given(st.floats(1e-9, 9.99e17), st.integers(2, 6), st.sampled_from([1, -1]))
@example(9.995e-6, 3, 1)
@example(999.5e-6, 3, 1)
def test_shown_values_have_their_digits_and_are_the_nearest(value: float, digits: int, sign: int) -> None:
    number, _, unit = format_si(sign * value, "s", digits=digits).partition(" ")
    prefix = unit.removesuffix("s")
    read = abs(Decimal(number)) * Decimal(repr(SHOWN[prefix]))
    assert read == Decimal(f"{value:.{digits - 1}e}")
    assert "e" not in number.lower()
    if prefix != "P":
        # At least one whole digit and never more than three; the significant digits that were asked for.
        assert 1 <= abs(Decimal(number)) < 1000
        assert len(number.lstrip("-").replace(".", "")) == max(digits, len(str(int(abs(Decimal(number))))))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (45, "45 s"), (59.4, "59 s"), (59.7, "1 min 00 s"), (245, "4 min 05 s"), (3599.7, "1 h 00 min"),
     (7380, "2 h 03 min"), (90_000, "25 h 00 min"), (math.inf, "n/a"), (math.nan, "n/a")],
)  # fmt: skip
def test_spans_by_hand(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
