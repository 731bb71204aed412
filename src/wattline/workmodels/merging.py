"""Work of attention in parts: over shards of a context, or a prefix that sequences share, and their merging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.errors import ParamError
from wattline.formats import number_format
from wattline.work import Work

LSE_BYTES = 4
"""A log-sum-exp is stored in single precision."""


def merge(p: Mapping[str, Any]) -> Work:
    """Partial attentions (output and log-sum-exp of each query) brought together, alone or with the attention itself.

    With ``rows = batch heads q_len`` queries, merging weighs ``shards`` outputs of ``head_dim``: ``2 shards rows
    head_dim`` FLOPs, in fp32 whatever is stored; it reads ``shards rows (head_dim b + 4)`` bytes and writes ``rows
    (head_dim b + 4)``.

    ``phase = "shards"`` is attention of the queries over all ``kv_len`` keys, ``"prefix"`` the same where the first
    ``prefix`` keys are one and the same for every sequence: ``4 rows kv_len head_dim`` FLOPs; Q, O and every distinct
    key and value once. Merging is then no compulsory work and stands in ``merge_bytes`` (two parts for a prefix).

    Args:
        p: ``batch``, ``q_len``, ``kv_len``, ``heads``, ``kv_heads``, ``head_dim``, ``shards``, ``dtype``, ``phase``
            (``"merge"``, ``"shards"`` or ``"prefix"``), ``prefix``.

    Raises:
        ParamError: an unknown phase.
    """
    fmt = number_format(p["dtype"])
    batch, q_len, heads, d = p.get("batch", 1), p.get("q_len", 1), p["heads"], p["head_dim"]
    phase = p.get("phase", "merge")
    rows = 1.0 * batch * q_len * heads
    parts = 2 if phase == "prefix" else p["shards"]
    read, written = parts * rows * (d * fmt.bytes + LSE_BYTES), rows * (d * fmt.bytes + LSE_BYTES)
    if phase == "merge":
        rate = "fp64" if p["dtype"] == "fp64" else "fp32"
        return Work({rate: 2.0 * parts * rows * d}, {"device": read}, {"device": written})
    if phase not in ("shards", "prefix"):
        raise ParamError(f"phase must be merge, shards or prefix, not {phase!r}")
    kv_len, kv_heads = p["kv_len"], p.get("kv_heads", heads)
    shared = 1.0 * p["prefix"] if phase == "prefix" else 0.0
    distinct = shared + batch * (kv_len - shared)
    return Work(
        {fmt.rate: 4.0 * rows * kv_len * d},
        {"device": (rows * d + 2.0 * distinct * kv_heads * d) * fmt.bytes},
        {"device": rows * d * fmt.bytes},
        details={"merge_bytes": read + written},
    )
