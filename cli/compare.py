"""`wattline compare`: what changed between two runs, by more than the noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wattline.cli.options import OnlyOption, QuietOption

EXAMPLES = "Example: wattline compare runs/base runs/new --fail-on slower:3%,missing,failed"
REGRESSION = 1
_FORMATS = ("text", "json", "markdown")


def command(  # noqa: PLR0917 - Typer reads these as the options of the command
    a: Annotated[Path, typer.Argument(metavar="A", help="The baseline: a run, or a folder of repeated runs.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is held against it.")],
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on", metavar="LIST", help="Exit code 1 on these: slower:3%, energy:5%, missing, failed."
        ),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", "-f", metavar="NAME", help="text, json or markdown (for a pull request).")
    ] = "text",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write. Default: stdout.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Also write the comparison as an HTML report.")
    ] = None,
    only: OnlyOption = None,
    margin: Annotated[
        str | None, typer.Option("--margin", metavar="SHARE", help="Changes up to it are the same. Default: 2%.")
    ] = None,
    confidence: Annotated[
        str, typer.Option("--confidence", metavar="SHARE", help="Of verdicts and intervals.")
    ] = "95%",
    statistic: Annotated[
        str, typer.Option("--statistic", metavar="NAME", help="Of the samples: median, p5, or auto (the steadier).")
    ] = "auto",
    quiet: QuietOption = False,
) -> None:
    """Compare two runs: per case same, faster, slower, cannot tell, or not comparable and why.

    A folder that holds several runs of the same thing is one side: repeats are what tells small changes.
    Exit code 0: nothing of --fail-on happened; 1: something did; 2: an error.
    """
    from wattline.errors import UsageError, unknown_name
    from wattline.files import atomic_write
    from wattline.reports.comparing import gate
    from wattline.reports.comparing.comparison import MARGIN, compare_runs

    if format_ not in _FORMATS:
        raise unknown_name("format", format_, _FORMATS, listing="wattline compare --help")
    gates = gate.parse_gates(fail_on) if fail_on is not None else []
    asked = None if margin is None else gate.parse_share(margin, "the margin")
    how: dict[str, Any] = {
        "margin": gate.margin_for(gates, asked, MARGIN), "confidence": gate.parse_share(confidence, "the confidence"),
        "statistic": statistic,
    }  # fmt: skip
    comparison = compare_runs(a, b, only=only or (), **how)
    if only and not comparison.cases:
        raise UsageError(
            "nothing is left to compare", why=f"no case of either side meets {' and '.join(only)}",
            todo="compare without --only to see which cases there are",
        )  # fmt: skip
    violations = gate.check(comparison, gates)
    text = _written(format_, comparison, gates, violations)
    if out is not None:
        atomic_write(out, text.encode("utf-8", "replace"))
    elif not quiet or format_ != "text":
        typer.echo(text.encode("utf-8", "replace").decode(), nl=False)
    if quiet and format_ == "text" and violations:
        from wattline.reports.comparing.to_text import plain, verdict_lines

        for line in verdict_lines(gates, violations):
            typer.echo(plain(line))
    if report is not None:
        from wattline.reports import write_comparison

        written = write_comparison([comparison.a, comparison.b], report, **how)
        if not quiet:
            typer.echo(str(written), err=True)
    raise typer.Exit(REGRESSION if violations else 0)


def _written(format_: str, comparison: object, gates: object, violations: object) -> str:
    from importlib import import_module

    writer = getattr(import_module(f"wattline.reports.comparing.to_{format_}"), f"to_{format_}")
    return str(writer(comparison, gates, violations))
