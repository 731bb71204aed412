"""Convolutions and chains: work by hand, every implementation against double precision, wrong questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError
from wattline.params import Value
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation, select
from wattline.suites.workload import Machine
from wattline.workmodels import work_of
from wattline.workmodels.conv import out_size

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
BASE: dict[str, dict[str, Any]] = {
    "conv.2d": {"n": 3, "c": 16, "h": 14, "w": 17, "k": 24, "dtype": "fp32"},
    "conv.long": {"batch": 2, "channels": 5, "length": 256, "dtype": "fp32"},
    "fusion.chain": {"rows": 33, "cols": 65, "length": 7, "dtype": "fp32"},
}


def params_of(op: str, **given: Value) -> dict[str, Value]:
    return get(op).workload.params.parse({**BASE[op], **given}, op=op)


def checked(op: str, impl: str, **given: Any) -> Any:
    p = params_of(op, **given)
    implementation = get_implementation(op, impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    kernel = implementation.build(p, Builder("cpu", CPU, seed=1))
    error, allowed, _ = get(op).workload.check(p, kernel, kernel.call())
    assert error <= allowed
    return kernel


def test_work_of_a_layer_by_hand() -> None:
    # 3 x 3 filters upon 8 x 8 images with a border: 64 positions; 16 filters of 4 channels.
    p = {"n": 2, "c": 4, "h": 8, "w": 8, "k": 16, "r": 3, "s": 3, "padding": 1, "dtype": "fp32"}
    work = work_of("conv.2d", p)
    assert work.total_flops == 2 * 2 * 16 * 64 * 4 * 9
    assert work.bytes_read["device"] == 4 * (2 * 4 * 64 + 16 * 4 * 9)
    assert work.bytes_written["device"] == 4 * 2 * 16 * 64
    assert work.details == {"activations": 2 * 16 * 64, "weights": 16 * 4 * 9}
    depthwise = work_of("conv.2d", {**p, "k": 4, "groups": 4})
    assert depthwise.total_flops == 2 * 2 * 4 * 64 * 9
    many = work_of("conv.2d", {**p, "h": np.array([8, 16])})
    assert list(many.flops["fp32"]) == [work.total_flops, 2 * work.total_flops]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2))
def test_positions_are_those_of_the_library(size: int, side: int, stride: int, padding: int, dilation: int) -> None:
    if dilation * (side - 1) + 1 > size + 2 * padding:
        return
    x, f = torch.zeros(1, 1, size, size), torch.zeros(1, 1, side, side)
    found = torch.nn.functional.conv2d(x, f, stride=stride, padding=padding, dilation=dilation)
    assert found.shape[2] == out_size(size, side, stride, padding, dilation)


def test_the_bound_of_a_convolution_knows_winograd() -> None:
    p = {"n": 1, "c": 2, "h": 8, "w": 8, "k": 3, "r": 3, "s": 3, "padding": 1, "dtype": "fp32"}
    work = work_of("conv.2d", p)
    assert work.needed["fp32"] == work.total_flops / 4  # 36 multiplications for 16 results of 9 taps each
    assert work_of("conv.2d", {**p, "r": 1, "s": 1}).needed == work_of("conv.2d", {**p, "r": 1, "s": 1}).flops
    for other in ({"stride": 2}, {"dilation": 2}):
        assert work_of("conv.2d", {**p, **other}).needed == work_of("conv.2d", {**p, **other}).flops


def test_work_of_a_long_convolution_by_hand() -> None:
    p = {"batch": 2, "channels": 3, "length": 512, "dtype": "fp32"}
    work = work_of("conv.long", p)
    fft = 6 * (2 * 2.5 * 1024 * 10 + 6 * 513)
    assert work.total_flops == work.details["fft_flops"] == fft
    assert work.details["direct_flops"] == 6 * 2 * 512 * 512
    assert work.bytes_read["device"] == 4 * (6 * 512 + 3 * 512)
    # Few taps: multiplying them out is the least.
    short = work_of("conv.long", {**p, "taps": 8})
    assert short.total_flops == 6 * 2 * 512 * 8
    many = work_of("conv.long", {**p, "length": np.array([512, 1024]), "taps": np.array([0, 8])})
    assert many.flops["fp32"][0] == fft
    assert many.flops["fp32"][1] == 6 * 2 * 1024 * 8


def test_work_of_a_chain_by_hand() -> None:
    p = {"rows": 10, "cols": 20, "length": 4, "dtype": "bf16"}
    work = work_of("fusion.chain", p)
    assert work.flops == {"fp32": 800}
    assert work.bytes_at() == 2 * 2 * 200
    assert work.details["unfused_bytes"] == 2 * 4 * 2 * 200
    summed = work_of("fusion.chain", {**p, "ending": "row_sum"})
    assert summed.flops == {"fp32": 1000}
    assert summed.bytes_at() == 2 * (200 + 10)
    assert summed.details["unfused_bytes"] == 2 * (4 * 2 * 200 + 200 + 10)
    one = work_of("fusion.chain", {**p, "length": 1})
    assert one.details["unfused_bytes"] == one.bytes_at()


@pytest.mark.parametrize("impl", ["torch", "im2col"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64", "fp16"])
@pytest.mark.parametrize(
    "given_",
    [
        {}, {"groups": 4}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 3, "memory": "contiguous"},
        {"r": 1, "s": 1}, {"groups": 16, "k": 16}, {"r": 2, "s": 5, "stride": 3},
    ],
    ids=str,
)  # fmt: skip
def test_images(impl: str, dtype: str, given_: dict[str, Any]) -> None:
    checked("conv.2d", impl, dtype=dtype, **given_)


@pytest.mark.parametrize("impl", list(get("conv.long").implementations))
@pytest.mark.parametrize(
    "given_", [{}, {"taps": 30}, {"kept": 0.3}, {"length": 210}, {"length": 97}, {"kept": 0.001}], ids=str
)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_long_sequences(impl: str, given_: dict[str, Any], dtype: str) -> None:
    checked("conv.long", impl, dtype=dtype, **given_)


def test_a_long_convolution_is_causal() -> None:
    kernel = checked("conv.long", "matrix")
    x, filters = kernel.inputs["x"], kernel.inputs["filters"]
    expected = sum(float(filters[1, t]) * float(x[0, 1, 9 - t]) for t in range(10))
    assert kernel.call()[0, 1, 9].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "given_",
    [{}, {"length": 1}, {"ending": "row_sum"}, {"mix": "activation"}, {"dtype": "bf16"}, {"length": 40}],
    ids=str,
)
def test_chains(given_: dict[str, Any]) -> None:
    checked("fusion.chain", "eager", **given_)


@pytest.mark.parametrize("op", ["conv.2d", "fusion.chain"])
def test_compiled(op: str) -> None:
    kernel = checked(op, "compile")
    assert kernel.facts["compile_s"] > 0


def test_graphs_are_for_accelerators() -> None:
    reason = get_implementation("fusion.chain", "graph").unmet(params_of("fusion.chain"), CPU)
    assert reason is not None
    assert reason.code == "no_cuda"
    assert get_implementation("fusion.chain", "graph").unmet(params_of("fusion.chain"), Machine(kind="xpu")) is not None


@pytest.mark.parametrize(
    ("op", "wrong", "says"),
    [
        ("conv.2d", {"groups": 5}, "groups divides c and k"), ("conv.2d", {"r": 15}, "fits the padded image"),
        ("conv.2d", {"dtype": "int8"}, "value of dtype"), ("conv.long", {"taps": 300}, "taps is 0"),
        ("conv.long", {"kept": 0.0}, "kept is above 0"), ("conv.long", {"dtype": "bf16"}, "value of dtype"),
        ("fusion.chain", {"length": 0}, "length"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused(op: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises((ParamError, UnknownNameError), match=says):
        params_of(op, **wrong)


def test_the_suite_of_products_holds_them() -> None:
    assert {"gemm.dense", "conv.2d", "conv.long", "fusion.chain"} <= set(select(["gemm"]))
    assert select(["conv"]) == ["conv.2d", "conv.long"]


@pytest.mark.parametrize(("op", "source"), [("conv.2d", "random"), ("conv.2d", "networks"), ("conv.long", "random")])
def test_shapes_are_valid_questions(op: str, source: str) -> None:
    workload = get(op).workload
    found = list(workload.shapes(source))
    assert len(found) >= 8
    for shape in found:
        workload.params.parse({**shape, "dtype": "fp32"}, op=op)


def test_a_wrong_image_is_found() -> None:
    kernel = checked("conv.2d", "torch")
    out = kernel.call()
    out[0, 0] = 0
    error, allowed, _ = get("conv.2d").workload.check(params_of("conv.2d"), kernel, out)
    assert error > allowed
