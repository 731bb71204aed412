"""Blocks read from and written to a file: sequential or random, past the page cache or through it, many in flight."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.errors import UnsupportedError
from wattline.params import Choice, Constraint, Flag, Int, Param, Params, Value
from wattline.reasons import Reason
from wattline.suites.host.buffers import huge_share, on_the_host
from wattline.suites.host.stream import team_facts
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import cuda, module, never
from wattline.suites.storage.jobs import Job, span_fits
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
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload
from wattline.workmodels.storage import span_of

if TYPE_CHECKING:
    from wattline.stats import TimeStats

SECTOR = 512

_RULES = (
    Constraint(
        "bytes and span are multiples of block x threads, and span is no more than bytes (0: all of them)", span_fits
    ),
    Constraint(
        f"O_DIRECT moves multiples of {SECTOR} bytes: access = direct needs such a block",
        lambda p: p["access"] != "direct" or int(p["block"]) % SECTOR == 0,
    ),
    Constraint(
        "depth above 1 needs access = direct: Linux queues no other requests; threads make them run side by side",
        lambda p: int(p["depth"]) == 1 or p["access"] == "direct",
    ),
)
_SHARED: dict[str, Param] = {
    "path": PATH,
    "bytes": file_bytes(doc="bytes of the file"),
    "span": Int(0, lo=0, hi=2**44, doc="bytes that one call moves, the next call going on behind them; 0: the file"),
    "block": Int(2**20, hi=2**40, doc="bytes of one request"),
    "depth": Int(1, hi=4096, doc="requests in flight for each thread"),
    "threads": Int(1, hi=1024, doc="threads, each with a part of the file of its own"),
    "pattern": Choice("sequential", "random", doc="order of blocks; random: each block of a part once, then again"),
    "access": Choice("direct", "buffered", "mmap", doc="past the page cache, through it, or as memory"),
    "pages": Choice("small", "huge", doc="of memory: a device gets fewer and longer pieces of huge ones by O_DIRECT"),
    "cache": Choice("cold", "warm", doc="whether the page cache is emptied of the file before each call (not timed)"),
}


def asynchronous_known() -> Requirement:
    """The numbers of Linux's asynchronous calls, where more than one request is in flight."""

    def unmet(p: ParamValues, _: Machine) -> Reason | None:
        from wattline.suites.storage.loops import aio_known

        if int(p["depth"]) == 1 or aio_known():
            return None
        return Reason("no_aio", "asynchronous requests are known on x86-64 and on 64-bit ARM; depth = 1 runs here")

    return Requirement("asynchronous requests for depth above 1", unmet)


def fio_installed() -> Requirement:
    """The program fio, where a comparison with it is asked for."""

    def unmet(p: ParamValues, _: Machine) -> Reason | None:
        from shutil import which

        if not p["fio"] or which("fio"):
            return None
        return Reason("missing_program", "the comparison asks for fio, which is not installed")

    return Requirement("fio, where it is compared with", unmet)


_NEEDS = (
    on_the_host(), machine_is_linux(), module("numba"), asynchronous_known(), fio_installed(), on_storage(),
    room_for(lambda p: int(p["bytes"])),
)  # fmt: skip


