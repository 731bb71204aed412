"""Work of matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work

OUT_FORMAT: dict[str, str] = {
    "fp8_e4m3": "bf16",
    "fp8_e5m2": "bf16",
    "fp8": "bf16",
    "fp8_block": "bf16",
    "nvfp4": "bf16",
    "w4a16": "bf16",
    "int8": "int32",
}
"""Format that a product is written in where the operands' own would overflow; else the operands' own."""


def out_format(dtype: str, out_dtype: str | None = None) -> str:
    """The format of the result: ``out_dtype``, or what the operands' format implies."""
    if out_dtype and out_dtype != "same":
        return out_dtype
    return OUT_FORMAT.get(dtype, dtype)


def dense(p: Mapping[str, Any]) -> Work:
    """``C[m, n] = A[m, k] @ B[k, n]``, ``batch`` times.

    FLOPs: ``2 batch m n k``. Bytes: A and B read once, C written once (the compulsory traffic).

    Args:
        p: ``m``, ``n``, ``k``, ``dtype``; ``batch`` (1) and ``out_dtype`` (``"same"``) may be left out.
    """
    operand = number_format(p["dtype"])
    result = number_format(out_format(p["dtype"], p.get("out_dtype")))
    batch, m, n, k = p.get("batch", 1), p["m"], p["n"], p["k"]
    # w4a16 stores the weights B in 4 bits and the activations A in 16.
    a_bytes = 2.0 if p["dtype"] == "w4a16" else operand.bytes
    # The first factor is a float: products of large int64 arrays would wrap silently.
    return Work(
        flops={operand.rate: 2.0 * batch * m * n * k},
        bytes_read={"device": 1.0 * batch * m * k * a_bytes + 1.0 * batch * k * n * operand.bytes},
        bytes_written={"device": 1.0 * batch * m * n * result.bytes},
    )
