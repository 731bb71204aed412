"""Host memory as measurements need it: whole pages, on a node that is named, in small or huge pages."""

from __future__ import annotations

import mmap
from typing import Any

from wattline.collectors.numa import cpus_of, memory_nodes, node_at, place
from wattline.reasons import Reason
from wattline.suites.workload import Machine, ParamValues, Requirement

PAGE = 4096
HUGE = 2 * 2**20


def host_array(count: int, numpy_name: str, *, node: int = -1, huge: bool = False) -> Any:
    """An array ``[count]`` on pages of its own, not touched yet.

    Args:
        count: elements.
        numpy_name: numpy's name of their type, e.g. ``"float64"``.
        node: memory node that holds it; -1: where its pages are first touched.
        huge: ask for huge pages (``madvise``); the kernel may decline.

    Raises:
        UnsupportedError: the memory cannot be placed on that node.
    """
    import numpy as np

    length = max(PAGE, -(-count * np.dtype(numpy_name).itemsize // PAGE) * PAGE)
    if huge:
        length = -(-length // HUGE) * HUGE + HUGE  # so that a boundary of 2 MiB can be chosen
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = np.frombuffer(memory, dtype=np.uint8)
    if huge:
        memory.madvise(mmap.MADV_HUGEPAGE)
        raw = raw[-raw.ctypes.data % HUGE :]
    else:
        # Where huge pages are on for all, curves would mix both kinds.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    if node >= 0:
        place(raw.ctypes.data // PAGE * PAGE, len(raw) // PAGE * PAGE, node)
    return raw[: count * np.dtype(numpy_name).itemsize].view(numpy_name)


def huge_share(array: Any) -> float | None:
    """The share of an array that lies in huge pages, from ``/proc/self/smaps``; ``None`` where that is not shown."""
    address, length = array.ctypes.data, array.nbytes
    try:
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
            inside = False
            for line in lines:
                head = line.split(maxsplit=1)[0]
                if "-" in head and not head.endswith(":"):
                    begin, _, end = head.partition("-")
                    inside = int(begin, 16) <= address < int(end, 16)
                elif inside and head == "AnonHugePages:":
                    return float(min(1.0, int(line.split()[1]) * 1024 / length))
    except (OSError, ValueError, IndexError):
        return None
    return None


def placed_on(array: Any) -> str:
    """The nodes that hold an array, seen at 16 pages: ``"0"``, ``"0,1"``; ``"unknown"`` where the kernel is silent."""
    steps = range(0, array.nbytes, max(PAGE, array.nbytes // 16 // PAGE * PAGE))
    found = {node_at(array.ctypes.data + step) for step in steps}
    return ",".join(str(node) for node in sorted(n for n in found if n is not None)) or "unknown"


def on_the_host() -> Requirement:
    """The operation measures the host: its figures belong to runs of the device ``cpu``."""

    def unmet(_: ParamValues, machine: Machine) -> Reason | None:
        if machine.kind == "cpu":
            return None
        return Reason("host_only", "it measures the host, and this run measures a GPU: add --device cpu")

    return Requirement("a run of the device cpu", unmet)


def nodes_exist() -> Requirement:
    """The parameters ``node`` and ``cpu_node`` name nodes of this machine, the latter one with processors."""

    def unmet(p: ParamValues, _: Machine) -> Reason | None:
        node, cpu_node = int(p.get("node", -1)), int(p.get("cpu_node", -1))
        known = memory_nodes()
        if node >= 0 and node not in known:
            return Reason("no_node", f"there is no memory node {node}; nodes with memory: {', '.join(map(str, known))}")
        if cpu_node >= 0 and not cpus_of(cpu_node):
            return Reason("no_node", f"node {cpu_node} has no processors, or does not exist")
        return None

    return Requirement("memory nodes that exist", unmet)
