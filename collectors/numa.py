"""Memory nodes: which there are, which processors belong to them, and memory placed on one of them.

A node without processors is how Linux shows CXL memory, and memory of a GPU that is coherent with the host's.
Sources: mbind(2), get_mempolicy(2), and Linux's Documentation/admin-guide/mm/numa_memory_policy.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import Any

from wattline.collectors.host import parse_cpu_list, read_text
from wattline.errors import UnsupportedError

NODES = "sys/devices/system/node"
_MBIND = {"x86_64": 237, "aarch64": 235}
_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236}
_MPOL_BIND = 2
_MPOL_F_NODE, _MPOL_F_ADDR = 1, 2
_MPOL_MF_STRICT, _MPOL_MF_MOVE = 1, 2
_MAX_NODES = 1024


def memory_nodes(root: str = "/") -> tuple[int, ...]:
    """Numbers of the nodes that hold memory; ``(0,)`` where the kernel knows no nodes."""
    return parse_cpu_list(read_text(root, f"{NODES}/has_memory")) or (0,)


def cpus_of(node: int, root: str = "/") -> tuple[int, ...]:
    """The processors of a node; ``()`` of one that is memory only."""
    return parse_cpu_list(read_text(root, f"{NODES}/node{node}/cpulist"))


def describe_node(node: int, root: str = "/") -> str:
    """A node in words: ``"node 2 (memory only, as CXL)"``."""
    if read_text(root, f"{NODES}/node{node}/cpulist") == "":
        return f"node {node} (memory only, as CXL)"
    return f"node {node}"


def _syscall(numbers: dict[str, int], what: str, *arguments: Any) -> int:
    number = numbers.get(platform.machine())
    if number is None or os.name != "posix":
        raise UnsupportedError(f"{what} is not known on {platform.machine()}", code="no_numa")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(ctypes.c_long(number), *arguments))


def place(address: int, length: int, node: int) -> None:
    """Hold pages to a node, those that exist already moved there.

    Args:
        address: start, a multiple of the page size.
        length: bytes.
        node: its number.

    Raises:
        UnsupportedError: the kernel refuses (no such node, or a container forbids it).
    """
    mask = (ctypes.c_ulong * (_MAX_NODES // (8 * ctypes.sizeof(ctypes.c_ulong))))()
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask[node // bits] |= 1 << (node % bits)
    failed = _syscall(
        _MBIND, "mbind", ctypes.c_void_p(address), ctypes.c_ulong(length), ctypes.c_int(_MPOL_BIND), mask,
        ctypes.c_ulong(_MAX_NODES), ctypes.c_uint(_MPOL_MF_STRICT | _MPOL_MF_MOVE),
    )  # fmt: skip
    if failed:
        code = ctypes.get_errno()
        why = os.strerror(code)
        if code in (errno.EPERM, errno.ENOSYS):
            why += ": containers often forbid mbind"
        raise UnsupportedError(f"memory cannot be placed on node {node}", why=why, code="no_numa")


def node_at(address: int) -> int | None:
    """The node that holds the page at an address (it must have been touched); ``None`` where that cannot be asked."""
    found = ctypes.c_int(-1)
    try:
        failed = _syscall(
            _GET_MEMPOLICY, "get_mempolicy", ctypes.byref(found), None, ctypes.c_ulong(0), ctypes.c_void_p(address),
            ctypes.c_ulong(_MPOL_F_NODE | _MPOL_F_ADDR),
        )  # fmt: skip
    except UnsupportedError:
        return None
    return None if failed else int(found.value)
