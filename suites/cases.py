"""From what a preset and a user say to cases: sweeps expanded, parameters replaced, names and conditions applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from wattline.axes import axis_values, expand
from wattline.case import FILLS, REGIMES, Case
from wattline.errors import UsageError, unknown_name
from wattline.expressions import evaluate, names_in
from wattline.formats import BENCH_FORMATS
from wattline.params import Params, Value
from wattline.suites.presets import Preset, Sweep
from wattline.suites.registry import get, get_implementation

CONDITIONS = ("regime", "data", "impl")
"""What ``set_`` may give besides parameters."""


@dataclass(frozen=True)
class Wanted:
    """What the user narrowed the run to; empty means everything."""

    impls: tuple[str, ...]
    regimes: tuple[str, ...]
    fills: tuple[str, ...]
    dtypes: tuple[str, ...]

    def has(self, case: Case) -> bool:
        """Whether the case is among what was asked for."""
        pairs = ((self.impls, case.impl), (self.regimes, case.regime), (self.fills, case.data))
        return all(not names or name in names for names, name in pairs) and (
            not self.dtypes or case.dtype is None or case.dtype in self.dtypes
        )


def check_wanted(
    ops: Sequence[str], impls: Sequence[str], regimes: Sequence[str], fills: Sequence[str], dtypes: Sequence[str]
) -> Wanted:
    """The names given, each known to at least one of the ops.

    Raises:
        UnknownNameError: one that is not.
    """
    known_impls = {name for op in ops for name in get(op).implementations}
    for kind, names, known, listing in (
        ("implementation", impls, known_impls, "wattline list"),
        ("regime", regimes, REGIMES, "wattline list regimes"),
        ("data fill", fills, FILLS, "wattline list data"),
        ("number format", dtypes, BENCH_FORMATS, "wattline list formats"),
    ):
        for name in names:
            if name not in known:
                raise unknown_name(kind, name, known, listing=listing)
    return Wanted(tuple(impls), tuple(regimes), tuple(fills), tuple(dtypes))


def _params(op: str) -> Params:
    return get(op).workload.params


def explicit_ops(ops: Sequence[str], given: Mapping[str, str], *, named: bool) -> set[str]:
    """The ops whose required parameters are all given.

    Raises:
        UnknownNameError: a parameter that none of the ops has.
    """
    for name in given:
        if name in CONDITIONS or any(name in _params(op) for op in ops):
            continue
        known = {known for op in ops for known in _params(op)} | set(CONDITIONS)
        of = f" of {ops[0]}" if named and len(ops) == 1 else ""
        raise unknown_name(f"parameter{of}", name, known, listing="wattline list")
    return {op for op in ops if not _missing(op, given) and any(name in _params(op) for name in given)}


def _missing(op: str, given: Mapping[str, str]) -> list[str]:
    params = _params(op)
    return [name for name in params if params[name].required and name != "dtype" and name not in given]


def asked_for(op: str, given: Mapping[str, str], wanted: Wanted) -> Iterator[Case]:
    """Every combination of the parameters given."""
    params = _params(op)
    axes: dict[str, object] = {name: value for name, value in given.items() if name in params}
    if "dtype" in params and "dtype" not in axes:
        axes["dtype"] = list(wanted.dtypes or ("fp32",))
    impls = _condition(given, "impl") or wanted.impls or ("torch",)
    known = get(op).implementations
    if not wanted.impls and "impl" not in given and "torch" not in known:
        impls = tuple(known)
    regimes = _condition(given, "regime") or wanted.regimes or (get(op).workload.regime,)
    fills = _condition(given, "data") or wanted.fills or ("uniform",)
    for impl in impls:
        get_implementation(op, impl)
    for values in expand(params, op=op, product=axes):
        for impl in impls:
            for regime in regimes:
                for fill in fills:
                    yield Case(op, impl, values, regime, fill)


def _condition(given: Mapping[str, str], name: str) -> tuple[str, ...]:
    value = given.get(name)
    if value is None:
        return ()
    words = value.split(",") if isinstance(value, str) else [str(word) for word in value]
    return tuple(word.strip() for word in words)


def from_preset(
    op: str, preset: Preset, given: Mapping[str, str], wanted: Wanted, *, needed: bool
) -> Iterator[tuple[Case, str]]:
    """The preset's cases of an op, with what is given replaced."""
    sweeps = [sweep for sweep in preset.sweeps if sweep.op == op]
    if not sweeps and needed:
        missing = ", ".join(_missing(op, given))
        raise UsageError(
            f"the preset {preset.name} has no cases of {op} to change, and parameters are missing for new ones",
            why=f"missing: {missing}",
            todo=f"add --set for {missing}, or choose a preset that has {op}",
        )
    params = _params(op)
    replaced: dict[str, list[Value]] = {
        name: axis_values(f"{name} of {op}", value, params[name]) for name, value in given.items() if name in params
    }
    conditions: dict[str, tuple[str, ...]] = {
        name: _condition(given, name) for name in CONDITIONS if _condition(given, name)
    }
    for sweep in sweeps:
        for case in _sweep_cases(sweep, preset):
            for changed in _replaced(case, replaced, conditions):
                if wanted.has(changed):
                    yield changed, sweep.name


