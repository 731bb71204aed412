"""The table of records: typed columns whatever the records hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from wattline.case import Case
from wattline.frame import FIXED_COLUMNS, to_frame
from wattline.record import Energy, Flag, Reason, Record

MakeRecord = Callable[..., Record]


def _case(**params: object) -> Case:
    return Case("op", "torch", params)  # type: ignore[arg-type]


def test_by_hand(make_record: MakeRecord) -> None:
    frame = to_frame([make_record()], run="r1")
    row = frame.iloc[0]
    assert list(frame.columns[: len(FIXED_COLUMNS)]) == list(FIXED_COLUMNS)
    assert (row["run"], row["op"], row["dtype"], row["status"]) == ("r1", "gemm.dense", "fp32", "ok")
    assert row["key"] == make_record().case.key
    assert (row["time_s"], row["min_s"], row["samples"], row["calls_per_sample"]) == (1.1e-3, 1.0e-3, 3, 4)
    assert row["flops"] == 2 * 512 * 512 * 256
    assert row["bytes_moved"] == 4 * (512 * 256 + 256 * 512 + 512 * 512)
    assert row["flops_per_s"] == pytest.approx(row["flops"] / 1.1e-3)
    assert row["bytes_per_s"] == pytest.approx(row["bytes_moved"] / 1.1e-3)
    assert row["efficiency"] == pytest.approx(5e-4 / 1.1e-3)
    assert (row["check_error"], row["bound_by"], row["flags"], row["valid"]) == (2e-7, "compute", "", True)
    assert (row["m"], row["layout"], row["telemetry.host_clock_hz"]) == (512, "nn", 3.1e9)
    assert math.isnan(row["energy_j"])  # no sensor, no joules


def test_columns_are_typed(make_record: MakeRecord) -> None:
    dtypes = to_frame([make_record(), make_record(status="skipped", measurement=None)]).dtypes.astype(str).to_dict()
    words = ("run", "key", "op", "dtype", "reason", "flags", "energy_source", "layout")
    assert {dtypes[c] for c in words} == {"string"}
    assert {dtypes[c] for c in ("samples", "seed", "sequence", "m", "n", "k", "batch")} == {"Int64"}
    assert {dtypes[c] for c in ("time_s", "energy_j", "bound_s", "wall_s", "telemetry.host_clock_hz")} == {"float64"}
    assert dtypes["valid"] == "bool"


def test_an_empty_table_has_the_same_typed_columns(make_record: MakeRecord) -> None:
    empty, full = to_frame([]), to_frame([make_record()])
    assert list(empty.columns) == list(FIXED_COLUMNS)
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full[list(FIXED_COLUMNS)].dtypes.to_dict()


def test_absent_is_na(make_record: MakeRecord) -> None:
    frame = to_frame([make_record(status="unsupported", measurement=None, work=None, bound_s=None,
                                  reason=Reason("no_cuda", "no CUDA device"))])  # fmt: skip
    row = frame.iloc[0]
    assert (row["reason_code"], row["reason"], row["valid"]) == ("no_cuda", "no CUDA device", False)
    missing = {c for c in frame.columns if frame[c].isna().all()}
    assert {"time_s", "samples", "flops", "bound_s", "flags", "stop"} <= missing


@pytest.mark.parametrize(
    ("values", "dtype", "column"),
    [
        ((True, False), "boolean", [True, False]),
        ((1, 2), "Int64", [1, 2]),
        ((1, 2.5), "float64", [1.0, 2.5]),
        (("a", "b"), "string", ["a", "b"]),
        ((True, 2), "string", ["True", "2"]),
        ((2**50, 1), "Int64", [2**50, 1]),
    ],
)
def test_parameters_are_typed_by_what_they_hold(values: tuple[object, ...], dtype: str, column: list[object]) -> None:
    frame = to_frame([Record(_case(x=value), "ok", "cpu") for value in values])
    assert str(frame["x"].dtype) == dtype
    assert frame["x"].tolist() == column


def test_parameters_of_different_operations_leave_gaps() -> None:
    frame = to_frame([Record(_case(m=1), "ok", "cpu"), Record(_case(rows=2, causal=True, share=0.5), "ok", "cpu"),
                      Record(_case(m=3, dtype="fp32"), "ok", "cpu")])  # fmt: skip
    assert frame["m"].isna().tolist() == [False, True, False]
    assert frame["m"].dropna().tolist() == [1, 3]
    assert str(frame["m"].dtype) == "Int64"
    assert str(frame["causal"].dtype) == "boolean"
    assert frame["share"].isna().tolist() == [True, False, True]
    assert frame["dtype"].isna().tolist() == [True, True, False]


def test_a_parameter_that_shares_a_fixed_name_keeps_its_own_column() -> None:
    frame = to_frame([Record(_case(seed=5, time_s=0.25, device="far"), "ok", "cpu", seed=9)])
    assert (frame["seed"][0], frame["param.seed"][0]) == (9, 5)
    assert (frame["device"][0], frame["param.device"][0]) == ("cpu", "far")
    assert math.isnan(frame["time_s"][0])
    assert frame["param.time_s"][0] == 0.25


def test_energy_and_flags(make_record: MakeRecord) -> None:
    record = make_record()
    assert record.measurement is not None
    energy = Energy(250.0, 0.275, 0.26, 0.29, "nvml counter", "gpu", idle_w=70.0)
    flags = (Flag("noisy", "wide"), Flag("clock_drift", "slower"))
    measurement = dataclasses.replace(record.measurement, energy=energy, flags=flags)
    row = to_frame([dataclasses.replace(record, measurement=measurement)]).iloc[0]
    assert (row["power_w"], row["energy_j"], row["energy_lo_j"], row["energy_hi_j"]) == (250.0, 0.275, 0.26, 0.29)
    assert (row["idle_w"], row["energy_source"], row["energy_scope"]) == (70.0, "nvml counter", "gpu")
    assert (row["flags"], row["valid"]) == ("noisy,clock_drift", True)


def test_a_stream_is_enough(make_record: MakeRecord) -> None:
    frame = to_frame(make_record(m, sequence=i) for i, m in enumerate((8, 16, 32)))
    assert frame["m"].tolist() == [8, 16, 32]
    assert frame.index.tolist() == [0, 1, 2]


def test_caps_have_columns_of_their_own(make_record: MakeRecord) -> None:
    free = make_record()
    frame = to_frame([free, replace(free, case=replace(free.case, power_limit_w=500))])
    assert frame["power_limit_w"].dtype == frame["clock_hz"].dtype == "float64"
    assert math.isnan(frame["power_limit_w"][0])
    assert frame["power_limit_w"][1] == 500.0
    assert frame["clock_hz"].isna().all()
