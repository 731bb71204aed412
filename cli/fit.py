"""`wattline fit`: fit a predictor on runs, on imported data, or on both."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli.options import JsonOption, QuietOption
from wattline.cli.output import emit_json, table

if TYPE_CHECKING:
    from wattline.predictors.evaluation import Evaluation

EXAMPLES = "Examples: wattline fit runs/monday runs/tuesday, wattline fit RUN --data gemm.parquet --out both.wl"


def command(
    *,
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN", help="Folders of runs.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", metavar="FILE", help="What `wattline import` wrote (repeat).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: RUN/predictor.wl of one run, else predictor.wl."),
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Cross-validate on whole groups of shapes: some more fits.")
    ] = True,
    folds: Annotated[int, typer.Option("--folds", metavar="N", min=2, help="Parts that take turns to be judged.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of folds and fits.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a predictor on runs and imported data, and show how well it predicts shapes that it has not seen.

    The errors of the roofline stand beside, from the same rows.
    """
    from wattline.errors import DataError, UsageError
    from wattline.predictors import KernelPredictor, evaluate, training_data
    from wattline.predictors.datasets import FEWEST

    places = [*(runs or ()), *(data or ())]
    if not places:
        raise UsageError("nothing to fit on", todo="give a run, or --data with a file that `wattline import` wrote")
    given = training_data(runs or (), data or ())
    X, y, groups, devices, without = given.X, given.y, given.groups, given.devices, given.left_out
    said = ", ".join(f"{count} records {cause}" for cause, count in without.items())
    if len(X) < FEWEST:
        raise DataError(
            f"{len(X)} valid rows; a predictor needs at least {FEWEST}",
            why=f"in {', '.join(map(str, places))}" + (f"; left out: {said}" if said else ""),
            todo="measure more: `wattline bench --resume`, a larger --preset or --budget",
        )
    target = out or (places[0] / "predictor.wl" if runs and len(places) == 1 else Path("predictor.wl"))
    predictor = KernelPredictor(devices, random_state=seed).fit(X, y, groups)
    predictor.provenance_["source"] = given.source
    if given.data:
        predictor.provenance_["data"] = [asdict(facts) for facts in given.data]
    if without:
        predictor.provenance_["left_out"] = without
    found, judged = None, groups.nunique() > 1
    if scores and judged:
        found = evaluate(X, y, groups, devices=devices, folds=folds, seed=seed, learning=False)
        predictor.provenance_["evaluation"] = {"split": found.split, **found.scores}
    predictor.save(target)
    if json:
        emit_json(
            {
                "predictor": str(target), "rows": len(X), "devices": sorted(predictor.devices_),
                "runs": list(given.runs), "data": [facts.file for facts in given.data], "left_out": without,
                "split": found and found.split, "scores": found and dict(found.scores),
                "by_class": [] if found is None else found.by_class.to_dict("records"),
            }
        )  # fmt: skip
        return
    if found is not None and not quiet:
        _show(found)
    elif scores and not judged and not quiet:
        typer.echo("no scores: all rows form one group, and a group is never both learned from and judged on")
    if said and not quiet:
        typer.echo(f"left out: {said}")
    models = predictor.models_.values()
    for what, why in sorted({pair for model in models for pair in model.facts["not_tried"].items()}):
        typer.echo(f"{what} were not tried: {why}", err=True)
    typer.echo(str(target) if quiet else f"predictor {target}")


def _show(found: Evaluation) -> None:
    columns = ("operation", "format", "rows", "error", "median", "roofline", "median of it", "inside interval")
    classes: list[dict[Any, Any]] = found.by_class.to_dict("records")
    classes.append({"op": "all", "dtype": "", **found.scores})
    rows = [
        (
            entry["op"], entry["dtype"], int(entry["rows"]), f"{entry['mape']:.1f}%", f"{entry['median_ape']:.1f}%",
            f"{entry['roofline_mape']:.1f}%", f"{entry['roofline_median_ape']:.1f}%", f"{entry['coverage']:.0%}",
        )
        for entry in classes
    ]  # fmt: skip
    typer.echo(f"error of time on shapes left out: {found.split}; intervals at {found.scores['nominal']:.0%}")
    table(columns, rows, right=columns[2:])
    if "power_mape" in found.scores:
        typer.echo(f"error of power {found.scores['power_mape']:.1f}%, of energy {found.scores['energy_mape']:.1f}%")
