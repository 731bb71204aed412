"""Ranges as a person writes them: ``8:1G:x2``, ``0:100:+10``, ``128,256,512``.

``start:stop:xF`` multiplies by ``F`` and ``start:stop:+S`` adds ``S``; both ends are included when the
steps reach them. ``start:stop`` alone doubles (the field's habit for sizes). Lists and ranges mix:
``1,2,4:64:x2``.
"""

from __future__ import annotations

from wattline.errors import ParamError, RangeError
from wattline.units import parse_int, parse_number

MAX_POINTS = 100_000
"""A range of more points than this is taken for a slip of the pen and refused."""

_LARGEST = 2**63


def parse_range(text: str | int | float) -> list[int]:
    """The integers that ``text`` names, in the order written, repeats removed.

    Raises:
        RangeError: the range cannot be read, never ends, runs the wrong way or has too many points.
    """
    if not isinstance(text, str):
        return [parse_int(text)]
    values: list[int] = []
    for part in text.split(","):
        values.extend(_one(part.strip(), text))
        if len(values) > MAX_POINTS:
            raise _too_many(text)
    return list(dict.fromkeys(values))


def _one(part: str, whole: str) -> list[int]:
    if not part:
        raise RangeError(f"empty item in {whole!r}", todo="separate values by single commas")
    fields = part.split(":")
    try:
        if len(fields) == 1:
            return [parse_int(part)]
        if len(fields) not in (2, 3):
            raise RangeError(f"cannot read the range {part!r}", todo="write start:stop:xF or start:stop:+S")
        start, stop = parse_int(fields[0]), parse_int(fields[1])
        step = fields[2].strip() if len(fields) == 3 else "x2"
        if step[:1] not in ("x", "+"):
            raise RangeError(f"cannot read the step {step!r} of {part!r}", todo="write x2 to double or +64 to add")
        if max(abs(start), abs(stop)) > _LARGEST:
            raise RangeError(f"a range in {whole[:80]!r} reaches beyond 2**63", todo="use smaller ends")
        if start > stop:
            raise RangeError(f"the range {part!r} ends before it starts", todo="put the smaller number first")
        return _multiply(start, stop, step[1:], part) if step[0] == "x" else _add(start, stop, step[1:], part)
    except RangeError:
        raise
    except ParamError as error:
        raise RangeError(f"cannot read the range {part!r}", why=error.what, todo=error.todo) from None


def _multiply(start: int, stop: int, step: str, part: str) -> list[int]:
    factor = parse_number(step)
    if factor <= 1 or start <= 0:
        raise RangeError(
            f"the range {part!r} never ends",
            why=f"multiplying {start} by {factor:g} never passes {stop}",
            todo="use a factor above 1 and a start above 0",
        )
    values, exact = [], float(start)
    while exact <= stop + 0.5 and round(exact) <= stop:  # the first half also ends an overflow to infinity
        values.append(round(exact))
        exact *= factor
        if len(values) > MAX_POINTS:
            raise _too_many(part)
    return list(dict.fromkeys(values))  # small fractional factors round to the same integer


def _add(start: int, stop: int, step: str, part: str) -> list[int]:
    increment = parse_int(step)
    if increment <= 0:
        raise RangeError(
            f"the range {part!r} never ends", why=f"adding {increment} never passes {stop}", todo="use a step above 0"
        )
    if (stop - start) // increment >= MAX_POINTS:
        raise _too_many(part)
    return list(range(start, stop + 1, increment))


def _too_many(text: str) -> RangeError:
    return RangeError(f"the range {text!r} has more than {MAX_POINTS:,} points", todo="widen its step")
