"""Quantisation schemes: how the two operands of a product are stored, and how many bytes that takes.

A scheme names an element format for weights and activations and the blocks that share a scale. The functions here are
plain arithmetic (numbers or numpy arrays); the tensors are made in :mod:`wattline.suites.gemm.quant`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wattline.errors import unknown_name
from wattline.formats import number_format

SCALE_BYTES = {"fp32": 4, "e8m0": 1, "e4m3": 1}
"""Bytes of a scale by its format; ``"dtype"`` is the compute format of the case."""


@dataclass(frozen=True)
class Element:
    """How one number is stored, its scale apart.

    Attributes:
        name: its name.
        bits: significant bits of a code; 0: as many bit planes as the case's ``bits`` (or ``abits``) say.
        per_byte: codes in one byte. Bit planes: codes of one plane.
        doc: one line.
    """

    name: str
    bits: int
    per_byte: int
    doc: str


ELEMENTS: dict[str, Element] = {
    e.name: e
    for e in (
        Element("int8", 8, 1, "signed integer, -127 to 127"),
        Element("int4", 4, 2, "signed integer, -7 to 7, stored plus 8"),
        Element("uint4", 4, 2, "0 to 15 with a zero point"),
        Element("ternary", 2, 4, "-1, 0 or 1 in two bits, stored plus 1"),
        Element("ternary5", 2, 5, "-1, 0 or 1, five to a byte in base 3 (3^5 = 243)"),
        Element("e4m3", 8, 1, "OCP FP8 E4M3"),
        Element("e2m1", 4, 2, "FP4 E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives"),
        Element("planes", 0, 8, "whole numbers with a zero point, one bit plane after the other"),
        Element("offset", 0, 8, "signed integers stored plus their middle, one bit plane after the other"),
    )
}


@dataclass(frozen=True)
class Scheme:
    """How both operands of a product are stored.

    Attributes:
        name: its name.
        weight: element format of the weights [n, k].
        act: element format of the activations [m, k]; empty: unquantised, in the compute format.
        weight_block: rows and columns that share a scale; 0 means all of them.
        act_block: likewise for the activations.
        grouped: the case's ``group`` says how many columns share a scale of the weights.
        scale: format of the scales: one of :data:`SCALE_BYTES`, or ``"dtype"``.
        zeros: each block of weights has a zero point, in the format of its scale.
        tensor_scale: one more fp32 scale for each whole operand.
        rate: format whose arithmetic rate bounds the product; empty: the compute format.
        doc: one line.
    """

    name: str
    weight: str
    act: str
    weight_block: tuple[int, int] = (1, 0)
    act_block: tuple[int, int] = (1, 0)
    grouped: bool = False
    scale: str = "fp32"
    zeros: bool = False
    tensor_scale: bool = False
    rate: str = ""
    doc: str = ""

    @property
    def planes(self) -> bool:
        """The weights are bit planes: the case says how many."""
        return self.weight == "planes"


SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("w8a8", "int8", "int8", rate="int8", doc="8-bit integers, a scale per channel and per token"),
        Scheme("w8a16", "int8", "", grouped=True, scale="dtype", doc="8-bit weights only"),
        Scheme("w4a16", "uint4", "", grouped=True, scale="dtype", zeros=True,
               doc="4-bit weights with zero points only (as after GPTQ or AWQ)"),
        Scheme("w4a8", "int4", "int8", grouped=True, rate="int8", doc="4-bit weights, 8-bit activations"),
        Scheme("w4a4", "int4", "int4", grouped=True, rate="int4", doc="4-bit integers on both sides"),
        Scheme("fp8-tensor", "e4m3", "e4m3", (0, 0), (0, 0), rate="fp8", doc="FP8 E4M3, one scale per matrix"),
        Scheme("fp8-row", "e4m3", "e4m3", rate="fp8", doc="FP8 E4M3, a scale per channel and per token"),
        Scheme("fp8-block", "e4m3", "e4m3", (128, 128), (1, 128), rate="fp8",
               doc="FP8 E4M3, a scale per 128x128 weights and per 128 activations (DeepSeek-V3)"),
        Scheme("mxfp8", "e4m3", "e4m3", (1, 32), (1, 32), scale="e8m0", rate="fp8",
               doc="OCP microscaling FP8: a power of two per 32 elements"),
        Scheme("mxfp4", "e2m1", "e2m1", (1, 32), (1, 32), scale="e8m0", rate="fp4",
               doc="OCP microscaling FP4: a power of two per 32 elements"),
        Scheme("nvfp4", "e2m1", "e2m1", (1, 16), (1, 16), scale="e4m3", tensor_scale=True, rate="fp4",
               doc="NVFP4: an E4M3 scale per 16 elements and one scale per matrix"),
        Scheme("ternary", "ternary", "int8", grouped=True, rate="int8",
               doc="weights -1, 0 or 1 in two bits, 8-bit activations (BitNet b1.58)"),
        Scheme("ternary5", "ternary5", "int8", grouped=True, rate="int8",
               doc="weights -1, 0 or 1, five to a byte, 8-bit activations"),
        Scheme("bits", "planes", "offset", grouped=True, scale="dtype", zeros=True, rate="int8",
               doc="weights and activations as bit planes, 1 to 8 bits each"),
        Scheme("lut", "planes", "", grouped=True, scale="dtype", zeros=True,
               doc="weights as bit planes of 1 to 8 bits, activations unquantised: for table look-up"),
    )
}  # fmt: skip


def scheme_of(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in SCHEMES:
        raise unknown_name("quantisation scheme", name, SCHEMES)
    return SCHEMES[name]


def code_bytes(element: Element, rows: Any, k: Any, bits: Any = 0) -> Any:
    """Bytes of the packed codes of [rows, k]; each row begins on a byte.

    Args:
        element: how they are stored.
        rows: how many.
        k: codes per row.
        bits: bit planes, where the element is stored as such.
    """
    planes = 1 if element.bits else bits
    return 1.0 * planes * rows * -(-k // element.per_byte)


def block_count(rows: Any, k: Any, block: tuple[Any, Any]) -> Any:
    """Blocks that share a scale; the last of a row or column may be smaller."""
    tall, wide = block
    # A width of 0 means the whole extent; written so that arrays may mix both.
    tall, wide = tall + (tall == 0) * rows, wide + (wide == 0) * k
    return 1.0 * -(-rows // tall) * -(-k // wide)


def weight_block(scheme: Scheme, group: Any) -> tuple[Any, Any]:
    """Rows and columns of weights that share a scale; 0 means all."""
    return (1, group) if scheme.grouped else scheme.weight_block


def scale_bytes(scheme: Scheme, dtype: str) -> float:
    """Bytes of one scale (or zero point)."""
    return number_format(dtype).bytes if scheme.scale == "dtype" else SCALE_BYTES[scheme.scale]
