"""nccl-tests (and rccl-tests): what its programs print, or their JSON (``-J``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from wattline import nccl_tests
from wattline.predictors.importers.rows import Asked, Keep, Rows, formats_of, made
from wattline.predictors.importers.source import Source, name_of

SOURCE = "nccl-tests (github.com/NVIDIA/nccl-tests)"
LICENCE = ""
UNITS = "microseconds a call; sizes in bytes"
GIVEN: dict[str, str] = {}


def sniff(source: Source) -> bool:
    """Whether it looks like a table of nccl-tests, or like its JSON."""
    import re

    if source.is_parquet or source.is_folder:
        return False
    if isinstance(source.json, dict):
        return "results" in source.json and "config" in source.json and "average_bus_bandwidth" in source.json
    return re.search(r"^#\s+size\s+count\s+type.*\b(time|cputime)\b.*\bbusbw\b", source.text, re.MULTILINE) is not None


def read(source: Source, asked: Asked) -> Rows:
    """The sizes of a table, in place and out of place; see :mod:`wattline.predictors.importers`."""
    tables = nccl_tests.parse(source.text, str(source))
    lines = [(table, line) for table in tables for line in table.lines]
    ids, notes = asked.devices({table.device for table in tables}, source)
    size, time = (np.array([float(getattr(line, name)) for _, line in lines]) for name in ("size", "time_s"))
    ranks = np.array([table.ranks for table, _ in lines])
    theirs = np.array([line.dtype for _, line in lines], dtype=object)
    dtype = formats_of(theirs)
    keep = Keep(len(lines))
    keep.drop(size == 0, "no byte was sent")
    keep.drop(ranks < 2, "one rank")
    keep.drop(np.array([bool(line.wrong) for _, line in lines]), "wrong results")
    keep.drop(dtype == "", f"number formats that nobody knows here: {name_of(set(theirs[dtype == '']))}")
    keep.drop(~(time > 0), "no time")
    columns: dict[str, Any] = {
        "op": [table.op for table, _ in lines], "device": [ids[table.device] for table, _ in lines], "impl": "nccl",
        "dtype": dtype, "world_size": ranks, "bytes": size,
        # Out of place is what other tables measure: only the other way is said.
        "in_place": ["true" if line.in_place else None for _, line in lines],
        "time_s": time, "power_w": np.nan,
    }  # fmt: skip
    return Rows(made(columns, keep, source, whole=("world_size", "bytes")), len(lines), keep.left_out, notes)
