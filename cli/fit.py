"""`wattline fit`: fit a predictor on one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli.options import JsonOption, QuietOption
from wattline.cli.output import emit_json, table

if TYPE_CHECKING:
    import pandas as pd

    from wattline.device import DeviceSpec
    from wattline.predictors.evaluation import Evaluation

EXAMPLES = "Example: wattline fit runs/monday runs/tuesday --out predictor.wl"


def command(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
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
    """Fit a predictor on runs, and show how well it predicts shapes that it has not seen, beside the roofline."""
    from wattline.errors import DataError
    from wattline.predictors import KernelPredictor, evaluate
    from wattline.predictors.datasets import FEWEST

    X, y, groups, devices, names, without = training_data(runs)
    said = ", ".join(f"{count} records {cause}" for cause, count in without.items())
    if len(X) < FEWEST:
        raise DataError(
            f"{len(X)} valid rows; a predictor needs at least {FEWEST}",
            why=f"in {', '.join(map(str, runs))}" + (f"; left out: {said}" if said else ""),
            todo="measure more: `wattline bench --resume`, a larger --preset or --budget",
        )
    target = out or (runs[0] / "predictor.wl" if len(runs) == 1 else Path("predictor.wl"))
    predictor = KernelPredictor(devices, random_state=seed).fit(X, y, groups)
    predictor.provenance_["source"] = ", ".join(f"run {name}" for name in names)
    if without:
        predictor.provenance_["left_out"] = without
    found = None
    if scores and groups.nunique() > 1:
        found = evaluate(X, y, groups, devices=devices, folds=folds, seed=seed, learning=False)
        predictor.provenance_["evaluation"] = {"split": found.split, **found.scores}
    predictor.save(target)
    if json:
        emit_json(
            {
                "predictor": str(target), "rows": len(X), "devices": sorted(devices), "runs": names,
                "left_out": without, "split": found and found.split, "scores": found and dict(found.scores),
                "by_class": [] if found is None else found.by_class.to_dict("records"),
            }
        )  # fmt: skip
        return
    if found is not None and not quiet:
        _show(found)
    if said and not quiet:
        typer.echo(f"left out: {said}")
    typer.echo(str(target) if quiet else f"predictor {target}")


def training_data(
    runs: Sequence[Path],
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series[Any], dict[str, DeviceSpec], list[str], dict[str, int]]:
    """The valid rows of runs together.

    Args:
        runs: their folders. Where two ran on one device, the ceilings that the later one measured count.

    Returns:
        ``X``, ``y`` and ``groups`` as :func:`wattline.predictors.from_frame` gives them, the devices by id, the
        names of the runs, and what was left out: how many valid rows by cause.

    Raises:
        SchemaError, StorageError: a folder that is no run, or cannot be read.
    """
    import pandas as pd

    from wattline.predictors import from_frame
    from wattline.predictors.datasets import left_out
    from wattline.run import Run

    opened = sorted((Run(path) for path in runs), key=lambda run: str(run.manifest.get("created_at", "")))
    frames = [run.to_frame() for run in opened]
    frame = pd.concat([f for f in frames if len(f)] or frames, ignore_index=True)
    X, y, groups = from_frame(frame)
    devices = {run.device.id: run.device for run in opened}
    return X, y, groups, devices, [run.id for run in opened], left_out(frame)


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
