"""`wattline export`: a run in a format that other programs read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from wattline.cli.options import QuietOption

EXAMPLES = "Example: wattline export RUN --format pytest-benchmark -o b.json"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    format_: Annotated[
        str, typer.Option(
            "--format", "-f", metavar="NAME",
            help="csv, json, nccl-tests, nccl-tests-json, parquet, perfetto or pytest-benchmark.",
        )
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write. Default: stdout.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Write a run in a format that other programs read. Figures are in SI base units."""
    from wattline.errors import UsageError
    from wattline.reports.exporters import export_run, exporter
    from wattline.run import Run

    chosen = exporter(format_)
    if out is None and chosen.BINARY and sys.stdout.isatty():
        raise UsageError(f"{format_} is binary", why="stdout is a terminal", todo=f"add -o run{chosen.SUFFIX}")
    opened = Run(run)
    done = export_run(opened, format_, sys.stdout.buffer if out is None else out)
    if quiet:
        return
    for warning in opened.warnings:
        typer.echo(f"note: {warning}", err=True)
    if not done.records:
        typer.echo(f"note: {run} holds no records: `wattline bench --resume --out {run}` measures them", err=True)
    if done.left_out:
        why = "have no valid figure, or no place in this format, and were left out"
        typer.echo(f"note: {done.left_out} of {done.records} records {why}", err=True)
    if out is not None:
        typer.echo(str(out))
