"""Work of products with low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work


def lowrank(p: Mapping[str, Any]) -> Work:
    """``y = x W^T + (x A^T) B^T`` with ``adapters`` different pairs ``A [rank, k]``, ``B [n, rank]`` in one batch.

    (Hu et al., "LoRA", arXiv:2106.09685.)

    FLOPs: ``2 m n k`` of the base, and ``2 m rank (n + k)`` of the adapters; bytes: x, W, the adapters, y, each once.
    A single adapter can be merged into the base beforehand, so its part is no compulsory work: it is left out of FLOPs
    and bytes, and stands in ``adapter_flops`` all the same.

    Args:
        p: ``m``, ``n``, ``k``, ``rank``, ``dtype``; ``adapters`` (1) may be left out.
    """
    fmt = number_format(p["dtype"])
    m, n, k, rank, adapters = 1.0 * p["m"], p["n"], p["k"], p["rank"], p.get("adapters", 1)
    several = 1.0 * (adapters > 1)
    base, thin = 2.0 * m * n * k, 2.0 * m * rank * (n + k)
    weights = 1.0 * n * k + several * adapters * rank * (n + k)
    return Work(
        {fmt.rate: base + several * thin},
        {"device": (m * k + weights) * fmt.bytes},
        {"device": m * n * fmt.bytes},
        details={"base_flops": base, "adapter_flops": thin},
    )
