"""`wattline report`: one HTML file that shows a run, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wattline.cli.options import QuietOption

EXAMPLES = "Example: wattline report runs/2026-01-31-box-quick --out report.html"


def command(
    run: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of runs; of several, all are held against the first."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: RUN/report.html; of several: comparison.html."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write the report of a run, or of several side by side: one HTML file that opens anywhere, without a network.

    A folder that holds several runs stands for these: alone, each is a side of its own; beside others, they are
    repeats of one side.
    """
    from wattline import reports
    from wattline.garbage import seldom_collected
    from wattline.run import MANIFEST

    several = len(run) > 1 or (not (run[0] / MANIFEST).exists() and any(run[0].glob(f"*/{MANIFEST}")))
    with seldom_collected():  # already while pandas and Matplotlib load; of the two writers only one is loaded
        path = reports.write_comparison(run, out or "comparison.html") if several else reports.write_report(run[0], out)
    if not quiet:
        typer.echo(str(path))
    if open_:
        typer.launch(str(path))
