"""JSON: one document with the run's manifest and every record, raw samples included.

``{"format": "wattline-run", "manifest": {...}, "records": [...]}``, one record a line, each as in
``records.jsonl`` (see :meth:`wattline.record.Record.to_json`). Written as it is read, so a run may be larger
than memory.
"""

from __future__ import annotations

import json
from typing import BinaryIO

from wattline.run import Run

SUFFIX = ".json"
BINARY = False


def write(run: Run, sink: BinaryIO) -> int:
    """Write every record; returns their number."""
    manifest = json.dumps(run.manifest, separators=(",", ":"), allow_nan=False)
    sink.write(f'{{"format":"wattline-run","manifest":{manifest},\n"records":['.encode())
    count = 0
    for record in run.records():
        sink.write((",\n" if count else "\n").encode() + record.to_json().encode())
        count += 1
    sink.write(b"\n]}\n")
    return count
