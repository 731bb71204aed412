"""Exports in other hands: DuckDB, pandas, the documented fields, and `wattline import`: the same figures again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.predictors import from_run, import_data
from wattline.reports.exporters import export_run
from wattline.run import Run


@pytest.mark.parametrize("fmt", ["parquet", "csv", "json", "pytest-benchmark"])
def test_what_is_exported_is_imported_with_the_same_figures(energy_run: Path, tmp_path: Path, fmt: str) -> None:
    path = tmp_path / "run.out"
    export_run(energy_run, fmt, path)
    # A table of text has no place for the machine; all others bring it along.
    specs = [Run(energy_run).device] if fmt == "csv" else []
    found = import_data(path, specs=specs)
    X, y, _ = from_run(energy_run)
    assert len(found.frame) == len(X) == 6
    np.testing.assert_allclose(found.y.to_numpy(), y.to_numpy(), rtol=1e-15)
    for name in X.columns:
        ours, theirs = X[name].tolist(), found.X[name].tolist()
        assert theirs == ours, name
    assert found.devices == {Run(energy_run).device.id: Run(energy_run).device}


def test_nccl_tests_tables_come_back(tmp_path: Path) -> None:
    from wattline import nccl_tests

    lines = tuple(nccl_tests.Line(2**n, 2**n // 4, "float", 1e-5 + 2.0**n * 1e-11, True) for n in range(10, 20))
    table = nccl_tests.Table("all_reduce", 4, lines)
    (tmp_path / "t.txt").write_text(nccl_tests.to_text([table]))
    found = import_data(tmp_path / "t.txt", device="h100-sxm").frame
    assert found["bytes"].tolist() == [line.size for line in lines]
    np.testing.assert_allclose(found["time_s"], [line.time_s for line in lines], rtol=5e-3)


def test_duckdb_reads_the_parquet(energy_run: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="the package duckdb is not installed (pip install wattline[test])")
    export_run(energy_run, "parquet", tmp_path / "run.parquet")
    frame = Run(energy_run).to_frame()
    query = "select op, count(*), sum(m), min(time_s), avg(power_w) from $table where valid group by op"
    (row,) = duckdb.execute(query.replace("$table", f"'{tmp_path / 'run.parquet'}'")).fetchall()
    valid = frame[frame["valid"]]
    assert row[:3] == ("gemm.dense", len(valid), int(valid["m"].sum()))
    assert row[3:] == (valid["time_s"].min(), pytest.approx(valid["power_w"].mean()))
    described = f"select column_name, column_type from (describe '{tmp_path / 'run.parquet'}')"
    kinds = dict(duckdb.execute(described).fetchall())
    assert (kinds["m"], kinds["time_s"], kinds["op"], kinds["valid"]) == ("BIGINT", "DOUBLE", "VARCHAR", "BOOLEAN")
    export_run(energy_run, "csv", tmp_path / "run.csv")
    (count,) = duckdb.execute(f"select count(*) from '{tmp_path / 'run.csv'}' where time_s > 0").fetchone()
    assert count == frame["time_s"].notna().sum()


def test_imported_data_are_parquet_for_all(energy_run: Path, tmp_path: Path) -> None:
    import_data(energy_run).save(tmp_path / "data.parquet")
    frame = pd.read_parquet(tmp_path / "data.parquet")
    assert {"op", "device", "impl", "dtype", "m", "n", "k", "time_s", "power_w"} <= set(frame.columns)
    duckdb = pytest.importorskip("duckdb", reason="the package duckdb is not installed (pip install wattline[test])")
    (count,) = duckdb.execute(f"select count(*) from '{tmp_path / 'data.parquet'}'").fetchone()
    assert count == len(frame) == 6


def keys_of(value: Any, path: str = "") -> set[str]:
    """Paths of all keys of a document; of lists their entries."""
    if isinstance(value, dict):
        return {p for k, v in value.items() for p in ({f"{path}{k}"} | keys_of(v, f"{path}{k}."))}
    return {p for entry in value for p in keys_of(entry, path)} if isinstance(value, list) else set()


def test_every_field_of_the_json_is_documented(energy_run: Path, tmp_path: Path, project_root: Path) -> None:
    export_run(energy_run, "json", tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    text = (project_root / "docs" / "exporting.md").read_text()
    listed = set(re.findall(r"`([a-z_0-9.]+)`", text))
    free = ("case.params.", "work.flops.", "work.bytes", "work.messages.", "work.link_bytes.", "work.details.",
            "measurement.telemetry.", "measurement.facts.", "environment.")  # fmt: skip
    found = {key for key in keys_of(data["records"]) if not key.startswith(free)}
    assert sorted(found - listed) == []
    assert set(data) <= listed
