"""Two sides compared: a verdict per case and per group, the conditions that differ, and what the noise allows."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from wattline.case import Case
from wattline.errors import ParamError, unknown_name
from wattline.garbage import seldom_collected
from wattline.reports.comparing import judging
from wattline.reports.comparing.conditions import CAUTION, MACHINE, Conditions, Difference, differences, same_machine
from wattline.reports.comparing.contrast import Change, Contrast, contrast
from wattline.reports.comparing.judging import LESS, MORE, SAME, UNTOLD, Verdict
from wattline.reports.comparing.reading import Side, SideCase, read_side
from wattline.reports.comparing.statistic import STATISTICS, chosen

MARGIN, CONFIDENCE = 0.02, 0.95
TIME_WORDS = {MORE: "slower", LESS: "faster", SAME: SAME, UNTOLD: UNTOLD}
ENERGY_WORDS = {MORE: "more energy", LESS: "less energy", SAME: SAME, UNTOLD: UNTOLD}
VERDICTS: dict[str, str] = {
    "slower": "takes longer in B, by more than the noise explains",
    "faster": "takes less time in B, by more than the noise explains",
    "same": "the change lies within the margin",
    "cannot tell": "the noise hides whether it changed",
    "broken": "has a figure in A and none in B",
    "fixed": "has a figure in B and none in A",
    "missing": "was measured in A and is not in B",
    "new": "was measured in B and is not in A",
    "not comparable": "has a figure on both sides, but not of the same thing",
    "no figure": "has a figure on neither side",
}
"""What may be said of a case, and what it means."""
_FEWEST_OF_GROUP = 4


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Attributes:
        key: of the case.
        case: the case.
        verdict: a key of :data:`VERDICTS`.
        why: the reason, for the verdicts that are none about a change.
        time, energy: the changes; ``None`` where there is none to tell.
        energy_why: why there is no change of energy, where both sides have joules.
        notes: reservations about its figures.
    """

    key: str
    case: Case
    verdict: str
    why: str = ""
    time: Change | None = None
    energy: Change | None = None
    energy_why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The case in one line."""
        return self.case.label()

    @property
    def energy_verdict(self) -> str:
        """The verdict on joules; empty without any."""
        return ENERGY_WORDS[self.energy.verdict.word] if self.energy else ""


@dataclass(frozen=True)
class Group:
    """Cases of one operation, implementation and format.

    Attributes:
        name: in words.
        count: cases with a change.
        ratio: geometric mean of their ratios B / A, as measured.
        share: mean change, as a share, less the shift that was taken off.
        verdict: what holds for the group as a whole, over what its cases differ in among themselves.
        counts: verdicts of its cases.
    """

    name: str
    count: int
    ratio: float
    share: float
    verdict: Verdict | None
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """Two sides compared; see :func:`compare_runs`.

    Attributes:
        a, b: the sides.
        cases: one result for each case of either side, in the order of A, then those of B alone.
        time, energy: noise, shift and changes; ``energy`` is ``None`` where no case has joules on both sides.
        differences: the conditions that differ.
        same_machine: whether both sides are of the same device.
        margin, confidence: as asked for.
        problems: what was found amiss while reading.
        statistic: what of the samples ``time`` compares: ``"median"`` or ``"p5"``, their 5th percentile.
        aside: the same by the other of the two, which no verdict rests on; ``None`` where it was not looked at.
    """

    a: Side
    b: Side
    cases: Sequence[CaseResult]
    time: Contrast
    energy: Contrast | None
    differences: Sequence[Difference]
    same_machine: bool
    margin: float
    confidence: float
    problems: Sequence[str] = field(default_factory=list)
    statistic: str = "median"
    aside: Contrast | None = None

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of cases by verdict, in the order of :data:`VERDICTS`."""
        found = Counter(result.verdict for result in self.cases)
        return {word: found[word] for word in VERDICTS if found[word]}

    @cached_property
    def energy_counts(self) -> dict[str, int]:
        """Number of cases by verdict on their joules."""
        found = Counter(result.energy_verdict for result in self.cases if result.energy)
        return {word: found[word] for word in ENERGY_WORDS.values() if found[word]}

    @property
    def compared(self) -> int:
        """Cases with a verdict on their time."""
        return len(self.time.changes)

    @cached_property
    def groups(self) -> list[Group]:
        """The groups by time, most cases first."""
        return group_by(self, "time")

    @property
    def cautions(self) -> list[Difference]:
        """Differences that move figures by themselves."""
        return [d for d in self.differences if d.weight in (MACHINE, CAUTION)]

    def of(self, verdict: str) -> list[CaseResult]:
        """The cases of one verdict, the largest changes first."""
        found = [result for result in self.cases if result.verdict == verdict]
        return sorted(found, key=lambda r: -abs(r.time.change) if r.time else 0.0)

    def of_energy(self, word: str) -> list[CaseResult]:
        """The cases of one verdict on energy, the largest changes first."""
        found = [r for r in self.cases if r.energy and r.energy.verdict.word == word]
        return sorted(found, key=lambda r: -abs(r.energy.change) if r.energy else 0.0)


