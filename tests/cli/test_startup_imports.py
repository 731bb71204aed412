"""What the command line loads: a person who asks for help does not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "numpy", "pandas", "sklearn", "scipy", "matplotlib", "pyarrow"}
COMMANDS = (
    "doctor", "list", "plan", "calibrate", "bench", "import", "fit", "predict", "links", "report", "compare", "export",
)  # fmt: skip

_SPY = """
import sys
from wattline.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(" ".join(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
sys.exit(code)
"""


def loaded(*args: str, cwd: Path) -> set[str]:
    """The top-level modules that a process has loaded after running the command line."""
    done = subprocess.run(
        [sys.executable, "-c", _SPY, *args], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def of_typer() -> set[str]:
    """The top-level modules that typer loads on its own."""
    code = "import sys, typer; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "gemm.dense"],
        ["list", "presets"],
        ["list", "devices"],
        ["list", "formats"],
        ["plan", "--preset", "smoke", "--device", "cpu"],
        *([name, "--help"] for name in COMMANDS),
    ],
    ids=" ".join,
)
def test_loads_nothing_heavy(args: list[str], tmp_path: Path, of_typer: set[str]) -> None:
    modules = loaded(*args, cwd=tmp_path)
    assert not modules & HEAVY
    # Plain text into a pipe. Older versions of typer load rich themselves, whatever is asked of them.
    assert "rich" not in modules - of_typer


def test_help_imports_no_command(tmp_path: Path) -> None:
    spy = _SPY.replace('name.split(".")[0]', "name")
    done = subprocess.run(
        [sys.executable, "-c", spy, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    names = set(done.stderr.split())
    assert "wattline.cli.lazy" in names
    assert not {f"wattline.cli.{command}" for command in COMMANDS} & names


def test_every_command_of_the_table_is_a_module_with_an_example() -> None:
    from importlib import import_module

    from wattline.cli.lazy import COMMANDS as TABLE

    assert tuple(TABLE) == COMMANDS
    for name in TABLE:
        module = import_module(f"wattline.cli.{name}")
        assert f"wattline {name}" in module.EXAMPLES
        assert callable(module.command)
