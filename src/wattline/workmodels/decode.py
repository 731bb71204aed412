"""Work of decoding: attention of the newest tokens over a cache, plain or quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import NumberFormat, number_format
from wattline.work import Work
from wattline.workmodels.arith import ceil_div
from wattline.workmodels.attention import causal_pairs, keys_touched
from wattline.workmodels.lengths import sum_over

INDEX_BYTES = 4.0
"""An entry of a block table: a 32-bit integer."""

PARTIAL_BYTES = 4.0
"""Partial results of a split context, and their log-sum-exp, are kept in single precision."""


def cache_format(p: Mapping[str, Any]) -> NumberFormat:
    """The number format of keys and values: ``kv_dtype``, or ``dtype`` where that is ``"same"`` or left out."""
    name = p.get("kv_dtype") or "same"
    return number_format(p["dtype"] if name == "same" else name)


def decode(p: Mapping[str, Any]) -> Work:
    """Attention of the newest token (or ``q_len`` of them) of each sequence over its cache.

    With ``n_i`` the length of sequence i, and ``kv_i = min(n_i, window)`` the keys in its reach (all without a
    window): FLOPs ``2 heads (d_k + d_v) sum_i kv_i``; bytes ``Q + O + sum_i kv_i kv_heads (d_k + d_v) b(kv)``.
    With several new tokens a causal mask holds among them.

    Details: ``keys``, those in reach of all sequences; ``padded_bytes``, keys and values if every sequence were as
    long as the longest; ``page_bytes`` and ``index_bytes``, whole pages in use and their block table;
    ``partial_bytes``, the partial results of ``splits`` parts, written and read.

    Args:
        p: ``kv_len``, the longest sequence; ``heads``, ``head_dim``, ``dtype``; may be left out: ``batch`` (1),
            ``kv_heads`` (``heads``), ``head_dim_v`` (0: ``head_dim``), ``q_len`` (1), ``window`` (0: none),
            ``lengths`` (``"equal"``; see :mod:`wattline.workmodels.lengths`) and ``length_seed`` (0) of it,
            ``kv_dtype`` (``"same"``), ``page_size`` (0: contiguous), ``splits`` (0).
    """
    fmt, kv_fmt = number_format(p["dtype"]), cache_format(p)
    batch, q_len, kv_len, heads = p.get("batch", 1), p.get("q_len", 1), p["kv_len"], p["heads"]
    kv_heads, window = p.get("kv_heads", heads), p.get("window", 0)
    d_k = p["head_dim"]
    d_v = p.get("head_dim_v", 0)
    d_v = d_v + d_k * (d_v == 0)
    ragged = (batch, kv_len, str(p.get("lengths", "equal")), p.get("length_seed", 0))
    pairs = sum_over(lambda n: causal_pairs(q_len, n, window), *ragged)
    keys = sum_over(lambda n: keys_touched(q_len, n, window), *ragged)
    queries = 1.0 * batch * q_len * heads
    key_bytes = 1.0 * kv_heads * (d_k + d_v) * kv_fmt.bytes
    details = {"keys": keys, "padded_bytes": 1.0 * batch * kv_len * key_bytes}
    page = p.get("page_size", 0)
    if _any(page):
        page = page + (page == 0)  # among arrays, a contiguous cache is one of pages of a single token
        pages = sum_over(lambda n: ceil_div(1.0 * n, page), *ragged)
        details |= {"page_bytes": pages * page * key_bytes, "index_bytes": INDEX_BYTES * pages}
    splits = p.get("splits", 0)
    if _any(splits):
        details["partial_bytes"] = 2.0 * PARTIAL_BYTES * splits * queries * (d_v + 1)
    return Work(
        flops={fmt.rate: 2.0 * heads * pairs * (d_k + d_v)},
        bytes_read={"device": queries * d_k * fmt.bytes + keys * key_bytes},
        bytes_written={"device": queries * d_v * fmt.bytes},
        details=details,
    )


def token_bytes(head_dim: Any, bits: Any, group: Any, width: float) -> Any:
    """Bytes that the quantised key and value of one token take in one head.

    Codes of ``bits``, and a scale and a zero for each ``group`` of them: along the tokens for keys, along the
    channels for values, which is the same number of groups.

    Args:
        head_dim: channels.
        bits: of a code.
        group: codes that share a scale and a zero.
        width: bytes of a scale, and of a zero.
    """
    return 2.0 * head_dim * (bits / 8.0 + 2.0 * width / group)


def kvquant(p: Mapping[str, Any]) -> Work:
    """A cache with per-channel keys and per-token values in few bits (Liu et al., KIVI, arXiv:2402.02750).

    Scales and zeros have the format of the activations. ``read`` is the attention of one new token over it: FLOPs
    as of :func:`decode`, since turning codes into numbers is no work that the result needs; bytes ``Q + O + batch
    kv_len kv_heads token_bytes``. ``append`` quantises ``kv_len`` tokens: keys and values read once, codes, scales
    and zeros written once; four operations an element (least, largest, subtract, multiply).

    Details: ``packed_bytes``, codes alone; ``scale_bytes``, scales and zeros; ``native_bytes``, keys and values
    without quantisation; ``dequant_flops`` of reading, a multiply and an add for each element.

    Args:
        p: ``kv_len``, ``heads``, ``head_dim``, ``bits``, ``group``, ``dtype``; may be left out: ``batch`` (1),
            ``kv_heads`` (``heads``), ``phase`` (``"read"`` or ``"append"``).
    """
    fmt = number_format(p["dtype"])
    batch, kv_len, heads, d = p.get("batch", 1), p["kv_len"], p["heads"], p["head_dim"]
    tokens = 1.0 * batch * kv_len * p.get("kv_heads", heads)
    elements = 2.0 * tokens * d
    native = elements * fmt.bytes
    packed = elements * p["bits"] / 8.0
    quantised = tokens * token_bytes(d, p["bits"], p["group"], fmt.bytes)
    details = {"packed_bytes": packed, "scale_bytes": quantised - packed, "native_bytes": native}
    if p.get("phase", "read") == "append":
        return Work({fmt.rate: 4.0 * elements}, {"device": native}, {"device": quantised}, details=details)
    query = 1.0 * batch * heads * d
    return Work(
        flops={fmt.rate: 4.0 * query * kv_len},
        bytes_read={"device": query * fmt.bytes + quantised},
        bytes_written={"device": query * fmt.bytes},
        details={**details, "dequant_flops": 2.0 * elements},
    )


def _any(value: Any) -> bool:
    return bool(value.any()) if hasattr(value, "any") else bool(value)
