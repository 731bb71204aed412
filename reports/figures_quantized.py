"""Quantised products: up to how many rows they pay, against dense weights and against dequantising in the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wattline.quantization import ELEMENTS, SCHEMES
from wattline.reports import svg
from wattline.reports.blocks import Figure, absent, natural_size
from wattline.reports.crossover import Crossover, crossovers
from wattline.reports.data import ReportData
from wattline.reports.findings import STEADY, Finding
from wattline.reports.svg import Panel

if TYPE_CHECKING:
    import pandas as pd

OP = "gemm.quantized"
DENSE = ("dense",)
UNPACKED = ("dequantize", "dequantize_compiled")
"""Implementations that multiply dense matrices: made once, or in every call."""
MAX_SHAPES = 3
MAX_CURVES = 7
_DISTURBED = "noisy|foreign_process"
"""Flags of records that must not carry the finding."""
_SHAPE = ["n", "k", "dtype", "regime", "data"]
_STORAGE = ["scheme", "group", "bits", "abits"]
_TITLE = "Quantised products: speed-up against batch"


@dataclass(frozen=True)
class Storage:
    """One way to store the operands of one shape, over batches.

    Attributes:
        name: in words.
        width: bits of a weight in words, e.g. ``"4-bit"``.
        rows: records of kernels that multiply what is packed.
        unpacked: records of dequantise-then-multiply.
    """

    name: str
    width: str
    rows: pd.DataFrame
    unpacked: pd.DataFrame

    def curves(self) -> list[tuple[str, pd.DataFrame]]:
        """Its kernels: name and records by rising m, one for each."""
        return [(f"{impl} {self.name}", _line(rows)) for impl, rows in self.rows.groupby("impl", sort=True)]


@dataclass(frozen=True)
class Shape:
    """One shape of weights under one set of conditions.

    Attributes:
        name: in words.
        storages: how its operands were stored.
        dense: records of the product with dense weights, whatever they were quantised to before.
    """

    name: str
    storages: tuple[Storage, ...]
    dense: pd.DataFrame


@dataclass(frozen=True)
class Meeting:
    """Where the quickest quantised kernel of a storage meets a baseline.

    Attributes:
        shape: of the weights.
        storage: of the operands.
        dense: whether the baseline has dense weights; else it dequantises in every call.
        found: the crossing over m.
        span: the smallest and the largest m that both have.
    """

    shape: Shape
    storage: Storage
    dense: bool
    found: Crossover
    span: tuple[float, float]


def _line(rows: pd.DataFrame) -> pd.DataFrame:
    """The quickest record of each m, by rising m."""
    return rows.sort_values("time_s", kind="stable").drop_duplicates("m").sort_values("m")


def shapes(data: ReportData, rows: pd.DataFrame | None = None) -> list[Shape]:
    """The shapes with quantised products in a run, those with the most records first."""
    rows = data.usable_of([OP]) if rows is None else rows
    if not {"scheme", "group", "bits", "abits"} <= set(rows.columns):
        return []
    rows = rows[(rows["op"] == OP) & (rows["variant"].fillna("") != "b")]
    found: list[tuple[int, Shape]] = []
    for key, group in rows.groupby(_SHAPE, sort=True):
        storages = []
        for stored, part in group[~group["impl"].isin(DENSE)].groupby(_STORAGE, sort=True):
            unpacked = part["impl"].isin(UNPACKED)
            if not unpacked.all():
                storages.append(Storage(_storage_text(stored), _width(stored), part[~unpacked], part[unpacked]))
        if storages:
            dense = group[group["impl"].isin(DENSE)]
            found.append((len(group), Shape(_shape_text(key), tuple(storages), dense)))
    return [shape for _, shape in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


def _storage_text(key: tuple[Any, ...]) -> str:
    scheme, group, bits, abits = key
    words = [str(scheme)]
    words += [f"{bits} bits" if not abits else f"{bits} x {abits} bits"] if bits else []
    return " ".join(words + ([f"group {group}"] if group else []))


def _width(key: tuple[Any, ...]) -> str:
    scheme, _, bits, _ = key
    known = SCHEMES.get(str(scheme))
    width = int(bits) or (ELEMENTS[known.weight].bits if known else 0)
    return f"{width}-bit" if width else str(scheme)


def _shape_text(key: tuple[Any, ...]) -> str:
    n, k, dtype, regime, fill = key
    return ", ".join([f"n = {n}, k = {k}", str(dtype), str(regime)] + ([str(fill)] if fill != "uniform" else []))


def _crossing(a: pd.DataFrame, b: pd.DataFrame) -> Crossover | None:
    """Where a meets b over m; ``None`` with fewer than two m that both have."""
    return next((found for _, found in crossovers(a, b, "m", ())), None)


def figures(data: ReportData) -> list[Figure]:
    """Speed-up over both baselines against m; none in a run without quantised products."""
    if not any(record.case.op == OP for record in data.records):
        return []
    drawings: list[tuple[Shape, str, list[tuple[str, pd.DataFrame, pd.DataFrame]]]] = []
    for shape in shapes(data)[:MAX_SHAPES]:
        for word in ("dense weights", "dequantising in the call"):
            pairs = []
            for storage in shape.storages:
                baseline = shape.dense if word == "dense weights" else storage.unpacked
                pairs += [(name, rows, baseline) for name, rows in storage.curves() if _common(rows, baseline) > 1]
            if pairs:
                drawings.append((shape, word, pairs))
    if not drawings:
        why = "No quantised kernel has figures at two m or more with a baseline beside it."
        return [absent("quantized", _TITLE, why)]
    every = list(dict.fromkeys(name for *_, pairs in drawings for name, *_ in pairs))
    names = every[:MAX_CURVES]
    panels: list[Markup] = []
    for shape, word, pairs in drawings:
        panel = Panel(f"quantized-{len(panels)}", *natural_size(len(drawings))).log("x", base=2, label=_count)
        panel.log("y", label=lambda value, _: f"x {value:g}")
        panel.titles(shape.name, "m", f"speed-up over {word}")
        panel.ax.axhline(1.0, color=svg.MUTED, linewidth=1.2, linestyle="--")
        marked = 0
        for name, rows, baseline in pairs:
            if name in names:
                marked += _draw(panel, names.index(name), rows, baseline)
        panels.append(panel.svg(f"Speed-up over {word} against m for {shape.name}: {len(pairs)} kernels, {marked} of "
                                "them meet it."))  # fmt: skip
    caption = (
        "How many times quicker a product with packed operands is than the same product with its weights kept dense, "
        "and than dequantising them in every call. Below the dashed line it is slower; a dotted line marks where a "
        "kernel meets it. With few rows a product waits for its weights, and fewer bytes are less time; with many it "
        "computes, and unpacking is work on top."
    )
    if len(every) > len(names):
        caption += f" {len(every) - len(names)} more kernels are in the table only."
    return [Figure("quantized", _TITLE, panels, caption, list(enumerate(names)))]


def _count(value: float, _position: object = None) -> str:
    return f"{value:g}"


def _common(rows: pd.DataFrame, baseline: pd.DataFrame) -> int:
    return len(set(rows["m"]) & set(baseline["m"]))


def _draw(panel: Panel, series: int, rows: pd.DataFrame, baseline: pd.DataFrame) -> bool:
    """One curve, and whether it meets its baseline."""
    level = _line(baseline).set_index("m")["time_s"]
    rows = rows[rows["m"].isin(level.index)]
    speed_up = level.loc[rows["m"]].to_numpy(float) / rows["time_s"].to_numpy(float)
    m = rows["m"].to_numpy(float)
    panel.ax.plot(m, speed_up, color=svg.SERIES[series], linewidth=1.2)
    panel.points(m, speed_up, rows["anchor"], series)
    meeting = _crossing(rows, baseline)
    if meeting is None or meeting.x is None:
        return False
    panel.ax.axvline(meeting.x, color=svg.SERIES[series], linewidth=0.8, linestyle=(0, (2, 2)))
    return True


def finding(data: ReportData) -> Finding | None:
    """Up to how many rows quantised weights pay, by their width; ``None`` without such records."""
    rows = data.usable_of([OP])
    if not len(rows):
        return None
    calm = rows[~(rows["half_width"] > STEADY) & ~rows["flags"].fillna("").str.contains(_DISTURBED)]
    met = _meetings(shapes(data, calm))
    if not met:
        everything = _meetings(shapes(data))
        if not everything:
            return None
        title = "Up to which batch quantised weights pay cannot be told from this run."
        text = f"Too few of the records of its {len(everything)} comparisons are free of noise and other processes."
        return Finding("quantized_batch", title, text, "quantized", "speed-up against batch", quiet=True)
    # Dense weights are what a scheme has to beat; where none were measured, dequantising in the call.
    dense = any(meeting.dense for meeting in met)
    by_width: dict[str, list[Crossover]] = {}
    for meeting in met:
        if meeting.dense == dense:
            by_width.setdefault(meeting.storage.width, []).append(meeting.found)
    order = sorted(by_width, key=lambda width: (not width[0].isdigit(), len(width), width))
    parts = [f"{width} {'ones' if i else 'weights'} {_clause(by_width[width])}" for i, width in enumerate(order)]
    other = "dense ones" if dense else "dequantising in the call"
    title = "; ".join([parts[0].replace("pay", f"beat {other}", 1), *parts[1:]]) + "."
    items = tuple(
        f"{each.storage.name}, {each.shape.name}: {_verdict(each)}"
        for each in sorted(met, key=lambda each: (each.shape.name, each.storage.name, not each.dense))
    )
    text = (
        "The quickest kernel for packed operands against the same product with dense weights, and against dequantising "
        "them in every call; m is the number of rows (tokens) where one takes over."
    )
    return Finding("quantized_batch", title, text, "quantized", "speed-up against batch", items)


def _meetings(found: list[Shape]) -> list[Meeting]:
    """What can be compared: every storage with either baseline."""
    meetings = []
    for shape in found:
        for storage in shape.storages:
            for dense, baseline in ((True, shape.dense), (False, storage.unpacked)):
                crossing = _crossing(storage.rows, baseline)
                if crossing is not None:
                    both = set(storage.rows["m"]) & set(baseline["m"])
                    span = (float(min(both)), float(max(both)))
                    meetings.append(Meeting(shape, storage, dense, crossing, span))
    return meetings


def _clause(found: Sequence[Crossover]) -> str:
    """What the comparisons of one width have in common."""
    parts = []
    for first, word in (("a", "up to m = {}"), ("b", "from m = {} on")):
        at = sorted(f.x for f in found if f.x is not None and f.first == first)
        if at:
            low, high = _m(at[0]), _m(at[-1])
            parts.append(word.format(low if low == high else f"{low} to {high}"))
    for verdict, word in (("a_wins", "at every m measured"), ("b_wins", "at no m measured")):
        if any(f.verdict == verdict for f in found):
            parts.append(word)
    return f"pay {' or '.join(parts)}" + (", depending on scheme and shape" if len(parts) > 1 else "")


def _m(x: float) -> str:
    return f"{x:.0f}" if x >= 10 else f"{x:.2g}"


def _verdict(meeting: Meeting) -> str:
    found, other = meeting.found, "dense" if meeting.dense else "dequantising"
    low, high = meeting.span
    if found.x is None:
        word = "quicker" if found.verdict == "a_wins" else "slower"
        return f"{word} than {other} at every m between {low:g} and {high:g}"
    side = "up to" if found.first == "a" else "from"
    notes = [f"it changes {found.changes} times"] if found.changes > 1 else []
    if found.lo is not None and found.hi is not None:
        notes.append(f"beyond doubt at {found.lo:g} and {found.hi:g}")
    return f"quicker than {other} {side} m = {_m(found.x)}" + (f" ({', '.join(notes)})" if notes else "")
