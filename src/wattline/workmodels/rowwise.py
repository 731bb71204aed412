"""Work of row-wise operations: softmax, norms and element-wise arithmetic over ``rows x cols``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wattline.errors import unknown_name
from wattline.formats import number_format
from wattline.work import Work

# Per element: tensors read, tensors written, operations. Transcendental functions count as one operation, so the
# counts are the least that an implementation can do. Arithmetic runs in fp32 whatever is stored.
_COUNTS: dict[str, tuple[float, float, float]] = {
    "softmax.rows": (1, 1, 4),  # maximum, subtract + exp, sum, divide
    "norm.layernorm": (1, 1, 7),  # mean, centre, square + sum, scale, gain, bias
    "norm.rmsnorm": (1, 1, 4),  # square + sum, scale, gain
    "rope": (1, 1, 3),  # two products and a sum; angles are shared by the heads
}
_UNARY = ("copy", "relu", "gelu", "silu", "tanh", "sigmoid", "exp", "neg", "abs", "sqrt")
_BINARY = ("add", "sub", "mul", "div", "pow", "max", "min")
ELEMENTWISE: tuple[str, ...] = (*_UNARY, *_BINARY, *(f"{name}u" for name in _BINARY))
"""Element-wise operations; a trailing ``u`` marks one tensor and one scalar operand, as in NeuSight's tables."""


def elementwise_counts(name: str) -> tuple[float, float, float]:
    """Tensors read, tensors written and operations per element of ``elementwise.<name>``.

    Raises:
        UnknownNameError: no such operation.
    """
    if name in _BINARY:
        return (2, 1, 1)
    if name in ELEMENTWISE:
        return (1, 1, 0 if name == "copy" else 1)
    raise unknown_name("element-wise operation", name, ELEMENTWISE)


def row_model(op: str) -> Callable[[Mapping[str, Any]], Work]:
    """The work model of one row-wise operation.

    Raises:
        UnknownNameError: no such operation.
    """
    read, written, operations = (
        elementwise_counts(op.removeprefix("elementwise.")) if op.startswith("elementwise.") else _COUNTS[op]
    )

    def model(p: Mapping[str, Any]) -> Work:
        elements = 1.0 * p["rows"] * p["cols"]
        width = number_format(p["dtype"]).bytes
        rate = "fp64" if p["dtype"] == "fp64" else "fp32"  # shorter formats are computed in fp32
        return Work(
            flops={rate: operations * elements} if operations else {},
            bytes_read={"device": read * elements * width},
            bytes_written={"device": written * elements * width},
        )

    model.__doc__ = f"Work of ``{op}`` over ``rows x cols`` elements of ``dtype``."
    return model
