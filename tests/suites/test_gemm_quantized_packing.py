"""Quantised operands: codes come back from packing, and every value becomes the nearest that its block can hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.quantization import SCHEMES
from wattline.suites.gemm.quant.native import swizzled
from wattline.suites.gemm.quant.pack import (
    E2M1,
    Operand,
    pack,
    quantize,
    quantize_activations,
    quantize_weights,
    unpack,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CODES = {
    "int8": (-127, 127), "int4": (-7, 7), "uint4": (0, 15), "ternary": (-1, 1), "ternary5": (-1, 1), "e2m1": (0, 15),
}  # fmt: skip


@settings(max_examples=60)
@given(element=st.sampled_from(sorted(CODES)), rows=st.integers(1, 5), cols=st.integers(1, 67), seed=st.integers(0, 99))
def test_codes_come_back_from_packing(element: str, rows: int, cols: int, seed: int) -> None:
    lowest, highest = CODES[element]
    kind = torch.int8 if lowest < 0 else torch.uint8
    drawn = torch.randint(lowest, highest + 1, (rows, cols), generator=torch.Generator().manual_seed(seed))
    codes = drawn.to(kind)
    packed = pack(codes, element)
    assert torch.equal(unpack(packed, element, cols), codes)
    assert torch.equal(pack(unpack(packed, element, cols), element), packed)


@given(bits=st.integers(1, 8), rows=st.integers(1, 4), cols=st.integers(1, 40), seed=st.integers(0, 99))
def test_bit_planes_come_back_from_packing(bits: int, rows: int, cols: int, seed: int) -> None:
    drawn = torch.randint(0, 2**bits, (rows, cols), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(drawn, "planes", bits)
    assert packed.shape == (bits, rows, -(-cols // 8))
    assert torch.equal(unpack(packed, "planes", cols), drawn)


def test_the_order_of_packed_codes() -> None:
    assert pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), "uint4").tolist() == [[0x21, 0x03]]
    assert pack(torch.tensor([[-7, 7]], dtype=torch.int8), "int4").tolist() == [[0xF1]]
    assert pack(torch.tensor([[-1, 0, 1, 1]], dtype=torch.int8), "ternary").tolist() == [[0b10_10_01_00]]
    assert pack(torch.tensor([[1, 0, 0, 0, -1]], dtype=torch.int8), "ternary5").tolist() == [[2 + 3 + 9 + 27]]
    assert pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), "planes", 2).tolist() == [[[0b101]], [[0b110]]]


def _levels(operand: Operand, row: int, col: int) -> torch.Tensor:
    """All values that the element may have at a place."""
    steps = {"e2m1": torch.tensor([*E2M1, *(-v for v in E2M1)])}.get(operand.element)
    if steps is None and operand.element == "e4m3":
        every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        steps = every[~every.isnan()]
    if steps is None:
        lowest, highest = CODES.get(operand.element, (0, 2**operand.bits - 1))
        lowest = 1 if operand.element == "offset" and operand.bits > 1 else lowest
        steps = torch.arange(lowest, highest + 1).float() - operand.middle
    at = (row // operand.block[0], col // operand.block[1])
    zero = 0.0 if operand.zero is None else operand.zero[at].float()
    return steps * operand.scales()[at] + zero


@settings(max_examples=80, deadline=None)
@given(
    scheme=st.sampled_from(sorted(SCHEMES)),
    group=st.sampled_from([0, 32, 64, 128]),
    dtype=st.sampled_from(sorted(DTYPES)),
    bits=st.integers(1, 8),
    cols=st.integers(128, 150),
    scale=st.sampled_from([1e-2, 1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_every_value_becomes_the_nearest_that_its_block_can_hold(  # noqa: PLR0917 - drawn by name
    scheme: str, group: int, dtype: str, bits: int, cols: int, scale: float, seed: int
) -> None:
    """So an error is at most half a step, but for values beyond the largest (in ternary, single bits and MX)."""
    generator = torch.Generator().manual_seed(seed)
    matrix = (torch.randn(3, cols, generator=generator) * scale).to(DTYPES[dtype])
    of = SCHEMES[scheme]
    for operand in (
        quantize_weights(matrix, of, group if of.grouped else 0, bits if of.planes else 0),
        quantize_activations(matrix, of, bits if of.act == "offset" else 0),
    ):
        if operand is None:
            continue
        assert operand.shape == (3, cols)
        found = operand.dequantize(torch.float32)
        for row, col in ((0, 0), (1, 17), (2, cols - 1), (0, cols - 2)):
            levels = _levels(operand, row, col)
            value = float(matrix[row, col])
            nearest = float((levels - value).abs().min())
            size = float(levels.abs().max()) + abs(value)
            assert abs(float(found[row, col]) - value) <= nearest + 1e-5 * size


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w4a8"])
def test_the_error_is_at_most_half_a_step(scheme: str, group: int) -> None:
    matrix = torch.rand(16, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    operand = quantize_weights(matrix, SCHEMES[scheme], group, 0)
    error = (operand.dequantize(torch.float32) - matrix).abs()
    step = operand.scales().repeat_interleave(operand.block[1], 1)
    assert bool((error <= step * 0.5001).all())
    assert float(step.max()) <= 2.0 / {"w8a16": 254, "w4a16": 15, "w4a8": 14}[scheme] * 1.001


def test_scales_of_the_microscaling_formats() -> None:
    # The largest of a block lies in [2^e, 2^(e+1)): its scale is 2^(e - 2) for FP4 and 2^(e - 8) for FP8.
    matrix = torch.tensor([[1.0] * 32 + [0.75] * 32 + [6.5] * 32])
    assert quantize(matrix, "e2m1", 0, (1, 32), "e8m0", torch.float32).scales().tolist() == [[0.25, 0.125, 1.0]]
    assert quantize(matrix, "e4m3", 0, (1, 32), "e8m0", torch.float32).scales().tolist() == [[2**-8, 2**-9, 2**-6]]
    # 6.5 is beyond 6 in FP4, and is held there.
    assert quantize(matrix, "e2m1", 0, (1, 32), "e8m0", torch.float32).dequantize(torch.float32)[0, -1] == 6.0


def test_ties_of_fp4_go_to_the_even_code() -> None:
    matrix = torch.tensor([[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0]])
    operand = quantize(matrix, "e2m1", 0, (1, 0), "fp32", torch.float32)
    assert operand.dequantize(torch.float32).tolist() == [[6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -4.0]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zeros(scheme: str) -> None:
    operand = quantize_weights(torch.zeros(4, 64), SCHEMES[scheme], 0, 2 if SCHEMES[scheme].planes else 0)
    assert not operand.dequantize(torch.float32).any()


def test_scales_in_the_order_of_cublas() -> None:
    # Of a tile of 128 x 4, row r and column c lie at (r % 32) * 16 + (r // 32) * 4 + c; tiles of a row follow.
    scales = torch.arange(200 * 6).remainder(251).to(torch.uint8).view(200, 6)
    found = swizzled(scales, 200, 6)
    assert found.shape == (2 * 2 * 512,)
    for row, col in ((0, 0), (1, 3), (33, 2), (127, 5), (199, 4), (130, 0)):
        tile = row // 128 * 2 + col // 4
        at = tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + col % 4
        assert found[at] == scales[row, col]
    assert int(found.long().sum()) == int(scales.long().sum())
