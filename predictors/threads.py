"""Work on threads of our own: libraries of linear algebra then keep to one each."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")


@functools.lru_cache(maxsize=2)
def _controller(scipy: bool) -> Any:
    """The libraries' switch, of threadpoolctl, which scikit-learn brings; ``None`` without it."""
    try:
        return import_module("threadpoolctl").ThreadpoolController()
    except ImportError:
        return None


def one_thread(*modules: str) -> contextlib.AbstractContextManager[Any]:
    """While it is entered, matrix products keep to one thread.

    Many small ones are quicker so: threads that meet at the end of each wait for each other, beside other work for
    ten times as long as they compute.

    Args:
        modules: imported first, as libraries that come later are not held.
    """
    for name in modules:
        import_module(name)
    controller = _controller("scipy.linalg" in sys.modules)
    found: contextlib.AbstractContextManager[Any] = (
        controller.limit(limits=1, user_api="blas") if controller else contextlib.nullcontext()
    )
    return found


def run_all(work: Callable[[T], object], parts: Iterable[T], workers: int | None = None) -> None:
    """Call ``work`` with each part, on as many threads as there are cores.

    Each thread has a core to itself. Were the matrix products in it to use threads as well, these would wait for each
    other: on two cores that takes twice the time.

    Args:
        work: what to do; it should let go of the interpreter, as numpy and compiled loops do.
        parts: its arguments.
        workers: most threads; default: the cores that this process may use.
    """
    parts = list(parts)
    count = min(len(parts), workers or len(os.sched_getaffinity(0)))
    if count <= 1:
        for part in parts:
            work(part)
        return
    with one_thread(), ThreadPoolExecutor(count) as pool:
        list(pool.map(work, parts))
