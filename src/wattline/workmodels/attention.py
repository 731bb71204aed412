"""Work of attention: softmax(Q K^T) V over the query-key pairs that the mask lets through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.errors import ParamError
from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import least, most, triangle

BACKWARD_FLOPS = 2.5
"""Backward over forward FLOPs: five products of the forward's two (dV, dP, dQ, dK and the recomputed S)."""


def causal_pairs(q_len: Any, kv_len: Any, window: Any = 0) -> Any:
    """Query-key pairs that a causal mask lets through.

    Query ``i`` (from 0) stands at position ``kv_len - q_len + i`` and sees the last
    ``min(kv_len - q_len + i + 1, window)`` keys up to its own, none where that is negative.

    Args:
        q_len: queries.
        kv_len: keys.
        window: most keys that a query sees; 0 for no limit.

    Returns:
        ``sum_i clip(kv_len - q_len + i + 1, 0, min(window, kv_len))`` in closed form, as a float.
    """
    kv = 1.0 * kv_len
    # A window of 0 means all keys: fold it into the number of keys without a branch (arrays have none).
    span = least(window + kv * (window == 0), kv)
    skipped = most(kv - q_len, 0.0)  # keys that every query sees: the visible counts run from skipped + 1 to kv
    edge = least(skipped, span)
    return triangle(span) - triangle(edge) + span * ((kv - span) - (skipped - edge))


def keys_touched(q_len: Any, kv_len: Any, window: Any = 0) -> Any:
    """Keys that at least one query sees under a causal mask: all, or those within reach of the window."""
    kv = 1.0 * kv_len
    return least(kv, kv * (window == 0) + (window + q_len - 1.0) * (window != 0))


def prefill(p: Mapping[str, Any]) -> Work:
    """Attention of ``q_len`` queries over ``kv_len`` keys for each of ``batch`` sequences.

    FLOPs forward: ``2 batch heads pairs (d_qk + d_v)``; backward 2.5 times that (FlashAttention-2, Dao 2023,
    counts the same). Bytes: Q read and O written once, the keys and values in reach read once; the backward
    pass reads Q, K, V, O and dO and writes dQ, dK and dV.

    Args:
        p: ``q_len``, ``kv_len``, ``heads``, ``head_dim``, ``dtype``; may be left out: ``batch`` (1),
            ``kv_heads`` (``heads``), ``head_dim_v`` (0: ``head_dim``), ``kv_dtype`` (``dtype``), ``causal`` (true),
            ``window`` (0: none), ``direction`` (``"forward"`` or ``"backward"``).

    Raises:
        ParamError: a window without a causal mask, or an unknown direction.
    """
    fmt = number_format(p["dtype"])
    kv_fmt = number_format(p.get("kv_dtype") or p["dtype"])
    batch, q_len, kv_len, heads = p.get("batch", 1), p["q_len"], p["kv_len"], p["heads"]
    kv_heads = p.get("kv_heads", heads)
    d_qk = p["head_dim"]
    d_v = _or(p.get("head_dim_v", 0), d_qk)
    window = p.get("window", 0)
    if p.get("causal", True):
        pairs = causal_pairs(q_len, kv_len, window)
        keys = keys_touched(q_len, kv_len, window)
    else:
        if _any(window):
            raise ParamError("a window needs a causal mask", todo="give causal=true or window=0")
        pairs, keys = 1.0 * q_len * kv_len, 1.0 * kv_len
    flops = 2.0 * batch * heads * pairs * (d_qk + d_v)
    q_bytes = 1.0 * batch * q_len * heads * d_qk * fmt.bytes
    o_bytes = 1.0 * batch * q_len * heads * d_v * fmt.bytes
    kv_bytes = 1.0 * batch * keys * kv_heads * (d_qk + d_v) * kv_fmt.bytes
    direction = p.get("direction", "forward")
    if direction == "forward":
        return Work({fmt.rate: flops}, {"device": q_bytes + kv_bytes}, {"device": o_bytes})
    if direction == "backward":
        return Work(
            {fmt.rate: BACKWARD_FLOPS * flops},
            {"device": q_bytes + kv_bytes + 2.0 * o_bytes},
            {"device": q_bytes + kv_bytes},
        )
    raise ParamError(f"direction must be forward or backward, not {direction!r}")


def io_lower_bound(p: Mapping[str, Any], memory_bytes: Any) -> Any:
    """Bytes that exact attention moves at least between main memory and a fast memory, up to a constant factor.

    ``pairs d_qk d_v / M`` elements where the fast memory holds ``M >= d^2`` elements, and ``pairs d / sqrt(M)`` where
    it holds fewer: ``N^2 d^2 / M`` for N queries and keys (Saha and Ye, "The I/O Complexity of Attention",
    arXiv:2402.07443; FlashAttention reaches the first). Constants are left out as they leave them out, so it says how
    traffic grows, and what a larger fast memory buys; no measurement is judged by it.

    Args:
        p: as for :func:`prefill`.
        memory_bytes: of the fast memory: shared memory of a multiprocessor, or the cache of a core.
    """
    fmt = number_format(p["dtype"])
    heads, d_qk = 1.0 * p.get("batch", 1) * p["heads"], p["head_dim"]
    d_v = _or(p.get("head_dim_v", 0), d_qk)
    causal = p.get("causal", True)
    pairs = causal_pairs(p["q_len"], p["kv_len"], p.get("window", 0)) if causal else 1.0 * p["q_len"] * p["kv_len"]
    held = memory_bytes / fmt.bytes
    wide, narrow = d_qk * d_v / held, (d_qk * d_v / held) ** 0.5
    return heads * pairs * fmt.bytes * most(wide * (wide <= 1), narrow * (wide > 1))


def _or(value: Any, default: Any) -> Any:
    """``value``, and ``default`` where it is 0."""
    return value + default * (value == 0)


def _any(value: Any) -> bool:
    return bool(value.any()) if hasattr(value, "any") else bool(value)
