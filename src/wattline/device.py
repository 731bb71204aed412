"""DeviceSpec: what is known of a device, from its datasheet and from a probe of the machine at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from wattline.errors import ParamError, SchemaError, UnsupportedError, unknown_name
from wattline.formats import WIDER


@dataclass(frozen=True)
class Ceilings:
    """The highest rates that were measured on a device: what it can do rather than what is printed.

    Attributes:
        flops: FLOP/s by rate format (:attr:`wattline.formats.NumberFormat.rate`).
        memory_bandwidth: bytes/s, reads and writes added.
        launch_s: seconds that the smallest kernel takes, launch included.
        links: bytes/s one way by link (``"fabric"`` to peers, ``"pcie"`` to the host), as fitted to measured transfers.
    """

    flops: Mapping[str, float] = field(default_factory=dict)
    memory_bandwidth: float | None = None
    launch_s: float | None = None
    links: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ceilings:
        """From plain JSON types."""
        links = dict(data.get("links") or {})
        return cls(dict(data.get("flops") or {}), data.get("memory_bandwidth"), data.get("launch_s"), links)


@dataclass(frozen=True)
class DeviceSpec:
    """Facts of one device. SI units throughout; dense (not sparse) rates. Unknown is ``None`` or absent.

    Attributes:
        id: short name, e.g. ``"h200-sxm"``; of an unlisted machine, made from its name.
        name: as the driver reports it.
        vendor: ``"nvidia"``, ``"amd"``, ``"intel"`` ...
        kind: ``"gpu"``, ``"cpu"`` or ``"accelerator"``.
        arch: architecture, e.g. ``"hopper"``.
        compute_capability: NVIDIA's ``"9.0"``.
        gfx: AMD's ``"gfx942"``.
        peak_flops: datasheet FLOP/s by format.
        memory_bandwidth: datasheet bytes/s.
        memory_bytes: size of its memory.
        l2_bytes: last-level cache.
        sm_count: streaming multiprocessors, compute units or cores.
        clock_hz: highest clock.
        tdp_w: power limit.
        idle_w: power at rest.
        link_bandwidth: bytes/s to its peers, one way.
        pcie_bandwidth: bytes/s to the host, one way.
        measured: ceilings found by a probe, where one ran.
        aliases: other names that a driver reports.
        sources: where each figure comes from.
        note: what a reader should know.
    """

    id: str
    name: str = ""
    vendor: str = ""
    kind: str = "gpu"
    arch: str = ""
    compute_capability: str = ""
    gfx: str = ""
    peak_flops: Mapping[str, float] = field(default_factory=dict)
    memory_bandwidth: float | None = None
    memory_bytes: float | None = None
    l2_bytes: float | None = None
    sm_count: int | None = None
    clock_hz: float | None = None
    tdp_w: float | None = None
    idle_w: float | None = None
    link_bandwidth: float | None = None
    pcie_bandwidth: float | None = None
    measured: Ceilings | None = None
    aliases: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if not self.id or not isinstance(self.id, str):
            raise ParamError("a device needs an id")
        figures: dict[str, Any] = {f"peak_flops.{k}": v for k, v in self.peak_flops.items()}
        for name in ("memory_bandwidth", "memory_bytes", "l2_bytes", "sm_count", "clock_hz", "tdp_w", "idle_w"):
            figures[name] = getattr(self, name)
        figures |= {"link_bandwidth": self.link_bandwidth, "pcie_bandwidth": self.pcie_bandwidth}
        if self.measured:
            figures |= {f"measured.flops.{k}": v for k, v in self.measured.flops.items()}
            figures |= {f"measured.{k}": getattr(self.measured, k) for k in ("memory_bandwidth", "launch_s")}
            figures |= {f"measured.links.{k}": v for k, v in self.measured.links.items()}
        for name, value in figures.items():
            if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise ParamError(f"device {self.id}: {name} must be a finite number above zero, not {value!r}")

    @property
    def bandwidth(self) -> float | None:
        """Memory bandwidth to bound with: the datasheet's, else the measured one."""
        return self.memory_bandwidth or (self.measured.memory_bandwidth if self.measured else None)

    def listed_link(self, name: str) -> float | None:
        """The datasheet's bytes/s of a link: ``"pcie"`` to the host, any other to peers."""
        return self.pcie_bandwidth if name == "pcie" else self.link_bandwidth

    def link_speed(self, name: str) -> float | None:
        """Bytes/s of a link to bound with: the datasheet's, else what was fitted to measured transfers."""
        return self.listed_link(name) or (self.measured.links.get(name) if self.measured else None)

    @property
    def listed(self) -> bool:
        """Whether datasheet rates are known (else only measured ceilings)."""
        return bool(self.peak_flops)

    def rate(self, fmt: str) -> tuple[float, str]:
        """FLOP/s for a rate format and the format that executes it: itself, or a wider one.

        The datasheet's rate where there is one, else the measured ceiling.

        Raises:
            UnsupportedError: no rate is known for it, nor for a wider format.
        """
        measured = self.measured.flops if self.measured else {}
        for name in (fmt, *WIDER.get(fmt, ())):
            value = self.peak_flops.get(name) or measured.get(name)
            if value:
                return value, name
        raise UnsupportedError(
            f"no arithmetic rate of {self.id} is known for {fmt}",
            why=f"known rates: {', '.join(sorted({*self.peak_flops, *measured})) or 'none'}",
            todo="measure on the device (`wattline bench` probes it) or add the figure with its source to devices.toml",
            code="no_rate",
        )

    def with_measured(self, ceilings: Ceilings) -> DeviceSpec:
        """A copy with measured ceilings."""
        return replace(self, measured=ceilings)

    def with_links(self, links: Mapping[str, float]) -> DeviceSpec:
        """A copy with measured speeds of links; other ceilings stay."""
        return replace(self, measured=replace(self.measured or Ceilings(), links=dict(links)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; unknown fields left out."""
        data = asdict(self)
        data["aliases"] = list(self.aliases)
        return {k: v for k, v in data.items() if v not in (None, "", {}, [])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceSpec:
        """From plain JSON types.

        Raises:
            SchemaError: an unknown field, or a figure where a table belongs.
            ParamError: no id, or a figure that is not a finite number above zero.
        """
        known = {f.name for f in fields(cls)}
        for name in data:
            if name not in known:
                raise SchemaError(f"a device has no field {name!r}", why=f"fields: {', '.join(sorted(known))}")
        values = {"id": "", **{k: v for k, v in data.items() if v is not None}}
        if isinstance(values.get("measured"), Mapping):
            values["measured"] = Ceilings.from_dict(values["measured"])
        for name in ("peak_flops", "sources"):
            if name in values:
                if not isinstance(values[name], Mapping):
                    raise SchemaError(f"a device's {name} must be a table, not {values[name]!r}")
                values[name] = dict(values[name])
        values["aliases"] = tuple(values.get("aliases", ()))
        return cls(**values)


@lru_cache(maxsize=1)
def known_devices() -> Mapping[str, DeviceSpec]:
    """The devices of ``devices.toml`` by id."""
    import tomllib

    text = resources.files("wattline").joinpath("devices.toml").read_text(encoding="utf-8")
    return {key: DeviceSpec.from_dict({"id": key, **entry}) for key, entry in tomllib.loads(text).items()}


def known_device(device_id: str) -> DeviceSpec:
    """The listed device of that id.

    Raises:
        UnknownNameError: none has it.
    """
    devices = known_devices()
    if device_id not in devices:
        raise unknown_name("device", device_id, devices, listing="wattline list devices")
    return devices[device_id]


def match_device(name: str, memory_bytes: float | None = None) -> DeviceSpec | None:
    """The listed device that a driver's name means, or ``None``.

    Names must agree but for case and spacing; where several parts share a name (two memory sizes), the one
    whose memory is nearest is taken, and none whose memory differs by more than a quarter.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()

    wanted = plain(name)
    found = [d for d in known_devices().values() if wanted in {plain(n) for n in (d.name, *d.aliases)}]
    if memory_bytes is not None:
        found = [d for d in found if d.memory_bytes is None or abs(memory_bytes / d.memory_bytes - 1) <= 0.25]
        found.sort(key=lambda d: abs(memory_bytes - (d.memory_bytes or memory_bytes)))
    return found[0] if found else None


def slug(name: str) -> str:
    """An id made from a device name: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "").replace("(tm)", "")).strip("-") or "device"
