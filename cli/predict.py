"""`wattline predict`: what an operation will cost."""

from __future__ import annotations

import csv as csv_module
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from wattline.case import FILLS, REGIMES
from wattline.cli.options import JsonOption, QuietOption, assignments, parameters
from wattline.cli.output import emit_json
from wattline.errors import DataError, UsageError, WattlineError, storage_error, unknown_name

if TYPE_CHECKING:
    from wattline.predictors.estimate import Estimate
    from wattline.predictors.planning.choices import Choice
    from wattline.predictors.predictor import KernelPredictor

EXAMPLES = "Example: wattline predict RUN gemm.dense m=4096 n=4096 k=4096 dtype=bf16"

CONDITIONS = ("device", "impl", "regime", "data", "dtype")
"""What may be asked beside an operation's parameters; left out where the predictor knows only one."""

_CLOSED = {
    "regime": ("regime", REGIMES, "wattline list regimes"),
    "data": ("data fill", FILLS, "wattline list data"),
}
"""Conditions with few words: another one is a slip, unless the predictor learned it from a table."""


def command(
    *,
    source: Annotated[str, typer.Argument(metavar="BUNDLE_OR_RUN", help="A .wl file, a run, or a shipped name.")],
    op: Annotated[str | None, typer.Argument(metavar="OP", help="Operation; with --csv it may be a column.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE", help="Parameters; also device, impl, dtype, regime, data."),
    ] = None,
    coverage: Annotated[
        float, typer.Option("--coverage", metavar="SHARE", help="Share of measurements inside the intervals.")
    ] = 0.9,
    explain: Annotated[bool, typer.Option("--explain", help="What bounds it, and the nearest measured rows.")] = False,
    best: Annotated[
        str | None,
        typer.Option("--best", metavar="GOAL", help="Rank alternatives (impl=a,b) by time, energy or both."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Predict each row; columns are named as above.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where --csv writes. Default: stdout.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Predict time, power and energy, each with its interval, and the bound that physics sets."""
    from wattline.predictors import load

    if csv is None and op is None:
        raise UsageError("no operation is named", todo="name one, such as gemm.dense, or give a table with --csv")
    if op is not None and "=" in op:  # `predict RUN m=512 --csv ...`: the operation may be a column
        given, op = [op, *(given or [])], None
        if csv is None:
            raise UsageError("no operation is named", why=f"{given[0]!r} is a parameter", todo="name it first")
    fixed = assignments(given or (), "predict")
    predictor = load(source)
    if best is not None:
        if csv is not None:
            raise UsageError("--best and --csv cannot be joined", todo="rank one question at a time")
        _rank(predictor, str(op), fixed, best, coverage=coverage, json=json)
        return
    if csv is not None:
        rows = _predict_table(predictor, csv, out, op=op, fixed=fixed, coverage=coverage)
        if out is not None and not quiet:
            typer.echo(f"{rows} rows in {out}")
        return
    estimate = ask(predictor, str(op), fixed, coverage)
    if json:
        data = estimate.to_dict()
        if explain:
            why = estimate.explain()
            data["explanation"] = {
                "bound_by": why.bound_by, "limited_by": why.limited_by, "terms": dict(why.terms),
                "nearest": [dict(row) for row in why.nearest], "notes": list(why.notes),
            }  # fmt: skip
        emit_json(data)
        return
    typer.echo(str(estimate))
    if explain:
        typer.echo(str(estimate.explain()))


def _rank(
    predictor: KernelPredictor, op: str, given: Mapping[str, str], goal: str, *, coverage: float, json: bool
) -> None:
    """Rank the alternatives that parameters with several values name; without any, the learned implementations."""
    from wattline.predictors.planning import best, grid, pareto

    if goal not in (goals := ("time", "energy", "both")):
        raise unknown_name("goal", goal, goals, listing="wattline predict --help")
    alternatives = {name: value.split(",") for name, value in given.items() if "," in value}
    shared = {name: value for name, value in given.items() if name not in alternatives}
    tried = [_typed(predictor, op, words) for words in grid(**alternatives)] if alternatives else None
    if tried is None and "impl" in shared:
        tried = [{}]
    question = {"coverage": coverage, **_typed(predictor, op, shared)}
    if goal == "both":
        front = pareto(predictor, op, tried, **question)
        parts = {"front": front.front, "possible": front.possible, "beaten": front.beaten}
        found = {name: [_described(each) for each in choices] for name, choices in parts.items()}
        refused = front.refused
    else:
        ranking = best(predictor, op, tried, by=goal, **question)
        found = {name: [_described(each) for each in c] for name, c in (("ranking", ranking.choices),)}
        found["rivals"] = [dict(each.candidate) for each in ranking.rivals]
        refused = ranking.refused
    if json:
        emit_json({"goal": goal, **found, "refused": [{"candidate": dict(r.candidate), "why": r.why} for r in refused]})
        return
    typer.echo(str(front if goal == "both" else ranking))


def _described(choice: Choice) -> dict[str, Any]:
    return {"candidate": dict(choice.candidate), "estimate": choice.estimate.to_dict()}


def ask(predictor: KernelPredictor, op: str, given: Mapping[str, str], coverage: float) -> Estimate:
    """One estimate from words as a person writes them.

    Args:
        predictor: fitted.
        op: the operation.
        given: its parameters and :data:`CONDITIONS` as text.
        coverage: nominal coverage of the intervals.

    Raises:
        WattlineError: an unknown name, a value out of range, a parameter that is missing.
    """
    return predictor.predict_one(op=op, coverage=coverage, **_typed(predictor, op, given))


def _typed(predictor: KernelPredictor, op: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Parameters and conditions as values.

    Raises:
        WattlineError: an unknown name, or a value out of range.
    """
    conditions: dict[str, Any] = {name: value for name, value in given.items() if name in CONDITIONS}
    for name, (kind, known, listing) in _CLOSED.items():
        learned = {word for model in predictor.models_.values() for word in model.seen.get(name, ()) if word}
        if name in conditions and conditions[name] not in {*known, *learned}:
            raise unknown_name(kind, conditions[name], {*known, *learned}, listing=listing)
    typed = parameters(op, {name: value for name, value in given.items() if name not in CONDITIONS})
    for name in ("op", "coverage"):
        if name in typed:
            raise UsageError(f"{name!r} is no parameter of {op}", todo="give the operation before the parameters")
    return {**conditions, **typed}


def _predict_table(
    predictor: KernelPredictor,
    source: Path,
    out: Path | None,
    *,
    op: str | None,
    fixed: Mapping[str, str],
    coverage: float,
) -> int:
    """Predict each row of a CSV file (``-``: stdin); returns their number. Rows are answered as they are read."""
    with _reading(source) as lines, _writing(out) as sink:
        reader = csv_module.DictReader(lines)
        columns = list(reader.fieldnames or ())
        clash = [name for name in columns if name in _figures()]
        if clash or not columns:
            raise DataError(
                f"{source} has columns that a prediction has: {', '.join(clash)}" if columns else f"{source} is empty",
                todo="drop or rename them" if columns else "begin it with a line of column names",
            )
        writer = csv_module.DictWriter(sink, [*columns, *_figures()], lineterminator="\n")
        writer.writeheader()
        count = 0
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            writer.writerow(row | _answer(predictor, row, where, op=op, fixed=fixed, coverage=coverage))
            count += 1
    return count


def _answer(
    predictor: KernelPredictor,
    row: Mapping[str | None, str | None],
    where: str,
    *,
    op: str | None,
    fixed: Mapping[str, str],
    coverage: float,
) -> dict[str, Any]:
    if None in row or None in row.values():
        raise DataError(f"{where} has another number of fields than the first line", todo="mend the line")
    words = {str(name): value.strip() for name, value in row.items() if value and value.strip()}
    asked = {**fixed, **words}
    named = asked.pop("op", None) or op
    if named is None:
        raise DataError(f"{where} names no operation", todo="add a column op, or name one before --csv")
    try:
        answer = ask(predictor, named, asked, coverage).to_dict()
    except WattlineError as error:
        raise type(error)(f"{where}: {error.what}", why=error.why, todo=error.todo) from None
    return {name: answer[name] for name in _figures()}


def _figures() -> tuple[str, ...]:
    from wattline.predictors.predictor import COLUMNS

    return COLUMNS


@contextmanager
def _reading(source: Path) -> Iterator[TextIO]:
    if str(source) == "-":
        yield sys.stdin
        return
    try:
        lines = open(source, encoding="utf-8-sig", newline="")  # noqa: SIM115 - spreadsheets write a byte-order mark
    except OSError as error:
        raise storage_error(error, "reading", source) from error
    try:
        with lines:
            yield lines
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not text", why=str(error), todo="save it as CSV in UTF-8") from None
    except csv_module.Error as error:
        raise DataError(f"{source} is not CSV", why=str(error), todo="save it as comma-separated text") from None


@contextmanager
def _writing(out: Path | None) -> Iterator[TextIO]:
    """A text stream that becomes the file only when all went well."""
    if out is None:
        yield sys.stdout
        return
    import io

    from wattline.files import atomic_write

    buffer = io.StringIO()
    yield buffer
    atomic_write(out, buffer.getvalue())
