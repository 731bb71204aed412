"""Loops over the blocks of a file, compiled by numba: one call to the kernel after another, or many in flight.

They leave Python's lock and cost some tens of nanoseconds a block. Asynchronous requests are Linux's own (io_setup(2),
io_submit(2), io_getevents(2)), called by number since the C library has no functions for them.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""io_setup, io_destroy, io_getevents, io_submit; source: Linux, arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h."""
_CLOCK_MONOTONIC = 1
_MOST_INTERRUPTIONS = 1_000_000


def aio_known() -> bool:
    """Whether the numbers of the asynchronous calls are known on this machine."""
    return platform.machine() in _NUMBERS


@lru_cache(maxsize=1)
def _functions() -> tuple[Any, ...]:
    libc = ctypes.CDLL(None, use_errno=True)
    read, write, clock, call = libc.pread64, libc.pwrite64, libc.clock_gettime, libc.syscall
    libc.fdatasync.argtypes, libc.fdatasync.restype = [ctypes.c_int], ctypes.c_int
    libc.memcpy.argtypes, libc.memcpy.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_void_p
    for move in (read, write):
        move.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
        move.restype = ctypes.c_ssize_t
    clock.argtypes, clock.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_int
    # Variadic in C, but its arguments are passed in registers like any other's.
    call.argtypes, call.restype = [ctypes.c_long] * 7, ctypes.c_long
    return read, write, clock, call, libc.fdatasync, libc.memcpy


@lru_cache(maxsize=1)
def blocking() -> Callable[..., int]:
    """``(fd, writes, each, memory, at, offsets, block, taken, moment) -> blocks moved``: one block at a time.

    ``each``: wait until every block that is written is on the device (fdatasync(2)). ``memory`` and ``at``: address of
    the first byte and, for each block, where its bytes lie behind it. ``taken`` receives nanoseconds of each block;
    ``moment`` is room for the clock, two 64-bit words.
    """
    import numba

    read, write, clock, _, sync, _ = _functions()

    @numba.njit(nogil=True)
    def run(  # noqa: PLR0917 - compiled loops take plain arguments
        fd: int, writes: bool, each: bool, memory: int, at: Any, offsets: Any, block: int, taken: Any, moment: Any
    ) -> int:
        for i in range(len(offsets)):
            clock(_CLOCK_MONOTONIC, moment.ctypes)
            begin = moment[0] * 1_000_000_000 + moment[1]
            if writes:
                moved = write(fd, memory + at[i], block, offsets[i])
                if each and sync(fd) != 0:
                    return i
            else:
                moved = read(fd, memory + at[i], block, offsets[i])
            clock(_CLOCK_MONOTONIC, moment.ctypes)
            taken[i] = moment[0] * 1_000_000_000 + moment[1] - begin
            if moved != block:
                return i
        return len(offsets)

    found: Callable[..., int] = run
    return found


@lru_cache(maxsize=1)
def copying() -> Callable[..., int]:
    """``(mapping, writes, memory, at, offsets, block, taken, moment) -> blocks moved``: between memory and a mapping of
    the file that begins at the address ``mapping``, one block at a time; the rest as for :func:`blocking`.
    """
    import numba

    clock, _, _, copy = _functions()[2:]

    @numba.njit(nogil=True)
    def run(  # noqa: PLR0917 - compiled loops take plain arguments
        mapping: int, writes: bool, memory: int, at: Any, offsets: Any, block: int, taken: Any, moment: Any
    ) -> int:
        for i in range(len(offsets)):
            clock(_CLOCK_MONOTONIC, moment.ctypes)
            begin = moment[0] * 1_000_000_000 + moment[1]
            if writes:
                copy(mapping + offsets[i], memory + at[i], block)
            else:
                copy(memory + at[i], mapping + offsets[i], block)
            clock(_CLOCK_MONOTONIC, moment.ctypes)
            taken[i] = moment[0] * 1_000_000_000 + moment[1] - begin
        return len(offsets)

    found: Callable[..., int] = run
    return found


class Context:
    """The kernel's context of asynchronous requests.

    Args:
        depth: most requests in flight.

    Raises:
        OSError: the kernel gives none (a container may forbid it, or its limit is reached).
    """

    def __init__(self, depth: int) -> None:
        import weakref

        import numpy as np

        setup, destroy, *_ = _NUMBERS[platform.machine()]
        call = _functions()[3]
        handle = ctypes.c_ulong(0)
        if call(setup, depth, ctypes.addressof(handle), 0, 0, 0, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, "io_setup failed")
        self.handle = handle.value
        self.requests = np.zeros((depth, 8), np.int64)  # struct iocb: 64 bytes
        self.pointers = self.requests.ctypes.data + 64 * np.arange(depth, dtype=np.int64)
        self.events = np.zeros((depth, 4), np.int64)  # struct io_event: 32 bytes
        self.begins = np.zeros(depth, np.int64)
        self.moment = np.zeros(2, np.int64)
        self._finish = weakref.finalize(self, call, destroy, self.handle, 0, 0, 0, 0, 0)

    def close(self) -> None:
        """Give the context back."""
        self._finish()


@lru_cache(maxsize=1)
def asynchronous() -> Callable[..., int]:
    """``(handle, requests, pointers, events, begins, moment, fd, writes, memory, at, offsets, block, taken) -> moved``:
    as many blocks in flight as there are requests; each that ends makes room for the next.
    """
    import numba

    clock, call = _functions()[2:4]
    _, _, get_events, submit = _NUMBERS[platform.machine()]

    @numba.njit(nogil=True)
    def run(  # noqa: PLR0917 - compiled loops take plain arguments
        handle: int, requests: Any, pointers: Any, events: Any, begins: Any, moment: Any, fd: int, writes: bool,
        memory: int, at: Any, offsets: Any, block: int, taken: Any,
    ) -> int:  # fmt: skip
        depth, count = len(pointers), len(offsets)
        index = [0] * depth  # which block a request moves
        begun, ended, good = 0, 0, 0
        slot, free = 0, depth
        failed, interrupted = False, 0
        while ended < begun or (begun < count and not failed):
            while free > 0 and begun < count and not failed:
                slot = events[free - 1, 0] if begun >= depth else begun  # of a request that has ended
                requests[slot, 0] = slot
                requests[slot, 1] = 0
                requests[slot, 2] = (1 if writes else 0) | (fd << 32)
                requests[slot, 3] = memory + at[begun]
                requests[slot, 4] = block
                requests[slot, 5] = offsets[begun]
                index[slot] = begun
                clock(_CLOCK_MONOTONIC, moment.ctypes)
                begins[slot] = moment[0] * 1_000_000_000 + moment[1]
                if call(submit, handle, 1, pointers.ctypes.data + 8 * slot, 0, 0, 0) != 1:
                    failed = True
                    break
                begun += 1
                free -= 1
            if ended == begun:
                break
            # The first events of the array are overwritten: all that were there have been used above.
            got = call(get_events, handle, 1, depth, events.ctypes.data, 0, 0)
            clock(_CLOCK_MONOTONIC, moment.ctypes)
            now = moment[0] * 1_000_000_000 + moment[1]
            if got <= 0:
                # A signal may end the wait. Requests in flight would still write into memory: never leave them behind.
                interrupted += 1
                if interrupted > _MOST_INTERRUPTIONS:
                    return -1
                continue
            for e in range(got):
                slot = events[e, 0]
                taken[index[slot]] = now - begins[slot]
                if events[e, 2] == block:
                    good += 1
                else:
                    failed = True
            ended += got
            free = got if begun >= depth else free + got
        return good

    found: Callable[..., int] = run
    return found
