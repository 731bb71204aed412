"""Large baselines beside small kernels: dense copies of a matrix that other implementations store compactly."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary

from wattline.suites.workload import BuildContext

_copies: WeakKeyDictionary[BuildContext, list[Any]] = WeakKeyDictionary()
_turn: WeakKeyDictionary[BuildContext, int] = WeakKeyDictionary()


def in_turn(ctx: BuildContext, size: int, make: Callable[[], Any]) -> Any:
    """A matrix of ``size`` bytes for the next set of buffers: a new one, or one of an earlier set.

    Sets are counted by what the compact storage takes, so that its caches are cold. As many dense copies might not fit
    in memory, nor need they: used in turn, copies of together twice the last-level cache evict each other.
    """
    cache = ctx.machine.cache_bytes
    enough = max(2, ceil(2 * cache / size)) if cache else 2**31
    copies = _copies.setdefault(ctx, [])
    turn = _turn[ctx] = _turn.get(ctx, -1) + 1
    if turn < enough:
        copies.append(make())
    return copies[turn % enough]
