"""Work of loops over arrays and of pointer chases, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.workmodels import work_of
from wattline.workmodels.memory import ONCE, TRAFFIC, elements_of, passes_of


def test_triad_by_hand() -> None:
    # 48 MiB in three arrays of 2,097,152 doubles: two read, one written, once.
    work = work_of("host.stream", {"kernel": "triad", "bytes": 48 * 2**20, "dtype": "fp64"})
    assert work.bytes_read == {"device": 32 * 2**20}
    assert work.bytes_written == {"device": 16 * 2**20}
    assert work.details == {"passes": 1, "traffic_bytes": 48 * 2**20, "operations": 2 * 2**21}
    assert work.total_flops == 0


def test_a_small_set_is_passed_over_until_enough_has_moved() -> None:
    # 16 KiB of fp32, read: 256 MiB / 16 KiB = 16,384 passes over 4,096 elements; main memory gives it once.
    work = work_of("memory.bandwidth", {"kernel": "read", "bytes": 16384, "dtype": "fp32"})
    assert work.bytes_at() == 16384
    assert work.details["passes"] == 16384
    assert work.details["traffic_bytes"] == 2**28


@pytest.mark.parametrize(("kernel", "arrays"), [("copy", 2), ("scale", 2), ("add", 3), ("write", 1)])
def test_bytes_are_those_of_all_arrays_together(kernel: str, arrays: int) -> None:
    p = {"kernel": kernel, "bytes": 2**26, "dtype": "fp64"}
    assert elements_of(p) == 2**26 // (8 * arrays)
    assert work_of("host.stream", p).bytes_at() == arrays * 8 * (2**26 // (8 * arrays))


def test_a_chase_by_hand() -> None:
    # 1,000 steps of 64 bytes; a set of 100 lines holds no more than 6,400.
    assert work_of("memory.latency", {"bytes": 10**6, "steps": 1000}).bytes_at() == 64_000
    assert work_of("memory.latency", {"bytes": 6400, "steps": 1000}).bytes_at() == 6400
    assert work_of("memory.latency", {"bytes": 6400, "steps": 1000}).details == {"loads": 1000}


@given(st.integers(1, 2**40))
def test_every_call_touches_enough(size: int) -> None:
    touched = size * int(passes_of(size))
    assert touched >= min(TRAFFIC, ONCE)
    assert int(passes_of(size)) == 1 or touched < TRAFFIC + size
