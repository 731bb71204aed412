"""Files that are damaged, foreign, empty or wrong: each is refused with its name, and where in it the fault is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.errors import DataError, StorageError, UnknownNameError, WattlineError
from wattline.predictors import import_data
from wattline.predictors.importers import FORMATS

COLUMNS = "OPName,Latency,Device,B,M,N,K"
GOOD = "bmm,0.5,Tesla T4,7,64,32,128"
AIC = {
    "framework": "VLLM", "version": "1", "device": "NVIDIA H200", "op_name": "gemm", "kernel_source": "x",
    "gemm_dtype": "half", "m": 8.0, "n": 8.0, "k": 8.0, "latency": 0.5, "power": 1.0,
}  # fmt: skip


def csv(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "some.csv").write_text("\n".join([COLUMNS, *lines]) + "\n")
    return tmp_path / "some.csv"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bmm,0.5,Tesla T4,7,64", "line 3 has 5 fields, the header 7"),
        ("bmm,-0.5,Tesla T4,7,64,32,128", "line 3, column Latency: a time of -0.5 is negative"),
        ("bmm,inf,Tesla T4,7,64,32,128", "line 3, column Latency: it is infinite"),
        ("bmm,soon,Tesla T4,7,64,32,128", "line 3, column Latency: 'soon' is not a number"),
        ("bmm,0.5,Tesla T4,7,0,32,128", "line 3, column M: 0 is not a whole number from 1 on"),
        ("bmm,0.5,Tesla T4,7,64,3.5,128", "line 3, column N: 3.5 is not a whole number"),
        ("bmm,0.5,Tesla T4,7,64,x,128", "line 3, column N: 'x' is not a number"),
    ],
)
def test_a_wrong_field_is_named_by_line_and_column(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        import_data(csv(tmp_path, GOOD, line))
    assert words in caught.value.what
    assert "some.csv" in caught.value.what


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    quoted = 'bmm,0.5,"Tesla\nT4",7,64,32,128'  # a field that goes on in the next line
    with pytest.raises(DataError, match="line 5, column Latency"):
        import_data(csv(tmp_path, GOOD, quoted, "bmm,x,Tesla T4,7,64,32,128"), device="t4")


def test_empty_columns_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column Latency is empty in every line"):
        import_data(csv(tmp_path, "bmm,,Tesla T4,7,64,32,128", "bmm,nan,Tesla T4,7,64,32,128"))
    with pytest.raises(DataError, match="column K is empty in every line"):
        import_data(csv(tmp_path, "bmm,0.5,Tesla T4,7,64,32,"))
    with pytest.raises(DataError, match="a header and no row"):
        import_data(csv(tmp_path))
    (tmp_path / "none.csv").write_bytes(b" \n")
    with pytest.raises(DataError, match=r"none\.csv is empty"):
        import_data(tmp_path / "none.csv")
    with pytest.raises(StorageError, match="no-such"):
        import_data(tmp_path / "no-such.csv")
    with pytest.raises(DataError, match="a folder and no run"):
        import_data(tmp_path)


def test_rows_without_a_figure_are_left_out_and_counted(tmp_path: Path) -> None:
    found = import_data(csv(tmp_path, GOOD, "bmm,,Tesla T4,7,64,32,128", "bmm,0,Tesla T4,7,64,32,128",
                            "bmm,0.5,Tesla T4,,64,32,128"))  # fmt: skip
    assert len(found.frame) == 1
    assert sorted(found.facts[0].left_out.values()) == [1, 1, 1]
    with pytest.raises(DataError, match="no row that can be learned from") as caught:
        import_data(csv(tmp_path, "bmm,0,Tesla T4,7,64,32,128"))
    assert "1 rows: a time of 0" in caught.value.why


def test_missing_columns_name_what_stands_near(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("OPName,Latency,Device,B,M,NN,K\nbmm,0.5,Tesla T4,7,64,32,128\n")
    with pytest.raises(DataError, match="no column N") as caught:
        import_data(path)
    assert "NN" in caught.value.why


def test_parquet_that_is_cut_short_wrong_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pd.DataFrame([AIC]).to_parquet(path)
    whole = path.read_bytes()
    for end in (8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"some\.parquet is damaged or cut short"):
            import_data(path)
    for change, words in (
        ({"latency": -1.0}, "row 0, column latency: a time of -1 is negative"),
        ({"latency": np.nan}, "column latency is empty in every row"),
        ({"power": -3.0}, "row 0, column power: power is negative"),
        ({"m": 0.5}, "row 0, column m: 0.5 is not a whole number"),
        ({"op_name": "mla"}, "holds mla, which is not imported"),
    ):
        pd.DataFrame([{**AIC, **change}]).to_parquet(path)
        with pytest.raises(DataError) as caught:
            import_data(path)
        assert words in caught.value.what
    pd.DataFrame([AIC]).drop(columns="gemm_dtype").to_parquet(path)
    with pytest.raises(DataError, match="no column gemm_dtype"):
        import_data(path)
    pd.DataFrame([AIC]).iloc[:0].to_parquet(path)
    with pytest.raises(DataError, match="columns and no row"):
        import_data(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("all_reduce_perf.txt", "# size count type\nhello", "no known format"),
        ("x.txt", "#   size  count  type  redop  root  time  algbw  busbw  #wrong\n", "no result of nccl-tests"),
        ("x.json", '{"results": [{}], "config": {}, "average_bus_bandwidth": 1}', "not the JSON of nccl-tests"),
        ("x.json", '{"nvbandwidth": {"testcases": [{"name": "a", "bandwidth_matrix": [["fast"]]}]}}', "not the JSON"),
        ("x.json", '{"nvbandwidth": {}}', "not the JSON of nvbandwidth"),
        ("x.log", 'a {"fio version": "fio-3", "jobs": [', "the JSON of fio from line 1 on is damaged or cut short"),
        ("x.json", '{"fio version": "fio-3"}', "not the JSON of fio"),
        ("x.json", '{"machine_info": {}, "benchmarks": [{"name": 3}]}', "benchmark 1 is none of pytest-benchmark"),
        ("x.json", '{"machine_info": {}, "benchmarks": []}', "holds no benchmark"),
        ("x.json", '{"format": "wattline-run", "manifest": {}, "records": [{"a": 1}]}', "record 1 makes no sense"),
        ("x.json", '{"format": "wattline-run", "manifest": {}, "records": []}', "holds no record"),
        ("x.bin", "\x00\x01\x02\x03", "no known format"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        import_data(tmp_path / name, device="h200-sxm")
    assert words in str(caught.value)
    assert name in caught.value.what


def test_a_benchmark_with_an_impossible_time(tmp_path: Path) -> None:
    for time in (-1.0, None, "soon"):
        bench = {"fullname": "t", "stats": {"median": time}, "extra_info": {"op": "gemm.dense"}}
        (tmp_path / "b.json").write_text(json.dumps({"machine_info": {}, "benchmarks": [bench]}))
        with pytest.raises(DataError, match=r"benchmark 1 \(t\): its median is"):
            import_data(tmp_path / "b.json", device="h200-sxm")


def test_a_matrix_with_a_torn_row(tmp_path: Path) -> None:
    lines = ("Running host_to_device_memcpy_ce.", "memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)", "  0", "0 12,5")
    (tmp_path / "n.log").write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 4 is no row of the matrix of host_to_device_memcpy_ce"):
        import_data(tmp_path / "n.log", device="h200-sxm")


def test_a_named_format_that_the_file_has_not(tmp_path: Path) -> None:
    path = csv(tmp_path, GOOD)
    for name in set(FORMATS) - {"neusight"}:
        with pytest.raises(WattlineError) as caught:
            import_data(path, name, device="t4")
        assert "some.csv" in str(caught.value)
    with pytest.raises(UnknownNameError, match="import format"):
        import_data(path, "neusigt")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=200), name=st.sampled_from(sorted([*FORMATS, "auto"])))
def test_no_bytes_make_another_error(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / "any").write_bytes(data)
    with pytest.raises(WattlineError):
        import_data(tmp_path / "any", name, device="h200-sxm")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
_KEYS = st.sampled_from(["benchmarks", "machine_info", "results", "config", "devices", "average_bus_bandwidth",
                         "nvbandwidth", "testcases", "fio version", "jobs", "format", "records"])  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(_KEYS, JSON | st.dictionaries(_KEYS, JSON), max_size=5))
def test_no_json_makes_another_error(tmp_path: Path, data: Any) -> None:
    (tmp_path / "any.json").write_text(json.dumps(data))
    with pytest.raises(WattlineError):
        import_data(tmp_path / "any.json", device="h200-sxm")


def documents() -> dict[str, Any]:
    """A good document of each format that is JSON."""
    from wattline import nccl_tests

    lines = tuple(nccl_tests.Line(2**n, 2**n // 4, "float", 1e-5, False, 0) for n in (10, 12))
    hosts = [{"rank": rank, "device_info": "NVIDIA H200"} for rank in range(2)]
    nccl = nccl_tests.to_json([nccl_tests.Table("all_reduce", 2, lines)], args=["w"], start="", hosts=hosts)
    body = {"io_bytes": 8 * 2**20, "io_kbytes": 8192, "bw": 4096, "runtime": 2000, "total_ios": 128}
    options = {"rw": "randread", "bs": "64k", "iodepth": "8", "direct": "1", "size": "1G", "numjobs": "2"}
    job = {"jobname": "j", "groupid": 0, "error": 0, "job options": options, "read": body, "write": {}}
    words = {"op": "softmax.rows", "dtype": "fp32", "rows": 8, "cols": 8, "power_w": 30.0}
    bench = {"fullname": "wattline::t", "group": "softmax.rows", "params": {"causal": True}, "extra_info": words,
             "stats": {"median": 0.5}}  # fmt: skip
    case = {"op": "softmax.rows", "impl": "torch", "params": {"rows": 8, "cols": 8, "dtype": "fp32"},
            "regime": "hot", "data": "uniform"}  # fmt: skip
    stats = {"n": 3} | dict.fromkeys(
        ("median_s", "lo_s", "hi_s", "p5_s", "p95_s", "p99_s", "min_s", "max_s", "mean_s", "iqr_s"), 1e-3
    )
    measured = {"samples_s": [1e-3] * 3, "calls_per_sample": 1, "stats": stats, "stop": "precise"}
    record = {"schema": 1, "case": case, "status": "ok", "device": "box", "measurement": measured}
    spec = {"id": "box", "name": "Box", "peak_flops": {"fp32": 1e12}}
    test = {"name": "host_to_device_memcpy_ce", "bandwidth_matrix": [["12.5", "N/A"]]}
    return {
        "nccl-tests": json.loads(nccl),
        "fio": {"fio version": "fio-3.36", "global options": {}, "jobs": [job, job]},
        "nvbandwidth": {"nvbandwidth": {"testcases": [test]}},
        "pytest-benchmark": {"machine_info": {"device": "box", "wattline_device": spec}, "benchmarks": [bench]},
        "wattline-run": {"format": "wattline-run", "manifest": {"id": "r", "device": spec}, "records": [record]},
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, each in inner for place in places(each, (*path, key))]


GOOD_ONES = documents()


@pytest.mark.parametrize("name", sorted(GOOD_ONES))
def test_the_documents_below_are_good(tmp_path: Path, name: str) -> None:
    (tmp_path / "all_reduce.json").write_text(json.dumps(GOOD_ONES[name]))
    device = "" if name in ("pytest-benchmark", "wattline-run", "nccl-tests") else "h200-sxm"
    found = import_data(tmp_path / "all_reduce.json", device=device)
    assert found.facts[0].format == name
    assert len(found.frame) > 0


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from([(name, *place) for name, good in GOOD_ONES.items() for place in places(good)]),
    instead=st.none() | st.sampled_from([-1, 0, 1e400, True, "x", "-4k", [], {}, [[1]], {"a": {}}, "\ud800"]) | JSON,
)
def test_a_good_document_with_one_wrong_place_is_read_or_refused(
    tmp_path: Path, place: tuple[Any, ...], instead: Any
) -> None:
    name, *path, last = place
    spoiled = json.loads(json.dumps(GOOD_ONES[name]))
    inner = spoiled
    for key in path:
        inner = inner[key]
    inner[last] = instead
    (tmp_path / "all_reduce.json").write_text(json.dumps(spoiled))
    try:
        found = import_data(tmp_path / "all_reduce.json", name, device="h200-sxm")
    except WattlineError:
        return
    assert (found.frame["time_s"] > 0).all()
    assert np.isfinite(found.frame["time_s"]).all()
    found.save(tmp_path / "data.parquet")
