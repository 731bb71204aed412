"""Every export is read back with the tool that its readers would use."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import StorageError, UnknownNameError
from wattline.record import Record
from wattline.reports.exporters import FORMATS, export_run
from wattline.reports.exporters.to_pytest_benchmark import statistics_of
from wattline.run import Run


def test_csv_has_one_line_per_record_and_keeps_every_digit(run_folder: Path, tmp_path: Path) -> None:
    done = export_run(run_folder, "csv", tmp_path / "run.csv")
    table = pd.read_csv(tmp_path / "run.csv")
    records = list(Run(run_folder).records())
    assert (done.written, done.left_out) == (len(records), 0) == (7, 0)
    assert list(table["key"]) == [r.case.key for r in records]
    assert list(table["m"]) == [r.case.params["m"] for r in records]
    with (tmp_path / "run.csv").open(newline="") as handle:  # older pandas drops the last digits as it reads
        times = [float(row["time_s"]) for row in csv.DictReader(handle) if row["time_s"]]
    assert times == [r.time_s for r in records][:6]
    assert table["status"].tolist()[-1] == "unsupported"
    assert pd.isna(table["time_s"].iloc[-1])


def test_json_holds_the_manifest_and_records_that_read_back_equal(run_folder: Path) -> None:
    sink = io.BytesIO()
    export_run(run_folder, "json", sink)
    data = json.loads(sink.getvalue())
    assert data["manifest"] == Run(run_folder).manifest
    assert [Record.from_dict(entry) for entry in data["records"]] == list(Run(run_folder).records())


def test_json_of_a_run_without_records_is_still_json(run_folder: Path) -> None:
    (run_folder / "records.jsonl").write_text("")
    sink = io.BytesIO()
    assert export_run(run_folder, "json", sink).written == 0
    assert json.loads(sink.getvalue())["records"] == []


def test_parquet_keeps_types_and_the_manifest(run_folder: Path, tmp_path: Path) -> None:
    export_run(run_folder, "parquet", tmp_path / "run.parquet")
    read = pd.read_parquet(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(read, Run(run_folder).to_frame())
    metadata = pq.read_schema(tmp_path / "run.parquet").metadata
    assert json.loads(metadata[b"wattline.run"]) == Run(run_folder).manifest


def test_pytest_benchmark_compares_our_file(energy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "0001_wattline.json"
    done = export_run(energy_run, "pytest-benchmark", out)
    assert (done.written, done.left_out) == (6, 1)
    tool = shutil.which("pytest-benchmark", path=str(Path(sys.executable).parent)) or "pytest-benchmark"
    shown = subprocess.run(
        [tool, "compare", str(out), "--columns=min,median,iqr,outliers,ops,rounds,iterations"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "Failed to load" not in shown.stdout + shown.stderr
    for record in Run(energy_run).records():
        if record.valid:
            assert f"m={record.case.params['m']}-" in shown.stdout


def test_pytest_benchmark_carries_joules_and_samples(energy_run: Path, tmp_path: Path) -> None:
    export_run(energy_run, "pytest-benchmark", tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text())
    by_key = {r.case.key: r for r in Run(energy_run).records() if r.valid}
    assert len(data["benchmarks"]) == len(by_key)
    for bench in data["benchmarks"]:
        record = by_key[bench["extra_info"]["key"]]
        assert record.measurement is not None
        assert record.measurement.energy is not None
        assert bench["extra_info"]["energy_j"] == record.measurement.energy.energy_j
        assert bench["extra_info"]["power_w"] == 50.0
        assert bench["stats"]["data"] == list(record.measurement.samples_s)
        assert bench["stats"]["iterations"] == 4


def test_pytest_benchmark_leaves_joules_out_where_no_sensor_measured(run_folder: Path) -> None:
    sink = io.BytesIO()
    export_run(run_folder, "pytest-benchmark", sink)
    assert all("energy_j" not in bench["extra_info"] for bench in json.loads(sink.getvalue())["benchmarks"])


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=40))
def test_statistics_are_those_of_pytest_benchmark(samples: list[float]) -> None:
    from pytest_benchmark.stats import Stats

    theirs: Any = Stats()
    theirs.data = samples
    ours = statistics_of(samples)
    for name, value in theirs.as_dict().items():
        if name in ("stddev", "stddev_outliers", "outliers", "mean", "total", "ops", "iqr_outliers"):
            continue  # sums in another order: compared below
        if name == "hd15iqr":
            continue  # up to 5.3.0 the first datum beyond the fence; ours is the last one within it
        assert ours[name] == pytest.approx(value, rel=1e-12), name
    assert ours["hd15iqr"] == max(x for x in samples if x <= ours["q3"] + 1.5 * ours["iqr"])
    for name in ("mean", "total", "ops"):
        assert ours[name] == pytest.approx(getattr(theirs, name), rel=1e-9)
    assert ours["stddev"] == pytest.approx(theirs.stddev, rel=1e-6, abs=1e-9 * ours["max"])


def test_outliers_by_hand() -> None:
    found = statistics_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 40.0])
    # Halves 1-4 and 5-40: quartiles 2.5 and 6.5, fences -3.5 and 12.5; mean 8.5, deviation 12.91.
    assert (found["q1"], found["q3"], found["iqr"]) == (2.5, 6.5, 4.0)
    assert (found["ld15iqr"], found["hd15iqr"]) == (1.0, 7.0)
    assert found["outliers"] == "1;1"


def test_an_unwritable_target_leaves_nothing_behind(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        export_run(run_folder, "csv", tmp_path / "missing" / "run.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        export_run(run_folder, "csv", tmp_path / "folder")
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_device_or_link_is_written_through_not_replaced(run_folder: Path, tmp_path: Path) -> None:
    pipe, real, link = tmp_path / "pipe", tmp_path / "real.csv", tmp_path / "link.csv"
    os.mkfifo(pipe)
    real.write_text("old")
    link.symlink_to(real)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    export_run(run_folder, "csv", pipe)
    through = reader.communicate(timeout=60)[0]
    export_run(run_folder, "csv", link)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert through == real.read_bytes() != b""


def test_unknown_format_names_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="parquet"):
        export_run("anywhere", "parkett", io.BytesIO())


def test_every_format_is_a_module_with_a_docstring() -> None:
    from wattline.reports.exporters import exporter

    for name in FORMATS:
        chosen = exporter(name)
        assert chosen.SUFFIX.startswith(".")
        assert chosen.__doc__
