"""Blocks between a file and the memory of a GPU, through kvikio (NVIDIA GPUDirect Storage, or its own fallback)."""

from __future__ import annotations

import os
from typing import Any

from wattline.suites.storage.content import Content
from wattline.suites.storage.jobs import Walk
from wattline.suites.storage.place import Scratch, folder_of, mount_facts
from wattline.suites.workload import BuildContext, Kernel, ParamValues
from wattline.workmodels.storage import span_of


def gpudirect_fact(kvikio: Any) -> str:
    """Whether kvikio goes around the host: its compatibility mode reads into host memory first and copies."""
    defaults = kvikio.defaults
    if hasattr(defaults, "get"):
        return f"compatibility mode: {defaults.get('compat_mode')}"
    if hasattr(defaults, "compat_mode"):
        return f"compatibility mode: {defaults.compat_mode()}"
    return "unknown"


class DeviceJob:
    """Blocks moved between a file and one tensor on a device, ``depth`` in flight.

    Args:
        p: the case.
        ctx: of the build.
        scratch: the file.
        writes: into the file.
    """

    def __init__(self, p: ParamValues, ctx: BuildContext, scratch: Scratch, *, writes: bool) -> None:
        from importlib import import_module

        import numpy as np
        import torch

        kvikio: Any = import_module("kvikio")

        self.block, self.depth, self.writes = int(p["block"]), int(p["depth"]), writes
        self.sync = str(p.get("sync", "none"))
        self.scratch = scratch
        seed = int(ctx.tensor((1,), "int8").item()) + 1000
        self.content = Content(scratch.size, self.block, seed)
        self.content.write_to(scratch.descriptor)
        os.posix_fadvise(scratch.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        span = int(span_of(p))
        if writes:
            self.content = Content(scratch.size, self.block, seed + 1)
            self.memory = torch.from_numpy(self.content.bytes).to(ctx.torch_device)
        else:
            self.memory = torch.zeros(span, dtype=torch.uint8, device=ctx.torch_device)
        rng = np.random.default_rng(seed) if p["pattern"] == "random" else None
        self._walk = Walk(0, scratch.size // self.block, self.block, span // self.block, rng)
        self.offsets: Any = None
        self.file = kvikio.CuFile(f"/proc/self/fd/{scratch.descriptor}", "r+")
        self.fact = gpudirect_fact(kvikio)

    def place(self, i: int) -> int:
        """Where in memory block ``i`` of a call lies."""
        return int(self.offsets[i]) % self.content.period if self.writes else i * self.block

    def call(self) -> None:
        """Move one span and wait for it."""
        self.offsets = self._walk.take()
        move = self.file.pwrite if self.writes else self.file.pread
        waiting: list[Any] = []
        moved = 0
        for i, offset in enumerate(self.offsets):
            if len(waiting) == self.depth:
                moved += waiting.pop(0).get()
            at = self.place(i)
            waiting.append(move(self.memory[at : at + self.block], self.block, file_offset=int(offset)))
        moved += sum(future.get() for future in waiting)
        if moved != self.block * len(self.offsets):
            raise OSError(f"kvikio moved {moved} bytes of {self.block * len(self.offsets)}")
        if self.sync == "call":
            os.fdatasync(self.scratch.descriptor)

    def error(self) -> tuple[float, str]:
        """The share of wrong bytes of the latest call."""
        import numpy as np

        wrong = 0
        for i, offset in enumerate(self.offsets):
            want = self.content.expected(int(offset), self.block)
            if self.writes:
                found = np.frombuffer(os.pread(self.scratch.descriptor, self.block, int(offset)), np.uint8)
            else:
                found = self.memory[self.place(i) :][: self.block].cpu().numpy()
            wrong += self.block - int(np.count_nonzero(found == want)) if len(found) == self.block else self.block
        return wrong / (self.block * len(self.offsets)), "read back" if self.writes else "full"


def device_kernel(p: ParamValues, ctx: BuildContext, *, writes: bool) -> Kernel:
    """A kernel that moves blocks between a file and the device."""
    scratch = Scratch(folder_of(p), int(p["bytes"]))
    ctx.defer(scratch.close)
    job = DeviceJob(p, ctx, scratch, writes=writes)
    ctx.defer(job.file.close)
    return Kernel(job.call, {"job": job}, facts={**mount_facts(scratch.mount), "gpudirect": job.fact})
