"""Row-wise operations: every implementation against double precision, and what breaks naive ones."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wattline.errors import ParamError, UnknownNameError
from wattline.params import Value
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation, select
from wattline.suites.workload import Machine
from wattline.workmodels import work_of
from wattline.workmodels.rowwise import ELEMENTWISE

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
ROWWISE = ("softmax.rows", "norm.layernorm", "norm.rmsnorm", "rope", *(f"elementwise.{name}" for name in ELEMENTWISE))


def params_of(op: str, **given: Value) -> dict[str, Value]:
    return get(op).workload.params.parse({"rows": 33, "cols": 130, "dtype": "fp32", **given}, op=op)


def implementations(*, compiled: bool) -> list[tuple[str, str]]:
    return [(op, impl) for op in ROWWISE for impl in get(op).implementations if (impl == "compile") == compiled]


def built(op: str, impl: str, data: str = "normal", **given: Value) -> tuple[Any, dict[str, Value]]:
    p = params_of(op, **given)
    implementation = get_implementation(op, impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    return implementation.build(p, Builder("cpu", CPU, data=data, seed=3)), p


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize(("op", "impl"), implementations(compiled=False))
def test_right_in_every_format(op: str, impl: str, dtype: str) -> None:
    kernel, p = built(op, impl, dtype=dtype)
    error, allowed, how = get(op).workload.check(p, kernel, kernel.call())
    assert how == "full"
    assert error <= allowed


@pytest.mark.parametrize(("op", "impl"), [c for c in implementations(compiled=True) if "elementwise" not in c[0]])
def test_compiled_ones_are_right(op: str, impl: str) -> None:
    kernel, p = built(op, impl)
    error, allowed, _ = get(op).workload.check(p, kernel, kernel.call())
    assert error <= allowed
    assert kernel.facts["compile_s"] > 0


def test_double_precision_is_counted_at_its_own_rate() -> None:
    sizes = {"rows": 3, "cols": 5}
    assert work_of("elementwise.add", {**sizes, "dtype": "fp64"}).flops == {"fp64": 15}
    assert work_of("elementwise.add", {**sizes, "dtype": "bf16"}).flops == {"fp32": 15}


def test_one_compiled_element_wise_operation_stands_for_all() -> None:
    kernel, p = built("elementwise.gelu", "compile")
    error, allowed, _ = get("elementwise.gelu").workload.check(p, kernel, kernel.call())
    assert error <= allowed


@pytest.mark.parametrize("impl", [i for i in get("softmax.rows").implementations if i != "compile"])
def test_softmax_neither_overflows_nor_hides_what_is_not_a_number(impl: str) -> None:
    kernel, _ = built("softmax.rows", impl, rows=6, cols=9000)
    x = kernel.inputs["x"]
    x[0] = 1e4
    x[1, 3:] = -math.inf
    x[2] = -math.inf
    x[3, 5] = math.nan
    x[4] *= 1e3
    x[5, :7] = -math.inf  # a row that begins with what is masked
    out = kernel.call()
    assert out[0].sum().item() == pytest.approx(1.0, rel=1e-4)
    assert out[0, 0].item() == pytest.approx(1 / 9000, rel=1e-4)
    assert out[1, 3:].abs().sum().item() == 0
    assert out[1, :3].sum().item() == pytest.approx(1.0, rel=1e-5)
    assert bool(torch.isnan(out[2]).all())
    assert bool(torch.isnan(out[3]).all())
    torch.testing.assert_close(out[4:], torch.softmax(x[4:], 1), rtol=1e-3, atol=1e-6)


def test_a_wrong_result_is_found() -> None:
    kernel, p = built("norm.rmsnorm", "torch")
    workload = get("norm.rmsnorm").workload
    out = kernel.call()
    out[7] *= 1.5
    assert workload.check(p, kernel, out)[0] > workload.check(p, kernel, out)[1]
    out[7, 0] = math.nan
    assert math.isnan(workload.check(p, kernel, out)[0])
    assert math.isnan(workload.check(p, kernel, out[:5])[0])


def test_large_results_are_sampled_first_and_last_row_among_them() -> None:
    kernel, p = built("elementwise.relu", "torch", rows=5000, cols=1024)
    workload = get("elementwise.relu").workload
    out = kernel.call()
    error, _, how = workload.check(p, kernel, out)
    assert (error, how) == (0.0, "256 rows")
    out[-1, -1] += 1.0
    assert workload.check(p, kernel, out)[0] > 0


def test_heads_of_a_token_share_its_angles() -> None:
    kernel, _ = built("rope", "torch", rows=6, cols=4, heads=3)
    assert kernel.inputs["cos"].shape == (2, 2)
    out, x = kernel.call(), kernel.inputs["x"]
    torch.testing.assert_close(out[:3], x[:3])  # position 0: no turn
    # Position 1: the first pair (elements 0 and 2) turns by 1 radian, the second by 10000**-0.5 = 0.01.
    expected = x[3, 0] * math.cos(1.0) - x[3, 2] * math.sin(1.0)
    assert out[3, 0].item() == pytest.approx(expected.item(), rel=1e-5)
    norm = torch.linalg.vector_norm
    torch.testing.assert_close(norm(out, dim=1), norm(x, dim=1))  # a rotation keeps lengths
    with pytest.raises(ParamError, match="multiple of heads"):
        params_of("rope", rows=7, heads=3)
    with pytest.raises(ParamError, match="cols is even"):
        params_of("rope", cols=5)


def test_the_attention_suite_holds_what_belongs_to_it() -> None:
    assert {"attention.prefill", *ROWWISE} <= set(select(["attention"]))
    assert select(["norm"]) == ["norm.layernorm", "norm.rmsnorm"]
    assert select(["rope"]) == ["rope"]
    assert "gemm.dense" not in select(["attention"])


def test_formats_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"value of dtype 'int8' of softmax\.rows"):
        params_of("softmax.rows", dtype="int8")
