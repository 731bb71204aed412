"""A state saved between steps of computation: how long do the steps wait for it?"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from wattline.params import Choice, Constraint, Float, Int, Params, Value
from wattline.suites.host.buffers import PAGE, host_array, on_the_host
from wattline.suites.host.spin import burn, rounds_for
from wattline.suites.host.team import shares
from wattline.suites.registry import workload
from wattline.suites.requirements import module
from wattline.suites.storage.content import words
from wattline.suites.storage.place import (
    PATH,
    Scratch,
    file_bytes,
    folder_of,
    machine_is_linux,
    mount_facts,
    on_storage,
    room_for,
)
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

if TYPE_CHECKING:
    from wattline.stats import TimeStats

PIECE = 8 * 2**20
"""Bytes of one write."""
_WORDS = PAGE // 8


class Training:
    """Steps that change a state, and a checkpoint of it before them.

    Args:
        p: the case.
        folder: where the shards go.
        seed: of the state.

    Attributes:
        state: 64-bit words ``[bytes / 8]``; every step adds one to the first word of each page.
        version: how often that had happened when the latest checkpoint was taken.
        spans: seconds of the parts of each call: ``snapshot``, ``write``, ``wait``.
    """

    def __init__(self, p: ParamValues, folder: str, seed: int) -> None:
        import numpy as np

        size = int(p["bytes"])
        self.snapshots, self.steps = p["mode"] == "snapshot", int(p["steps"])
        self.state = host_array(size // 8, "int64")
        self.start = words(size // 8, seed).view(np.int64)
        self.state[:] = self.start
        self.staging = host_array(size // 8, "int64") if self.snapshots else None
        if self.staging is not None:
            self.staging[:] = 0  # its pages exist before anything is timed
        self.version, self._added = 0, 0
        self._alone: list[float] = []
        self.spans: dict[str, list[float]] = {"snapshot": [], "write": [], "wait": []}
        self.edges = shares(size, int(p["shards"]), PAGE)
        self.rounds = rounds_for(float(p["step_s"])) if p["step_s"] else 0
        self.files: list[Scratch] = []
        self.direct_refused = ""
        self._descriptors: list[int] = []
        self._writers = ThreadPoolExecutor(min(int(p["writers"]), len(self.edges)), "wattline-checkpoint")
        for begin, end in self.edges:
            self.files.append(Scratch(folder, end - begin))
            self._descriptors.append(self._open(self.files[-1], str(p["access"])))

    def _open(self, file: Scratch, access: str) -> int:
        if access == "direct":
            try:
                return file.again(os.O_RDWR | os.O_DIRECT)
            except OSError as error:
                self.direct_refused = f"{file.mount.kind} refuses O_DIRECT: {error.strerror}"
        return file.descriptor

    def compute(self) -> None:
        """The steps alone, each ending with an update of the state."""
        for _ in range(self.steps):
            if self.rounds:
                burn()(self.rounds, 1.0)
            self.state[::_WORDS] += 1
            self._added += 1

    def compute_alone(self, times: int = 3) -> float:
        """Median seconds of the steps with nothing beside them, over all times that this was asked."""
        for _ in range(times):
            begin = time.perf_counter()
            self.compute()
            self._alone.append(time.perf_counter() - begin)
        return statistics.median(self._alone)

    def call(self) -> None:
        """Save the state, then go on with the steps, or both at once from a copy."""
        self.version = self._added
        began = time.perf_counter()
        if self.staging is None:
            self._finish(self._begin(self.state))
            self.spans["write"].append(time.perf_counter() - began)
            self.compute()
            return
        self.staging[:] = self.state
        copied = time.perf_counter()
        waiting = self._begin(self.staging)
        self.compute()
        computed = time.perf_counter()
        ended = self._finish(waiting)
        self.spans["snapshot"].append(copied - began)
        self.spans["write"].append(ended - copied)
        self.spans["wait"].append(time.perf_counter() - computed)

    def _begin(self, source: Any) -> list[Future[float]]:
        view = memoryview(source).cast("B")
        return [self._writers.submit(self._save, i, view) for i in range(len(self.edges))]

    @staticmethod
    def _finish(waiting: list[Future[float]]) -> float:
        return max(future.result() for future in waiting)

    def _save(self, i: int, view: memoryview) -> float:
        """Write one shard anew, as a checkpoint that replaces an older one; returns when it was on the device."""
        begin, end = self.edges[i]
        descriptor = self._descriptors[i]
        os.ftruncate(descriptor, 0)
        os.posix_fallocate(descriptor, 0, end - begin)
        at = begin
        while at < end:
            at += os.pwrite(descriptor, view[at : min(end, at + PIECE)], at - begin)
        os.fdatasync(descriptor)
        return time.perf_counter()

    def error(self) -> tuple[float, str]:
        """The share of wrong bytes on the device: the state as it was when the checkpoint began."""
        import numpy as np

        expected = self.start.copy()
        expected[::_WORDS] += self.version
        wanted = expected.view(np.uint8)
        wrong = 0
        for (begin, end), file in zip(self.edges, self.files, strict=True):
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.descriptor).st_size
            for at in range(begin, end, PIECE):
                stop = min(end, at + PIECE)
                found = np.frombuffer(os.pread(file.descriptor, stop - at, at - begin), np.uint8)
                same = int(np.count_nonzero(found == wanted[at : at + len(found)]))
                wrong += stop - at - same
            wrong += abs(size - (end - begin))
        return wrong / len(wanted), "read back from the device"

    def close(self) -> None:
        """End the writers and remove the files."""
        self._writers.shutdown()
        for file in self.files:
            file.close()


@workload(
    "storage.checkpoint",
    impl="posix",
    requires=(
        on_the_host(), machine_is_linux(), module("numba"), on_storage(), room_for(lambda p: int(p["bytes"])),
    ),
)  # fmt: skip
class Checkpoint(Workload):
    """A state written to shards between steps: while they wait, or from a snapshot while they go on."""

    params = Params(
        Constraint(
            "bytes hold at least one page of 4096 bytes for each shard, and are a multiple of it",
            lambda p: int(p["bytes"]) >= PAGE * int(p["shards"]) and int(p["bytes"]) % PAGE == 0,
        ),
        path=PATH,
        bytes=file_bytes(doc="bytes of the state"),
        shards=Int(1, hi=4096, doc="files that the state is split over"),
        writers=Int(1, hi=256, doc="most threads that write"),
        mode=Choice("blocking", "snapshot", doc="write, then compute; or copy, then write while computing"),
        access=Choice("buffered", "direct", doc="through the page cache and synced, or past it"),
        steps=Int(4, lo=0, hi=10_000, doc="steps of computation between checkpoints, each changing the state"),
        step_s=Float(0.01, hi=60.0, doc="seconds of computation of a step"),
    )
    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        training = Training(p, folder_of(p), int(ctx.tensor((1,), "int8").item()) + 1000)
        ctx.defer(training.close)
        training.compute_alone()
        facts: dict[str, Any] = mount_facts(training.files[0].mount)
        if training.direct_refused:
            facts |= {"access_used": "buffered", "direct_refused": training.direct_refused}
        return Kernel(training.call, {"training": training}, facts=facts)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: every byte of every shard."""
        error, how = kernel.inputs["training"].error()
        return error, 0.0, how

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the state, what it was, and the copy."""
        return float(int(p["bytes"])) * (3 if p["mode"] == "snapshot" else 2)

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`: the stall is what a call takes beyond its steps."""
        training = kernels[0].inputs["training"]
        alone = training.compute_alone()  # before and after what was timed: other load on the machine comes and goes
        spans = {f"{name}_s": statistics.median(taken) for name, taken in training.spans.items() if taken}
        stall = stats.median_s - alone
        facts = {**spans, "compute_alone_s": alone, "stall_s": stall}
        facts["write_bytes_per_s"] = int(p["bytes"]) / spans["write_s"]
        if int(p["steps"]):
            facts["stall_share"] = stall / stats.median_s
        return facts

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: a smaller state, in proportion to which the steps are shorter."""
        smaller = max(size * 8192, PAGE * int(p["shards"]))
        if int(p["bytes"]) <= smaller:
            return None
        return {**p, "bytes": smaller, "step_s": float(p["step_s"]) * smaller / int(p["bytes"])}
