"""How good a predictor of these measurements is, on groups that it had not seen, beside the roofline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec
from wattline.errors import DataError
from wattline.predictors.predictor import KernelPredictor, default_groups
from wattline.predictors.splits import LeaveGroupsOut

if TYPE_CHECKING:
    import pandas as pd

LEARNING_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the training groups at which the learning curve is taken."""


@dataclass(frozen=True)
class Evaluation:
    """Held-out predictions and what they score.

    Attributes:
        frame: in the index of ``X``: ``op``, ``device``, ``impl``, ``dtype``, ``regime``, ``fold``, ``time_s``
            (measured), ``predicted_s``, ``lo_s``, ``hi_s``, ``roofline_s`` (the bound), ``in_domain``, and, where
            power was measured, ``power_w`` and ``predicted_w``.
        scores: ``mape`` and ``median_ape`` of time in percent, the same of the roofline, ``coverage`` (share of
            measurements inside the interval) and ``nominal``, ``within_10`` and ``within_25`` percent, number of
            ``rows``, ``groups`` and ``folds``; ``power_mape`` and ``energy_mape`` where power was measured.
        by_class: the same scores for each ``op`` and ``dtype``, as a frame.
        learning: ``rows`` (mean number trained on), ``mape`` and ``median_ape`` at growing shares of the training
            groups; empty where there are too few.
        split: in words, which split the figures come from.
    """

    frame: pd.DataFrame
    scores: Mapping[str, float]
    by_class: pd.DataFrame
    learning: pd.DataFrame
    split: str


def evaluate(
    X: pd.DataFrame,
    y: pd.DataFrame,
    groups: Any = None,
    devices: Mapping[str, DeviceSpec] | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
    coverage: float = 0.9,
    learning: bool = True,
) -> Evaluation:
    """Cross-validate on whole groups.

    Args:
        X, y, groups: as :func:`wattline.predictors.from_run` gives them; without groups, rows of equal operation
            and numeric parameters form one.
        devices: specifications by id; see :class:`~wattline.predictors.KernelPredictor`.
        folds: number of folds; fewer where there are fewer groups.
        seed: of folds, learning curve and fits.
        coverage: nominal coverage of the intervals.
        learning: whether to take the learning curve: some three more fits, on one fold.

    Raises:
        DataError: fewer than two groups.
    """
    import pandas as pd

    labels = np.asarray(default_groups(X) if groups is None else groups)
    # Plain columns are picked from faster, fold by fold; every number is learned from as float64 in any case.
    X = X.astype({c: "float64" for c, kind in X.dtypes.items() if pd.api.types.is_integer_dtype(kind)})
    count = len(np.unique(labels))
    if count < 2:
        raise DataError("an evaluation needs at least two groups of rows", why=f"there is {count}")
    folds = max(2, min(folds, count))
    pairs = list(LeaveGroupsOut(folds, random_state=seed).split(X, groups=labels))
    settings: Any = {"devices": devices, "seed": seed, "coverage": coverage}
    parts = [_held_out(X, y, labels, *pair, **settings).assign(fold=i) for i, pair in enumerate(pairs)]
    # Every row is tested exactly once: undo the order of the folds by position, whatever the index holds.
    back = np.argsort(np.concatenate([test for _, test in pairs]), kind="stable")
    frame: pd.DataFrame = pd.concat(parts).iloc[back]
    classes = frame.groupby(["op", "dtype"], sort=True)
    by_class = pd.DataFrame([{"op": op, "dtype": dtype, **_scores(part, coverage)} for (op, dtype), part in classes])
    scores = {**_scores(frame, coverage), "groups": float(count), "folds": float(folds)}
    curve = _learning(X, y, labels, pairs[0], parts[0], devices=devices, seed=seed) if learning else []
    return Evaluation(
        frame, scores, by_class, pd.DataFrame(curve, columns=["rows", "mape", "median_ape"]),
        f"{folds} folds of whole groups ({count} groups): no shape is both learned from and judged on",
    )  # fmt: skip


def _held_out(
    X: pd.DataFrame,
    y: pd.DataFrame,
    labels: Any,
    train: Any,
    test: Any,
    *,
    devices: Mapping[str, DeviceSpec] | None,
    seed: int,
    coverage: float,
) -> pd.DataFrame:
    model = KernelPredictor(devices, random_state=seed).fit(X.iloc[train], y.iloc[train], labels[train])
    asked, true = X.iloc[test], y.iloc[test]
    p = model.predict(asked, coverage)
    out: pd.DataFrame = asked[[c for c in ("op", "device", "impl", "dtype", "regime") if c in asked.columns]].copy()
    out["time_s"] = true["time_s"].astype(float)
    out["predicted_s"], out["lo_s"], out["hi_s"] = p["time_s"], p["time_lo_s"], p["time_hi_s"]
    out["roofline_s"], out["in_domain"] = p["bound_s"], p["in_domain"]
    out["power_w"] = true["power_w"].astype(float) if "power_w" in true.columns else np.nan
    out["predicted_w"] = p["power_w"]
    return out


def _scores(f: pd.DataFrame, coverage: float) -> dict[str, float]:
    def ape(predicted: Any, measured: Any) -> Any:
        return 100 * np.abs(predicted - measured) / measured

    error, roofline = ape(f["predicted_s"], f["time_s"]), ape(f["roofline_s"], f["time_s"])
    inside = (f["lo_s"] <= f["time_s"]) & (f["time_s"] <= f["hi_s"])
    out = {
        "rows": float(len(f)),
        "mape": float(error.mean()), "median_ape": float(error.median()),
        "roofline_mape": float(roofline.mean()), "roofline_median_ape": float(roofline.median()),
        "coverage": float(inside.mean()), "nominal": coverage,
        "within_10": float((error <= 10).mean()), "within_25": float((error <= 25).mean()),
        "in_domain": float(f["in_domain"].mean()),
    }  # fmt: skip
    power = f[f["power_w"].notna() & f["predicted_w"].notna()]
    if len(power):
        out["power_mape"] = float(ape(power["predicted_w"], power["power_w"]).mean())
        energy = power["time_s"] * power["power_w"]
        out["energy_mape"] = float(ape(power["predicted_s"] * power["predicted_w"], energy).mean())
    return out


def _learning(
    X: pd.DataFrame, y: pd.DataFrame, labels: Any, pair: Any, whole: pd.DataFrame, *,
    devices: Mapping[str, DeviceSpec] | None, seed: int,
) -> list[tuple[float, float, float]]:  # fmt: skip
    """Scores on one fold with growing shares of the training groups; ``whole`` is the fold learned from all."""
    train, test = pair
    names = np.random.default_rng(seed).permutation(np.unique(labels[train]))
    out = []
    for share in LEARNING_SHARES:
        kept = names[: max(2, round(share * len(names)))]
        chosen = train[np.isin(labels[train], kept)]
        if len(chosen) < 8:
            continue
        f = whole
        if len(chosen) < len(train):
            f = _held_out(X, y, labels, chosen, test, devices=devices, seed=seed, coverage=0.9)
        error = 100 * np.abs(f["predicted_s"] - f["time_s"]) / f["time_s"]
        out.append((float(len(chosen)), float(error.mean()), float(error.median())))
    return out
