"""Each importer on a small file in its format: units, names, sizes and what is left out, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wattline import nccl_tests
from wattline.device import DeviceSpec
from wattline.errors import DataError, UnknownNameError, UsageError
from wattline.predictors import Imported, import_data
from wattline.predictors.importers import FORMATS, importer, recognise
from wattline.predictors.importers.source import Source

H200 = "NVIDIA H200"
NEUSIGHT = "OPName,Latency,Device,Torch Version,Kernel Name"
AIC = {"framework": "VLLM", "version": "0.22.0", "device": H200, "kernel_source": "flash"}


def text(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def one(found: Imported) -> dict[str, Any]:
    """The only row of an import."""
    (row,) = found.frame.to_dict("records")
    return {str(k): v for k, v in row.items()}


def test_every_importer_says_what_it_reads() -> None:
    for name in FORMATS:
        chosen = importer(name)
        assert (chosen.__doc__ or "").strip()
        assert chosen.SOURCE
        assert chosen.UNITS
    with pytest.raises(UnknownNameError, match="neusight"):
        importer("neusigth")


def test_neusight_products_have_their_inner_size_second(tmp_path: Path) -> None:
    path = text(tmp_path / "bmm.csv", NEUSIGHT + ",B,M,N,K", "bmm,0.5,Tesla T4,p2.1.0,sgemm,7,64,32,128")
    row = one(import_data(path))
    assert (row["op"], row["device"], row["impl"], row["dtype"]) == ("gemm.dense", "t4", "torch", "fp32")
    assert (row["batch"], row["m"], row["n"], row["k"]) == (7, 64, 128, 32)
    assert row["time_s"] == pytest.approx(5e-4)
    assert (row["site"], row["kind"], row["software"]) == ("7x64x128x32", "bmm", "torch 2.1.0")


def test_neusight_rows_and_what_is_left_out(tmp_path: Path) -> None:
    names = (("softmax", "softmax.rows"), ("ln", "norm.layernorm"), ("VECaddu", "elementwise.addu"), ("embed", ""))
    lines = [f"{theirs},0.25,Tesla P4,p2.1.0,x,1024,512" for theirs, _ in names]
    found = import_data(text(tmp_path / "rows.csv", NEUSIGHT + ",B,H", *lines, "softmax,,Tesla P4,p2.1.0,x,8,8"))
    assert list(found.frame["op"]) == [ours for _, ours in names if ours]
    assert set(found.frame["rows"]) == {1024}
    assert found.facts[0].left_out == {"operations without a counterpart here: embed": 1, "no time": 1}
    lines = [f"linear,0.1,Tesla {gpu},p2.1.0,x,1,8,16,32" for gpu in ("P4", "T4")]
    found = import_data(text(tmp_path / "linear.csv", NEUSIGHT + ",B,M,N,K", *lines))
    assert set(found.frame["device"]) == {"t4"}
    assert sum(found.facts[0].left_out.values()) == 1


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_aiconfigurator_products_with_power(tmp_path: Path) -> None:
    base = {**AIC, "op_name": "gemm", "m": 16, "n": 4096, "k": 1024, "latency": 0.02, "power_limit": 700.0}
    rows = [
        {**base, "gemm_dtype": "bfloat16", "power": 350.0},
        {**base, "gemm_dtype": "fp8_block", "power": 0.0},
        {**base, "gemm_dtype": "mx9", "power": 350.0},
        {**base, "gemm_dtype": "fp8", "power": 350.0, "power_limit": 500.0},
    ]
    found = import_data(parquet(tmp_path / "gemm.parquet", rows))
    frame = found.frame
    assert list(frame["dtype"]) == ["bf16", "fp8_block"]
    assert list(frame["power_w"].fillna(-1)) == [350.0, -1.0]
    assert frame["time_s"].tolist() == pytest.approx([2e-5, 2e-5])
    assert set(frame["site"]) == {"4096x1024"}
    assert len(found.facts[0].left_out) == 2
    assert any("power limit" in cause for cause in found.facts[0].left_out)
    # The older releases have the same columns as CSV.
    pd.DataFrame(rows[:1]).to_csv(tmp_path / "gemm_perf.txt", index=False)
    assert one(import_data(tmp_path / "gemm_perf.txt")) == one(import_data(parquet(tmp_path / "1.parquet", rows[:1])))


@pytest.mark.parametrize("kind", ["context_attention", "generation_attention"])
def test_aiconfigurator_attention(tmp_path: Path, kind: str) -> None:
    row = {
        **AIC, "op_name": kind, "batch_size": 4, "isl": 1 if kind.startswith("gen") else 512, "num_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "beam_width": 1, "attn_dtype": "bfloat16", "kv_cache_dtype": "fp8",
        "step": 1023 if kind.startswith("gen") else 0, "window_size": 128, "latency": 0.5,
    }  # fmt: skip
    more = [{**row, "beam_width": 4}, {**row, "num_key_value_heads": 0}]
    found = import_data(parquet(tmp_path / "a.parquet", [row, *more]))
    first, second = found.frame.to_dict("records")
    assert first["op"] == ("attention.decode" if kind.startswith("gen") else "attention.prefill")
    assert (first["q_len"], first["kv_len"]) == ((1, 1024) if kind.startswith("gen") else (512, 512))
    assert (first["kv_dtype"], first["window"], first["causal"], first["site"]) == ("fp8", 128, True, "32x8x128")
    assert second["kv_heads"] == 32  # none said: as many as query heads
    assert found.facts[0].left_out == {"several beams share a cache": 1}


def test_aiconfigurator_experts_and_collectives(tmp_path: Path) -> None:
    row = {
        **AIC, "op_name": "moe", "moe_dtype": "fp8", "num_tokens": 80, "hidden_size": 4096, "inter_size": 2048,
        "topk": 6, "num_experts": 256, "moe_tp_size": 2, "moe_ep_size": 1, "distribution": "balanced", "latency": 0.9,
    }  # fmt: skip
    moe = one(import_data(parquet(tmp_path / "moe.parquet", [row])))
    assert (moe["tokens"], moe["top_k"], moe["experts"], moe["tp"], moe["ep"]) == (80, 6, 256, 2, 1)
    assert (moe["routing"], moe["site"]) == ("balanced", "4096x2048x256")
    row = {**AIC, "kernel_source": "NCCL", "op_name": "alltoall", "nccl_dtype": "half", "num_gpus": 4}
    nccl = one(import_data(parquet(tmp_path / "n.parquet", [{**row, "message_size": 1000, "latency": 0.01}])))
    assert (nccl["op"], nccl["bytes"], nccl["world_size"]) == ("collectives.all_to_all", 2000, 4)  # elements of 2 bytes
    assert (nccl["impl"], nccl["time_s"]) == ("nccl", pytest.approx(1e-5))


VIDUR = [f"time_stats.{name}.median" for name in ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")]


def test_vidur_layers_are_four_products(tmp_path: Path) -> None:
    folder = tmp_path / "compute" / "a40" / "some-model"
    folder.mkdir(parents=True)
    sizes = "n_head,n_kv_head,n_embd,n_expanded_embd,use_gated_mlp,num_tokens,num_tensor_parallel_workers"
    path = text(folder / "mlp.csv", ",".join([*VIDUR, sizes]), "1,2,3,4,64,8,8192,28672,True,100,2")
    found = import_data(path)
    rows = found.frame.set_index("layer")
    # 64 query heads and twice 8 of keys and values, of 128 each, over two ranks.
    assert tuple(rows.loc["attn_pre_proj", ["m", "n", "k"]]) == (100, 80 * 128 // 2, 8192)
    assert tuple(rows.loc["attn_post_proj", ["n", "k"]]) == (8192, 4096)
    assert tuple(rows.loc["mlp_up_proj", ["n", "k"]]) == (28672, 8192)  # gate and up, halved
    assert tuple(rows.loc["mlp_down_proj", ["n", "k"]]) == (8192, 14336)
    assert rows["time_s"].tolist() == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])
    assert (set(rows["device"]), set(rows["model"])) == ({"a40"}, {"some-model"})
    assert any("by the folder a40" in note for note in found.facts[0].notes)


def test_vidur_attention_and_links(tmp_path: Path) -> None:
    names = (
        "time_stats.attn_prefill.median,time_stats.attn_decode.median,n_embd,n_q_head,n_kv_head,block_size,"
        "num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size,is_prefill,attention_backend"
    )
    shape = "8192,64,8,16,2"
    lines = (f"0.5,,{shape},1,512,1024,True,AttentionBackend.FLASH_ATTENTION",
             f",0.25,{shape},32,0,4096,False,AttentionBackend.FLASHINFER",
             f",0.0,{shape},1,0,32,False,AttentionBackend.FLASHINFER")  # fmt: skip
    found = import_data(text(tmp_path / "attention.csv", names, *lines), device="a100-sxm-80gb")
    prefill, decode = found.frame.to_dict("records")
    assert (prefill["op"], prefill["q_len"], prefill["kv_len"]) == ("attention.prefill", 512, 1536)
    assert (decode["op"], decode["batch"], decode["q_len"], decode["kv_len"]) == ("attention.decode", 32, 1, 4097)
    assert (decode["heads"], decode["kv_heads"], decode["head_dim"], decode["page_size"]) == (32, 4, 128, 16)
    assert (prefill["impl"], decode["impl"]) == ("flash_attention", "flashinfer")
    assert list(found.facts[0].left_out.values()) == [1]
    head = "time_stats.send_recv.median,rank,num_workers,size,collective,devices_per_node,max_devices_per_node"
    folder = tmp_path / "network" / "a100_pairwise_nvlink"
    folder.mkdir(parents=True)
    row = one(import_data(text(folder / "send_recv.csv", head, "0.012,0,2,2048,send_recv,1,4")))
    assert (row["op"], row["bytes"], row["ranks_per_node"]) == ("collectives.send_recv", 2048, 1)
    assert (row["device"], row["topology"]) == ("a100-sxm-80gb", "a100_pairwise_nvlink")


def table(ranks: int = 2) -> nccl_tests.Table:
    lines = [
        nccl_tests.Line(0, 0, "float", 3e-5, False),
        nccl_tests.Line(1024, 256, "float", 2e-5, False, 0), nccl_tests.Line(1024, 256, "float", 1e-5, True, 0),
        nccl_tests.Line(2048, 512, "float", 2e-5, False, 7), nccl_tests.Line(4096, 4096, "uint8", 2e-5, False),
    ]  # fmt: skip
    return nccl_tests.Table("all_reduce", ranks, tuple(lines))


@pytest.mark.parametrize("form", ["text", "json"])
def test_nccl_tests(tmp_path: Path, form: str) -> None:
    path = tmp_path / "out.txt"
    hosts = [{"rank": rank, "device_info": "NVIDIA H100 80GB HBM3"} for rank in range(2)]
    device = "" if form == "json" else "h100-sxm"  # our own text names none
    if form == "json":
        path.write_text(nccl_tests.to_json([table()], args=["w"], start="", hosts=hosts))
    else:
        path.write_text(nccl_tests.to_text([table()]))
    found = import_data(path, device=device)
    apart, within = found.frame.to_dict("records")
    assert (apart["op"], apart["bytes"], apart["world_size"], apart["dtype"]) == (
        "collectives.all_reduce", 1024, 2, "fp32",
    )  # fmt: skip
    assert (apart["time_s"], within["time_s"], within["in_place"]) == (pytest.approx(2e-5), pytest.approx(1e-5), "true")
    assert pd.isna(apart["in_place"])
    assert set(found.frame["device"]) == {"h100-sxm"}
    assert found.facts[0].left_out == {
        "no byte was sent": 1, "wrong results": 1, "number formats that nobody knows here: uint8": 1,
    }  # fmt: skip


NVBANDWIDTH = """nvbandwidth Version: v0.6

