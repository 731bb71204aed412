"""Sizes of messages: the ladder of nccl-tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wattline.errors import ParamError
from wattline.units import parse_int

Size = str | int | float


def ladder(begin: Size = 8, end: Size = "64Mi", factor: Size = 2, step: Size = 0) -> Iterator[dict[str, Any]]:
    """``begin``, then ``factor`` times as much (or ``step`` bytes more) up to and with ``end``, as ``-b -e -f -i`` of
    nccl-tests.

    Raises:
        ParamError: a ladder that never ends.
    """
    size, last, times, plus = parse_int(begin), parse_int(end), parse_int(factor), parse_int(step)
    if size < 1 or (plus < 1 and times < 2):
        raise ParamError(
            "the sizes never end", why=f"from {size} in steps of {plus or f'x{times}'}", todo="take a factor from 2"
        )
    while size <= last:
        yield {"bytes": size}
        size = size + plus if plus else size * times


SIZES: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"ladder": ladder}
"""Shape sources of the collectives."""
