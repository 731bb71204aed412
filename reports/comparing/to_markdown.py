"""A comparison as Markdown for a pull request: the verdict first, the tables folded."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence

from wattline.reports.comparing.comparison import VERDICTS, CaseResult, Comparison
from wattline.reports.comparing.contrast import Change
from wattline.reports.comparing.gate import Gate, Violation
from wattline.reports.comparing.judging import LESS, MORE
from wattline.reports.comparing.to_text import plain
from wattline.reports.comparing.words import (
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

MOST_ROWS = 60
"""Rows of one table; a comment on GitHub holds 65,536 characters."""
_LONGEST = 160
_SPECIAL = re.compile(r"([\\`*_\[\]#|~^@])")


def escaped(text: str, room: int = _LONGEST) -> str:
    """Foreign words as text: no markup, no mention, no link, no break out of a table."""
    short = html.escape(plain(shortened(text, room)))
    quiet = _SPECIAL.sub(r"\\\1", short).replace("\\@", "@&#8203;")
    return quiet.replace("://", "&#58;//").replace("www.", "www&#46;")


def to_markdown(comparison: Comparison, gates: Sequence[Gate] = (), violations: Sequence[Violation] = ()) -> str:
    """The whole comparison in GitHub's Markdown."""
    parts = [_title(comparison, gates, violations), _lead(comparison)]
    parts += [f"- **{escaped(str(v.gate))}**: {escaped(v.text, 400)}" for v in violations]
    if comparison.problems:
        parts.append("\n".join(f"> {escaped(problem, 400)}" for problem in comparison.problems))
    for word in ("slower", "faster"):
        rows = [(r, r.time) for r in comparison.of(word) if r.time]
        parts += _table(f"{len(rows)} {word}", rows, "time", opened=word == "slower")
    for word, name in ((MORE, "more energy"), (LESS, "less energy")):
        rows = [(r, r.energy) for r in comparison.of_energy(word) if r.energy]
        parts += _table(f"{len(rows)} with {name}", rows, "energy", opened=word == MORE)
    for word in ("broken", "missing", "fixed", "new", "not comparable"):
        parts += _reasons(word, comparison.of(word))
    parts += [_groups(comparison), _conditions(comparison), _method(comparison)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(comparison: Comparison, gates: Sequence[Gate], violations: Sequence[Violation]) -> str:
    if violations:
        return "### Wattline: regression"
    if gates:
        return "### Wattline: passed"
    return "### Wattline: comparison"


def _lead(comparison: Comparison) -> str:
    a, b = escaped(comparison.a.name), escaped(comparison.b.name)
    where = escaped(comparison.a.device_name)
    if not comparison.same_machine:
        where = f"{where} against {escaped(comparison.b.device_name)}: **different machines**"
    return f"**{verdict_counts(comparison)}** of {len(comparison.cases)} cases. A: {a}, B: {b}, on {where}."


def _folded(summary: str, body: str, *, opened: bool = False) -> str:
    # GitHub needs the empty lines to read Markdown within HTML.
    return f"<details{' open' if opened else ''}><summary>{html.escape(summary)}</summary>\n\n{body}\n\n</details>"


def _table(
    summary: str, rows: Sequence[tuple[CaseResult, Change]], quantity: str, *, opened: bool
) -> Iterator[str]:
    if not rows:
        return
    lines = ["| case | A | B | change | interval |", "|---|--:|--:|--:|---|"]
    for result, change in rows[:MOST_ROWS]:
        a, b = ((format_time(v) if quantity == "time" else format_si(v, "J")) for v in (change.a, change.b))
        lines.append(
            f"| {escaped(result.label)} | {a} | {b} | {percent_change(change.share)} | {interval(change)} |"
        )
    body = "\n".join(lines)
    if len(rows) > MOST_ROWS:
        body += f"\n\nand {len(rows) - MOST_ROWS} more"
    yield _folded(summary, body, opened=opened)


def _reasons(word: str, cases: Sequence[CaseResult]) -> Iterator[str]:
    if not cases:
        return
    lines = ["| case | why |", "|---|---|"]
    lines += [f"| {escaped(result.label)} | {escaped(result.why)} |" for result in cases[:MOST_ROWS]]
    body = "\n".join(lines)
    if len(cases) > MOST_ROWS:
        body += f"\n\nand {len(cases) - MOST_ROWS} more"
    yield _folded(f"{len(cases)} {word} ({VERDICTS[word]})", body, opened=word == "broken")


def _groups(comparison: Comparison) -> str:
    groups = [group for group in comparison.groups if group.count]
    if not groups:
        return ""
    lines = ["| operation | cases | change | verdict on all of them |", "|---|--:|--:|---|"]
    for group in groups[:MOST_ROWS]:
        verdict = ""
        if group.verdict:
            words = {MORE: "slower", LESS: "faster"}
            low, high = (percent_change(math.expm1(min(v, 50))) for v in (group.verdict.lo, group.verdict.hi))
            verdict = f"{words.get(group.verdict.word, group.verdict.word)} ({low} to {high})"
        lines.append(f"| {escaped(group.name)} | {group.count} | {percent_change(group.share)} | {verdict} |")
    return _folded("By operation", "\n".join(lines))


def _conditions(comparison: Comparison) -> str:
    if not comparison.differences:
        return ""
    lines = ["| condition | A | B | |", "|---|---|---|---|"]
    for d in comparison.differences[:MOST_ROWS]:
        about = {"machine": "another machine", "caution": "moves figures by itself"}.get(d.weight, "")
        lines.append(f"| {escaped(d.name)} | {escaped(d.a, 60)} | {escaped(d.b, 60)} | {about} |")
    return _folded(f"{len(comparison.differences)} conditions differ", "\n".join(lines))


def _method(comparison: Comparison) -> str:
    if not comparison.compared:
        return ""
    said = [
        f"Compared: {statistic_sentence(comparison)}.",
        f"Noise: {noise_sentence(comparison.time)}.",
        f"A/A: {aa}." if (aa := aa_sentence(comparison.time)) else "",
        f"Whole-machine shift: {shift_sentence(comparison.time)}.",
        f"Resolution: {resolution_sentence(comparison)}.",
        f"At most {(1 - comparison.confidence) * 100:g} % of the verdicts slower and faster are expected to be wrong "
        "(Benjamini-Hochberg).",
        f"{more[0].upper()}{more[1:]}." if (more := advice(comparison)) else "",
    ]
    return _folded("What can be told", "\n".join(f"- {line}" for line in said if line))
