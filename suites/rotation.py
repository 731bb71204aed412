"""How many sets of buffers a regime rotates through, and the memory that a case then takes."""

from __future__ import annotations

from math import ceil

from wattline.case import REGIMES, Case
from wattline.errors import unknown_name
from wattline.suites.registry import get
from wattline.suites.workload import Machine

MAX_ROTATIONS = 4096
"""No more sets than this: it binds only where a set is smaller than 1/2048 of the last-level cache, and the
allocator's rounding then makes the sets larger than their contents."""

_ROTATING = frozenset({"cold", "graph"})


def rotations(footprint_bytes: float, cache_bytes: float, regime: str) -> int:
    """Sets of buffers to rotate through.

    Cold and graph: as many as together hold twice the last-level cache, at least 2, so that no call finds its
    inputs in the cache; hot and eager: 1.

    Args:
        footprint_bytes: bytes of one set.
        cache_bytes: the last-level cache.
        regime: one of :data:`wattline.case.REGIMES`.

    Raises:
        UnknownNameError: no such regime.
    """
    if regime not in REGIMES:
        raise unknown_name("regime", regime, REGIMES)
    if regime not in _ROTATING:
        return 1
    return min(max(2, ceil(2 * cache_bytes / max(footprint_bytes, 1.0))), MAX_ROTATIONS)


def estimate_memory(case: Case, machine: Machine) -> float:
    """Bytes that a case takes on the machine: one set of buffers times the sets it rotates through."""
    footprint = get(case.op).workload.footprint(case.params)
    return footprint * rotations(footprint, machine.cache_bytes, case.regime)
