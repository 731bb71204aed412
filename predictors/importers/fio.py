"""fio JSON (``--output-format=json``), also within a log: reads and writes of a file or device.

A job becomes one row a direction: how long one round of its requests (a block for each place of each queue) took, by
the bytes that it moved and the time that it ran. Of a job that ran for a given time the bytes are what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wattline.errors import DataError, ParamError
from wattline.nccl_tests import parse_size
from wattline.predictors.importers.rows import BYTES, Asked, Keep, Rows, made
from wattline.predictors.importers.source import Source

SOURCE = "fio (github.com/axboe/fio)"
LICENCE = ""
UNITS = "milliseconds and bytes of a job, KiB in fio 2"
GIVEN: dict[str, str] = {}

_MARK = '"fio version"'
_BESIDE_OTHERS = " beside others"  # no option of fio has a space
_AGREE = 0.05
"""Share by which bytes over time may differ from the bandwidth that fio prints."""

Job = tuple[dict[str, str], Mapping[str, Any]]
"""Options and figures."""


def sniff(source: Source) -> bool:
    """Whether fio's version stands in it."""
    return not source.is_parquet and not source.is_folder and _MARK in source.text


def read(source: Source, asked: Asked) -> Rows:
    """The jobs of all documents in a file; see :mod:`wattline.predictors.importers`."""
    jobs = [job for document in _documents(source) for job in _jobs(document, source)]
    try:
        found = [row for options, job in jobs for row in _directions(options, job, source)]
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{source} is not the JSON of fio", why=f"{type(error).__name__}: {error}",
            todo="run it with --output-format=json",
        ) from None  # fmt: skip
    ids, notes = asked.devices({""}, source)
    keep = Keep(len(found))
    for i, row in enumerate(found):
        one = np.zeros(len(found), bool)
        one[i] = True
        if row["why_not"]:
            keep.drop(one, row["why_not"])
    names = ("op", "impl", "bytes", "span", "block", "depth", "threads", "pattern", "access", "beside", "time_s")
    columns: dict[str, Any] = {name: [row.get(name) for row in found] for name in names}
    label = [f"{row.get('block')}x{row.get('depth')}x{row.get('threads')}" for row in found]
    columns |= {"device": ids[""], "dtype": BYTES, "power_w": np.nan, "site": label}
    order = ("op", "device", "impl", "dtype")
    columns = {**{name: columns[name] for name in order}, **columns}
    whole = ("bytes", "span", "block", "depth", "threads")
    if not found:
        raise DataError(
            f"{source} holds no job of fio that read or wrote anything", todo="run fio to its end"
        )
    return Rows(made(columns, keep, source, whole=whole), len(found), keep.left_out, notes)


def _documents(source: Source) -> list[Mapping[str, Any]]:
    """The JSON documents of fio within a text."""
    decoder, text, out, at = json.JSONDecoder(), source.text, [], 0
    while _MARK in text[at:]:
        begin = text.rfind("{", at, text.index(_MARK, at))
        if begin < 0:
            break
        try:
            document, at = decoder.raw_decode(text, begin)
        except ValueError as error:
            line = text.count("\n", 0, begin) + 1
            raise DataError(
                f"{source}: the JSON of fio from line {line} on is damaged or cut short", why=str(error),
                todo="run fio again, or cut the file off above that line",
            ) from None  # fmt: skip
        out.append(document)
    if not out:
        raise DataError(f"{source} holds no JSON of fio", todo="run it with --output-format=json")
    return out


def _jobs(document: Mapping[str, Any], source: Source) -> list[Job]:
    """Options and figures of each job."""
    try:
        shared = dict(document.get("global options") or {})
        found = [({**shared, **(job.get("job options") or {})}, job) for job in document["jobs"]]
        return _alone(_whole(found))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{source} is not the JSON of fio", why=f"{type(error).__name__}: {error}",
            todo="run it with --output-format=json",
        ) from None  # fmt: skip


