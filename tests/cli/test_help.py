"""Help fits a screen, shows an example, and version and bare call work."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]


def test_help_lists_every_command_in_one_screen(program: Program) -> None:
    from wattline.cli.lazy import COMMANDS

    done = program("--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 40
    for name, text in COMMANDS.items():
        assert any(line.split()[:1] == [name] and text in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", ["", "bench", "report"])
def test_the_short_flag_shows_the_same_help(name: str, program: Program) -> None:
    command = [name] if name else []
    short = program(*command, "-h")
    assert short.returncode == 0
    assert short.stdout == program(*command, "--help").stdout


def test_without_a_command_it_shows_the_help(program: Program) -> None:
    assert program().stdout.strip() == program("--help").stdout.strip()


def test_version(program: Program) -> None:
    from wattline import __version__

    assert program("--version").stdout == f"wattline {__version__}\n"


@pytest.mark.parametrize(
    "name",
    [
        "doctor", "list", "plan", "calibrate", "bench", "import", "fit", "predict", "links", "report", "compare",
        "export",
    ],
)
def test_each_command_has_one_screen_of_help_with_an_example(program: Program, name: str) -> None:
    done = program(name, "--help")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 120
    assert f"Usage: wattline {name}" in done.stdout
    assert any("Example" in line and f"wattline {name}" in line for line in lines)
