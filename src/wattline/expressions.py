"""Constraints in plan files: small arithmetic and comparisons over a case's parameters, evaluated safely.

``m * n * k <= 2**36 and dtype != 'fp16'`` is read with :mod:`ast` and walked; names are parameters, and
nothing else (no calls but min, max and abs, no attributes, no subscripts) is understood, so a plan file
cannot run code. Arithmetic is for numbers only and its results have a size limit, so that no condition fills
the memory either.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from wattline.errors import ParamError, UsageError, unknown_name
from wattline.params import Value

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_CALLS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}
_MAX_EXPONENT = 128
_MAX_BITS = 4096
_MAX_DEPTH = 100


def evaluate(text: str, values: Mapping[str, Value]) -> bool:
    """Whether the expression holds for these parameters.

    Raises:
        UsageError: it cannot be read, or uses something outside the small language.
        UnknownNameError: it names no parameter.
    """
    tree = _read(text)
    try:
        return bool(_eval(tree.body, values, text))
    except (TypeError, ZeroDivisionError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"cannot evaluate the condition {text!r}", why=str(error), todo="guard it, such as: n > 0 and m/n > 2"
        ) from None


def names_in(text: str) -> set[str]:
    """The names that an expression uses as values, without those of the functions it calls.

    Raises:
        UsageError: it cannot be read.
    """
    tree = _read(text)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}


@lru_cache(maxsize=64)  # a plan asks the same few conditions of every case
def _read(text: str) -> ast.Expression:
    try:
        with warnings.catch_warnings():
            # `1if m else 2` and the like: odd, and either understood or refused when it is evaluated.
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"cannot read the condition {text!r}",
            why=(error.msg if isinstance(error, SyntaxError) else str(error)) if text.strip() else "it is empty",
            todo="write it like 'm*n <= 1e6' or 'dtype == \"bf16\" and k >= 64', within quotes; == compares",
        ) from None
    # Not left to Python's limit of recursion, which libraries raise.
    level: list[ast.AST] = [tree]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tree
    raise UsageError(
        f"the condition {text[:40]!r}... is nested too deeply", why=f"more than {_MAX_DEPTH} levels", todo="shorten it"
    )


def _number(value: Any) -> Any:
    # '%9999999999d' % 5 and 'x' * 10**10 are Python, and would fill the memory.
    if not isinstance(value, int | float):
        raise TypeError(f"arithmetic needs numbers, not {value!r}")
    return value


def _sized(value: Any, text: str) -> Any:
    if isinstance(value, complex):
        raise TypeError("a negative number has no fractional power")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ParamError(f"a number in the condition {text!r} grows too large", todo="compare smaller numbers")
    return value


def _eval(node: ast.expr, values: Mapping[str, Value], text: str) -> Any:
    def rec(child: ast.expr) -> Any:
        return _eval(child, values, text)

    match node:
        case ast.Constant(value=value) if isinstance(value, int | float | str | bool):
            return value
        case ast.Name(id=name):
            if name not in values:
                raise unknown_name("parameter", name, values, where=f" in the condition {text!r}")
            return values[name]
        case ast.BoolOp(op=op, values=parts):
            return all(map(rec, parts)) if isinstance(op, ast.And) else any(map(rec, parts))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not rec(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -rec(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, exponent = _number(rec(left)), _number(rec(right))
            if abs(exponent) > _MAX_EXPONENT:
                raise ParamError(f"an exponent in the condition {text!r} is too large", todo="stay within 128")
            return _sized(base**exponent, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _sized(_BINARY[type(op)](_number(rec(left)), _number(rec(right))), text)
        case ast.Compare(left=first, ops=ops, comparators=rest) if all(type(op) in _COMPARE for op in ops):
            left = rec(first)
            for comparison, node_right in zip(ops, rest, strict=True):
                right = rec(node_right)
                if not _COMPARE[type(comparison)](left, right):
                    return False
                left = right
            return True
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS:
            return _CALLS[name](*map(rec, args))
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            return [rec(e) for e in elts]
    raise UsageError(
        f"the condition {text!r} uses something that conditions do not have",
        why=ast.unparse(node),
        todo="use parameters, numbers, + - * / // % **, comparisons, and, or, not, in, min, max, abs",
    )
