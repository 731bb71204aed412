"""Trace files: what is read back is what was written, and damage is told, not guessed around."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import SchemaError, SensorError, StorageError
from wattline.trace import (
    TRACE_SCHEMA,
    Band,
    Moment,
    Series,
    Trace,
    read_trace,
    read_traces,
    trace_path,
    unit_of,
    write_trace,
)

KEY = "0123456789abcdef"


def a_trace(key: str = KEY, variant: str = "", zero: float = 1.77e9) -> Trace:
    return Trace(
        key=key,
        variant=variant,
        label="gemm.dense torch m=4096",
        device="h200",
        zero_unix_s=zero,
        span_s=1.5,
        series={
            "gpu_power_instant_w": Series((0.0, 0.1, 0.2), (80.0, math.nan, 500.25), "W"),
            "gpu_sm_clock_hz": Series((0.0, 0.1), (1.98e9, 1.755e9), "Hz"),
        },
        bands=(Band(0.0, 0.4, "lead-in"), Band(0.4, 1.4, "measured", calls=1000, time_s=0.98)),
        missing={"gpu_utilization": "this GPU does not have it"},
    )


@given(st.text(max_size=20), st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e9, 1e9)), max_size=20))
def test_any_trace_survives_its_dictionary(label: str, points: list[tuple[float, float]]) -> None:
    points = sorted(points)
    series = Series.of([t for t, _ in points], [v for _, v in points], unit="W")
    first = Trace(KEY, 1.77e9, 1.0, label=label, series={"p_w": series}, bands=(Band(0.5, 2.0, label, 3),))
    text = json.dumps(first.to_dict(), allow_nan=False)
    again = Trace.from_dict(json.loads(text))
    assert again.label == label
    assert again.bands[0].label == label
    assert again.series["p_w"].times_s == pytest.approx(series.times_s, abs=1e-6)
    assert again.series["p_w"].values == pytest.approx(series.values, rel=1e-6)
    assert Trace.from_dict(again.to_dict()) == again  # rounding happens once


def test_a_file_is_read_back(tmp_path: Path) -> None:
    path = write_trace(tmp_path, a_trace())
    assert path == trace_path(tmp_path, KEY) == tmp_path / "traces" / f"{KEY}.json.gz"
    found = read_trace(tmp_path, KEY)
    assert found is not None
    assert found.identity == (KEY, "")
    assert found.bands == a_trace().bands
    assert found.missing == a_trace().missing
    power = found.series["gpu_power_instant_w"]
    assert (power.unit, power.times_s) == ("W", (0.0, 0.1, 0.2))
    assert power.values[::2] == (80.0, 500.25)
    assert math.isnan(power.values[1])  # a gap stays a gap, never zero


def test_variants_lie_beside_each_other_and_a_newer_trace_replaces(tmp_path: Path) -> None:
    for variant in ("b", "", "a"):
        write_trace(tmp_path, a_trace(variant=variant))
    write_trace(tmp_path, a_trace(variant="a", zero=1.78e9))
    assert [t.variant for t in read_traces(tmp_path)] == ["a", "b", ""]
    newer = read_trace(tmp_path, KEY, "a")
    assert newer is not None
    assert newer.zero_unix_s == 1.78e9
    assert len(list((tmp_path / "traces").iterdir())) == 3


def test_the_same_trace_is_the_same_file(tmp_path: Path) -> None:
    first = write_trace(tmp_path / "a", a_trace()).read_bytes()
    time.sleep(0.01)
    assert write_trace(tmp_path / "b", a_trace()).read_bytes() == first


def test_no_trace_is_no_error(tmp_path: Path) -> None:
    assert read_trace(tmp_path, KEY) is None
    assert list(read_traces(tmp_path)) == []


def test_another_zero_moves_everything_alike() -> None:
    moved = a_trace(zero=1000.0).since(990.0)
    assert moved.zero_unix_s == 990.0
    assert moved.series["gpu_sm_clock_hz"].times_s == (10.0, 10.1)
    assert (moved.bands[1].start_s, moved.bands[1].end_s) == (10.4, 11.4)
    assert moved.bands[1].calls == 1000
    back = moved.since(1000.0)
    assert back.series["gpu_sm_clock_hz"].times_s == pytest.approx((0.0, 0.1))
    assert back.bands[1].end_s == pytest.approx(1.4)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"no json"), gzip.compress(b"[1]"), gzip.compress(b'{"schema": 1}'),
     gzip.compress(json.dumps(a_trace().to_dict()).encode())[:-9]],
    ids=["empty", "no gzip", "no json", "a list", "no trace", "cut off"],
)  # fmt: skip
def test_damage_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = write_trace(tmp_path, a_trace())
    path.write_bytes(content)
    with pytest.raises(SchemaError) as raised:
        read_trace(tmp_path, KEY)
    assert str(path) in raised.value.what
    assert "remove that file" in raised.value.todo
    with pytest.raises(SchemaError):
        list(read_traces(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("series", {"x": {"unit": "W", "times_s": [0.0], "values": []}}), ("bands", [[2.0, 1.0, "x", 0, 0.0]]),
     ("bands", [[1.0]]), ("zero_unix_s", "soon"), ("series", [])],
)  # fmt: skip
def test_wrong_fields_are_damage(field: str, value: object) -> None:
    with pytest.raises(SchemaError, match="damaged trace"):
        Trace.from_dict({**a_trace().to_dict(), field: value})


def test_a_newer_schema_is_refused() -> None:
    with pytest.raises(SchemaError, match=f"schema {TRACE_SCHEMA + 1}") as raised:
        Trace.from_dict({**a_trace().to_dict(), "schema": TRACE_SCHEMA + 1})
    assert "upgrade" in raised.value.todo


@pytest.mark.parametrize("name", ["", "../../x", "a/b", ".hidden", "a-b", "a\n"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemaError, match="no trace can be named"):
        trace_path(tmp_path, name)
    with pytest.raises(SchemaError, match="no trace can be named"):
        write_trace(tmp_path, a_trace(variant="../x"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_forbidden_folder_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission"):
        write_trace(tmp_path, a_trace())


def test_a_file_in_place_of_the_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("")
    with pytest.raises(StorageError):
        write_trace(tmp_path, a_trace())
    with pytest.raises(StorageError):
        read_trace(tmp_path, KEY)


def test_a_kill_at_any_moment_leaves_a_whole_trace(tmp_path: Path) -> None:
    code = (
        "import sys; from wattline.trace import Series, Trace, write_trace\n"
        "big = Series(tuple(range(20000)), tuple(float(k * k % 977) for k in range(20000)), 'W')\n"
        "print('ready', flush=True)\n"
        f"while True: write_trace(sys.argv[1], Trace({KEY!r}, 1.77e9, 2e4, series={{'p_w': big}}))"
    )
    write_trace(tmp_path, a_trace())
    for delay in (0.02, 0.05, 0.11):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(delay)
            child.kill()
        found = read_trace(tmp_path, KEY)
        assert found is not None
        assert len(found.series) in (1, 2)  # the first one or the child's, whole


def test_series_and_bands_must_make_sense() -> None:
    assert Series.of([5.0, 6.0], [1, 2], zero_s=5.0, unit="W") == Series((0.0, 1.0), (1, 2), "W")
    with pytest.raises(SensorError, match="fit together"):
        Series((0.0, 1.0), (3.0,))
    with pytest.raises(SensorError, match="fall"):
        Series((1.0, 0.0), (3.0, 4.0))
    with pytest.raises(SensorError, match="ends before"):
        Band(1.0, 0.5, "x")
    with pytest.raises(SensorError, match="ends before"):
        Band(math.nan, 0.5, "x")


def test_a_moment_lies_on_both_clocks() -> None:
    before = (time.perf_counter(), time.time())
    moment = Moment.now()
    after = (time.perf_counter(), time.time())
    assert before[0] <= moment.perf_s <= after[0]
    assert before[1] <= moment.unix_s <= after[1]


def test_units_come_from_names() -> None:
    names = ["gpu_power_instant_w", "gpu_sm_clock_hz", "gpu_temperature_c", "gpu_pcie_rx_bytes_per_s", "x_bytes"]
    assert [unit_of(name) for name in names] == ["W", "Hz", "degC", "B/s", "B"]
    assert (unit_of("gpu_utilization"), unit_of("gpu_violation_power_s")) == ("", "s")
