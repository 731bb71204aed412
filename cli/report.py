"""`wattline report`: one HTML file that shows a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wattline.cli.options import QuietOption

EXAMPLES = "Example: wattline report runs/2026-01-31-box-quick --out report.html"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: RUN/report.html.")] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write the report of a run: one HTML file that opens anywhere, without a network."""
    from wattline.reports import write_report

    path = write_report(run, out)
    if not quiet:
        typer.echo(str(path))
    if open_:
        typer.launch(str(path))
