"""Work of mixture-of-experts layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import least
from wattline.workmodels.gemm import out_format


def moe(p: Mapping[str, Any]) -> Work:
    """One rank's share of a mixture-of-experts feed-forward layer.

    Each of ``tokens`` tokens goes to ``top_k`` of ``experts`` experts; every expert holds ``gated`` three (up, gate,
    down) or two matrices of ``hidden x intermediate / tp``; a rank holds ``experts / ep`` of them and, with balanced
    routing, handles ``tokens top_k / ep`` of the routed tokens.

    FLOPs: ``2 routed weights_per_expert``. Bytes: the weights of every active expert once, tokens read and
    written once. Active experts with balanced routing: ``min(experts, tokens top_k) / ep``. Under skewed
    routing fewer are certain; all that must be is one for every choice of one token: ``min(experts, top_k) / ep``.
    ``expert_bytes`` of the details are the weights of one expert on one rank.

    Args:
        p: ``tokens``, ``hidden``, ``intermediate``, ``experts``, ``top_k``, ``dtype``; may be left out: ``tp`` (1),
            ``ep`` (1), ``gated`` (true), ``routing`` (``"balanced"``).
    """
    fmt = number_format(p["dtype"])
    result = number_format(out_format(p["dtype"]))
    tokens, top_k, experts, ep = p["tokens"], p["top_k"], p["experts"], p.get("ep", 1)
    matrices = 3.0 if p.get("gated", True) else 2.0
    weights = matrices * p["hidden"] * p["intermediate"] / p.get("tp", 1)
    choices = 1.0 * tokens * top_k if p.get("routing", "balanced") == "balanced" else 1.0 * top_k
    active = least(1.0 * experts, choices) / ep
    activation_bytes = 2.0 if p["dtype"] == "w4a16" else fmt.bytes
    return Work(
        flops={fmt.rate: 2.0 * tokens * top_k * weights / ep},
        bytes_read={"device": active * weights * fmt.bytes + 1.0 * tokens * p["hidden"] * activation_bytes},
        bytes_written={"device": 1.0 * tokens * p["hidden"] * result.bytes},
        details={"expert_bytes": weights * fmt.bytes},
    )
