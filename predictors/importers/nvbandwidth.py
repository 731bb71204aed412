"""nvbandwidth: copies between host and GPU, as text or JSON (``--json``).

It prints bandwidth, not time: a time is the buffer's bytes over it. Neither form says how large the buffer was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from wattline.errors import DataError
from wattline.predictors.importers.rows import BYTES, Asked, Keep, Rows, made
from wattline.predictors.importers.source import Source

SOURCE = "nvbandwidth (github.com/NVIDIA/nvbandwidth)"
LICENCE = ""
UNITS = "GB/s of 1e9 bytes, one way"
GIVEN = {"bytes": "size of its buffer, its --bufferSize (512M where it was left out)"}

DEFAULT_BYTES = 512 * 2**20
"""Its buffer where `--bufferSize` is left out (nvbandwidth, README.md)."""
OPS: dict[str, tuple[str, str]] = {
    "host_to_device_memcpy_ce": ("offload.h2d", "copy_engine"),
    "device_to_host_memcpy_ce": ("offload.d2h", "copy_engine"),
    "host_to_device_bidirectional_memcpy_ce": ("offload.bidirectional", "copy_engine"),
    "device_to_host_bidirectional_memcpy_ce": ("offload.bidirectional", "copy_engine"),
    "host_to_device_memcpy_sm": ("offload.h2d", "sm"),
    "device_to_host_memcpy_sm": ("offload.d2h", "sm"),
}
"""Operation and implementation by the name of its test. Its bidirectional tests on copy engines time one direction
while the other is loaded; those on multiprocessors add both up."""


def sniff(source: Source) -> bool:
    """Whether its title is there."""
    if source.is_parquet or source.is_folder:
        return False
    if source.json is not None:
        return isinstance(source.json, dict) and isinstance(source.json.get("nvbandwidth"), dict)
    return re.search(r"^(nvbandwidth Version|Running \w+_(ce|sm)\.)", source.text, re.MULTILINE) is not None


def read(source: Source, asked: Asked) -> Rows:
    """A row for each cell of its matrices; see :mod:`wattline.predictors.importers`."""
    cells = list(_of_json(source) if source.json is not None else _of_text(source))
    if not cells:
        raise DataError(f"{source} holds no result of nvbandwidth", todo="give it what it prints, or its JSON")
    names = dict(re.findall(r"^Device (\d+): (.+?) \([0-9a-fA-F:.]+\)\s*$", source.text, re.MULTILINE))
    told = set(names.values())
    ids, notes = asked.devices(told or {""}, source)
    given = asked.number("bytes")
    size = given or DEFAULT_BYTES
    if given is None:
        notes.append("its buffer is taken for 512 MiB, its default: say --set bytes=... where another was asked for")
    keep = Keep(len(cells))
    test = np.array([cell[0] for cell in cells], dtype=object)
    speed = np.array([cell[2] for cell in cells]) * 1e9
    keep.drop(np.char.find(test.astype(str), "latency") >= 0, "latencies of single accesses")
    keep.drop(~np.isin(test, list(OPS)), "tests without a counterpart here (peers, several at once, added up)")
    keep.drop(np.isnan(speed), "not measured (N/A)")
    only = told.pop() if len(told) == 1 else ""
    columns: dict[str, Any] = {
        "op": [OPS.get(name, ("", ""))[0] for name in test],
        "device": [ids.get(names.get(str(column), only), next(iter(ids.values()))) for _, column, _ in cells],
        "impl": [OPS.get(name, ("", ""))[1] for name in test], "dtype": BYTES, "bytes": size, "chunk": 0,
        "memory": "pinned", "time_s": size / np.where(speed > 0, speed, np.nan), "power_w": np.nan,
    }  # fmt: skip
    keep.drop(~(speed > 0), "no speed")
    return Rows(made(columns, keep, source, whole=("bytes", "chunk")), len(cells), keep.left_out, notes)


Cell = tuple[str, int, float]
"""Name of the test, column (the GPU), GB/s (NaN: N/A)."""


def _of_text(source: Source) -> Iterator[Cell]:
    name, inside = "", False
    for number, line in enumerate(source.text.splitlines(), 1):
        started = re.match(r"Running (\w+)\.", line)
        if started:
            name, inside = started[1], False
        elif re.match(r"\s*(memcpy|memory latency)\b", line):
            inside = True
        elif not line.strip() or re.match(r"(SUM|MIN|MAX|AVG|Waived|NOTE)", line.strip()):
            inside = inside and not line.strip().startswith("SUM")
        elif inside and re.match(r"\s*\d+(\s+(\d+\.\d+(e[+-]?\d+)?|N/A))+\s*$", line):
            for column, word in enumerate(line.split()[1:]):
                yield name, column, np.nan if word == "N/A" else float(word)
        elif inside and name and not re.match(r"[\s\d]+$", line):
            raise DataError(
                f"{source}: line {number} is no row of the matrix of {name}", why=line.strip()[:80],
                todo="take that line out, or write the file again",
            )  # fmt: skip


def _of_json(source: Source) -> Iterator[Cell]:
    try:
        for test in source.json["nvbandwidth"]["testcases"]:
            for row in test.get("bandwidth_matrix") or []:
                for column, word in enumerate(row):
                    yield str(test["name"]), column, np.nan if word == "N/A" else float(word)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{source} is not the JSON of nvbandwidth", why=f"{type(error).__name__}: {error}",
            todo="write it again: `nvbandwidth -j`",
        ) from None  # fmt: skip
