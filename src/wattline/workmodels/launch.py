"""Work of launches, which is none, and of the small network whose launches are traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work

WIDEN = 4
"""The inner width of a block's feed-forward part, in widths of the model."""


def overhead(p: Mapping[str, Any]) -> Work:
    """Launches of something empty: neither operations nor bytes.

    Args:
        p: ``launches``.
    """
    return Work(details={"launches": 1.0 * p["launches"]})


def blocks(p: Mapping[str, Any]) -> Work:
    """Blocks of a transformer: projections of attention (4 h^2 weights), its two products, and a feed-forward part of
    two layers (8 h^2), as in Vaswani et al., "Attention is all you need" (2017), with normalisation before each part.

    FLOPs of the products only; bytes: weights once, input read and output written once.

    Args:
        p: ``layers``, ``batch``, ``tokens``, ``hidden``, ``dtype``.
    """
    fmt = number_format(p["dtype"])
    layers, rows, hidden = 1.0 * p["layers"], 1.0 * p["batch"] * p["tokens"], 1.0 * p["hidden"]
    weights = (4 + 2 * WIDEN) * hidden * hidden
    # Biases of six layers' outputs, and scale and shift of two normalisations.
    vectors = (3 + 1 + WIDEN + 1 + 4) * hidden
    flops = layers * (2 * rows * weights + 4 * rows * p["tokens"] * hidden)
    return Work(
        {fmt.rate: flops},
        {"device": (layers * (weights + vectors) + rows * hidden) * fmt.bytes},
        {"device": rows * hidden * fmt.bytes},
    )
