"""Which level of the memory hierarchy holds a working set, by what the system reports of its caches."""

from __future__ import annotations

from typing import Any


def reported_caches(root: str = "/") -> dict[str, int]:
    """Bytes of one data or unified cache by level, ``{"L1": 49152, ...}``; empty where the kernel lists none."""
    from wattline.collectors.host import cpu_facts

    facts = cpu_facts(root)
    found = {f"L{level}": facts.cache_bytes(level) for level in range(1, 6)}
    return {name: size for name, size in found.items() if size}


def level_of(working_set: int, threads: int, root: str = "/") -> dict[str, Any]:
    """Facts: the first level that holds each thread's share of a set (the last cache is shared by all of them).

    Args:
        working_set: bytes.
        threads: that share it.
        root: root of the system's file tree, for tests.
    """
    caches = reported_caches(root)
    names = sorted(caches)
    for name in names:
        share = working_set if name == names[-1] and len(names) > 1 else working_set / threads
        if share <= caches[name]:
            return {"reported_level": name}
    return {"reported_level": "memory" if caches else "unknown"}
