"""Importers: public formats of measurements as rows that predictors learn from, one file per format.

An importer is a module with a docstring whose first line says what it reads, ``SOURCE`` (who made the data, or the
program that writes the format), ``LICENCE`` (of the data; empty where it is whoever measured who says), ``UNITS`` (of
the figures in the file), ``GIVEN`` (facts that a file may leave out and ``--set`` may give, with what they mean),
``sniff(source) -> bool`` and ``read(source, asked) -> Rows``. To add a format: add the file and name it in
:data:`FORMATS`, before those that take more.

Figures are converted to SI base units, names to ours. What cannot be learned from is left out and counted, with the
cause in words; what is wrong in the file is an error that names file, line and column.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from wattline.device import DeviceSpec
from wattline.errors import DataError, SchemaError, UsageError, storage_error, unknown_name
from wattline.predictors.imported import METADATA, Facts, Imported, read_data
from wattline.predictors.importers.rows import Asked, Rows
from wattline.predictors.importers.source import Source
from wattline.run import now_iso

FORMATS: dict[str, str] = {
    "wattline-run": "wattline_run",
    "neusight": "neusight",
    "aiconfigurator": "aiconfigurator",
    "vidur": "vidur",
    "nccl-tests": "nccl_tests",
    "nvbandwidth": "nvbandwidth",
    "pytest-benchmark": "pytest_benchmark",
    "fio": "fio",
    "frame": "frame",
}
"""Formats by the name that `--format` takes, in the order in which they are recognised."""
AUTO = "auto"
ANY = "*"
"""In ``GIVEN`` of a format that takes any fact."""
LICENCE = "licence"
"""The fact that may be given of every format."""

_MISSHAPEN = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


class Importer(Protocol):
    """What a module of this package offers."""

    SOURCE: str
    LICENCE: str
    UNITS: str
    GIVEN: Mapping[str, str]

    def sniff(self, source: Source) -> bool:
        """Whether a file looks like this format."""
        ...

    def read(self, source: Source, asked: Asked) -> Rows:
        """The rows of a file."""
        ...


def importer(name: str) -> Importer:
    """The importer of a format.

    Raises:
        UnknownNameError: no such format.
    """
    if name not in FORMATS:
        raise unknown_name("import format", name, [*FORMATS, AUTO], listing="wattline import --help")
    return cast(Importer, import_module(f"{__name__}.{FORMATS[name]}"))


def recognise(source: Source) -> str:
    """The format that a file looks like.

    Raises:
        DataError: none.
    """
    for name in FORMATS:
        if importer(name).sniff(source):
            return name
    if source.is_folder:
        raise DataError(f"{source} is a folder and no run", todo="give the files in it")
    shown = ", ".join(source.columns[:6]) or "binary data"
    raise DataError(
        f"{source} looks like no known format", why=f"it begins with {' '.join(shown.split())[:100]}",
        todo=f"name it: --format {'|'.join(FORMATS)}",
    )  # fmt: skip


def import_data(
    path: str | os.PathLike[str],
    format: str = AUTO,
    *,
    device: str | Mapping[str, str] = "",
    specs: Sequence[DeviceSpec] = (),
    given: Mapping[str, str] | None = None,
) -> Imported:
    """Read measurements that another program wrote.

    Args:
        path: a file, or the folder of a run.
        format: a key of :data:`FORMATS`, or ``"auto"`` to recognise it.
        device: id of the device that a file does not name, or ids by the names that it has for them.
        specs: specifications of devices that are not listed.
        given: facts that the file leaves out (``{"bytes": "256M"}``); which ones, its importer says.

    Returns:
        The rows in SI units, with where they come from.

    Raises:
        StorageError: it cannot be read.
        DataError: it is damaged, or holds nothing that can be learned from.
        UnknownNameError: an unknown format, device or fact.
    """
    if not Path(path).exists():
        raise storage_error(FileNotFoundError(2, "no such file"), "reading", path)
    source = Source(path)
    if METADATA in source.metadata and format in (AUTO, "frame"):
        return read_data(path)  # it says where its rows come from, and was checked
    name = recognise(source) if format == AUTO else format
    chosen = importer(name)
    facts = dict(given or {})
    for fact in facts:
        if fact != LICENCE and fact not in chosen.GIVEN and ANY not in chosen.GIVEN:
            raise unknown_name("fact", fact, [*chosen.GIVEN, LICENCE], where=f" of the format {name}")
    named = {"": device} if isinstance(device, str) and device else dict(device or {})
    asked = Asked(named.pop("", ""), named, {spec.id: spec for spec in specs}, facts)
    try:
        rows = chosen.read(source, asked)
    except _MISSHAPEN as error:  # what no importer foresaw of a file that anyone may have written
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise DataError(f"{source} is damaged, or not of the format {name}", why=why, todo="fetch it again") from error
    _check_times(rows, source)
    used = set(rows.frame["device"])
    devices = {spec.id: spec for spec in (*rows.devices.values(), *specs) if spec.id in used}
    told = Facts(
        name, chosen.SOURCE, facts.get(LICENCE) or rows.licence or chosen.LICENCE, chosen.UNITS, source.path.name,
        source.sha256, now_iso(), rows.read, len(rows.frame), rows.left_out, tuple(rows.notes),
    )  # fmt: skip
    return Imported(rows.frame, (told,), devices)


def _check_times(rows: Rows, source: Source) -> None:
    """Whatever the format: no time that is infinite, or not above zero, gets any further."""
    import numpy as np

    time = rows.frame["time_s"].to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(time) & (time > 0)))
    if len(bad):
        what = rows.frame["op"].iloc[int(bad[0])]
        raise DataError(f"{source}: a time of {time[bad[0]]:g} s ({what})", todo="mend that figure, or leave it out")


def spec_of(path: str | os.PathLike[str]) -> DeviceSpec:
    """A device from a JSON file with the fields of :class:`wattline.device.DeviceSpec`.

    Raises:
        StorageError: it cannot be read.
        SchemaError: it is no JSON, or has another field.
        ParamError: a figure that is not above zero, or no id.
    """
    import json

    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except ValueError as error:
        raise SchemaError(f"{path} is not JSON", why=str(error), todo='write {"id": "my-board", ...}') from None
    if not isinstance(data, dict):
        raise SchemaError(f"{path} describes no device", why="it is no table", todo='write {"id": "my-board", ...}')
    return DeviceSpec.from_dict(data)


def spec_list(paths: Sequence[str | os.PathLike[str]]) -> list[DeviceSpec]:
    """Devices of several files.

    Raises:
        UsageError: two have one id.
    """
    found = [spec_of(path) for path in paths]
    ids = [spec.id for spec in found]
    twice = {name for name in ids if ids.count(name) > 1}
    if twice:
        raise UsageError(f"two files describe the device {', '.join(sorted(twice))}", todo="give one of them")
    return found
