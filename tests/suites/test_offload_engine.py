"""The engine that offloading runs on: page-locked memory, streams and computation of a set length."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.errors import UnsupportedError
from wattline.suites.offload import engine
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
CPU = Machine(kind="cpu", torch_version=(2, 13))


def test_computation_of_any_length_is_spun_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from wattline.collectors import device as devices

    held: list[float] = []

    class Fake:
        def __init__(self, index: int) -> None:
            self.index = index

        def hold(self, seconds: float) -> float:
            held.append(seconds)
            return min(seconds, 0.1)

    monkeypatch.setattr(devices, "AcceleratorDevice", Fake)
    made, _ = fake_engine()
    spin = made.compute(0.25)
    held.clear()
    spin()
    assert sum(held) == pytest.approx(0.25)
    assert max(held) <= 0.1
    assert made.compute(0.0)() is None
    monkeypatch.setattr(Fake, "hold", lambda self, seconds: 0.0)
    with pytest.raises(UnsupportedError, match="no spin kernel"):
        made.compute(0.25)


class FakeRuntime:
    """CUDA's runtime and torch.cuda, as far as the engine asks them."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.registered: dict[int, int] = {}
        self.log: list[str] = []

    def cudart(self) -> FakeRuntime:
        return self

    def cudaHostRegister(self, address: int, count: int, flags: int) -> int:  # noqa: N802
        self.registered[address] = flags
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.registered[address]
        return 0

    def synchronize(self, device: Any) -> None:
        self.log.append("synchronize")

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        return 1 << 20, 1 << 21


def fake_engine(code: int = 0) -> tuple[engine.Engine, FakeRuntime]:
    runtime = FakeRuntime(code)
    made = engine.Engine.__new__(engine.Engine)
    made.device, made._module = torch.device("cpu"), runtime
    return made, runtime


def test_page_locked_memory_is_registered_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made, runtime = fake_engine()
    monkeypatch.setattr(made, "seen_by_device", lambda address, count: ("device", address, count), raising=False)
    for kind, flags in (("pinned", 0), ("zero_copy", 2)):
        memory = made.host(5000, kind)
        assert runtime.registered == {memory.host.data_ptr(): flags}
        assert (memory.device is not None) == (kind == "zero_copy")
        assert len(memory.host) == 5000
        memory.close()
        assert not runtime.registered
        assert runtime.log.pop() == "synchronize"  # nobody copies from it any more
    assert made.host(5000, "pageable").device is None
    assert not runtime.registered
    with pytest.raises(UnsupportedError, match="half of it is the limit") as error:
        made.host(1 << 20, "managed")  # 1 MiB is free
    assert error.value.code == "too_large"
    refusing, _ = fake_engine(code=2)
    with pytest.raises(UnsupportedError, match="cannot be pinned"):
        refusing.host(5000, "pinned")


def test_the_engine_itself_on_streams_of_torch() -> None:
    made = engine.Engine(torch.device("cpu"))  # torch has streams of the CPU, which run at once
    stream, ran = made.stream(), []
    made.wait(stream, made.current())
    made.run(stream, lambda: ran.append(1))
    made.synchronize()
    assert ran == [1]
    assert made.empty(5).shape == (5,)
    described = engine._Memory(4096, 10).__cuda_array_interface__
    assert described["shape"] == (10,)
    assert described["data"] == (4096, False)
    assert engine.thread_node().isdigit() or engine.thread_node() == "unknown"
