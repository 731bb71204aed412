"""Quantise, pack, unpack and dequantise: functions of tensors, for every element format and block of the schemes.

A matrix is quantised to codes and one scale (and maybe a zero point) per block; its value is
``(code - middle) * scale + zero``. Codes are then packed, each row from a byte of its own. What is computed with is
always what is stored: scales are rounded to their format first, and codes are the nearest for the rounded scale.

Sources: MX formats: OCP Microscaling Formats (MX) Specification v1.0, sections 5 and 6.3; NVFP4: two-level scales as in
NVIDIA's "Introducing NVFP4"; ternary by the mean magnitude: Ma et al., "The Era of 1-bit LLMs", arXiv:2402.17764; one
bit by the mean magnitude: Rastegari et al., "XNOR-Net", arXiv:1603.05279.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from wattline.quantization import ELEMENTS, Scheme, weight_block

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of FP4 E2M1 by the lower three bits of the code; the fourth is the sign."""
E4M3_MAX = 448.0
_LARGEST = {"int8": 127.0, "int4": 7.0, "e4m3": E4M3_MAX, "e2m1": 6.0}
_LARGEST_EXPONENT = {"e4m3": 8, "e2m1": 2}
_RADIX = {"ternary": (4, 4), "ternary5": (3, 5), "int4": (16, 2), "uint4": (16, 2), "e2m1": (16, 2)}
"""Packed codes: radix and codes per byte."""
_STORED_PLUS = {"int4": 8, "ternary": 1, "ternary5": 1}


@dataclass(frozen=True)
class Operand:
    """A quantised matrix as it is stored.

    Attributes:
        element: format of its codes, a name in :data:`wattline.quantization.ELEMENTS`.
        bits: bit planes, where there are any.
        shape: rows and columns of the matrix.
        block: rows and columns that share a scale, both written out.
        data: packed codes: uint8 [rows, bytes], of planes [bits, rows, bytes]; int8 or float8 where a code is a byte.
        scale: [row blocks, column blocks] in the scheme's format: a float, float8 E4M3, or uint8 that holds E8M0
            exponents.
        zero: likewise, or ``None``.
        tensor_scale: fp32 scalar on top of the scales, or ``None``.
    """

    element: str
    bits: int
    shape: tuple[int, int]
    block: tuple[int, int]
    data: Any
    scale: Any
    zero: Any = None
    tensor_scale: Any = None

    @property
    def middle(self) -> float:
        """The code that stands for the zero point."""
        return middle(self.element, self.bits)

    @property
    def parts(self) -> tuple[Any, Any, Any, Any]:
        """Its tensors: codes, scales, zero points and the scale on top; ``None`` for those that it has not."""
        return self.data, self.scale, self.zero, self.tensor_scale

    def holding(self, parts: Sequence[Any]) -> Operand:
        """A matrix of this form that holds other :attr:`parts`."""
        data, scale, zero, tensor_scale = parts
        return Operand(self.element, self.bits, self.shape, self.block, data, scale, zero, tensor_scale)

    @property
    def bytes(self) -> int:
        """Bytes of all its parts."""
        return sum(t.numel() * t.element_size() for t in self.parts if t is not None)

    def clone(self) -> Operand:
        """A copy in memory of its own."""
        return self.holding([None if t is None else t.clone() for t in self.parts])

    def codes(self) -> Any:
        """The codes unpacked, [rows, columns]; signed ones signed."""
        return unpack(self.data, self.element, self.shape[1])

    def scales(self) -> Any:
        """The scales as numbers in fp32, the scale of the tensor included."""
        import torch

        value = torch.exp2(self.scale.float() - 127) if self.scale.dtype == torch.uint8 else self.scale.float()
        return value if self.tensor_scale is None else value * self.tensor_scale

    def dequantize(self, dtype: Any) -> Any:
        """The matrix in a torch dtype, computed in it from the packed codes. fp32 holds every scheme's values up to
        single rounding."""
        values = code_values(self.codes(), self.element, dtype)
        if self.middle:
            values.sub_(self.middle)
        blocked, wide = _blocked(values, self.block)
        blocked.mul_(_over(self.scales().to(dtype)))
        if self.zero is not None:
            blocked.add_(_over(self.zero.to(dtype)))
        return wide


