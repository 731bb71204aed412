"""Memory by working set: steps of the curves, and whether they lie where the system says that its caches end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.comparisons import closing, words
from wattline.reports.data import ReportData
from wattline.reports.findings import Finding
from wattline.reports.lines import Line, Quantity, Question, common, panels
from wattline.reports.questions import RATE, each, per_byte
from wattline.reports.svg import Panel, binary_tick
from wattline.units import format_si, format_time

if TYPE_CHECKING:
    import pandas as pd

    from wattline.predictors.curves import Plateau, Seen

MAX_PANELS, MAX_LINES = 4, 8
FEWEST = 4
"""Working sets that a curve must have before its steps are held against caches."""


def _loads(rows: pd.DataFrame) -> pd.DataFrame:
    names = [f"{impl}, huge pages" if p == "huge" else str(impl) for impl, p in zip(rows["impl"], rows["pages"],
                                                                                    strict=True)]  # fmt: skip
    return each(rows, rows["steps"]).assign(impl=names)


def _loops(rows: pd.DataFrame) -> pd.DataFrame:
    names = [f"{impl}, {kernel}" for impl, kernel in zip(rows["impl"], rows["kernel"], strict=True)]
    return per_byte(rows).assign(impl=names)


LATENCY = Question(
    "memory_latency", "memory.latency", "Memory latency against the working set", "A dependent load", "bytes",
    "bytes of the working set",
    "Seconds of a load whose address the load before it gave, through lines in a random order that no prefetcher "
    "knows. Each step is the end of a cache, or of what the processor remembers of the addresses of pages, which huge "
    "pages take out.",
    quantity=Quantity("s per load", lambda rows: rows["time_s"], "time"), moving=("steps", "pages"), prepare=_loads,
    binary=True,
)  # fmt: skip
BANDWIDTH = Question(
    "memory_bandwidth", "memory.bandwidth", "Memory bandwidth against the working set", "Loops over a working set",
    "bytes", "bytes of all arrays",
    "Bytes per second of loops that pass over the same set again and again. Each step down is the end of a cache; the "
    "last stretch is main memory.",
    quantity=RATE, moving=("kernel",), prepare=_loops, binary=True,
)  # fmt: skip


def reported(data: ReportData) -> dict[str, float]:
    """Bytes of the caches as the system reports them, by name; empty where it reports none.

    Of a CPU one data or unified cache of each level; of another device its last cache alone is known.
    """
    if data.device is not None and data.device.kind != "cpu":
        return {"last cache": float(data.device.l2_bytes)} if data.device.l2_bytes else {}
    cpu = data.section("environment").get("cpu")
    found: dict[str, float] = {}
    for cache in cpu.get("caches", ()) if isinstance(cpu, Mapping) else ():
        if cache.get("kind") != "instruction" and cache.get("size_bytes"):
            name = f"L{int(cache['level'])}"
            found[name] = max(found.get(name, 0.0), float(cache["size_bytes"]))
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _held(caches: Mapping[str, float], given: Mapping[str, Any]) -> dict[str, float]:
    """The caches as working sets of all threads together: each has those in front of the last to itself.

    How many threads share a set that all processors walk through is not told here: none is drawn then.
    """
    threads = given.get("threads")
    if threads is None or threads == 1 or "last cache" in caches:
        return dict(caches)
    if not threads:
        return {}
    last = max(caches, key=lambda name: caches[name]) if caches else ""
    return {name: size if name == last else size * int(threads) for name, size in caches.items()}


def figures(data: ReportData) -> list[Figure]:
    """Latency and bandwidth against the working set, with the caches that are reported."""
    present = {record.case.op for record in data.records}
    return [_figure(question, data) for question in (LATENCY, BANDWIDTH) if question.op in present]


def _figure(question: Question, data: ReportData) -> Figure:
    drawn = panels(question, data)[:MAX_PANELS]
    if not drawn:
        return absent(question.id, question.title, "No way of walking through memory has figures at two working sets.")
    caches = reported(data)
    lines = sorted((line for panel in drawn for line in panel.lines), key=lambda line: -len(line.rows))
    names = list(dict.fromkeys(line.name for line in lines))
    shown = sorted(names[:MAX_LINES])
    same, rest = common(drawn)
    made: list[Markup] = []
    marked = False
    for panel, left in zip(drawn, rest, strict=True):
        drawing = Panel(f"{question.id}-{len(made)}", *natural_size(len(drawn))).log("y").log("x", 2, binary_tick)
        drawing.titles(words(left), question.axis_label, question.quantity.label)
        for line in (line for line in panel.lines if line.name in shown):
            series = shown.index(line.name)
            x, y = line.rows["bytes"].astype(float), question.quantity.of(line.rows)
            drawing.ax.plot(x, y, color=svg.SERIES[series], linewidth=1.2)
            drawing.points(x, y, line.rows["anchor"], series)
        low, high = drawing.ax.get_xlim()
        for size in (s for s in _held(caches, panel.given).values() if low < s < high):
            drawing.ax.axvline(size, color=svg.MUTED, linewidth=0.9, linestyle="--")
            marked = True
        made.append(drawing.svg(f"{question.title}{', ' + words(left) if left else ''}: {len(panel.lines)} lines."))
    caption = question.caption
    if marked:
        sizes = ", ".join(f"{name} {binary_tick(size)}" for name, size in caches.items())
        caption += f" Dashed: caches as the system reports them ({sizes}), as far as a thread has them to itself."
    elif not caches:
        caption += " The system reports no caches."
    caption += closing(question, data, same, len(names) - len(shown))
    return Figure(
        question.id, question.title, made, caption, list(enumerate(shown)),
        [("dashed", "reported cache")] if marked else [],
    )  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A curve that is long enough to be held against the caches.

    Attributes:
        question: what it is a curve of.
        name: of its line.
        plateaus: of it, by rising working set.
        seen: each cache that lies within the working sets measured, and the step nearest to it.
        beyond: caches as large as the largest working set, or larger: nothing is known of them.
    """

    question: Question
    name: str
    plateaus: tuple[Plateau, ...]
    seen: tuple[Seen, ...]
    beyond: tuple[str, ...]

    @property
    def agreeing(self) -> list[Seen]:
        """The caches that the curve shows where they are reported."""
        return [cache for cache in self.seen if cache.agrees]

    def told(self) -> str:
        """Plateaus and caches in words."""
        value = format_time if self.question is LATENCY else _rate
        parts = [f"{value(p.value)} {_span(p, first=i == 0)}" for i, p in enumerate(self.plateaus)]
        return f"{self.question.subject.lower()} ({self.name}): {', '.join(parts)}"


