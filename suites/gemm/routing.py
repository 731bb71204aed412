"""Which experts the tokens of a batch go to: drawn from a named distribution, the same for every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROUTINGS = ("balanced", "uniform", "power_law")


@dataclass(frozen=True)
class Routing:
    """The choices of all tokens, and those that one expert-parallel rank serves.

    Attributes:
        experts: chosen by each token, ``[tokens, top_k]``, int64, no expert twice in a row: as this rank counts them,
            and ``local`` where the expert is on another rank.
        weights: of the chosen experts, ``[tokens, top_k]``, fp32, rows that sum to one.
        local: experts on this rank.
        counts: pairs of token and expert for each of them.
        rank: which rank it is: the most loaded one, since the others wait for it.
    """

    experts: Any
    weights: Any
    local: int
    counts: tuple[int, ...]
    rank: int

    @property
    def pairs(self) -> int:
        """Pairs of token and expert that this rank serves."""
        return sum(self.counts)

    @property
    def imbalance(self) -> float:
        """Load of the busiest expert over the mean of all on this rank."""
        return max(self.counts) * self.local / self.pairs if self.pairs else 0.0


def draw(
    tokens: int, experts: int, top_k: int, *, routing: str = "balanced", skew: float = 1.0, ep: int = 1, seed: int = 0
) -> Routing:
    """Draw the choices.

    ``balanced``: all experts get the same, give or take one pair. ``uniform``: every token draws ``top_k`` different
    experts with equal chances. ``power_law``: the chance of the expert that is r-th in favour falls as ``r**-skew``
    (Zipf), drawn without replacement by Gumbel scores (Kool et al., "Stochastic beams and where to find them",
    arXiv:1903.06059). Which expert is in favour is random.

    Args:
        tokens, experts, top_k: of the layer.
        routing: one of :data:`ROUTINGS`.
        skew: exponent of the power law.
        ep: expert-parallel ranks; each holds ``experts / ep`` successive experts.
        seed: of the draw.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(experts, generator=generator)
    if routing == "balanced":
        slots = torch.arange(tokens * top_k).view(tokens, top_k) % experts
        chosen = names[slots[torch.randperm(tokens, generator=generator)]]
    else:
        chance = torch.zeros(experts, dtype=torch.float64)
        if routing == "power_law":
            chance = -skew * torch.log(torch.arange(1, experts + 1, dtype=torch.float64))
        noise = torch.rand(tokens, experts, generator=generator, dtype=torch.float64).clamp_(1e-300, 1 - 1e-16)
        chosen = names[(chance - torch.log(-torch.log(noise))).topk(top_k, dim=1).indices]
    weights = torch.softmax(torch.rand(tokens, top_k, generator=generator) * 2 - 1, dim=1)
    local = experts // ep
    load = torch.bincount(chosen.flatten() // local, minlength=ep)
    rank = int(load.argmax())
    own = chosen - rank * local
    own = torch.where((own >= 0) & (own < local), own, local)
    counts = torch.bincount(own.flatten(), minlength=local + 1)[:local]
    return Routing(own, weights, local, tuple(int(c) for c in counts), rank)
