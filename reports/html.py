"""The report: one HTML file that needs no network, no server and no other file."""

from __future__ import annotations

import math
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattline import __version__
from wattline.files import atomic_write
from wattline.garbage import seldom_collected
from wattline.reports.data import ReportData

if TYPE_CHECKING:
    from wattline.predictors import Evaluation, KernelPredictor


def write_report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    predictor: KernelPredictor | None = None,
    evaluation: Evaluation | None = None,
) -> Path:
    """Write the report of a run.

    The file holds everything: text, drawings, script, style. Equal runs give equal files.

    Args:
        run: a run folder.
        out: the file to write; default ``report.html`` in the run folder.
        predictor: shown beside the measurements; default ``predictor.wl`` in the run folder, if it is there.
        evaluation: held-out estimates of this run's records; default: made here by grouped folds when there is a
            predictor.

    Returns:
        The path written.

    Raises:
        StorageError: the run cannot be read or the file not written.
        SchemaError: not a run, a damaged one, or one of a newer version.
    """
    target = Path(out) if out is not None else Path(run) / "report.html"
    with seldom_collected():
        text = render(ReportData.read(run), predictor, evaluation)
    # A run of another machine may hold halves of surrogate pairs (in a host name, say), which no encoding takes.
    atomic_write(target, text.encode("utf-8", "replace"))
    return target


def render(data: ReportData, predictor: KernelPredictor | None = None, evaluation: Evaluation | None = None) -> str:
    """The HTML text of a report; see :func:`write_report`."""
    from wattline.reports import context, figures_gap, figures_trust, findings, power, predicted, tables
    from wattline.reports.chapters import chapters
    from wattline.reports.evaluated import prediction_of
    from wattline.reports.svg import marker_definitions

    prediction, why_not = prediction_of(data, predictor, evaluation)
    found = findings.find(data, prediction)
    template = environment().get_template("report.html.j2")
    return str(
        template.render(
            version=__version__,
            data=data,
            style=asset("report.css"),
            script=asset("report.js"),
            markers=marker_definitions(),
            lead=context.lead(data),
            machine=context.machine(data),
            ran=context.what_ran(data),
            findings=found[: findings.HEADLINES],
            further=found[findings.HEADLINES :],
            nothing=_nothing(data),
            flags=context.flag_counts(data),
            unmeasured=context.unmeasured(data),
            slow=figures_gap.slowest(data),
            chapters=[(c.id, c.title, drawn) for c in chapters(data) if (drawn := c.figures(data))],
            power=power.build(data),
            trust=[figures_trust.noise(data), figures_trust.repeats(data)],
            prediction=prediction,
            prediction_missing=why_not,
            prediction_figures=predicted.figures(prediction) if prediction else [],
            table=tables.build(data),
            method=context.method(data),
            ceilings=context.ceilings(data),
            environment=context.environment(data),
            plan=context.plan_facts(data),
            command=str(data.section("plan").get("command") or ""),
            statuses=context.status_counts(data),
        )
    )


def _nothing(data: ReportData) -> str:
    """Why there are no findings, where there are none."""
    if not data.records:
        return "The run holds no records: it was stopped before its first case ended, or its plan was empty."
    if not len(data.usable):
        return (
            f"None of the {len(data.records)} records has a figure that can be trusted. What could not be measured, "
            "and why, is listed below."
        )
    return ""


def asset(name: str) -> str:
    """A file of the folder of templates."""
    return resources.files("wattline.reports").joinpath("templates", name).read_text(encoding="utf-8")


def environment() -> Any:
    """Jinja's environment for pages: everything is escaped but what is marked as trusted."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    from wattline.reports.findings import percent

    # Everything from a run is escaped; only drawings, script, style and the payload are marked as safe, and they
    # escape what they take from the run themselves.
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["trusted"] = Markup
    environment.filters["percent"] = lambda v: percent(v) if math.isfinite(v) else "-"
    return environment
