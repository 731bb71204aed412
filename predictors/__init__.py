"""Predictors: what the records teach. Analytical and learned models of time, power and energy, with intervals.

Importing this package loads neither torch nor scikit-learn nor pandas; loading a bundle and asking for an estimate
loads numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "DeviceSpec",
    "Estimate",
    "Evaluation",
    "Explanation",
    "Imported",
    "KernelPredictor",
    "evaluate",
    "fit_run",
    "from_frame",
    "from_run",
    "import_data",
    "load",
    "read_data",
    "training_data",
]

_HOME = {
    "DeviceSpec": "wattline.device",
    "Estimate": "wattline.predictors.estimate",
    "Evaluation": "wattline.predictors.evaluation",
    "Explanation": "wattline.predictors.estimate",
    "Imported": "wattline.predictors.imported",
    "KernelPredictor": "wattline.predictors.predictor",
    "evaluate": "wattline.predictors.evaluation",
    "fit_run": "wattline.predictors.datasets",
    "from_frame": "wattline.predictors.datasets",
    "from_run": "wattline.predictors.datasets",
    "import_data": "wattline.predictors.importers",
    "load": "wattline.predictors.shelf",
    "read_data": "wattline.predictors.imported",
    "training_data": "wattline.predictors.gather",
}

if TYPE_CHECKING:
    from wattline.device import DeviceSpec
    from wattline.predictors.datasets import fit_run, from_frame, from_run
    from wattline.predictors.estimate import Estimate, Explanation
    from wattline.predictors.evaluation import Evaluation, evaluate
    from wattline.predictors.gather import training_data
    from wattline.predictors.imported import Imported, read_data
    from wattline.predictors.importers import import_data
    from wattline.predictors.predictor import KernelPredictor
    from wattline.predictors.shelf import load


def __getattr__(name: str) -> Any:
    # Loaded on first use: a command that only lists pays for none of them.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
