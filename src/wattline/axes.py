"""Axes: how a few lines of a plan become many parameter sets.

A sweep has fixed values, a ``product`` of axes (every combination), a ``zip`` of axes (element by element)
and conditions that drop combinations; product and zip multiply.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from wattline.errors import PlanError, UsageError
from wattline.expressions import evaluate
from wattline.params import Choice, Flag, Float, Param, Params, Value
from wattline.ranges import MAX_POINTS, parse_range

MAX_CASES = 200_000
"""A sweep of more cases than this is refused: a person who needs it splits it."""


def axis_values(name: str, given: object, param: Param) -> list[Value]:
    """The typed values of one axis: a list, a range (`"8:1G:x2"`), a comma list of words, or one value.

    Raises:
        ParamError: (or a kind of it) a value that the parameter does not take.
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        # Items may themselves be ranges: [1, "2:64:x2"].
        return [v for item in given for v in axis_values(name, item, param)]
    if isinstance(given, str) and isinstance(param, Choice | Flag):
        return [param.parse(word.strip(), name) for word in given.split(",")]
    if isinstance(given, str) and isinstance(param, Float) and ":" not in given:
        return [param.parse(word, name) for word in given.split(",")]
    if isinstance(given, str) and (":" in given or "," in given):
        return [param.parse(value, name) for value in parse_range(given)]
    return [param.parse(given, name)]


def expand(
    params: Params,
    *,
    op: str = "",
    fixed: Mapping[str, object] | None = None,
    product: Mapping[str, object] | None = None,
    zipped: Mapping[str, object] | None = None,
    where: Sequence[str] = (),
) -> Iterator[dict[str, Value]]:
    """All parameter sets of a sweep, typed and complete.

    Args:
        params: the declaration.
        op: named in errors.
        fixed: values that every set shares.
        product: axes combined with each other.
        zipped: axes of equal length that advance together.
        where: conditions (see :mod:`wattline.expressions`) that a set must meet.

    Raises:
        UnknownNameError: an axis that is not declared.
        UsageError: zipped axes of different lengths, an axis given twice, or one without values.
        PlanError: more than :data:`MAX_CASES` combinations.
    """
    fixed, product, zipped = dict(fixed or {}), dict(product or {}), dict(zipped or {})
    for first, second in itertools.combinations((fixed, product, zipped), 2):
        for name in first.keys() & second.keys():
            raise UsageError(f"the axis {name!r} is given twice", todo="keep it in one of fixed, product and zip")
    for name in (*product, *zipped):
        if name not in params:
            params.parse({name: None}, op=op)  # raises with the near spellings
    axes = {name: axis_values(name, given, params[name]) for name, given in product.items()}
    tied = {name: axis_values(name, given, params[name]) for name, given in zipped.items()}
    for name, values in (axes | tied).items():
        if not values:
            raise UsageError(f"the axis {name!r} has no values", todo="give it at least one, or leave it out")
    lengths = {name: len(values) for name, values in tied.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(
            "zipped axes differ in length", why=", ".join(f"{name}: {n}" for name, n in lengths.items())
        )
    count = 1
    for values in axes.values():
        count *= len(values)
    count *= next(iter(lengths.values()), 1)
    if count > MAX_CASES:
        raise PlanError(
            f"the sweep has {count:,} combinations, more than {MAX_CASES:,}", todo="shorten an axis or split the sweep"
        )
    rows = list(zip(*tied.values(), strict=True)) if tied else [()]
    for combination in itertools.product(*axes.values()):
        for row in rows:
            given = {**fixed, **dict(zip(axes, combination, strict=True)), **dict(zip(tied, row, strict=True))}
            typed = params.parse(given, op=op)
            if all(evaluate(condition, typed) for condition in where):
                yield typed


__all__ = ["MAX_CASES", "MAX_POINTS", "axis_values", "expand"]
