"""The learned parts of a family's model: power, and the correction that a few rows of a new device teach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.predictors.intervals import Intervals
from wattline.predictors.learners import KINDS, Learner, Scaler
from wattline.predictors.power import Limits, log_odds, watts
from wattline.predictors.training import fit_learner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

State = tuple[dict[str, Any], dict[str, "NDArray[Any]"]]


def learner_state(learner: Learner) -> State:
    """Kind and arrays of a learner."""
    return {"kind": learner.kind}, learner.arrays()


def learner_from(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Learner:
    """The learner of :func:`learner_state`."""
    made: Learner = KINDS[facts["kind"]].from_arrays(arrays)
    return made


def join(parts: Mapping[str, State]) -> State:
    """Several states as one, names prefixed."""
    facts = {name: part[0] for name, part in parts.items()}
    return facts, {f"{name}/{k}": v for name, part in parts.items() for k, v in part[1].items()}


def part_of(name: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of one part of :func:`join`."""
    return {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}


@dataclass
class PowerPart:
    """Power as log-odds between idle and cap.

    Attributes:
        limits: idle and cap by device.
        scaler: of the utilisation and the features.
        learner: of the log-odds, from both.
        spread: intervals of log power.
        energy: intervals of log energy, where errors of time and power meet.
        prior: a part whose log-odds this one corrects, or ``None``.
    """

    limits: Limits
    scaler: Scaler
    learner: Learner
    spread: Intervals
    energy: Intervals
    prior: PowerPart | None = None

    def odds(self, raw: Array, use: Array) -> Array:
        """Log-odds of power for features as they are ``raw (n, d)`` and utilisation ``use (n, 6)``."""
        out = self.learner.predict(self.scaler(use, raw))
        return out + self.prior.odds(raw, use) if self.prior else out

    def odds_one(self, row: Array) -> float:
        """The same for one row: utilisation and features in one ``(6 + d,)``."""
        out = self.learner.predict_one(self.scaler.one(row))
        return out + self.prior.odds_one(row) if self.prior else out

    @classmethod
    def fit(
        cls,
        raw: Array,
        use: Array,
        power: Array,
        time_error: Array,
        *,
        x: Array,
        numeric: int,
        mute: list[int],
        limits: Limits,
        ends: tuple[Array, Array],
        fold: NDArray[np.int64],
        classes: NDArray[Any],
        seed: int,
        drop: list[NDArray[np.int64]],
        effort: float = 1.0,
        prior: PowerPart | None = None,
    ) -> PowerPart:
        """From rows with measured power.

        Args:
            raw: features as they are ``(n, d)``.
            use: utilisation ``(n, 6)``, computed with *predicted* times, as it will be when asked.
            power: watts ``(n,)``.
            time_error: log(measured / held-out prediction) of time ``(n,)``.
            x: the same, standardised for time ``(n, d)``; intervals go by them.
            numeric: how many features are not one-hot.
            mute: features that are not looked at.
            limits: idle and cap by device.
            ends: idle and cap of each row.
            fold: fold of each row.
            classes: class of each row, for the intervals.
            seed, drop, effort: see :func:`wattline.predictors.training.fit_learner`.
            prior: a part to correct.
        """
        idle, cap = ends
        target = log_odds(power, idle, cap)
        start = prior.odds(raw, use) if prior else np.zeros(len(power))
        both = np.hstack([use, raw])
        scaler = Scaler.fit(both)
        scaler.leave(use.shape[1] + numeric)
        scaler.mute([use.shape[1] + i for i in mute])
        drop = [use.shape[1] + columns for columns in drop]
        fitted = fit_learner(scaler(both), target - start, fold, seed=seed, drop=drop, effort=effort)
        error = np.log(power / watts(fitted.held_out + start, idle, cap))
        spread = Intervals.fit(x, error, classes)
        energy = Intervals.fit(x, error + time_error, classes)
        return cls(limits, scaler, fitted.learner, spread, energy, prior)

    def state(self) -> State:
        """Facts and arrays."""
        parts: dict[str, State] = {
            "scaler": ({}, self.scaler.arrays()),
            "learner": learner_state(self.learner),
            "spread": self.spread.state(),
            "energy": self.energy.state(),
        }
        if self.prior:
            parts["prior"] = self.prior.state()
        facts, arrays = join(parts)
        return {**facts, "limits": {k: list(v) for k, v in self.limits.known.items()}}, arrays

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> PowerPart:
        """From :meth:`state`."""
        return cls(
            Limits({k: (float(a), float(b)) for k, (a, b) in facts["limits"].items()}),
            Scaler.from_arrays(part_of("scaler", arrays)),
            learner_from(facts["learner"], part_of("learner", arrays)),
            Intervals.from_state(facts["spread"], part_of("spread", arrays)),
            Intervals.from_state(facts["energy"], part_of("energy", arrays)),
            cls.from_state(facts["prior"], part_of("prior", arrays)) if "prior" in facts else None,
        )


@dataclass
class Correction:
    """What a few rows of a device taught: an addition to the log of time, and its own intervals.

    Attributes:
        devices: devices that it holds for.
        learner: the addition.
        spread: intervals of log time.
        power: power of these devices, where it was measured.
        rows: how many rows taught it.
        share: weight of the learner for these devices, beside the one for devices that nobody measured.
        apart: what single kernels (:func:`wattline.predictors.rows.kernel_of`) add beyond that, where rows tell.
    """

    devices: tuple[str, ...]
    learner: Learner
    spread: Intervals
    power: PowerPart | None
    rows: int
    share: float = 1.0
    apart: Mapping[str, Learner] = field(default_factory=dict)

    def state(self) -> State:
        """Facts and arrays."""
        parts = {"learner": learner_state(self.learner), "spread": self.spread.state()}
        if self.power:
            parts["power"] = self.power.state()
        parts |= {f"apart{i}": learner_state(learner) for i, learner in enumerate(self.apart.values())}
        facts, arrays = join(parts)
        own = {"devices": list(self.devices), "rows": self.rows, "share": self.share, "apart": list(self.apart)}
        return {**facts, **own}, arrays

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Correction:
        """From :meth:`state`."""
        return cls(
            tuple(facts["devices"]),
            learner_from(facts["learner"], part_of("learner", arrays)),
            Intervals.from_state(facts["spread"], part_of("spread", arrays)),
            PowerPart.from_state(facts["power"], part_of("power", arrays)) if "power" in facts else None,
            int(facts["rows"]),
            float(facts["share"]),
            {
                str(name): learner_from(facts[f"apart{i}"], part_of(f"apart{i}", arrays))
                for i, name in enumerate(facts.get("apart", []))
            },
        )
