"""gemm.tiled: every tile gives the product, what cannot run says why, and the Triton kernels in their interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError
from wattline.suites.fills import Builder
from wattline.suites.gemm import tiled
from wattline.suites.gemm.dense_compiled import product_of, tiles_for
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine, Value
from wattline.workmodels.tiled import SM_LIMITS, shared_bytes, sm_limits, tiles_of

CPU = Machine(kind="cpu", torch_version=(2, 13))
H200 = Machine(kind="cuda", sm=90, torch_version=(2, 13))
A100 = Machine(kind="cuda", sm=80, torch_version=(2, 13))
WORKLOAD = get("gemm.tiled").workload


def params(m: int = 37, n: int = 41, k: int = 29, dtype: str = "fp32", **more: Any) -> dict[str, Value]:
    return WORKLOAD.params.parse({"m": m, "n": n, "k": k, "dtype": dtype, **more}, op="gemm.tiled")


def blocks(m: int, n: int, k: int, **more: Any) -> dict[str, Any]:
    return {"block_m": m, "block_n": n, "block_k": k, **more}


def build(p: dict[str, Value], impl: str = "numba", data: str = "uniform") -> Kernel:
    return get_implementation("gemm.tiled", impl).build(p, Builder("cpu", CPU, data=data))


def passes(p: dict[str, Value], kernel: Kernel, result: Any) -> bool:
    error, allowed, _ = WORKLOAD.check(p, kernel, result)
    return error <= allowed


def right(p: dict[str, Value], impl: str) -> None:
    kernel = build(p, impl)
    kernel.output.fill_(math.nan)
    result = kernel.call()
    assert result.data_ptr() == kernel.output.data_ptr()
    assert passes(p, kernel, result)
    assert kernel.eager is not None
    fresh = kernel.eager()
    assert fresh.data_ptr() != result.data_ptr()
    assert torch.equal(fresh, result)
    wrong = result.clone()
    wrong[-1, -1] += 1.0
    assert not passes(p, kernel, wrong)


@pytest.fixture
def numba() -> None:
    pytest.importorskip("numba")


@pytest.mark.usefixtures("numba")
class TestNumba:
    """The kernels that measure on a CPU."""

    @pytest.mark.parametrize("dtype", ["fp32", "fp64"])
    @pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 8, 4), (16, 16, 16), (5, 7, 3), (64, 64, 64), (1000, 1, 1000)])
    def test_blocks_that_divide_nothing(self, sizes: tuple[int, int, int], dtype: str) -> None:
        right(params(dtype=dtype, **blocks(*sizes)), "numba")

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 53, 7), (53, 1, 7), (7, 5, 1), (64, 64, 64), (4, 4, 257)])
    def test_vectors_and_whole_tiles(self, shape: tuple[int, int, int]) -> None:
        right(params(*shape, **blocks(16, 32, 8)), "numba")
        right(params(*shape, tile=5), "naive")

    @pytest.mark.parametrize("tile", [1, 2, 3, 16, 17, 32])
    def test_naive_tiles(self, tile: int) -> None:
        right(params(tile=tile), "naive")
        right(params(tile=tile, dtype="fp64"), "naive")

    @settings(max_examples=60)
    @given(
        st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 48)] * 3), st.integers(1, 9),
        st.integers(1, 32),
    )  # fmt: skip
    def test_any_shape_in_any_tiles(
        self, shape: tuple[int, int, int], sizes: tuple[int, int, int], group: int, tile: int
    ) -> None:
        from wattline.suites.gemm.tiled_numba import kernel_for

        rng = np.random.default_rng(sum(shape))
        a, b = rng.standard_normal((shape[0], shape[2])), rng.standard_normal((shape[2], shape[1]))
        for name, arguments in (("blocked", (*sizes, group)), ("naive", (tile,))):
            c = np.full((shape[0], shape[1]), np.nan)
            kernel_for(name, c.dtype)[0](a, b, c, *arguments)
            np.testing.assert_allclose(c, a @ b, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("data", ["zeros", "integers", "sparse"])
    def test_fills(self, data: str) -> None:
        p = params(**blocks(16, 16, 16))
        kernel = build(p, data=data)
        error, _, _ = WORKLOAD.check(p, kernel, kernel.call())
        assert error < 1e-6

    def test_facts_and_bytes(self) -> None:
        p = params(**blocks(16, 16, 16))
        kernel = build(p)
        assert kernel.facts["compile_s"] > 0
        assert kernel.facts["threads"] == torch.get_num_threads()
        held = sum(t.nbytes for t in (*kernel.inputs.values(), kernel.output))
        assert WORKLOAD.footprint(p) == held


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"warps": 3}, "warps is a power of two"),
        ({"warps": 64}, "warps must be from 1 to 32"),
        ({"stages": 9}, "stages must be from 1 to 8"),
        ({"tile": 33}, "tile must be from 0 to 32"),
        ({"tile": 8, "block_m": 64}, "in the place of blocks"),
        ({"block_n": 0}, "block_n must be from 1"),
    ],
)
def test_impossible_parameters_are_refused_with_the_rule(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(ParamError, match=rule):
        params(**wrong)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="int8"):
        params(dtype="int8")


@pytest.mark.parametrize(
    ("impl", "more", "machine", "code"),
    [
        ("triton", {}, CPU, "no_accelerator"),
        ("triton", {}, H200, None),
        ("triton", {"dtype": "fp64"}, H200, "no_kernel"),
        ("triton", {"dtype": "tf32"}, H200, None),
        ("triton", {"dtype": "tf32"}, Machine(kind="cuda", sm=75), "old_device"),
        ("triton", {"tile": 4}, H200, "no_kernel"),
        ("triton", {"block_m": 24}, H200, "block_size"),
        ("triton", {"block_k": 8}, H200, "block_size"),
        ("triton", {"block_m": 512, "block_n": 256}, H200, "registers"),
        ("numba", {}, H200, "no_kernel"),
        ("numba", {"dtype": "bf16"}, CPU, "no_kernel"),
        ("numba", {"tile": 4}, CPU, "no_kernel"),
        ("numba", {"warps": 8}, CPU, "no_kernel"),
        ("numba", {"block_m": 3}, CPU, None),
        ("naive", {}, CPU, "no_tile"),
        ("naive", {"tile": 7}, CPU, None),
        ("naive", {"tile": 7, "dtype": "bf16"}, CPU, "no_kernel"),
        ("naive", {"tile": 7, "dtype": "bf16"}, H200, None),
        ("naive", {"tile": 7, "dtype": "tf32"}, H200, "no_kernel"),
    ],
)
def test_what_cannot_run_has_a_reason(
    impl: str, more: dict[str, Any], machine: Machine, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("numba")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = get_implementation("gemm.tiled", impl).unmet(params(**more), machine)
    assert (reason.code if reason else None) == code


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for impl, more, machine, package in (
        ("numba", {}, CPU, "numba"), ("naive", {"tile": 4}, CPU, "numba"), ("naive", {"tile": 4}, H200, "triton"),
        ("triton", {}, H200, "triton"),
    ):  # fmt: skip
        reason = get_implementation("gemm.tiled", impl).unmet(params(**more), machine)
        assert reason is not None
        assert reason.code == "missing_library"
        assert package in reason.message


def test_more_shared_memory_than_there_is_is_refused_with_the_figure() -> None:
    pytest.importorskip("triton")
    # (128 + 256) * 64 elements of 2 bytes: 49152 bytes a step. Compute capability 9.0 keeps five, 8.0 four of five.
    p = params(dtype="bf16", warps=8, stages=5, **blocks(128, 256, 64))
    unmet = get_implementation("gemm.tiled", "triton").unmet
    reason = unmet(p, H200)
    assert reason is not None
    assert reason.code == "shared_memory"
    assert "246 kB" in reason.message  # 245,760 bytes
    assert "232 kB" in reason.message  # 227 KiB
    assert "9.0" in reason.message
    reason = unmet(p, A100)
    assert reason is not None
    assert "197 kB" in reason.message  # 196,608 bytes
    assert unmet({**p, "stages": 4}, H200) is None
    assert unmet({**p, "stages": 4}, A100) is None  # 147,456 of 166,912
    # Compute capability 7.5 cannot copy ahead, so one step is held at a time, and 49,152 of 65,536 bytes are enough.
    assert unmet(p, Machine(kind="cuda", sm=75)) is None
    reason = unmet({**p, "block_k": 128}, Machine(kind="cuda", sm=75))
    assert reason is not None
    assert reason.code == "shared_memory"
    assert unmet(p, Machine(kind="cuda", hip=True)) is None  # AMD's driver answers for itself


def test_random_points_hold_powers_of_two_and_cover_their_space() -> None:
    found = list(tiled.random(64, seed=3, warps="4,8", stages="2,3"))
    assert found == list(tiled.random(64, seed=3, warps="4,8", stages="2,3"))
    for s in found:
        params(**s)
        assert all(s[name] in (16, 32, 64, 128, 256) for name in ("block_m", "block_n", "block_k"))
        assert all(64 <= s[name] <= 1024 for name in "mnk")
    for name in ("block_m", "block_n", "block_k"):
        counts = np.bincount([int(math.log2(s[name])) - 4 for s in found], minlength=5)
        assert counts.min() >= 64 / 5 / 2
    assert {(s["warps"], s["stages"]) for s in found[:4]} == {(4, 2), (8, 2), (4, 3), (8, 3)}


def test_scout_keeps_the_tiles() -> None:
    p = params(512, 2048, 100, **blocks(16, 64, 32))
    scout = WORKLOAD.scout(p)
    assert scout == {**p, "m": 128, "n": 128}
    assert WORKLOAD.scout(scout) is None


@settings(max_examples=80)
@given(
    st.tuples(*[st.integers(1, 9000)] * 3), st.integers(1, 8), st.sampled_from(tiled.TRITON_FORMATS),
    st.sampled_from(sorted(SM_LIMITS)), st.integers(1, 200),
)  # fmt: skip
def test_tiles_of_dense_products_fit_the_device(
    shape: tuple[int, int, int], batch: int, dtype: str, capability: int, sms: int
) -> None:
    limits = sm_limits(capability)
    tiles = tiles_for(*shape, batch=batch, dtype=dtype, limits=limits, sm_count=sms)
    assert shared_bytes(tiles_of(tiles), dtype, limits) <= limits.block_bytes
    assert all(tiles[name] >= 16 and tiles[name].bit_count() == 1 for name in ("block_m", "block_n", "block_k"))
    assert tiles["block_m"] * tiles["block_n"] / (32 * tiles["warps"]) <= 128  # sums of a thread


def test_tiles_of_dense_products_grow_with_them() -> None:
    area = [(t := tiles_for(size, size, size))["block_m"] * t["block_n"] for size in (128, 512, 2048, 8192)]
    assert area == sorted(area)
    assert area[0] < area[-1]
    assert tiles_for(1, 4096, 4096)["block_m"] == 16
    assert tiles_for(4096, 4096, 8)["block_k"] == 16


def test_compiled_products_are_one_for_each_precision() -> None:
    assert product_of("fp32", "default") is product_of("fp32", "default")
    assert product_of("fp32", "default") is not product_of("tf32", "default")


INTERPRETED = '''
import json, math, sys
import torch
from wattline.suites.fills import Builder
from wattline.suites.gemm.tiled_triton import interpreted, naive_launcher
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine

CPU = Machine(kind="cpu", torch_version=(2, 13))


def judged(op, impl, given, data="uniform"):
    workload = get(op).workload
    p = workload.params.parse(given, op=op)
    implementation = get_implementation(op, impl)
    reason = implementation.unmet(p, CPU)
    assert reason is None, reason
    kernel = implementation.build(p, Builder("cpu", CPU, data=data))
    kernel.output.fill_(math.nan)
    result = kernel.call()
    error, allowed, method = workload.check(p, kernel, result)
    eager = kernel.eager()
    same = torch.equal(eager, result) and eager.data_ptr() != result.data_ptr()
    return {"error": error, "allowed": allowed, "same": same, "facts": kernel.facts}


def naive(m, n, k, tile, dtype):
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    c = torch.full((m, n), math.nan, dtype=dtype)
    naive_launcher(a, b, c, tile, 1)()
    ref = a.double() @ b.double()
    return float((c.double() - ref).norm() / ref.norm())


cases = json.loads(sys.argv[1])
found = {name: judged(*case) for name, case in cases.items()}
torch.manual_seed(0)
plain = {str((*s, t, d)): naive(*s, t, getattr(torch, d))
         for s, t, d in [((5, 7, 6), 1, "float32"), ((11, 9, 7), 5, "float32"), ((33, 20, 5), 32, "float16"),
                         ((13, 17, 8), 16, "bfloat16")]}
print(json.dumps({"interpreted": interpreted(), "cases": found, "naive": plain}))
'''

SMALL = {"block_m": 16, "block_n": 16, "block_k": 16, "warps": 1, "stages": 2}
_CASES: dict[str, tuple[Any, ...]] = {
    f"{dtype} {m} {n} {k}": ("gemm.tiled", "triton", {"m": m, "n": n, "k": k, "dtype": dtype, **SMALL})
    for dtype in tiled.TRITON_FORMATS
    for m, n, k in ((37, 41, 29), (1, 1, 1), (48, 32, 16))
}
_CASES |= {
    "uneven blocks": (
        "gemm.tiled", "triton", {"m": 70, "n": 50, "k": 100, "dtype": "fp32", **SMALL, "block_m": 64, "block_k": 32},
    ),
    "bands of three": ("gemm.tiled", "triton", {"m": 101, "n": 67, "k": 20, "dtype": "fp32", **SMALL, "group_m": 3}),
    "one band": ("gemm.tiled", "triton", {"m": 67, "n": 101, "k": 20, "dtype": "fp16", **SMALL, "group_m": 100}),
    "zeros": ("gemm.tiled", "triton", {"m": 20, "n": 20, "k": 20, "dtype": "bf16", **SMALL}, "zeros"),
    "dense": ("gemm.dense", "triton", {"m": 37, "n": 41, "k": 29, "dtype": "fp32"}),
    "dense wide": ("gemm.dense", "triton", {"m": 19, "n": 70, "k": 33, "dtype": "bf16", "out_dtype": "fp32"}),
    **{f"dense {layout}": ("gemm.dense", "triton", {"batch": 3, "m": 19, "n": 23, "k": 17, "dtype": "fp16",
                                                    "layout": layout}) for layout in ("nn", "nt", "tn", "tt")},
}  # fmt: skip


@pytest.fixture(scope="module")
def interpreted(python_json: Callable[..., Any]) -> Any:
    """What the Triton kernels compute in a process of their own: Triton must be told before it is imported."""
    import json

    pytest.importorskip("triton")
    code = 'import os\nos.environ["TRITON_INTERPRET"] = "1"\n' + INTERPRETED
    return python_json(code, json.dumps(_CASES), timeout=240)


@pytest.mark.parametrize("name", list(_CASES))
def test_triton_in_its_interpreter(interpreted: Any, name: str) -> None:
    assert interpreted["interpreted"]
    found = interpreted["cases"][name]
    assert found["error"] <= found["allowed"]
    assert found["same"]
    assert found["facts"]["compile_s"] > 0
    if name == "zeros":
        assert found["error"] == 0
    if name.startswith("dense"):
        assert found["facts"]["block_m"] >= 16


def test_naive_triton_in_its_interpreter(interpreted: Any) -> None:
    for name, error in interpreted["naive"].items():
        assert error < (1e-6 if "float32" in name else 1e-2), name
    assert len(interpreted["naive"]) == 4
