"""The rooms of the house and the files that stand in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOMS = {
    "wattline": "src/wattline",
    "wattline.cli": "cli",
    "wattline.collectors": "collectors",
    "wattline.predictors": "predictors",
    "wattline.reports": "reports",
    "wattline.suites": "suites",
}


@pytest.fixture(scope="session")
def rooms(project_root: Path) -> dict[str, Path]:
    """Folder of each room by the name it is imported under."""
    return {name: project_root / folder for name, folder in ROOMS.items()}


def modules_of(rooms: dict[str, Path]) -> dict[str, Path]:
    """Every Python file of some rooms by its import name; a package's own name stands for its ``__init__``."""
    found = {}
    for room, folder in rooms.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((room, *parts)).removesuffix(".__init__")] = path
    return found


@pytest.fixture(scope="session")
def modules(rooms: dict[str, Path]) -> dict[str, Path]:
    """Every Python file of the package by its import name."""
    return modules_of(rooms)


@pytest.fixture(scope="session")
def release_rooms(
    rooms: dict[str, Path], project_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The rooms of a copy of the tree that holds what a release would, and no more."""
    copy = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in rooms.values():
        shutil.copytree(folder, copy / folder.relative_to(project_root), ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project_root / name, copy / name)
    return {name: copy / folder for name, folder in ROOMS.items()}


@pytest.fixture(scope="session")
def release_modules(release_rooms: dict[str, Path]) -> dict[str, Path]:
    """Every Python file of the copy by its import name."""
    return modules_of(release_rooms)