class Moves(Workload):
    """What reading and writing have in common."""

    writes = False
    regime = "hot"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        scratch = Scratch(folder_of(p), int(p["bytes"]))
        ctx.defer(scratch.close)
        job = Job(p, scratch, writes=self.writes, seed=int(ctx.tensor((1,), "int8").item()) + 1000)
        ctx.defer(job.close)
        job.compile()
        threads = {"threads": p["threads"], "cpu_node": -1}
        facts = {**mount_facts(scratch.mount), **team_facts(threads), **job.access.facts}
        if p["pages"] == "huge":
            share = huge_share(job.memory)
            facts["huge_share"] = "unknown" if share is None else share
        if job.access.drops:
            job.access.drop()
            facts["cached_after_drop"] = job.access.cached_share()
        elif not self.writes and not job.access.bypasses:
            _read_all(scratch)
        return Kernel(job.call, {"job": job}, facts=facts, prepare=job.access.drop if job.access.drops else None)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: every byte of the call."""
        error, how = kernel.inputs["job"].error()
        return error, 0.0, how

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: memory for one call."""
        return float(span_of(p))

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`."""
        speed = span_of(p) / stats.median_s
        facts = {"bytes_per_s": speed, "requests_per_s": speed / int(p["block"])}
        job = kernels[0].inputs["job"]
        if isinstance(job, Job):
            facts |= job.tail()
            if p["fio"]:
                facts |= _beside_fio(p, job, speed, writes=self.writes)
        return facts

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: less moved of a smaller file."""
        unit = int(p["block"]) * int(p["threads"])
        smaller = max(1, size * 8192 // unit) * unit
        return None if span_of(p) <= smaller else {**p, "bytes": smaller, "span": 0, "fio": False}


def _beside_fio(p: ParamValues, job: Job, speed: float, *, writes: bool) -> dict[str, Any]:
    """What fio reaches on the same file; why it does not run is a fact too, and costs the case nothing."""
    from wattline.suites.storage.fio import fio_speed

    try:
        found = fio_speed(p, job, writes=writes)
    except UnsupportedError as error:
        return {"fio_refused": str(error)}
    return {"fio_bytes_per_s": found, "fio_ratio": speed / found}


def _read_all(scratch: Scratch) -> None:
    """Bring a file into the page cache."""
    for begin in range(0, scratch.size, 2**24):
        os.pread(scratch.descriptor, 2**24, begin)


@workload("storage.read", impl="posix", requires=_NEEDS)
class Read(Moves):
    """Blocks read from a file by pread(2), Linux's asynchronous requests or a mapping: loops compiled by numba."""

    params = Params(*_RULES, **_SHARED, fio=Flag(doc="run fio on the same file for comparison; takes two seconds"))


@workload("storage.write", impl="posix", requires=_NEEDS)
class Write(Moves):
    """Blocks of a file overwritten by pwrite(2), Linux's asynchronous requests or a mapping: compiled loops."""

    writes = True
    params = Params(
        *_RULES,
        Constraint(
            "sync = block needs depth = 1 and no mapping: each request waits for the device",
            lambda p: p["sync"] != "block" or (int(p["depth"]) == 1 and p["access"] != "mmap"),
        ),
        **_SHARED,
        sync=Choice("call", "block", "none", doc="fdatasync(2): after a call, after every block, or never"),
        fio=Flag(doc="run fio on the same file for comparison; takes two seconds"),
    )


_DEVICE_NEEDS = (
    cuda(),
    module("kvikio"),
    never(
        lambda p, m: p["access"] != "direct" or int(p["threads"]) != 1 or p["pages"] != "small" or bool(p["fio"]),
        "only_direct",
        "kvikio has threads and buffers of its own and does not use the page cache: access = direct, threads = 1, "
        "pages = small, fio = false",
    ),
    machine_is_linux(),
    on_storage(),
    room_for(lambda p: int(p["bytes"])),
)  # fmt: skip


@implementation("storage.read", "kvikio", requires=_DEVICE_NEEDS)
def _kvikio_read(p: ParamValues, ctx: BuildContext) -> Kernel:
    """From the file into the GPU's memory: GPUDirect Storage through kvikio."""
    from wattline.suites.storage.gpudirect import device_kernel

    return device_kernel(p, ctx, writes=False)


@implementation(
    "storage.write",
    "kvikio",
    requires=(*_DEVICE_NEEDS, never(lambda p, m: p["sync"] == "block", "no_block_sync", "kvikio syncs no blocks")),
)
def _kvikio_write(p: ParamValues, ctx: BuildContext) -> Kernel:
    """From the GPU's memory into the file: GPUDirect Storage through kvikio."""
    from wattline.suites.storage.gpudirect import device_kernel

    return device_kernel(p, ctx, writes=True)
