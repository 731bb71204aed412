"""Devices behind one small interface: memory, synchronisation, timers, graphs.

The CPU and every accelerator that ``torch.accelerator`` drives look the same to the measurement loop, so the CPU
exercises nearly all of the code that a GPU runs. torch is imported inside functions only.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from wattline.collectors import host
from wattline.collectors.timers import Call, EventTimer, HostTimer, Timer
from wattline.device import DeviceSpec, match_device, slug
from wattline.errors import DeviceError, UnsupportedError

_DRIVES = ("set_device", "get_device_properties", "synchronize", "mem_get_info", "memory_reserved", "empty_cache")


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

    def peak_bytes(self, call: Call) -> int | None:
        """Most bytes that one call holds at a time beyond what was allocated before it, its result included; ``None``
        where nothing counts them. Libraries that keep a workspace of their own outside of torch's allocator
        are not seen. The call has run before: what it allocates once only does not count.
        """
        return None

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

    def peak_bytes(self, call: Call) -> int | None:
        """See :meth:`Device.peak_bytes`: torch's profiler reports each block taken and given back."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            kept = call()
        found = watched.profiler
        events = [e for e in found.kineto_results.events() if e.name() == "[memory]"] if found else []
        live = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        del kept  # the result counts until here
        return int(peak)


class AcceleratorDevice(Device):
    """Any accelerator of ``torch.accelerator`` with an interface like CUDA's: CUDA, ROCm, XPU ...

    Raises:
        UnsupportedError: torch sees no such accelerator, or not that many.
    """

    def __init__(self, index: int = 0) -> None:
        import torch

        kind = _accelerator_kind()
        if not kind:
            raise UnsupportedError("no accelerator", why="torch sees none that we can drive", code="no_accelerator")
        count = torch.accelerator.device_count()
        if not 0 <= index < count:
            raise UnsupportedError(
                f"no accelerator number {index}", why=f"torch sees {count}", code="no_accelerator"
            )
        self.index = index
        self.kind = kind
        self._module = getattr(torch, kind)  # torch.cuda, torch.xpu ...
        self._cycles_per_s = 0.0
        self._capture_stream: Any = None
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

    def peak_bytes(self, call: Call) -> int | None:
        """See :meth:`Device.peak_bytes`: the allocator's own count."""
        reset = getattr(self._module, "reset_peak_memory_stats", None)
        if reset is None:
            return None
        self.synchronize()
        reset(self.index)
        before = self._module.memory_allocated(self.index)
        call()
        self.synchronize()
        return int(self._module.max_memory_allocated(self.index) - before)

    def cache_bytes(self) -> int:
        """See :meth:`Device.cache_bytes`. What torch reports is the L2; behind it there may be a larger cache."""
        reported = int(getattr(self.properties, "L2_cache_size", 0))
        return max(reported, int(self.spec().l2_bytes or 0)) or 64 * 2**20

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
        """Cycles that the spin kernel counts per second, at the highest clock seen: an idle device needs time to
        raise it, and a hold that ends too soon is worse than one that lasts.
        """
        import torch

        begin = torch.Event(self.torch_device, enable_timing=True)
        end = torch.Event(self.torch_device, enable_timing=True)
        cycles, fastest, spent = 1_000_000, 0.0, 0.0
        while spent < 0.05:
            begin.record()
            spin(cycles)
            end.record()
            end.synchronize()
            took = float(begin.elapsed_time(end)) * 1e-3
            fastest, spent = max(fastest, cycles / took), spent + took
        return fastest

    def capture(self, calls: Sequence[Call]) -> Call:
        """See :meth:`Device.capture`."""
        module = self._module
        if not hasattr(module, "CUDAGraph"):
            return super().capture(calls)
        # cuBLAS has a workspace per stream. First needed during a capture, it would come from the graph's own memory
        # and keep that from being freed; so the stream that captures, always the same, runs each call once before.
        if self._capture_stream is None:
            self._capture_stream = module.Stream(self.index)
        self.synchronize()
        with module.stream(self._capture_stream):
            for call in dict.fromkeys(calls):
                call()
        self.synchronize()
        graph = module.CUDAGraph()
        with module.graph(graph, stream=self._capture_stream):
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


def _accelerator_kind() -> str:
    """The type of the accelerator that torch sees, empty where there is none or its module lacks what we need
    (Apple's ``torch.mps``).
    """
    import torch

    if not torch.accelerator.is_available():
        return ""
    kind = str(torch.accelerator.current_accelerator().type)
    module = getattr(torch, kind, None)
    return kind if all(hasattr(module, name) for name in _DRIVES) else ""


def open_device(name: str = "auto") -> Device:
    """The device of that name: ``"auto"`` (an accelerator where we can drive one, else the CPU), ``"cpu"``,
    ``"cuda"``, ``"cuda:1"`` ...

    Raises:
        UnsupportedError: this machine has no such device.
    """
    if name == "cpu":
        return CpuDevice()
    found = _accelerator_kind()
    if name == "auto":
        return AcceleratorDevice() if found else CpuDevice()
    kind, colon, number = name.partition(":")
    if not found:
        why, todo = "torch sees no accelerator that we can drive", "use --device cpu or auto"
    elif found != kind:
        why, todo = f"torch drives {found} here", "use --device auto"
    elif colon and not (number.isascii() and number.isdigit()):  # never quietly another device than the one asked for
        why, todo = f"{number!r} is no number", f"use --device {kind}:0"
    else:
        return AcceleratorDevice(int(number or 0))
    raise UnsupportedError(f"no device {name!r}", why=why, todo=todo, code="no_device")
