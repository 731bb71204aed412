"""Our products of packed weights on a CPU against torch's own kernels for 8- and 4-bit weights, in one process.

Run with ``pytest tests/benchmarks/test_quantized.py --benchmark-only -s``; the ratios stand in each row's extra info
and are printed. Bit planes and tables compute something else than torch's kernels (fewer bits, other schemes) for the
same m, n and k: a ratio below 1 says that narrow weights pay on this machine, above 1 that torch's wider ones are the
better buy.
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
pytest.importorskip("numba")

OP = "gemm.quantized"
CPU = Machine(kind="cpu", torch_version=tuple(int(part) for part in torch.__version__.split(".")[:2]))
SIZES = {"n": 3072, "k": 2048, "dtype": "bf16"}
"""A layer of llama-3.2-1b: queries, keys and values."""
ROUNDS = 9
NATIVE = {
    "int8": ("torch", {"scheme": "w8a8"}),
    "int8 weights": ("torch", {"scheme": "w8a16"}),
    "int4 weights": ("torch", {"scheme": "w4a16", "group": 128}),
}
OURS = {
    "planes, 4 x 8 bits": ("planes", {"scheme": "bits", "group": 128, "bits": 4, "abits": 8}),
    "planes, 2 x 8 bits": ("planes", {"scheme": "bits", "group": 128, "bits": 2, "abits": 8}),
    "planes, ternary": ("planes", {"scheme": "ternary"}),
    "tables, 4 bits": ("lut", {"scheme": "lut", "group": 128, "bits": 4}),
    "tables, 2 bits": ("lut", {"scheme": "lut", "group": 128, "bits": 2}),
    "tables, ternary": ("lut", {"scheme": "ternary"}),
    "dequantise, 4 bits": ("dequantize", {"scheme": "w4a16", "group": 128}),
}


def call_of(impl: str, given: dict[str, Any], m: int) -> Callable[[], Any]:
    """The kernel of an implementation, checked once."""
    workload, chosen = get(OP).workload, get_implementation(OP, impl)
    p = workload.params.parse({**SIZES, **given, "m": m}, op=OP)
    reason = chosen.unmet(p, CPU)
    if reason is not None:
        pytest.skip(str(reason))
    kernel = chosen.build(p, Builder("cpu", CPU))
    error, allowed, _ = workload.check(p, kernel, kernel.call())
    assert error <= allowed
    return kernel.call


def seconds(call: Callable[[], Any], span: float = 0.02) -> float:
    """The fastest of the calls that fit into ``span`` seconds, three at least."""
    took, end = [], time.perf_counter() + span
    while len(took) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return min(took)


@pytest.mark.parametrize("m", [1, 16])
def test_against_the_kernels_of_torch(benchmark: Any, m: int) -> None:
    # One thread: two threads meet at a barrier in every call, and any other process on the machine then shows.
    torch.set_num_threads(1)
    calls = {name: call_of(*kernel, m) for name, kernel in (NATIVE | OURS).items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}

    def every() -> None:
        # In turn, so that a machine that changes speed meets all alike.
        for name, call in calls.items():
            taken[name].append(seconds(call))

    benchmark.pedantic(every, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    print(f"\nm = {m}, n = {SIZES['n']}, k = {SIZES['k']}, one thread: our time / torch's (medians of {ROUNDS} rounds)")
    for name in OURS:
        ratios = {}
        for other in NATIVE:
            pairs = zip(taken[name][1:], taken[other][1:], strict=True)
            ratios[other] = round(statistics.median(a / b for a, b in pairs), 3)
            benchmark.extra_info[f"{name} / {other}"] = ratios[other]
        print(f"{name:20}", "  ".join(f"{other}: {ratio:7.3f}" for other, ratio in ratios.items()))
    assert all(len(each) == ROUNDS + 1 for each in taken.values())
