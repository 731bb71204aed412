"""Storage into the memory of a device past the host: kvikio on a stand-in."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import pytest

from wattline.stats import summarize
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
if not hasattr(os, "O_TMPFILE"):
    pytest.skip("storage is measured on Linux", allow_module_level=True)

CPU = Machine(kind="cpu", torch_version=(2, 13))


class FakeFuture:
    def __init__(self, count: int) -> None:
        self.count = count

    def get(self) -> int:
        return self.count


class FakeFile:
    """kvikio's CuFile on memory of the host."""

    def __init__(self, path: str, flags: str) -> None:
        self.descriptor = os.open(path, {"r": os.O_RDONLY, "r+": os.O_RDWR}[flags])

    def pread(self, memory: Any, size: int, file_offset: int) -> FakeFuture:
        memory[:] = torch.frombuffer(bytearray(os.pread(self.descriptor, size, file_offset)), dtype=torch.uint8)
        return FakeFuture(size)

    def pwrite(self, memory: Any, size: int, file_offset: int) -> FakeFuture:
        return FakeFuture(os.pwrite(self.descriptor, memory[:size].numpy().tobytes(), file_offset))

    def close(self) -> None:
        os.close(self.descriptor)


@pytest.mark.parametrize("op", ["storage.read", "storage.write"])
def test_gpudirect_on_a_simulated_device(op: str, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("kvikio")
    fake.CuFile = FakeFile  # type: ignore[attr-defined]
    fake.defaults = types.SimpleNamespace(compat_mode=lambda: True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvikio", fake)
    workload = get(op).workload
    p = workload.params.parse(
        {"path": disk, "bytes": 1 << 20, "block": 1 << 16, "span": 1 << 18, "depth": 3, "pattern": "random"}, op=op
    )
    context = Builder("cpu", CPU, seed=3)
    kernel = get_implementation(op, "kvikio").build(p, context)
    for _ in range(5):
        kernel.call()
        assert workload.check(p, kernel, None)[0] == 0
    assert kernel.facts["gpudirect"] == "compatibility mode: True"
    job = kernel.inputs["job"]
    if op == "storage.read":
        job.memory[-1] ^= 1
    else:
        os.pwrite(job.scratch.descriptor, b"\0" * 64, int(job.offsets[0]))
    assert workload.check(p, kernel, None)[0] > 0
    assert workload.findings(p, [kernel], summarize([1.0] * 3))["bytes_per_s"] == 1 << 18
    context.close()
    reason = get_implementation(op, "kvikio").unmet(p, CPU)
    assert reason is not None
    assert reason.code == "no_cuda"
