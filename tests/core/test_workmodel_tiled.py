"""Work of tiled products: cases worked by hand, laws of tiles, and the limits of multiprocessors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.workmodels import work_of
from wattline.workmodels.tiled import SM_LIMITS, registers_per_thread, shared_bytes, sm_limits, tiles_of

FORMATS = ("fp64", "fp32", "tf32", "bf16", "fp16")


def details(m: int, n: int, k: int, dtype: str = "bf16", **more: Any) -> dict[str, Any]:
    return dict(work_of("gemm.tiled", {"m": m, "n": n, "k": k, "dtype": dtype, **more}).details)


def test_by_hand() -> None:
    # Blocks of 32 x 64, steps of 16 over 100 x 70 x 50: 4 rows and 2 columns of blocks, 4 steps, so 128 x 128 x 64.
    found = details(100, 70, 50, "fp32", block_m=32, block_n=64, block_k=16, warps=4, stages=3)
    assert found["blocks"] == 8
    assert found["padding"] == pytest.approx(1 - 100 * 70 * 50 / (128 * 128 * 64))
    # A twice, for each column of blocks; B four times.
    assert found["loaded_bytes"] == 4 * (2 * 100 * 50 + 4 * 50 * 70)
    assert found["shared_traffic_bytes"] == 8 * 4 * (32 * 16 + 16 * 64) * 4
    assert found["block_bytes"] == 4 * (32 * 16 + 16 * 64 + 32 * 64)
    # fp32 has no tensor cores that read shared memory: two buffers for three stages.
    assert found["shared_bytes"] == 2 * 4 * (32 * 16 + 16 * 64)
    # 16 sums a thread: 45 + 1.2 * 16 = 64.2 registers, 2304 a warp in portions of 256; a quarter of the multiprocessor
    # has 16384, so 7 warps, 28 in all: 7 blocks. Shared memory would do for 17, the number of warps for 16.
    assert found["registers"] == pytest.approx(64.2)
    assert found["blocks_per_sm"] == 7
    assert found["occupancy"] == 28 / 64
    assert found["waves"] == found["wave_use"] == pytest.approx(8 / (7 * 132))


def test_a_large_block_alone_on_its_multiprocessor() -> None:
    large = {"block_m": 128, "block_n": 256, "block_k": 64, "warps": 8, "stages": 3}
    found = details(4096, 4096, 4096, **large)
    assert found["shared_bytes"] == 3 * 2 * (128 * 64 + 64 * 256)  # 147,456: one of them in 228 KiB
    assert found["blocks_per_sm"] == 1
    assert found["occupancy"] == 8 / 64
    # 512 blocks on 132 multiprocessors: the fourth wave is nearly full.
    assert found["waves"] == pytest.approx(512 / 132)
    assert found["wave_use"] == pytest.approx(512 / 132 / 4)
    # An A100 has 108; its tensor cores are fed through registers, which saves a buffer.
    older = details(4096, 4096, 4096, **large, capability=80, sm_count=108)
    assert older["shared_bytes"] == 2 * 2 * (128 * 64 + 64 * 256)
    assert older["wave_use"] == pytest.approx(512 / 108 / 5)
    # Before 8.0 nothing is copied ahead: one buffer, whatever the stages.
    assert details(4096, 4096, 4096, **large, capability=75)["shared_bytes"] == 2 * (128 * 64 + 64 * 256)


def test_a_block_that_does_not_fit_is_resident_nowhere() -> None:
    found = details(512, 512, 512, block_m=128, block_n=256, block_k=64, warps=8, stages=8)
    assert found["shared_bytes"] > sm_limits(90).block_bytes
    assert found["blocks_per_sm"] == found["occupancy"] == 0


def test_the_naive_kernel_has_a_thread_for_each_element() -> None:
    found = details(64, 64, 64, "fp32", tile=16)
    # 16 tiles, each loads 4 tiles of A and 4 of B of 16 x 16; 256 threads are 8 warps.
    assert found["blocks"] == 16
    assert found["loaded_bytes"] == 4 * 16 * (4 + 4) * 256
    assert found["shared_bytes"] == found["shared_traffic_bytes"] == 0
    assert tiles_of({"tile": 16}).warps == 8
    assert [int(tiles_of({"tile": t}).warps) for t in (1, 5, 6, 8, 9, 17, 32)] == [1, 2, 2, 2, 8, 32, 32]
    assert details(64, 64, 64, "fp32", tile=1)["loaded_bytes"] == 4 * 2 * 64**3


SIZE = st.integers(1, 5000)
BLOCK = st.sampled_from([1, 4, 16, 32, 64, 128, 256])


@given(
    st.tuples(SIZE, SIZE, SIZE), st.tuples(BLOCK, BLOCK, BLOCK), st.sampled_from(FORMATS), st.sampled_from([1, 2, 4, 8])
)  # fmt: skip
def test_laws(shape: tuple[int, int, int], blocks: tuple[int, int, int], dtype: str, warps: int) -> None:
    (m, n, k), (block_m, block_n, block_k) = shape, blocks
    p = {"m": m, "n": n, "k": k, "dtype": dtype}
    tiles = {"block_m": block_m, "block_n": block_n, "block_k": block_k, "warps": warps}
    work, plain = work_of("gemm.tiled", {**p, **tiles}), work_of("gemm.dense", p)
    # Tiles change neither FLOPs nor the bytes that must move, only what is loaded on the way.
    assert (work.flops, work.bytes_read, work.bytes_written) == (plain.flops, plain.bytes_read, plain.bytes_written)
    found = work.details
    assert found["loaded_bytes"] >= plain.bytes_read["device"]
    assert 0 <= found["padding"] < 1
    assert 0 < found["wave_use"] <= 1
    assert 0 <= found["occupancy"] <= 1
    assert found["blocks"] * block_m * block_n >= m * n
    # A turned round is as much work; larger tiles never load more.
    turned = details(n, m, k, dtype, **{**tiles, "block_m": block_n, "block_n": block_m})
    assert turned["loaded_bytes"] == pytest.approx(found["loaded_bytes"])
    larger = details(m, n, k, dtype, **{**tiles, "block_m": 2 * block_m, "block_n": 2 * block_n})
    assert larger["loaded_bytes"] <= found["loaded_bytes"]
    if m % block_m == n % block_n == k % block_k == 0:
        assert found["padding"] == pytest.approx(0)
        assert found["shared_traffic_bytes"] == pytest.approx(found["loaded_bytes"])


@given(
    st.sampled_from(sorted(SM_LIMITS)), st.tuples(BLOCK, BLOCK, BLOCK), st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(1, 8),
)  # fmt: skip
def test_what_is_resident_fits(capability: int, blocks: tuple[int, int, int], warps: int, stages: int) -> None:
    named = dict(zip(("block_m", "block_n", "block_k"), blocks, strict=True))
    p = {**named, "warps": warps, "stages": stages}
    limits, tiles = sm_limits(capability), tiles_of(p)
    found = details(1000, 1000, 1000, capability=capability, **p)
    resident = found["blocks_per_sm"]
    assert resident * (found["shared_bytes"] + 1024) <= limits.shared_bytes
    assert resident * warps <= limits.warps
    assert resident <= limits.blocks
    assert resident * warps * 32 * registers_per_thread(tiles, limits) <= limits.registers
    assert shared_bytes(tiles, "bf16", limits) == found["shared_bytes"]


def test_arrays_give_what_numbers_give() -> None:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {name: rng.integers(1, 3000, 40) for name in "mnk"}
    columns |= {name: 2 ** rng.integers(0, 9, 40) for name in ("block_m", "block_n", "block_k")}
    columns |= {"warps": 2 ** rng.integers(0, 5, 40), "stages": rng.integers(1, 9, 40)}
    columns["tile"] = np.where(rng.random(40) < 0.5, 0, rng.integers(1, 33, 40))
    together = work_of("gemm.tiled", {**columns, "dtype": "bf16"}).details
    for i in range(40):
        alone = details(**{name: int(column[i]) for name, column in columns.items()})
        for name, value in alone.items():
            assert together[name][i] == pytest.approx(value), name  # type: ignore[index]


@pytest.mark.parametrize(("capability", "known"), [(90, 90), (103, 100), (88, 87), (121, 120), (61, 70)])
def test_an_unlisted_capability_counts_as_the_one_before(capability: int, known: int) -> None:
    assert sm_limits(capability) is SM_LIMITS[known]
