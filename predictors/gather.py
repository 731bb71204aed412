"""Training data out of several places: runs of one's own, and measurements that were imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wattline.device import DeviceSpec
from wattline.errors import UsageError
from wattline.predictors.datasets import from_frame, left_out
from wattline.predictors.imported import Facts, Imported, honest_groups, read_data
from wattline.run import Run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Training:
    """What a predictor is fitted on.

    Attributes:
        X, y, groups: as :meth:`wattline.predictors.KernelPredictor.fit` takes them.
        devices: specifications by id, beyond those of ``devices.toml``.
        runs: ids of the runs.
        data: where imported rows come from.
        left_out: valid rows of runs that are not learned from, by cause in words.
    """

    X: pd.DataFrame
    y: pd.DataFrame
    groups: pd.Series[Any]
    devices: dict[str, DeviceSpec]
    runs: tuple[str, ...]
    data: tuple[Facts, ...]
    left_out: dict[str, int]

    @property
    def source(self) -> str:
        """In one line, where the rows come from; for the provenance of a fit."""
        return ", ".join([*(f"run {name}" for name in self.runs), *(f"{f.source}: {f.file}" for f in self.data)])


def training_data(runs: Sequence[str | os.PathLike[str]], data: Sequence[str | os.PathLike[str]] = ()) -> Training:
    """The valid rows of runs and of imported data together.

    Args:
        runs: their folders. Where two ran on one device, the ceilings that the later one measured count; they count
            before what imported data say of a device.
        data: files that `wattline import` wrote.

    Raises:
        UsageError: a place is given twice: its rows would count twice.
        SchemaError, StorageError, DataError: a folder that is no run, a file that holds no imported data, or one of
            them cannot be read.
    """
    import pandas as pd

    _each_once((*runs, *data))
    opened = sorted((Run(path) for path in runs), key=lambda run: str(run.manifest.get("created_at", "")))
    imported = [read_data(path) for path in data]
    devices = {name: spec for part in imported for name, spec in part.devices.items()}
    devices |= {run.device.id: run.device for run in opened}
    names = tuple(run.id for run in opened)
    without: dict[str, int] = {}
    parts: list[pd.DataFrame] = [part.frame for part in imported]
    if opened:
        frames = [run.to_frame() for run in opened]
        frame = pd.concat([f for f in frames if len(f)] or frames, ignore_index=True)
        X, y, groups = from_frame(frame)
        without = left_out(frame)
        if not imported:
            return Training(X, y, groups, devices, names, (), without)
        parts.append(X.assign(time_s=y["time_s"], power_w=y["power_w"]))
    whole = pd.concat([part for part in parts if len(part)], ignore_index=True)
    both = Imported(whole, tuple(f for part in imported for f in part.facts), devices)
    return Training(both.X, both.y, honest_groups(whole), devices, names, both.facts, without)


def _each_once(places: Sequence[str | os.PathLike[str]]) -> None:
    seen: dict[str, str | os.PathLike[str]] = {}
    for place in places:
        before = seen.setdefault(os.path.realpath(place), place)
        if before is not place:
            raise UsageError(
                f"{os.fspath(place)} is given twice",
                why=f"{os.fspath(before)} is the same place, and its rows would count twice",
                todo="give it once",
            )
