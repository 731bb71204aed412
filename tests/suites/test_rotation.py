"""How many buffer sets a regime rotates through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.case import Case
from wattline.errors import UnknownNameError
from wattline.suites.registry import get
from wattline.suites.rotation import MAX_ROTATIONS, estimate_memory, rotations
from wattline.suites.workload import Machine

MIB = 2**20


def test_hand_worked() -> None:
    assert rotations(1 * MIB, 32 * MIB, "cold") == 64
    assert rotations(10 * MIB, 32 * MIB, "graph") == 7  # 6.4 rounded up
    assert rotations(500 * MIB, 32 * MIB, "cold") == 2  # never fewer: one set would be found in the cache
    assert rotations(1 * MIB, 32 * MIB, "hot") == rotations(1 * MIB, 32 * MIB, "eager") == 1
    assert rotations(100, 32 * MIB, "cold") == MAX_ROTATIONS
    with pytest.raises(UnknownNameError, match="cold"):
        rotations(1, 1, "cool")


@given(st.integers(1, 2**40), st.integers(0, 2**31))
def test_the_sets_exceed_twice_the_cache_unless_capped(footprint: int, cache: int) -> None:
    count = rotations(footprint, cache, "cold")
    assert 2 <= count <= MAX_ROTATIONS
    assert count * footprint >= 2 * cache or (count == MAX_ROTATIONS and footprint < 2 * cache / MAX_ROTATIONS)


def test_memory_of_a_case_is_its_footprint_times_its_sets() -> None:
    params = get("gemm.dense").workload.params.parse({"m": 256, "n": 256, "k": 256, "dtype": "fp32"})
    machine = Machine(cache_bytes=32 * MIB)
    one = 3 * 256 * 256 * 4
    assert estimate_memory(Case("gemm.dense", "torch", params, "hot"), machine) == one
    assert estimate_memory(Case("gemm.dense", "torch", params, "cold"), machine) == one * 86  # 64 MiB / 768 KiB
