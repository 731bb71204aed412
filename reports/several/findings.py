"""What a report on several runs says first: what changed, or which machine is faster for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wattline.reports.comparing.comparison import CaseResult, Comparison, Group, group_by
from wattline.reports.comparing.conditions import NOTE
from wattline.reports.comparing.contrast import Change
from wattline.reports.comparing.judging import LESS, MORE
from wattline.reports.comparing.words import (
    advice,
    interval,
    percent_change,
    resolution_sentence,
    share_text,
    shift_sentence,
    verdict_counts,
)
from wattline.reports.findings import times
from wattline.reports.several.fleet import Fleet

_MOST_NAMED, _MOST_IN_FULL = 5, 2


@dataclass(frozen=True)
class Answer:
    """One finding: a claim, the figures behind it, lines of a list, and where to look.

    Attributes:
        claim: one sentence.
        text: the figures behind it.
        items: pairs of anchor (may be empty) and line.
        anchor: of the section that shows more.
    """

    claim: str
    text: str = ""
    items: Sequence[tuple[str, str]] = ()
    anchor: str = ""


def find(comparisons: Sequence[Comparison], fleets: Sequence[Fleet], anchors: dict[str, str]) -> list[Answer]:
    """The answers, most telling first."""
    found: list[Answer] = [answer for fleet in fleets for answer in _outliers(fleet, anchors)]
    # Of many sides each has its first answer only: the tables below have the rest.
    most = None if len(comparisons) <= _MOST_IN_FULL else 1
    for comparison in comparisons:
        found += (_changes(comparison, anchors) if comparison.same_machine else _choice(comparison))[:most]
    return found + [_quiet_fleet(fleet) for fleet in fleets if not fleet.outliers]


def _item(result: CaseResult, change: Change, anchors: dict[str, str]) -> tuple[str, str]:
    return anchors.get(result.key, ""), f"{percent_change(change.share)} ({interval(change)}) {result.label}"


def _changes(comparison: Comparison, anchors: dict[str, str]) -> list[Answer]:
    """What changed on one machine."""
    a, b = comparison.a.name, comparison.b.name
    if not comparison.compared:
        return [Answer(f"{b} has nothing that could be held against {a}.", _left(comparison), anchor="cases")]
    slower, faster = comparison.of("slower"), comparison.of("faster")
    found = []
    counts = f"Of {comparison.compared} cases with a time in both: {verdict_counts(comparison)}."
    if slower:
        worst = slower[0].time
        assert worst is not None
        claim = f"{_cases(len(slower))} {_are(slower)} slower in {b} than in {a}, by up to {_size(worst.share)}."
        items = [_item(r, r.time, anchors) for r in slower[:_MOST_NAMED] if r.time]
        found.append(Answer(claim, counts, items, "cases"))
    if faster:
        best = faster[0].time
        assert best is not None
        claim = f"{_cases(len(faster))} {_are(faster)} faster in {b} than in {a}, by up to {_size(best.share)}."
        items = [_item(r, r.time, anchors) for r in faster[:_MOST_NAMED] if r.time]
        found.append(Answer(claim, "" if slower else counts, items, "cases"))
    if not (slower or faster):
        same = comparison.counts.get("same", 0)
        whole = same == comparison.compared
        claim = (
            f"Nothing changed between {a} and {b}, within {share_text(comparison.margin)}."
            if whole
            else f"No case is told to be slower or faster in {b} than in {a}."
        )
        text = f"{counts} Resolution: {resolution_sentence(comparison)}. {_capital(advice(comparison))}"
        found.append(Answer(claim, text.strip(), (), "noise"))
    found += _groups(comparison)
    shift = comparison.time.shift
    if shift.word in (MORE, LESS):
        found.insert(0, Answer(f"{b}, all cases together: {shift_sentence(comparison.time)}.", "", (), "noise"))
    more = comparison.of_energy(MORE)
    if more:
        worst = more[0].energy
        assert worst is not None
        claim = f"{_cases(len(more))} take more energy in {b}, by up to {_size(worst.share)}."
        found.append(Answer(claim, "", [_item(r, r.energy, anchors) for r in more[:_MOST_NAMED] if r.energy], "cases"))
    lost = [*comparison.of("broken"), *comparison.of("missing")]
    if lost:
        items = [(anchors.get(r.key, ""), f"{r.verdict}: {r.label}{': ' + r.why if r.why else ''}") for r in lost]
        found.append(Answer(f"{_cases(len(lost))} of {a} have no figure in {b}.", "", items[:_MOST_NAMED], "cases"))
    return found


def _groups(comparison: Comparison) -> list[Answer]:
    told = [g for g in comparison.groups if g.verdict and g.verdict.word in (MORE, LESS)]
    if not told:
        return []
    told.sort(key=lambda g: -g.share)
    items = [("", f"{g.name}: {percent_change(g.share)} ({_reach(g)}) over {g.count} cases") for g in told]
    slower = sum(g.verdict.word == MORE for g in told if g.verdict)
    counts = (("slower", slower), ("faster", len(told) - slower))
    words = " and ".join(f"{n} {'is' if n == 1 else 'are'} {word}" for word, n in counts if n)
    claim = f"Of {sum(bool(g.verdict) for g in comparison.groups)} operations, each as a whole, {words}."
    return [Answer(claim, "", items[:_MOST_NAMED], "groups")]


def _choice(comparison: Comparison) -> list[Answer]:
    """Which of two machines is faster for what."""
    a, b = comparison.a, comparison.b
    whole = next(iter(group_by(comparison, "time", "all")), None)
    if whole is None or not whole.count:
        return [Answer(f"{b.name} and {a.name} have no case in common.", _left(comparison), anchor="cases")]
    counts = comparison.counts
    told = ", ".join(f"{counts[w]} {w}" for w in ("faster", "slower", "same", "cannot tell") if counts.get(w))
    text = (
        f"Geometric mean over {whole.count} cases that both measured ({_reach(whole, as_factor=True)}); case by case: "
        f"{told}. {b.name} is {b.device_name}, {a.name} is {a.device_name}."
    )
    found = [Answer(_speed_claim(b.name, a.name, whole), text, _by_operation(comparison), "groups")]
    if comparison.energy:
        (joules,) = group_by(comparison, "energy", "all")
        less, more = comparison.energy_counts.get("less energy", 0), comparison.energy_counts.get("more energy", 0)
        text = f"Geometric mean over {joules.count} cases; {less} with less energy, {more} with more."
        claim = f"For the same work {b.name} takes {times(joules.ratio)} times the energy of {a.name}."
        found.append(Answer(claim, text, (), "groups"))
    elif any(c.energy for c in a.cases.values()) or any(c.energy for c in b.cases.values()):
        claim = "Energy cannot be compared: no case has joules of one kind of sensor on both."
        found.append(Answer(claim, anchor="cases"))
    return found


def _speed_claim(b: str, a: str, group: Group) -> str:
    if group.verdict and group.verdict.word not in (MORE, LESS):
        return f"Over all cases together it cannot be told whether {b} or {a} is faster."
    quicker, other, factor = (b, a, 1 / group.ratio) if group.ratio < 1 else (a, b, group.ratio)
    return f"{quicker} is {times(factor)} times as fast as {other} over all cases together."


def _by_operation(comparison: Comparison) -> list[tuple[str, str]]:
    """Where each machine is the better one: the extremes of the operations that are told."""
    groups = [g for g in comparison.groups if g.count and math.isfinite(g.ratio)]
    told = [g for g in groups if g.verdict and g.verdict.word in (MORE, LESS)]
    lines = []
    for name, word in ((comparison.b.name, LESS), (comparison.a.name, MORE)):
        mine = sorted((g for g in told if g.verdict and g.verdict.word == word), key=lambda g: -abs(math.log(g.ratio)))
        if mine:
            named = ", ".join(f"{g.name} ({times(math.exp(abs(math.log(g.ratio))))} times)" for g in mine[:_MOST_NAMED])
            rest = f" and {len(mine) - _MOST_NAMED} more" if len(mine) > _MOST_NAMED else ""
            lines.append(("", f"{name} is faster for {named}{rest}."))
    return lines


def _quiet_fleet(fleet: Fleet) -> Answer:
    energy = fleet.quantity == "energy"
    if fleet.why_not:
        return Answer(f"Whether one of {len(fleet.members)} machines stands out cannot be said.", f"{fleet.why_not}.")
    text = (
        f"{fleet.cases} cases, {len(fleet.members)} machines of {fleet.device}. A machine that takes "
        f"{share_text(fleet.told)} more {'energy' if energy else 'time'} in all of them would be named nine times out "
        "of ten."
    )
    return Answer(f"No machine stands out from its peers{' in energy' if energy else ''}.", text, (), "fleet")


def _outliers(fleet: Fleet, anchors: dict[str, str]) -> list[Answer]:
    """One answer for each machine that stands out, with all that it stands out in."""
    words = ("more energy", "less energy") if fleet.quantity == "energy" else ("slower", "faster")
    found = []
    for side in dict.fromkeys(o.side for o in fleet.outliers):
        mine = [o for o in fleet.outliers if o.side == side]
        first = mine[0]
        where = f" in {first.scope}, beyond the rest of its cases" if first.scope else " in all cases together"
        claim = f"{first.name} stands out: {words[first.share <= 0]} than its peers by {_size(first.share)}{where}."
        further = ", ".join(f"{o.scope} {percent_change(o.share)}" for o in mine[1:])
        text = (
            f"{first.cases} cases, {len(fleet.members)} machines of {fleet.device}; the middle half of them lies "
            f"within {share_text(first.peers)} (p = {first.p:.2g}, Holm)." + (f" Also in {further}." if further else "")
        )
        items = [(anchors.get(e.key, ""), f"{percent_change(e.share)} against the median machine: {e.label}")
                 for e in first.evidence]  # fmt: skip
        found.append(Answer(claim, text, items, "fleet"))
    return found


def _reach(group: Group, *, as_factor: bool = False) -> str:
    if group.verdict is None:
        return "fewer than four cases: no interval"
    low, high = math.exp(min(group.verdict.lo, 50)), math.exp(min(group.verdict.hi, 50))
    if as_factor:
        return f"{times(low)} to {times(high)} times the time"
    return f"{percent_change(low - 1)} to {percent_change(high - 1)}"


def _left(comparison: Comparison) -> str:
    counts = verdict_counts(comparison)
    found = [d for d in comparison.differences if d.weight != NOTE]
    return _capital(counts) + (f" {len(found)} conditions differ." if found else "")


def _size(share: float) -> str:
    return percent_change(abs(share)).lstrip("+")


def _cases(count: int) -> str:
    return f"{count} case{'s' if count != 1 else ''}"


def _are(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
