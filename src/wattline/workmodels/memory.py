"""Work of loops over arrays and of pointer chases: what crosses the boundary of a working set, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import ceil_div, least, most

ONCE = 32 * 2**20
"""Working sets from here on are passed over once in a call."""
TRAFFIC = 256 * 2**20
"""Bytes that a call touches of a smaller one, in many passes: so many that the start of threads is lost in them."""

LINE = 64
"""Bytes of a cache line, which a step of a chase moves."""

# Arrays, those read, those written, operations per element.
_LOOPS: dict[str, tuple[int, int, int, int]] = {
    "copy": (2, 1, 1, 0),
    "scale": (2, 1, 1, 1),
    "add": (3, 2, 1, 1),
    "triad": (3, 2, 1, 2),
    "read": (1, 1, 0, 0),
    "write": (1, 0, 1, 0),
}


def arrays_of(kernel: str) -> int:
    """Arrays that a loop works on."""
    return _LOOPS[kernel][0]


def elements_of(p: Mapping[str, Any]) -> Any:
    """Elements of each array: ``bytes`` are all of them together."""
    return p["bytes"] // (_LOOPS[str(p["kernel"])][0] * int(number_format(p["dtype"]).bytes))


def passes_of(working_set: Any) -> Any:
    """How often a call passes over its working set: once from :data:`ONCE` on."""
    return most(1, ceil_div(TRAFFIC, most(1, working_set)) * (working_set < ONCE))


def loop(p: Mapping[str, Any]) -> Work:
    """A loop over arrays, as in STREAM (J. McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance
    Computers", IEEE TCCA Newsletter, 1995): lines that a store fetches before it overwrites them are not counted.

    At the level ``"device"`` each array counts once, whatever the number of passes: what a cache holds moves once.
    ``traffic_bytes`` counts every pass, and so do the ``operations``, which bound nothing here.

    Args:
        p: ``kernel``, ``bytes`` (all arrays together), ``dtype``.
    """
    _, read, written, operations = _LOOPS[str(p["kernel"])]
    fmt = number_format(p["dtype"])
    size = 1.0 * elements_of(p) * fmt.bytes
    passes = passes_of(size * _LOOPS[str(p["kernel"])][0])
    return Work(
        {},
        {"device": read * size},
        {"device": written * size},
        details={
            "passes": passes,
            "traffic_bytes": (read + written) * size * passes,
            "operations": 1.0 * operations * elements_of(p) * passes,
        },
    )


def chase(p: Mapping[str, Any]) -> Work:
    """A pointer chase: ``steps`` loads, each of which waits for the one before.

    Bytes: a line for each step, but no more than the working set, which a cache may hold.

    Args:
        p: ``bytes`` (the working set) and ``steps``.
    """
    return Work({}, {"device": 1.0 * least(p["steps"] * LINE, p["bytes"])}, details={"loads": 1.0 * p["steps"]})
