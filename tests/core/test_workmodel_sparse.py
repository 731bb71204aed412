"""Work of structured matrices: sparse products and Monarch matrices, by hand and by law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.workmodels.monarch import monarch
from wattline.workmodels.sparse import sparse, stored

SIZE = st.integers(1, 512).map(lambda v: 64 * v)


def work(**p: Any) -> Any:
    return sparse({"dtype": "fp32", **p})


def test_csr_by_hand() -> None:
    # 8 x 10, a quarter kept: 20 elements of 4 bytes, 20 columns and 9 pointers of 4; X is 10 x 3, C 8 x 3.
    found = work(m=3, n=8, k=10, density=0.25)
    assert found.flops == {"fp32": 2 * 3 * 20}
    assert found.bytes_read == {"device": 20 * 4 + (20 + 9) * 4 + 30 * 4}
    assert found.bytes_written == {"device": 24 * 4}
    assert found.details == {
        "nnz": 20, "stored_flops": 120, "dense_flops": 480, "stored_bytes": 196, "index_bytes": 116, "dense_bytes": 320,
    }  # fmt: skip


def test_where_indices_outweigh_the_zeros_the_dense_matrix_is_the_least() -> None:
    found = work(m=1, n=64, k=64, density=1.0)
    assert found.details["stored_bytes"] == 64 * 64 * 8 + 65 * 4
    assert found.bytes_read == {"device": 64 * 64 * 4 + 64 * 4}


def test_blocks_by_hand() -> None:
    # 64 x 96 in blocks of 16: 4 x 6 places. 40 % of 256 elements: 102 of a block. 0.1 * 6144 / 102 = 6.02: 6 blocks.
    found = work(m=2, n=64, k=96, density=0.1, pattern="block", block=16, block_fill=0.4)
    assert found.details["nnz"] == 612
    assert found.flops == {"fp32": 2 * 2 * 612}
    assert found.details["stored_flops"] == 2 * 2 * 6 * 256
    assert found.details["index_bytes"] == 4 * (6 + 5)
    assert found.details["stored_bytes"] == 6 * 256 * 4 + 44


def test_two_of_four_by_hand() -> None:
    # 8 x 20: 5 groups in a row, 10 values of 2 bytes and 20 bits: 3 bytes.
    found = work(m=4, n=8, k=20, density=0.5, pattern="2:4", dtype="bf16")
    assert found.flops == {"bf16": 2 * 4 * 80}
    assert found.details["index_bytes"] == 8 * 3
    assert found.details["stored_bytes"] == 160 + 24


def test_both_sparse_by_hand() -> None:
    # W 4 x 10 with 8 elements, X 10 x 5 with 10: on average 0.8 and 1 of each inner index: 8 pairs.
    found = work(m=5, n=4, k=10, density=0.2, sparse="both")
    assert found.flops == {"fp32": 16}
    # Two elements in a row of W, each meets an element of a column of X with chance 0.2: 1 - 0.64 of 20 results.
    results = 20 * 0.36
    assert found.bytes_read["device"] == pytest.approx((8 * 8 + 5 * 4) + (10 * 8 + 11 * 4))
    assert found.bytes_written["device"] == pytest.approx(min(80, results * 8 + 5 * 4))


@given(SIZE, SIZE, st.integers(1, 4096), st.floats(0.01, 1.0), st.sampled_from(["csr", "block"]))
def test_laws_of_sparse(n: int, k: int, m: int, density: float, pattern: str) -> None:
    found = work(m=m, n=n, k=k, density=density, pattern=pattern, block=64)
    d = found.details
    assert found.total_flops == 2 * m * d["nnz"] <= d["stored_flops"] <= d["dense_flops"]
    assert abs(d["nnz"] - density * n * k) <= (0.5 if pattern == "csr" else 64 * 64 / 2)
    # Never more than the dense product reads, never less than its distinct operands.
    assert found.bytes_at() <= d["dense_bytes"] + 4 * m * (n + k)
    assert found.bytes_at() >= 4 * (d["nnz"] + m * n + m * k) or d["stored_bytes"] > d["dense_bytes"]
    assert d["stored_bytes"] - d["index_bytes"] >= 4 * d["nnz"]


@given(SIZE, SIZE, SIZE, st.floats(0.01, 1.0))
def test_two_sparse_operands_are_as_much_work_turned_around(n: int, k: int, m: int, density: float) -> None:
    found = work(m=m, n=n, k=k, density=density, sparse="both")
    turned = work(m=n, n=m, k=k, density=density, sparse="both")
    assert found.total_flops == pytest.approx(turned.total_flops)
    assert found.total_flops <= found.details["dense_flops"] * (1 + 1e-9)


def test_arrays_of_densities_and_patterns() -> None:
    density, block = np.array([0.1, 0.5, 0.9]), np.array([16, 32, 64])
    together = stored({"n": 128, "k": 256, "density": density, "pattern": "block", "block": block, "block_fill": 1.0})
    for i in range(3):
        p = {"n": 128, "k": 256, "density": density[i], "pattern": "block", "block": int(block[i]), "block_fill": 1.0}
        assert together.nnz[i] == stored(p).nnz
        assert together.index_bytes[i] == stored(p).index_bytes


def test_what_has_no_formula_is_refused() -> None:
    with pytest.raises(ParamError, match="csr, block, 2:4"):
        work(m=1, n=4, k=4, density=0.5, pattern="1:2")
    with pytest.raises(ParamError, match="csr"):
        work(m=1, n=64, k=64, density=0.5, pattern="block", sparse="both")


def test_monarch_by_hand() -> None:
    # 12 elements in 3 blocks of 4: R has 3 blocks of 4 x 4, L 4 blocks of 3 x 3: 48 + 36 weights.
    found = monarch({"m": 5, "size": 12, "blocks": 3, "dtype": "fp32"})
    assert found.flops == {"fp32": 2 * 5 * 84}
    assert found.bytes_read == {"device": 4 * (60 + 84)}
    assert found.bytes_written == {"device": 240}
    assert found.details == {"dense_flops": 2 * 5 * 144, "dense_bytes": 576}


@given(st.integers(1, 4096), st.integers(2, 128), st.integers(2, 128))
def test_laws_of_monarch(m: int, blocks: int, side: int) -> None:
    found = monarch({"m": m, "size": blocks * side, "blocks": blocks, "dtype": "bf16"})
    turned = monarch({"m": m, "size": blocks * side, "blocks": side, "dtype": "bf16"})
    assert found.total_flops == pytest.approx(turned.total_flops)  # L and R change places
    assert found.total_flops <= found.details["dense_flops"] * (1 + 1e-12)
    assert found.total_flops >= 4 * m * (blocks * side) ** 1.5 * (1 - 1e-12)  # least in the square case
    assert found.bytes_at() <= found.details["dense_bytes"] + 4 * m * blocks * side + 1e-6
