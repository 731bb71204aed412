"""gemm.quantized in Triton, where it is installed: interpreted, and compiled for a GPU that need not be there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.quantization import ELEMENTS, SCHEMES

_INTERPRET = """
import json, math, sys
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine

machine = Machine(kind="cpu", torch_version=(2, 13))
workload, implementation = get("gemm.quantized").workload, get_implementation("gemm.quantized", "triton")
found = []
for given in json.loads(sys.argv[1]):
    p = workload.params.parse(given, op="gemm.quantized")
    reason = implementation.unmet(p, machine)
    assert reason is None, reason
    kernel = implementation.build(p, Builder("cpu", machine))
    kernel.output.fill_(math.nan)
    found.append(workload.check(p, kernel, kernel.call())[:2])
print(json.dumps(found))
"""


def test_the_triton_kernel_interpreted(monkeypatch: pytest.MonkeyPatch, python_json: Callable[..., Any]) -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cases = []
    for scheme, of in SCHEMES.items():
        if ELEMENTS[of.weight].bits == 0 or of.weight == "ternary5":
            continue
        for m, n, k in ((3, 70, 203), (1, 1, 1), (35, 66, 256)):
            for group in (0, 32, 128) if of.grouped else (0,):
                if group <= k:
                    dtype = "fp16" if m == 3 else "fp32"
                    cases.append({"m": m, "n": n, "k": k, "dtype": dtype, "scheme": scheme, "group": group})
    found = python_json(_INTERPRET, json.dumps(cases), timeout=240)
    assert len(found) == len(cases) > 30
    assert not [case for case, (error, allowed) in zip(cases, found, strict=True) if not error <= allowed]


@pytest.mark.parametrize(
    ("x", "w"),
    [
        (("*bf16", "*bf16", 0, 0, False, 0, 0), ("*u8", "*bf16", 2, 1, True, 1, 128)),  # w4a16
        (("*u8", "*u8", 4, 2, False, 1, 32), ("*u8", "*u8", 4, 2, False, 1, 32)),  # mxfp8
        (("*i8", "*fp32", 1, 1, False, 1, 0), ("*u8", "*fp32", 3, 1, False, 1, 0)),  # ternary
    ],
)
def test_the_triton_kernel_compiles_for_a_gpu(
    x: tuple[Any, ...], w: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget

    from wattline.suites.gemm.quant import triton_kernel

    signature = dict.fromkeys(triton_kernel._product.arg_names, "i32") | {"out": "*bf16", "factor": "*fp32"}
    fixed: dict[str, Any] = {"BM": 16, "BN": triton_kernel.TILE_N, "BK": triton_kernel.TILE_K}
    for name, (data, scale, *form) in (("x", x), ("w", w)):
        signature |= {name: data, f"{name}_scale": scale, f"{name}_zero": scale}
        parts = [f"{name.upper()}_{part}" for part in ("ELEMENT", "SCALE", "ZERO", "TALL", "WIDE")]
        fixed |= dict(zip(parts, form, strict=True))
    signature |= dict.fromkeys(fixed, "constexpr")
    source = triton.compiler.ASTSource(triton_kernel._product, signature, fixed)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 3})
    assert "mma" in compiled.asm["ptx"]