def _replaced(
    case: Case, values: Mapping[str, list[Value]], conditions: Mapping[str, tuple[str, ...]]
) -> Iterator[Case]:
    if not values and not conditions:
        yield case
        return
    params = _params(case.op)
    for combination in product(*values.values()):
        typed = params.parse({**case.params, **dict(zip(values, combination, strict=True))}, op=case.op)
        changed = replace(case, params=typed)
        for words in product(*conditions.values()):
            chosen = dict(zip(conditions, words, strict=True))
            yield replace(
                changed,
                impl=chosen.get("impl", case.impl),
                regime=chosen.get("regime", case.regime),
                data=chosen.get("data", case.data),
            )


def _sweep_cases(sweep: Sweep, preset: Preset) -> Iterator[Case]:
    """All cases of one sweep: shapes x (product, zip) x implementations x regimes x fills."""
    workload = get(sweep.op).workload
    for impl in sweep.impl:
        get_implementation(sweep.op, impl)
    shapes: Iterable[dict[str, Any]] = [{}]
    if sweep.shapes:
        arguments = dict(sweep.shapes)
        source = arguments.pop("source", None)
        if not isinstance(source, str):
            raise UsageError(
                f"the shapes of sweep {sweep.name} of preset {preset.name} name no source",
                todo=f"write source = one of: {', '.join(workload.shape_sources)}",
            )
        try:
            shapes = list(workload.shapes(source, **arguments))
        except TypeError as error:  # an argument that the source does not take
            raise UsageError(
                f"sweep {sweep.name} of preset {preset.name}: wrong arguments for the shape source {source!r}",
                why=str(error),
                todo="see docs/workloads.md for what each source takes",
            ) from None
    for shape in shapes:
        fixed = {**shape, **sweep.fixed}
        for name in (*sweep.product, *sweep.zip):
            if name in shape:
                raise UsageError(
                    f"sweep {sweep.name} of preset {preset.name}: {name!r} comes from its shapes already",
                    todo="take it out of product and zip, or the shapes out of the sweep",
                )
        for values in expand(
            workload.params, op=sweep.op, fixed=fixed, product=sweep.product, zipped=sweep.zip, where=sweep.where
        ):
            for impl in sweep.impl:
                for regime in sweep.regime:
                    for fill in sweep.data:
                        yield Case(sweep.op, impl, values, regime, fill)


class Conditions:
    """The conditions of ``only``; one that names a parameter of another op only drops the case."""

    def __init__(self, texts: Sequence[str], ops: Sequence[str]) -> None:
        known = {name for op in ops for name in _params(op)} | {"op", *CONDITIONS}
        self._texts = [(text, names_in(text)) for text in texts]
        for text, used in self._texts:
            for name in used - known:
                raise unknown_name("parameter", name, known, where=f" in the condition {text!r}")

    def hold(self, case: Case) -> bool:
        """Whether the case meets all of them."""
        values: dict[str, Value] = {**case.params, "op": case.op, "impl": case.impl}
        values |= {"regime": case.regime, "data": case.data}
        return all(used <= values.keys() and evaluate(text, values) for text, used in self._texts)