def compare_runs(
    a: str | os.PathLike[str] | Side,
    b: str | os.PathLike[str] | Side,
    *,
    only: Sequence[str] = (),
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    statistic: str = "auto",
) -> Comparison:
    """Compare two runs, or two sets of repeated runs.

    Args:
        a: the baseline: a run folder, or a folder that holds several runs of the same thing.
        b: what is held against it.
        only: conditions that cases must meet, as of `bench`: ``"m >= 1024 and op == 'gemm.dense'"``.
        margin: changes up to this share count as the same.
        confidence: one less the share of wrong verdicts among those on a change, and of the intervals.
        statistic: what of a measurement's samples is compared, one of :data:`.statistic.STATISTICS`.

    Returns:
        A verdict per case for time, and for energy where both sides measured it.

    Raises:
        StorageError: a run cannot be read.
        SchemaError: no run, a damaged one, or one of a newer version.
        UsageError: a condition that cannot be read; a 5th percentile asked for that records do not hold.
        ParamError: a margin or confidence that makes no sense.
        UnknownNameError: a statistic that is none.
    """
    if statistic not in STATISTICS:
        raise unknown_name("statistic", statistic, STATISTICS)
    if not 0 < margin < 1:
        raise ParamError(f"a margin must lie between 0 and 1, not {margin:g}", todo="write it like 2%")
    if not 0.5 <= confidence < 1:
        raise ParamError(f"a confidence must lie between 0.5 and 1, not {confidence:g}", todo="write it like 95%")
    first, second = (side if isinstance(side, Side) else read_side(side, only) for side in (a, b))
    same = same_machine(first, second)
    conditions = Conditions.of(first, second)
    results: list[CaseResult] = []
    compared: list[str] = []
    joules: list[str] = []
    energy_why: dict[str, str] = {}
    for key in dict.fromkeys([*first.cases, *second.cases]):
        one, other = first.cases.get(key), second.cases.get(key)
        found = _without_change(key, one, other, second, conditions)
        if found is not None:
            results.append(found)
            continue
        assert one is not None
        assert other is not None
        compared.append(key)
        if one.energy and other.energy:
            energy_why[key] = conditions.energy_not_comparable(one, other)
            if not energy_why[key]:
                joules.append(key)
        results.append(CaseResult(key, one.case, "", energy_why=energy_why.get(key, ""), notes=_notes(one, other)))

    def held(quantity: str, keys: Sequence[str]) -> Contrast:
        readings = [{k: getattr(c, quantity) for k, c in side.cases.items()} for side in (first, second)]
        return contrast(
            readings[0], readings[1], keys, runs=(len(first.runs), len(second.runs)), same_machine=same, margin=margin,
            confidence=confidence,
        )  # fmt: skip

    with seldom_collected():  # among the thousands of readings there is no garbage to be found
        statistic, time, aside = chosen(statistic, held, compared, (first, second), same_machine=same)
        energy = held("energy", joules) if joules else None
        finished = [_with_change(result, time, energy) for result in results]
    problems = [*(f"A: {p}" for p in first.problems), *(f"B: {p}" for p in second.problems)]
    if _same_files(first, second):
        problems.append("A and B are the same run: nothing can differ")
    return Comparison(
        first, second, finished, time, energy, differences(first, second), same, margin, confidence, problems,
        statistic, aside,
    )  # fmt: skip


def _with_change(result: CaseResult, time: Contrast, energy: Contrast | None) -> CaseResult:
    change = time.changes.get(result.key)
    if change is None:
        return result
    joules = energy.changes.get(result.key) if energy else None
    word = TIME_WORDS[change.verdict.word]
    return CaseResult(
        result.key, result.case, word, time=change, energy=joules, energy_why=result.energy_why, notes=result.notes
    )


