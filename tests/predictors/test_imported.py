"""Imported data: as a file and back, honest groups, and together with runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.device import DeviceSpec
from wattline.errors import DataError, SchemaError, StorageError
from wattline.predictors import KernelPredictor, from_run, import_data, read_data, training_data
from wattline.predictors.imported import METADATA, Imported, honest_groups, together
from wattline.run import Run

MINE = DeviceSpec.from_dict({"id": "mine", "peak_flops": {"fp32": 1e13}, "memory_bandwidth": 1e12})


def own_table(path: Path, rows: int = 40, device: str = "mine") -> Path:
    rng = np.random.default_rng(5)
    sizes = np.round(2 ** rng.uniform(4, 10, (rows, 3))).astype(int)
    frame = pd.DataFrame(sizes, columns=["m", "n", "k"])
    time = 5e-6 + 2.0 * sizes.prod(axis=1) / 8e12
    frame = frame.assign(op="gemm.dense", device=device, impl="torch", dtype="fp32", time_s=time)
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def imported(tmp_path: Path) -> Imported:
    return import_data(own_table(tmp_path / "table.csv"), specs=[MINE], given={"licence": "CC0"})


def test_what_is_saved_reads_back_with_its_provenance(imported: Imported, tmp_path: Path) -> None:
    imported.save(tmp_path / "data.parquet")
    back = read_data(tmp_path / "data.parquet")
    pd.testing.assert_frame_equal(back.X, imported.X, check_dtype=False)
    pd.testing.assert_frame_equal(back.y, imported.y)
    assert back.facts == imported.facts
    assert back.devices == {"mine": MINE}
    (facts,) = back.facts
    assert (facts.file, facts.licence, facts.rows, facts.read) == ("table.csv", "CC0", 40, 40)
    assert len(facts.sha256) == 64
    # Any reader of Parquet sees where the rows come from.
    told = json.loads(pq.read_schema(tmp_path / "data.parquet").metadata[METADATA])
    assert told["sources"][0]["sha256"] == facts.sha256
    # Imported once more, it is what it was.
    assert import_data(tmp_path / "data.parquet").facts == imported.facts


def test_other_files_are_no_data(imported: Imported, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    with pytest.raises(StorageError):
        read_data(path)
    with pytest.raises(DataError, match="no imported data") as caught:
        read_data(tmp_path / "table.csv")
    assert "wattline import" in caught.value.todo
    imported.frame.to_parquet(path)
    with pytest.raises(DataError, match="no imported data"):
        read_data(path)
    imported.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no imported data") as caught:
        read_data(path)
    assert "damaged or cut short" in caught.value.why


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any], *, without: str = "") -> Path:
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[METADATA])
    change(told)
    if without:
        table = table.drop_columns([without])
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(told).encode()}), path)
    return path


def test_newer_and_spoiled_data_are_refused(imported: Imported, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    imported.save(path)
    with pytest.raises(SchemaError, match="version 9") as caught:
        read_data(rewritten(path, lambda told: told.update(version=9)))
    assert "upgrade" in caught.value.todo
    for spoil in (lambda told: told.update(version=1, sources=[{"format": 1}]), lambda told: told.pop("sources")):
        with pytest.raises(SchemaError, match="make no sense"):
            read_data(rewritten(path, spoil))
    imported.save(path)
    with pytest.raises(SchemaError, match="do not describe their device 'mine'"):
        read_data(rewritten(path, lambda told: told.update(devices={})))
    imported.save(path)
    with pytest.raises(SchemaError, match="damaged") as caught:
        read_data(rewritten(path, lambda told: None, without="time_s"))
    assert "time_s" in caught.value.why


labels = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=12)


@given(labels)
def test_rows_of_one_site_or_one_shape_are_one_group(rows: list[tuple[int, str | None]]) -> None:
    frame = pd.DataFrame(rows, columns=["m", "site"]).assign(op="gemm.dense", device="mine", n=1, k=1, time_s=1.0)
    group = honest_groups(frame).to_numpy()
    for i, (m, site) in enumerate(rows):
        for j, (other_m, other_site) in enumerate(rows):
            if m == other_m or (site is not None and site == other_site):
                assert group[i] == group[j]
    # And no more than that: groups are the connected parts, found here by spreading labels.
    reached = {0}
    while True:
        more = {j for j, (m, site) in enumerate(rows) for i in reached
                if m == rows[i][0] or (site is not None and site == rows[i][1])} | reached  # fmt: skip
        if more == reached:
            break
        reached = more
    assert reached == set(np.flatnonzero(group == group[0]))


def test_sites_of_different_families_are_apart() -> None:
    frame = pd.DataFrame({"op": ["gemm.dense", "softmax.rows"], "m": [1.0, None], "rows": [None, 2.0], "site": "8"})
    assert honest_groups(frame).nunique() == 2


def test_training_data_of_runs_alone_are_as_ever(run_folder: Path) -> None:
    given_ = training_data([run_folder])
    X, y, groups = from_run(run_folder)
    pd.testing.assert_frame_equal(given_.X, X)
    pd.testing.assert_frame_equal(given_.y, y)
    pd.testing.assert_series_equal(given_.groups, groups)
    assert given_.source == f"run {Run(run_folder).id}"


def test_runs_and_imported_data_together(run_folder: Path, imported: Imported, tmp_path: Path) -> None:
    imported.save(tmp_path / "data.parquet")
    both = training_data([run_folder], [tmp_path / "data.parquet"])
    X, _, groups = from_run(run_folder)
    assert len(both.X) == len(X) + 40
    assert set(both.devices) == {"mine", "test-cpu"}
    assert both.groups.nunique() == groups.nunique() + imported.groups.nunique()
    assert "table.csv" in both.source
    model = KernelPredictor(both.devices).fit(both.X, both.y, both.groups)
    found = model.predict(imported.X)
    assert (found["time_s"] / imported.y["time_s"] - 1).abs().median() < 0.1
    assert set(model.devices_) == {"mine", "test-cpu"}


def test_several_files_as_one(imported: Imported, tmp_path: Path) -> None:
    other = import_data(own_table(tmp_path / "other.csv", 10, "t4"))
    both = together([imported, other])
    assert (len(both.frame), len(both.facts), set(both.devices)) == (50, 2, {"mine"})
    # The same shapes on another device are not held apart from their twins.
    assert both.groups.nunique() <= 40


def test_truth_values_and_the_words_for_them_go_into_one_file(tmp_path: Path) -> None:
    frames = [pd.DataFrame({"op": "a", "device": "t4", "impl": "x", "dtype": "fp32", "time_s": 1.0, **more})
              for more in ({"causal": [True]}, {"causal": ["false"]}, {"bytes": [8]})]  # fmt: skip
    whole = together(Imported(frame, ()) for frame in frames)
    whole.save(tmp_path / "d.parquet")
    assert read_data(tmp_path / "d.parquet").frame["causal"].fillna("").tolist() == ["true", "false", ""]


@pytest.mark.parametrize("form", ["folder", "parquet", "csv", "json"])
def test_runs_come_back_from_their_exports(run_folder: Path, tmp_path: Path, form: str) -> None:
    run = Run(run_folder)
    path = run_folder
    specs = []
    if form == "parquet":
        path = tmp_path / "run.parquet"
        table = pa.Table.from_pandas(run.to_frame(), preserve_index=False)
        meta = {b"wattline.run": json.dumps(run.manifest).encode()}
        pq.write_table(table.replace_schema_metadata(meta), path)
    elif form == "csv":
        path = tmp_path / "run.csv"
        run.to_frame().to_csv(path, index=False)
        specs = [run.device]  # a table of text has no place for it
    elif form == "json":
        path = tmp_path / "run.json"
        records = [json.loads(record.to_json()) for record in run.records()]
        path.write_text(json.dumps({"format": "wattline-run", "manifest": run.manifest, "records": records}))
    found = import_data(path, specs=specs)
    X, y, groups = from_run(run_folder)
    assert found.facts[0].format == "wattline-run"
    assert found.facts[0].left_out == {"records that are not valid": 1, "records that are failed": 1}
    assert found.devices == {"test-cpu": run.device}
    np.testing.assert_array_equal(found.y.to_numpy(), y.to_numpy())
    for name in X.columns:
        assert found.X[name].astype(X[name].dtype).tolist() == X[name].tolist(), name
    assert found.groups.nunique() == groups.nunique()
