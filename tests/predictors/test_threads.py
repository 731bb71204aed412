"""Work on several threads: all of it is done, errors come through, and matrix products keep to one thread meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from wattline.predictors import threads


@pytest.mark.parametrize("workers", [1, 2, None])
def test_every_part_is_done_once(workers: int | None) -> None:
    found: list[int] = []
    threads.run_all(found.append, range(20), workers=workers)
    assert sorted(found) == list(range(20))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_through(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        threads.run_all(lambda n: 1 / n, [1, 2, 0], workers=workers)


def test_products_keep_to_one_thread_meanwhile() -> None:
    libraries: Any = pytest.importorskip("threadpoolctl")
    seen: list[int] = []

    def look(_: int) -> None:
        seen.extend(each["num_threads"] for each in libraries.threadpool_info() if each["user_api"] == "blas")

    before = [each["num_threads"] for each in libraries.threadpool_info() if each["user_api"] == "blas"]
    threads.run_all(look, range(4), workers=2)
    assert set(seen) <= {1}
    assert [e["num_threads"] for e in libraries.threadpool_info() if e["user_api"] == "blas"] == before


def test_libraries_that_a_module_brings_are_held_too() -> None:
    """scipy brings a library of its own; a fresh process first makes a switch without it."""
    pytest.importorskip("threadpoolctl")
    code = (
        "import threadpoolctl\n"
        "from wattline.predictors import threads\n"
        "threads.run_all(print, range(0, 2), workers=2)\n"
        "with threads.one_thread('scipy.linalg'):\n"
        "    print({e['num_threads'] for e in threadpoolctl.threadpool_info() if e['user_api'] == 'blas'})\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "{1}"


def test_without_the_switch_the_work_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_controller", lambda _: None)
    names: set[int] = set()
    threads.run_all(lambda _: names.add(threading.get_ident()), range(8), workers=2)
    assert names