def _without_change(
    key: str, one: SideCase | None, other: SideCase | None, b: Side, conditions: Conditions
) -> CaseResult | None:
    """The result of a case that has no two figures to hold against each other; ``None`` where it has."""
    if one is None or other is None:
        if other is not None:
            if other.time:
                return CaseResult(key, other.case, "new")
            return CaseResult(key, other.case, "no figure", _no_figure(other))
        assert one is not None
        why = "B does not hold it" if b.finished else "B ended before the end of its plan"
        return CaseResult(key, one.case, "missing" if one.time else "no figure", why if one.time else _no_figure(one))
    if one.time and other.time:
        why = conditions.not_comparable(one, other)
        return CaseResult(key, one.case, "not comparable", why) if why else None
    if one.few or other.few:
        side = "A" if one.few and not one.time else "B"
        return CaseResult(key, one.case, "not comparable", f"fewer than three samples in {side}: no interval")
    if one.time:
        return CaseResult(key, one.case, "broken", _no_figure(other))
    if other.time:
        return CaseResult(key, one.case, "fixed", f"in A: {_no_figure(one)}")
    return CaseResult(key, one.case, "no figure", _no_figure(other))


def _no_figure(side: SideCase) -> str:
    word = side.status.replace("_", " ")
    return f"{word}: {side.why}" if side.why else word


def _notes(one: SideCase, other: SideCase) -> tuple[str, ...]:
    notes = []
    for name, side in (("A", one), ("B", other)):
        notes += [f"{flag.replace('_', ' ')} in {name}" for flag in sorted(side.flags)]
        if side.failed:
            notes.append(f"{side.failed} of {side.failed + len(side.time)} repeats without a figure in {name}")
    return tuple(notes)


def _same_files(a: Side, b: Side) -> bool:
    return {run.path.resolve() for run in a.runs} == {run.path.resolve() for run in b.runs}


def group_by(comparison: Comparison, quantity: str, by: str = "operation") -> list[Group]:
    """The cases by operation, implementation and format.

    A group's verdict rests on how its cases differ among themselves (a t-test of their changes) and never on less than
    their own errors: it says what holds for the operation, not for one size. Verdicts of all groups are held to one
    false discovery rate.

    Args:
        comparison: the comparison.
        quantity: ``"time"`` or ``"energy"``.
        by: ``"operation"`` (with implementation and format), ``"format"`` (number format alone) or ``"all"``.

    Returns:
        The groups, most cases first.
    """
    naming: dict[str, Callable[[Case], str]] = {
        "operation": operation_names(comparison), "format": _by_format, "all": _all_alike
    }  # fmt: skip
    members: dict[str, list[CaseResult]] = {}
    for result in comparison.cases:
        members.setdefault(naming[by](result.case), []).append(result)
    found: list[tuple[str, list[CaseResult], list[Change]]] = []
    for name, results in members.items():
        changes: list[Change] = [c for c in (getattr(r, quantity) for r in results) if c is not None]
        found.append((name, results, changes))
    found.sort(key=lambda g: -len(g[2]))
    asked = [changes for _, _, changes in found if len(changes) >= _FEWEST_OF_GROUP]
    verdicts = iter(_group_verdicts(asked, comparison))
    groups = []
    for name, results, changes in found:
        words = Counter(r.verdict if quantity == "time" else r.energy_verdict for r in results)
        ratio = math.exp(float(np.mean([math.log(c.ratio) for c in changes]))) if changes else math.nan
        share = math.expm1(float(np.mean([c.change for c in changes]))) if changes else math.nan
        verdict = next(verdicts) if len(changes) >= _FEWEST_OF_GROUP else None
        groups.append(Group(name, len(changes), ratio, share, verdict, {w: n for w, n in words.items() if w}))
    return groups


def operation_names(comparison: Comparison) -> Callable[[Case], str]:
    """The name of a case's group by operation; implementations are named where an operation has several."""
    impls: dict[str, set[str]] = {}
    for result in comparison.cases:
        impls.setdefault(result.case.op, set()).add(result.case.impl)

    def name(case: Case) -> str:
        return " ".join(w for w in (case.op, case.impl if len(impls[case.op]) > 1 else "", case.dtype or "") if w)

    return name


def _all_alike(_: Case) -> str:
    return "all cases"


def _by_format(case: Case) -> str:
    return case.dtype or "no format"


def _group_verdicts(groups: Sequence[Sequence[Change]], comparison: Comparison) -> list[Verdict]:
    values, errors, freedoms = [], [], []
    for changes in groups:
        d = np.array([c.change for c in changes])
        shared = float(np.mean([c.shared for c in changes]))
        own = float(np.sum([c.error**2 - c.shared for c in changes])) / len(d) ** 2
        values.append(float(d.mean()))
        errors.append(math.sqrt(max(float(d.var(ddof=1)) / len(d), own) + shared))
        freedoms.append(float(len(d) - 1))
    return judging.judge(
        values, errors, freedoms, margin=math.log1p(comparison.margin), confidence=comparison.confidence
    )
