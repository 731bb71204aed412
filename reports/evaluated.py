"""Where the predictor's section gets its figures: a given evaluation, or grouped folds over the run's own records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.errors import WattlineError
from wattline.reports.data import ReportData
from wattline.reports.predicted import Prediction

if TYPE_CHECKING:
    from wattline.predictors import Evaluation, KernelPredictor


def prediction_of(
    data: ReportData, predictor: KernelPredictor | None, evaluation: Evaluation | None
) -> tuple[Prediction | None, str]:
    """The held-out estimates of a run, or ``None`` and the reason why there are none.

    A predictor that has learned from the run cannot be judged on the run's own rows. Unless an evaluation is given,
    predictors of the same kind are therefore fitted on parts of the rows and judged on the rest, whole shapes held out.
    """
    predictor, why_not = (predictor, "") if predictor is not None else _of_run(data)
    if evaluation is None:
        if predictor is None:
            return None, why_not
        evaluation, why_not = _evaluate(data)
        if evaluation is None:
            return None, why_not
    frame = evaluation.frame
    frame = frame[frame["time_s"].gt(0) & frame["predicted_s"].gt(0)].copy()
    if frame.empty:
        return None, "The evaluation holds no row with a measured and a predicted time."
    frame["anchor"] = data.frame["anchor"].reindex(frame.index)
    nominal = float(evaluation.scores.get("nominal", 0.9))
    return Prediction(
        frame, nominal, evaluation.split, _facts(predictor), evaluation.learning, data.run.manifest.get("sampling")
    ), ""


def _of_run(data: ReportData) -> tuple[KernelPredictor | None, str]:
    """The predictor in the run folder, or why there is none."""
    from wattline.predictors.shelf import IN_RUN, load

    if not (data.run.path / IN_RUN).is_file():
        return None, f"The run folder holds no predictor ({IN_RUN}); `wattline fit {data.run.path.name}` makes one."
    try:
        return load(data.run.path), ""
    except WattlineError as error:
        return None, f"The predictor in the run folder cannot be used: {error}."


MOST_ROWS = 1000
"""Rows that a report judges a predictor on: of a larger run whole shapes are drawn, for minutes would go by else."""
MANY_ROWS = 600
"""From here on three folds do: each holds out enough rows, and takes seconds to learn from the others."""


def _evaluate(data: ReportData) -> tuple[Evaluation | None, str]:
    """Folds of whole shapes over the valid rows of the run, or why there are none."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from wattline.predictors import evaluate, from_frame

    try:
        X, y, groups = from_frame(data.plain_frame)
        rows = len(X)
        if rows > MOST_ROWS:
            kept = _some(groups)
            X, y, groups = X[kept], y[kept], np.asarray(groups)[kept]
        devices = {data.device.id: data.device} if data.device else None
        # The matrices are so small that threads cost more than they save: several times the time on a busy machine.
        with threadpool_limits(1):
            found = evaluate(X, y, groups, devices, folds=3 if rows > MANY_ROWS else 5, learning=True)
        if rows > len(X):
            found = replace(found, split=f"{found.split}; {len(X)} of {rows} rows, whole shapes drawn at random")
        return found, ""
    except WattlineError as error:
        return None, f"The rows of this run cannot judge a predictor: {error}."


def _some(groups: Any) -> np.ndarray:
    """Which rows to keep: those of groups in random order, until there are enough."""
    names, inverse, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(counts[order]), MOST_ROWS, side="right")))]
    kept: np.ndarray = np.isin(inverse, chosen)
    return kept


def _facts(predictor: Any) -> list[tuple[str, str]]:
    """What the bundle says of itself, in a few lines."""
    found = getattr(predictor, "provenance_", None) or {}
    facts = []
    for name, title in (("source", "learned from"), ("rows", "rows"), ("fitted_at", "fitted"), ("groups", "groups")):
        if found.get(name) not in (None, ""):
            facts.append((title, str(found[name])))
    return facts
