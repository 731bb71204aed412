"""Devices and timers: the CPU for real, an accelerator through a simulated backend of torch."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from wattline.collectors.device import AcceleratorDevice, CpuDevice, EventTimer, HostTimer, open_device
from wattline.errors import DeviceError, UnsupportedError

torch = pytest.importorskip("torch")


class Backend:
    """A device with a queue, played on a clock of its own: launches cost the host, kernels cost the device."""

    def __init__(self, *, launch_s: float = 5e-6, can_sleep: bool = True) -> None:
        self.host_ns = 0
        self.device_s = 0.0  # when the device will have finished all that is queued
        self.launch_s = launch_s
        self.held: list[float] = []
        self.cache_emptied = 0
        self.poisoned = False
        if can_sleep:
            self._sleep = self.spin

    # What torch.cuda offers
    def set_device(self, index: int) -> None:
        self.index = index

    def get_device_properties(self, index: int) -> Any:
        return types.SimpleNamespace(
            name="NVIDIA H200", total_memory=int(141e9), L2_cache_size=60 * 2**20, multi_processor_count=132,
            major=9, minor=0,
        )  # fmt: skip

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 100, 1000

    def memory_reserved(self, index: int) -> int:
        return 50

    def memory_allocated(self, index: int) -> int:
        return 20

    def synchronize(self, index: int | None = None) -> None:
        if self.poisoned:
            raise RuntimeError("CUDA error: device-side assert triggered")
        self.host_ns = max(self.host_ns, round(self.device_s * 1e9))

    def empty_cache(self) -> None:
        self.cache_emptied += 1

    # The simulation
    def spin(self, cycles: int) -> None:
        self.held.append(cycles / 1e9)
        self.launch(cycles / 1e9)

    def launch(self, kernel_s: float) -> None:
        self.host_ns += round(self.launch_s * 1e9)
        self.device_s = max(self.device_s, self.host_ns * 1e-9) + kernel_s

    def event(self, device: Any = None, *, enable_timing: bool = False) -> Any:
        backend = self

        class Event:
            at = 0.0

            def record(self) -> None:
                backend.device_s = max(backend.device_s, backend.host_ns * 1e-9)
                self.at = backend.device_s

            def synchronize(self) -> None:
                backend.synchronize()

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at) * 1e3

        return Event()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Backend]:
    def install(**options: Any) -> Backend:
        made = Backend(**options)
        monkeypatch.setattr(torch, "cuda", made)
        monkeypatch.setattr(torch, "Event", made.event)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: types.SimpleNamespace(type="cuda"))
        monkeypatch.setattr("wattline.collectors.device.time.perf_counter_ns", lambda: made.host_ns)
        return made

    return install


def kernels(backend: Backend, seconds: float, count: int) -> list[Callable[[], None]]:
    return [lambda: backend.launch(seconds)] * count


def test_the_hold_keeps_launch_cost_out_of_short_kernels(backend: Callable[..., Backend]) -> None:
    device = backend(launch_s=5e-6)
    timer = EventTimer(AcceleratorDevice())
    timer.time(kernels(device, 2e-6, 100))  # the first batch learns how long enqueuing takes
    took = timer.time(kernels(device, 2e-6, 100))
    assert took == pytest.approx(200e-6, rel=0.05)  # 100 kernels of 2 us, although each launch takes 5 us
    assert not timer.launch_bound


def test_without_a_hold_the_gaps_show_and_are_reported(backend: Callable[..., Backend]) -> None:
    device = backend(launch_s=5e-6, can_sleep=False)
    timer = EventTimer(AcceleratorDevice())
    for _ in range(3):
        took = timer.time(kernels(device, 2e-6, 100))
    assert took == pytest.approx(500e-6, rel=0.05)
    assert timer.launch_bound


def test_long_kernels_need_no_long_hold(backend: Callable[..., Backend]) -> None:
    device = backend()
    timer = EventTimer(AcceleratorDevice())
    for _ in range(3):
        assert timer.time(kernels(device, 1e-3, 10)) == pytest.approx(10e-3, rel=0.01)
    assert max(device.held[2:]) < 1e-3


def test_a_listed_accelerator_is_recognised(backend: Callable[..., Backend]) -> None:
    backend()
    spec = AcceleratorDevice().spec()
    assert spec.id == "h200-sxm"
    assert spec.listed


def test_what_an_accelerator_says_of_itself(backend: Callable[..., Backend]) -> None:
    made = backend()
    device = AcceleratorDevice(1)
    assert (device.kind, device.index, str(device.torch_device)) == ("cuda", 1, "cuda:1")
    assert device.free_memory() == 100 + 30  # what torch keeps cached is free too
    assert device.cache_bytes() == 60 * 2**20
    device.release()
    assert made.cache_emptied == 1


def test_a_number_beyond_the_last_is_refused(backend: Callable[..., Backend]) -> None:
    backend()
    with pytest.raises(UnsupportedError, match="torch sees 2"):
        AcceleratorDevice(2)


def test_a_poisoned_context_is_sticky_and_an_ordinary_error_is_not(
    backend: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend()
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda shape, **_: zeros(shape))  # on the CPU
    device = AcceleratorDevice()
    assert not device.is_sticky(RuntimeError("shapes do not match"))
    assert device.is_sticky(DeviceError("lost", sticky=True))
    made.poisoned = True
    assert device.is_sticky(RuntimeError("CUDA error"))
    assert not device.is_sticky(torch.OutOfMemoryError("out of memory"))


def test_open_device_by_name(backend: Callable[..., Backend]) -> None:
    assert open_device("cpu").kind == "cpu"
    backend()
    assert open_device("auto").kind == "cuda"
    assert open_device("cuda:1").index == 1
    with pytest.raises(UnsupportedError, match="torch drives cuda here"):
        open_device("xpu")


def test_a_machine_without_accelerator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert open_device("auto").kind == "cpu"
    with pytest.raises(UnsupportedError, match="no device 'cuda'"):
        open_device("cuda")
    with pytest.raises(UnsupportedError, match="no accelerator"):
        AcceleratorDevice()


def test_a_host_timer_counts_what_its_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1_000, 251_000, 0, 7_000])
    monkeypatch.setattr("wattline.collectors.device.time.perf_counter_ns", lambda: next(ticks))
    ran: list[int] = []
    assert HostTimer().time([lambda: ran.append(1)] * 3) == pytest.approx(250e-6)
    assert len(ran) == 3
    order: list[str] = []
    timer = HostTimer(lambda: order.append("sync"))
    assert timer.time([lambda: order.append("call")]) == pytest.approx(7e-6)
    assert order == ["sync", "call", "sync"]


def test_the_cpu_is_described_from_the_system(fake_host: Any) -> None:
    spec = CpuDevice(fake_host.root).spec()
    assert spec.name == "Imaginary Xeon 9999 @ 3.00GHz"
    assert spec.vendor == "intel"
    assert spec.kind == "cpu"
    assert spec.l2_bytes
    assert spec.sm_count
    assert spec.peak_flops == {}


def test_this_cpu() -> None:
    device = CpuDevice()
    spec = device.spec()
    assert spec.id.startswith("cpu-")
    assert spec.name
    assert 2**18 <= device.cache_bytes() <= 2**36
    assert 0 < device.free_memory() <= (spec.memory_bytes or 0)
    assert 0 < device.timer().overhead_s() < 1e-3
    assert not device.is_sticky(RuntimeError("no"))
    with pytest.raises(UnsupportedError) as caught:
        device.capture([])
    assert caught.value.code == "no_graphs"
