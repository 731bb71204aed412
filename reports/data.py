"""A run as the report reads it: records with their anchors, a frame with derived columns, the device, what is odd.

A report must come out of any run: interrupted, empty, without a device or an environment. What is missing from
the manifest is therefore absent here (``None`` or empty), never made up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from wattline.device import DeviceSpec
from wattline.errors import UnsupportedError
from wattline.formats import FORMATS
from wattline.frame import FIXED_COLUMNS, to_frame
from wattline.record import Record
from wattline.run import Run

if TYPE_CHECKING:
    import pandas as pd

PARAMS_FIRST = ("m", "n", "k")
"""Parameters that lead a row of the table when they are there."""
SILENT: Mapping[str, tuple[Any, ...]] = {
    "data": ("uniform",), "batch": (1,), "tokens before": (0,), "window": (0,), "sink": (0,), "keep": (0,),
    "clusters": (0,), "budget": (0,), "prefix": (0,), "head_dim_v": (0,), "taps": (0,), "kept": (1.0,), "ep": (1,),
    "tp": (1,), "routing_seed": (0,), "skew": (0.0,), "ending": ("none",), "decay": (1.0,), "page_size": (0,),
    "splits": (0,), "length_seed": (0,), "lengths": ("equal",), "kv_dtype": ("same",), "direction": ("forward",),
    "pattern_seed": (0,), "block_fill": (1.0,), "stride": (1,), "dilation": (1,), "padding": (0,),
    "groups": (0, 1), "ragged": (0,), "node": (-1,), "cpu_node": (-1,), "threads": (0,), "chunk": (0,),
    "path": ("default",), "fio": (False,), "offset": (0,), "count": (1,), "streams": (1,), "pages": ("small",),
    "span": (0,),
}  # fmt: skip
"""Values of parameters that mean "not used" or "as usual", and say nothing in a title."""


@dataclass(frozen=True)
class Peak:
    """The arithmetic ceiling that a share is taken of.

    Attributes:
        flops: FLOP/s.
        source: ``"datasheet"`` or ``"measured"``.
        executed: the format whose rate it is; another than asked where hardware widens.
    """

    flops: float
    source: str
    executed: str


@dataclass
class ReportData:
    """A run read for reporting.

    Attributes:
        run: the run folder.
        records: all its records, in the order of the run.
        positions: where each stands among the lines of the run folder; the index of the frames.
        anchors: one unique HTML id per record, ``r-<key>``, with ``-<variant>`` where a case was repeated on purpose.
        device: the device, or ``None`` where the manifest has none.
        problems: sentences on what was found amiss while reading.
        kept: what several figures and findings ask for, made once; see :meth:`once`.
    """

    run: Run
    records: list[Record]
    positions: list[int]
    anchors: list[str]
    device: DeviceSpec | None
    problems: list[str] = field(default_factory=list)
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ReportData:
        """Read a run folder.

        Raises:
            StorageError: it cannot be read.
            SchemaError: it is no run, or one of a newer version. Single records that cannot be read are left out and
            told in :attr:`problems`.
        """
        run = Run(path)
        lines = list(run.records(lenient=True))
        order = sorted(range(len(lines)), key=lambda i: lines[i].sequence if lines[i].sequence >= 0 else len(lines))
        records = [lines[i] for i in order]
        device = run.device if run.manifest.get("device") else None
        return cls(run, records, order, _anchors(records), device, list(run.warnings))

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What ``run.json`` holds."""
        return self.run.manifest

    def section(self, name: str) -> Mapping[str, Any]:
        """An entry of the manifest that should be a table; an empty one where it is not."""
        found = self.manifest.get(name)
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def plain_frame(self) -> pd.DataFrame:
        """One row per record with the columns of :func:`wattline.frame.to_frame`, indexed by position."""
        import pandas as pd

        # Text as Python objects: Arrow's pays with many rows, and a report picks few of many columns all the time.
        with pd.option_context("mode.string_storage", "python"):
            frame = to_frame(self.records)
        frame.index = self.positions
        return frame

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per record: :attr:`plain_frame` and these columns.

        ``anchor``; ``intensity`` (FLOP/byte); ``rate_format``; ``peak_flops`` (FLOP/s) and ``share`` (of it);
        ``half_width`` (relative half-width of the median's interval); ``shape`` (text).
        """
        frame = self.plain_frame.copy()
        frame["anchor"] = self.anchors
        frame["rate_format"] = [rate_format(r) for r in self.records]
        peaks = [self.peak(f) for f in frame["rate_format"]]
        frame["peak_flops"] = [p.flops if p else float("nan") for p in peaks]
        moved = frame["bytes_moved"].where(frame["bytes_moved"] > 0)
        frame["intensity"] = frame["flops"] / moved
        frame["share"] = frame["flops_per_s"] / frame["peak_flops"]
        frame["half_width"] = (frame["time_hi_s"] - frame["time_lo_s"]) / (2 * frame["time_s"])
        frame["shape"] = [shape_text(r) for r in self.records]
        return frame

    @cached_property
    def trusted(self) -> pd.DataFrame:
        """The rows whose figures can be trusted: measured, checked, not above their bound."""
        frame = self.frame
        return frame[frame["valid"] & frame["time_s"].notna() & (frame["time_s"] > 0)]

    @cached_property
    def usable(self) -> pd.DataFrame:
        """The trusted rows of the device as it is: those under a power limit or a locked clock are left out."""
        rows = self.trusted
        return rows[rows["power_limit_w"].isna() & rows["clock_hz"].isna()]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made at the first call with this key. Callers must not change it."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def usable_of(self, ops: Iterable[str]) -> pd.DataFrame:
        """The usable rows of some operations, with the columns that a run of nothing else would have.

        A run of many operations has hundreds of columns, which cost time with every selection.
        """
        return cast("pd.DataFrame", self.once(("usable", *sorted(set(ops))), lambda: self._usable_of(set(ops))))

    def _usable_of(self, ops: set[str]) -> pd.DataFrame:
        frame = self.frame
        of_ops = np.array([record.case.op in ops for record in self.records], bool)
        own = {name for record in self.records if record.case.op in ops for name in record.case.params}
        others = {name for record in self.records for name in record.case.params} - own - set(FIXED_COLUMNS)
        told = self._present[of_ops].any(axis=0)
        kept = [
            i for i, c in enumerate(frame.columns)
            if c not in others and (told[i] or not c.startswith(("work.", "fact.", "telemetry.")))
        ]  # fmt: skip
        # Columns first: what would be cut away is not copied.
        return frame.iloc[:, kept].iloc[np.flatnonzero(of_ops & frame.index.isin(self.usable.index))].copy()

    @cached_property
    def _present(self) -> np.ndarray:
        """Where :attr:`frame` holds something, of shape ``(records, columns)``."""
        return self.frame.notna().to_numpy()

    @cached_property
    def main(self) -> pd.DataFrame:
        """The usable rows under the most frequent implementation and data fill, repeats left out.

        Figures that compare shapes or formats must hold everything else fixed.
        """
        rows = self.usable
        rows = rows[rows["variant"].fillna("") != "b"]
        for name in ("op", "impl", "data"):
            if len(rows):
                rows = rows[rows[name] == rows[name].value_counts().idxmax()]
                if name == "op":
                    rows = self.usable_of(rows["op"].unique()).loc[rows.index]
        return rows

    @cached_property
    def headline(self) -> pd.DataFrame:
        """The rows of :attr:`main` in the most frequent regime."""
        rows = self.main
        return rows[rows["regime"] == rows["regime"].value_counts().idxmax()] if len(rows) else rows

    @property
    def regime(self) -> str:
        """The regime of :attr:`headline`, empty when nothing was measured."""
        return str(self.headline["regime"].iloc[0]) if len(self.headline) else ""

    @cached_property
    def formats(self) -> list[str]:
        """The number formats with usable rows, in the order of the list of formats."""
        present = set(self.usable["dtype"].dropna())
        return [f for f in FORMATS if f in present] + sorted(present - set(FORMATS))

    def peak(self, fmt: str | None) -> Peak | None:
        """The arithmetic ceiling for a rate format: the datasheet's, else the measured one, else ``None``."""
        if self.device is None or not fmt:
            return None
        try:
            flops, executed = self.device.rate(fmt)
        except UnsupportedError:
            return None
        return Peak(flops, "datasheet" if executed in self.device.peak_flops else "measured", executed)


def rate_format(record: Record) -> str | None:
    """The format whose arithmetic rate bounds a record: that of most of its operations."""
    if not record.work or not record.work.flops:
        return None
    return max(record.work.flops, key=record.work.flops.__getitem__)


def shape_text(record: Record) -> str:
    """The sizes of a case for people: ``512 x 512 x 64``, with a batch above 1 in front."""
    p = record.case.params
    if all(name in p for name in PARAMS_FIRST):
        text = " x ".join(str(p[name]) for name in PARAMS_FIRST)
        return text if p.get("batch", 1) == 1 else f"{p['batch']} of {text}"
    told = [f"{k}={v}" for k, v in p.items() if k != "dtype" and v not in SILENT.get(k, ())]
    return " ".join(told) or "as it comes"


def shape_params(frame: pd.DataFrame, names: Sequence[str] = PARAMS_FIRST) -> bool:
    """Whether every one of these parameters is a numeric column with values."""
    return all(name in frame.columns and frame[name].notna().any() for name in names)


def _anchors(records: Sequence[Record]) -> list[str]:
    seen: dict[str, int] = {}
    anchors = []
    for record in records:
        anchor = "r-" + "-".join(part for part in record.identity if part)
        count = seen[anchor] = seen.get(anchor, 0) + 1
        anchors.append(anchor if count == 1 else f"{anchor}-{count}")
    return anchors
