"""Which keys a query sees under the patterns of sparse attention: drawn once, and the same for every implementation."""

from __future__ import annotations

from typing import Any

from wattline.suites.attention.masks import Mask
from wattline.suites.workload import BuildContext, ParamValues

PATTERNS = ("sink_window", "block_topk", "clusters", "budget")


def draw(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """What the pattern chooses, from random scores: choosing itself is not measured.

    Returns:
        ``sink_window``: nothing. ``block_topk``: ``blocks`` ``[batch, kv_heads, blocks, keep]``, for each block of
        queries the earlier blocks of keys (-1: none) and itself as the last. ``clusters``: ``keys`` ``[batch, kv_heads,
        clusters, kv_len / clusters]`` and ``queries`` ``[batch, heads, clusters, q_len / clusters]``, as tokens.
        ``budget``: ``keys`` ``[batch, kv_heads, budget]``, ascending.
    """
    import torch

    pattern = p["pattern"]
    batch, heads, kv_heads = int(p["batch"]), int(p["heads"]), int(p["kv_heads"])
    q_len, kv_len = int(p["q_len"]), int(p["kv_len"])
    if pattern == "block_topk":
        count, keep = -(-q_len // int(p["block"])), int(p["keep"])
        scores = ctx.tensor((batch, kv_heads, count, count), "fp32").float()
        earlier = torch.ones(count, count, dtype=torch.bool, device=scores.device).tril(-1)
        most = min(keep - 1, count)
        best = scores.masked_fill(~earlier, -torch.inf).topk(most, dim=3)
        chosen = best.indices.masked_fill(best.values == -torch.inf, -1).sort(dim=3).values
        own = torch.arange(count, device=scores.device)[:, None].expand(batch, kv_heads, count, 1)
        spare = own.new_full((batch, kv_heads, count, keep - 1 - most), -1)
        return {"blocks": torch.cat([spare, chosen, own], dim=3)}
    if pattern == "clusters":
        count = int(p["clusters"])
        keys, queries = (
            ctx.tensor((batch, n, length), "fp32").float().argsort(dim=2, stable=True).view(batch, n, count, -1)
            for n, length in ((kv_heads, kv_len), (heads, q_len))
        )
        return {"keys": keys.sort(dim=3).values, "queries": queries.sort(dim=3).values}
    if pattern == "budget":
        scores = ctx.tensor((batch, kv_heads, kv_len), "fp32").float()
        return {"keys": scores.topk(int(p["budget"]), dim=2).indices.sort(dim=2).values}
    return {}


def visible(p: ParamValues, chosen: dict[str, Any], b: int, h: int, rows: Any) -> Any:
    """The keys that some queries of one head see: ``[len(rows), kv_len]``, bool.

    Args:
        p: the parameters.
        chosen: from :func:`draw`.
        b, h: sequence and query head.
        rows: indices of queries, a tensor of int64.
    """
    import torch

    kv_len, kv_head = int(p["kv_len"]), h // (int(p["heads"]) // int(p["kv_heads"]))
    keys = torch.arange(kv_len, device=rows.device)
    if p["pattern"] == "sink_window":
        return band(p).visible(rows)
    if p["pattern"] == "block_topk":
        block = int(p["block"])
        allowed = (chosen["blocks"][b, kv_head][rows // block][:, :, None] == (keys // block)[None, None, :]).any(dim=1)
        return allowed & (keys[None, :] <= rows[:, None])
    if p["pattern"] == "clusters":
        of_key = _cluster_of(chosen["keys"][b, kv_head], kv_len)
        of_query = _cluster_of(chosen["queries"][b, h], int(p["q_len"]))
        return of_query[rows][:, None] == of_key[None, :]
    kept = torch.zeros(kv_len, dtype=torch.bool, device=rows.device)
    kept[chosen["keys"][b, kv_head]] = True
    return kept.expand(len(rows), -1)


def band(p: ParamValues) -> Mask:
    """Sink and window as a mask."""
    return Mask(int(p["q_len"]), int(p["kv_len"]), True, int(p["window"]), int(p["sink"]))


def dense(p: ParamValues, chosen: dict[str, Any], device: Any) -> Any:
    """The whole mask, ``[q_len, kv_len]`` where all heads share one, else ``[batch, heads, q_len, kv_len]``, bool."""
    import torch

    rows = torch.arange(int(p["q_len"]), device=device)
    if p["pattern"] == "sink_window":
        return band(p).visible(rows)
    return torch.stack(
        [torch.stack([visible(p, chosen, b, h, rows) for h in range(int(p["heads"]))]) for b in range(int(p["batch"]))]
    )


def _cluster_of(members: Any, length: int) -> Any:
    """Cluster of each token ``[length]`` from the members of each cluster ``[clusters, size]``."""
    import torch

    found = torch.empty(length, dtype=torch.int64, device=members.device)
    found[members.flatten()] = torch.arange(len(members), device=members.device).repeat_interleave(members.shape[1])
    return found
