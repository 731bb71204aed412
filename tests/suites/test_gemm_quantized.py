"""gemm.quantized on the CPU: every implementation against the dequantised product, the check, and what cannot run."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from wattline.errors import ParamError
from wattline.quantization import SCHEMES
from wattline.suites.fills import Builder
from wattline.suites.gemm.quant.pack import (
    Operand,
)
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine, Value
from wattline.workmodels import work_of

OP = "gemm.quantized"
CPU = Machine(kind="cpu", torch_version=(2, 13))
WORKLOAD = get(OP).workload
NUMBA = pytest.mark.skipif(
    get_implementation(OP, "planes").requires[0].unmet({}, CPU) is not None, reason="numba is not installed"
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _params(scheme: str, m: int = 3, n: int = 70, k: int = 203, dtype: str = "bf16", **more: Any) -> dict[str, Value]:
    planes = {"bits": 3 if SCHEMES[scheme].planes else 0, "abits": 8 if scheme == "bits" else 0}
    given = {"m": m, "n": n, "k": k, "dtype": dtype, "scheme": scheme, **planes, **more}
    return WORKLOAD.params.parse(given, op=OP)


def _build(impl: str, p: dict[str, Value], data: str = "uniform", seed: int = 0) -> Kernel:
    chosen = get_implementation(OP, impl)
    reason = chosen.unmet(p, CPU)
    assert reason is None, reason
    return chosen.build(p, Builder("cpu", CPU, data=data, seed=seed))


def _error(p: dict[str, Value], kernel: Kernel) -> tuple[float, float]:
    if kernel.output is not None:
        kernel.output.fill_(math.nan)
    error, allowed, _ = WORKLOAD.check(p, kernel, kernel.call())
    return error, allowed


# --- The work model.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_work_model_counts_the_bytes_that_are_stored(scheme: str) -> None:
    p = _params(scheme, 5, 150, 203)
    kernel = _build("dequantize", p)
    act = kernel.inputs["activations"]
    stored = act.bytes if isinstance(act, Operand) else act.numel() * act.element_size()
    assert work_of(OP, p).bytes_read == {"device": stored + kernel.inputs["weights"].bytes}


# --- Products.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dequantise_then_multiply(scheme: str, dtype: str) -> None:
    p = _params(scheme, dtype=dtype, group=32 if SCHEMES[scheme].grouped else 0)
    kernel = _build("dequantize", p)
    error, allowed = _error(p, kernel)
    assert error <= allowed
    assert kernel.eager is not None
    assert torch.equal(kernel.eager(), kernel.call())
    assert 0 < kernel.facts["scheme_error"] < 1


SHAPES = [(3, 70, 203), (1, 64, 256), (17, 33, 64), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("scheme", "group"),
    [("w8a8", 0), ("w8a16", 0), ("w4a16", 32), ("w4a8", 0), ("w4a4", 0), ("fp8-tensor", 0), ("fp8-row", 0),
     ("ternary", 0), ("ternary5", 0)],
)  # fmt: skip
def test_torch_has_it_right(scheme: str, group: int, dtype: str, shape: tuple[int, int, int]) -> None:
    p = _params(scheme, *shape, dtype=dtype, group=min(group, shape[2]) if shape[2] >= 32 else 0)
    if group and not p["group"]:
        pytest.skip("no group fits")
    kernel = _build("torch", p)
    error, allowed = _error(p, kernel)
    assert error <= allowed
    assert ("padded_k" in kernel.facts) == (scheme in ("w8a16", "w4a16") and shape[2] % 32 != 0)


@NUMBA
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", ["bits", "ternary", "ternary5"])
def test_bit_planes(scheme: str, shape: tuple[int, int, int]) -> None:
    for dtype in DTYPES:
        for group in (0, 32, 64):
            if group <= shape[2]:
                p = _params(scheme, *shape, dtype=dtype, group=group)
                error, allowed = _error(p, _build("planes", p))
                assert error <= allowed


@NUMBA
@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_planes_of_every_width(bits: int) -> None:
    p = _params("bits", 5, 40, 100, dtype="fp32", bits=bits, group=32)
    assert _error(p, _build("planes", p))[0] <= 1e-6
    p = _params("lut", 5, 40, 100, dtype="fp32", bits=bits, group=32)
    assert _error(p, _build("lut", p))[0] <= 1e-6


@NUMBA
@pytest.mark.parametrize("abits", [1, 8])  # the sign alone lies between two codes
def test_bit_planes_of_narrow_and_wide_activations(abits: int) -> None:
    p = _params("bits", 4, 600, 70, dtype="fp32", bits=2, abits=abits)  # more columns than one block
    assert _error(p, _build("planes", p))[0] <= 1e-6


@NUMBA
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("scheme", "group"), [("lut", 0), ("lut", 32), ("ternary", 0), ("ternary", 64), ("ternary5", 0)]
)
def test_tables(scheme: str, group: int, shape: tuple[int, int, int]) -> None:
    if group > shape[2]:
        pytest.skip("group above k")
    for dtype in DTYPES:
        p = _params(scheme, *shape, dtype=dtype, group=group)
        error, allowed = _error(p, _build("lut", p))
        assert error <= allowed


@NUMBA
def test_tables_are_made_anew_in_each_call() -> None:
    p = _params("lut", 2, 40, 64, dtype="fp32")
    kernel = _build("lut", p)
    once = kernel.call().clone()
    kernel.inputs["activations"].mul_(2)
    assert torch.allclose(kernel.call(), 2 * once)


def test_compiled_dequantising() -> None:
    p = _params("w4a16", group=32)
    if get_implementation(OP, "dequantize_compiled").unmet(p, CPU) is not None:
        pytest.skip("no compiler here")
    kernel = _build("dequantize_compiled", p)
    error, allowed = _error(p, kernel)
    assert error <= allowed
    assert kernel.facts["compile_s"] > 0


@pytest.mark.parametrize("data", ["zeros", "normal", "integers", "sparse"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_fill(scheme: str, data: str) -> None:
    p = _params(scheme, dtype="fp32")
    kernel = _build("dequantize", p, data)
    error, allowed = _error(p, kernel)
    assert error <= allowed
    if data == "zeros":
        assert (error, kernel.facts["scheme_error"]) == (0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "nvfp4", "bits"])
def test_dense_operands_are_those_of_the_scheme(scheme: str, dtype: str) -> None:
    p = _params(scheme, dtype=dtype, group=64 if SCHEMES[scheme].grouped else 0)
    kernel = _build("dense", p)
    error, allowed = _error(p, kernel)
    assert error <= allowed
    assert kernel.eager is not None
    assert torch.equal(kernel.eager(), kernel.call())
    assert kernel.facts["scheme_error"] == _measured(p, "dequantize")["scheme_error"]


def _measured(p: dict[str, Value], impl: str) -> dict[str, Any]:
    kernel = _build(impl, p)
    error, _ = _error(p, kernel)
    assert kernel.facts["kernel_error"] == error
    return kernel.facts


@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torchao_has_it_right(dtype: str, group: int) -> None:
    pytest.importorskip("torchao")
    p = _params("w8a16", 5, 130, 256, dtype, group=group)
    ctx = Builder("cpu", CPU)
    for copy in (False, True):
        kernel = get_implementation(OP, "torchao").build(p, ctx)
        error, allowed = _error(p, kernel)
        assert error <= allowed
        assert ("w" in kernel.inputs) != copy
    assert 0.001 < _measured(p, "torchao")["scheme_error"] < 0.01


# --- The check.


def test_the_check_tells_the_scheme_from_the_kernel() -> None:
    coarse, fine = _params("w4a16", 16, 64, 256, "fp32", group=128), _params("w4a16", 16, 64, 256, "fp32", group=32)
    wide = _params("w8a16", 16, 64, 256, "fp32")
    errors = []
    for p in (coarse, fine, wide):
        kernel = _build("dequantize", p)
        error, _ = _error(p, kernel)
        assert error < 1e-5
        errors.append(kernel.facts["scheme_error"])
    assert errors[0] > errors[1] > errors[2] > 1e-4


def test_a_wrong_product_does_not_pass() -> None:
    p = _params("w4a16", 16, 64, 256, group=64)
    kernel = _build("dequantize", p)
    right = kernel.call().clone()
    for spoil in (
        lambda c: c.mul_(1.05),  # a scale of another group
        lambda c: c[3].copy_(c[4]),
        lambda c: c[:, :8].zero_(),
        lambda c: c[0, 0].fill_(math.nan),
    ):
        wrong = right.clone()
        spoil(wrong)
        error, allowed, _ = WORKLOAD.check(p, kernel, wrong)
        assert not error <= allowed


def test_wrong_codes_do_not_pass() -> None:
    """One nibble swapped in every byte: what a wrong unpacking order does."""
    p = _params("w4a16", 16, 64, 256, group=64)
    kernel = _build("dequantize", p)
    right = kernel.call().clone()
    data = kernel.inputs["weights"].data
    data.copy_((data >> 4) | (data << 4))
    error, allowed, _ = WORKLOAD.check(p, kernel, right)
    assert error > allowed


@pytest.mark.parametrize(("impl", "scheme", "group"), [
    ("torch", "w4a16", 32), ("torch", "w8a16", 0), ("torch", "w4a8", 0), ("dense", "w8a8", 0),
    pytest.param("planes", "ternary", 0, marks=NUMBA), pytest.param("lut", "lut", 32, marks=NUMBA),
])  # fmt: skip
def test_further_sets_give_the_same_product(impl: str, scheme: str, group: int) -> None:
    p = _params(scheme, group=group)
    ctx = Builder("cpu", CPU, seed=3)
    build = get_implementation(OP, impl).build
    first, second, third = (build(p, ctx) for _ in range(3))
    expected = first.call().clone()
    assert torch.equal(second.call(), expected)
    if impl != "dense":  # its copies are used in turn
        # Nothing that the second set reads is the first one's.
        x = first.inputs["activations"]
        first.inputs["weights"].data.zero_()
        (x if isinstance(x, torch.Tensor) else x.data).zero_()
        assert torch.equal(third.call(), expected)


def test_further_sets_of_buffers_are_copies() -> None:
    p = _params("w4a16", group=32)
    ctx = Builder("cpu", CPU, seed=3)
    build = get_implementation(OP, "dequantize").build
    first, second = build(p, ctx), build(p, ctx)
    assert torch.equal(first.call(), second.call())
    for part, other in zip(first.inputs["weights"].parts[:3], second.inputs["weights"].parts[:3], strict=True):
        assert part.data_ptr() != other.data_ptr()
    assert "w" in first.inputs
    assert "w" not in second.inputs  # the originals are kept once, for the check
    another = build({**p, "m": 5}, ctx)
    assert another.call().shape == (5, 70)


# --- Bad input.


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"scheme": "w4a16", "group": 256}, "at most k"),
        ({"scheme": "w4a16", "group": 48}, "one of"),
        ({"scheme": "nvfp4", "group": 32}, "group is 0"),
        ({"scheme": "w8a8", "bits": 3}, "bits"),
        ({"scheme": "bits", "bits": 0}, "bits"),
        ({"scheme": "bits", "abits": 0}, "abits"),
        ({"scheme": "lut", "abits": 2}, "abits"),
    ],
)
def test_impossible_parameters_are_refused(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(ParamError, match=rule):
        _params(**given)


GPU = {sm: Machine(kind="cuda", sm=sm, torch_version=(2, 13)) for sm in (75, 80, 89, 90, 100)}


@pytest.mark.parametrize(
    ("impl", "machine", "more", "code"),
    [
        ("torch", CPU, {"scheme": "w4a16"}, "only_groups"),
        ("torch", CPU, {"scheme": "w8a16", "group": 64}, "no_groups"),
        ("torch", CPU, {"scheme": "mxfp8"}, "no_kernel"),
        ("torch", CPU, {"scheme": "bits"}, "no_kernel"),
        ("torch", GPU[80], {"scheme": "fp8-tensor"}, "old_device"),
        ("torch", GPU[89], {"scheme": "fp8-row"}, "old_device"),
        ("torch", GPU[100], {"scheme": "fp8-block"}, "not_hopper"),
        ("torch", GPU[90], {"scheme": "mxfp8"}, "old_device"),
        ("torch", GPU[90], {"scheme": "nvfp4"}, "old_device"),
        ("torch", GPU[100], {"scheme": "mxfp4"}, "no_kernel"),
        ("torch", GPU[75], {"scheme": "w4a16", "group": 32}, "old_device"),
        ("torch", GPU[90], {"scheme": "w4a16", "group": 32, "dtype": "fp16"}, "only_bf16"),
        ("torch", Machine(kind="mps", torch_version=(2, 13)), {"scheme": "w8a8"}, "no_kernel"),
        ("torchao", CPU, {"scheme": "w8a16"}, "missing_library"),
        ("planes", GPU[90], {"scheme": "bits"}, "cpu_only"),
        ("planes", CPU, {"scheme": "w4a16"}, "scheme"),
        ("planes", CPU, {"scheme": "bits", "bits": 8, "abits": 8, "k": 40000}, "overflow"),
        ("lut", CPU, {"scheme": "bits"}, "scheme"),
        ("lut", CPU, {"scheme": "ternary5", "group": 32}, "bytes_across_groups"),
        ("triton", GPU[90], {"scheme": "ternary5"}, "no_kernel"),
        ("triton", GPU[90], {"scheme": "lut"}, "no_kernel"),
        ("triton", CPU, {"scheme": "w4a16"}, "no_accelerator"),
    ],
)
def test_what_cannot_run_says_why(impl: str, machine: Machine, more: dict[str, Any], code: str) -> None:
    pytest.importorskip("numba" if impl in ("planes", "lut") else "triton" if impl == "triton" else "torch")
    if impl == "torchao" and find_spec("torchao") is not None:
        pytest.skip("torchao is installed")
    reason = get_implementation(OP, impl).unmet(_params(**more), machine)
    assert reason is not None
    assert reason.code == code
    assert len(reason.message) > 10


@pytest.mark.parametrize(
    ("machine", "more"),
    [
        (GPU[90], {"scheme": "fp8-row"}), (GPU[90], {"scheme": "fp8-block"}), (GPU[89], {"scheme": "fp8-tensor"}),
        (GPU[100], {"scheme": "nvfp4"}), (GPU[100], {"scheme": "mxfp8"}), (GPU[80], {"scheme": "w4a16", "group": 64}),
        (GPU[80], {"scheme": "w8a8"}), (GPU[80], {"scheme": "w8a16"}),
    ],
)  # fmt: skip
def test_what_gpus_have(machine: Machine, more: dict[str, Any]) -> None:
    assert get_implementation(OP, "torch").unmet(_params(**more), machine) is None


def test_a_scout_is_smaller_and_possible() -> None:
    p = _params("w4a16", 4096, 8192, 8192, group=256)
    scout = WORKLOAD.scout(p)
    assert scout is not None
    assert (scout["m"], scout["n"], scout["k"]) == (128, 128, 256)
    assert WORKLOAD.params.parse(scout, op=OP) == scout
    assert WORKLOAD.scout(scout) is None


def test_shapes_of_models_have_no_layout() -> None:
    found = list(WORKLOAD.shapes("skinny", models="llama-3.2-1b", layers="qkv", m="1,16"))
    assert found == [{"m": 1, "n": 3072, "k": 2048}, {"m": 16, "n": 3072, "k": 2048}]
