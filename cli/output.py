"""What commands print: Rich tables on a terminal, aligned plain lines without one, JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def emit_json(data: Any) -> None:
    """One indented JSON document on stdout."""
    typer.echo(json.dumps(data, indent=1, allow_nan=False, default=str))


def emit_event(event: str, **values: Any) -> None:
    """One JSON object in one line on stdout, out at once: the reader may be a program that waits for it."""
    sys.stdout.write(json.dumps({"event": event, **values}, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def heading(text: str) -> None:
    """A line above what follows."""
    typer.echo(typer.style(text, bold=True))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print a table.

    Args:
        columns: headings.
        rows: one value per column; ``None`` is left blank.
        right: headings of the columns that hold figures, aligned to the right.
    """
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    if on_terminal():
        _rich_table(columns, cells, right)
        return
    widths = [max([len(column), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    for row in ([*columns], *cells):
        padded = (
            text.rjust(width) if column in right else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        )
        typer.echo("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in cells:
        shown.add_row(*map(escape, row))
    Console().print(shown)
