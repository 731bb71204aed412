"""Runs of wattline: a run folder, or what `wattline export` made of one as JSON, Parquet or CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec
from wattline.errors import DataError, SchemaError, WattlineError
from wattline.predictors.datasets import from_frame, left_out
from wattline.predictors.importers.rows import Asked, Rows
from wattline.predictors.importers.source import Source, values_of
from wattline.run import MANIFEST, Run

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "wattline"
LICENCE = ""
UNITS = "seconds a call, the median; watts"
GIVEN: dict[str, str] = {}

_FRAME = frozenset({"run", "key", "op", "impl", "regime", "device", "dtype", "status", "time_s", "valid"})
_FORMAT = "wattline-run"


def sniff(source: Source) -> bool:
    """Whether it is a run folder, or an export with its columns or its title."""
    if source.is_folder:
        return (source.path / MANIFEST).is_file()
    if set(source.columns) >= _FRAME:
        return True
    return isinstance(source.json, dict) and source.json.get("format") == _FORMAT


def read(source: Source, asked: Asked) -> Rows:
    """The valid records; see :func:`wattline.predictors.from_frame` for which those are."""
    if not sniff(source):
        raise DataError(f"{source} holds no run of wattline", todo="name the format that it has with --format")
    frame, manifest = _frame(source)
    if not len(frame):
        raise DataError(f"{source} holds no record", todo="measure first: `wattline bench --resume --out RUN`")
    X, y, _ = from_frame(frame)
    lost = frame.loc[~frame["valid"], "status"].astype(str).value_counts()
    causes = {("records that are not valid" if k == "ok" else f"records that are {k}"): int(n) for k, n in lost.items()}
    causes |= left_out(frame)
    if not len(X):
        why = "; ".join(f"{count}: {cause}" for cause, count in causes.items())
        raise DataError(f"{source} holds no record that can be learned from", why=why, todo="measure more")
    specs = _specs(manifest, source)
    told = Asked(asked.device, asked.renamed, {**specs, **asked.specs}, asked.facts)
    ids, notes = told.devices(set(X["device"].astype(str)), source)
    out = X.assign(device=X["device"].astype(str).map(ids), time_s=y["time_s"], power_w=y["power_w"])
    used = {name: spec for name, spec in specs.items() if name in set(ids.values())}
    return Rows(out.reset_index(drop=True), len(frame), causes, notes, used)


def _frame(source: Source) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """The frame of all records, and the manifest where the file has it."""
    import pandas as pd

    if source.is_folder:
        run = Run(source.path)
        return run.to_frame(), run.manifest
    if source.is_parquet:
        return source.frame(), _manifest(source)
    if isinstance(source.json, dict):
        return _of_json(source)
    table = source.table()
    columns = {name: values_of(table, name) for name in table.columns}
    valid = table.words("valid")
    for at in np.flatnonzero(~np.isin(valid, ("True", "False"))):
        raise table.wrong("valid", int(at), f"{valid[at]!r} is neither True nor False")
    return pd.DataFrame({**columns, "valid": valid == "True"}), {}


def _manifest(source: Source) -> Mapping[str, Any]:
    try:
        manifest: Mapping[str, Any] = json.loads(source.metadata.get(b"wattline.run", b"{}"))
    except ValueError as error:
        raise DataError(f"{source}: its manifest is no JSON", why=str(error)) from None
    return manifest


def _of_json(source: Source) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    from wattline.frame import to_frame
    from wattline.record import Record

    manifest = source.json.get("manifest") or {}
    records = []
    for number, entry in enumerate(source.json.get("records") or [], 1):
        try:
            records.append(Record.from_dict(entry))
        except (WattlineError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise DataError(f"{source}: record {number} makes no sense", why=why) from None
    return to_frame(records, run=str(manifest.get("id", ""))), manifest


def _specs(manifest: Mapping[str, Any], source: Source) -> dict[str, DeviceSpec]:
    data = manifest.get("device")
    if not data:
        return {}
    try:
        spec = DeviceSpec.from_dict(data)
    except (WattlineError, TypeError, ValueError) as error:
        raise SchemaError(f"{source}: its device makes no sense", why=str(error)) from None
    return {spec.id: spec}
