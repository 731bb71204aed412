"""Work of a dense matrix product: hand-worked formats, and laws in every parameter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline import workmodels
from wattline.errors import UnknownNameError
from wattline.formats import BENCH_FORMATS, FORMATS
from wattline.work import Work
from wattline.workmodels import known_ops, register, work_model, work_of
from wattline.workmodels.arith import ceil_div, least, most
from wattline.workmodels.gemm import dense, out_format

SIZE = st.integers(1, 2**16)


@pytest.mark.parametrize(
    ("dtype", "rate", "read", "written"),
    [
        # m, n, k = 2, 3, 5: A has 10 elements, B 15, C 6.
        ("fp64", "fp64", 200, 48), ("fp32", "fp32", 100, 24), ("tf32", "tf32", 100, 24), ("bf16", "bf16", 50, 12),
        ("fp16", "fp16", 50, 12), ("fp8_e4m3", "fp8", 25, 12), ("fp8_e5m2", "fp8", 25, 12), ("int8", "int8", 25, 24),
        ("nvfp4", "fp4", 12.5, 12), ("w4a16", "bf16", 10 * 2 + 15 * 0.5, 12), ("int4", "int4", 12.5, 3),
    ],
)  # fmt: skip
def test_by_hand(dtype: str, rate: str, read: float, written: float) -> None:
    work = dense({"m": 2, "n": 3, "k": 5, "dtype": dtype})
    assert dict(work.flops) == {rate: 60}
    assert dict(work.bytes_read) == {"device": read}
    assert dict(work.bytes_written) == {"device": written}
    assert not work.link_bytes


def test_the_output_format_can_be_named() -> None:
    assert dense({"m": 2, "n": 3, "k": 5, "dtype": "bf16", "out_dtype": "fp32"}).bytes_written == {"device": 24}
    assert dense({"m": 2, "n": 3, "k": 5, "dtype": "int8", "out_dtype": "same"}).bytes_written == {"device": 24}
    assert out_format("fp8_e4m3") == "bf16"
    assert out_format("fp32", "same") == "fp32"


@given(SIZE, SIZE, SIZE, st.integers(1, 64), st.sampled_from(BENCH_FORMATS))
def test_laws(m: int, n: int, k: int, batch: int, dtype: str) -> None:
    one = dense({"m": m, "n": n, "k": k, "dtype": dtype})
    many = dense({"batch": batch, "m": m, "n": n, "k": k, "dtype": dtype})
    turned = dense({"m": n, "n": m, "k": k, "dtype": dtype})
    assert many.total_flops == pytest.approx(batch * one.total_flops, rel=1e-15)  # beyond 2**53 floats round
    assert many.total_flops == pytest.approx(batch * 2 * m * n * k, rel=1e-15)
    assert many.bytes_at() == batch * one.bytes_at()
    assert many.intensity == pytest.approx(one.intensity)
    # (A B)^T = B^T A^T is as much work.
    assert turned == one
    # Nothing is read or written twice, and every element at least once.
    width = FORMATS[dtype].bytes
    assert one.bytes_at() >= (m * k + k * n + m * n) * width
    assert one.intensity <= 2 * min(m, n, k) / width


def test_arrays_give_the_same_as_numbers() -> None:
    shapes = np.array([[1, 1, 1, 1], [2, 64, 1024, 77], [1, 4096, 16384, 8191]], dtype=np.int64)
    columns = dict(zip(("batch", "m", "n", "k"), shapes.T, strict=True))
    together = dense({**columns, "dtype": "bf16"})
    for i, shape in enumerate(shapes.tolist()):
        alone = dense({**dict(zip(("batch", "m", "n", "k"), shape, strict=True)), "dtype": "bf16"})
        assert together.flops["bf16"][i] == alone.flops["bf16"]  # type: ignore[index]
        assert together.bytes_at()[i] == alone.bytes_at()  # type: ignore[index]


def test_large_integer_arrays_do_not_wrap() -> None:
    size = np.array([2**22], dtype=np.int64)  # 2 * 2^66 operations: beyond a 64-bit integer
    work = dense({"m": size, "n": size, "k": size, "dtype": "fp32"})
    assert work.flops["fp32"][0] == 2.0**67  # type: ignore[index]
    narrow = np.array([2**16], dtype=np.int32)
    assert dense({"m": narrow, "n": narrow, "k": narrow, "dtype": "fp32"}).bytes_at()[0] == 3 * 2.0**34  # type: ignore[index]


def test_an_unknown_format_or_op_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown number format 'fp33'"):
        dense({"m": 1, "n": 1, "k": 1, "dtype": "fp33"})
    with pytest.raises(UnknownNameError, match=r"unknown op 'gemm\.dens'") as caught:
        work_of("gemm.dens", {})
    assert "gemm.dense" in caught.value.why


def test_a_third_party_can_register_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workmodels, "_REGISTERED", {})
    register("own.op", lambda p: Work(flops={"fp32": p["n"]}))
    assert "own.op" in known_ops()
    assert "gemm.dense" in known_ops()
    assert work_of("own.op", {"n": 3.0}).total_flops == 3
    assert work_model("gemm.dense") is dense


@given(st.integers(-100, 100), st.integers(1, 100))
def test_shared_arithmetic(a: int, b: int) -> None:
    import math

    assert ceil_div(a, b) == math.ceil(a / b)
    assert (least(a, b), most(a, b)) == (min(a, b), max(a, b))
    both = np.array([a, b])
    assert least(both, b).tolist() == [min(a, b), b]
    assert most(b, both).tolist() == [max(a, b), b]
    assert ceil_div(both, b).tolist() == [math.ceil(a / b), 1]