def middle(element: str, bits: int) -> float:
    """The code that stands for the zero point; between the two codes of a single signed bit."""
    if element == "uint4":
        return 8.0
    if element == "planes":
        return float(2 ** (bits - 1))
    if element == "offset":
        return 0.5 if bits == 1 else float(2 ** (bits - 1))
    return 0.0


def code_values(codes: Any, element: str, dtype: Any) -> Any:
    """Codes as numbers in a new tensor of ``dtype``, before middle, scale and zero."""
    import torch

    if element == "e2m1":
        table = torch.tensor([*E2M1, *(-v for v in E2M1)], dtype=dtype, device=codes.device)
        return table[codes.int()]
    return codes.to(dtype, copy=True)


def _over(blocks: Any) -> Any:
    """Values of blocks so that they broadcast over :func:`_blocked`."""
    return blocks[:, None, :, None]


def _blocked(matrix: Any, block: tuple[int, int], fill: float = 0.0) -> tuple[Any, Any]:
    """A matrix by blocks [row blocks, rows, column blocks, columns], the last ones filled up with ``fill``; and the
    view of that memory which has the shape of the matrix."""
    import torch

    rows, cols = matrix.shape
    tall, wide = -(-rows // block[0]) * block[0], -(-cols // block[1]) * block[1]
    if (tall, wide) != (rows, cols):
        matrix = torch.nn.functional.pad(matrix, (0, wide - cols, 0, tall - rows), value=fill)
    return matrix.view(tall // block[0], block[0], wide // block[1], block[1]), matrix[:rows, :cols]


def quantize(  # noqa: PLR0917 - what a scheme says of an operand, in its order
    matrix: Any, element: str, bits: int, block: tuple[int, int], scale: str, dtype: Any, *, tensor_scale: bool = False
) -> Operand:
    """Quantise and pack.

    Args:
        matrix: [rows, columns], any float format.
        element: a name in :data:`wattline.quantization.ELEMENTS`.
        bits: bit planes, where the element is stored as such.
        block: rows and columns that share a scale; 0 means all of them.
        scale: ``"fp32"``, ``"dtype"``, ``"e8m0"`` or ``"e4m3"``.
        dtype: torch dtype of scales and zero points in the format ``"dtype"``.
        tensor_scale: scales are relative to one of the whole matrix, chosen so that the largest block's fits E4M3.
    """
    import torch

    rows, cols = matrix.shape
    full = (block[0] or rows, block[1] or cols)
    x = matrix.float()
    blocks, _ = _blocked(x, full)
    whole = None
    zero = None
    kept = torch.float32 if scale == "fp32" else dtype
    if (element == "planes" and bits > 1) or element == "uint4":
        lowest = _blocked(x, full, float("inf"))[0].amin((1, 3))
        highest = _blocked(x, full, float("-inf"))[0].amax((1, 3))
        steps = 15 if element == "uint4" else 2**bits - 1
        stored = ((highest - lowest) / steps).to(kept)
        zero = (lowest + middle(element, bits) * stored.float()).to(kept)
    elif element in ("ternary", "ternary5") or bits == 1:
        counts = _blocked(torch.ones_like(x), full)[0].sum((1, 3))
        magnitude = blocks.abs().sum((1, 3)) / counts
        # One bit holds the sign: codes 0 and 1 are a step of twice the magnitude apart.
        stored = (magnitude * (2 if bits == 1 else 1)).to(kept)
        zero = magnitude.to(kept) if element == "planes" else None
    else:
        largest = blocks.abs().amax((1, 3))
        if scale == "e8m0":
            # The power of two of the largest element, so that it lands in the element's last binade.
            # By frexp, which is exact where a logarithm next to a power of two is not.
            exponent = torch.frexp(largest.clamp_min(2.0**-126)).exponent - 1 - _LARGEST_EXPONENT[element]
            stored = (exponent.clamp(-127, 127) + 127).to(torch.uint8)
        else:
            top = float(2 ** (bits - 1) - 1) if element == "offset" else _LARGEST[element]
            value = largest / top
            if tensor_scale:
                whole = (value.amax() / E4M3_MAX).clamp_min(2.0**-100)
                value = value / whole
            stored = value.to(torch.float8_e4m3fn) if scale == "e4m3" else value.to(kept)
    found = Operand(element, bits, (rows, cols), full, None, stored, zero, whole)
    return replace(found, data=pack(_nearest(blocks, found)[:rows, :cols], element, bits))


def _nearest(blocks: Any, operand: Operand) -> Any:
    """The codes nearest to the values, [padded rows, padded columns]."""
    import torch

    step = _over(operand.scales())
    steps = torch.where(step > 0, step, 1.0)
    zero = 0.0 if operand.zero is None else _over(operand.zero.float())
    u = torch.where(step > 0, (blocks - zero) / steps, 0.0).flatten(2).flatten(0, 1)
    element, bits = operand.element, operand.bits
    if element == "e4m3":
        return u.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    if element == "e2m1":
        edges = torch.tensor([(a + b) / 2 for a, b in pairwise(E2M1)], device=u.device)
        # Ties go to the even code, as rounding to nearest does.
        magnitude = u.abs()
        low, high = torch.bucketize(magnitude, edges), torch.bucketize(magnitude, edges, right=True)
        return (torch.where(low % 2 == 0, low, high) + 8 * torch.signbit(u)).to(torch.uint8)
    mid = operand.middle
    lowest, highest = {
        "int8": (-127, 127), "int4": (-7, 7), "ternary": (-1, 1), "ternary5": (-1, 1), "uint4": (0, 15),
    }.get(element, (int(element == "offset" and bits > 1), 2**bits - 1))  # fmt: skip
    codes = torch.ceil(u) if mid == 0.5 else torch.round(u) + mid  # one bit: the sign
    return codes.clamp(lowest, highest).to(torch.int8 if lowest < 0 else torch.uint8)


def pack(codes: Any, element: str, bits: int = 0) -> Any:
    """Codes [rows, columns] packed into bytes, the first in the lowest digits; rows that end within a byte are filled
    with digits 0."""
    import torch

    if element in ("int8", "e4m3"):
        return codes.contiguous()
    rows, cols = codes.shape
    if ELEMENTS[element].bits == 0:
        filled = torch.nn.functional.pad(codes, (0, -cols % 8)).view(rows, -1, 8)
        weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=codes.device)
        planes = [((filled >> b) & 1).mul_(weights).sum(-1, dtype=torch.uint8) for b in range(bits)]
        return torch.stack(planes)
    radix, per_byte = _RADIX[element]
    digits = (codes + _STORED_PLUS.get(element, 0)).to(torch.uint8)
    digits = torch.nn.functional.pad(digits, (0, -cols % per_byte)).view(rows, -1, per_byte)
    packed = digits[..., per_byte - 1].clone()
    for i in reversed(range(per_byte - 1)):
        packed.mul_(radix).add_(digits[..., i])
    return packed


def unpack(data: Any, element: str, cols: int) -> Any:
    """The codes [rows, ``cols``] that :func:`pack` packed."""
    import torch

    if element in ("int8", "e4m3"):
        return data
    if ELEMENTS[element].bits == 0:
        shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
        codes = None
        for b, plane in enumerate(data):
            part = ((plane[..., None] >> shifts) & 1) << b
            codes = part if codes is None else codes.bitwise_or_(part)
        assert codes is not None
        return codes.flatten(1)[:, :cols]
    radix, per_byte = _RADIX[element]
    if radix == 3:
        # Divisions are slow: all five digits of a byte come out of a table.
        table = [[byte // 3**i % 3 for i in range(per_byte)] for byte in range(3**per_byte)]
        digits = torch.tensor(table, dtype=torch.uint8, device=data.device)[data.int()]
    else:
        width = radix.bit_length() - 1
        digits = torch.stack([(data >> (i * width)) & (radix - 1) for i in range(per_byte)], -1)
    codes = digits.flatten(1)[:, :cols]
    plus = _STORED_PLUS.get(element, 0)
    return codes.to(torch.int8).sub_(plus) if plus else codes


def quantize_weights(w: Any, scheme: Scheme, group: int, bits: int) -> Operand:
    """The weights [n, k] as ``scheme`` stores them; scales in the format of ``w`` where the scheme says ``"dtype"``."""
    return quantize(
        w, scheme.weight, bits, weight_block(scheme, group), scheme.scale, w.dtype, tensor_scale=scheme.tensor_scale
    )


def quantize_activations(x: Any, scheme: Scheme, abits: int) -> Operand | None:
    """The activations [m, k] as ``scheme`` stores them; ``None`` where it leaves them as they are."""
    if not scheme.act:
        return None
    scale = "fp32" if scheme.scale == "dtype" else scheme.scale
    return quantize(x, scheme.act, abits, scheme.act_block, scale, x.dtype, tensor_scale=scheme.tensor_scale)
