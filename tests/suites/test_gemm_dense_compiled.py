"""gemm.dense beside torch's own: the compiled product and the Triton kernel, and what the compiler makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from wattline.suites.compiled import compiler
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine, Value
from wattline.workmodels.tiled import registers_per_thread, shared_bytes, sm_limits, tiles_of

CPU = Machine(kind="cpu", torch_version=(2, 13))
H200 = Machine(kind="cuda", sm=90, torch_version=(2, 13))
WORKLOAD = get("gemm.dense").workload


def params(m: int = 19, n: int = 23, k: int = 29, dtype: str = "fp32", **more: Any) -> dict[str, Value]:
    return WORKLOAD.params.parse({"m": m, "n": n, "k": k, "dtype": dtype, **more}, op="gemm.dense")


@pytest.mark.parametrize("more", [{}, {"dtype": "bf16", "layout": "nt"}, {"batch": 3, "dtype": "fp64"}])
def test_the_compiled_product_is_right(more: dict[str, Any]) -> None:
    reason = compiler().unmet({}, CPU)
    if reason:
        pytest.skip(reason.message)
    p = params(**more)
    kernel = get_implementation("gemm.dense", "compile").build(p, Builder("cpu", CPU))
    result = kernel.call()
    error, allowed, _ = WORKLOAD.check(p, kernel, result)
    assert error <= allowed
    assert kernel.call().data_ptr() != result.data_ptr()  # every call allocates its result
    assert kernel.facts["compile_s"] > 0
    assert result.dtype == kernel.inputs["a"].dtype


@pytest.mark.parametrize(
    ("impl", "more", "machine", "code"),
    [
        ("compile", {"dtype": "int8"}, CPU, "no_kernel"),
        ("compile", {"dtype": "fp8_e4m3", "layout": "nt"}, H200, "no_kernel"),
        ("compile", {"dtype": "tf32"}, CPU, "no_cuda"),
        ("compile", {"dtype": "bf16", "out_dtype": "fp32"}, H200, "no_kernel"),
        ("compile", {"dtype": "bf16", "acc": "fp32"}, CPU, "no_acc_choice"),
        ("compile", {"dtype": "bf16", "acc": "fp32"}, H200, None),
        ("compile", {"dtype": "fp16", "acc": "fp16"}, H200, "no_kernel"),
        ("triton", {"dtype": "bf16", "out_dtype": "fp32"}, H200, None),
        ("triton", {"dtype": "bf16", "acc": "fp32"}, H200, None),
        ("triton", {"dtype": "fp16", "acc": "fp16"}, H200, "no_kernel"),
        ("triton", {"dtype": "fp64"}, H200, "no_kernel"),
        ("triton", {"dtype": "int8"}, H200, "no_kernel"),
        ("triton", {"batch": 70000}, H200, "no_kernel"),
        ("triton", {}, CPU, "no_accelerator"),
    ],
)
def test_what_cannot_run_has_a_reason(
    impl: str, more: dict[str, Any], machine: Machine, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    if compiler().unmet({}, machine):
        pytest.skip("no compiler here")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = get_implementation("gemm.dense", impl).unmet(params(**more), machine)
    assert (reason.code if reason else None) == code


def test_precisions_are_set_before_anything_is_compiled() -> None:
    reason = compiler().unmet({}, CPU)
    if reason:
        pytest.skip(reason.message)
    torch.backends.cuda.matmul.allow_tf32 = True
    get_implementation("gemm.dense", "compile").build(params(), Builder("cpu", CPU))
    assert torch.backends.cuda.matmul.allow_tf32 is False


COMPILED = '''
import os
os.environ.pop("TRITON_INTERPRET", None)
import json, re, subprocess, sys, tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wattline.suites.gemm.tiled_triton import naive, product

STRIDES = {"a_column": 1, "b_column": 1, "c_column": 1}
TYPES = {"tf32": "fp32"}


def compiled(kernel, fixed, dtype, capability, warps, stages):
    kinds = {x: f"*{TYPES.get(dtype, dtype)}" if x in "abc" else "constexpr" if x in fixed else "i32"
             for x in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(kernel.arg_names) if x not in fixed}
    source = ASTSource(kernel, kinds, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32),
                          options={"num_warps": warps, "num_stages": stages})


def blocked(capability, dtype, m, n, k, warps, stages, whole):
    fixed = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8, "WHOLE_K": whole, "WIDEN": False,
             "PRECISION": "tf32" if dtype == "tf32" else "ieee", **STRIDES}
    made = compiled(product, fixed, dtype, capability, warps, stages)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True).stdout
    return {"shared": made.metadata.shared, "registers": int(re.search(r"REG:(\\d+)", usage).group(1)),
            "spilled": int(re.search(r"STACK:(\\d+)", usage).group(1)), "groups": "wgmma" in made.asm["ptx"],
            "ahead": "cp.async.cg" in made.asm["ptx"]}


found = [blocked(*case) for case in json.loads(sys.argv[1])]
plain = compiled(naive, {"TILE": 24, "SIDE": 32}, "fp32", 80, 32, 3)
print(json.dumps({"blocked": found, "naive_shared": plain.metadata.shared}))
'''
# Capability, format, block, warps, stages, and whether steps divide k.
KERNELS = [
    (80, "bf16", 128, 128, 32, 4, 3, True), (80, "fp16", 64, 64, 32, 4, 4, False), (80, "tf32", 64, 64, 32, 4, 3, True),
    (90, "bf16", 128, 256, 64, 8, 3, True), (90, "fp16", 64, 128, 64, 8, 3, False),
    (90, "bf16", 32, 64, 64, 4, 5, True), (90, "tf32", 64, 64, 32, 4, 3, True), (90, "bf16", 128, 128, 32, 4, 1, True),
    (90, "fp32", 64, 64, 32, 4, 3, True), (75, "fp16", 64, 64, 32, 4, 3, False), (120, "bf16", 128, 64, 64, 4, 3, True),
]  # fmt: skip


def test_the_kernel_compiles_and_takes_what_the_model_says(
    python_json: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton compiles for GPUs that are not there: its interpreter takes code that the compiler does not, and the
    figures of the work model (shared memory, registers) can be held against the compiler's own."""
    triton = pytest.importorskip("triton")
    from pathlib import Path

    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").is_file():
        pytest.skip("this Triton comes without NVIDIA's assembler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    result = python_json(COMPILED, json.dumps(KERNELS), timeout=240)
    assert result["naive_shared"] == 0
    for (capability, dtype, m, n, k, warps, stages, _), found in zip(KERNELS, result["blocked"], strict=True):
        tiles = tiles_of({"block_m": m, "block_n": n, "block_k": k, "warps": warps, "stages": stages})
        limits = sm_limits(capability)
        assert found["ahead"] == (stages > 1 and capability >= 80)  # copies run beside multiplications
        assert found["groups"] == (capability == 90 and m >= 64 and dtype != "fp32")
        assert found["shared"] == shared_bytes(tiles, dtype, limits)
        if dtype != "fp32" and capability >= 80:  # with tensor cores, which Triton knows from 8.0 on
            assert found["spilled"] == 0
            assert found["registers"] / registers_per_thread(tiles, limits) == pytest.approx(1, abs=0.34)
