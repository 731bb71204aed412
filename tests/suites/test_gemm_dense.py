"""gemm.dense on the CPU: builds, runs, and a check that lets no wrong result pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.formats import BENCH_FORMATS
from wattline.suites.fills import Builder
from wattline.suites.gemm import checks
from wattline.suites.gemm.checks import compare, tolerance
from wattline.suites.precision import set_precision
from wattline.suites.registry import get, get_implementation
from wattline.suites.sampled import spread
from wattline.suites.workload import Kernel, Machine, Value

CPU = Machine(kind="cpu", torch_version=(2, 13))
WORKLOAD = get("gemm.dense").workload
CPU_FORMATS = [f for f in BENCH_FORMATS if f != "tf32"]


def _params(m: int = 48, n: int = 40, k: int = 56, dtype: str = "fp32", **more: object) -> dict[str, Value]:
    return WORKLOAD.params.parse({"m": m, "n": n, "k": k, "dtype": dtype, **more}, op="gemm.dense")


def _build(p: dict[str, Value], data: str = "uniform", seed: int = 0) -> Kernel:
    return WORKLOAD.build(p, Builder("cpu", CPU, data=data, seed=seed))


def _poison(out: torch.Tensor) -> None:
    out.fill_(float("nan") if out.dtype.is_floating_point else torch.iinfo(out.dtype).min)


def _passes(p: dict[str, Value], kernel: Kernel, result: torch.Tensor) -> bool:
    error, allowed, _ = WORKLOAD.check(p, kernel, result)
    return error <= allowed


@pytest.mark.parametrize("dtype", CPU_FORMATS)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_every_format_and_layout_is_right(dtype: str, layout: str) -> None:
    p = _params(dtype=dtype, layout=layout)
    kernel = _build(p)
    assert kernel.inputs["a"].shape == (48, 56)
    assert kernel.inputs["b"].shape == (56, 40)
    assert kernel.inputs["a"].is_contiguous() == (layout[0] == "n")
    assert kernel.inputs["b"].is_contiguous() == (layout[1] == "n")
    _poison(kernel.output)
    result = kernel.call()
    assert result.data_ptr() == kernel.output.data_ptr()
    assert _passes(p, kernel, result)
    assert kernel.eager is not None
    eager = kernel.eager()
    assert eager.data_ptr() != kernel.output.data_ptr()
    assert eager.dtype == result.dtype
    assert _passes(p, kernel, eager)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
def test_batches(dtype: str) -> None:
    p = _params(dtype=dtype, batch=3, layout="nt")
    kernel = _build(p)
    assert kernel.output.shape == (3, 48, 40)
    assert _passes(p, kernel, kernel.call())


@pytest.mark.parametrize("dtype", CPU_FORMATS)
@pytest.mark.parametrize("data", ["normal", "zeros", "integers", "sparse"])
def test_every_fill_is_right(dtype: str, data: str) -> None:
    p = _params(dtype=dtype)
    kernel = _build(p, data)
    error, allowed, _ = WORKLOAD.check(p, kernel, kernel.call())
    assert error <= allowed
    # zeros are exact by nature, and sums of 56 products of at most 16 are whole numbers below 2**10; coarser formats
    # than fp16 must still round some of those.
    if data == "zeros" or (data == "integers" and dtype in ("fp64", "fp32", "fp16", "int8")):
        assert error == 0


@settings(max_examples=60)
@example(m=1, n=3, k=203, dtype="bf16", layout="nt", full=False)  # its three elements nearly cancel in a signed sum
@given(
    m=st.integers(1, 70),
    n=st.integers(1, 300),
    k=st.integers(1, 300),
    dtype=st.sampled_from(CPU_FORMATS),
    layout=st.sampled_from(["nn", "nt", "tn", "tt"]),
    full=st.booleans(),
)
def test_right_results_of_any_shape_pass(*, m: int, n: int, k: int, dtype: str, layout: str, full: bool) -> None:
    p = _params(m, n, k, dtype, layout=layout)
    kernel = _build(p)
    with pytest.MonkeyPatch.context() as patch:
        if not full:
            patch.setattr(checks, "FULL_FLOPS", 0)
            patch.setattr(checks, "CHUNK", 500)
        error, allowed, method = WORKLOAD.check(p, kernel, kernel.call())
    assert error <= allowed
    assert ("projection" in method) == (not full or dtype == "fp64")


@pytest.mark.parametrize("dtype", CPU_FORMATS)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 8), (3, 1, 8), (3, 5, 1), (1, 1, 17), (17, 1, 1), (1, 17, 1)])
def test_vectors_and_scalars_in_every_layout(shape: tuple[int, int, int], layout: str, dtype: str) -> None:
    # A transposed view of a vector made torch's int8 product return unwritten memory.
    p = _params(*shape, dtype, layout=layout)
    kernel = _build(p)
    _poison(kernel.output)
    assert _passes(p, kernel, kernel.call())
    assert kernel.eager is not None
    assert _passes(p, kernel, kernel.eager())


def _wrong_element(c: torch.Tensor) -> None:
    c[301, 157] = 0 if float(c[301, 157]) else 1


def _wrong_row(c: torch.Tensor) -> None:
    c[77] = c[78]


def _swapped_blocks(c: torch.Tensor) -> None:
    block = c[0:64, 0:64].clone()
    c[0:64, 0:64] = c[64:128, 128:192]
    c[64:128, 128:192] = block


def _swapped_columns(c: torch.Tensor) -> None:
    c[:, [5, 260]] = c[:, [260, 5]]


def _unwritten_tile(c: torch.Tensor) -> None:
    _poison(c[320:384, 128:256])


def _not_a_number(c: torch.Tensor) -> None:
    c[383, 311] = float("nan") if c.dtype.is_floating_point else 12345


def _infinite(c: torch.Tensor) -> None:
    c[0, 0] = float("inf") if c.dtype.is_floating_point else 12345


def _stale(c: torch.Tensor) -> None:
    c.mul_(2)


def _transposed_tile(c: torch.Tensor) -> None:
    c[0:32, 0:32] = c[0:32, 0:32].t().clone()


DAMAGES = [
    _wrong_element, _wrong_row, _swapped_blocks, _swapped_columns, _unwritten_tile, _not_a_number, _infinite, _stale,
    _transposed_tile,
]  # fmt: skip


@pytest.mark.parametrize("full", [True, False], ids=["full", "sampled"])
@pytest.mark.parametrize("dtype", CPU_FORMATS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_results_are_caught(
    damage: Callable[[torch.Tensor], None], dtype: str, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = _params(384, 312, 128, dtype)
    kernel = _build(p)
    if not full:
        monkeypatch.setattr(checks, "FULL_FLOPS", 0)
    result = kernel.call()
    assert _passes(p, kernel, result)
    if damage is _wrong_element:
        # An element as large as is usual, so that its loss is an error and not rounding.
        typical = float(result.double().square().mean().sqrt())
        result[301, 157] = typical if result.dtype.is_floating_point else round(typical)
        kernel.inputs["a"][301].copy_(kernel.inputs["a"][300])  # any other input: the reference changes
        result[301] = result[300]
        assert _passes(p, kernel, result)
    damage(result)
    error, allowed, _ = WORKLOAD.check(p, kernel, result)
    assert not error <= allowed
    if damage in (_not_a_number, _infinite) and result.dtype.is_floating_point:
        assert math.isnan(error)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_wrong_element_of_a_large_product_is_caught_off_the_sampled_rows(dtype: str) -> None:
    p = _params(300, 2500, 300, dtype)
    kernel = _build(p)
    result = kernel.call()
    error, allowed, method = WORKLOAD.check(p, kernel, result)
    assert error <= allowed
    assert "projection" in method
    assert 157 not in spread(300, checks.ROWS)
    column = int(result[157].double().abs().argmax())
    result[157, column] = 0
    assert not _passes(p, kernel, result)


def test_one_wrong_element_in_a_batch_is_caught() -> None:
    p = _params(64, 64, 64, "bf16", batch=700)
    kernel = _build(p)
    result = kernel.call()
    error, allowed, method = WORKLOAD.check(p, kernel, result)
    assert error <= allowed
    assert "4 " in method
    result[123, 45, int(result[123, 45].double().abs().argmax())] = 0
    assert not _passes(p, kernel, result)


def test_a_result_of_the_wrong_shape_never_passes() -> None:
    a, b = torch.ones(4, 3), torch.ones(3, 5)
    error, method = compare(a, b, torch.ones(5, 4))
    assert math.isnan(error)
    assert "(1, 5, 4)" in method


def test_error_by_hand() -> None:
    # A 1 x 1 product of 2 and 3 that says 6.6: off by a tenth in norm; the element by 0.6 / (6 + 6), over 4.
    error, method = compare(torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[6.6]]))
    assert error == pytest.approx(0.1, rel=1e-6)
    assert method == "full"
    zero = torch.zeros(2, 2)
    assert compare(zero, zero, zero)[0] == 0
    assert compare(zero, zero, zero + 1)[0] == math.inf


def test_tolerances_grow_with_the_accumulator() -> None:
    assert tolerance("int8", "int32", 4096) == 0
    assert tolerance("fp32", "fp32", 4096) == pytest.approx(1e-5 + 2 * 2**-24 * 64)
    assert tolerance("fp64", "fp64", 4096) < 2e-13
    assert tolerance("tf32", "tf32", 64) >= 2e-3
    assert tolerance("fp16", "fp16", 4096, acc="fp16") > 10 * tolerance("fp16", "fp16", 4096)
    assert tolerance("bf16", "fp32", 4096, accelerator=True) > tolerance("bf16", "fp32", 4096)
    assert tolerance("fp8_e4m3", "fp32", 4096, accelerator=True) > tolerance("bf16", "fp32", 4096, accelerator=True)


@pytest.mark.parametrize("k", [16, 1024, 16384])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
def test_correct_products_stay_well_below_the_tolerance(dtype: str, k: int) -> None:
    p = _params(32, 32, k, dtype)
    kernel = _build(p)
    error, allowed, _ = WORKLOAD.check(p, kernel, kernel.call())
    assert error < 0.5 * allowed


def _reason(p: dict[str, Value], machine: Machine) -> str | None:
    reason = get_implementation("gemm.dense", "torch").unmet(p, machine)
    return reason.code if reason else None


def _gpu(sm: int = 90, **more: object) -> Machine:
    return Machine(kind="cuda", sm=sm, torch_version=(2, 13), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("p", "machine", "code"),
    [
        (_params(dtype="tf32"), CPU, "no_cuda"),
        (_params(dtype="tf32"), _gpu(75), "old_device"),
        (_params(dtype="tf32"), _gpu(80), None),
        (_params(dtype="fp16", acc="fp16"), CPU, "no_cuda"),
        (_params(dtype="fp16", acc="fp16"), Machine(kind="cuda", sm=90, torch_version=(2, 6)), "old_torch"),
        (_params(dtype="fp16", acc="fp16"), _gpu(), None),
        (_params(dtype="bf16", acc="fp32"), CPU, "no_acc_choice"),
        (_params(dtype="bf16", acc="fp32"), _gpu(hip=True), None),
        (_params(dtype="bf16", out_dtype="fp32"), CPU, "no_mixed_output"),
        (_params(dtype="bf16", out_dtype="fp32"), _gpu(), None),
        (_params(dtype="bf16", out_dtype="fp32"), Machine(kind="cuda", sm=90, torch_version=(2, 7)), "old_torch"),
        (_params(dtype="fp8_e4m3", batch=2), CPU, "no_batch"),
        (_params(dtype="int8", batch=2), _gpu(), "no_batch"),
        (_params(48, 48, 64, "fp8_e4m3", layout="nt"), _gpu(), None),
        (_params(48, 48, 64, "fp8_e4m3", layout="nt"), _gpu(80), "old_device"),
        (_params(48, 48, 64, "fp8_e4m3", layout="nn"), _gpu(), "fp8_layout"),
        (_params(48, 40, 64, "fp8_e4m3", layout="nt"), _gpu(), "fp8_alignment"),
        (_params(48, 48, 64, "fp8_e5m2", layout="nt"), _gpu(), "e5m2_pair"),
        (_params(48, 48, 64, "fp8_e4m3"), Machine(kind="xpu"), "no_kernel"),
        (_params(17, 8, 8, "int8"), _gpu(), None),
        (_params(16, 8, 8, "int8"), _gpu(), "int8_rows"),
        (_params(17, 8, 9, "int8"), _gpu(), "int8_alignment"),
        (_params(17, 8, 8, "int8"), _gpu(70), "old_device"),
        (_params(17, 8, 8, "int8", layout="nt"), _gpu(), None),
        (_params(17, 8, 8, "int8", layout="tn"), _gpu(), "int8_layout"),
        (_params(17, 8, 8, "int8", layout="tt"), Machine(kind="cuda", hip=True, torch_version=(2, 13)), None),
        (_params(dtype="int8"), Machine(kind="xpu"), "no_kernel"),
        *((_params(dtype=f), CPU, None) for f in CPU_FORMATS),
    ],
)
def test_what_cannot_run_has_a_reason(p: dict[str, Value], machine: Machine, code: str | None) -> None:
    assert _reason(p, machine) == code


def test_the_reasons_given_on_a_cpu_are_true() -> None:
    """torch really refuses what the requirements refuse; should it learn to, they must go."""
    a = torch.ones(8, 8, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError):
        torch.mm(a, a, torch.float32)
    with pytest.raises(RuntimeError):
        torch._int_mm(torch.ones(2, 8, 8, dtype=torch.int8), torch.ones(2, 8, 8, dtype=torch.int8))
    one, batch = torch.ones(()), torch.ones(2, 16, 16).to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError):
        torch._scaled_mm(batch, batch, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "fp32", "out_dtype": "fp16"},
        {"dtype": "int8", "out_dtype": "fp32"},
        {"dtype": "fp32", "acc": "fp16"},
        {"dtype": "bf16", "acc": "fp16"},
        {"dtype": "fp16", "acc": "fp16", "out_dtype": "fp32"},
        {"dtype": "bf16", "acc": "fast"},
    ],
)
def test_formats_that_do_not_go_together_break_a_rule(wrong: dict[str, str]) -> None:
    with pytest.raises(ParamError, match="rule"):
        _params(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("out", ["fp32", "fp16"])
def test_wider_output_of_fp8(out: str) -> None:
    p = _params(dtype="fp8_e4m3", out_dtype=out)
    kernel = _build(p)
    assert kernel.output.dtype == {"fp32": torch.float32, "fp16": torch.float16}[out]
    assert _passes(p, kernel, kernel.call())


def test_precision_switches_do_not_leak() -> None:
    matmul = torch.backends.cuda.matmul
    set_precision("tf32")
    assert matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    set_precision("fp16", "fp16")
    assert not matmul.allow_tf32
    assert matmul.allow_fp16_accumulation
    set_precision("bf16", "fp32")
    assert not matmul.allow_bf16_reduced_precision_reduction
    assert not matmul.allow_fp16_accumulation
    set_precision("fp32")
    assert not matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert matmul.allow_bf16_reduced_precision_reduction
    assert torch.get_float32_matmul_precision() == "highest"


def test_fp32_stays_fp32_after_a_user_asked_for_less() -> None:
    p = _params(128, 128, 128)
    try:
        torch.set_float32_matmul_precision("medium")
        kernel = _build(p)
        error, _, _ = WORKLOAD.check(p, kernel, kernel.call())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert error < 1e-6


def test_scout_is_a_small_case_of_the_same_kind() -> None:
    scout = WORKLOAD.scout(_params(4096, 64, 200, "bf16", layout="nt"))
    assert scout == _params(128, 64, 128, "bf16", layout="nt")
    assert WORKLOAD.scout(_params(batch=4)) == _params()
    assert WORKLOAD.scout(_params(128, 128, 128)) is None


def test_footprint_is_the_bytes_of_the_buffers() -> None:
    p = _params(64, 32, 16, "int8")
    kernel = _build(p)
    tensors = [*kernel.inputs.values(), kernel.output]
    assert WORKLOAD.footprint(p) == sum(t.numel() * t.element_size() for t in tensors)
