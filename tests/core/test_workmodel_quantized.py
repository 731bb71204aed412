"""Work of products of quantised matrices: hand-worked bytes, and laws that hold for every scheme."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import UnknownNameError
from wattline.quantization import ELEMENTS, SCHEMES
from wattline.workmodels import work_of

OP = "gemm.quantized"


def _params(scheme: str, m: int = 1, n: int = 256, k: int = 512, **more: Any) -> dict[str, Any]:
    planes = {"bits": 4 if SCHEMES[scheme].planes else 0, "abits": 8 if scheme == "bits" else 0}
    return {"m": m, "n": n, "k": k, "dtype": "bf16", "scheme": scheme, "group": 0, **planes, **more}


# [m, n, k] = [1, 256, 512] in bf16: 512 bytes of C; activations are 1024 bytes where they stay bf16.
BY_HAND: dict[str, tuple[dict[str, Any], float, float, float, float, float, str]] = {
    # scheme: more parameters, weights, scales, zeros, activations, scales of activations, rate
    "w8a8": ({}, 256 * 512, 256 * 4, 0, 512, 4, "int8"),
    "w8a16": ({"group": 128}, 256 * 512, 256 * 4 * 2, 0, 1024, 0, "bf16"),
    "w4a16": ({"group": 64}, 256 * 256, 256 * 8 * 2, 256 * 8 * 2, 1024, 0, "bf16"),
    "w4a8": ({"group": 128}, 256 * 256, 256 * 4 * 4, 0, 512, 4, "int8"),
    "w4a4": ({}, 256 * 256, 256 * 4, 0, 256, 4, "int4"),
    "fp8-tensor": ({}, 256 * 512, 4, 0, 512, 4, "fp8"),
    "fp8-row": ({}, 256 * 512, 256 * 4, 0, 512, 4, "fp8"),
    "fp8-block": ({}, 256 * 512, 2 * 4 * 4, 0, 512, 4 * 4, "fp8"),
    "mxfp8": ({}, 256 * 512, 256 * 16, 0, 512, 16, "fp8"),
    "mxfp4": ({}, 256 * 256, 256 * 16, 0, 256, 16, "fp4"),
    "nvfp4": ({}, 256 * 256, 256 * 32 + 4, 0, 256, 32 + 4, "fp4"),
    "ternary": ({}, 256 * 128, 256 * 4, 0, 512, 4, "int8"),
    "ternary5": ({}, 256 * 103, 256 * 4, 0, 512, 4, "int8"),  # ceil(512 / 5) = 103
    "bits": ({"bits": 3, "abits": 5, "group": 32}, 3 * 256 * 64, 256 * 16 * 2, 256 * 16 * 2, 5 * 64, 4, "int8"),
    "lut": ({"bits": 2, "group": 128}, 2 * 256 * 64, 256 * 4 * 2, 256 * 4 * 2, 1024, 0, "bf16"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_by_hand(scheme: str) -> None:
    more, weights, scales, zeros, act, act_scales, rate = BY_HAND[scheme]
    work = work_of(OP, _params(scheme, **more))
    found = [work.details[name] for name in (
        "weight_bytes", "scale_bytes", "zero_bytes", "activation_bytes", "activation_scale_bytes"
    )]  # fmt: skip
    assert found == [weights, scales, zeros, act, act_scales]
    assert work.bytes_read == {"device": weights + scales + zeros + act + act_scales}
    assert work.bytes_written == {"device": 512}
    assert work.flops == {rate: 2 * 256 * 512}


def test_a_last_group_that_is_not_full_has_its_scale() -> None:
    work = work_of(OP, _params("w4a16", k=70, group=32))
    assert work.details["weight_bytes"] == 256 * 35
    assert work.details["scale_bytes"] == 256 * 3 * 2


def test_operations_on_bits_and_look_ups() -> None:
    assert work_of(OP, _params("bits", bits=2, abits=3)).details["plane_ops"] == 2 * 3 * 256 * 512
    assert work_of(OP, _params("lut", bits=2, k=500)).details["lookups"] == 2 * 256 * 63


def test_an_unknown_scheme() -> None:
    with pytest.raises(UnknownNameError, match="w8a8"):
        work_of(OP, _params("w8a8") | {"scheme": "w8a9"})


@given(scheme=st.sampled_from(sorted(SCHEMES)), size=st.tuples(*[st.integers(1, 600)] * 3))
def test_laws(scheme: str, size: tuple[int, int, int]) -> None:
    m, n, k = size
    p = _params(scheme, m, n, k)
    work = work_of(OP, p)
    dense = work_of("gemm.dense", {"m": m, "n": n, "k": k, "dtype": "bf16"})
    assert work.total_flops == dense.total_flops
    element = ELEMENTS[SCHEMES[scheme].weight]
    # Packed codes can take no less than their information: 1.58 bits for a ternary one.
    least = {"ternary": 1.58, "ternary5": 1.58}.get(element.name, element.bits or p["bits"])
    assert work.details["weight_bytes"] * 8 >= least * n * k
    # Each row begins on a byte, each plane of it: less than a byte of padding for each.
    assert work.details["weight_bytes"] * 8 < (max(least, element.bits) + 1e-9) * n * k + 8 * n * (p["bits"] or 1)
    for name in "mnk":
        assert work_of(OP, p | {name: p[name] + 1}).bytes_at() >= work.bytes_at()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_arrays_as_numbers(scheme: str) -> None:
    grouped = [0, 32] if SCHEMES[scheme].grouped else [0, 0]
    cases = [_params(scheme, m, n, k, group=g) for m, n, k, g in ((1, 64, 128, grouped[0]), (7, 33, 65, grouped[1]))]
    names = ("m", "n", "k", "group", "bits", "abits")
    arrays = work_of(OP, cases[0] | {name: np.array([c[name] for c in cases]) for name in names})
    for i, case in enumerate(cases):
        one = work_of(OP, case)
        assert np.broadcast_to(arrays.bytes_at(), 2)[i] == one.bytes_at()
        assert np.broadcast_to(arrays.total_flops, 2)[i] == one.total_flops
        for name, value in one.details.items():
            assert np.broadcast_to(arrays.details[name], 2)[i] == value
