"""Which keys a query sees: the same rule for every implementation, every work model and every check.

Query ``i`` of ``q_len`` stands at position ``kv_len - q_len + i``: the queries are the last tokens of the context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mask:
    """A mask as a rule.

    Attributes:
        q_len, kv_len: queries and keys.
        causal: a query sees no key behind its own position.
        window: with ``causal``, the most recent keys that it sees, its own among them; 0: all.
        sink: with ``window``, the first keys that every query sees besides.
    """

    q_len: int
    kv_len: int
    causal: bool = True
    window: int = 0
    sink: int = 0

    @property
    def trivial(self) -> bool:
        """Whether every query sees every key."""
        reach = not self.window or self.window >= self.kv_len
        return not self.causal or (self.q_len == 1 and reach)

    @property
    def square(self) -> bool:
        """Whether it is the plain causal triangle of as many queries as keys."""
        return self.causal and self.q_len == self.kv_len and (not self.window or self.window >= self.kv_len)

    def visible(self, rows: Any) -> Any:
        """The keys that some queries see.

        Args:
            rows: indices of queries ``[r]``, a tensor of int64.

        Returns:
            ``[r, kv_len]``, bool, on the device of ``rows``.
        """
        import torch

        keys = torch.arange(self.kv_len, device=rows.device)
        if not self.causal:
            return torch.ones(len(rows), self.kv_len, dtype=torch.bool, device=rows.device)
        position = (rows + (self.kv_len - self.q_len))[:, None]
        seen = keys <= position
        if self.window:
            seen = seen & ((keys > position - self.window) | (keys < self.sink))
        return seen

    def dense(self, device: Any) -> Any:
        """The whole mask ``[q_len, kv_len]``, bool."""
        import torch

        return self.visible(torch.arange(self.q_len, device=device))
