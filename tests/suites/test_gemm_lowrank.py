"""Low-rank adapters: work by hand, every implementation against double precision, wrong questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wattline.errors import ParamError, UnknownNameError
from wattline.params import Value
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine
from wattline.workmodels import work_of

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
OP = "gemm.lowrank"


def params_of(**given: Value) -> dict[str, Value]:
    return get(OP).workload.params.parse({"m": 33, "n": 48, "k": 64, "rank": 8, "dtype": "fp32", **given}, op=OP)


def test_work_by_hand() -> None:
    work = work_of(OP, {"m": 10, "n": 20, "k": 30, "rank": 2, "adapters": 3, "dtype": "bf16"})
    assert work.total_flops == 2 * 10 * 20 * 30 + 2 * 10 * 2 * 50
    assert work.bytes_read["device"] == 2 * (10 * 30 + 20 * 30 + 3 * 2 * 50)
    assert work.bytes_written["device"] == 2 * 10 * 20
    assert work.details == {"base_flops": 12000.0, "adapter_flops": 2000.0}
    # One adapter may be merged beforehand: nothing but the base is compulsory.
    one = work_of(OP, {"m": 10, "n": 20, "k": 30, "rank": 2, "dtype": "bf16"})
    assert one.total_flops == 12000
    assert one.bytes_read["device"] == 2 * (10 * 30 + 20 * 30)
    many = work_of(OP, {"m": 10, "n": 20, "k": 30, "rank": 2, "adapters": np.array([1, 3]), "dtype": "bf16"})
    assert list(many.flops["bf16"]) == [12000, 14000]


@pytest.mark.parametrize("impl", list(get(OP).implementations))
@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("given_", [{}, {"adapters": 5}, {"m": 1}, {"m": 7, "adapters": 7}], ids=str)
def test_right(impl: str, dtype: str, given_: dict[str, Any]) -> None:
    p = params_of(dtype=dtype, **given_)
    implementation = get_implementation(OP, impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    kernel = implementation.build(p, Builder("cpu", CPU, seed=1))
    error, allowed, how = get(OP).workload.check(p, kernel, kernel.call())
    assert how == "full"
    assert error <= allowed


def test_rows_share_the_adapters_evenly_and_a_swapped_one_is_found() -> None:
    p = params_of(adapters=4, m=32)
    kernel = get_implementation(OP, "gathered").build(p, Builder("cpu", CPU, seed=1))
    assert torch.bincount(kernel.inputs["ids"]).tolist() == [8, 8, 8, 8]
    out = kernel.call()
    out[[0, 1]] = out[[1, 0]]
    error, allowed, _ = get(OP).workload.check(p, kernel, out)
    assert error > allowed


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rank": 49}, "rank is at most n and k"), ({"adapters": 34}, "adapters is at most m"),
        ({"dtype": "int8"}, "value of dtype"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused_with_the_rule(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises((ParamError, UnknownNameError), match=says):
        params_of(**wrong)


def test_merging_several_is_unsupported_because() -> None:
    reason = get_implementation(OP, "merged").unmet(params_of(adapters=2), CPU)
    assert reason is not None
    assert "one base cannot hold several adapters" in reason.message


def test_shapes_are_valid_questions() -> None:
    workload = get(OP).workload
    for source, arguments in (("random", {"count": 30}), ("layers", {"models": "gpt-2", "m": "1,64", "adapters": 4})):
        found = list(workload.shapes(source, **arguments))
        assert found
        for shape in found:
            workload.params.parse({**shape, "dtype": "fp32"}, op=OP)
