"""Decisions that need nothing but the cost of kernels: tiles, implementations, offloading, collective algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Choice",
    "Front",
    "Link",
    "Ranking",
    "Rates",
    "Split",
    "Topology",
    "best",
    "choose_algorithm",
    "grid",
    "implementations",
    "pareto",
    "split_optimizer",
]

_HOME = {
    "Choice": "choices", "Ranking": "choices", "best": "choices", "grid": "choices", "implementations": "choices",
    "Front": "fronts", "pareto": "fronts",
    "Rates": "offload", "Split": "offload", "split_optimizer": "offload",
    "Link": "collectives", "Topology": "collectives", "choose_algorithm": "collectives",
}  # fmt: skip

if TYPE_CHECKING:
    from wattline.predictors.planning.choices import Choice, Ranking, best, grid, implementations
    from wattline.predictors.planning.collectives import Link, Topology, choose_algorithm
    from wattline.predictors.planning.fronts import Front, pareto
    from wattline.predictors.planning.offload import Rates, Split, split_optimizer


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"wattline.predictors.planning.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