Device 0: NVIDIA H200 (00000009:01:00)

Running host_to_device_memcpy_ce.
memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)
           0
 0     50.00

SUM host_to_device_memcpy_ce 50.00

Waived:
Running device_to_device_memcpy_read_ce.
memcpy CE GPU(row) -> GPU(column) bandwidth (GB/s)
           0         1
 0       N/A    300.00
"""


def test_nvbandwidth_gives_the_time_of_its_buffer(tmp_path: Path) -> None:
    (tmp_path / "n.log").write_text(NVBANDWIDTH)
    found = import_data(tmp_path / "n.log")
    row = one(found)
    assert (row["op"], row["device"], row["memory"]) == ("offload.h2d", "h200-sxm", "pinned")
    assert (row["bytes"], row["time_s"]) == (2**29, pytest.approx(2**29 / 50e9))
    assert "512 MiB" in found.facts[0].notes[0]
    test = {"name": "device_to_host_memcpy_sm", "status": "Passed", "bandwidth_matrix": [["25.5", "N/A"]]}
    waived = {"name": "device_to_host_memcpy_ce", "status": "Waived"}
    (tmp_path / "n.json").write_text(json.dumps({"nvbandwidth": {"version": "v0.7", "testcases": [test, waived]}}))
    found = import_data(tmp_path / "n.json", device="h200-sxm", given={"bytes": "1M"})
    row = one(found)
    assert (row["op"], row["impl"], row["time_s"]) == ("offload.d2h", "sm", pytest.approx(2**20 / 25.5e9))
    assert found.facts[0].left_out == {"not measured (N/A)": 1}


def fio(**changes: Any) -> dict[str, Any]:
    body = {"io_bytes": 8 * 2**20, "io_kbytes": 8192, "bw": 4096, "runtime": 2000, "total_ios": 128}
    none = {"io_bytes": 0, "io_kbytes": 0, "bw": 0, "runtime": 0, "total_ios": 0}
    options = {"rw": "randread", "bs": "64k", "iodepth": "8", "direct": "1", "ioengine": "libaio", "size": "1G"}
    job: dict[str, Any] = {"jobname": "j", "error": 0, "job options": options, "read": body, "write": none}
    return {"fio version": "fio-3.36", "global options": {"numjobs": "2"}, "jobs": [{**job, **changes}]}


def test_fio_jobs_are_the_time_of_a_round_of_requests(tmp_path: Path) -> None:
    path = tmp_path / "fio.log"
    path.write_text("note: {not json}\n" + json.dumps(fio(), indent=1) + "\nand on\n" + json.dumps(fio()))
    found = import_data(path, device="h200-sxm")
    assert len(found.frame) == 2  # two documents in one log
    row = found.frame.iloc[0]
    # 8 MiB in 2 s, a round of 2 threads with 8 requests of 64 KiB each: an eighth of it.
    assert (row["op"], row["time_s"], row["span"], row["bytes"]) == ("storage.read", 0.25, 2**20, 2**30)
    assert (row["block"], row["depth"], row["threads"], row["pattern"]) == (65536, 8, 2, "random")
    assert (row["access"], row["impl"], row["beside"]) == ("direct", "fio_libaio", None)
    # Two clones that each have an entry are one job of two threads; three jobs at once are no measurement of one.
    clones = {**fio(), "jobs": fio()["jobs"] * 2}
    path.write_text(json.dumps(clones))
    both = one(import_data(path, device="h200-sxm"))
    assert (both["span"], both["time_s"], both["threads"]) == (2**20, 0.125, 2)  # 16 MiB in 2 s
    other = {**fio()["jobs"][0], "jobname": "second"}
    path.write_text(json.dumps({**fio(), "jobs": [*fio()["jobs"], other]}))
    with pytest.raises(DataError, match="no row that can be learned from") as caught:
        import_data(path, device="h200-sxm")
    assert "2 rows: jobs that ran while another did" in caught.value.why
    other = {**other, "job options": {**other["job options"], "stonewall": ""}}
    path.write_text(json.dumps({**fio(), "jobs": [*fio()["jobs"], other]}))
    assert len(import_data(path, device="h200-sxm").frame) == 2
    path.write_text(json.dumps(fio(error=5)))
    with pytest.raises(DataError, match="no row that can be learned from"):
        import_data(path, device="h200-sxm")
    path.write_text(json.dumps(fio(read={**fio()["jobs"][0]["read"], "bw": 9000})))
    with pytest.raises(DataError, match="job j: its bytes over its runtime are not its bandwidth"):
        import_data(path, device="h200-sxm")


def bench(**changes: Any) -> dict[str, Any]:
    stats = {"median": 0.25, "mean": 0.26, "rounds": 5}
    return {"fullname": "t.py::test", "name": "test", "params": None, "extra_info": {}, "stats": stats, **changes}


def test_pytest_benchmark_of_others(tmp_path: Path) -> None:
    words = {"op": "gemm.dense", "dtype": "fp32", "m": 64, "n": 32, "k": 16}
    whole = [
        bench(extra_info={**words, "power_w": 80.0, "energy_j": 20.0}), bench(params={**words, "m": 128}), bench(),
        bench(extra_info={**words, "blocks": [1, 2]}),
    ]  # fmt: skip
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"machine_info": {"node": "n"}, "version": "5.1.0", "benchmarks": whole}))
    found = import_data(path, device="h200-sxm")
    first, second = found.frame.to_dict("records")
    assert (first["op"], first["impl"], first["m"], first["time_s"]) == ("gemm.dense", "function", 64, 0.25)
    assert (first["power_w"], second["m"]) == (80.0, 128)
    assert "energy_j" not in found.X.columns
    assert found.facts[0].left_out == {
        "benchmarks that name no operation (op)": 1, "parameters that are neither numbers nor words": 1,
    }  # fmt: skip
    path.write_text(json.dumps({"machine_info": {}, "version": "5.1.0", "benchmarks": [bench(), bench()]}))
    with pytest.raises(DataError, match="no benchmark that says what it ran") as caught:
        import_data(path, device="h200-sxm")
    assert "extra_info" in caught.value.todo
    shared = {"op": "softmax.rows", "dtype": "bf16", "rows": "8", "cols": "64"}
    told = import_data(path, device="h200-sxm", given=shared)
    assert told.frame[["op", "dtype", "rows", "cols"]].iloc[0].tolist() == ["softmax.rows", "bf16", 8, 64]


def test_frames_of_ones_own_as_csv(tmp_path: Path) -> None:
    lines = ("op,device,dtype,m,n,k,causal,time_s", "gemm.dense,t4,half,8,16,32,True,0.5",
             "gemm.dense,Tesla T4,float,8,16,,False,0.25")  # fmt: skip
    path = text(tmp_path / "mine.csv", *lines)
    with pytest.raises(DataError, match="which implementation"):
        import_data(path)
    found = import_data(path, given={"impl": "cublas", "licence": "CC0"})
    frame = found.frame
    assert (list(frame["device"]), list(frame["dtype"])) == (["t4", "t4"], ["fp16", "fp32"])
    assert (list(frame["causal"]), list(frame["impl"])) == (["true", "false"], ["cublas", "cublas"])
    assert frame["k"].isna().tolist() == [False, True]
    assert frame["power_w"].isna().all()
    assert found.facts[0].licence == "CC0"


def test_which_format_a_file_has(tmp_path: Path) -> None:
    (tmp_path / "n.log").write_text(NVBANDWIDTH)
    (tmp_path / "f.log").write_text(json.dumps(fio()))
    (tmp_path / "t.txt").write_text(nccl_tests.to_text([table()]))
    text(tmp_path / "b.csv", NEUSIGHT + ",B,H", "softmax,1,Tesla T4,p2,x,1,1")
    found = {name: recognise(Source(tmp_path / name)) for name in ("n.log", "f.log", "t.txt", "b.csv")}
    assert found == {"n.log": "nvbandwidth", "f.log": "fio", "t.txt": "nccl-tests", "b.csv": "neusight"}


def test_devices_that_a_file_names_or_does_not(tmp_path: Path) -> None:
    path = text(tmp_path / "b.csv", NEUSIGHT + ",B,H", "softmax,1,My GPU,p2,x,1,1", "softmax,1,Tesla T4,p2,x,1,1")
    with pytest.raises(UnknownNameError, match="unknown device 'My GPU'") as caught:
        import_data(path)
    assert "--device 'My GPU=" in caught.value.todo
    assert "--device-spec" in caught.value.todo
    with pytest.raises(UsageError, match="names 2 devices"):
        import_data(path, device="t4")
    with pytest.raises(UnknownNameError, match="near it: h200-sxm"):
        import_data(path, device={"My GPU": "h200-sxn"})
    found = import_data(path, device={"My GPU": "h200-sxm"})
    assert list(found.frame["device"]) == ["h200-sxm", "t4"]
    assert found.facts[0].notes == ("the file says My GPU; taken for h200-sxm, as asked",)
    mine = DeviceSpec.from_dict({"id": "my-gpu", "name": "My GPU", "peak_flops": {"fp32": 1e13}})
    found = import_data(path, specs=[mine])
    assert list(found.frame["device"]) == ["my-gpu", "t4"]
    assert found.devices == {"my-gpu": mine}
    fio_file = tmp_path / "f.json"
    fio_file.write_text(json.dumps(fio()))
    with pytest.raises(UnknownNameError, match="does not say on which device"):
        import_data(fio_file)
    assert one(import_data(fio_file, specs=[mine]))["device"] == "my-gpu"


def test_a_fact_that_no_format_takes(tmp_path: Path) -> None:
    (tmp_path / "n.log").write_text(NVBANDWIDTH)
    with pytest.raises(UnknownNameError, match="unknown fact 'byte'"):
        import_data(tmp_path / "n.log", given={"byte": "1M"})
    with pytest.raises(UsageError, match="cannot read --set bytes=lots"):
        import_data(tmp_path / "n.log", given={"bytes": "lots"})
