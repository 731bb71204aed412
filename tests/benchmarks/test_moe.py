"""A layer of experts in one grouped product against the loop over experts and the padded batch, in one process.

Run with ``pytest tests/benchmarks/test_moe.py --benchmark-only -s``; the ratios stand in each row's extra info and are
printed. Below 1 the grouped product is the quicker. The three take turns, so that a busy machine disturbs them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")

OP = "gemm.moe"
CPU = Machine(kind="cpu", torch_version=tuple(int(part) for part in torch.__version__.split(".")[:2]))
LAYER = {"hidden": 256, "intermediate": 512, "experts": 8, "dtype": "bf16"}
ROUNDS = 15
ROUTINGS = {
    "balanced": {"routing": "balanced"},
    "skewed": {"routing": "power_law", "skew": 1.6},
}


def call_of(impl: str, given: dict[str, Any]) -> Callable[[], Any]:
    """The kernel of an implementation, checked once."""
    workload, chosen = get(OP).workload, get_implementation(OP, impl)
    p = workload.params.parse({**LAYER, **given}, op=OP)
    reason = chosen.unmet(p, CPU)
    if reason is not None:
        pytest.skip(str(reason))
    kernel = chosen.build(p, Builder("cpu", CPU))
    error, allowed, _ = workload.check(p, kernel, kernel.call())
    assert error <= allowed
    return kernel.call


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("tokens", [1, 16, 256])
def test_grouped_against_the_loop_and_the_padded_batch(benchmark: Any, tokens: int, routing: str) -> None:
    # One thread: two meet at a barrier in every call, and any other process on the machine then shows.
    torch.set_num_threads(1)
    given = {"tokens": tokens, **ROUTINGS[routing]}
    calls = {impl: call_of(impl, given) for impl in ("grouped", "torch", "padded")}
    spent: dict[str, list[float]] = {impl: [] for impl in calls}
    for turn in range(ROUNDS * len(calls)):
        impl = list(calls)[turn % len(calls)]
        begin = time.perf_counter()
        calls[impl]()
        spent[impl].append(time.perf_counter() - begin)
    grouped = statistics.median(spent.pop("grouped"))
    ratios = {f"grouped / {impl}": round(grouped / statistics.median(times), 3) for impl, times in spent.items()}
    benchmark.extra_info.update(ratios)
    print(f"\n{tokens} tokens, {routing}: {ratios}")
    benchmark.pedantic(calls["grouped"], rounds=3)
