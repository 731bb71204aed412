"""How long the report on a large trace takes: ``pytest tests/benchmarks -k trace``. Two seconds is the aim."""

from __future__ import annotations

import random
from typing import Any

import pytest

from wattline.suites.launch.trace import analyse

EVENTS = 100_000


def large_trace(kinds: int) -> list[dict[str, Any]]:
    """Operators, launches and kernels of a program with a loop and some exceptions in it."""
    chance, now, events = random.Random(1), 0.0, []
    for i in range(EVENTS // 3):
        now += 5 * chance.random()
        common = {"ph": "X", "pid": 0, "args": {"correlation": i}}
        name = i % kinds if i % 50 else 0
        events += [
            {**common, "cat": "cpu_op", "name": f"aten::op{name}", "ts": now - 1, "dur": 3, "tid": 1},
            {**common, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": now, "dur": 1, "tid": 1},
            {**common, "cat": "kernel", "name": f"kernel{name}", "ts": now + 3, "dur": 1, "tid": 7},
        ]
    return events


@pytest.mark.parametrize("kind", ["device", "cpu"])
def test_a_large_trace(benchmark: Any, kind: str) -> None:
    events = large_trace(11)
    if kind == "cpu":
        events = [{**e, "cat": "cpu_op", "name": f"aten::{e['cat']}"} for e in events]
    report = benchmark.pedantic(analyse, args=(events,), rounds=3, iterations=1)
    benchmark.extra_info["events"] = len(events)
    assert report.kind == kind
    assert report.kernels > EVENTS // 4
