"""Work of chains of element-wise operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work


def chain(p: Mapping[str, Any]) -> Work:
    """``length`` element-wise operations in a row over ``rows x cols`` elements.

    FLOPs: one for each operation and element, in fp32 whatever is stored. Bytes: the input read once and the result
    written once, which a fused kernel reaches; one that runs the operations apart reads and writes every intermediate
    (``unfused_bytes``). Of a chain that ends in a sum over each row only one element a row is written.

    Args:
        p: ``rows``, ``cols``, ``length``, ``dtype``; ``ending`` (``"none"`` or ``"row_sum"``) may be left out.
    """
    fmt = number_format(p["dtype"])
    rows, cols, length = 1.0 * p["rows"], p["cols"], p["length"]
    elements = rows * cols
    summed = p.get("ending", "none") == "row_sum"
    written = rows if summed else elements
    rate = "fp64" if p["dtype"] == "fp64" else "fp32"
    unfused = 2.0 * length * elements + ((elements + rows) if summed else 0.0)
    return Work(
        {rate: length * elements + (elements if summed else 0.0)},
        {"device": elements * fmt.bytes},
        {"device": written * fmt.bytes},
        details={"unfused_bytes": unfused * fmt.bytes},
    )
