"""Number formats: width, torch dtype, and how far a correct result may stray.

``tolerance`` bounds ||out - ref|| / ||ref|| for a product computed from inputs already rounded to the
format, with the output rounded to it. Round-to-nearest has a unit roundoff of 2**-(p) for p significand bits
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2), and the error of a dot product
of k random terms grows like sqrt(k) in the accumulator; the tolerances leave a factor of some 5 to 10 for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.errors import UnknownNameError, unknown_name


@dataclass(frozen=True)
class NumberFormat:
    """A number format.

    Attributes:
        name: the field's name, as in a `dtype` parameter.
        bits: stored bits per element (scales apart).
        torch_name: attribute of `torch` that stores it.
        tolerance: largest ||out - ref|| / ||ref|| of a correct result; 0 means bit-exact.
        kind: "float" or "int".
        rate: the name under which a device lists its arithmetic rate.
        doc: one line for `wattline list`.
    """

    name: str
    bits: float
    torch_name: str
    tolerance: float
    kind: str
    rate: str
    doc: str

    @property
    def bytes(self) -> float:
        """Bytes per element."""
        return self.bits / 8


_ALL = (
    NumberFormat("fp64", 64, "float64", 1e-13, "float", "fp64", "IEEE double"),
    NumberFormat("fp32", 32, "float32", 1e-5, "float", "fp32", "IEEE single, full-precision products"),
    NumberFormat("tf32", 32, "float32", 2e-3, "float", "tf32", "IEEE single storage, 10-bit significand products"),
    NumberFormat("bf16", 16, "bfloat16", 1e-2, "float", "bf16", "bfloat16"),
    NumberFormat("fp16", 16, "float16", 2e-3, "float", "fp16", "IEEE half"),
    NumberFormat("fp8_e4m3", 8, "float8_e4m3fn", 1e-2, "float", "fp8", "OCP FP8 E4M3, bf16 output"),
    NumberFormat("fp8_e5m2", 8, "float8_e5m2", 1e-2, "float", "fp8", "OCP FP8 E5M2, bf16 output"),
    NumberFormat("int8", 8, "int8", 0.0, "int", "int8", "8-bit integer, 32-bit output"),
)
# Formats of published tables: known to the work models, not to the suites.
_PUBLISHED = (
    NumberFormat("fp8", 8, "float8_e4m3fn", 1e-2, "float", "fp8", "FP8, variant not stated"),
    NumberFormat("fp8_block", 8, "float8_e4m3fn", 1e-2, "float", "fp8", "FP8 with block scales"),
    NumberFormat("nvfp4", 4, "uint8", 1e-2, "float", "fp4", "NVFP4"),
    NumberFormat("w4a16", 4, "uint8", 1e-2, "float", "bf16", "4-bit weights, 16-bit activations"),
    NumberFormat("int4", 4, "uint8", 0.0, "int", "int4", "4-bit integer"),
    NumberFormat("int32", 32, "int32", 0.0, "int", "int32", "32-bit integer"),
)
FORMATS: dict[str, NumberFormat] = {f.name: f for f in (*_ALL, *_PUBLISHED)}
BENCH_FORMATS: tuple[str, ...] = tuple(f.name for f in _ALL)
"""The formats that a suite can be asked to run."""

WIDER: dict[str, tuple[str, ...]] = {
    "fp4": ("fp8", "bf16", "fp16", "fp32"),
    "int4": ("int8", "bf16", "fp16", "fp32"),
    "fp8": ("bf16", "fp16", "fp32"),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
    "tf32": ("fp32",),
    "int8": ("bf16", "fp16", "fp32"),
}
"""Where hardware lacks a format, software widens to the first of these that it has."""


def number_format(name: str) -> NumberFormat:
    """The format of that name.

    Raises:
        UnknownNameError: no such format.
    """
    try:
        return FORMATS[name]
    except (KeyError, TypeError):
        raise unknown_format(name) from None


def unknown_format(name: object) -> UnknownNameError:
    """The error for a format nobody knows."""
    return unknown_name("number format", name, FORMATS, listing="wattline list formats")
