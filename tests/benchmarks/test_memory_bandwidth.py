"""Our loops against the same in C, compiled here, and against numpy: ``pytest tests/benchmarks -k memory``.

Both are timed in short turns on the same memory, each of theirs between two of ours, by the processor time of their one
thread: a busy machine then disturbs them alike, and what it takes the processor away for does not count. The median of
the turns' ratios stands in ``extra_info``, with its quartiles and the ratio of the lower quartiles of the times. Within
3 % is what a quiet machine shows.
"""

from __future__ import annotations

import ctypes
import math
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


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], name: str, rounds: int = 100) -> dict[str, Any]:
    """The ratio of our time to theirs under ``name``, how sure it is, and the median of our seconds."""
    spent: tuple[list[float], list[float]] = ([], [])
    for call in (ours, theirs):
        call()
    for turn in range(2 * rounds + 1):
        begin = time.thread_time()
        (ours, theirs)[turn % 2]()
        spent[turn % 2].append(time.thread_time() - begin)
    mine, other = spent
    ratios = [math.sqrt(a * b) / c for a, b, c in zip(mine, mine[1:], other, strict=False)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    quick = [statistics.quantiles(times, n=4)[0] for times in spent]
    return {
        name: round(middle, 4),
        f"{name}_quartiles": [round(low, 4), round(high, 4)],
        f"{name}_of_lower_quartiles": round(quick[0] / quick[1], 4),
        "median_s": statistics.median(mine),
    }


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
    benchmark.extra_info |= in_turns(ours, c, "ratio_to_c")
    benchmark.pedantic(ours, rounds=3)


def test_copy_against_numpy(benchmark: Any) -> None:
    from wattline.suites.host.buffers import host_array
    from wattline.suites.host.loops import loops

    o, a = host_array(COUNT, "float64"), host_array(COUNT, "float64")
    o[:], a[:] = 0, 1
    copy = loops()["copy"]
    benchmark.extra_info |= in_turns(lambda: copy(o, a, a, 1, 0, COUNT), lambda: np.copyto(o, a), "ratio_to_numpy")
    benchmark.pedantic(lambda: copy(o, a, a, 1, 0, COUNT), rounds=3)
