"""SI units: reading what a person writes (`8K`, `1G`, `10m`) and writing what a person reads.

Inside, everything is in base units (seconds, joules, watts, bytes, FLOP/s) as plain numbers;
these functions stand at the edge only.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from wattline.errors import ParamError

_DECIMAL = {"": 1, "K": 10**3, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_SUFFIX = _DECIMAL | _BINARY
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|s|m|h)")
_DIGITS = "write digits with an optional suffix K M G T (powers of 1000) or Ki Mi Gi Ti (of 1024)"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_number(text: str | int | float) -> float:
    """A number with an optional SI suffix: ``"8K"`` is 8,000, ``"8Ki"`` 8,192, ``"1.5G"`` 1.5e9.

    Raises:
        ParamError: the text is not a finite number with a known suffix.
    """
    if isinstance(text, bool):
        raise ParamError(f"not a number: {text!r}", todo=_DIGITS)
    try:
        value = float(text if isinstance(text, int | float) else _exact(text))
    except ArithmeticError:  # OverflowError, or one of decimal's
        value = math.inf
    if not math.isfinite(value):
        raise ParamError(f"not a finite number: {shown(text)}", todo=_DIGITS)
    return value


def _exact(text: str) -> Decimal:
    """The number as written: in decimal, because 1.005 * 1000 in binary floating point is not 1005."""
    match = _NUMBER.fullmatch(text)
    suffix = match.group(2) if match else ""
    if match is None or (suffix not in _SUFFIX and suffix.removesuffix("B") not in _SUFFIX):
        raise ParamError(
            f"not a number: {shown(text)}",
            todo=_DIGITS,
        )
    return Decimal(match.group(1)) * _SUFFIX[suffix if suffix in _SUFFIX else suffix.removesuffix("B")]


def shown(text: object) -> str:
    """What was given, shortened: thousands of digits help nobody (and Python refuses to print them)."""
    if isinstance(text, int) and text.bit_length() > 256:
        return f"a whole number of {text.bit_length():,} bits"
    full = repr(text)
    return full if len(full) <= 80 else f"{full[:60]}...{full[-8:]}"


def parse_int(text: str | int | float) -> int:
    """An integer with an optional SI suffix.

    Raises:
        ParamError: not a number, or not a whole one.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if isinstance(text, str) and re.fullmatch(r"\s*[+-]?\d+\s*", text):
        try:
            return int(text)  # exact beyond 2**53
        except ValueError:  # Python reads no more than some thousands of digits
            raise ParamError(f"not a sensible whole number: {shown(text)}", todo=_DIGITS) from None
    number = parse_number(text)  # refuses what is not finite
    exact = _exact(text) if isinstance(text, str) else number
    if exact != int(exact):
        raise ParamError(f"not a whole number: {shown(text)}", todo=_DIGITS)
    return int(exact)


def parse_duration(text: str | int | float) -> float:
    """Seconds from ``"90"``, ``"90s"``, ``"10m"``, ``"1h30m"``, ``"250ms"``.

    Raises:
        ParamError: not a duration, or not above zero.
    """
    if not isinstance(text, str) or re.fullmatch(r"\s*\d+(\.\d*)?\s*", text):
        value = parse_number(text)
    else:
        compact = text.replace(" ", "")
        parts = _DURATION.findall(compact)
        if not parts or "".join(n + u for n, u in parts) != compact:
            raise ParamError(f"not a duration: {text!r}", todo="write seconds, or a unit: 90s, 10m, 1h30m, 250ms")
        value = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not (math.isfinite(value) and value > 0):
        raise ParamError(f"a duration must be above zero: {text!r}", todo="write it like 90s, 10m or 1h")
    return value


PREFIXES = {15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "u", -9: "n"}
"""SI prefixes by power of ten, as :func:`format_si` uses them."""


def format_si(value: float | None, unit: str, *, digits: int = 3) -> str:
    """A value with an SI prefix: ``format_si(1.83e-4, "s")`` is ``"183 us"``; ``None`` and NaN are ``"n/a"``."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0:
        return f"0 {unit}".rstrip()
    # Round first, so that 999.6 us is written 1.00 ms and not 1000 us; in decimal, so that no digit is lost.
    rounded = Decimal(f"{value:.{digits - 1}e}")
    power = min(max(rounded.adjusted() // 3 * 3, min(PREFIXES)), max(PREFIXES))
    if rounded.adjusted() >= max(PREFIXES) + 6:  # far beyond the prefixes nobody counts digits
        return f"{rounded:e} {unit}".rstrip()
    return f"{rounded.scaleb(-power):f} {PREFIXES[power]}{unit}".rstrip()


def format_time(seconds: float | None) -> str:
    """A short time: ``183 us``, ``1.20 ms``, ``2.50 s``."""
    return format_si(seconds, "s")


def format_bytes(count: float | None) -> str:
    """Bytes in powers of 1000: ``1.50 GB``."""
    return format_si(count, "B")


def format_duration(seconds: float) -> str:
    """A wall-clock span: ``45 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if not math.isfinite(seconds):
        return "n/a"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
