"""A comparison as plain text within 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from wattline.reports.comparing.comparison import ENERGY_WORDS, VERDICTS, CaseResult, Comparison
from wattline.reports.comparing.conditions import NOTE
from wattline.reports.comparing.contrast import Change
from wattline.reports.comparing.gate import Gate, Violation
from wattline.reports.comparing.judging import LESS, MORE
from wattline.reports.comparing.words import (
    ROOM,
    aa_sentence,
    advice,
    interval,
    noise_sentence,
    percent_change,
    resolution_sentence,
    shift_sentence,
    shortened,
    statistic_sentence,
    verdict_counts,
)
from wattline.units import format_si, format_time

MOST_LINES = 25
"""Cases of one verdict that are listed; the rest is counted."""
MOST_WITHOUT = 8
"""Likewise, of the cases without a change to tell."""
MOST_GROUPS = 15
MOST_DIFFERENCES = 8
_WITHOUT_CHANGE = ("broken", "fixed", "missing", "new", "not comparable")


def to_text(comparison: Comparison, gates: Sequence[Gate] = (), violations: Sequence[Violation] = ()) -> str:
    """The whole comparison for a terminal; control characters of foreign words are replaced."""
    lines = [*_heads(comparison), *_differences(comparison)]
    lines += ["", f"{comparison.compared} cases compared: {verdict_counts(comparison)}"]
    if comparison.energy:
        counts = ", ".join(f"{n} {word}" for word, n in comparison.energy_counts.items())
        lines.append(f"energy of {len(comparison.energy.changes)} cases: {counts}")
    lines += [*_cases(comparison), *_groups(comparison), *_trust(comparison)]
    if gates:
        lines += ["", *verdict_lines(gates, violations)]
    return "\n".join(plain(line) for line in _wrapped(lines)) + "\n"


def verdict_lines(gates: Sequence[Gate], violations: Sequence[Violation]) -> list[str]:
    """One line for each gate that was not passed, or one that all were."""
    if not violations:
        return [f"passed: {', '.join(map(str, gates))}"]
    return [f"FAILED {violation.gate}: {violation.text}" for violation in violations]


def plain(text: str) -> str:
    """The text without control characters and the marks that turn writing around: none may steer a terminal."""
    return "".join(c if c.isprintable() or c == " " else "\ufffd" for c in text)


def _wrapped(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if len(line) <= ROOM:
            yield line
            continue
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        yield from textwrap.wrap(line, ROOM, subsequent_indent=indent, break_on_hyphens=False)


def _heads(comparison: Comparison) -> Iterator[str]:
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        runs = f", {len(side.runs)} runs" if len(side.runs) > 1 else ""
        yield shortened(f"{letter}  {side.name}{runs}: {side.records} records, {side.device_name}", ROOM)
    for problem in comparison.problems:
        yield f"note: {problem}"


def _differences(comparison: Comparison) -> Iterator[str]:
    found = comparison.differences
    if not comparison.same_machine:
        yield "different machines: ratios are those of the machines, and no gate of speed applies"
    for d in found[:MOST_DIFFERENCES]:
        mark = "" if d.weight == NOTE else "  (moves figures by itself)"
        yield f"differs: {d.name}: {shortened(d.a or 'none', 60)} -> {shortened(d.b or 'none', 60)}{mark}"
    if len(found) > MOST_DIFFERENCES:
        yield f"differs: {len(found) - MOST_DIFFERENCES} further conditions (all with --format json)"


def _cases(comparison: Comparison) -> Iterator[str]:
    for word in ("slower", "faster"):
        yield from _changes(word, [(r, r.time) for r in comparison.of(word) if r.time], format_time)
    for word in (MORE, LESS):
        rows = [(r, r.energy) for r in comparison.of_energy(word) if r.energy]
        yield from _changes(ENERGY_WORDS[word], rows, lambda v: format_si(v, "J"))
    for word in _WITHOUT_CHANGE:
        cases = comparison.of(word)
        if cases:
            shared = cases[0].why if len({case.why for case in cases}) == 1 else ""
            about = f" ({shortened(shared, ROOM)})" if shared and len(cases) > 1 else ""
            yield from ("", f"{word} ({len(cases)}): {VERDICTS[word]}{about}")
            for result in cases[:MOST_WITHOUT]:
                yield f"  {shortened(result.label, ROOM - 2)}"
                if result.why and not about:
                    yield f"    {shortened(result.why, 2 * ROOM - 12)}"
            yield from _rest(len(cases), MOST_WITHOUT)


def _changes(word: str, rows: Sequence[tuple[CaseResult, Change]], shown: object) -> Iterator[str]:
    if not rows:
        return
    assert callable(shown)
    yield from ("", f"{word} ({len(rows)})")
    for result, change in rows[:MOST_LINES]:
        yield f"  {shortened(result.label, ROOM - 2)}"
        notes = f"  [{', '.join(result.notes)}]" if result.notes else ""
        figures = f"{shown(change.a)} -> {shown(change.b)}"
        yield f"    {percent_change(change.share):>8}  ({interval(change)})  {figures}{notes}"
    yield from _rest(len(rows), MOST_LINES)


def _rest(count: int, most: int) -> Iterator[str]:
    if count > most:
        yield f"  and {count - most} more (all with --format json)"


def _groups(comparison: Comparison) -> Iterator[str]:
    groups = [group for group in comparison.groups if group.count]
    if len(groups) < 2 and not any(group.verdict for group in groups):
        return
    yield from ("", f"{'by operation':<34} {'cases':>5} {'change':>9}  verdict on all of them")
    for group in groups[:MOST_GROUPS]:
        verdict = ""
        if group.verdict:
            words = {MORE: "slower", LESS: "faster"}
            verdict = words.get(group.verdict.word, group.verdict.word)
            low, high = (percent_change(math.expm1(min(v, 50))) for v in (group.verdict.lo, group.verdict.hi))
            if verdict in words.values():
                verdict += f" ({low} to {high})"
        name = shortened(group.name, 34)
        yield f"{name:<34} {group.count:>5} {percent_change(group.share):>9}  {verdict}".rstrip()
    if len(groups) > MOST_GROUPS:
        yield f"and {len(groups) - MOST_GROUPS} more groups"


def _trust(comparison: Comparison) -> Iterator[str]:
    if not comparison.compared:
        return
    yield from ("", f"compared: {statistic_sentence(comparison)}")
    yield f"noise: {noise_sentence(comparison.time)}"
    if aa := aa_sentence(comparison.time):
        yield f"A/A: {aa}"
    yield f"whole-machine shift: {shift_sentence(comparison.time)}"
    if comparison.energy:
        yield f"noise of energy: {noise_sentence(comparison.energy)}"
        yield f"shift of energy: {shift_sentence(comparison.energy, 'energy')}"
    yield f"resolution: {resolution_sentence(comparison)}"
    yield (
        f"verdicts: at most {(1 - comparison.confidence) * 100:g} % of those that say slower or faster are expected to "
        "be wrong (Benjamini-Hochberg)"
    )
    if more := advice(comparison):
        yield more
