"""Measurements as training data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattline.case import CAPS
from wattline.errors import DataError
from wattline.frame import FIXED_COLUMNS
from wattline.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from wattline.predictors.predictor import KernelPredictor

FEWEST = 8
"""Valid rows below which nothing is fitted."""
_BESIDE = ("telemetry.", "work.", "fact.")
"""Columns of what was observed beside the time, which nobody knows of a case that has not run."""
_WORDS = ("op", "device", "impl", "dtype", "regime", "data")


def from_frame(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series[Any]]:
    """Training data from the frame of one or more runs.

    Args:
        frame: as :func:`wattline.frame.to_frame` makes it.

    Returns:
        ``X`` (op, device, impl, dtype, regime, data and parameters), ``y`` (``time_s`` in seconds, ``power_w`` in
        watts, NaN where nobody measured) and ``groups``: a number per shape, so that the same sizes in several
        formats, implementations and regimes stay on one side of every split. Only valid rows: what failed its
        check, was faster than its bound or has no figure never feeds a predictor, nor does what was measured under a
        power limit or a locked clock: it is another device, so to say. Indices are kept.

    Raises:
        DataError: a needed column is missing.
    """
    needed = [c for c in (*_WORDS[:4], "time_s", "valid") if c not in frame.columns]
    if needed:
        raise DataError(
            f"the frame has no column {', '.join(needed)}", todo="make it with wattline.frame.to_frame or Run.to_frame"
        )
    rows = frame[frame["valid"] & ~capped(frame) & frame["time_s"].gt(0) & frame["dtype"].notna()]
    skipped = (*FIXED_COLUMNS, "time_s")
    params = [c for c in rows.columns if c not in skipped and not c.startswith(_BESIDE) and rows[c].notna().any()]
    X = rows[[*(c for c in _WORDS if c in rows.columns), *params]].rename(columns=lambda c: c.removeprefix("param."))
    y = rows[["time_s"]].astype(float)
    y["power_w"] = rows["power_w"].astype(float) if "power_w" in rows.columns else float("nan")
    return X, y, shape_groups(X)


def capped(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of a frame were asked to run under a power limit or a locked clock."""
    return frame[[cap for cap in CAPS if cap in frame.columns]].notna().any(axis=1)


def left_out(frame: pd.DataFrame) -> dict[str, int]:
    """How many valid rows :func:`from_frame` leaves out, by cause in words; for the provenance of a fit."""
    under_caps = capped(frame) & frame["valid"]
    unformatted = frame["dtype"].isna() & frame["valid"] & ~under_caps
    causes = {
        "under a power limit or a locked clock": int(under_caps.sum()),
        "without a number format (copies, storage, launches)": int(unformatted.sum()),
    }
    return {cause: count for cause, count in causes.items() if count}


def shape_groups(X: pd.DataFrame) -> pd.Series[Any]:
    """A number per operation and set of numeric parameters: the groups of honest splits."""
    import pandas as pd

    shape = ["op", *[c for c in X.columns if c not in _WORDS and pd.api.types.is_numeric_dtype(X[c].dtype)]]
    return X.groupby(shape, dropna=False, sort=False).ngroup().rename("group")


def from_run(run: Run | str | os.PathLike[str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series[Any]]:
    """Training data from a run or its folder; see :func:`from_frame`."""
    return from_frame((run if isinstance(run, Run) else Run(run)).to_frame())


def fit_run(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> KernelPredictor:
    """Fit a predictor on a run and save it.

    Args:
        path: the run folder. Its device specification, measured ceilings included, goes into the predictor.
        out: where to save; default ``predictor.wl`` in the folder.

    Raises:
        DataError: the run has too few valid rows.
    """
    from wattline.predictors.predictor import KernelPredictor
    from wattline.predictors.shelf import IN_RUN

    run = Run(path)
    frame = run.to_frame()
    X, y, groups = from_frame(frame)
    without = left_out(frame)
    if len(X) < FEWEST:
        lost = frame.loc[~frame["valid"], "status"].value_counts()
        reasons = ", ".join(f"{count} {name}" for name, count in (*lost.items(), *without.items()))
        records = f"{len(frame)} records"
        raise DataError(
            f"the run {run.path} has {len(X)} valid rows; a predictor needs at least {FEWEST}",
            why=f"{records}, of which not to be learned from: {reasons}" if reasons else f"{records} in all",
            todo="measure more: `wattline bench --resume`, a larger --preset or --budget",
        )
    device = run.device
    predictor = KernelPredictor({device.id: device}).fit(X, y, groups)
    predictor.provenance_ |= {"source": f"run {run.id}", "records": len(frame)}
    if without:
        predictor.provenance_["left_out"] = without
    predictor.save(Path(out) if out is not None else run.path / IN_RUN)
    return predictor
