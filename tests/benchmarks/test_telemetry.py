"""What watching a GPU costs: one poll, and the latency of a kernel beside it, on the simulated driver.

Run with ``pytest tests/benchmarks/test_telemetry.py --benchmark-only -s``. The simulated driver answers at once, so a
poll here is our own share of it; a real driver's time comes on top, and ``run.json`` holds what both cost there.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from wattline.collectors.gpu_readings import GpuReader
from wattline.collectors.gpu_telemetry import GpuTelemetry
from wattline.collectors.nvml_device import open_gpu
from wattline.collectors.overhead import sampler_overhead


def test_one_poll(benchmark: Any, simulated_gpus: Any) -> None:
    gpus = simulated_gpus("h200")
    gpu = open_gpu(uuid=gpus[0].uuid, binding=gpus.binding())
    reader = GpuReader(gpu.binding, gpu.handle)
    reader.poll()  # what the part lacks is given up
    seen = benchmark(reader.poll)
    gpu.close()
    print(f"\none poll of {len(seen)} columns: {benchmark.stats.stats.median * 1e6:.1f} us")


def test_kernel_beside_the_sampler(benchmark: Any, simulated_gpus: Any) -> None:
    torch = pytest.importorskip("torch")
    # One thread: two threads meet at a barrier in every call, and any other process on the machine then shows.
    torch.set_num_threads(1)
    side = 16
    while True:  # a product that takes about 100 us
        a, b, out = torch.rand(side, side), torch.rand(side, side), torch.empty(side, side)
        took = []
        for _ in range(20):
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            took.append(time.perf_counter() - begin)
        if min(took) >= 100e-6:
            break
        side = int(side * 1.1) + 1

    def run(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            torch.mm(a, b, out=out)
        return time.perf_counter() - begin

    gpus = simulated_gpus("h200")
    telemetry = GpuTelemetry.open(uuid=gpus[0].uuid, binding=gpus.binding())
    found = benchmark.pedantic(
        lambda: sampler_overhead(telemetry, run, 20, pairs=30, block_s=0.25), rounds=1, iterations=1
    )
    telemetry.close()
    share = telemetry.result.means["gpu_sampler_cpu_share"]
    benchmark.extra_info.update(found.to_dict())
    print(
        f"\nkernel of {found.off_s * 1e6:.0f} us, sampler on / off: {found.ratio:.4f} "
        f"[{found.ratio_lo:.4f}, {found.ratio_hi:.4f}]; "
        f"the sampler's thread took {share:.3%} of a processor"
    )
