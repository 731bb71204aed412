"""What makes a comparison fail: ``--fail-on slower:3%,energy:5%,missing,failed``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wattline.errors import ParamError, UsageError, unknown_name
from wattline.reports.comparing.comparison import CaseResult, Comparison
from wattline.reports.comparing.contrast import Contrast
from wattline.reports.comparing.judging import MORE
from wattline.reports.comparing.words import percent_change

GATES: dict[str, str] = {
    "slower": "cases that are slower, or all of them together, by at least so much",
    "energy": "cases that take more joules, or all of them together, by at least so much",
    "failed": "cases that had a figure and have none",
    "missing": "cases that were measured and are not any more",
}
"""What a comparison can fail on, and what it means."""
_WITH_THRESHOLD = ("slower", "energy")


@dataclass(frozen=True)
class Gate:
    """One condition on which a comparison fails.

    Attributes:
        name: a key of :data:`GATES`.
        threshold: smallest change, as a share, that fails; 0: any that is told.
    """

    name: str
    threshold: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}:{self.threshold * 100:g}%" if self.name in _WITH_THRESHOLD else self.name


@dataclass(frozen=True)
class Violation:
    """A gate that was not passed.

    Attributes:
        gate: which.
        cases: the cases behind it, the worst first; empty where all cases shifted together.
        text: one sentence.
    """

    gate: Gate
    cases: Sequence[CaseResult]
    text: str


def parse_share(text: str, what: str) -> float:
    """``"3%"`` or ``"0.03"`` as a share.

    Raises:
        ParamError: not a share from 0 to below 1.
    """
    number, percent = (text.strip().removesuffix("%"), text.strip().endswith("%"))
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise ParamError(f"cannot read {what} {text!r}", why="it is no share below 100 %", todo="write it like 3%")
    return value


def parse_gates(text: str) -> list[Gate]:
    """The gates of a text such as ``slower:3%,energy:5%,missing,failed``.

    Raises:
        UnknownNameError: a gate that is none.
        ParamError: a threshold that is no share, or where none belongs.
        UsageError: a gate that is named twice, or none at all.
    """
    gates: list[Gate] = []
    for part in (word.strip() for word in text.split(",") if word.strip()):
        name, colon, threshold = part.partition(":")
        if name not in GATES:
            raise unknown_name("gate", name, GATES, listing="wattline compare --help")
        if colon and name not in _WITH_THRESHOLD:
            raise ParamError(f"{name} takes no threshold", why=f"{part!r} has one", todo=f"write {name}")
        gate = Gate(name, parse_share(threshold, "the threshold") if colon else 0.0)
        if any(known.name == name for known in gates):
            raise UsageError(f"{name!r} is given twice", why=text, todo="give it once")
        gates.append(gate)
    if not gates:
        raise UsageError("--fail-on names nothing", todo="write it like slower:3%,energy:5%,missing,failed")
    return gates


def margin_for(gates: Sequence[Gate], margin: float | None, default: float) -> float:
    """The margin of a comparison that gates judge: not above their thresholds, since what is the same fails nothing.

    Raises:
        UsageError: a margin was asked for that lies above a threshold.
    """
    thresholds = [gate.threshold for gate in gates if gate.threshold > 0]
    smallest = min(thresholds, default=math.inf)
    if margin is None:
        return min(default, smallest)
    if margin > smallest:
        raise UsageError(
            f"a margin of {margin * 100:g} % lies above the threshold of {smallest * 100:g} %",
            why="changes within the margin are called the same, and fail nothing", todo="choose a smaller --margin",
        )  # fmt: skip
    return margin


def check(comparison: Comparison, gates: Sequence[Gate]) -> list[Violation]:
    """The gates that a comparison does not pass.

    A case fails a threshold where it is told to have changed, and by its estimate has changed by as much.

    Raises:
        UsageError: the gates cannot be judged: other machines, no joules, or nothing that could be compared.
    """
    found: list[Violation] = []
    for gate in gates:
        if gate.name in _WITH_THRESHOLD:
            found += _changed(comparison, gate)
            continue
        word = {"failed": "broken", "missing": "missing"}[gate.name]
        cases = comparison.of(word)
        if cases:
            found.append(Violation(gate, cases, f"{_counted(cases)} {word}: {cases[0].label}, {cases[0].why}"))
    return found


def _changed(comparison: Comparison, gate: Gate) -> list[Violation]:
    if not comparison.same_machine:
        raise UsageError(
            f"{gate} cannot be judged between machines",
            why=f"A is {comparison.a.device_name}, B is {comparison.b.device_name}",
            todo="measure both on one machine, or leave --fail-on out",
        )
    contrast = comparison.time if gate.name == "slower" else comparison.energy
    if contrast is None or not contrast.changes:
        quantity = "a time" if gate.name == "slower" else "joules of one sensor"
        raise UsageError(
            f"{gate} cannot be judged", why=f"no case has {quantity} on both sides", todo="see the list of cases"
        )
    word = "slower" if gate.name == "slower" else "more energy"
    cases = comparison.of("slower") if gate.name == "slower" else comparison.of_energy(MORE)
    worst = [c for c in cases if (_change(c, gate) or 0.0) >= gate.threshold]
    found = []
    if worst:
        most = percent_change(_change(worst[0], gate) or 0.0)
        found.append(Violation(gate, worst, f"{_counted(worst)} {word}, most of all {worst[0].label} ({most})"))
    if (shift := _shift(contrast, gate)) is not None:
        found.append(Violation(gate, (), shift))
    return found


def _change(result: CaseResult, gate: Gate) -> float | None:
    change = result.time if gate.name == "slower" else result.energy
    return change.share if change else None


def _shift(contrast: Contrast, gate: Gate) -> str | None:
    shift = contrast.shift
    if shift.word != MORE or shift.share < gate.threshold:
        return None
    return f"all cases together shifted by {percent_change(shift.share)}"


def _counted(cases: Sequence[CaseResult]) -> str:
    return f"{len(cases)} case{'s' if len(cases) != 1 else ''}"
