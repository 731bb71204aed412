"""A quantised cache: packing, rounding and reading, and what quantising does to results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError
from wattline.params import Value
from wattline.suites.attention.quantise import Quantised, dequantise, exactly, pack, quantise, unpack, worst_rounding
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
OP = "attention.kvquant"


def params_of(**given_: Value) -> dict[str, Value]:
    shape = {"batch": 2, "kv_len": 96, "heads": 6, "kv_heads": 2, "head_dim": 48, "group": 16, "dtype": "fp32"}
    return get(OP).workload.params.parse({**shape, **given_}, op=OP)


def built(impl: str, data: str = "normal", **given_: Value) -> tuple[Kernel, dict[str, Value]]:
    p = params_of(**given_)
    implementation = get_implementation(OP, impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    return implementation.build(p, Builder("cpu", CPU, data=data, seed=4)), p


def checked(impl: str, data: str = "normal", **given_: Value) -> Kernel:
    kernel, p = built(impl, data, **given_)
    error, allowed, _ = get(OP).workload.check(p, kernel, kernel.call())
    assert error <= allowed
    return kernel


def test_bytes_by_hand() -> None:
    codes = torch.tensor([1, 2, 3, 0, 15, 9, 7, 4], dtype=torch.uint8)
    assert pack(codes, 4).tolist() == [1 | 15 << 4, 2 | 9 << 4, 3 | 7 << 4, 0 | 4 << 4]
    two = torch.tensor([1, 2, 3, 0, 2, 2, 0, 3], dtype=torch.uint8)
    assert pack(two, 2).tolist() == [1 | 3 << 2 | 2 << 4 | 0 << 6, 2 | 0 << 2 | 2 << 4 | 3 << 6]


@given(st.sampled_from([8, 4, 2]), st.integers(1, 9), st.integers(1, 30), st.integers(0, 10**6))
def test_what_is_packed_comes_back(bits: int, rows: int, width: int, seed: int) -> None:
    d = width * (8 // bits)
    codes = torch.randint(0, 2**bits, (rows, d), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.shape == (rows, width)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits), codes)


@settings(max_examples=40)
@given(
    st.sampled_from([8, 4, 2]), st.sampled_from([4, 8, 16]), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from(["float64", "float32", "bfloat16", "float16"]), st.floats(-100, 100), st.integers(0, 10**6),
)  # fmt: skip
def test_a_round_trip_is_within_half_a_step(  # noqa: PLR0917
    bits: int, group: int, groups: int, channels: int, dtype: str, offset: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, groups * group, channels * group)
    k, v = (torch.randn(shape, generator=generator).add(offset).to(getattr(torch, dtype)) for _ in range(2))
    cache = Quantised(*quantise(k, v, bits, group))
    assert worst_rounding(k, v, cache, bits, group) <= 1.0
    # A second trip changes nothing but the rounding of the numbers themselves: codes are where they belong.
    again = Quantised(*quantise(*dequantise(cache.tensors, bits, group), bits, group))
    if dtype == "float64":
        assert torch.equal(again.k, cache.k)
        assert torch.equal(again.v, cache.v)


def test_keys_share_scales_by_channel_and_values_by_token() -> None:
    k = torch.ones(1, 1, 8, 8)
    k[..., 3] = 100 * torch.arange(8)  # one large channel of keys
    v = torch.ones(1, 1, 8, 8)
    v[:, :, 5] = 100 * torch.arange(8)  # one large token of values
    cache = Quantised(*quantise(k, v, 4, 8))
    keys, values = exactly(cache, 4, 8, 0, 0)
    others = [c for c in range(8) if c != 3]
    assert torch.equal(keys[:, others], torch.ones(8, 7, dtype=torch.float64))
    assert torch.equal(values[[t for t in range(8) if t != 5]], torch.ones(7, 8, dtype=torch.float64))
    assert cache.k_scale.shape == (1, 1, 1, 8)
    assert cache.v_scale.shape == (1, 1, 8, 1)


def test_a_wrong_code_a_wrong_scale_and_nan_are_found() -> None:
    k, v = torch.randn(2, 2, 16, 16), torch.randn(2, 2, 16, 16)
    tensors = quantise(k, v, 4, 16)
    for which in range(6):
        wrong = [t.clone() for t in tensors]
        wrong[which][1, 1, 0, 0] += 1
        assert worst_rounding(k, v, Quantised(*wrong), 4, 16) > 1
    wrong = [t.clone() for t in tensors]
    wrong[3][0, 0, 0, 0] = torch.nan
    assert not worst_rounding(k, v, Quantised(*wrong), 4, 16) <= 1


@pytest.mark.parametrize("phase", ["read", "append"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(("impl", "dtype"), [
    ("torch", "fp32"), ("torch", "bf16"), ("torch", "fp16"), ("torch", "fp64"), ("native", "bf16"), ("numba", "fp32"),
])  # fmt: skip
def test_right(impl: str, dtype: str, bits: int, phase: str) -> None:
    kernel = checked(impl, dtype=dtype, bits=bits, phase=phase)
    assert kernel.facts["append_s" if phase == "read" else "read_s"] > 0
    if impl != "native":
        assert kernel.facts["cache_bytes"] == get(OP).workload.work(
            params_of(dtype=dtype, bits=bits, phase="append")
        ).bytes_written["device"]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["read", "append"])
def test_compiled_code_rounds_to_bfloat16(phase: str) -> None:
    for bits in (8, 2):
        checked("numba", dtype="bf16", bits=bits, phase=phase, head_dim=64, group=32)


def test_what_the_compiler_fuses_is_right() -> None:
    assert checked("compile", bits=4).facts["compile_s"] > 0
    checked("compile", bits=4, phase="append")


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_equal_numbers_and_zeros_are_no_trouble(impl: str) -> None:
    assert checked(impl, "zeros", phase="append")
    assert checked(impl, "integers", phase="append", bits=8)


def test_fewer_bits_err_more_and_none_not_at_all() -> None:
    errors = [checked("torch", bits=bits).facts["output_error"] for bits in (8, 4, 2)]
    assert errors == sorted(errors)
    assert 1e-4 < errors[0] < 0.02 < errors[1] < 0.2 < errors[2]
    assert checked("native").facts["output_error"] < 1e-6


def test_wrong_results_are_found() -> None:
    workload = get(OP).workload
    kernel, p = built("torch")
    out = kernel.call()
    for wrong in (out[[1, 0]], out[:, [1, 0, 2, 3, 4, 5]], out * 1.001, out[:, :, :8] * torch.nan):
        error, allowed, _ = workload.check(p, kernel, wrong)
        assert not error <= allowed
    kernel, p = built("torch", phase="append")
    tensors = list(kernel.call())
    tensors[0], tensors[1] = tensors[1], tensors[0]
    assert workload.check(p, kernel, tensors)[0] > 1
    tensors = list(kernel.call())
    tensors[2] = tensors[2][:, :, :1]
    error, allowed, how = workload.check(p, kernel, tensors)
    assert not error <= allowed
    assert how.startswith("shapes")


def test_reading_keeps_no_numbers_that_were_quantised() -> None:
    kernel, p = built("torch", kv_len=160)
    kept = [t for t in kernel.inputs.values() if isinstance(t, torch.Tensor)] + list(kernel.inputs["cache"].tensors)
    held = sum(t.numel() * t.element_size() for t in kept)
    out = kernel.call()
    assert get(OP).workload.footprint(p) == held + out.numel() * out.element_size()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"heads": 5}, "heads is a multiple of kv_heads"), ({"bits": 3}, "bits is 8, 4 or 2"),
        ({"bits": 16}, "bits must be from 1 to 8"), ({"group": 32}, "head_dim is a multiple of group"),
        ({"kv_len": 100}, "kv_len is a multiple of group"),
        ({"bits": 2, "group": 2}, "group is a multiple of 8 / bits"),
        ({"kv_len": 0}, "kv_len must be from 1"), ({"dtype": "int8"}, "dtype is one of"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_questions_are_refused_with_the_rule(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamError, match=says):
        params_of(**wrong)
    with pytest.raises(UnknownNameError, match="value of phase"):
        params_of(phase="write")


def test_shapes_and_scouts_are_valid_questions() -> None:
    workload = get(OP).workload
    for source, arguments in (("random", {"count": 20}), ("tokens", {"contexts": "1024,8192"})):
        found = list(workload.shapes(source, **arguments))
        assert found
        for shape in found:
            workload.params.parse({**shape, "dtype": "fp32"}, op=OP)
    scout = workload.scout(params_of(kv_len=4800, batch=64))
    assert scout is not None
    assert workload.params.parse(scout, op=OP) == scout
    assert workload.scout(scout) is None
