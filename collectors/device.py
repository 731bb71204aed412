"""Devices behind one small interface: memory, synchronisation, timers, graphs.

The CPU and every accelerator that ``torch.accelerator`` drives look the same to the measurement loop, so the CPU
exercises nearly all of the code that a GPU runs. torch is imported inside functions only.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from wattline.collectors import host
from wattline.device import DeviceSpec, match_device, slug
from wattline.errors import DeviceError, UnsupportedError

Call = Callable[[], Any]


class Timer(ABC):
    """Times a batch of calls.

    Attributes:
        name: the clock, as records name it.
        min_batch_s: batches shorter than this are dominated by the clock's own resolution and cost.
        max_batch_calls: most calls that one batch may hold.
    """

    name: str = ""
    min_batch_s: float = 200e-6
    max_batch_calls: int = 100_000

    @abstractmethod
    def time(self, calls: Sequence[Call]) -> float:
        """Run the calls in order and return the seconds that all of them took."""

    def overhead_s(self) -> float:
        """Median cost of timing an empty batch: what every sample carries in excess."""
        return sorted(self.time(()) for _ in range(101))[50]


class HostTimer(Timer):
    """``perf_counter_ns`` around the calls, then a device synchronisation where one is given."""

    name = "perf_counter_ns"

    def __init__(self, synchronize: Call | None = None) -> None:
        self._synchronize = synchronize

    def time(self, calls: Sequence[Call]) -> float:
        """See :meth:`Timer.time`."""
        clock = time.perf_counter_ns
        if self._synchronize is None:
            begin = clock()
            for call in calls:
                call()
            return (clock() - begin) * 1e-9
        self._synchronize()
        begin = clock()
        for call in calls:
            call()
        self._synchronize()
        return (clock() - begin) * 1e-9


class EventTimer(Timer):
    """Device events around the calls.

    Where the device can be held (a spin kernel), all launches are queued behind the hold before the first event
    fires, so that short kernels run back to back and the host's launch cost stays out.

    Attributes:
        launch_bound: the last batch took the host longer to enqueue than the hold lasted: the figure may hold
            gaps between kernels.
    """

    name = "device events"
    min_batch_s = 500e-6  # events tick at about 0.5 us (CUDA runtime API, cudaEventElapsedTime)
    max_batch_calls = 512  # the launch queue holds about a thousand entries before the host blocks

    def __init__(self, device: AcceleratorDevice) -> None:
        import torch

        self._device = device
        self._begin = torch.Event(device.torch_device, enable_timing=True)
        self._end = torch.Event(device.torch_device, enable_timing=True)
        self._enqueue_s = 0.0
        self.launch_bound = False

    def time(self, calls: Sequence[Call]) -> float:
        """See :meth:`Timer.time`."""
        # Hold for as long as the last batch took to enqueue, and half as much again.
        held = self._device.hold(1.5 * self._enqueue_s + 20e-6)
        begin = time.perf_counter_ns()
        self._begin.record()
        for call in calls:
            call()
        self._end.record()
        self._enqueue_s = (time.perf_counter_ns() - begin) * 1e-9
        self.launch_bound = held < self._enqueue_s
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1e-3


class Device(ABC):
    """A device that kernels run on.

    Attributes:
        kind: torch's device type: ``"cpu"``, ``"cuda"``, ``"xpu"`` ...
        index: which one of its kind.
    """

    kind: str = "cpu"
    index: int = 0

    @property
    @abstractmethod
    def torch_device(self) -> Any:
        """The ``torch.device``."""

    @abstractmethod
    def spec(self) -> DeviceSpec:
        """What is known of it: the listed device, or a description with what the system reports."""

    @abstractmethod
    def timer(self) -> Timer:
        """The clock for device time."""

    def host_timer(self) -> Timer:
        """The clock for what a caller waits: host clock, synchronised."""
        return HostTimer(self.synchronize)

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything queued has run."""

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that can still be allocated."""

    @abstractmethod
    def cache_bytes(self) -> int:
        """Size of the last-level cache."""

    def hold(self, seconds: float) -> float:
        """Keep the device busy without memory traffic; returns for how long, 0 where it cannot."""
        return 0.0

    def capture(self, calls: Sequence[Call]) -> Call:
        """A callable that replays the calls as one captured graph.

        Raises:
            UnsupportedError: the device has no graphs.
        """
        raise UnsupportedError(
            "the regime 'graph' cannot run here",
            why=f"torch captures no graphs on {self.kind}",
            todo="use the regime cold, hot or eager",
            code="no_graphs",
        )

    def release(self) -> None:  # noqa: B027 - a CPU has nothing to give back
        """Give cached memory back."""

    def is_sticky(self, error: BaseException) -> bool:
        """Whether the error leaves this process unable to use the device."""
        return isinstance(error, DeviceError) and error.sticky


class CpuDevice(Device):
    """The host's processor, all the threads that torch uses.

    Args:
        root: root of the system's file tree, for tests.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._cache_bytes = 0

    @property
    def torch_device(self) -> Any:
        """See :attr:`Device.torch_device`."""
        import torch

        return torch.device("cpu")

    def spec(self) -> DeviceSpec:
        """See :meth:`Device.spec`. Rates are left to a probe: no table lists every CPU."""
        facts = host.cpu_facts(self._root)
        name = facts.model or "cpu"
        usable = len(host.allowed_cpus(self._root)) or facts.logical or os.cpu_count() or 1
        memory = host.memory_bytes(self._root)
        return DeviceSpec(
            id=f"cpu-{slug(name)}-{usable}c",
            name=name,
            vendor={"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(facts.vendor, facts.vendor.lower()),
            kind="cpu",
            memory_bytes=float(memory) if memory else None,
            l2_bytes=float(self.cache_bytes()),
            sm_count=usable,
            clock_hz=facts.max_hz,
            sources={"default": "read from the operating system", "peak_flops": "measured by a probe"},
        )

    def timer(self) -> Timer:
        """See :meth:`Device.timer`."""
        return HostTimer()

    def host_timer(self) -> Timer:
        """See :meth:`Device.host_timer`: calls on the CPU have run when they return."""
        return HostTimer()

    def synchronize(self) -> None:
        """See :meth:`Device.synchronize`: nothing is queued on a CPU."""

    def free_memory(self) -> int:
        """See :meth:`Device.free_memory`: what the system can give without swapping, within the container's limit."""
        import psutil

        free = int(psutil.virtual_memory().available)
        limit = host.memory_limit(self._root)
        if limit is not None:
            free = min(free, limit - psutil.Process().memory_info().rss)
        return max(free, 0)

    def cache_bytes(self) -> int:
        """See :meth:`Device.cache_bytes`: all instances of the highest level, as the kernel lists them."""
        if not self._cache_bytes:
            facts = host.cpu_facts(self._root)
            level = max((c.level for c in facts.caches if c.kind != "instruction"), default=0)
            sizes = [c.size_bytes * (c.instances or 1) for c in facts.caches if c.level == level]
            # 32 MiB, a server's typical slice, where the kernel lists none.
            self._cache_bytes = max(sizes, default=32 * 2**20)
        return self._cache_bytes


class AcceleratorDevice(Device):
    """Any accelerator of ``torch.accelerator``: CUDA, ROCm, XPU ...

    Raises:
        UnsupportedError: torch sees no accelerator, or not that many.
    """

    def __init__(self, index: int = 0) -> None:
        import torch

        if not torch.accelerator.is_available():
            raise UnsupportedError("no accelerator", why="torch sees none", code="no_accelerator")
        count = torch.accelerator.device_count()
        if not 0 <= index < count:
            raise UnsupportedError(
                f"no accelerator number {index}", why=f"torch sees {count}", code="no_accelerator"
            )
        self.index = index
        self.kind = torch.accelerator.current_accelerator().type
        self._module = getattr(torch, self.kind)  # torch.cuda, torch.xpu ...
        self._cycles_per_s = 0.0
        self._module.set_device(index)

    @property
    def torch_device(self) -> Any:
        """See :attr:`Device.torch_device`."""
        import torch

        return torch.device(self.kind, self.index)

    @property
    def properties(self) -> Any:
        """torch's properties of the device."""
        return self._module.get_device_properties(self.index)

    def spec(self) -> DeviceSpec:
        """See :meth:`Device.spec`."""
        p = self.properties
        listed = match_device(p.name, float(p.total_memory))
        if listed is not None:
            return listed
        return DeviceSpec(
            id=slug(p.name),
            name=p.name,
            kind="gpu",
            memory_bytes=float(p.total_memory),
            l2_bytes=float(getattr(p, "L2_cache_size", 0)) or None,
            sm_count=getattr(p, "multi_processor_count", None),
            sources={"default": "read from the driver through torch"},
        )

    def timer(self) -> Timer:
        """See :meth:`Device.timer`."""
        return EventTimer(self)

    def synchronize(self) -> None:
        """See :meth:`Device.synchronize`."""
        self._module.synchronize(self.index)

    def free_memory(self) -> int:
        """See :meth:`Device.free_memory`, torch's own cache of freed blocks counted as free."""
        free, _ = self._module.mem_get_info(self.index)
        cached = self._module.memory_reserved(self.index) - self._module.memory_allocated(self.index)
        return int(free) + int(cached)

    def cache_bytes(self) -> int:
        """See :meth:`Device.cache_bytes`."""
        reported = int(getattr(self.properties, "L2_cache_size", 0))
        return reported or int(self.spec().l2_bytes or 64 * 2**20)

    def hold(self, seconds: float) -> float:
        """See :meth:`Device.hold`: torch's spin kernel, on CUDA and ROCm."""
        spin = getattr(self._module, "_sleep", None)
        if spin is None or seconds <= 0:
            return 0.0
        if not self._cycles_per_s:
            self._cycles_per_s = self._calibrate(spin)
        seconds = min(seconds, 0.1)
        spin(int(seconds * self._cycles_per_s))
        return seconds

    def _calibrate(self, spin: Callable[[int], None]) -> float:
        """Cycles that the spin kernel counts per second, at the clock of the moment."""
        import torch

        begin = torch.Event(self.torch_device, enable_timing=True)
        end = torch.Event(self.torch_device, enable_timing=True)
        cycles = 1_000_000
        spin(cycles)
        begin.record()
        spin(cycles)
        end.record()
        end.synchronize()
        return cycles / (float(begin.elapsed_time(end)) * 1e-3)

    def capture(self, calls: Sequence[Call]) -> Call:
        """See :meth:`Device.capture`."""
        if not hasattr(self._module, "CUDAGraph"):
            return super().capture(calls)
        graph = self._module.CUDAGraph()
        self.synchronize()
        with self._module.graph(graph):
            for call in calls:
                call()
        self.synchronize()
        replay: Call = graph.replay
        return replay

    def release(self) -> None:
        """See :meth:`Device.release`."""
        self._module.empty_cache()

    def is_sticky(self, error: BaseException) -> bool:
        """See :meth:`Device.is_sticky`: asks the device for a trivial thing; a poisoned context fails it too."""
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            return False
        try:
            self.synchronize()
            torch.zeros(8, device=self.torch_device).sum().item()
        except RuntimeError:
            return True
        return super().is_sticky(error)


def open_device(name: str = "auto") -> Device:
    """The device of that name: ``"auto"`` (an accelerator where torch sees one, else the CPU), ``"cpu"``,
    ``"cuda"``, ``"cuda:1"`` ...

    Raises:
        UnsupportedError: this machine has no such device.
    """
    if name == "cpu":
        return CpuDevice()
    import torch

    if name == "auto":
        return AcceleratorDevice() if torch.accelerator.is_available() else CpuDevice()
    kind, _, number = name.partition(":")
    if not torch.accelerator.is_available():
        raise UnsupportedError(
            f"no device {name!r}", why="torch sees no accelerator", todo="use --device cpu or auto", code="no_device"
        )
    device = AcceleratorDevice(int(number) if number.isdigit() else 0)
    if device.kind != kind:
        raise UnsupportedError(
            f"no device {name!r}", why=f"torch drives {device.kind} here", todo="use --device auto", code="no_device"
        )
    return device
