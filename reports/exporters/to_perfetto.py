"""Perfetto: the run on a time axis, as Chrome trace JSON that https://ui.perfetto.dev and chrome://tracing open.

Cases are slices; where the run kept traces, so are the spans in which their kernels ran, and what the sensors read
(power, clocks, temperature, throttle causes ...) are counters. Zero is the start of the run's first case.

A counter keeps its last value until the next reading: between two cases it says nothing. Cases without a trace are
placed by their ``started_at``, which has whole seconds: as early as that and the case before them allow.
Format: "Trace Event Format" (Chromium): events ``M`` (names), ``X`` (slices) and ``C`` (counters), times in us.
"""

from __future__ import annotations

import contextlib
import json
import math
from calendar import timegm
from collections.abc import Iterator
from time import strptime
from typing import Any, BinaryIO

from wattline.record import Record
from wattline.run import Run
from wattline.trace import Trace, read_trace

SUFFIX = ".json"
BINARY = False

DEVICE, HOST = 1, 2
CASES, KERNELS = 1, 2
"""Numbers of the processes and threads that the events belong to: a trace viewer draws one track for each."""

Event = dict[str, Any]


Span = tuple[float, float]
"""Start and end, in seconds since the start of the first."""


def write(run: Run, sink: BinaryIO) -> int:
    """Write every record that says when it started; returns their number."""
    zero_s, spans = _spans(run)
    head = {"format": "wattline-trace", "run": run.id, "zero_unix_s": zero_s, "device": _device_name(run)}
    sink.write(f'{{"displayTimeUnit":"ms","otherData":{_json(head)},\n"traceEvents":['.encode())
    for number, event in enumerate(_names(run)):
        sink.write((",\n" if number else "\n").encode() + _json(event).encode())
    for number, record in enumerate(run.records()):
        if number not in spans:
            continue
        trace = read_trace(run.path, *record.identity)
        for event in _events(record, spans[number], trace, zero_s):
            sink.write(b",\n" + _json(event).encode())
    sink.write(b"\n]}\n")
    return len(spans)


def _spans(run: Run) -> tuple[float, dict[int, Span]]:
    """Zero in seconds since 1970 UTC, and where each record lies, by its place in the files.

    The records themselves are not held: a run may be large.
    """
    begun = []
    for number, record in enumerate(run.records()):
        with contextlib.suppress(ValueError):  # no time, no place
            started_s = float(timegm(strptime(record.started_at, "%Y-%m-%dT%H:%M:%SZ")))
            begun.append((started_s, record.sequence, number, record.wall_s))
    spans: dict[int, Span] = {}
    zero_s = min(begun, default=(0.0,))[0]
    end_s = 0.0
    for started_s, _, number, wall_s in sorted(begun):
        # One case ran after the other: none began before its whole second, nor before the one ahead had ended.
        start_s = max(started_s - zero_s, end_s)
        end_s = start_s + wall_s
        spans[number] = (start_s, end_s)
    return zero_s, spans


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _device_name(run: Run) -> str:
    return run.device.name if run.manifest.get("device") else "device"


def _names(run: Run) -> Iterator[Event]:
    """What the tracks are called, and their order."""
    for pid, name in ((DEVICE, _device_name(run)), (HOST, "host")):
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for tid, name in ((CASES, "cases"), (KERNELS, "kernels")):
        yield {"ph": "M", "name": "thread_name", "pid": DEVICE, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": DEVICE, "tid": tid, "args": {"sort_index": tid}}


def _events(record: Record, span: Span, trace: Trace | None, zero_s: float) -> Iterator[Event]:
    """The slices and counters of one case."""
    yield _slice(record.case.label(), CASES, *span, _figures(record))
    if trace is None:
        return
    moved = trace.since(zero_s)
    for band in moved.bands:
        figures: dict[str, Any] = {"case": record.case.label(), "calls": band.calls}
        if band.time_s:
            figures["time_s"] = band.time_s
        yield _slice(band.label, KERNELS, band.start_s, band.end_s, figures)
    for name, series in moved.series.items():
        pid = HOST if name.startswith("host_") else DEVICE
        for at_s, value in zip(series.times_s, series.values, strict=True):
            if math.isfinite(value):
                args = {series.unit or "value": value}
                yield {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _us(at_s), "args": args}


def _slice(name: str, tid: int, start_s: float, end_s: float, args: dict[str, Any]) -> Event:
    begin = _us(start_s)
    return {
        "ph": "X", "name": name, "cat": "case" if tid == CASES else "kernel", "pid": DEVICE, "tid": tid,
        "ts": begin, "dur": max(0.0, round(_us(end_s) - begin, 3)), "args": args,
    }  # fmt: skip


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _figures(record: Record) -> dict[str, Any]:
    """What a viewer shows of a case when it is picked."""
    figures: dict[str, Any] = {"key": record.case.key, "status": record.status}
    if record.variant:
        figures["variant"] = record.variant
    if record.reason is not None:
        figures["reason"] = record.reason.message
    if record.time_s is not None:
        figures["time_s"] = record.time_s
    energy = record.measurement.energy if record.measurement else None
    if energy is not None:
        figures |= {"energy_j": energy.energy_j, "power_w": energy.power_w, "energy_source": energy.source}
    if record.flags:
        figures["flags"] = ", ".join(record.flags)
    return {k: v for k, v in figures.items() if not isinstance(v, float) or math.isfinite(v)}
