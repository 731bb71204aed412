"""What page-locked memory costs: the time to get it and give it back, and the bytes beyond those asked for."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.errors import UnsupportedError
from wattline.params import Constraint, Int, Params, Value
from wattline.reasons import Reason
from wattline.suites.host.buffers import PAGE
from wattline.suites.offload.engine import engine_for
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import accelerator
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload
from wattline.units import format_bytes

if TYPE_CHECKING:
    from wattline.stats import TimeStats

MOST = 4 * 2**30
"""Bytes that a case may lock: what is locked nobody else can use, and the system cannot page out."""


def _waste(asked: int, got: int) -> dict[str, Any]:
    return {"asked_bytes": asked, "got_bytes": got, "waste_share": 1 - asked / got}


@workload("offload.pinned_alloc", impl="torch", requires=(accelerator(),))
class PinnedAlloc(Workload):
    """Buffers from torch's allocator of page-locked memory, given back to the driver after each call."""

    params = Params(
        Constraint(
            f"all buffers together take no more than {MOST} bytes", lambda p: int(p["bytes"]) * int(p["count"]) <= MOST
        ),
        bytes=Int(doc="bytes of a buffer"),
        count=Int(1, hi=4096, doc="buffers that are held at once"),
    )  # fmt: skip
    regime = "eager"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        import torch

        size, count = int(p["bytes"]), int(p["count"])
        held: list[Any] = []

        def empty_cache() -> None:
            held.clear()
            _empty_host_cache()

        def call() -> Any:
            held.extend(torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(count))
            return held

        ctx.defer(empty_cache)
        empty_cache()
        before = _held_by_torch()
        call()
        after = _held_by_torch()
        facts = {} if before is None or after is None else _waste(size * count, after - before)
        return Kernel(call, {"held": held}, facts=facts, prepare=empty_cache)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: as many buffers of that size as asked for, and each can be written to."""
        held = kernel.inputs["held"]
        wrong = int(len(held) != int(p["count"]))
        for i, buffer in enumerate(held):
            view = memoryview(buffer if isinstance(buffer, mmap.mmap) else buffer.numpy())
            view[0] = view[int(p["bytes"]) - 1] = i % 251
            wrong += int(view[int(p["bytes"]) - 1] != i % 251)
            view.release()
        return wrong / int(p["count"]), 0.0, "each written to"

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: of the host's memory."""
        return float(int(p["bytes"]) * int(p["count"]))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`."""
        return {"bytes_per_s": int(p["bytes"]) * int(p["count"]) / stats.median_s}

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: smaller buffers."""
        smaller = size * 8192
        return None if int(p["bytes"]) <= smaller else {**p, "bytes": smaller}


def _held_by_torch() -> int | None:
    """Bytes of page-locked memory that torch holds, as it counts them; ``None`` where it does not count."""
    import torch

    stats = getattr(torch.cuda, "host_memory_stats", None)
    found = stats().get("allocated_bytes.current") if stats is not None else None
    return None if found is None else int(found)


def _empty_host_cache() -> None:
    """Give free blocks of page-locked memory back; torch has several names for it, by version."""
    import torch

    for owner, name in ((torch.accelerator, "empty_host_cache"), (torch._C, "_host_emptyCache")):
        if hasattr(owner, name):
            getattr(owner, name)()
            return
    raise UnsupportedError("torch cannot give page-locked memory back", why="no empty_host_cache", code="old_torch")


@implementation("offload.pinned_alloc", "register", requires=(accelerator(),))
def _register(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Ordinary memory of whole pages, registered with the driver (cudaHostRegister), and given back in the call."""
    engine, size, count = engine_for(ctx), int(p["bytes"]), int(p["count"])
    held: list[Any] = []
    owned: list[Any] = []

    def release() -> None:
        held.clear()
        while owned:
            owned.pop().close()

    def call() -> Any:
        for _ in range(count):
            owned.append(engine.host(size, "pinned"))
            held.append(owned[-1].host)
        return held

    ctx.defer(release)
    return Kernel(call, {"held": held}, facts=_waste(size * count, _pages(size) * count), prepare=release)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def lockable() -> Requirement:
    """A limit of locked memory (RLIMIT_MEMLOCK) that has room for the case, or none."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        import resource

        if machine.kind != "cpu":
            return Reason("host_only", "it measures the host alone: add --device cpu")
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        need = _pages(int(p["bytes"])) * int(p["count"])
        if limit == resource.RLIM_INFINITY or need <= limit or _may_lock_anything():
            return None
        message = f"it locks {format_bytes(need)}, and the limit is {format_bytes(limit)} (ulimit -l)"
        return Reason("locked_limit", message)

    return Requirement("room under the limit of locked memory", unmet)


def _may_lock_anything() -> bool:
    """CAP_IPC_LOCK (capabilities(7)): bit 14 of the effective set."""
    from wattline.collectors.host import read_text

    for line in (read_text("/", "proc/self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 14 & 1)
    return False


@implementation("offload.pinned_alloc", "mlock", requires=(lockable(),))
def _mlock(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Pages made and locked by the system (mlock(2)): the host's part of pinning, without a driver."""
    import numpy as np

    size, count = int(p["bytes"]), int(p["count"])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    held: list[Any] = []

    def release() -> None:
        while held:
            held.pop().close()  # unmapping unlocks

    def call() -> Any:
        for _ in range(count):
            memory = mmap.mmap(-1, _pages(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            held.append(memory)
            if libc.mlock(np.frombuffer(memory, np.uint8).ctypes.data, _pages(size)) != 0:
                code = ctypes.get_errno()
                raise UnsupportedError(
                    f"{format_bytes(size)} cannot be locked", why=f"mlock gives error {code}", code="locked_limit"
                )
        return held

    ctx.defer(release)
    return Kernel(call, {"held": held}, facts=_waste(size * count, _pages(size) * count), prepare=release)
