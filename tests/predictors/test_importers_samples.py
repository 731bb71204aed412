"""Importers on pieces of the real files, held against flat tables that were made of the same files by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.predictors import KernelPredictor, import_data
from wattline.predictors.imported import DESCRIPTIVE, TARGETS


def matched(ours: pd.DataFrame, flat: pd.DataFrame) -> pd.DataFrame:
    """Our rows beside those of a flat table with the same words and sizes (``_flat``), nearest in time of several."""
    key = [c for c in ours.columns if c not in (*TARGETS, *DESCRIPTIVE) and c in flat.columns]
    words = [c for c in key if ours[c].dtype.kind not in "iuf"]
    flat = flat[np.logical_and.reduce([flat[c].isin(ours[c].unique()) for c in key])].copy()
    for column in words:
        ours = ours.assign(**{column: ours[column].astype(str)})
        flat = flat.assign(**{column: flat[column].astype(str)})
    both = ours.reset_index(names="row").merge(flat, on=key, how="left", suffixes=("", "_flat"))
    both["off"] = (both["time_s"] / both["time_s_flat"] - 1).abs()
    return both.sort_values("off", kind="stable").drop_duplicates("row")


@pytest.mark.parametrize(
    ("sample", "tables", "device"),
    [
        ("neusight_bmm.csv", ["neusight/gemm_train"], ""),
        ("neusight_softmax.csv", ["neusight/rowwise_train", "neusight/rowwise_test_seen_gpus"], ""),
        ("aiconfigurator_gemm.parquet", ["aiconfigurator/gemm"], ""),
        ("aiconfigurator_context_attention.parquet", ["aiconfigurator/prefill"], ""),
        ("aiconfigurator_generation_attention.parquet", ["aiconfigurator/decode"], ""),
        ("aiconfigurator_moe.parquet", ["aiconfigurator/moe"], ""),
        ("aiconfigurator_nccl.parquet", ["aiconfigurator/nccl"], ""),
        ("vidur_mlp.csv", ["vidur/gemm"], "a100-sxm-80gb"),
        ("vidur_all_reduce.csv", ["vidur/network"], "a100-sxm-80gb"),
    ],
)
def test_rows_of_a_real_sample_are_those_of_the_flat_table(
    shared_data: Path, sample: str, tables: list[str], device: str
) -> None:
    found = import_data(shared_data / "samples" / sample, device=device)
    facts = found.facts[0]
    assert facts.read == facts.rows == len(found.frame) > 0
    assert facts.licence
    flat = pd.concat([pd.read_parquet(shared_data / f"{table}.parquet") for table in tables])
    ours = found.frame
    if sample == "vidur_mlp.csv":
        ours = ours.assign(model="Llama-2-7b-hf")  # the folder that it comes from, as the flat table has it
        flat = flat[flat["model"] == "Llama-2-7b-hf"]
    both = matched(ours, flat)
    assert len(both) == len(ours)
    # Some sites (whole layers and shapes) are not in the flat tables, whatever was measured of them.
    absent = both["time_s_flat"].isna()
    assert not set(both.loc[absent, "site"]) & set(flat.loc[flat["device"].isin(ours["device"]), "site"])
    assert absent.mean() < 0.4
    both = both[~absent]
    assert both["off"].max() < 1e-6  # the flat tables have single precision
    assert (both["site"].astype(str) == both["site_flat"].astype(str)).all()
    if ours["power_w"].notna().any():
        np.testing.assert_allclose(both["power_w"], both["power_w_flat"], rtol=1e-6)
    if "layer" in ours.columns:
        assert (both["layer"] == both["layer_flat"]).all()


def test_the_flat_tables_themselves_are_read(shared_data: Path) -> None:
    for path in sorted(shared_data.glob("[anv]*/*.parquet")):
        found = import_data(path)
        assert found.facts[0].format == "frame"
        table = pd.read_parquet(path)
        assert len(found.frame) == len(table)
        np.testing.assert_array_equal(found.y["time_s"], table["time_s"].astype(float))
        assert not set(found.X.columns) & {*DESCRIPTIVE, *TARGETS}
        # A site is never torn apart.
        assert (pd.Series(found.groups).groupby(found.frame["op"] + found.frame["site"]).nunique() == 1).all()


@pytest.mark.parametrize(
    ("name", "rows", "largest_s"),
    [("allgather", 58, 0.033646), ("allreduce", 64, None), ("alltoall", 58, None), ("broadcast", 64, 0.036896),
     ("reduce", 64, 0.037613), ("reducescatter", 58, 0.032464)],
)  # fmt: skip
def test_tables_of_nccl_tests_from_before_2022(
    shared_data: Path, name: str, rows: int, largest_s: float | None
) -> None:
    found = import_data(shared_data / "samples" / f"nccl_{name}.log")
    op = {"allgather": "all_gather", "allreduce": "all_reduce", "alltoall": "all_to_all",
          "reducescatter": "reduce_scatter"}.get(name, name)  # fmt: skip
    frame = found.frame
    assert set(frame["op"]) == {f"collectives.{op}"}
    assert set(frame["device"]) == {"a100-sxm-40gb"}
    assert set(frame["world_size"]) == {8}
    assert len(frame) == rows == 68 - found.facts[0].left_out["no byte was sent"]
    last = frame[(frame["bytes"] == 2**33) & frame["in_place"].isna()]
    assert len(last) == 1
    if largest_s is not None:
        assert last["time_s"].item() == pytest.approx(largest_s)


def test_nvbandwidth_text(shared_data: Path) -> None:
    found = import_data(shared_data / "samples" / "nvbandwidth_results.log", given={"bytes": "256M"})
    frame = found.frame
    assert set(frame["device"]) == {"gh200-96gb"}
    assert (frame["bytes"] == 2**28).all()
    assert frame["op"].value_counts().to_dict() == {"offload.h2d": 7, "offload.d2h": 3, "offload.bidirectional": 2}
    assert frame["time_s"].iloc[0] == pytest.approx(2**28 / 369.36e9)
    assert sum(found.facts[0].left_out.values()) == found.facts[0].read - 12
    assert not found.facts[0].notes  # the size was given, nothing is assumed


def test_fio_json_within_a_log(shared_data: Path) -> None:
    found = import_data(shared_data / "samples" / "fio.log", device="h200-sxm")
    reads, writes = (row for _, row in found.frame.iterrows())
    assert (reads["op"], reads["span"], writes["op"], writes["beside"]) == (
        "storage.read", 2**20, "storage.write", "reads",
    )  # fmt: skip
    for row, kib_per_s in ((reads, 340570), (writes, 340283)):  # as fio prints them
        assert row["span"] / row["time_s"] == pytest.approx(kib_per_s * 1024, rel=1e-4)
    for row in (reads, writes):
        words = (row["block"], row["depth"], row["threads"], row["pattern"], row["access"], row["impl"])
        assert words == (4096, 64, 4, "random", "direct", "fio_libaio")


def test_a_predictor_learns_from_samples_of_five_formats(shared_data: Path) -> None:
    from wattline.predictors.imported import together

    named: dict[str, str] = {"vidur_mlp.csv": "a100-sxm-80gb", "fio.log": "h200-sxm"}
    files = ("neusight_softmax.csv", "aiconfigurator_nccl.parquet", "vidur_mlp.csv", "nccl_allreduce.log",
             "nvbandwidth_results.log")  # fmt: skip
    data = together(import_data(shared_data / "samples" / f, device=named.get(f, "")) for f in files)
    model = KernelPredictor().fit(data.X, data.y, data.groups)
    found: Any = model.predict(data.X)
    assert np.isfinite(found["time_s"]).all()
    error = (found["time_s"] / data.y["time_s"] - 1).abs()
    assert error.median() < 0.1
