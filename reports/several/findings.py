"""What a report on several runs says first: what changed, or which machine is faster for what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from wattline.reports.comparing.comparison import CaseResult, Comparison, Group, group_by, operation_names
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

_MOST_NAMED, _MOST_IN_FULL = 6, 2


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


def _named(results: Sequence[CaseResult], comparison: Comparison) -> tuple[list[CaseResult], list[tuple[str, str]]]:
    """The cases to name, in turn from each operation so that none hides another, and a line on those left out."""
    name = operation_names(comparison)
    by_operation: dict[str, list[CaseResult]] = {}
    for result in results:
        by_operation.setdefault(name(result.case), []).append(result)
    turns = [r for turn in zip_longest(*by_operation.values()) for r in turn if r is not None]
    kept = {r.key for r in turns[:_MOST_NAMED]}
    left = Counter(name(r.case) for r in turns[_MOST_NAMED:])
    more = ", ".join(f"{count} of {op}" for op, count in left.most_common(_MOST_NAMED))
    rest = f"and {more}{', and others' if len(left) > _MOST_NAMED else ''}"
    return [r for r in results if r.key in kept], [("", rest)] if more else []


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
        named, rest = _named(slower, comparison)
        items = [_item(r, r.time, anchors) for r in named if r.time] + rest
        found.append(Answer(claim, f"{counts} {_sure(comparison)}", items, "cases"))
    if faster:
        best = faster[0].time
        assert best is not None
        claim = f"{_cases(len(faster))} {_are(faster)} faster in {b} than in {a}, by up to {_size(best.share)}."
        named, rest = _named(faster, comparison)
        items = [_item(r, r.time, anchors) for r in named if r.time] + rest
        found.append(Answer(claim, "" if slower else f"{counts} {_sure(comparison)}", items, "cases"))
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
        verb = "takes" if len(more) == 1 else "take"
        claim = f"{_cases(len(more))} {verb} more energy in {b}, by up to {_size(worst.share)}."
        # Those that are slower as well are named above.
        others = [r for r in more if r.verdict != "slower"]
        both = len(more) - len(others)
        every = (
            "It is" if len(more) == 1 else f"All {both} are" if not others else f"{both} of them {_are(range(both))}"
        )
        named, rest = _named(others, comparison)
        items = [_item(r, r.energy, anchors) for r in named if r.energy] + rest
        found.append(Answer(claim, f"{every} slower as well." if both else "", items, "cases"))
    lost = [*comparison.of("broken"), *comparison.of("missing")]
    if lost:
        items = [(anchors.get(r.key, ""), f"{r.verdict}: {r.label}{': ' + r.why if r.why else ''}") for r in lost]
        found.append(Answer(f"{_cases(len(lost))} of {a} have no figure in {b}.", "", items[:_MOST_NAMED], "cases"))
    return found


def _sure(comparison: Comparison) -> str:
    """How the verdicts stand to the noise."""
    wrong = share_text(1 - comparison.confidence)
    noise = share_text(comparison.time.noise.twentieth)
    return (
        f"One of twenty equal measurements differs by {noise} or more; at most {wrong} of these verdicts are expected "
        "to be wrong."
    )


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
    if len(items) == 1:
        return [Answer(claim, f"{items[0][1]}.", (), "groups")]
    return [Answer(claim, "", items[:_MOST_NAMED], "groups")]


def _choice(comparison: Comparison) -> list[Answer]:
    """Which of two machines is faster for what."""
    a, b = comparison.a, comparison.b
    whole = next(iter(group_by(comparison, "time", "all")), None)
    if whole is None or not whole.count:
        return [Answer(f"{b.name} and {a.name} have no case in common.", _left(comparison), anchor="cases")]
    counts = comparison.counts
    words = {"faster": f"{b.name} is faster in", "slower": f"{a.name} is faster in", "same": "alike:",
             "cannot tell": "cannot tell:"}  # fmt: skip
    told = ", ".join(f"{text} {counts[word]}" for word, text in words.items() if counts.get(word))
    text = f"Geometric mean over {whole.count} cases of both ({_reach(whole, as_factor=True)}). Case by case: {told}."
    found = [Answer(_speed_claim(b.name, a.name, whole), text, _better_for(comparison, "time"), "groups")]
    if comparison.energy:
        (joules,) = group_by(comparison, "energy", "all")
        less, more = comparison.energy_counts.get("less energy", 0), comparison.energy_counts.get("more energy", 0)
        text = f"Geometric mean over {joules.count} cases: less energy in {less}, more in {more}."
        claim = f"For the same work {b.name} takes {times(joules.ratio)} times the energy of {a.name}."
        found.append(Answer(claim, text, _better_for(comparison, "energy"), "groups"))
    elif any(c.energy for c in a.cases.values()) or any(c.energy for c in b.cases.values()):
        claim = "Energy cannot be compared: no case has joules of one kind of sensor on both."
        found.append(Answer(claim, anchor="cases"))
    lacking = ((b.name, a.name, ("broken", "missing")), (a.name, b.name, ("fixed", "new")))
    return found + [answer for one, other, words in lacking for answer in _lacks(comparison, one, other, words)]


def _lacks(comparison: Comparison, one: str, other: str, words: Sequence[str]) -> list[Answer]:
    """What only one of two machines has figures for, by operation and reason."""
    name = operation_names(comparison)

    def why_not(result: CaseResult) -> str:
        if result.verdict == "missing":
            return result.why.replace("B", one, 1)
        return result.why.removeprefix("in A: ") or f"not measured on {one}"

    reasons = Counter((name(r.case), why_not(r)) for word in words for r in comparison.of(word))
    if not reasons:
        return []
    count = sum(reasons.values())
    refused = all(why.startswith("unsupported") for _, why in reasons)
    verb = "cannot run" if refused else "has no figure for"
    which = "a case" if count == 1 else f"{count} cases"
    if len(reasons) == 1:
        ((operation, why),) = reasons
        text = f"{_capital(why)} {other} measured {'it' if count == 1 else 'them'}."
        return [Answer(f"{one} {verb} {which} of {operation}.", text, (), "cases")]
    items = [("", f"{op}, {_cases(n)}: {why}") for (op, why), n in reasons.most_common(_MOST_NAMED)]
    if len(reasons) > _MOST_NAMED:
        items.append(("", f"and {len(reasons) - _MOST_NAMED} more operations or reasons"))
    return [Answer(f"{one} {verb} {which} that {other} measured.", "", items, "cases")]


def _speed_claim(b: str, a: str, group: Group) -> str:
    if group.verdict and group.verdict.word not in (MORE, LESS):
        return f"Over all cases together it cannot be told whether {b} or {a} is faster."
    quicker, other, factor = (b, a, 1 / group.ratio) if group.ratio < 1 else (a, b, group.ratio)
    return f"{quicker} is {times(factor)} times as fast as {other} over all cases together."


def _better_for(comparison: Comparison, quantity: str) -> list[tuple[str, str]]:
    """Where each machine is the better one: the extremes of the operations that are told."""
    groups = [g for g in group_by(comparison, quantity) if g.count and math.isfinite(g.ratio)]
    verb = "is faster for" if quantity == "time" else "takes less energy for"
    lines = []
    for name, word in ((comparison.b.name, LESS), (comparison.a.name, MORE)):
        mine = [g for g in groups if g.verdict and g.verdict.word == word]
        mine.sort(key=lambda g: -abs(math.log(g.ratio)))
        if mine:
            named = ", ".join(f"{g.name} ({times(math.exp(abs(math.log(g.ratio))))} x)" for g in mine[:_MOST_NAMED])
            rest = f" and {len(mine) - _MOST_NAMED} more" if len(mine) > _MOST_NAMED else ""
            lines.append(("", f"{name} {verb} {named}{rest}."))
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
