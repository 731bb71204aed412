"""The Perfetto export, held against the Trace Event Format and against what the run holds."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wattline.errors import SchemaError
from wattline.record import Record
from wattline.reports.exporters import export_run
from wattline.run import Run
from wattline.trace import Band, Series, Trace, trace_path, write_trace

Program = Callable[..., Any]
STARTED = 1_769_860_800.0  # 2026-01-31T12:00:00Z, when all records of the example say that they started


def a_trace(record: Record, zero: float = STARTED + 0.25) -> Trace:
    return Trace(
        record.case.key,
        zero,
        0.2,
        variant=record.variant,
        series={
            "gpu_power_instant_w": Series((0.0, 0.1, 0.15), (80.0, math.nan, 500.0), "W"),
            "gpu_utilization": Series((0.1,), (0.97,)),
            "host_clock_hz": Series((0.1,), (3.1e9,), "Hz"),
        },
        bands=(Band(0.0, 0.05, "lead-in", 50), Band(0.05, 0.2, "measured", 150, 0.145)),
    )


def exported(run: Path) -> tuple[dict[str, Any], Any]:
    sink = io.BytesIO()
    done = export_run(run, "perfetto", sink)

    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return json.loads(sink.getvalue(), parse_constant=no_constant), done


def check_format(data: dict[str, Any]) -> None:
    """The rules of the Trace Event Format for the events that we write."""
    assert isinstance(data["traceEvents"], list)
    assert data["displayTimeUnit"] in ("ms", "ns")
    for event in data["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            assert set(event["args"]) <= {"name", "sort_index"}
            continue
        assert event["ph"] in ("X", "C")
        assert math.isfinite(event["ts"])
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
        else:
            assert event["args"]
            assert all(isinstance(v, int | float) and math.isfinite(v) for v in event["args"].values())
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in data["traceEvents"]:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in tracks.values():  # slices of one thread must not overlap in part
        for (_, end), (start, _) in pairwise(sorted(spans)):
            assert start >= end - 0.01


def of(data: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [event for event in data["traceEvents"] if event["ph"] == kind]


def test_a_run_without_traces_shows_its_cases(run_folder: Path) -> None:
    data, done = exported(run_folder)
    check_format(data)
    records = [r for r in Run(run_folder).records() if r.started_at]
    assert (done.written, done.left_out) == (len(records), 1) == (6, 1)  # one never ran
    slices = of(data, "X")
    assert [s["name"] for s in slices] == [r.case.label() for r in records]
    assert [s["args"]["time_s"] for s in slices] == [r.time_s for r in records]
    assert of(data, "C") == []
    # All say the same second and took 0.2 s each: they follow one another.
    assert [round(s["ts"]) for s in slices] == [200_000 * k for k in range(6)]
    assert {s["dur"] for s in slices} == {200_000.0}
    assert data["otherData"]["zero_unix_s"] == STARTED


def test_bands_and_counters_lie_where_they_were_taken(energy_run: Path) -> None:
    record = next(iter(Run(energy_run).records()))
    write_trace(energy_run, a_trace(record))
    data, _ = exported(energy_run)
    check_format(data)
    names = {e["args"]["name"]: (e["pid"], e["tid"]) for e in of(data, "M") if "name" in e["args"]}
    assert set(names) == {"Example CPU", "host", "cases", "kernels"}
    bands = [s for s in of(data, "X") if (s["pid"], s["tid"]) == names["kernels"]]
    assert [(s["name"], s["ts"], s["dur"]) for s in bands] == [
        ("lead-in", pytest.approx(250_000), pytest.approx(50_000)),
        ("measured", pytest.approx(300_000), pytest.approx(150_000)),
    ]
    assert bands[1]["args"] == {"case": record.case.label(), "calls": 150, "time_s": 0.145}
    counters = of(data, "C")
    power = [(c["ts"], c["args"]) for c in counters if c["name"] == "gpu_power_instant_w"]
    assert power == [(pytest.approx(250_000), {"W": 80.0}), (pytest.approx(400_000), {"W": 500.0})]  # no zero for a gap
    assert next(c["args"] for c in counters if c["name"] == "gpu_utilization") == {"value": 0.97}
    assert {c["name"]: c["pid"] for c in counters}["host_clock_hz"] == names["host"][0]
    assert {c["name"]: c["pid"] for c in counters}["gpu_utilization"] == names["Example CPU"][0]
    case = next(s for s in of(data, "X") if (s["pid"], s["tid"]) == names["cases"])
    assert case["args"]["power_w"] == 50.0
    assert record.measurement is not None
    assert record.measurement.energy is not None
    assert case["args"]["energy_j"] == record.measurement.energy.energy_j


def test_variants_have_their_own_traces(run_folder: Path) -> None:
    records = list(Run(run_folder).records())
    lines = [replace(records[0], variant=variant).to_json() for variant in ("a", "b")]
    (run_folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    write_trace(run_folder, replace(a_trace(records[0]), variant="b"))
    data, _ = exported(run_folder)
    check_format(data)
    assert [s["args"]["variant"] for s in of(data, "X") if s["cat"] == "case"] == ["a", "b"]
    assert len([s for s in of(data, "X") if s["cat"] == "kernel"]) == 2


def test_cases_that_failed_say_why_and_hostile_text_stays_text(run_folder: Path) -> None:
    records = list(Run(run_folder).records())
    broken = replace(records[-1], started_at="2026-01-31T12:00:09Z", wall_s=1.5)
    odd = replace(records[0], started_at='"],"x":[</script>')
    (run_folder / "records.jsonl").write_text(broken.to_json() + "\n" + odd.to_json() + "\n")
    write_trace(run_folder, replace(a_trace(broken, STARTED + 9.5), bands=(Band(0, 0.1, '"]}<b>\u2028'),)))
    data, done = exported(run_folder)
    check_format(data)
    assert (done.written, done.left_out) == (1, 1)  # no time, no place
    case, band = of(data, "X")
    assert (case["args"]["status"], case["args"]["reason"]) == ("unsupported", "it needs fp8")
    assert (case["ts"], case["dur"]) == (0.0, 1_500_000.0)
    assert band["name"] == '"]}<b>\u2028'


def test_a_run_without_records_is_still_a_trace(run_folder: Path) -> None:
    (run_folder / "records.jsonl").write_text("")
    data, done = exported(run_folder)
    check_format(data)
    assert done.written == 0
    assert of(data, "X") == []


def test_a_damaged_trace_is_told(run_folder: Path, tmp_path: Path) -> None:
    record = next(iter(Run(run_folder).records()))
    write_trace(run_folder, a_trace(record))
    trace_path(run_folder, record.case.key).write_bytes(b"torn")
    with pytest.raises(SchemaError, match="damaged"):
        export_run(run_folder, "perfetto", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_from_the_command_line(program: Program, run_folder: Path, tmp_path: Path) -> None:
    write_trace(run_folder, a_trace(next(iter(Run(run_folder).records()))))
    done = program("export", run_folder, "--format", "perfetto", "-o", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    check_format(json.loads((tmp_path / "run.json").read_text()))
