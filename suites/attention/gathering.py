"""Sparse attention by gathering: the keys that queries see are brought together, then attended to densely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wattline.suites.attention.sdpa import attend_free
from wattline.suites.workload import ParamValues


def gathered(p: ParamValues, inputs: dict[str, Any]) -> Callable[[], Any]:
    """A call that gathers and attends, for the pattern of the parameters."""
    return {"sink_window": _band, "block_topk": _blocks, "clusters": _clusters, "budget": _budget}[str(p["pattern"])](
        p, inputs
    )


def _budget(p: ParamValues, inputs: dict[str, Any]) -> Callable[[], Any]:
    q, k, v = (inputs[name] for name in "qkv")
    where = inputs["chosen"]["keys"][..., None].expand(-1, -1, -1, k.shape[3])
    attend = attend_free()
    return lambda: attend(q, k.gather(2, where), v.gather(2, where), None)


def _clusters(p: ParamValues, inputs: dict[str, Any]) -> Callable[[], Any]:
    import torch

    q, k, v = (inputs[name] for name in "qkv")
    batch, heads, q_len, d = q.shape
    kv_heads, count = k.shape[1], int(p["clusters"])
    keys, queries = inputs["chosen"]["keys"], inputs["chosen"]["queries"]
    of_keys = keys.flatten(2)[..., None].expand(-1, -1, -1, d)
    of_queries = queries.flatten(2)[..., None].expand(-1, -1, -1, d)
    attend = attend_free()

    def call() -> Any:
        def clustered(x: Any, where: Any, number: int) -> Any:
            parts = x.gather(2, where).view(batch, number, count, -1, d)
            return parts.transpose(1, 2).reshape(batch * count, number, -1, d)

        out = attend(clustered(q, of_queries, heads), clustered(k, of_keys, kv_heads),
                     clustered(v, of_keys, kv_heads), None)  # fmt: skip
        sorted_ = out.view(batch, count, heads, -1, d).transpose(1, 2).reshape(batch, heads, q_len, d)
        return torch.empty_like(sorted_).scatter_(2, of_queries, sorted_)

    return call


def _blocks(p: ParamValues, inputs: dict[str, Any]) -> Callable[[], Any]:
    import torch

    q, k, v = (inputs[name] for name in "qkv")
    batch, heads, q_len, d = q.shape
    kv_heads, block, keep = k.shape[1], min(int(p["block"]), q_len), int(p["keep"])
    count = q_len // block
    blocks = inputs["chosen"]["blocks"]
    # Keys of the chosen blocks as tokens; those of no block point anywhere and are masked.
    tokens = blocks.clamp_min(0)[..., None] * block + torch.arange(block, device=q.device)
    where = tokens.view(batch, kv_heads, -1)[..., None].expand(-1, -1, -1, d)
    rows = torch.arange(q_len, device=q.device).view(count, block, 1)
    seen = (blocks >= 0)[..., None].expand(-1, -1, -1, -1, block).reshape(batch, kv_heads, count, 1, keep * block)
    seen = seen & (tokens.view(batch, kv_heads, count, 1, keep * block) <= rows)
    mask = seen.transpose(1, 2).reshape(batch * count, kv_heads, block, keep * block)
    mask = mask.repeat_interleave(heads // kv_heads, dim=1)
    attend = attend_free()

    def call() -> Any:
        def chosen(x: Any) -> Any:
            parts = x.gather(2, where).view(batch, kv_heads, count, keep * block, d)
            return parts.transpose(1, 2).reshape(batch * count, kv_heads, keep * block, d)

        queries = q.view(batch, heads, count, block, d).transpose(1, 2).reshape(batch * count, heads, block, d)
        out = attend(queries, chosen(k), chosen(v), mask)
        return out.view(batch, count, heads, block, d).transpose(1, 2).reshape(batch, heads, q_len, d)

    return call


def _band(p: ParamValues, inputs: dict[str, Any]) -> Callable[[], Any]:
    """Blocks of queries, each with the keys that one of its windows reaches, and the sinks in front."""
    import torch

    q, k, v = (inputs[name] for name in "qkv")
    batch, heads, q_len, d = q.shape
    kv_heads, kv_len = k.shape[1:3]
    block, window, sink = min(int(p["block"]), q_len), int(p["window"]), int(p["sink"])
    count, offset = q_len // block, kv_len - q_len
    first = torch.arange(count, device=q.device)[:, None] * block + offset - window + 1
    reach = first + torch.arange(window - 1 + block, device=q.device)
    sinks = torch.arange(sink, device=q.device).expand(count, -1)
    tokens = torch.cat([sinks, reach], dim=1)
    where = tokens.clamp_min(0).flatten()
    positions = torch.arange(q_len, device=q.device).view(count, block, 1) + offset
    inside = (reach[:, None, :] > positions - window) & (reach[:, None, :] <= positions) & (reach[:, None, :] >= sink)
    in_sink = (sinks[:, None, :] <= positions).expand(-1, block, -1)
    mask = torch.cat([in_sink, inside], dim=2)[:, None].repeat(batch, 1, 1, 1)
    attend = attend_free()

    def call() -> Any:
        def chosen(x: Any) -> Any:
            parts = x.index_select(2, where).view(batch, kv_heads, count, -1, d)
            return parts.transpose(1, 2).reshape(batch * count, kv_heads, -1, d)

        queries = q.view(batch, heads, count, block, d).transpose(1, 2).reshape(batch * count, heads, block, d)
        out = attend(queries, chosen(k), chosen(v), mask)
        return out.view(batch, count, heads, block, d).transpose(1, 2).reshape(batch, heads, q_len, d)

    return call
