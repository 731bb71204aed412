"""Parquet: the typed columns of ``Run.to_frame()``, with the run's manifest as file metadata (``wattline.run``)."""

from __future__ import annotations

import json
from typing import BinaryIO

from wattline.run import Run

SUFFIX = ".parquet"
BINARY = True


def write(run: Run, sink: BinaryIO) -> int:
    """Write every record; returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = run.to_frame()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    manifest = json.dumps(run.manifest, separators=(",", ":"), allow_nan=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"wattline.run": manifest.encode()})
    pq.write_table(table, sink, compression="zstd")
    return len(frame)
