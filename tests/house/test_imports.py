"""Import rules: which room may use which, and what stays unloaded until it is needed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

GROUND = "wattline"
MAY_IMPORT = {
    "wattline": set(),
    "wattline.collectors": {GROUND},
    "wattline.predictors": {GROUND},
    "wattline.reports": {GROUND, "wattline.predictors"},
    "wattline.suites": {GROUND, "wattline.collectors"},
    "wattline.cli": {GROUND, "wattline.collectors", "wattline.predictors", "wattline.reports", "wattline.suites"},
}
BARE = {"cli", "collectors", "predictors", "reports", "suites"}
HEAVY = {"torch", "pandas", "sklearn", "matplotlib", "pyarrow", "scipy", "triton"}
"""Libraries that take from a tenth of a second to seconds to load."""
LIGHT_ROOMS = {"wattline", "wattline.cli"}
"""Rooms in which no module loads a heavy library by being imported."""


class Import(NamedTuple):
    target: str
    line: int
    at_start: bool
    """Whether importing the module runs it (no function, and not for type checkers only)."""


def _room(name: str) -> str:
    """The room that a module of ours stands in."""
    head = ".".join(name.split(".")[:2])
    return head if head in MAY_IMPORT else GROUND


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _walk(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            assert isinstance(child, ast.If)
            for inner in child.body:
                yield inner, False
                yield from _walk(inner, False)
            for inner in child.orelse:
                yield inner, at_start
                yield from _walk(inner, at_start)
            continue
        inside = at_start and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from _walk(child, inside)


def imports_of(source: str, module: str, is_package: bool) -> list[Import]:
    """All imports of a module, written out in full: relative ones, and `import_module` with a literal, too."""
    found = []
    for node, at_start in _walk(ast.parse(source), True):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                base = ".".join([*parents, *filter(None, [node.module])])
            # `from wattline import suites` names a room in its second half.
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            names = [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        found += [Import(name, getattr(node, "lineno", 0), at_start) for name in names]
    return found


@pytest.fixture(scope="module")
def all_imports(modules: dict[str, Path]) -> dict[str, list[Import]]:
    return {
        name: imports_of(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
        for name, path in modules.items()
    }


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import torch.nn, os
from . import sibling
from ..suites import plan
from wattline import reports
if TYPE_CHECKING:
    import pandas
def later():
    import sklearn
    import_module("wattline.cli.main")
class Body:
    import scipy
try:
    import triton
except ImportError:
    pass
"""
    found = {i.target: i.at_start for i in imports_of(source, "wattline.predictors.model", False)}
    assert found == {
        "torch.nn": True, "os": True, "wattline.predictors.sibling": True, "wattline.suites.plan": True,
        "wattline.reports": True, "pandas": False, "sklearn": False, "wattline.cli.main": False, "scipy": True,
        "triton": True,
    }  # fmt: skip
    package = imports_of("from .a import b\nfrom .. import c", "wattline.suites.gemm", True)
    assert [i.target for i in package] == ["wattline.suites.gemm.a.b", "wattline.suites.c"]


def test_rooms_import_only_what_they_may(all_imports: dict[str, list[Import]]) -> None:
    wrong = [
        f"{module}:{line} imports {target}"
        for module, found in all_imports.items()
        for target, line, _ in found
        if target.split(".")[0] == "wattline"
        and _room(target) != _room(module)
        and _room(target) not in MAY_IMPORT[_room(module)]
    ]
    assert not wrong


def test_rooms_are_imported_by_their_full_names(all_imports: dict[str, list[Import]], project_root: Path) -> None:
    found = dict(all_imports)
    for path in sorted((project_root / "tests").rglob("*.py")):
        found[str(path.relative_to(project_root))] = imports_of(path.read_text(encoding="utf-8"), path.stem, False)
    bare = [
        f"{module}:{i.line} imports {i.target}"
        for module, imports in found.items()
        for i in imports
        if i.target.split(".")[0] in BARE
    ]
    assert not bare


def test_light_rooms_load_nothing_heavy_at_start(all_imports: dict[str, list[Import]]) -> None:
    heavy = [
        f"{module}:{i.line} imports {i.target}"
        for module, found in all_imports.items()
        for i in found
        if i.at_start and i.target.split(".")[0] in HEAVY and _room(module) in LIGHT_ROOMS
    ]
    assert not heavy


def test_the_package_of_each_room_loads_nothing_heavy(
    all_imports: dict[str, list[Import]], modules: dict[str, Path]
) -> None:
    heavy = [
        f"{module}:{i.line} imports {i.target}"
        for module, found in all_imports.items()
        for i in found
        if modules[module].name == "__init__.py" and i.at_start and i.target.split(".")[0] in HEAVY
    ]
    assert not heavy


@pytest.mark.parametrize(
    "module",
    [
        "wattline", "wattline.case", "wattline.device", "wattline.record", "wattline.run", "wattline.frame",
        "wattline.stats", "wattline.axes", "wattline.workmodels.gemm", "wattline.cli", "wattline.cli.main",
        "wattline.collectors", "wattline.predictors", "wattline.reports", "wattline.suites", "wattline.suites.registry",
    ],
)  # fmt: skip
def test_start_up_loads_nothing_heavy(module: str, modules: dict[str, Path], python_json: Callable[..., Any]) -> None:
    """What the command line touches before it knows its command, seen in `sys.modules` of a fresh process."""
    assert module in modules
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in python_json(code)}
    assert not loaded & (HEAVY | {"numpy"})


def test_every_promised_name_is_there(run_python: Callable[..., Any]) -> None:
    done = run_python("import wattline; [getattr(wattline, n) for n in wattline.__all__]; print(wattline.__version__)")
    assert done.returncode == 0, done.stderr
    assert run_python("import wattline; wattline.nonsense").stderr.rstrip().endswith("has no attribute 'nonsense'")
