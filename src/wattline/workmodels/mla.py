"""Work of multi-head latent attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import least
from wattline.workmodels.attention import causal_pairs


def mla(p: Mapping[str, Any]) -> Work:
    """Attention over a cache of latents of rank ``r`` that all heads share.

    The attention of DeepSeek-V2 (arXiv:2405.04434, section 2.1). A head's key is ``[W_uk c, k_rope]``, its value
    ``W_uv c``; c and k_rope are what is cached of a token. With n and v the widths of a head's key (without its
    rotary part, of width e) and value, and P the query-key pairs of a head under a causal mask whose queries are the
    last tokens:

    - expanded, keys and values are made first: ``2 batch heads (kv_len r (n + v) + P (n + e + v))`` FLOPs;
    - absorbed, queries are taken into the space of latents, and results out of it:
      ``2 batch heads (q_len r (n + v) + P (r + e + r))`` FLOPs.

    The result is the same; the work is the lesser of the two. Bytes: queries, latents, both up-projections and
    the results once.

    Details: ``absorbed_flops``, ``expanded_flops``; ``expanded_bytes``, keys and values of all heads as the expanded
    form makes them; ``latent_bytes``, the cache.

    Args:
        p: ``kv_len``, ``heads``, ``dtype``; may be left out: ``batch`` (1), ``q_len`` (1), ``kv_rank`` (512),
            ``rope_dim`` (64), ``nope_dim`` (128), ``v_dim`` (128).
    """
    fmt = number_format(p["dtype"])
    batch, q_len, kv_len, heads = p.get("batch", 1), p.get("q_len", 1), p["kv_len"], p["heads"]
    rank, rope = p.get("kv_rank", 512), p.get("rope_dim", 64)
    nope, v = p.get("nope_dim", 128), p.get("v_dim", 128)
    pairs = causal_pairs(q_len, kv_len)
    both = 1.0 * rank * (nope + v)
    each = 2.0 * batch * heads
    expanded = each * (kv_len * both + pairs * (nope + rope + v))
    absorbed = each * (q_len * both + pairs * (rank + rope + rank))
    latents = 1.0 * batch * kv_len * (rank + rope) * fmt.bytes
    queries = 1.0 * batch * q_len * heads * (nope + rope) * fmt.bytes
    return Work(
        flops={fmt.rate: least(absorbed, expanded)},
        bytes_read={"device": queries + latents + heads * both * fmt.bytes},
        bytes_written={"device": 1.0 * batch * q_len * heads * v * fmt.bytes},
        details={
            "absorbed_flops": absorbed,
            "expanded_flops": expanded,
            "expanded_bytes": 1.0 * batch * heads * kv_len * (nope + rope + v) * fmt.bytes,
            "latent_bytes": latents,
        },
    )
