"""Declared parameters of an operation: typed, with defaults, limits and constraints.

A workload declares its parameters once; plans, records, frames and predictors read the same declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from wattline.errors import ParamError, UnknownNameError, unknown_name
from wattline.formats import BENCH_FORMATS, FORMATS, unknown_format
from wattline.units import parse_int, parse_number, shown

Value = int | float | str | bool
"""What a parameter may hold: what JSON, Parquet and a command line can all carry unharmed."""

ABSURD = 2**50
"""No integer parameter goes beyond this: a larger size is a slip of the pen."""


_LONGEST_TEXT = 1000
_WITHIN = "give a number within"


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()
"""Default of a parameter that the caller must give."""


@dataclass(frozen=True)
class Param:
    """One declared parameter. Subclasses say what values it takes."""

    default: Value | _Required = REQUIRED
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether the caller must give a value."""
        return isinstance(self.default, _Required)

    def parse(self, value: object, name: str) -> Value:
        """The typed value, or a :class:`ParamError` that names the parameter."""
        raise NotImplementedError

    def describe(self) -> str:
        """The values it takes, for `wattline list`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Int(Param):
    """A whole number in ``[lo, hi]``."""

    lo: int = 1
    hi: int = ABSURD

    def parse(self, value: object, name: str) -> int:
        """See :meth:`Param.parse`."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ParamError(f"{name} must be a whole number, not {value!r}")
        try:
            number = parse_int(value)
        except ParamError as error:
            raise ParamError(f"{name} must be a whole number", why=error.what, todo=error.todo) from None
        if not self.lo <= number <= self.hi:
            raise ParamError(f"{name} must be from {self.lo} to {self.hi}, not {shown(number)}", todo=_WITHIN)
        return number

    def describe(self) -> str:
        """See :meth:`Param.describe`."""
        return f"int >= {self.lo}"


@dataclass(frozen=True)
class Float(Param):
    """A finite number in ``[lo, hi]``."""

    lo: float = 0.0
    hi: float = 1e30

    def parse(self, value: object, name: str) -> float:
        """See :meth:`Param.parse`."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ParamError(f"{name} must be a number, not {value!r}")
        try:
            number = parse_number(value)
        except ParamError as error:
            raise ParamError(f"{name} must be a number", why=error.what, todo=error.todo) from None
        if not self.lo <= number <= self.hi:
            raise ParamError(f"{name} must be from {self.lo:g} to {self.hi:g}, not {number:g}", todo=_WITHIN)
        return number

    def describe(self) -> str:
        """See :meth:`Param.describe`."""
        return f"{self.lo:g} <= float <= {self.hi:g}"


@dataclass(frozen=True)
class Choice(Param):
    """One of a few words; the first is the default unless another is named."""

    values: tuple[str, ...] = ()

    def __init__(self, *values: str, default: str | _Required | None = None, doc: str = "") -> None:
        if not values:
            raise ParamError("a Choice needs at least one value")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "default", values[0] if default is None else default)
        object.__setattr__(self, "doc", doc)

    def parse(self, value: object, name: str) -> str:
        """See :meth:`Param.parse`."""
        if value not in self.values:
            raise unknown_name(f"value of {name}", value, self.values)
        return str(value)

    def describe(self) -> str:
        """See :meth:`Param.describe`."""
        return "|".join(self.values)


@dataclass(frozen=True)
class Text(Param):
    """Any word or path of printable characters, such as a folder."""

    def parse(self, value: object, name: str) -> str:
        """See :meth:`Param.parse`."""
        if not isinstance(value, str) or not value or not value.isprintable() or len(value) > _LONGEST_TEXT:
            raise ParamError(f"{name} must be a word of at most {_LONGEST_TEXT} printable characters, not {value!r}")
        return value

    def describe(self) -> str:
        """See :meth:`Param.describe`."""
        return "text"


class DType(Choice):
    """A number format by its name (`fp32`, `bf16` ...); required unless a default is named."""

    def __init__(self, *values: str, default: str | None = None, doc: str = "") -> None:
        super().__init__(*(values or BENCH_FORMATS), default=REQUIRED if default is None else default, doc=doc)

    def parse(self, value: object, name: str) -> str:
        """See :meth:`Param.parse`."""
        if not isinstance(value, str) or (value not in FORMATS and value not in self.values):
            raise unknown_format(value)
        return super().parse(value, name)


@dataclass(frozen=True)
class Flag(Param):
    """True or false."""

    default: Value | _Required = False

    def parse(self, value: object, name: str) -> bool:
        """See :meth:`Param.parse`."""
        if isinstance(value, bool):
            return value
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise ParamError(f"{name} must be true or false, not {value!r}", todo=f"write {name}=true or {name}=false")

    def describe(self) -> str:
        """See :meth:`Param.describe`."""
        return "true|false"


@dataclass(frozen=True)
class Constraint:
    """A rule between parameters.

    Attributes:
        text: the rule in words, shown when it is broken.
        holds: whether typed parameters obey it.
    """

    text: str
    holds: Callable[[Mapping[str, Value]], bool]


class Params:
    """The parameters of one operation, in declared order.

    Example:
        >>> shape = Params(batch=Int(1), m=Int(), n=Int(), k=Int(), dtype=DType("fp32", "bf16"))
        >>> shape.parse({"m": "4K", "n": 8, "k": 8, "dtype": "fp32"})
        {'batch': 1, 'm': 4000, 'n': 8, 'k': 8, 'dtype': 'fp32'}
    """

    def __init__(self, *constraints: Constraint, **declared: Param) -> None:
        self.constraints = constraints
        self.declared: dict[str, Param] = declared

    def __iter__(self) -> Iterator[str]:
        return iter(self.declared)

    def __contains__(self, name: object) -> bool:
        return name in self.declared

    def __getitem__(self, name: str) -> Param:
        return self.declared[name]

    def parse(self, given: Mapping[str, object], *, op: str = "") -> dict[str, Value]:
        """All parameters, typed, defaults filled in, in declared order.

        Raises:
            UnknownNameError: a parameter or a value that is not declared.
            ParamError: a value outside its limits, a missing one, or a broken constraint.
        """
        where = f" of {op}" if op else ""
        for name in given:
            if name not in self.declared:
                raise unknown_name(f"parameter{where}", name, self.declared, listing=f"wattline list {op}".rstrip())
        typed: dict[str, Value] = {}
        for name, param in self.declared.items():
            if name in given and given[name] is not None:
                try:
                    typed[name] = param.parse(given[name], name)
                except UnknownNameError:
                    if not isinstance(param, Choice) or not op:
                        raise
                    raise unknown_name(f"value of {name}", given[name], param.values, where=where) from None
            elif isinstance(param.default, _Required):
                raise ParamError(f"parameter {name!r}{where} is missing", todo=f"give {name}={param.describe()}")
            else:
                typed[name] = param.default
        for rule in self.constraints:
            if not rule.holds(typed):
                shown = ", ".join(f"{k}={v}" for k, v in typed.items())
                raise ParamError(f"parameters{where} break a rule: {rule.text}", why=shown, todo="change one of them")
        return typed
