"""nccl-tests JSON: what `--format nccl-tests` writes as text, in the JSON (version 2) of nccl-tests' `-J`."""

from __future__ import annotations

import shlex
from typing import BinaryIO

from wattline import nccl_tests
from wattline.reports.exporters.to_nccl_tests import tables_of
from wattline.run import Run

SUFFIX = ".json"
BINARY = False


def write(run: Run, sink: BinaryIO) -> int:
    """Write the document; returns the number of records in it."""
    tables = tables_of(run)
    manifest = run.manifest
    ranks = manifest.get("ranks") or []
    hosts = [{"rank": int(r["rank"]), "pid": int(r["pid"]), "hostname": str(r["host"])} for r in ranks]
    args = shlex.split(str((manifest.get("plan") or {}).get("command") or "wattline"))
    start = str(manifest.get("created_at") or manifest.get("started_at") or "")
    text = nccl_tests.to_json(tables, args=args, start=start, hosts=hosts)
    sink.write(text.encode("utf-8", "replace"))
    return sum(len(table.lines) for table in tables)
