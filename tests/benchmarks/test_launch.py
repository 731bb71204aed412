"""What a call of our Triton kernel adds to Triton's own launcher.

Run with ``pytest tests/benchmarks/test_launch.py --benchmark-only -s``; the ratio of medians stands in each row's extra
info. Ours is the call that the measurement loop times; beside it the same launch written out as in Triton's
documentation, ``kernel[grid](...)``. On a GPU both launch a small product. Without one the launcher itself is replaced
by a function that does nothing: what remains is the Python around it, ours and theirs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
ROUNDS, CALLS = 25, 2000
TILES = {"block_m": 32, "block_n": 32, "block_k": 32, "warps": 2, "stages": 2, "group_m": 8}


def seconds(call: Callable[[], Any], calls: int, settle: Callable[[], None]) -> float:
    """Of one call, by the host's clock; the device is idle when it begins."""
    settle()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    took = time.perf_counter() - begin
    settle()
    return took / calls


@pytest.mark.parametrize("where", ["python", "gpu"])
def test_a_launch_beside_triton_itself(benchmark: Any, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets its kernels here: there is no launcher")
    if where == "gpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from wattline.suites.gemm.tiled import launched
    from wattline.suites.gemm.tiled_triton import launcher, product

    device = "cuda" if where == "gpu" else "cpu"
    a, b, c = (torch.zeros(64, 64, device=device) for _ in range(3))
    ran: list[int] = []
    if where == "python":
        monkeypatch.setattr(product, "run", lambda *_, **__: ran.append(1))
    ours = launched(lambda out: launcher(a, b, out, "fp32", TILES), {"a": a, "b": b}, c, {}).call

    def theirs() -> Any:
        return product[4, 1](
            a, b, c, 64, 64, 64, 0, 64, 1, 0, 64, 1, 0, 64, 1, BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP=8,
            WHOLE_K=True, PRECISION="ieee", WIDEN=False, num_warps=2, num_stages=2,
        )  # fmt: skip

    settle = torch.cuda.synchronize if where == "gpu" else lambda: None
    ours()
    theirs()
    ratios: list[float] = []

    def both() -> None:
        # In turn, so that a machine that changes speed meets both alike; short rounds on a GPU, whose queue is finite.
        calls = 200 if where == "gpu" else CALLS
        ratios.append(seconds(ours, calls, settle) / seconds(theirs, calls, settle))

    benchmark.pedantic(both, rounds=ROUNDS, iterations=1, warmup_rounds=2)
    ratio = statistics.median(ratios)
    benchmark.extra_info |= {"ours_over_triton": round(ratio, 3), "goal": 1.0}
    print(f"\n{where}: call / kernel[grid](...) = {ratio:.3f} (median of {len(ratios)})")
    if where == "python":
        assert len(ran) == 3 + 2 * CALLS * len(ratios)  # one launch for each call, the build's among them
