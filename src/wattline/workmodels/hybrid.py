"""Work of a batch that holds a piece of a prompt and the newest tokens of other sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.attention import causal_pairs


def hybrid(p: Mapping[str, Any]) -> Work:
    """Attention of ``chunk`` tokens of one prompt over its ``chunk_context``, and of one token for each of ``decodes``
    sequences over ``decode_context``; with ``hidden`` also the projections of all tokens to Q, K, V and back.

    (Chunked prefill: Agrawal et al., "Sarathi-Serve", arXiv:2403.02310.)

    FLOPs: ``4 heads head_dim`` for each query-key pair, and ``2 hidden head_dim (2 heads + 2 kv_heads)`` for each token
    projected. Bytes: Q and O of all tokens, every key and value of every context once; projected, the tokens
    themselves and their results of ``hidden`` instead of Q and O, and the weights once.

    Args:
        p: ``chunk``, ``chunk_context``, ``decodes``, ``decode_context``, ``heads``, ``kv_heads``, ``head_dim``,
            ``dtype``; ``hidden`` (0: attention alone).
    """
    fmt = number_format(p["dtype"])
    chunk, decodes, heads, kv_heads, d = p["chunk"], p["decodes"], p["heads"], p["kv_heads"], p["head_dim"]
    hidden = p.get("hidden", 0)
    tokens = 1.0 * chunk + decodes
    pairs = causal_pairs(chunk, p["chunk_context"]) + 1.0 * decodes * p["decode_context"]
    keys = 1.0 * p["chunk_context"] * (chunk > 0) + 1.0 * decodes * p["decode_context"]
    weights = 1.0 * hidden * d * (2 * heads + 2 * kv_heads)
    width = heads * d * (hidden == 0) + hidden
    attention = 4.0 * heads * d * pairs
    projections = 2.0 * tokens * weights
    return Work(
        {fmt.rate: attention + projections},
        {"device": (tokens * width + 2.0 * keys * kv_heads * d + weights) * fmt.bytes},
        {"device": tokens * width * fmt.bytes},
        details={"attention_flops": attention, "projection_flops": projections},
    )
