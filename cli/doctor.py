"""`wattline doctor`: what this machine has, what is missing, what that costs and how to get it."""

from __future__ import annotations

from itertools import groupby

import typer

from wattline.cli.options import JsonOption, QuietOption
from wattline.cli.output import emit_json, heading

EXAMPLES = "Example: wattline doctor --json"

_COLORS = {"ok": "green", "limited": "yellow", "missing": "red"}


def command(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show what this machine has, what is missing, what that costs you, and how to get it."""
    from wattline.collectors.doctor import inspect_machine

    findings = inspect_machine()
    if json:
        emit_json([finding.to_dict() for finding in findings])
        return
    if quiet:  # only what needs a hand
        findings = [finding for finding in findings if finding.status != "ok"]
    for area, group in groupby(findings, key=lambda finding: finding.area):
        heading(area)
        for finding in group:
            mark = typer.style(f"{finding.status:<8}", fg=_COLORS[finding.status])
            typer.echo(f"  {mark} {finding.name}: {finding.detail}")
            if finding.cost:
                typer.echo(f"           costs: {finding.cost}")
            if finding.remedy:
                typer.echo(f"           do: {finding.remedy}")
