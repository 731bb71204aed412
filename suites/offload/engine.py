"""What transfers need of an accelerator: its memory, host memory that it reaches, streams, and their order."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wattline.errors import UnsupportedError
from wattline.suites.host.buffers import host_array, placed_on
from wattline.suites.workload import BuildContext
from wattline.units import format_bytes

KINDS = ("pinned", "pageable", "managed", "zero_copy")
_LONGEST_SPIN_S = 0.1  # of one kernel: a device holds no longer at a time
_MAPPED = 2  # cudaHostRegisterMapped
_ATTACH_GLOBAL = 1  # CU_MEM_ATTACH_GLOBAL


@dataclass
class HostMemory:
    """Memory of the host that a device may reach.

    Attributes:
        host: as the host sees it: uint8 ``[count]``.
        device: as kernels of the device see it, without a copy; ``None`` where they do not.
        close: gives it back.
        facts: where it lies.
    """

    host: Any
    device: Any = None
    close: Callable[[], None] = lambda: None
    facts: dict[str, Any] = field(default_factory=dict)


class Engine:
    """An accelerator of torch whose module has streams like CUDA's. Tests put a simulated one in its place.

    Args:
        device: the ``torch.device``.
    """

    def __init__(self, device: Any) -> None:
        import torch

        self.device = device
        self._module = getattr(torch, device.type)

    def empty(self, count: int) -> Any:
        """Memory of the device: uint8 ``[count]``."""
        import torch

        return torch.empty(count, dtype=torch.uint8, device=self.device)

    def free_bytes(self) -> int:
        """Bytes that the device has free."""
        return int(self._module.mem_get_info(self.device)[0])

    def stream(self) -> Any:
        """A new stream."""
        return self._module.Stream(self.device)

    def current(self) -> Any:
        """The stream that is timed."""
        return self._module.current_stream(self.device)

    def run(self, stream: Any, action: Callable[[], Any]) -> None:
        """Queue what ``action`` launches on a stream."""
        with self._module.stream(stream):
            action()

    def wait(self, stream: Any, before: Any) -> None:
        """What is queued on ``stream`` from now on runs after what is queued on ``before`` by now."""
        stream.wait_stream(before)

    def mark(self, stream: Any) -> Any:
        """A point in a stream: its ``elapsed_time(later)`` gives milliseconds once both have been reached."""
        event = self._module.Event(enable_timing=True)
        event.record(stream)
        return event

    def compute(self, seconds: float) -> Callable[[], Any]:
        """Something that keeps the device busy for so long where it is queued.

        Raises:
            UnsupportedError: the device has no kernel of a set length.
        """
        from wattline.collectors.device import AcceleratorDevice

        if not seconds:
            return lambda: None
        device = AcceleratorDevice(self.device.index or 0)
        if device.hold(min(seconds, 1e-4)) == 0.0:
            why = "torch has no spin kernel here"
            raise UnsupportedError("no computation of a set length", why=why, code="no_spin")
        pieces = math.ceil(seconds / _LONGEST_SPIN_S)

        def spin() -> None:
            for _ in range(pieces):
                device.hold(seconds / pieces)

        return spin

    def wait_for(self, stream: Any) -> None:
        """Let the host wait for one stream."""
        stream.synchronize()

    def synchronize(self) -> None:
        """Wait until everything queued has run."""
        self._module.synchronize(self.device)

    def host(self, count: int, kind: str = "pinned", node: int = -1) -> HostMemory:
        """Memory of the host.

        Args:
            count: bytes.
            kind: one of :data:`KINDS`.
            node: memory node to hold it; -1: the nearest.

        Raises:
            UnsupportedError: the driver refuses it, or managed memory would not fit the device.
        """
        if kind == "managed":
            return self._managed(count)
        import torch

        array = host_array(count, "uint8", node=node)
        array[:] = 0  # pages must exist before they are registered, and lie where they are first touched
        made = HostMemory(torch.from_numpy(array), facts={"memory_node": placed_on(array)})
        if kind != "pageable":
            self._register(array.ctypes.data, count, mapped=kind == "zero_copy")
            made.close = lambda: self._unregister(array.ctypes.data)
            if kind == "zero_copy":
                made.device = self.seen_by_device(array.ctypes.data, count)
        return made

    def seen_by_device(self, address: int, count: int) -> Any:
        """A tensor of the device on memory that it reaches at this address (unified virtual addressing)."""
        import torch

        return torch.as_tensor(_Memory(address, count), device=self.device)

    def _register(self, address: int, count: int, *, mapped: bool) -> None:
        code = int(self._module.cudart().cudaHostRegister(address, count, _MAPPED if mapped else 0))
        if code != 0:
            raise UnsupportedError(
                f"{format_bytes(count)} of host memory cannot be pinned", why=f"cudaHostRegister gives error {code}",
                todo="raise the limit of locked memory (ulimit -l)", code="no_pinned_memory",
            )  # fmt: skip

    def _unregister(self, address: int) -> None:
        self.synchronize()
        self._module.cudart().cudaHostUnregister(address)

    def _managed(self, count: int) -> HostMemory:
        import numpy as np
        import torch

        free = self.free_bytes()
        if count > free // 2:
            # More than fits would be moved to and fro for ever, or bring down the driver.
            raise UnsupportedError(
                f"managed memory of {format_bytes(count)} is not asked for",
                why=f"the device has {format_bytes(free)} free, and half of it is the limit", code="too_large",
            )  # fmt: skip
        driver = ctypes.CDLL("libcuda.so.1")
        pointer = ctypes.c_uint64(0)
        code = driver.cuMemAllocManaged(ctypes.byref(pointer), ctypes.c_size_t(count), ctypes.c_uint(_ATTACH_GLOBAL))
        if code != 0:
            raise UnsupportedError("no managed memory", why=f"cuMemAllocManaged gives error {code}", code="no_managed")
        address = pointer.value

        def close() -> None:
            self.synchronize()
            driver.cuMemFree_v2(ctypes.c_uint64(address))

        array = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
        facts = {"memory_node": "managed"}
        return HostMemory(torch.from_numpy(array), self.seen_by_device(address, count), close, facts)


class _Memory:
    """Memory at an address, as torch wants it described."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None
        }  # fmt: skip


def engine_for(ctx: BuildContext) -> Engine:
    """The engine of a build's device."""
    return Engine(ctx.torch_device)


def thread_node() -> str:
    """The node whose processor runs this thread at the moment, as a record names it."""
    from wattline.collectors.numa import cpus_of, memory_nodes

    try:
        cpu = int(ctypes.CDLL(None).sched_getcpu())
    except (AttributeError, OSError):
        return "unknown"
    return next((str(node) for node in memory_nodes() if cpu in cpus_of(node)), "unknown")
