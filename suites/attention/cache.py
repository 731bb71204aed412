"""Caches of keys and values: contiguous or in pages, of equal or unequal sequences, and what is true of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan, sqrt
from typing import Any

from wattline.suites.attention.reference import FULL_PAIRS, attend_rows, relative_error
from wattline.suites.sampled import spread
from wattline.suites.workload import BuildContext, ParamValues
from wattline.workmodels.lengths import lengths_of

TABLE_SEED = 7
"""Of the order in which pages lie in memory."""

SEQUENCES, KV_HEADS = 3, 2
"""Sequences, and key-value heads of each, that are compared where there are too many to compare all."""


@dataclass(frozen=True)
class Cache:
    """Keys and values of a batch.

    Attributes:
        k, v: contiguous ``[batch, kv_heads, longest, d]``, or pages ``[pages, kv_heads, page_size, d]``.
        lengths: tokens of each sequence. What lies behind them in its last page, or in its row, is not part of it.
        window: most recent tokens in reach; 0: all.
        page_size: tokens of a page; 0: contiguous.
        table: pages of each sequence in order, ``[batch, most pages]``, int32, on the device; entries behind a
            sequence's last page name page 0. ``None`` where contiguous.
    """

    k: Any
    v: Any
    lengths: tuple[int, ...]
    window: int = 0
    page_size: int = 0
    table: Any = None

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        return int(self.k.shape[1])

    @property
    def equal(self) -> bool:
        """Whether all sequences are of one length."""
        return len(set(self.lengths)) == 1

    @cached_property
    def begins(self) -> tuple[int, ...]:
        """The first token of each sequence that is in reach."""
        return tuple(max(0, n - self.window) if self.window else 0 for n in self.lengths)

    @property
    def keys(self) -> int:
        """Tokens in reach, of all sequences."""
        return sum(self.lengths) - sum(self.begins)

    @property
    def device(self) -> Any:
        """Where it lies."""
        return self.k.device

    def sequence(self, b: int, head: int) -> tuple[Any, Any]:
        """Keys and values in reach of one sequence and head, ``[keys, d]`` each; for checks, one page at a time."""
        import torch

        begin, end = self.begins[b], self.lengths[b]
        if self.table is None:
            return self.k[b, head, begin:end], self.v[b, head, begin:end]
        pages = self.table[b, : -(-end // self.page_size)].tolist()
        keys = torch.cat([self.k[page, head] for page in pages])
        values = torch.cat([self.v[page, head] for page in pages])
        return keys[begin:end], values[begin:end]

    def mask(self, first: int, count: int) -> Any:
        """Which of ``count`` tokens from ``first`` on each sequence sees, ``[batch, 1, 1, count]``, bool."""
        import torch

        at = torch.arange(first, first + count, device=self.device)
        begins = torch.tensor(self.begins, device=self.device)[:, None]
        ends = torch.tensor(self.lengths, device=self.device)[:, None]
        return ((at >= begins) & (at < ends))[:, None, None]


def lengths_by(p: ParamValues) -> tuple[int, ...]:
    """The lengths that the parameters name; as the work model counts them."""
    return lengths_of(int(p["batch"]), int(p["kv_len"]), str(p["lengths"]), int(p["length_seed"]))


def format_of(p: ParamValues) -> str:
    """The number format of keys and values."""
    return str(p["dtype"] if p["kv_dtype"] == "same" else p["kv_dtype"])


def pages_of(lengths: tuple[int, ...], page_size: int) -> list[int]:
    """Pages that each sequence takes."""
    return [-(-n // page_size) for n in lengths]


def tokens_allocated(p: ParamValues) -> int:
    """Tokens that the cache has room for."""
    page = int(p["page_size"])
    return sum(pages_of(lengths_by(p), page)) * page if page else int(p["batch"]) * int(p["kv_len"])


def make_cache(p: ParamValues, ctx: BuildContext) -> Cache:
    """The cache that the parameters name; pages lie in a random order, as after long service."""
    import torch

    lengths, page, fmt = lengths_by(p), int(p["page_size"]), format_of(p)
    heads, d = int(p["kv_heads"]), int(p["head_dim"])
    window = int(p["window"])
    if not page:
        shape = (int(p["batch"]), heads, int(p["kv_len"]), d)
        return Cache(ctx.tensor(shape, fmt), ctx.tensor(shape, fmt), lengths, window)
    counts = pages_of(lengths, page)
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(TABLE_SEED)).int()
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for b, part in enumerate(order.split(counts)):
        table[b, : len(part)] = part
    shape = (sum(counts), heads, page, d)
    return Cache(
        ctx.tensor(shape, fmt), ctx.tensor(shape, fmt), lengths, window, page, table.to(ctx.torch_device)
    )


Sequence = Callable[[int, int], tuple[Any, Any]]
"""Keys and values of a sequence and a head, in any floating format."""


def compare_decode(
    q: Any, out: Any, sequence: Sequence, lengths: tuple[int, ...], kv_heads: int, *, scale: float | None = None
) -> tuple[float, str]:
    """Error of the attention of one token of each sequence, against double precision.

    Args:
        q: ``[batch, heads, d]``.
        out: the result ``[batch, heads, d_v]``.
        sequence: what a sequence and a head see.
        lengths: of the sequences: the shortest and the longest are among those compared.
        kv_heads: ``heads / kv_heads`` successive query heads share one.
        scale: on the scores; ``None``: ``1 / sqrt(d)``.

    Returns:
        The largest relative error of the groups of heads looked at, and how many they were; NaN for a wrong shape,
        or where ``out`` is not finite.
    """
    import torch

    batch, heads, d = q.shape
    if out.shape[:2] != q.shape[:2] or out.ndim != 3:
        return nan, f"shape {tuple(out.shape)} instead of {(batch, heads, 'd')}"
    if not bool(torch.isfinite(out).all()):
        return nan, "full"
    group = heads // kv_heads
    scale = scale if scale is not None else 1.0 / sqrt(d)
    full = sum(lengths) * heads <= FULL_PAIRS
    by_length = sorted(range(batch), key=lambda b: lengths[b])
    chosen = [by_length[i] for i in spread(batch, batch if full else SEQUENCES)]
    worst = 0.0
    for b in chosen:
        for head in spread(kv_heads, kv_heads if full else KV_HEADS):
            keys, values = sequence(b, head)
            rows = slice(head * group, (head + 1) * group)
            seen = torch.ones(group, len(keys), dtype=torch.bool, device=q.device)
            ref, _ = attend_rows(q[b, rows], keys, values, seen, scale)
            error = relative_error(out[b, rows], ref)
            worst = error if not isfinite(error) else max(worst, error)
            if not isfinite(worst):
                return nan, "full"
    how = "full" if full else f"{min(kv_heads, KV_HEADS)} key-value heads of {len(chosen)} sequences"
    return worst, how
