"""Imported measurements: a flat frame, where it comes from, and the devices it speaks of; as Parquet and back."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from wattline.device import DeviceSpec, known_devices
from wattline.errors import DataError, SchemaError, WattlineError, storage_error
from wattline.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

METADATA = b"wattline.data"
"""Key of the file metadata that says where the rows come from."""
VERSION = 1
"""Rises when a reader of an older version would misread a newer file."""
TARGETS = ("time_s", "power_w")
DESCRIPTIVE = ("site", "kind", "layer", "model", "topology", "software")
"""Columns that tell where a row comes from; no predictor learns from them."""


@dataclass(frozen=True)
class Facts:
    """Where rows come from.

    Attributes:
        format: name of the importer.
        source: who made the data, or the program that wrote the file.
        licence: of the data; empty where neither file nor format says it.
        units: of the figures in the file, before they were converted to SI.
        file: its name.
        sha256: of its bytes; empty of a folder.
        imported_at: when, UTC.
        read: rows that it holds.
        rows: rows that were kept.
        left_out: how many were not, by cause in words.
        notes: what was assumed, and what else a reader should know.
    """

    format: str
    source: str
    licence: str
    units: str
    file: str
    sha256: str
    imported_at: str
    read: int
    rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Facts:
        """From plain JSON types; raises ``TypeError`` or ``ValueError`` for what is none."""
        return cls(**{**data, "left_out": dict(data["left_out"]), "notes": tuple(data["notes"])})


@dataclass
class Imported:
    """Rows in the vocabulary of :meth:`wattline.predictors.KernelPredictor.fit`.

    Attributes:
        frame: columns op, device, impl, dtype, the parameters, ``time_s`` (seconds), ``power_w`` (watts, NaN where
            nobody measured) and what describes a row (:data:`DESCRIPTIVE`).
        facts: where they come from, one entry a file.
        devices: specifications of the devices that are not listed, by id.
    """

    frame: pd.DataFrame
    facts: tuple[Facts, ...]
    devices: dict[str, DeviceSpec] = field(default_factory=dict)

    @property
    def X(self) -> pd.DataFrame:  # noqa: N802 - the field's name
        """Words and parameters of each row."""
        return self.frame.drop(columns=[c for c in (*TARGETS, *DESCRIPTIVE) if c in self.frame.columns])

    @property
    def y(self) -> pd.DataFrame:
        """``time_s`` and ``power_w`` of each row."""
        import numpy as np

        out = self.frame[["time_s"]].astype(float)
        out["power_w"] = self.frame["power_w"].astype(float) if "power_w" in self.frame.columns else np.nan
        return out

    @property
    def groups(self) -> pd.Series[Any]:
        """A number a row: rows of one site, or of equal operation and sizes, share it (see :func:`honest_groups`)."""
        return honest_groups(self.frame)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file that :func:`wattline.predictors.read_data` and `wattline fit --data` read.

        Raises:
            StorageError: it cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        told = {
            "version": VERSION,
            "sources": [asdict(each) for each in self.facts],
            "devices": {name: spec.to_dict() for name, spec in self.devices.items()},
        }
        table = pa.Table.from_pandas(_storable(self.frame), preserve_index=False)
        encoded = json.dumps(told, allow_nan=False).encode()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA: encoded})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        atomic_write(path, buffer.getvalue())


def together(parts: Iterable[Imported]) -> Imported:
    """Several imports as one; where two describe one device, the later one counts."""
    import pandas as pd

    found = list(parts)
    if len(found) == 1:
        return found[0]
    return Imported(
        pd.concat([part.frame for part in found], ignore_index=True),
        tuple(each for part in found for each in part.facts),
        {name: spec for part in found for name, spec in part.devices.items()},
    )


def honest_groups(frame: pd.DataFrame) -> pd.Series[Any]:
    """A number a row, such that a split between groups is honest.

    Rows of one ``site`` (a family of operations and its label) belong together, and so do rows of equal operation and
    parameters, in whatever format, implementation or file: what the two have in common is one group.

    Args:
        frame: a flat frame; ``site`` may be absent or empty.
    """
    import numpy as np
    import pandas as pd

    from wattline.predictors.datasets import shape_groups
    from wattline.predictors.families import family_of

    shape = shape_groups(frame.drop(columns=[c for c in (*TARGETS, *DESCRIPTIVE) if c in frame.columns])).to_numpy()
    if "site" not in frame.columns or not len(frame):
        return pd.Series(shape, index=frame.index, name="group")
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    family = frame["op"].map({op: family_of(op).name for op in frame["op"].unique()})
    label = (family.astype(str) + ":" + frame["site"].astype(str)).where(frame["site"].notna())
    site = pd.factorize(label)[0]
    # Nodes are shapes and, behind them, sites; a row joins its own two. Rows without a site join nothing.
    rows = np.flatnonzero(site >= 0)
    count = int(shape.max()) + 1
    size = count + int(site.max()) + 1
    links = coo_matrix((np.ones(len(rows)), (shape[rows], count + site[rows])), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return pd.Series(pd.factorize(component[shape])[0], index=frame.index, name="group")


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose columns have one type each: where sources differ, truth values become the words that they mean."""
    from wattline.predictors.table import word_of

    out = frame.copy(deep=False)
    for name in out.columns:
        if out[name].dtype == object and len({type(v) for v in out[name].dropna()}) > 1:
            out[name] = [word_of(v) if isinstance(v, str | bool) else v for v in out[name]]
    return out


