"""How long `wattline --help` and `wattline list` take beside a bare two-command Typer program.

Run with ``pytest tests/benchmarks/test_startup.py --benchmark-only``; the ratio of medians is in ``extra_info``.
Both programs run in turn, so that whatever else the machine does falls on both alike. On a terminal both draw with
Rich, so `list` is set beside the bare program's `--help` there, and beside a bare command where output is plain.
"""

from __future__ import annotations

import contextlib
import os
import pty
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BARE = '''
import typer

app = typer.Typer()


@app.command()
def one(name: str = "world") -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


@app.command()
def two(name: str = "world") -> None:
    """Say goodbye."""
    typer.echo(f"goodbye {name}")


app()
'''
ROUNDS = 15


def wall_s(*command: str, terminal: bool = False) -> float:
    """Seconds of one process, its output into nothing or onto a pseudo-terminal."""
    leader, follower = pty.openpty() if terminal else (-1, os.open(os.devnull, os.O_WRONLY))
    begin = time.perf_counter()
    try:
        process = subprocess.Popen([sys.executable, *command], stdout=follower, stderr=subprocess.DEVNULL)
        os.close(follower)
        if terminal:
            with contextlib.suppress(OSError):  # how Linux says that the other side is closed
                while os.read(leader, 65536):
                    pass
        assert process.wait(timeout=60) == 0
    finally:
        if terminal:
            os.close(leader)
    return time.perf_counter() - begin


@pytest.mark.parametrize(
    ("ours", "theirs", "terminal"),
    [("--help", "--help", False), ("--help", "--help", True), ("list", "one", False), ("list", "--help", True)],
)
def test_start_up_beside_a_bare_typer_program(
    benchmark: Any, tmp_path: Path, ours: str, theirs: str, terminal: bool
) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(BARE)
    wall_s(str(bare), theirs)
    wall_s("-m", "wattline.cli", ours)
    bare_s: list[float] = []

    def before() -> None:
        bare_s.append(wall_s(str(bare), theirs, terminal=terminal))

    benchmark.pedantic(
        wall_s, ("-m", "wattline.cli", ours), {"terminal": terminal}, setup=before, rounds=ROUNDS, iterations=1
    )
    ratio = statistics.median(benchmark.stats.stats.data) / statistics.median(bare_s)
    benchmark.extra_info |= {"bare_median_s": statistics.median(bare_s), "ratio": ratio, "goal": 1.5}
    assert len(bare_s) == ROUNDS  # as many of theirs as of ours; the ratio is read, not asserted
