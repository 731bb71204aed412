"""nccl-tests: its sizes, its tables of several versions, its JSON, and what we write read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline import nccl_tests
from wattline.errors import DataError, ParamError, StorageError

HEAD = """# nThread 1 nGpus 1 minBytes 8 maxBytes 64 step: 2(factor) warmup iters: 5 iters: 20 validation: 1
#
# Using devices
"""
DEVICES = "".join(f"#  Rank  {r} Group  0 Pid   7{r} on n1 device  {r} [0000:0{r}:00] NVIDIA H100\n" for r in range(4))
COLUMNS = """#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
"""
LINES = """           8             2     float     sum      -1   35.8  0.00  0.00   0    23.50    0.00    0.00    N/A
  1073741824     268435456     float     sum      -1   6710.9  160.00  240.00      0   6737.4  159.37  239.05      3
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 70.742
"""


@pytest.mark.parametrize(
    ("text", "size"), [("8", 8), ("64K", 65536), ("128M", 2**27), ("1G", 2**30), ("0.5k", 512), ("2GiB", 2**31)]
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert nccl_tests.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-8", "8Q", "1e6"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ParamError, match="not a size"):
        nccl_tests.parse_size(text)


def test_a_table_with_its_devices() -> None:
    text = "> mpirun /opt/all_reduce_perf -b 8 -e 1G\n" + HEAD + DEVICES + COLUMNS + LINES
    (table,) = nccl_tests.parse(text)
    assert (table.op, table.ranks, table.device) == ("collectives.all_reduce", 4, "NVIDIA H100")
    first, in_place, large, last = table.lines
    assert (first.size, first.count, first.dtype, first.wrong, first.in_place) == (8, 2, "fp32", 0, False)
    assert first.time_s == pytest.approx(35.8e-6)
    assert (in_place.in_place, in_place.wrong, in_place.time_s) == (True, None, pytest.approx(23.5e-6))
    assert (large.size, last.wrong) == (2**30, 3)


def test_the_newer_header_names_the_program_and_columns_of_single_iterations_are_passed_over() -> None:
    names = "#  size  count  type  redop  root  time  algbw  busbw  #wrong  i_min  i_max  i_p99  i_cv%" \
        "  time  algbw  busbw  #wrong  i_min  i_max  i_p99  i_cv%\n"  # fmt: skip
    row = "4096 1024 half none -1  10.0 0.41 0.31 0 9.0 12.0 11.9 2.0   8.0 0.51 0.38 0 7.0 9.0 8.9 2.0\n"
    text = "# Collective test starting: all_gather_perf\n" + HEAD + DEVICES + names + row
    (table,) = nccl_tests.parse(text)
    assert (table.name, [line.time_s for line in table.lines]) == ("all_gather", [pytest.approx(1e-5), 8e-6])
    assert table.lines[0].dtype == "fp16"


def test_without_devices_the_bandwidths_tell_the_ranks(tmp_path: Path) -> None:
    path = tmp_path / "all_reduce_perf.out"
    path.write_text(HEAD + COLUMNS + LINES)  # 240 / 160 is 2 * 3 / 4
    (table,) = nccl_tests.read_file(path)
    assert table.ranks == 4
    path = path.rename(tmp_path / "broadcast_perf.out")  # whose factor is 1, whatever their number
    with pytest.raises(DataError, match="how many ranks"):
        nccl_tests.read_file(path)
    path = path.rename(tmp_path / "what.out")
    with pytest.raises(DataError, match="which collective"):
        nccl_tests.read_file(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("hello", "no result"), ("{}", "is not the JSON"), ("{", "is not the JSON"), ('{"config": 3}', "is not the JSON"),
     ('{"config": {"devices": []}, "results": []}', "how many ranks")],
)  # fmt: skip
def test_what_is_not_its_output_is_refused(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        nccl_tests.parse(text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        nccl_tests.read_file(tmp_path / "none")


def test_its_json() -> None:
    body = {"time": 12.5, "alg_bw": 1.0, "bus_bw": 1.0, "nwrong": None}
    entry = {"size": 64, "count": 16, "type": "float", "redop": "sum", "root": "    -1", "out_of_place": None}
    data = {
        "version": 2, "args": ["/opt/reduce_scatter_perf", "-b", "8"],
        "config": {"devices": [{"rank": 0}, {"rank": 1}]},
        "results": [{**entry, "in_place": body, "experiment_name": "x"}],
    }  # fmt: skip
    (table,) = nccl_tests.parse(json.dumps(data))
    assert (table.name, table.ranks) == ("reduce_scatter", 2)
    assert table.lines == (nccl_tests.Line(64, 16, "float", pytest.approx(12.5e-6), True, None),)


line = st.builds(
    nccl_tests.Line, size=st.integers(1, 2**33), count=st.integers(0, 2**31), type=st.sampled_from(["float", "half"]),
    time_s=st.floats(1e-6, 10), in_place=st.booleans(), wrong=st.none() | st.integers(0, 5),
)  # fmt: skip


@given(st.sampled_from(sorted(nccl_tests.PROGRAMS)), st.integers(2, 9), st.lists(line, min_size=1, max_size=4))
def test_what_is_written_reads_back(name: str, ranks: int, lines: list[nccl_tests.Line]) -> None:
    table = nccl_tests.Table(name, ranks, tuple(lines))
    hosts = [{"rank": rank, "pid": 1, "hostname": "n"} for rank in range(ranks)]
    for text in (nccl_tests.to_json([table], args=["w"], start="", hosts=hosts), nccl_tests.to_text([table])):
        (read,) = nccl_tests.parse(text)
        assert (read.name, read.ranks) == (name, ranks)
        for ours, theirs in zip(lines, read.lines, strict=True):
            assert (theirs.size, theirs.count, theirs.type) == (ours.size, ours.count, ours.type)
            assert (theirs.in_place, theirs.wrong) == (ours.in_place, ours.wrong)
            assert theirs.time_s == pytest.approx(ours.time_s, rel=5e-3)


OLD = """# nThread 1 nGpus 8 minBytes 1 maxBytes 64 step: 2(factor) warmup iters: 5 iters: 20 validation: 0
# Using devices
#   Rank  0 Pid 1 on localhost device  0 [0x00] A100-SXM4-40GB
#   Rank  1 Pid 1 on localhost device  1 [0x00] A100-SXM4-40GB
#
#                                             out-of-place                       in-place
#       size         count    type{names}     time   algbw   busbw  error     time   algbw   busbw  error
#        (B)    (elements)        {blank}     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
host:3442:3442 [0] NCCL INFO Launch mode Parallel
          32             1   float{words}    35.03    0.00    0.00    N/A    34.15    0.00    0.00  1e-07
"""


@pytest.mark.parametrize(
    ("file", "names", "words", "collective"),
    [
        ("nccl_allgather.log", "", "", "all_gather"),
        ("nccl_alltoall.log", "   redop", "        ", "all_to_all"),  # a column without a word
        ("nccl-all-reduce-8.txt", "   redop", "     sum", "all_reduce"),
        ("ReduceScatter.log", "   redop", "     sum", "reduce_scatter"),
        ("broadcast.log", "    root", "       0", "broadcast"),
        ("nccl_reduce.log", "   redop    root", "     sum       0", "reduce"),
    ],
)
def test_tables_from_before_2022_have_fewer_columns(file: str, names: str, words: str, collective: str) -> None:
    (table,) = nccl_tests.parse(OLD.format(names=names, blank=" " * len(names), words=words), f"runs/{file}")
    assert (table.name, table.ranks, table.device) == (collective, 2, "A100-SXM4-40GB")
    assert [line.time_s for line in table.lines] == pytest.approx([35.03e-6, 34.15e-6])
    # Its last column is the largest error, not how many elements were wrong.
    assert [(line.in_place, line.wrong) for line in table.lines] == [(False, None), (True, None)]
