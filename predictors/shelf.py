"""Finding a predictor: a bundle file, a run folder, or the name of a bundle that ships with the package."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from wattline.errors import BundleError, unknown_name
from wattline.predictors.bundle import SUFFIX

if TYPE_CHECKING:
    from wattline.predictors.predictor import KernelPredictor

IN_RUN = "predictor.wl"
"""Name of the bundle in a run folder."""


def shipped() -> list[str]:
    """Names of the bundles that ship with the package."""
    folder = resources.files("wattline.predictors") / "bundles"
    if not folder.is_dir():
        return []
    return sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX))


def load(source: str | os.PathLike[str]) -> KernelPredictor:
    """A fitted predictor.

    Args:
        source: a ``.wl`` file, a run folder that holds ``predictor.wl``, or the name of a shipped bundle.

    Raises:
        BundleError: the file is damaged, foreign or newer, or the run folder has no predictor yet.
        UnknownNameError: neither a path nor a shipped bundle.
    """
    from wattline.predictors.predictor import KernelPredictor

    path = Path(source)
    if path.is_dir():
        if not (path / IN_RUN).is_file():
            raise BundleError(
                f"the folder {path} holds no predictor",
                why=f"it has no {IN_RUN}",
                todo=f"fit one: `wattline fit {path}`",
            )
        return KernelPredictor.load(path / IN_RUN)
    name = os.fspath(source)
    if path.is_file() or path.suffix == SUFFIX or os.sep in name:
        return KernelPredictor.load(path)
    names = shipped()
    if name not in names:
        error = unknown_name("predictor", name, names)
        error.todo = "give a .wl file, or a run folder that `wattline fit` has learned from"
        raise error
    with resources.as_file(resources.files("wattline.predictors") / "bundles" / f"{name}{SUFFIX}") as file:
        return KernelPredictor.load(file)
