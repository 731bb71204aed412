"""Work of keeping data one level further out: bytes over the link between host and device, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.work import Work
from wattline.workmodels.arith import ceil_div, most

ADAM_FLOPS = 14
"""Operations of Adam for one parameter (D. Kingma and J. Ba, "Adam", ICLR 2015, algorithm 1): first moment 3, second 4,
both bias corrections 2, root, sum, quotient, product and difference 5."""


def _chunks(p: Mapping[str, Any]) -> Any:
    chunk = p["chunk"] + p["bytes"] * (p["chunk"] == 0)
    return 1.0 * ceil_div(p["bytes"], chunk)


def transfer(p: Mapping[str, Any]) -> Work:
    """Bytes that cross the link in one direction.

    Args:
        p: ``bytes``, ``chunk`` (bytes of one copy; 0: all).
    """
    return Work(messages={"pcie": _chunks(p)}, link_bytes={"pcie": 1.0 * p["bytes"]})


def bidirectional(p: Mapping[str, Any]) -> Work:
    """``bytes`` in each direction at once: the link has a lane for each, so one direction bounds."""
    size = 1.0 * p["bytes"]
    return Work(messages={"pcie": 2 * _chunks(p)}, link_bytes={"pcie": size}, details={"both_bytes": 2 * size})


def within(p: Mapping[str, Any]) -> Work:
    """A copy within the device's memory: read once, written once."""
    return Work(bytes_read={"device": 1.0 * p["bytes"]}, bytes_written={"device": 1.0 * p["bytes"]})


def gather(p: Mapping[str, Any]) -> Work:
    """Rows of a table on the host that the device needs.

    Args:
        p: ``rows`` and ``row_bytes``.
    """
    size = 1.0 * p["rows"] * p["row_bytes"]
    return Work(bytes_read={"host": size}, link_bytes={"pcie": size}, messages={"pcie": 1.0 * p["rows"]})


def swap(p: Mapping[str, Any]) -> Work:
    """Blocks of a KV cache moved to or from the host: ``blocks`` of ``block_bytes``."""
    return Work(
        messages={"pcie": 1.0 * p["blocks"]}, link_bytes={"pcie": 1.0 * p["blocks"] * p["block_bytes"]}
    )


def pinned(p: Mapping[str, Any]) -> Work:
    """Allocation moves nothing: ``count`` buffers of ``bytes``."""
    return Work(details={"allocated_bytes": 1.0 * p["bytes"] * p["count"], "buffers": 1.0 * p["count"]})


def pipeline(p: Mapping[str, Any]) -> Work:
    """Layers fetched from where they are kept.

    Args:
        p: ``layers``, ``bytes`` (of a layer), ``source`` (``"storage"`` or ``"host"``), ``to`` (``"host"`` or
            ``"device"``).
    """
    size = 1.0 * p["layers"] * p["bytes"]
    return Work(
        bytes_read={str(p.get("source", "storage")): size},
        link_bytes={"pcie": size} if p.get("to", "host") == "device" else {},
    )


def adam(p: Mapping[str, Any]) -> Work:
    """One step of Adam in fp32: parameter, gradient and both moments read, all but the gradient written.

    Over the link go the gradients of the part that the CPU updates, and its parameters back: one of them bounds, as the
    link has a lane for each direction.

    Args:
        p: ``parameters``, ``cpu_share``.
    """
    count = 1.0 * p["parameters"]
    moved = 4.0 * count * p["cpu_share"]
    return Work(
        {"fp32": ADAM_FLOPS * count}, {"device": 16.0 * count}, {"device": 12.0 * count}, link_bytes={"pcie": moved}
    )


def split_step_s(cpu_share: Any, cpu_s: float, link_s: float, device_s: float) -> Any:
    """Seconds of a step whose parameters are split between CPU and device, by what each needs for all of them.

    Both work side by side, and the CPU's part crosses the link before and after (J. Ren et al., "ZeRO-Offload", USENIX
    ATC 2021, arXiv:2101.06840, with the split as in A. Maurya et al., "Deep Optimizer States", arXiv:2410.21316).

    Args:
        cpu_share: share that the CPU updates.
        cpu_s, device_s: seconds that either needs for all parameters.
        link_s: seconds for all gradients down and all parameters up.
    """
    return most((1 - cpu_share) * device_s, cpu_share * (cpu_s + link_s))


def best_split(cpu_s: float, link_s: float, device_s: float) -> float:
    """The share of the CPU that makes :func:`split_step_s` least: both sides end together."""
    return device_s / (device_s + cpu_s + link_s)