def _span(plateau: Plateau, *, first: bool) -> str:
    low, high = binary_tick(plateau.first_bytes), binary_tick(plateau.last_bytes)
    return f"up to {high}" if first else f"at {high}" if low == high else f"from {low} to {high}"


def _rate(value: float) -> str:
    return format_si(value, "B/s")


def curves(data: ReportData, calm: bool = False) -> list[Curve]:
    """The longest curve of latency and the longest one of bandwidth by one thread, with what they show of caches.

    Args:
        data: the run.
        calm: leave out records that noise or other processes disturbed.
    """
    from wattline.predictors.curves import compare_caches, plateaus

    caches = reported(data)
    found = []
    for question in (LATENCY, BANDWIDTH):
        long = [
            (line, held)
            for panel in panels(question, data, calm)
            if (held := _held(caches, panel.given))
            for line in panel.lines if len(line.rows) >= FEWEST
        ]  # fmt: skip
        if not long:
            continue
        line, held = max(long, key=lambda entry: (len(entry[0].rows), -_huge(entry[0])))
        sizes = line.rows["bytes"].astype(float).tolist()
        values = question.quantity.of(line.rows).astype(float).tolist()
        flat = plateaus(sizes, values)
        inside = {name: size for name, size in held.items() if min(sizes) <= size < max(sizes)}
        beyond = tuple(name for name, size in held.items() if size >= max(sizes))
        found.append(Curve(question, line.name, tuple(flat), tuple(compare_caches(flat, inside)), beyond))
    return found


def _huge(line: Line) -> int:
    return int("huge" in line.name)


def finding(data: ReportData) -> Finding | None:
    """Which reported caches the curves show; ``None`` without curves, or without caches to hold them against."""
    found = curves(data, calm=True)
    if not found:
        if not curves(data):
            return None
        title = "Whether the caches are as large as the system reports cannot be told from this run."
        text = "Too few of its records by working set are free of noise and other processes."
        return Finding("caches", title, text, LATENCY.id, "latency against the working set", quiet=True)
    # Latency tells caches apart better than bandwidth, which prefetching smooths: the first curve speaks.
    curve = found[0]
    shown, hidden = curve.agreeing, [cache for cache in curve.seen if not cache.agrees]
    subject = "The latency" if curve.question is LATENCY else "The bandwidth"
    parts = []
    if shown:
        parts.append(f"{subject} of memory steps where the system reports {_listed(shown)} to end")
    if hidden:
        nothing = f"{'but not' if shown else f'{subject} of memory does not step'} at the reported {_listed(hidden)}"
        parts.append(nothing)
    if not parts:
        parts.append(f"{subject} of memory was measured within one of the reported caches only")
    items = [c.told() for c in found]
    for c in found:
        items += [_place(c, cache) for cache in c.seen]
        items += [f"{name}: no larger working set was measured" for name in c.beyond]
    text = (
        "Plateaus of the curves by rising working set, and the step nearest to each reported cache: between the "
        "largest set that still fits and the least that does not, give or take half as much again."
    )
    return Finding(
        "caches", ", ".join(parts) + ".", text, curve.question.id, "the curve", tuple(dict.fromkeys(items)),
        quiet=not curve.seen,
    )  # fmt: skip


def _listed(caches: list[Seen]) -> str:
    return ", ".join(f"{cache.name} ({binary_tick(cache.reported_bytes)})" for cache in caches)


def _place(curve: Curve, cache: Seen) -> str:
    kind = "latency" if curve.question is LATENCY else "bandwidth"
    if cache.lo_bytes is None or cache.hi_bytes is None:
        return f"{cache.name}, {binary_tick(cache.reported_bytes)}: {kind} has no step at all"
    shared = sum((c.lo_bytes, c.hi_bytes) == (cache.lo_bytes, cache.hi_bytes) for c in curve.seen) > 1
    more = ", a step that it shares with another cache" if shared else ""
    return (
        f"{cache.name}, {binary_tick(cache.reported_bytes)}: {kind} steps between {binary_tick(cache.lo_bytes)} and "
        f"{binary_tick(cache.hi_bytes)}{more}"
    )
