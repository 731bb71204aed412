"""What files hold: words that follow from their position, so that a block in the wrong place shows."""

from __future__ import annotations

import os
from typing import Any

PERIOD = 16 * 2**20
"""Bytes after which the content repeats. Blocks never straddle it unaligned: see :func:`expected`."""


def words(count: int, seed: int) -> Any:
    """``count`` 64-bit words that no device can compress: splitmix64 of their index (G. Steele, D. Lea and C. Flood,
    "Fast splittable pseudorandom number generators", OOPSLA 2014)."""
    import numpy as np

    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Content:
    """The content of one file.

    Args:
        size: bytes of the file.
        block: bytes of its blocks; the period is a multiple of them, so that each block is one stretch of it.
        seed: of the words.
        memory: bytes ``[period]`` to fill, for instance on pages of their own; ``None``: made here.
    """

    def __init__(self, size: int, block: int, seed: int, memory: Any = None) -> None:
        import numpy as np

        self.size = size
        self.period = period_of(size, block)
        self.bytes = np.empty(self.period, np.uint8) if memory is None else memory
        filled = words(-(-self.period // 8), seed).view(np.uint8)
        self.bytes[:] = filled[: self.period]

    def expected(self, offset: int, count: int) -> Any:
        """Bytes ``[count]`` from ``offset`` on."""
        import numpy as np

        at = offset % self.period
        if at + count <= self.period:
            return self.bytes[at : at + count]
        return np.take(self.bytes, np.arange(at, at + count), mode="wrap")

    def write_to(self, descriptor: int) -> None:
        """Fill a file from its beginning, and wait until it is on the device."""
        done = 0
        while done < self.size:
            piece: Any = self.bytes[: min(self.period, self.size - done)]
            done += _write_all(descriptor, memoryview(piece), done)
        os.fsync(descriptor)


def period_of(size: int, block: int) -> int:
    """Bytes after which the content of a file repeats: a multiple of its blocks, no more than the file."""
    return min(size, max(block, PERIOD // block * block))


def _write_all(descriptor: int, data: memoryview, offset: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
    return done