def told_by(metadata: Mapping[bytes, bytes], path: object) -> tuple[tuple[Facts, ...], dict[str, DeviceSpec]]:
    """Facts and devices out of the metadata of a Parquet file that :meth:`Imported.save` wrote.

    Raises:
        SchemaError: of a newer version, or damaged.
    """
    try:
        told = json.loads(metadata[METADATA])
        version = told["version"]
        if isinstance(version, int) and version > VERSION:
            raise SchemaError(
                f"the data {path} have version {version}", why=f"this wattline reads version {VERSION}",
                todo="upgrade wattline",
            )  # fmt: skip
        facts = tuple(Facts.from_dict(entry) for entry in told["sources"])
        return facts, {name: DeviceSpec.from_dict(spec) for name, spec in told["devices"].items()}
    except SchemaError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, WattlineError) as error:
        why = f"{type(error).__name__}: {error}"
        raise SchemaError(f"the metadata of {path} make no sense", why=why, todo="import the file again") from None


def read_data(path: str | os.PathLike[str]) -> Imported:
    """Imported data that :meth:`Imported.save` (or `wattline import`) wrote.

    Raises:
        StorageError: it cannot be read.
        SchemaError: it is of a newer version, or its metadata are damaged.
        DataError: another kind of file, or a damaged one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    todo = f"import it first: `wattline import {os.fspath(path)}`"
    try:
        with open(path, "rb") as handle:
            data = handle.read()
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        why = "it is damaged or cut short" if data.startswith(b"PAR1") else "it is no Parquet"
        short = " ".join(str(error).split())[:160]
        raise DataError(f"{path} holds no imported data", why=f"{why}: {short}", todo=todo) from None
    metadata = table.schema.metadata or {}
    if METADATA not in metadata:
        raise DataError(f"{path} holds no imported data", why="it does not say where its rows come from", todo=todo)
    facts, devices = told_by(metadata, path)
    frame = table.to_pandas()
    missing = [name for name in ("op", "device", "impl", "dtype", "time_s") if name not in frame.columns]
    if missing or not len(frame):
        why = f"it has no column {', '.join(missing)}" if missing else "it holds no row"
        raise SchemaError(f"the data {path} are damaged", why=why, todo="import the file again")
    for name in set(frame["device"].astype(str)):
        if name not in devices and name not in known_devices():
            raise SchemaError(f"the data {path} do not describe their device {name!r}", todo="import the file again")
    return Imported(frame, facts, devices)
