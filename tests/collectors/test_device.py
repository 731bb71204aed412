"""Devices and timers: the CPU for real, an accelerator through a simulated backend of torch."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from wattline.collectors.device import AcceleratorDevice, CpuDevice, open_device
from wattline.collectors.timers import EventTimer, HostTimer
from wattline.errors import DeviceError, UnsupportedError

torch = pytest.importorskip("torch")


class Backend:
    """A device with a queue, played on a clock of its own: launches cost the host, kernels cost the device.

    The host waits while ``depth`` launches are queued; the device counts ``idle_hz`` cycles a second until it has
    been busy for 10 ms, and 1e9 from then on.
    """

    name = "NVIDIA H200"
    l2_bytes = 60 * 2**20
    memory_bytes = int(141e9)

    def __init__(
        self, *, launch_s: float = 5e-6, can_sleep: bool = True, depth: int = 10**9, idle_hz: float = 1e9
    ) -> None:
        self.depth = depth
        self.queue: deque[float] = deque()  # when each launch will have run
        self.idle_hz = idle_hz
        self.busy_s = 0.0
        self.log: list[str] = []
        self.stream_now = "default"
        self.Stream, self.CUDAGraph = self.new_stream, self.new_graph
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
            name=self.name, total_memory=self.memory_bytes, L2_cache_size=self.l2_bytes, multi_processor_count=132,
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
        seconds = cycles / (self.idle_hz if self.busy_s < 0.01 else 1e9)
        self.held.append(seconds)
        self.launch(seconds)

    def launch(self, kernel_s: float) -> None:
        self.host_ns += round(self.launch_s * 1e9)
        while self.queue and self.queue[0] <= self.host_ns * 1e-9:
            self.queue.popleft()
        if len(self.queue) >= self.depth:
            self.host_ns = round(self.queue.popleft() * 1e9)
        self.busy_s += kernel_s
        self.device_s = max(self.device_s, self.host_ns * 1e-9) + kernel_s
        self.queue.append(self.device_s)

    # Graphs
    def new_stream(self, index: int) -> str:
        self.log.append("new stream")
        return f"side stream of {index}"

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.stream_now, before = stream, self.stream_now
        yield
        self.stream_now = before

    def new_graph(self) -> Any:
        return types.SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextmanager
    def graph(self, graph: Any, stream: str) -> Iterator[None]:
        with self.stream(stream):
            self.log.append("capture")
            yield
            self.log.append("captured")

    def event(self, device: Any = None, *, enable_timing: bool = False) -> Any:
        backend = self

        class Event:
            at = 0.0

            def record(self) -> None:
                backend.device_s = max(backend.device_s, backend.host_ns * 1e-9)
                self.at = backend.device_s

            def query(self) -> bool:
                return self.at <= backend.host_ns * 1e-9

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
        monkeypatch.setattr("wattline.collectors.timers.time.perf_counter_ns", lambda: made.host_ns)
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
    assert max(device.held[-3:]) < 1e-3


def test_long_kernels_are_not_launch_bound_even_without_a_hold(backend: Callable[..., Backend]) -> None:
    device = backend(can_sleep=False)
    timer = EventTimer(AcceleratorDevice())
    for seconds, count in ((1e-3, 1), (20e-6, 100)):
        timer.time(kernels(device, seconds, count))
        assert not timer.launch_bound, (seconds, count)
    timer.time(kernels(device, 20e-6, 1))  # one launch of 5 us in front of 20 us
    assert timer.launch_bound


def test_a_hold_lasts_although_the_clock_was_low_when_it_was_calibrated(backend: Callable[..., Backend]) -> None:
    made = backend(idle_hz=0.2e9)
    device = AcceleratorDevice()
    assert device.hold(2e-3) == 2e-3
    assert made.held[-1] == pytest.approx(2e-3, rel=0.02)


def test_a_full_launch_queue_does_not_lengthen_the_hold_without_end(backend: Callable[..., Backend]) -> None:
    device = backend(depth=100)
    timer = EventTimer(AcceleratorDevice())
    for _ in range(50):
        took = timer.time(kernels(device, 2e-6, 256))
    assert timer.launch_bound  # the host waited for the device: said, not hidden
    assert device.held[-1] <= 0.02
    assert took < 0.01


def test_the_hold_follows_the_number_of_calls(backend: Callable[..., Backend]) -> None:
    device = backend(launch_s=5e-6)
    timer = EventTimer(AcceleratorDevice())
    timer.time(kernels(device, 2e-6, 10))
    assert timer.time(kernels(device, 2e-6, 250)) == pytest.approx(500e-6, rel=0.05)
    assert not timer.launch_bound


def test_a_graph_is_captured_on_a_stream_that_has_run_its_calls(backend: Callable[..., Backend]) -> None:
    made = backend()
    device = AcceleratorDevice(1)
    calls = [lambda name=name: made.log.append(f"{name} on {made.stream_now}") for name in "ab"]
    for _ in range(2):
        made.log.clear()
        replay = device.capture(calls * 2)
        side = "side stream of 1"
        once = [f"a on {side}", f"b on {side}"]
        assert [line for line in made.log if line != "new stream"] == [*once, "capture", *once, *once, "captured"]
        replay()
        assert made.log[-1] == "replay"
    assert "new stream" not in made.log  # the second capture uses the stream of the first
    assert made.stream_now == "default"


def test_a_cache_behind_the_l2_counts(backend: Callable[..., Backend]) -> None:
    made = backend()
    made.name, made.l2_bytes, made.memory_bytes = "AMD Instinct MI300X", 4 * 2**20, int(192e9)
    device = AcceleratorDevice()
    assert device.spec().id == "mi300x"
    assert device.cache_bytes() == 256_000_000  # the Infinity Cache


def test_an_accelerator_that_we_cannot_drive_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: types.SimpleNamespace(type="mps"))
    assert open_device("auto").kind == "cpu"
    with pytest.raises(UnsupportedError, match="no accelerator that we can drive"):
        open_device("mps")


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
    with pytest.raises(UnsupportedError, match="'first' is no number"):
        open_device("cuda:first")
    for wrong in ("cuda:", "cuda:one", "cuda:-1", "cuda:1x"):
        with pytest.raises(UnsupportedError, match=f"no device '{wrong}'"):
            open_device(wrong)


def test_a_machine_without_accelerator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert open_device("auto").kind == "cpu"
    with pytest.raises(UnsupportedError, match="no device 'cuda'"):
        open_device("cuda")
    with pytest.raises(UnsupportedError, match="no accelerator"):
        AcceleratorDevice()


def test_a_host_timer_counts_what_its_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1_000, 251_000, 0, 7_000])
    monkeypatch.setattr("wattline.collectors.timers.time.perf_counter_ns", lambda: next(ticks))
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


def test_a_sustained_load_leaves_no_gaps_and_counts_its_calls(backend: Callable[..., Backend]) -> None:
    device = backend(launch_s=5e-6)
    timer = EventTimer(AcceleratorDevice())
    calls, seconds = timer.sustain(lambda count: kernels(device, 20e-6, count), 50, 0.01)
    assert calls % 50 == 0
    assert seconds >= 0.01
    # Launches of 5 us hide behind kernels of 20 us: the device never waits.
    assert seconds / calls == pytest.approx(20e-6, rel=0.01)


def test_a_sustained_load_on_the_host_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr("wattline.collectors.timers.time.perf_counter_ns", lambda: now[0])

    def call() -> None:
        now[0] += 1_000_000

    assert HostTimer().sustain(lambda count: [call] * count, 3, 0.010) == (12, pytest.approx(0.012))


def test_peak_memory_of_a_call_counts_what_is_held_at_a_time() -> None:
    torch = pytest.importorskip("torch")
    a = torch.ones(1000, 1000)
    out = torch.empty(1000, 1000)
    device = CpuDevice()
    call = partial(torch.add, a, a, out=out)
    assert device.peak_bytes(call) == 0
    assert device.peak_bytes(lambda: a + a) == 4_000_000
    # The sum is alive while the product is written; of the two only the product is left.
    assert 8_000_000 <= device.peak_bytes(lambda: ((a + a) * 2) * 3) < 8_100_000
