"""Packaging: what stands in the tree is what a wheel carries, under one name and nothing beside it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

MAY_BE_EMPTY = {("wattline.predictors", "bundles/*.wl")}
"""Data patterns of parts that may stand empty: shipped bundles are made by a release."""
MOST_LINES = 420


@pytest.fixture(scope="module")
def setuptools_table(project_root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = table["tool"]["setuptools"]
    return found


def test_the_packages_are_those_of_the_tree(setuptools_table: dict[str, Any], modules: dict[str, Path]) -> None:
    """A package left out works from a checkout and is silently missing from the wheel."""
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    assert sorted(setuptools_table["packages"]) == sorted(packages)


def test_no_module_stands_outside_a_package(modules: dict[str, Path]) -> None:
    stray = [str(path) for path in modules.values() if not (path.parent / "__init__.py").is_file()]
    assert not stray


def test_the_rooms_are_mapped_where_they_stand(
    setuptools_table: dict[str, Any], rooms: dict[str, Path], project_root: Path
) -> None:
    mapped = {name: project_root / folder for name, folder in setuptools_table["package-dir"].items()}
    assert mapped == rooms
    assert not (project_root / "wattline").exists()  # the current directory would shadow the installed package


def test_every_data_pattern_finds_a_file(setuptools_table: dict[str, Any], rooms: dict[str, Path]) -> None:
    for package, patterns in setuptools_table["package-data"].items():
        for pattern in patterns:
            if (package, pattern) not in MAY_BE_EMPTY:
                assert list(rooms[package].glob(pattern)), f"{package}: {pattern} matches nothing"


def test_every_data_file_of_the_tree_is_named(setuptools_table: dict[str, Any], rooms: dict[str, Path]) -> None:
    named = {
        path
        for package, patterns in setuptools_table["package-data"].items()
        for pattern in patterns
        for path in rooms[package].glob(pattern)
    }
    there = {
        path
        for folder in rooms.values()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts and path.name[0] != "."
    }
    assert sorted(there - named) == []


def test_files_are_short_enough_to_read(modules: dict[str, Path]) -> None:
    long = {n: c for n, p in modules.items() if (c := len(p.read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert not long


@pytest.fixture(scope="module")
def wheel(release_rooms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built, without network, from a copy of what a release would hold."""
    pytest.importorskip("build", reason="building a wheel needs the package `build` (extra: test)")
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"building without isolation needs setuptools >= 77, found {version}")
    out = tmp_path_factory.mktemp("dist")
    tree = release_rooms["wattline.cli"].parent
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"]
    command += ["--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd="/")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.slow
def test_the_source_archive_holds_the_whole_repository(project_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("build", reason="building an archive needs the package `build` (extra: test)")
    if shutil.which("git") is None or not (project_root / ".git").exists():
        pytest.skip("what belongs to the repository is asked of git, and this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False, cwd=project_root)
    if listed.returncode != 0:
        pytest.skip(f"git does not list the files: {listed.stderr.strip()}")
    files = {name for name in listed.stdout.split("\0") if (project_root / name).is_file()}
    for name in files:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project_root / name, tmp_path / "tree" / name)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check"]
    command += ["--outdir", str(tmp_path), str(tmp_path / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd="/")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert files <= names
    made = {name for name in names - files if not name.startswith("wattline.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_nothing_else(
    wheel: Path, release_modules: dict[str, Path], release_rooms: dict[str, Path], setuptools_table: dict[str, Any]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"wattline", f"{'-'.join(wheel.stem.split('-')[:2])}.dist-info"}
    expected = {
        name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        for name, path in release_modules.items()
    }
    for package, patterns in setuptools_table["package-data"].items():
        for pattern in patterns:
            room = release_rooms[package]
            files = (path.relative_to(room).as_posix() for path in room.glob(pattern) if path.is_file())
            expected |= {f"{package.replace('.', '/')}/{path}" for path in files}
    assert {"wattline/py.typed", "wattline/devices.toml"} <= expected
    assert {name for name in names if name.startswith("wattline/")} == expected


@pytest.mark.slow
def test_the_wheel_names_its_command_licence_and_requirements(unpacked: Path, project_root: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    assert "wattline = wattline.cli.main:main" in (info / "entry_points.txt").read_text()
    assert (info / "licenses" / "LICENSE").read_text() == (project_root / "LICENSE").read_text()
    metadata = (info / "METADATA").read_text()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.6" in metadata


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(unpacked: Path, release_modules: dict[str, Path]) -> None:
    """Every module imports from the unpacked wheel, in a process that knows neither the checkout nor its site hooks."""
    code = """
import importlib, json, sys
# -S leaves out the .pth files through which an editable install would lead back to the checkout.
site, dependencies, names = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
sys.path[:0] = [site]
sys.path += dependencies
import wattline
from wattline.device import known_devices
from wattline.workmodels import work_of
assert len(known_devices()) >= 30
assert work_of("gemm.dense", {"m": 2, "n": 2, "k": 2, "dtype": "fp32"}).total_flops == 16
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":  # there are no wheels of it for every platform; only kernels import it
            raise
files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "wattline"]
print(json.dumps([f for f in files if not f.startswith(site)]))
"""
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    names = sorted(name for name in release_modules if not name.endswith("__main__"))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(unpacked), json.dumps(dependencies), *names],
        capture_output=True, text=True, timeout=240, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
