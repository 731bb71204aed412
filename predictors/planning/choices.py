"""The best tile or implementation for a shape: candidates ranked by time or energy, and which cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from wattline.errors import DataError, NotFittedError, ParamError, UnsupportedError, unknown_name
from wattline.units import format_si, format_time

if TYPE_CHECKING:
    from wattline.predictors.estimate import Estimate
    from wattline.predictors.predictor import KernelPredictor

GOALS = {"time": ("time_s", "time_lo_s", "time_hi_s"), "energy": ("energy_j", "energy_lo_j", "energy_hi_j")}
"""What candidates may be ranked by, and the figures of an estimate that say it."""


@dataclass(frozen=True)
class Choice:
    """One candidate and what it costs.

    Attributes:
        candidate: what sets it apart from the others.
        estimate: its time, power and energy.
    """

    candidate: Mapping[str, Any]
    estimate: Estimate

    def label(self) -> str:
        """``impl=triton block_m=128``."""
        return " ".join(f"{name}={value}" for name, value in self.candidate.items()) or "as asked"

    def figure(self, goal: str) -> tuple[float, float, float]:
        """The figure that counts for a goal, and the ends of its interval."""
        value, lo, hi = (float(getattr(self.estimate, name)) for name in GOALS[goal])
        return value, lo, hi


@dataclass(frozen=True)
class Refused:
    """A candidate that cannot be estimated, and why."""

    candidate: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class Ranking:
    """Candidates from the best to the worst.

    Attributes:
        goal: ``"time"`` or ``"energy"``.
        choices: ranked by the expected figure.
        refused: candidates that were left out.
    """

    goal: str
    choices: tuple[Choice, ...]
    refused: tuple[Refused, ...] = ()

    @property
    def best(self) -> Choice:
        """The candidate with the least expected figure."""
        return self.choices[0]

    @property
    def rivals(self) -> tuple[Choice, ...]:
        """Candidates that cannot be told apart from the best: their interval begins before the best's ends.

        Intervals are taken as independent, which is careful: candidates of one shape share most of their error.
        """
        end = self.best.figure(self.goal)[2]
        return tuple(choice for choice in self.choices[1:] if choice.figure(self.goal)[1] <= end)

    @property
    def clear(self) -> bool:
        """Whether the best is told apart from every other candidate."""
        return not self.rivals

    def __str__(self) -> str:
        unsure = {id(choice) for choice in self.rivals}
        lines = []
        for place, choice in enumerate(self.choices, 1):
            value, lo, hi = choice.figure(self.goal)
            words = [f"{_shown(value, self.goal)} [{_shown(lo, self.goal)}, {_shown(hi, self.goal)}]"]
            if id(choice) in unsure:
                words.append("cannot be told apart from the first")
            if choice.estimate.source != "learned":
                words.append(choice.estimate.source)
            if not choice.estimate.in_domain:
                words.append("outside the domain")
            lines.append(f"{place:>3}  {choice.label()}: {', '.join(words)}")
        lines += [f"  -  {Choice(r.candidate, self.best.estimate).label()}: left out, {r.why}" for r in self.refused]
        return "\n".join(lines)


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """All combinations of values, as candidates: ``grid(block_m=[64, 128], warps=[4, 8])``.

    Raises:
        ParamError: an axis without values.
    """
    values = {name: list(column) for name, column in axes.items()}
    for name, column in values.items():
        if not column:
            raise ParamError(f"{name} has no value to try", todo="give at least one")
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


def implementations(predictor: KernelPredictor, op: str) -> list[dict[str, Any]]:
    """The implementations of an operation that a predictor has learned from, as candidates.

    Raises:
        NotFittedError: it has learned nothing at all.
        UnknownNameError: it has learned nothing of the operation.
    """
    from wattline.predictors.families import family_of

    if not hasattr(predictor, "models_"):
        raise NotFittedError("this KernelPredictor was not fitted", todo="call fit(X, y), or load a bundle")
    model = predictor.models_.get(family_of(op).name)
    ops = sorted({word for each in predictor.models_.values() for word in each.seen.get("op", [])})
    if model is None or op not in model.seen.get("op", []):
        raise unknown_name("operation", op, ops, where="in this predictor")
    # A family may hold several operations: those rows that were kept say which implementation belongs to which.
    own = sorted({str(row["impl"]) for row in model.samples.rows if row.get("op") == op and "impl" in row})
    return [{"impl": impl} for impl in own or model.seen.get("impl", [])]


def best(
    predictor: KernelPredictor,
    op: str,
    candidates: Sequence[Mapping[str, Any]] | None = None,
    *,
    by: str = "time",
    coverage: float = 0.9,
    **shared: Any,
) -> Ranking:
    """Rank candidates for one shape.

    Args:
        predictor: fitted.
        op: the operation.
        candidates: what each sets beside ``shared``: implementations, tiles, formats; see :func:`grid`. ``None``:
            the implementations that the predictor has learned from.
        by: ``"time"`` or ``"energy"``.
        coverage: nominal coverage of the intervals.
        shared: parameters and conditions that all candidates have in common.

    Raises:
        UnknownNameError: a goal, an operation, a device or a format that does not exist.
        ParamError: no candidates, or a parameter that is missing or out of range.
        DataError: ranking by energy where no power was measured.
        UnsupportedError: the device has no rate for any of the candidates.
    """
    if by not in GOALS:
        raise unknown_name("goal", by, GOALS)
    choices, refused = asked(predictor, op, candidates, coverage=coverage, shared=shared)
    if by == "energy":
        need_energy(choices)
    return Ranking(by, tuple(sorted(choices, key=lambda choice: choice.figure(by)[0])), tuple(refused))


def asked(
    predictor: KernelPredictor,
    op: str,
    candidates: Sequence[Mapping[str, Any]] | None,
    *,
    coverage: float,
    shared: Mapping[str, Any],
) -> tuple[list[Choice], list[Refused]]:
    """An estimate of each candidate; those whose format the device has no rate for are refused, with the reason.

    Raises:
        ParamError, UnknownNameError, UnsupportedError: see :func:`best`.
    """
    tried = implementations(predictor, op) if candidates is None else list(candidates)
    if not tried:
        raise ParamError("there is no candidate to choose from", todo="give at least one, such as {'impl': 'torch'}")
    choices, refused = [], []
    for candidate in tried:
        twice = sorted(set(candidate) & set(shared))
        if twice:
            raise ParamError(
                f"{twice[0]} is given for all candidates and for one of them",
                why=f"{shared[twice[0]]!r} and {candidate[twice[0]]!r}", todo="give it once",
            )  # fmt: skip
        try:
            estimate = predictor.predict_one(op=op, coverage=coverage, **shared, **candidate)
        except UnsupportedError as error:
            refused.append(Refused(dict(candidate), error.what))
            continue
        choices.append(Choice(dict(candidate), estimate))
    if not choices:
        raise UnsupportedError(f"no candidate of {op} can be estimated", why=refused[0].why, todo="try other formats")
    return choices, refused


def need_energy(choices: Sequence[Choice]) -> None:
    """Raise where a candidate's energy is not known.

    Raises:
        DataError: no power was measured of what it was learned from.
    """
    without = [choice.label() for choice in choices if math.isnan(choice.estimate.energy_j)]
    if without:
        raise DataError(
            f"no energy is known of {without[0]}" + (f" and {len(without) - 1} more" if len(without) > 1 else ""),
            why="no power was measured in the rows that the predictor learned from",
            todo="choose by time, or measure where a power sensor is (`wattline doctor` says which there are)",
        )


def _shown(value: float, goal: str) -> str:
    return format_time(value) if goal == "time" else format_si(value, "J")
