"""gemm.monarch on the CPU: against an operator written out index by index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError
from wattline.suites.compiled import compiler
from wattline.suites.fills import Builder
from wattline.suites.gemm import monarch
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine, Value

CPU = Machine(kind="cpu", torch_version=(2, 13))
WORKLOAD = get("gemm.monarch").workload


def params(m: int = 5, size: int = 24, blocks: int = 4, dtype: str = "fp32") -> dict[str, Value]:
    return WORKLOAD.params.parse({"m": m, "size": size, "blocks": blocks, "dtype": dtype}, op="gemm.monarch")


def build(p: dict[str, Value], impl: str = "torch") -> Kernel:
    return get_implementation("gemm.monarch", impl).build(p, Builder("cpu", CPU))


def by_definition(right: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """P^T L P R from block-diagonal and permutation matrices, as the paper writes it."""
    blocks, side, _ = right.shape
    size = blocks * side
    permutation = torch.zeros(size, size, dtype=torch.float64)
    for a in range(blocks):
        for j in range(side):
            permutation[j * blocks + a, a * side + j] = 1
    r, l = (torch.block_diag(*t.double()) for t in (right, left))  # noqa: E741 - the paper's name
    return permutation.T @ l @ permutation @ r


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(2, 7))
def test_it_is_the_product_that_the_paper_defines(m: int, blocks: int, side: int) -> None:
    p = params(m, blocks * side, blocks, "fp64")
    kernel = build(p)
    x, right, left = (kernel.inputs[name] for name in ("x", "right", "left"))
    matrix = by_definition(right, left)
    torch.testing.assert_close(monarch.explicit(right, left), matrix)
    torch.testing.assert_close(kernel.call(), x @ matrix.T)
    torch.testing.assert_close(monarch.monarch(x, right, left), x @ matrix.T)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("impl", ["torch", "dense"])
def test_formats(impl: str, dtype: str) -> None:
    p = params(33, 96, 8, dtype)
    kernel = build(p, impl)
    kernel.output.fill_(float("nan"))
    result = kernel.call()
    error, allowed, _ = WORKLOAD.check(p, kernel, result)
    assert error <= allowed
    assert kernel.eager is not None
    assert WORKLOAD.check(p, kernel, kernel.eager())[0] <= allowed


def test_compiled() -> None:
    if compiler().unmet({}, CPU):
        pytest.skip("no C++ compiler")
    p = params()
    kernel = build(p, "compile")
    error, allowed, _ = WORKLOAD.check(p, kernel, kernel.call())
    assert error <= allowed
    assert kernel.facts["compile_s"] > 0


def test_the_check_lets_no_wrong_result_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    p = params(40, 60, 6)
    kernel = build(p)
    right = kernel.call().clone()
    monkeypatch.setattr(monarch, "CHUNK", 500)  # the explicit matrix in pieces
    assert WORKLOAD.check(p, kernel, right)[0] < 1e-6
    for place in ((0, 0), (39, 59), (17, 31)):
        wrong = right.clone()
        wrong[place] += 0.1
        assert WORKLOAD.check(p, kernel, wrong)[0] > WORKLOAD.check(p, kernel, wrong)[1]
    right[3, 3] = float("nan")
    assert not WORKLOAD.check(p, kernel, right)[0] <= 1.0


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"size": 25}, "multiple of blocks"),
        ({"blocks": 24}, "from 2 to size / 2"),
        ({"blocks": 1}, "from 2"),
        ({"size": 3, "blocks": 3}, "from 4"),
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(ParamError, match=rule):
        params(**wrong)


def test_formats_without_a_kernel_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="int8"):
        params(dtype="int8")


@pytest.mark.parametrize(("size", "blocks"), [(4096, 64), (4096, 2), (4096, 2048), (192, 3)])
def test_scout_is_a_smaller_case_that_obeys_the_rules(size: int, blocks: int) -> None:
    scout = WORKLOAD.scout(params(4096, size, blocks))
    assert scout is not None
    assert WORKLOAD.params.parse(scout) == scout
    assert int(scout["m"]) == 128
    assert int(scout["size"]) <= 128
    assert WORKLOAD.scout(scout) is None


def test_random_shapes() -> None:
    found = list(monarch.random(30, seed=1))
    for s in found:
        p = params(**s)
        assert int(p["size"]) <= 8192
        assert WORKLOAD.work(p).total_flops <= 4e9
    assert np.ptp(np.log([s["blocks"] for s in found])) > 2.5  # of 3.5 in all
    with pytest.raises(ParamError, match="of 3 random shapes"):
        list(monarch.random(3, lo=100, max_size=50))
    with pytest.raises(ParamError, match="2 <= lo"):
        list(monarch.random(3, lo=1))
