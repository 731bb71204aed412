"""The few functions that a formula needs and that numbers and numpy arrays share."""

from __future__ import annotations

from typing import Any

_PLAIN = (int, float)


def least(a: Any, b: Any) -> Any:
    """Element-wise minimum."""
    if isinstance(a, _PLAIN) and isinstance(b, _PLAIN):
        return min(a, b)
    import numpy as np

    return np.minimum(a, b)


def most(a: Any, b: Any) -> Any:
    """Element-wise maximum."""
    if isinstance(a, _PLAIN) and isinstance(b, _PLAIN):
        return max(a, b)
    import numpy as np

    return np.maximum(a, b)


def ceil_div(a: Any, b: Any) -> Any:
    """Element-wise ``ceil(a / b)``."""
    return -(-a // b)


def triangle(n: Any) -> Any:
    """``1 + 2 + ... + n``."""
    return n * (n + 1.0) / 2.0
