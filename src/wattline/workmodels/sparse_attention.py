"""Work of attention in which a query sees few of the keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.errors import ParamError
from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import ceil_div, least, most, triangle
from wattline.workmodels.attention import causal_pairs


def sink_window_pairs(q_len: Any, kv_len: Any, window: Any, sink: Any) -> Any:
    """Pairs where a query sees the first ``sink`` keys and its last ``window``, its own among them.

    A query with ``n`` keys up to its own sees ``min(n, window + sink)`` of them, whether the two reach overlaps or not.
    """
    return causal_pairs(q_len, kv_len, least(window + sink, kv_len))


def block_pairs(q_len: Any, kv_len: Any, block: Any, keep: Any) -> Any:
    """Pairs where the queries of a block see their own block up to themselves and ``keep - 1`` earlier whole ones.

    Queries and keys are equally many; block ``b`` (from 0) has ``b`` earlier ones, of which ``min(b, keep - 1)`` count.
    The last block may be shorter.
    """
    blocks = ceil_div(1.0 * q_len, block)
    last = q_len - (blocks - 1) * block
    own = (blocks - 1) * triangle(block) + triangle(last)
    earlier = keep - 1.0
    # sum over the full blocks b = 0 .. blocks - 2 of min(b, earlier), and the last block's share
    whole = least(blocks - 1, earlier)
    seen = whole * (whole - 1) / 2 + earlier * most(blocks - 1 - whole, 0)
    return own + block * (block * seen + last * least(blocks - 1, earlier))


def sparse(p: Mapping[str, Any]) -> Work:
    """Exact attention over the pairs that a pattern lets through; choosing them is no part of it.

    - ``sink_window``: the first ``sink`` keys and the last ``window`` (StreamingLLM, Xiao et al., arXiv:2309.17453);
    - ``block_topk``: of each block of queries its own block of keys and ``keep - 1`` earlier ones (Kinetics, Sadhukhan
      et al., arXiv:2506.05333, and others choose them by a score);
    - ``clusters``: queries see the keys of their cluster, ``clusters`` equal ones, not causal (Routing Transformers,
      Roy et al., arXiv:2003.05997);
    - ``budget``: ``budget`` keys of each key-value head are kept, the rest evicted, and every query sees these, not
      causal (ALISA, Zhao et al., arXiv:2403.17312; Locret, Huang et al., arXiv:2410.01805).

    FLOPs: ``4 batch heads pairs head_dim``. Bytes: Q and O once, and the keys and values that some query sees:
    ``budget`` of each head, else all but those that neither window nor sink reaches. ``dense_flops`` is what causal
    attention without the pattern takes, for ``clusters`` and ``budget`` without a mask.

    Args:
        p: ``batch``, ``q_len``, ``kv_len``, ``heads``, ``kv_heads``, ``head_dim``, ``dtype``, ``pattern`` and the
            parameters named above.

    Raises:
        ParamError: an unknown pattern.
    """
    fmt = number_format(p["dtype"])
    batch, q_len, kv_len, heads, d = p.get("batch", 1), p["q_len"], p["kv_len"], p["heads"], p["head_dim"]
    kv_heads = p.get("kv_heads", heads)
    pattern = p.get("pattern", "sink_window")
    keys, dense = 1.0 * kv_len, causal_pairs(q_len, kv_len)
    if pattern == "sink_window":
        window, sink = p.get("window", 0), p.get("sink", 0)
        pairs = sink_window_pairs(q_len, kv_len, window, sink)
        keys = least(keys, window + sink + q_len - 1.0)
    elif pattern == "block_topk":
        pairs = block_pairs(q_len, kv_len, p["block"], p["keep"])
    elif pattern == "clusters":
        pairs, dense = 1.0 * q_len * kv_len / p["clusters"], 1.0 * q_len * kv_len
    elif pattern == "budget":
        pairs, keys, dense = 1.0 * q_len * p["budget"], 1.0 * p["budget"], 1.0 * q_len * kv_len
    else:
        raise ParamError(f"pattern must be sink_window, block_topk, clusters or budget, not {pattern!r}")
    each = 4.0 * batch * heads * d
    tokens = 1.0 * batch * q_len * heads * d
    return Work(
        {fmt.rate: each * pairs},
        {"device": (tokens + 2.0 * batch * keys * kv_heads * d) * fmt.bytes},
        {"device": tokens * fmt.bytes},
        details={"dense_flops": each * dense, "kept_share": pairs / dense},
    )
