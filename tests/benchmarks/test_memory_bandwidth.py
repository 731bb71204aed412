"""Our loops against the same in C, compiled here, and against numpy: ``pytest tests/benchmarks -k memory``.

Both are timed in turns on the same memory, so that a busy machine disturbs them alike; the ratio stands in
``extra_info``. Within 3 % is what a quiet machine shows.
"""

from __future__ import annotations

import ctypes
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
COUNT = 8 * 2**20  # doubles of each array: 64 MiB
STREAM_C = """
#include <stddef.h>
void copy(double *restrict o, const double *restrict a, const double *restrict b, size_t n)
{ for (size_t i = 0; i < n; i++) o[i] = a[i]; }
void scale(double *restrict o, const double *restrict a, const double *restrict b, size_t n)
{ for (size_t i = 0; i < n; i++) o[i] = 0.75 * a[i]; }
void add(double *restrict o, const double *restrict a, const double *restrict b, size_t n)
{ for (size_t i = 0; i < n; i++) o[i] = a[i] + b[i]; }
void triad(double *restrict o, const double *restrict a, const double *restrict b, size_t n)
{ for (size_t i = 0; i < n; i++) o[i] = a[i] + 0.75 * b[i]; }
"""


@pytest.fixture(scope="module")
def stream_c(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("stream")
    (folder / "stream.c").write_text(STREAM_C)
    subprocess.run(
        [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", "stream.so", "stream.c"], cwd=folder, check=True
    )
    return ctypes.CDLL(str(Path(folder) / "stream.so"))


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 15) -> tuple[float, float]:
    """Median seconds of each, taken in turns."""
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * rounds):
        begin = time.perf_counter()
        (ours, theirs)[turn % 2]()
        spent[turn % 2].append(time.perf_counter() - begin)
    return statistics.median(spent[0]), statistics.median(spent[1])


@pytest.mark.parametrize("kernel", ["copy", "scale", "add", "triad"])
def test_against_stream_in_c(benchmark: Any, stream_c: Any, kernel: str) -> None:
    from wattline.suites.host.buffers import host_array
    from wattline.suites.host.loops import loops

    o, a, b = (host_array(COUNT, "float64") for _ in range(3))
    o[:], a[:], b[:] = 0, 1, 2
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (o, a, b)]
    run, theirs = loops()[kernel], getattr(stream_c, kernel)

    def c() -> None:
        theirs(*pointers, ctypes.c_size_t(COUNT))

    def ours() -> None:
        run(o, a, b, 1, 0, COUNT)

    ours()
    found = o.copy()
    o[:] = 0
    c()
    assert np.array_equal(found, o)
    mine, other = in_turns(ours, c)
    benchmark.extra_info |= {"ratio_to_c": round(mine / other, 4), "gb_per_s": round(8e-9 * COUNT * 2 / mine, 2)}
    benchmark.pedantic(ours, rounds=3)


def test_copy_against_numpy(benchmark: Any) -> None:
    from wattline.suites.host.buffers import host_array
    from wattline.suites.host.loops import loops

    o, a = host_array(COUNT, "float64"), host_array(COUNT, "float64")
    o[:], a[:] = 0, 1
    copy = loops()["copy"]
    mine, other = in_turns(lambda: copy(o, a, a, 1, 0, COUNT), lambda: np.copyto(o, a))
    benchmark.extra_info |= {"ratio_to_numpy": round(mine / other, 4)}
    benchmark.pedantic(lambda: copy(o, a, a, 1, 0, COUNT), rounds=3)
