"""torch.compile for implementations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from wattline.suites.compiled import compiled, compiler
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")


def _chain(x: Any, y: Any) -> Any:
    return torch.relu(x + y) * 2.0


def test_a_function_is_compiled_once_for_each_shape() -> None:
    reason = compiler().unmet({}, Machine())
    if reason:
        pytest.skip(reason.message)
    torch._dynamo.utils.counters.clear()
    for size in (8, 16, 8, 16, 8):
        x, y = torch.randn(size), torch.randn(size)
        ready, seconds = compiled(_chain, x, y)
        assert seconds > 0
        torch.testing.assert_close(ready(x, y), _chain(x, y))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_without_a_compiler_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    reason = compiler().unmet({}, Machine(kind="cpu"))
    assert reason is not None
    assert reason.code == "missing_compiler"
    assert "g++" in reason.message


_THREADS = """
import json
import torch
from wattline.suites.compiled import numba_for_loops
seen = []
for threads in (1, 3, 2):
    torch.set_num_threads(threads)
    numba = numba_for_loops()
    loop = numba.njit(parallel=True)(lambda n: n)
    loop(4)
    seen.append([torch.get_num_threads(), numba.get_num_threads()])
print(json.dumps(seen))
"""


def test_loops_of_numba_take_torchs_threads_and_leave_them() -> None:
    # In a process of its own: numba sets the threads of torch once, when its OpenMP layer starts.
    pytest.importorskip("numba")
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _THREADS], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    assert json.loads(done.stdout) == [[1, 1], [3, 2], [2, 2]]
