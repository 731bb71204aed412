"""The front door: what `make` offers, what it would do, and what it says when something is missing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Done = subprocess.CompletedProcess[str]
GOALS = {"bench", "docs-figures", "test", "lint", "smoke", "report", "compare", "clean", "help", "wheel"}

if shutil.which("make") is None:
    pytest.skip("make is not installed", allow_module_level=True)


@pytest.fixture
def make(tmp_path: Path, project_root: Path) -> Callable[..., Done]:
    """Runs make on a copy of the Makefile, so that nothing of the checkout is touched."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(project_root / name, tmp_path)
    shutil.copytree(project_root / "tools", tmp_path / "tools")
    for room in ("src/wattline", "cli", "collectors", "predictors", "reports", "suites"):
        shutil.copytree(project_root / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    # The options of a make that runs these tests are not meant for this one.
    inherited = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VENV", "PYTHON")}

    def run(*arguments: str, **environment: str) -> Done:
        return subprocess.run(
            ["make", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            env=inherited | environment,
        )  # fmt: skip

    return run


def dependencies(project_root: Path, *arguments: str | Path, python: str = sys.executable) -> Done:
    script = project_root / "tools" / "check_dependencies.py"
    return subprocess.run(
        [python, str(script), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def pyproject(folder: Path, *needs: str) -> Path:
    path = folder / "pyproject.toml"
    listed = ", ".join(f'"{n}"' for n in needs)
    path.write_text(f'[project]\nname = "p"\nversion = "1"\ndependencies = [{listed}]\n', encoding="utf-8")
    return path


def test_help_lists_every_goal_with_one_line_each(make: Callable[..., Done]) -> None:
    done = make("help")
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^  make ([\w-]+) +(\S.*)$", done.stdout, re.MULTILINE)
    assert {goal for goal, _ in lines} == GOALS
    assert len(lines) == len(GOALS)


def test_make_alone_shows_the_help(make: Callable[..., Done]) -> None:
    assert make().stdout == make("help").stdout


def test_an_existing_python_gets_the_package_offline_into_a_folder_of_the_checkout(make: Callable[..., Done]) -> None:
    done = make("-n", "bench", "VENV=0", "PYTHON=python3")
    assert done.returncode == 0, done.stderr
    install = next(line for line in done.stdout.splitlines() if "pip install" in line)
    for flag in ("--no-index", "--no-deps", "--no-build-isolation", "--target .site"):
        assert flag in install
    assert "tools/check_dependencies.py" in done.stdout.split(install)[0], "dependencies are checked first"
    assert "-m venv" not in done.stdout
    assert re.search(r'PYTHONPATH="\S+/\.site\S*" python3 -m wattline.cli bench --preset standard', done.stdout)


def test_the_environment_is_made_from_pyproject_and_constraints(make: Callable[..., Done]) -> None:
    done = make("-n", "bench")
    assert "-m venv" in done.stdout
    assert '-c constraints.txt -e .' in done.stdout
    assert "[test" not in done.stdout, "a benchmark needs no test libraries"
    assert ".[test,lint,triton]" in make("-n", "test").stdout


def test_constraints_can_be_left_out(make: Callable[..., Done]) -> None:
    done = make("-n", "bench", "CONSTRAINTS=")
    assert re.search(r'pip install\s+(-q\s+)?-e \.', done.stdout)
    assert "-c " not in next(line for line in done.stdout.splitlines() if "pip install" in line).split("pip install")[1]


@pytest.mark.parametrize(
    ("goal", "preset"), [(["bench"], "standard"), (["smoke"], "smoke"), (["bench", "PRESET=quick"], "quick")]
)
def test_presets_folders_and_flags_reach_the_program(make: Callable[..., Done], goal: list[str], preset: str) -> None:
    done = make("-n", *goal, "OUT=somewhere", "ARGS=--budget 10m")
    assert f'bench --preset {preset} --out "somewhere" --budget 10m' in done.stdout


def test_the_callers_environment_does_not_steer_a_run(make: Callable[..., Done]) -> None:
    done = make("-n", "bench", OUT="elsewhere", PRESET="full", ARGS="--no-such-flag")
    assert "wattline.cli bench --preset standard" in done.stdout
    assert "elsewhere" not in done.stdout
    assert "--no-such-flag" not in done.stdout


def test_another_value_of_venv_is_refused(make: Callable[..., Done]) -> None:
    done = make("bench", "VENV=maybe")
    assert done.returncode == 2
    assert "VENV must be 0 or 1, not 'maybe'" in done.stderr


def test_a_missing_package_is_named_before_anything_is_installed(make: Callable[..., Done], tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"torch>=2.6",', '"no-such-package-of-anyone>=3.1",'), encoding="utf-8")
    done = make("bench", "VENV=0", f"PYTHON={sys.executable}")
    assert done.returncode == 2
    assert "missing: no-such-package-of-anyone >=3.1" in done.stderr
    assert not (tmp_path / ".site").exists()


def test_the_installed_folder_follows_the_sources(make: Callable[..., Done], tmp_path: Path) -> None:
    if dependencies(tmp_path, "--build").returncode != 0:
        pytest.skip("this Python cannot build the package: " + dependencies(tmp_path, "--build").stderr.strip())
    options = ("runtime", "VENV=0", f"PYTHON={sys.executable}")
    first = make(*options)
    assert first.returncode == 0, first.stderr
    assert "installing" in first.stdout
    assert (tmp_path / ".site/wattline/devices.toml").is_file()
    assert make(*options).stdout == "", "nothing changed, nothing is done"
    (tmp_path / "src/wattline/extra.py").write_text('"""More."""\n', encoding="utf-8")
    assert make(*options).returncode == 0
    assert (tmp_path / ".site/wattline/extra.py").is_file()
    (tmp_path / "src/wattline/extra.py").unlink()
    assert make(*options).returncode == 0
    assert not (tmp_path / ".site/wattline/extra.py").exists(), "a removed module must not come back"


def test_a_report_without_a_run_says_what_to_do(make: Callable[..., Done], tmp_path: Path) -> None:
    if dependencies(tmp_path, "--build").returncode != 0:
        pytest.skip("this Python cannot build the package: " + dependencies(tmp_path, "--build").stderr.strip())
    done = make("report", "VENV=0", f"PYTHON={sys.executable}")
    assert done.returncode == 2
    assert "there is no run under runs/" in done.stderr
    assert "make bench" in done.stderr


def test_compare_needs_two_folders(make: Callable[..., Done], tmp_path: Path) -> None:
    if dependencies(tmp_path, "--build").returncode != 0:
        pytest.skip("this Python cannot build the package: " + dependencies(tmp_path, "--build").stderr.strip())
    done = make("compare", "VENV=0", f"PYTHON={sys.executable}")
    assert done.returncode == 2
    assert "two run folders are needed" in done.stderr
    dry = make("-n", "compare", "VENV=0", f"PYTHON={sys.executable}", "A=runs/a", "B=runs/b", "ARGS=--margin 1%")
    assert 'wattline.cli compare "runs/a" "runs/b" --margin 1%' in dry.stdout


def test_clean_keeps_runs_and_the_environment(make: Callable[..., Done], tmp_path: Path) -> None:
    for kept in ("runs/one", ".venv/bin"):
        (tmp_path / kept).mkdir(parents=True)
    for built in ("build/lib", "dist", ".site", "wattline.egg-info", "suites/__pycache__"):
        (tmp_path / built).mkdir(parents=True)
    assert make("clean").returncode == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert {"runs", ".venv", "suites"} <= left
    assert not left & {"build", "dist", ".site", "wattline.egg-info"}
    assert not (tmp_path / "suites/__pycache__").exists()
    assert make("clean", "ALL=1").returncode == 0
    assert not (tmp_path / ".venv").exists()
    assert (tmp_path / "runs/one").is_dir()


def test_dependencies_that_fit_pass_silently(project_root: Path, tmp_path: Path) -> None:
    done = dependencies(project_root, "--pyproject", pyproject(tmp_path, "pytest>=1", "hypothesis"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_each_dependency_that_does_not_fit_gets_one_line(project_root: Path, tmp_path: Path) -> None:
    needs = ("pytest>=1", "no-such-package-of-anyone>=2", "pytest>=999", "nor-this-one; python_version < '3'")
    done = dependencies(project_root, "--pyproject", pyproject(tmp_path, *needs))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "missing: no-such-package-of-anyone >=2"
    assert re.fullmatch(r"does not fit: pytest [\d.]+ is installed, wattline needs pytest >=999", lines[1])
    assert len(lines) == 4, "one line each, then the count and what to do"
    assert sys.executable in lines[2]
    assert "VENV=1" in lines[3]


def test_the_python_that_runs_the_tests_has_what_the_package_states(project_root: Path) -> None:
    done = dependencies(project_root)
    assert done.returncode == 0, done.stderr


def test_an_old_python_is_told_so(project_root: Path) -> None:
    script = project_root / "tools" / "check_dependencies.py"
    pretend = "import runpy, sys; sys.version_info = (3, 9, 1); sys.argv = sys.argv[1:]; "
    pretend += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", pretend, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Python 3.9 is too old: wattline needs 3.11 or newer" in done.stderr
    assert "PYTHON=" in done.stderr


def test_an_old_python_can_read_the_script_that_tells_it(project_root: Path) -> None:
    source = (project_root / "tools" / "check_dependencies.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    above = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    # Newer modules (tomllib is of 3.11) are imported after the version has been looked at.
    names = {alias.name.split(".")[0] for n in above for alias in n.names}
    assert names <= {"argparse", "importlib", "os", "shutil", "sys"}
