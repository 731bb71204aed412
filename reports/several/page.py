"""The report on several runs: one HTML file that needs no network, no server and no other file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattline import __version__
from wattline.errors import UsageError
from wattline.files import atomic_write
from wattline.garbage import seldom_collected
from wattline.reports.comparing.comparison import (
    CONFIDENCE,
    MARGIN,
    VERDICTS,
    CaseResult,
    Comparison,
    compare_runs,
)
from wattline.reports.comparing.reading import Side, read_side, run_folders
from wattline.reports.comparing.words import (
    aa_sentence,
    interval,
    noise_sentence,
    percent_change,
    resolution_sentence,
    share_text,
    shift_sentence,
    statistic_sentence,
)
from wattline.reports.html import asset, environment
from wattline.reports.several import figures
from wattline.reports.several.findings import Answer, find
from wattline.reports.several.fleet import Fleet, fleets
from wattline.reports.several.groups import GroupRow, group_rows, short_names
from wattline.reports.svg import marker_definitions
from wattline.units import format_time

MOST_ROWS = 3000
"""Most cases in the table of the page; those that changed come first."""
_ORDER = (
    "slower", "broken", "faster", "missing", "fixed", "not comparable", "new", "cannot tell", "same", "no figure"
)


@dataclass(frozen=True)
class CaseRow:
    """One case: anchor, what it is, a time (and joules) per side, and the verdicts against the first side."""

    anchor: str
    op: str
    impl: str
    dtype: str
    label: str
    values: Sequence[tuple[str, str]]
    changes: Sequence[tuple[str, str, str, str]]
    why: str


@dataclass(frozen=True)
class Page:
    """Everything that the template shows."""

    sides: Sequence[Side]
    comparisons: Sequence[Comparison]
    answers: Sequence[Answer]
    fleets: Sequence[Fleet]
    operations: Sequence[GroupRow]
    formats: Sequence[GroupRow]
    figures: Sequence[Any]
    rows: Sequence[CaseRow]
    left_out: int
    energy: bool
    problems: Sequence[str]
    noise: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    names: Sequence[str] = field(default_factory=list)
    lead: str = ""

    @property
    def pair(self) -> bool:
        """Whether there are two sides: all that is asked then fits on one screen, answers left and operations right."""
        return len(self.comparisons) == 1

    @property
    def short(self) -> list[str]:
        """Names of two sides for the cells of a table."""
        return short_names(self.names)

    @property
    def choice(self) -> bool:
        """Whether it is about two machines, of which each may be the better one for something."""
        return self.pair and not self.comparisons[0].same_machine


def write_comparison(
    runs: Sequence[str | os.PathLike[str] | Side],
    out: str | os.PathLike[str] = "comparison.html",
    *,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    statistic: str = "auto",
) -> Path:
    """Write the report on several runs or machines, side by side.

    Args:
        runs: run folders, the first of them the baseline; a folder that holds several runs is one side of repeats. One
            folder alone that holds several runs stands for these, each a side of its own.
        out: the file to write.
        margin, confidence, statistic: as of :func:`wattline.reports.compare_runs`.

    Returns:
        The path written.

    Raises:
        StorageError: a run cannot be read or the file not written.
        SchemaError: no run, a damaged one, or one of a newer version.
        UsageError: fewer than two sides.
    """
    given = list(runs)
    if len(given) == 1 and not isinstance(given[0], Side):
        given = [*run_folders(given[0])]
    if len(given) < 2:
        raise UsageError("a report on several runs needs two at least", todo="name another run folder")
    target = Path(out)
    with seldom_collected():
        sides = [side if isinstance(side, Side) else read_side(side) for side in given]
        text = render(build(sides, margin, confidence, statistic))
    atomic_write(target, text.encode("utf-8", "replace"))
    return target


def render(page: Page) -> str:
    """The HTML text of a page."""
    met = {word: text for word, text in VERDICTS.items() if any(word in c.counts for c in page.comparisons)}
    jinja = environment()
    jinja.filters["change"] = percent_change
    template = jinja.get_template("several.html.j2")
    return str(
        template.render(
            version=__version__, page=page, style=asset("report.css") + asset("several.css"),
            script=asset("several.js"), markers=marker_definitions(), verdicts=met,
        )
    )  # fmt: skip


def build(
    sides: Sequence[Side], margin: float = MARGIN, confidence: float = CONFIDENCE, statistic: str = "auto"
) -> Page:
    """What a page on these sides says; the first is the baseline."""
    how: dict[str, Any] = {"margin": margin, "confidence": confidence, "statistic": statistic}
    comparisons = [compare_runs(sides[0], side, **how) for side in sides[1:]]
    found = fleets(sides, margin=margin, confidence=confidence)
    if any(case.energy for side in sides for case in side.cases.values()):
        found += fleets(sides, quantity="energy", margin=margin, confidence=confidence)
    results, left_out = _shown(comparisons)
    anchors = {key: f"c-{i}" for i, key in enumerate(results)}
    energy = any(c.energy for c in comparisons)
    names = _names(sides)
    named = list(zip(comparisons, names[1:], strict=True))
    quantity = "fast" if all(c.statistic == "p5" for c in comparisons) else "time"
    return Page(
        sides, comparisons, find(comparisons, found, anchors), found,
        group_rows(comparisons, names, "operation"), group_rows(comparisons, names, "format"),
        [figures.ratios(c, i, anchors) for i, c in enumerate(comparisons, 1)],
        [_row(anchors[key], key, sides, each, quantity) for key, each in results.items()], left_out, energy,
        list(dict.fromkeys(text for c, name in named for text in _problems(c, names[0], name))),
        [(f"{name} against {names[0]}", list(_trust(c))) for c, name in named],
        names, _lead(sides, names, comparisons),
    )  # fmt: skip


def _lead(sides: Sequence[Side], names: Sequence[str], comparisons: Sequence[Comparison]) -> str:
    """What is held against what, on which machine."""
    runs = [f"{len(side.runs)} run{'s' if len(side.runs) != 1 else ''}" for side in sides]
    against = f"A time of +10 % is ten per cent slower than in {names[0]}."
    if len(comparisons) > 1:
        return f"{len(sides)} sides; everything is held against the first, {names[0]}. {against}"
    if comparisons[0].same_machine:
        where = sides[0].device_name or "one machine"
        if comparisons[0].statistic == "p5":
            against += " Times are 5th percentiles of samples, which repeat better here than medians."
        return f"{where}: {runs[0]} of {names[0]}, {runs[1]} of {names[1]}. {against}"
    each = (f"{name} is {side.device_name}, {count}" for name, side, count in zip(names, sides, runs, strict=True))
    return f"{'; '.join(each)}."


def _names(sides: Sequence[Side]) -> list[str]:
    """Names that tell the sides apart: of equal ones the number is added."""
    names = [side.name for side in sides]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def _problems(comparison: Comparison, a: str, b: str) -> Iterator[str]:
    for text in comparison.problems:
        yield text.replace("A: ", f"{a}: ", 1) if text.startswith("A: ") else text.replace("B: ", f"{b}: ", 1)


def _shown(comparisons: Sequence[Comparison]) -> tuple[dict[str, list[CaseResult | None]], int]:
    """The cases of the table, those that changed first, with a result for each comparison."""
    by_key = [{r.key: r for r in c.cases} for c in comparisons]
    keys = list(dict.fromkeys(k for table in by_key for k in table))

    def rank(key: str) -> tuple[int, float]:
        mine = [table[key] for table in by_key if key in table]
        largest = max((abs(r.time.change) for r in mine if r.time), default=0.0)
        return min(_ORDER.index(r.verdict) for r in mine), -largest

    keys.sort(key=rank)
    return {k: [table.get(k) for table in by_key] for k in keys[:MOST_ROWS]}, max(0, len(keys) - MOST_ROWS)


def _row(
    anchor: str, key: str, sides: Sequence[Side], results: Sequence[CaseResult | None], quantity: str
) -> CaseRow:
    case = next(r.case for r in results if r)
    values = []
    for side in sides:
        held = side.cases.get(key)
        time = _middle([r.value for r in getattr(held, quantity)]) if held else math.nan
        values.append((format_time(time), f"{time:.6g}") if math.isfinite(time) else ("", ""))
    changes, whys = [], []
    for result in results:
        if result is None:
            changes.append(("", "", "", ""))
            continue
        shown = percent_change(result.time.share) if result.time else ""
        title = f"{interval(result.time)}; {' '.join(result.notes)}" if result.time else result.why
        changes.append((result.verdict, shown, f"{result.time.change:.6g}" if result.time else "", title))
        if result.energy and result.energy_verdict not in ("same", "cannot tell"):
            whys.append(f"{result.energy_verdict} ({percent_change(result.energy.share)})")
        whys += [text for text in (result.why, result.energy_why) if text]
    return CaseRow(
        anchor, case.op, case.impl, case.dtype or "", case.label(), values, changes, "; ".join(dict.fromkeys(whys))
    )


def _middle(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan


def _trust(comparison: Comparison) -> Iterator[tuple[str, str]]:
    if not comparison.compared:
        yield "compared", "no case has a time on both sides"
        return
    yield "compared", statistic_sentence(comparison)
    yield "noise", noise_sentence(comparison.time)
    if aa := aa_sentence(comparison.time):
        yield "A/A", aa
    yield "shift of all cases", shift_sentence(comparison.time)
    if comparison.energy:
        yield "noise of energy", noise_sentence(comparison.energy)
        yield "shift of energy", shift_sentence(comparison.energy, "energy")
        joules = sorted(c.verdict.resolution for c in comparison.energy.changes.values())
        yield "resolution of energy", f"{share_text(joules[len(joules) // 2])} in half of the cases"
    yield "resolution", resolution_sentence(comparison)
    yield "margin", f"changes within {share_text(comparison.margin)} are called the same"