def _whole(jobs: Sequence[Job]) -> list[Job]:
    """Jobs with their clones as one: without group_reporting each clone of `numjobs` has an entry of its own."""
    out: list[Job] = []
    for options, job in jobs:
        cloned = "group_reporting" not in options and int(options.get("numjobs", 1)) > 1
        name = (job.get("jobname"), job.get("groupid"))
        if cloned and out and (out[-1][1].get("jobname"), out[-1][1].get("groupid")) == name:
            before = out[-1][1]
            both = {way: _sum(before.get(way) or {}, job.get(way) or {}) for way in ("read", "write")}
            error = max(int(before.get("error") or 0), int(job.get("error") or 0))
            out[-1] = (out[-1][0], {**before, **both, "error": error})
        else:
            out.append((options, job))
    return out


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: one.get(name, 0) + other.get(name, 0) for name in ("io_bytes", "io_kbytes", "bw", "total_ios")
              if name in one or name in other}  # fmt: skip
    return {**one, **counts, "runtime": max(one.get("runtime", 0), other.get("runtime", 0))}


def _alone(jobs: Sequence[Job]) -> list[Job]:
    """Marks the jobs that ran while another did: those of a file start together, but for a stonewall before them."""
    waited = [i == 0 or "stonewall" in o or "wait_for_previous" in o for i, (o, _) in enumerate(jobs)] + [True]
    return [
        (options if waited[i] and waited[i + 1] else {**options, _BESIDE_OTHERS: "1"}, job)
        for i, (options, job) in enumerate(jobs)
    ]


def _directions(options: Mapping[str, str], job: Mapping[str, Any], source: Source) -> list[dict[str, Any]]:
    """A row for each direction in which a job moved bytes."""
    name = job.get("jobname", "?")
    active = [way for way in ("read", "write") if _count(job, way, "total_ios") or _count(job, way, "io_bytes")]
    out = []
    for way in active:
        body = job[way]
        moved = _count(job, way, "io_bytes") * (1 if "io_kbytes" in body else 1024)
        seconds = _count(job, way, "runtime") / 1e3
        row: dict[str, Any] = {"op": f"storage.{way}", "why_not": _refused(options, job, seconds, moved)}
        out.append(row)
        if row["why_not"]:
            continue
        printed = float(body.get("bw") or 0) * 1024  # KiB/s in every version
        if printed and abs(moved / seconds / printed - 1) > _AGREE:
            raise DataError(
                f"{source}: job {name}: its bytes over its runtime are not its bandwidth ({way})",
                why=f"{moved} bytes in {seconds:g} s, but {printed:g} B/s", todo="give it fio's output as it is",
            )  # fmt: skip
        block, depth, threads = _block(options, way), int(options.get("iodepth", 1)), int(options.get("numjobs", 1))
        span = block * depth * threads
        row |= {
            "impl": f"fio_{options.get('ioengine', 'psync')}", "span": span, "block": block, "depth": depth,
            "threads": threads, "bytes": _size(options, "size") or _size(options, "filesize") or span,
            "pattern": "random" if "rand" in options.get("rw", "read") else "sequential",
            "access": "direct" if options.get("direct", "0") not in ("0", "false") else "buffered",
            "beside": ("writes" if way == "read" else "reads") if len(active) > 1 else None,
            "time_s": seconds * span / moved,
        }  # fmt: skip
    return out


def _refused(options: Mapping[str, str], job: Mapping[str, Any], seconds: float, moved: float) -> str:
    """Why a job cannot be learned from; empty where it can."""
    if int(job.get("error") or 0):
        return f"jobs that failed (error {job['error']})"
    if seconds <= 0 or moved <= 0:
        return "jobs without a time"
    if _BESIDE_OTHERS in options:
        return "jobs that ran while another did"
    if "bsrange" in options or "bssplit" in options or ":" in options.get("bs", ""):
        return "blocks of several sizes"
    return ""


def _count(job: Mapping[str, Any], way: str, name: str) -> float:
    value = (job.get(way) or {}).get(name) or 0
    if not isinstance(value, int | float) or value < 0:
        raise DataError(f"job {job.get('jobname', '?')}: {way}.{name} is {value!r}", todo="give fio's output as it is")
    return value


def _block(options: Mapping[str, str], way: str) -> int:
    """The size of a request; fio's default is 4 KiB, and reads and writes may have their own (``4k,8k``)."""
    parts = str(options.get("bs") or options.get("blocksize") or "4k").split(",")
    return parse_size(parts[-1] if way == "write" else parts[0])


def _size(options: Mapping[str, str], name: str) -> int | None:
    try:
        return parse_size(str(options[name]))
    except (KeyError, ParamError):  # "100%", or not said
        return None
