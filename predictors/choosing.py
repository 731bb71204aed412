"""Active sampling of the cases of a run: which are next, and when the predictor is good enough to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.errors import DataError, ParamError, WattlineError
from wattline.predictors.active import CONFIDENCE, FEWEST_JUDGED, HeldOut, Sampler, interval
from wattline.predictors.datasets import shape_groups
from wattline.predictors.predictor import KernelPredictor
from wattline.predictors.splits import LeaveGroupsOut
from wattline.predictors.table import blocks_of
from wattline.record import Record
from wattline.run import PlannedCase, Run

if TYPE_CHECKING:
    import pandas as pd

    from wattline.device import DeviceSpec

_BATCH = (12, 100)
"""Fewest and most rows of a batch; in between a quarter of what is measured."""
_FOLDS = 4
_ALL = "every case that can be learned from is measured"


@dataclass(frozen=True)
class Turn:
    """The next cases by their position in the plan (none: stop), and what is said of them."""

    cases: tuple[int, ...] = ()
    note: str = ""


@dataclass
class _Table:
    """The candidates of a run: cases that a predictor can learn."""

    places: list[int]
    X: pd.DataFrame
    groups: Any
    sampler: Sampler
    row_of: dict[tuple[str, str], int] = field(default_factory=dict)


class CaseChooser:
    """Measures until a predictor of the run's cases errs by less than a target.

    Candidates are those cases of the plan that a predictor can learn: with a number format that the device has a rate
    for, and no power limit or locked clock. The error that counts is that of :class:`KernelPredictor`, which the run
    leaves behind: on the rows of a random order, as far as they are measured, each predicted from all measured rows but
    those of its own fold of shapes. It is asked once the sampler's own process is within the target, since fitting
    takes longer than that process does. The upper end of its interval must be within the target.

    Args:
        target: mean relative error, above 0 and below 1.
        seed: of the random order and of the fits.

    Raises:
        ParamError: a target outside its range.
    """

    def __init__(self, target: float, *, seed: int = 0) -> None:
        if not 0 < target < 1:
            raise ParamError(f"the error to reach must be above 0 and below 100 %, not {target:.0%}", todo="such as 5%")
        self.target = target
        self.seed = seed
        self._table: _Table | None = None
        self._without: dict[str, int] = {}
        self._steps: list[dict[str, Any]] = []
        self._reached = False
        self._why = ""

    def next(self, run: Run, left: Sequence[int]) -> Turn:
        """The next batch; none once the target is reached, or no candidate is left.

        Args:
            run: with its device and every record so far.
            left: positions in the plan without a record.

        Raises:
            DataError: no case of the plan can be learned from.
        """
        table, rows, times, walls, lost = self._state(run)
        note = self._judge(table, run.device, rows, times, lost)
        if self._reached:
            return Turn((), note)
        count = int(np.clip(len(rows) // 4, *_BATCH))
        chosen = table.sampler.next(rows, times, count, walls_s=walls, lost=lost)
        open_ = set(left)
        cases = tuple(place for place in (table.places[int(row)] for row in chosen) if place in open_)
        if not cases:
            self._why = _ALL
            note = "; ".join(part for part in (note, f"{self._why}, and the target is not reached") if part)
        return Turn(cases, note)

    def close(self, run: Run, state: str) -> str:
        """Judge what is there as a sitting ends; see :class:`wattline.suites.choosing.Chooser`."""
        if state == "interrupted" or self._reached or self._why:
            return ""
        table, rows, times, _, lost = self._state(run)
        note = self._judge(table, run.device, rows, times, lost, final=True)
        if self.facts()["reached"]:
            return note
        self._why = _ALL if state == "complete" else "the budget ended first"
        last = note or f"{len(rows)} rows are too few to tell the error"
        return f"{self._why}: {last}; the target of {100 * self.target:g}% is not reached"

    def facts(self) -> Mapping[str, Any]:
        """For run.json: target, whether it is reached, why it stopped, and the error after so many rows."""
        table = self._table
        return {
            "target": self.target, "reached": self._reached, "stopped": self._why, "confidence": CONFIDENCE,
            "candidates": len(table.places) if table else 0, "without": dict(self._without),
            "steps": list(self._steps),
        }  # fmt: skip

    # -- inside ---------------------------------------------------------------------------------------------------

    def _state(self, run: Run) -> tuple[_Table, list[int], list[float], list[float], list[int]]:
        """The candidates, and of those with a record: rows, times and seconds it took; and those without a time."""
        if self._table is None:
            self._table = self._candidates(run.plan(), run.device)
            self._steps = list((run.manifest.get("sampling") or {}).get("steps", ()))
        rows, times, walls, lost = [], [], [], []
        for record in run.records():
            row = self._table.row_of.get(record.identity)
            if row is None:
                continue
            time = _time_of(record)
            if time is None:
                lost.append(row)
                continue
            rows.append(row)
            times.append(time)
            walls.append(record.wall_s)
        return self._table, rows, times, walls, lost

    def _candidates(self, plan: Sequence[PlannedCase], device: DeviceSpec) -> _Table:
        import pandas as pd

        places = [i for i, planned in enumerate(plan) if not planned.variant and planned.case.dtype]
        capped = [i for i in places if plan[i].case.caps]
        places = [i for i in places if not plan[i].case.caps]
        self._without = {
            name: count
            for name, count in (
                ("without a number format, or a second measurement", len(plan) - len(places) - len(capped)),
                ("under a power limit or a locked clock", len(capped)),
            )
            if count
        }
        X = pd.DataFrame([_row(plan[i], device.id) for i in places])
        keep = np.ones(len(X), bool)
        for block in blocks_of(X) if len(X) else []:
            try:
                Sampler(X.iloc[block.rows], {device.id: device})
            except WattlineError as error:  # no rate for the format: the case itself may still run, nothing learns it
                keep[block.rows] = False
                self._without[error.what] = self._without.get(error.what, 0) + len(block.rows)
        X = X[keep].reset_index(drop=True)
        places = [place for place, kept in zip(places, keep, strict=True) if kept]
        if not places:
            why = ", ".join(f"{count} {cause}" for cause, count in self._without.items())
            raise DataError("no case of this plan can be learned from", why=why, todo="leave --until-error out")
        groups = shape_groups(X).to_numpy()
        sampler = Sampler(X, {device.id: device}, groups=groups, seed=self.seed)
        row_of = {plan[place].identity: row for row, place in enumerate(places)}
        return _Table(places, X, groups, sampler, row_of)

    def _judge(
        self, table: _Table, device: DeviceSpec, rows: list[int], times: list[float], lost: list[int], *,
        final: bool = False,
    ) -> str:  # fmt: skip
        """Estimate the error and remember it; returns it in words, empty where it cannot be told yet."""
        own = table.sampler.held_out(rows, times, lost=lost)
        if own is None:
            return ""
        found, of = own, "sampler"
        if own.error <= self.target or final:
            asked = _predictor_error(table, device, rows, times, table.sampler.judged(rows, lost), seed=self.seed)
            if asked is not None:
                found, of = asked, "predictor"
        step = {
            "rows": found.rows, "judged": found.judged, "error": found.error, "upper": found.upper,
            "median": found.median, "of": of,
        }  # fmt: skip
        self._steps = [*(s for s in self._steps if s["rows"] != found.rows), step]
        self._reached = of == "predictor" and found.upper <= self.target
        if self._reached:
            self._why = "the target is reached"
        return f"{found}" + (f": the target of {100 * self.target:g}% is reached" if self._reached else "")


def _predictor_error(
    table: _Table, device: DeviceSpec, rows: list[int], times: list[float], judged: Any, *, seed: int
) -> HeldOut | None:
    """The error of the product's predictor on the judged rows; ``None`` where there are too few shapes."""
    import pandas as pd

    labels = table.groups[judged]
    if len(judged) < FEWEST_JUDGED or len(np.unique(labels)) < _FOLDS:
        return None
    measured = np.asarray(rows, np.int64)
    y = pd.DataFrame({"time_s": times, "power_w": np.nan})
    truth = dict(zip(rows, times, strict=True))
    errors = np.empty(len(judged))
    for _, test in LeaveGroupsOut(_FOLDS, random_state=seed).split(table.X.iloc[judged], groups=labels):
        train = ~np.isin(table.groups[measured], labels[test])
        X = table.X.iloc[measured[train]].reset_index(drop=True)
        model = KernelPredictor({device.id: device}, random_state=seed)
        model.fit(X, y[train].reset_index(drop=True), table.groups[measured[train]])
        predicted = model.predict(table.X.iloc[judged[test]])["time_s"].to_numpy()
        measured_s = np.array([truth[int(row)] for row in judged[test]])
        errors[test] = np.abs(predicted / measured_s - 1.0)
    return HeldOut(len(rows), len(judged), *interval(errors, labels))


def _time_of(record: Record) -> float | None:
    """Seconds of a record that teaches; ``None`` of one that failed, was refused, or is not to be trusted."""
    time = record.time_s
    return time if record.valid and time is not None and time > 0 else None


def _row(planned: PlannedCase, device: str) -> dict[str, Any]:
    case = planned.case
    params = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in case.params.items()}
    own = {"op": case.op, "device": device, "impl": case.impl, "dtype": case.dtype}
    return {**params, **own, "regime": case.regime, "data": case.data}
