"""Work of storage: bytes that cross the boundary of a file system, at the level ``"storage"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.work import Work
from wattline.workmodels.arith import ceil_div


def span_of(p: Mapping[str, Any]) -> Any:
    """Bytes that one call moves: ``span``, or the whole file where that is 0."""
    return p["span"] + p["bytes"] * (p["span"] == 0)


def read(p: Mapping[str, Any]) -> Work:
    """Blocks read from a file.

    Args:
        p: ``bytes`` (of the file), ``span`` (bytes of a call; 0: all), ``block``.
    """
    return Work(bytes_read={"storage": 1.0 * span_of(p)}, details={"requests": 1.0 * ceil_div(span_of(p), p["block"])})


def write(p: Mapping[str, Any]) -> Work:
    """Blocks written into a file; parameters as for :func:`read`."""
    return Work(
        bytes_written={"storage": 1.0 * span_of(p)}, details={"requests": 1.0 * ceil_div(span_of(p), p["block"])}
    )


def checkpoint(p: Mapping[str, Any]) -> Work:
    """A state written once: its bytes go to storage; a snapshot copies them within memory as well.

    Args:
        p: ``bytes`` (of the state), ``mode`` (``"blocking"`` or ``"snapshot"``).
    """
    size = 1.0 * p["bytes"]
    copied = {"device": size} if p.get("mode", "blocking") == "snapshot" else {}
    return Work(bytes_read=copied, bytes_written={"storage": size, **copied})
