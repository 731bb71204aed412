"""What a storage case does again and again: blocks of one file, moved by threads in an order that is known."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

from wattline.errors import UnsupportedError
from wattline.suites.host.buffers import PAGE, host_array
from wattline.suites.host.team import Team
from wattline.suites.storage.content import Content
from wattline.suites.storage.place import Scratch
from wattline.suites.workload import ParamValues
from wattline.workmodels.storage import span_of

KEPT = 1 << 18
"""Blocks whose latencies are kept for each thread: the newest ones."""


class Walk:
    """The offsets that one thread visits, a stretch at a time, round and round.

    Args:
        first, count: the thread's share of the file, in blocks.
        block: bytes of one.
        each: blocks of one stretch.
        rng: a numpy generator for a random order, or ``None`` for one after another.
    """

    def __init__(self, first: int, count: int, block: int, each: int, rng: Any = None) -> None:
        import numpy as np

        order = np.arange(count) if rng is None else rng.permutation(count)
        # Longer by one stretch, so that every stretch is one slice: nothing is allocated in what is timed.
        self._offsets = np.resize(order, count + each).astype(np.int64) + first
        self._offsets *= block
        self._count, self._each, self._at = count, each, 0

    def take(self) -> Any:
        """The offsets of the next stretch, in bytes."""
        begin = self._at
        self._at = (begin + self._each) % self._count
        return self._offsets[begin : begin + self._each]


class Access:
    """A file opened in the way that a case asks for.

    Attributes:
        descriptor: to move blocks through.
        mapping: of the file, where it is read and written as memory.
        facts: how the page cache is dealt with, and what was refused.
    """

    def __init__(self, scratch: Scratch, access: str, cache: str, block: int) -> None:
        self.scratch, self.descriptor, self.mapping = scratch, scratch.descriptor, None
        self.facts: dict[str, Any] = {"access_used": access}
        drops = cache == "cold"
        if access == "direct":
            try:
                self.descriptor = scratch.again(os.O_RDWR | os.O_DIRECT)
            except OSError as error:
                # Named in the record: neither hidden, nor a reason to measure nothing.
                drops = True
                self.facts["access_used"] = "buffered"
                self.facts["direct_refused"] = f"{scratch.mount.kind} refuses O_DIRECT: {error.strerror}"
            else:
                _try_block(self.descriptor, block)
        elif access == "mmap":
            self.mapping = mmap.mmap(scratch.descriptor, scratch.size, flags=mmap.MAP_SHARED)
        self.bypasses = self.facts["access_used"] == "direct"
        self.drops = drops and not self.bypasses
        if self.bypasses:
            self.facts["page_cache"] = "bypassed by O_DIRECT"
        else:
            self.facts["page_cache"] = "dropped by posix_fadvise before every call" if self.drops else "kept"

    def address(self) -> int:
        """Where the mapping begins."""
        import numpy as np

        return int(np.frombuffer(self.mapping, np.uint8).ctypes.data) if self.mapping is not None else 0

    def drop(self) -> None:
        """Write what is dirty and take the file's pages out of the page cache; pages of the mapping first."""
        os.fdatasync(self.scratch.descriptor)
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self.scratch.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def cached_share(self) -> float:
        """The share of the file's pages that the page cache holds (mincore(2))."""
        import numpy as np

        view = mmap.mmap(self.scratch.descriptor, self.scratch.size, flags=mmap.MAP_SHARED)
        pages = np.zeros(-(-self.scratch.size // PAGE), np.uint8)
        raw = np.frombuffer(view, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        if libc.mincore(raw.ctypes.data, self.scratch.size, pages.ctypes.data) != 0:
            raise OSError(ctypes.get_errno(), "mincore failed")
        del raw
        view.close()
        return float((pages & 1).mean())


def _try_block(descriptor: int, block: int) -> None:
    """Read one block: devices differ in what O_DIRECT takes.

    Raises:
        UnsupportedError: blocks of this size are refused.
    """
    try:
        os.preadv(descriptor, [memoryview(mmap.mmap(-1, -(-block // PAGE) * PAGE))[:block]], 0)
    except OSError as error:
        raise UnsupportedError(
            f"O_DIRECT refuses blocks of {block} bytes here", why=error.strerror or "", code="unaligned"
        ) from None


class Job:
    """Blocks of a file, moved in one call by all threads together.

    Args:
        p: the case.
        scratch: the file, ``bytes`` long.
        writes: into the file, instead of out of it.
        seed: of content and order.

    Attributes:
        content: what the file holds, or after a write should hold.
        team: the threads; close it.
        offsets: of the blocks that each thread moved in the latest call.
    """

    def __init__(self, p: ParamValues, scratch: Scratch, *, writes: bool, seed: int) -> None:
        import numpy as np

        self.block, self.depth, self.threads = int(p["block"]), int(p["depth"]), int(p["threads"])
        self.writes, self.sync = writes, str(p.get("sync", "none"))
        size, span = scratch.size, int(span_of(p))
        self.content = Content(size, self.block, seed)
        self.content.write_to(scratch.descriptor)
        if writes:
            # What is written differs from what was there, so that a block left out shows.
            pages = host_array(self.content.period, "uint8", huge=p["pages"] == "huge")
            self.content = Content(size, self.block, seed + 1, pages)
            self.memory = pages
        else:
            self.memory = host_array(span, "uint8", huge=p["pages"] == "huge")
            self.memory[:] = 0  # pages exist before anything is timed
        self.access = Access(scratch, str(p["access"]), str(p["cache"]), self.block)
        each, share = span // self.block // self.threads, size // self.block // self.threads
        rngs = np.random.default_rng(seed).spawn(self.threads)
        self._walks = [
            Walk(t * share, share, self.block, each, rngs[t] if p["pattern"] == "random" else None)
            for t in range(self.threads)
        ]
        self._at = [(t * each + np.arange(each, dtype=np.int64)) * self.block for t in range(self.threads)]
        self.offsets: list[Any] = [None] * self.threads
        self._moments = [np.zeros(2, np.int64) for _ in range(self.threads)]
        rooms = max(1, KEPT // each)
        self._taken = np.zeros((self.threads, rooms, each), np.int64)
        self._calls = 0
        self._queues: list[Any] = []
        self._mapped = self.access.address()
        self.team = Team(self.threads)
        self._move = self._mover()

    def _mover(self) -> Callable[[int], int]:
        from wattline.suites.storage.loops import Context, asynchronous, blocking, copying

        fd, base = self.access.descriptor, int(self.memory.ctypes.data)
        if self.access.mapping is not None:
            copy = copying()
            return lambda t: copy(
                self._mapped, self.writes, base, self.places(t), self.offsets[t], self.block, self.latencies(t),
                self._moments[t],
            )  # fmt: skip
        if self.depth == 1 or not self.access.bypasses:
            one, each = blocking(), self.sync == "block"
            return lambda t: one(
                fd, self.writes, each, base, self.places(t), self.offsets[t], self.block, self.latencies(t),
                self._moments[t],
            )  # fmt: skip
        many, self._queues = asynchronous(), [Context(self.depth) for _ in range(self.threads)]
        return lambda t: many(
            self._queues[t].handle, self._queues[t].requests, self._queues[t].pointers, self._queues[t].events,
            self._queues[t].begins, self._queues[t].moment, fd, self.writes, base, self.places(t), self.offsets[t],
            self.block, self.latencies(t),
        )  # fmt: skip

    def places(self, t: int) -> Any:
        """Where in memory the blocks of a thread lie: what is written is a stretch of the content."""
        return self.offsets[t] % self.content.period if self.writes else self._at[t]

    def latencies(self, t: int) -> Any:
        """Room for the nanoseconds of the blocks of this call."""
        return self._taken[t, self._calls % self._taken.shape[1]]

    def _part(self, t: int) -> None:
        self.offsets[t] = self._walks[t].take()
        moved = self._move(t)
        if moved != len(self.offsets[t]):
            self._explain(t, moved)

    def _explain(self, t: int, moved: int) -> None:
        """Raise what the system says of the block that did not move, by moving it once more."""
        offset = int(self.offsets[t][max(0, moved)])
        at = int(self.places(t)[max(0, moved)])
        view = memoryview(self.memory)[at : at + self.block]
        again = os.pwritev if self.writes else os.preadv
        count = again(self.access.descriptor, [view], offset)
        raise OSError(f"of {self.block} bytes at {offset} of the file not all were moved ({count} when tried again)")

    def call(self) -> None:
        """Move one span, and wait until it is on the device where that is asked for."""
        self.team.run(self._part)
        self._calls += 1
        if self.sync == "call":
            if self.access.mapping is not None:
                self.access.mapping.flush()
            else:
                os.fdatasync(self.access.descriptor)

    def compile(self) -> None:
        """Compile the loops without moving anything: no offsets are given."""
        import numpy as np

        walks, self._walks = self._walks, [_Empty()] * self.threads
        kept, self._taken = self._taken, np.zeros((self.threads, 1, 0), np.int64)
        self._part(0)
        self._walks, self._taken = walks, kept

    def tail(self) -> dict[str, float]:
        """Median, 99th percentile and largest of the seconds per block, over the calls that are kept."""
        import numpy as np

        rows = min(self._calls, self._taken.shape[1])
        seen = self._taken[:, :rows].ravel()
        if not len(seen):
            return {}
        p50, p99, most = np.percentile(seen, [50, 99, 100]) * 1e-9
        return {"block_p50_s": float(p50), "block_p99_s": float(p99), "block_max_s": float(most)}

    def error(self) -> tuple[float, str]:
        """The share of wrong bytes of the latest call: in memory, or read back from the device."""
        import numpy as np

        wrong = seen = 0
        pages = host_array(self.block, "uint8")
        if self.writes and not self.access.bypasses:
            self.access.drop()
        for t, offsets in enumerate(self.offsets):
            for at, offset in zip(self.places(t), offsets, strict=True):
                if self.writes:
                    count = os.preadv(self.access.descriptor, [memoryview(pages)], int(offset))
                    found = pages if count == self.block else pages[:0]
                else:
                    found = self.memory[at : at + self.block]
                want = self.content.expected(int(offset), self.block)
                wrong += self.block - int(np.count_nonzero(found == want)) if len(found) else self.block
                seen += self.block
        return wrong / seen, "read back from the device" if self.writes else "full"

    def close(self) -> None:
        """End the threads and give the queues back."""
        self.team.close()
        for queue in self._queues:
            queue.close()
        if self.access.mapping is not None:
            self.access.mapping.close()  # a mapping would keep the file alive


class _Empty(Walk):
    """A walk of no blocks."""

    def __init__(self) -> None:
        pass

    def take(self) -> Any:
        """No offsets."""
        import numpy as np

        return np.zeros(0, np.int64)


def span_fits(p: ParamValues) -> bool:
    """Whether file and span are whole numbers of blocks for every thread, and the span is no more than the file."""
    unit = int(p["block"]) * int(p["threads"])
    size, span = int(p["bytes"]), int(span_of(p))
    return span <= size and size % unit == 0 and span % unit == 0
