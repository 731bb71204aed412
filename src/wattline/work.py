"""Work: the least that a case must do, and the time that the laws of a device allow it.

FLOPs count multiply and add; bytes count each input read once and each output written once, per memory level;
links carry messages and bytes. Work is a pure function of the parameters; the formulas live in
:mod:`wattline.workmodels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wattline.device import DeviceSpec
from wattline.errors import UnsupportedError


def _plus(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {key: a.get(key, 0.0) + b.get(key, 0.0) for key in {**a, **b}}


@dataclass(frozen=True)
class Work:
    """The least a case must do.

    Attributes:
        flops: floating-point (or integer) operations by the rate format that executes them (``"bf16"``).
        bytes_read: bytes read by memory level (``"device"``, ``"shared"``, ``"host"``, ``"storage"``).
        bytes_written: bytes written by memory level.
        messages: messages by link (``"fabric"``, ``"pcie"``).
        link_bytes: bytes sent by link.
        details: figures that explain the work and bound nothing, by name: FLOPs stored beside those that are useful
            (``"stored_flops"``), bytes of indices, occupancy of a tile. They belong to one operation: a sum of works
            has none.
        fewest: operations by rate format that the cleverest algorithm known needs, where these are fewer than
            ``flops`` (Winograd's convolution): bounds and ceilings count these, speeds the usual ones.
    """

    flops: Mapping[str, float] = field(default_factory=dict)
    bytes_read: Mapping[str, float] = field(default_factory=dict)
    bytes_written: Mapping[str, float] = field(default_factory=dict)
    messages: Mapping[str, float] = field(default_factory=dict)
    link_bytes: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)
    fewest: Mapping[str, float] = field(default_factory=dict)

    @property
    def needed(self) -> dict[str, float]:
        """Operations by rate format that no algorithm known goes below."""
        return {name: self.fewest.get(name, count) for name, count in self.flops.items()}

    @property
    def total_flops(self) -> float:
        """Operations of all formats together."""
        return sum(self.flops.values())

    def bytes_at(self, level: str = "device") -> float:
        """Bytes read and written at one memory level."""
        return self.bytes_read.get(level, 0.0) + self.bytes_written.get(level, 0.0)

    @property
    def total_bytes(self) -> float:
        """Bytes at all memory levels and over all links together: a measure of size, not of time."""
        return sum(sum(part.values()) for part in (self.bytes_read, self.bytes_written, self.link_bytes))

    @property
    def intensity(self) -> float:
        """FLOPs per byte of device memory; infinite where no byte moves."""
        moved = self.bytes_at()
        return self.total_flops / moved if moved else float("inf")

    def __add__(self, other: Work) -> Work:
        return Work(
            _plus(self.flops, other.flops),
            _plus(self.bytes_read, other.bytes_read),
            _plus(self.bytes_written, other.bytes_written),
            _plus(self.messages, other.messages),
            _plus(self.link_bytes, other.link_bytes),
            fewest=_plus(self.needed, other.needed) if self.fewest or other.fewest else {},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; empty parts left out."""
        parts = {name: dict(getattr(self, name)) for name in self.__dataclass_fields__}
        return {name: part for name, part in parts.items() if part}

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, float]]) -> Work:
        """The work that :meth:`to_dict` wrote."""
        return cls(**{name: dict(part) for name, part in data.items() if name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Bound:
    """The least time that a device allows a piece of work.

    Attributes:
        time_s: the largest term.
        by: its name: ``"compute"``, ``"memory"``, ``"link"`` or ``"nothing"``.
        terms: seconds by name; they overlap at best, so the bound is their maximum (Williams, Waterman and
            Patterson, "Roofline", CACM 52(4), 2009).
    """

    time_s: float
    by: str
    terms: Mapping[str, float]


def bound(work: Work, device: DeviceSpec, *, cached: bool = False) -> Bound:
    """The roofline bound of ``work`` on ``device``.

    Args:
        work: what must be done.
        device: with what.
        cached: the data already lies in the last-level cache (regime ``hot`` with a small footprint): main
            memory then bounds nothing.

    Raises:
        UnsupportedError: the device has no rate for a format that the work needs, nor for a wider one.
    """
    terms: dict[str, float] = {}
    compute = sum(count / device.rate(fmt)[0] for fmt, count in work.needed.items() if count)
    if compute:
        terms["compute"] = compute
    moved = work.bytes_at()
    bandwidth = device.bandwidth
    if moved and bandwidth and not cached:
        terms["memory"] = moved / bandwidth
    for link, count in work.link_bytes.items():
        speed = device.link_speed(link)
        if count and speed:
            terms["link"] = terms.get("link", 0.0) + count / speed
    if not terms:
        return Bound(0.0, "nothing", {})
    by = max(terms, key=terms.__getitem__)
    return Bound(terms[by], by, terms)


def case_bound(work: Work, device: DeviceSpec, regime: str) -> Bound | None:
    """The roofline bound of a case measured in a regime, or ``None`` where the device has no rate for it.

    In the regimes ``hot`` and ``eager`` one set of buffers is used again and again: where it fits the last-level
    cache, main memory bounds nothing.
    """
    cached = regime in ("hot", "eager") and bool(device.l2_bytes) and work.bytes_at() <= (device.l2_bytes or 0.0)
    try:
        return bound(work, device, cached=cached)
    except UnsupportedError:
        return None
