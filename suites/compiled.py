"""Compilers of implementations: torch.compile, once, before anything is timed, and its cost kept apart; and numba."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from wattline.reasons import Reason
from wattline.suites.workload import Machine, ParamValues, Requirement

DYNAMO_LIMIT = 4096
"""Specialisations of one function: each shape is compiled for itself, as whoever tunes a kernel would."""


def compiler() -> Requirement:
    """What torch.compile needs: a C++ compiler for a CPU, Triton for a GPU."""

    def unmet(_: ParamValues, machine: Machine) -> Reason | None:
        from importlib.util import find_spec
        from os import environ

        if machine.kind == "cpu":
            asked = environ.get("CXX", "")
            if any(shutil.which(name) for name in (asked, "g++", "clang++") if name):
                return None
            return Reason("missing_compiler", "torch.compile needs a C++ compiler on a CPU, and there is no g++")
        if find_spec("triton") is None:
            return Reason("missing_library", "torch.compile needs the Python package triton on a GPU")
        return None

    return Requirement("torch.compile: a C++ compiler on a CPU, Triton on a GPU", unmet)


_compiled: dict[Any, Any] = {}


def compiled(function: Callable[..., Any], *example: Any, mode: str | None = None) -> tuple[Callable[..., Any], float]:
    """A function compiled for the shapes, formats and layouts of ``example``.

    Args:
        function: of tensors; the same object for all kernels of one kind, so that equal shapes are compiled once.
        example: the arguments that it will be called with.
        mode: as ``torch.compile`` takes it.

    Returns:
        The compiled function and the seconds that its first call took: compilation and one run.
    """
    import torch
    import torch._dynamo

    if (function, mode) not in _compiled:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, DYNAMO_LIMIT)
        torch._dynamo.config.accumulated_recompile_limit = max(
            torch._dynamo.config.accumulated_recompile_limit, DYNAMO_LIMIT
        )
        _compiled[function, mode] = torch.compile(function, dynamic=False, fullgraph=True, mode=mode)
    ready = _compiled[function, mode]
    begin = time.perf_counter()
    ready(*example)
    return ready, time.perf_counter() - begin


def numba_for_loops() -> Any:
    """numba, with its parallel loops on as many threads as torch uses at present.

    When numba's OpenMP layer starts, it sets the number of threads for all users of that library in the process, torch
    among them: what torch had is put back, or its speed would depend on which kernels were built before.
    """
    import torch

    numba: Any = import_module("numba")
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, int(numba.config.NUMBA_NUM_THREADS)))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return numba
