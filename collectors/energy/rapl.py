"""RAPL: energy of Intel and AMD processors through Linux's powercap tree.

``/sys/class/powercap/intel-rapl:<n>`` is a package (or ``psys``, the platform), ``intel-rapl:<n>:<m>`` a part of it:
``core``, ``uncore``, ``dram``. Each has ``energy_uj``, which wraps at ``max_energy_range_uj``
(Linux, Documentation/power/powercap/powercap.rst). A package holds its core and uncore, not its dram.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from wattline.collectors.energy.errors import SensorBusyError, SensorForbiddenError, SensorUnsupportedError
from wattline.collectors.energy.sources import COUNTER, Reading, SensorProfile, Source
from wattline.errors import SensorError
from wattline.record import Reason

POWERCAP = "sys/class/powercap"
RAPL_ENERGY = f"{POWERCAP}/intel-rapl:0/energy_uj"
"""The package counter, on Intel and AMD alike."""

PERIOD_S = 1e-3
RESOLUTION_J = 61e-6
"""Energy unit of most Intel parts, 2**-14 J (Intel SDM, volume 4, MSR_RAPL_POWER_UNIT)."""

MOST_W = 20e3
"""More than any package draws: a larger step is a counter that was reset, not one that wrapped."""

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?$")


@dataclass
class Zone:
    """One counter.

    Attributes:
        path: of its folder, below the root.
        name: ``"package-0"``, ``"dram"``, ``"psys"`` ...
        range_uj: where it wraps.
    """

    path: str
    name: str
    range_uj: int
    total_uj: int = 0
    last_uj: int | None = field(default=None, repr=False)
    last_s: float = 0.0

    def advance(self, root: str, now_s: float) -> int:
        """Microjoules since the first reading, wraps undone; it starts again from zero where the counter was reset."""
        value = read_counter(root, f"{self.path}/energy_uj")
        if self.last_uj is not None:
            step = value - self.last_uj
            if step < 0:
                step += self.range_uj
                if not 0 <= step * 1e-6 <= MOST_W * max(now_s - self.last_s, 1e-3):
                    self.total_uj, step = 0, 0
            self.total_uj += step
        self.last_uj, self.last_s = value, now_s
        return self.total_uj


class RaplSource(Source):
    """The sum of some zones, e.g. of all packages and their memory.

    Args:
        zones: counters to add up.
        scope: what they cover together.
        root: of the file tree.
    """

    kind = COUNTER
    vendor = "rapl"

    def __init__(self, zones: Sequence[Zone], scope: str, root: str = "/") -> None:
        self.zones = tuple(zones)
        self.scope = scope
        self.field = f"energy_uj of {' + '.join(zone.name for zone in zones)}"
        self.profile = SensorProfile(
            PERIOD_S,
            resolution=RESOLUTION_J * len(self.zones),
            gain_error=0.05,
            note="prior: RAPL is updated about every millisecond",
        )
        self._root = root

    def read(self) -> Reading:
        """See :meth:`Source.read`."""
        begin = time.perf_counter()
        total = sum(zone.advance(self._root, begin) for zone in self.zones)
        end = time.perf_counter()
        return Reading((begin + end) / 2, total * 1e-6, end - begin)


def find_zones(root: str = "/") -> list[Zone]:
    """All readable zones of the tree, duplicates through memory-mapped registers (``intel-rapl-mmio``) left out.

    Raises:
        SensorError: (one of its kinds) there are none, or they may not be read; it says which file and what helps.
    """
    reason, remedy = probe(root)
    if reason is not None:
        kind = SensorForbiddenError if reason.code == "rapl_forbidden" else SensorUnsupportedError
        raise kind(reason.message, todo=remedy)
    found = []
    for entry in sorted(os.listdir(os.path.join(root, POWERCAP))):
        if not _ZONE.match(entry):
            continue
        path = f"{POWERCAP}/{entry}"
        try:
            read_counter(root, f"{path}/energy_uj")
            name = _read(root, f"{path}/name")
            found.append(Zone(path, name or entry, _range(root, path)))
        except SensorError:
            continue  # a part of a package that this processor, or this user, does not show
    return found


def rapl_sources(root: str = "/") -> list[Source]:
    """Packages with their memory first, then the whole platform where the machine counts it.

    Memory lies outside of the package counter, so both are added where a ``dram`` zone exists.

    Raises:
        SensorError: as :func:`find_zones`, or a zone of the first package cannot be read.
    """
    zones = find_zones(root)
    packages = [zone for zone in zones if zone.name.startswith("package")]
    memories = [zone for zone in zones if zone.name == "dram"]
    platform = [zone for zone in zones if zone.name == "psys"]
    if not packages:
        # Kernels without the name file: the first level are packages.
        packages = [zone for zone in zones if zone.path.count(":") == 1 and zone not in platform]
    if not packages:
        shown = ", ".join(zone.name for zone in zones)
        raise SensorUnsupportedError("RAPL shows no package", why=f"zones: {shown or 'none'}")
    # With memory of some packages only, the sum would cover neither one thing nor the other.
    whole = memories if len(memories) == len(packages) else []
    sources: list[Source] = [RaplSource(packages + whole, "package+dram" if whole else "package", root)]
    if platform:
        sources.append(RaplSource(platform[:1], "psys", root))
    return sources


def probe(root: str = "/") -> tuple[Reason | None, str]:
    """Whether the package counter can be read.

    Returns:
        ``None`` where it can; else the reason and what would help.
    """
    path = "/" + RAPL_ENERGY
    counter = os.path.join(root, RAPL_ENERGY)
    if not os.path.lexists(os.path.dirname(counter)):
        return Reason("rapl_absent", f"{path} does not exist: this machine shows no RAPL counters"), (
            "on bare metal with an Intel or AMD (Zen and newer) processor: sudo modprobe intel_rapl_msr; "
            "a virtual machine sees it only where the hypervisor passes it on"
        )
    try:
        text = _open_and_read(counter)
    except FileNotFoundError:
        # Container engines mask /sys/devices/virtual/powercap since 2023 (PLATYPUS, CVE-2020-8694): the links under
        # /sys/class stay behind and lead nowhere.
        return Reason("rapl_hidden", f"{path} leads nowhere: a container engine hides RAPL from this container"), (
            "run outside of the container, or start it with --security-opt systempaths=unconfined"
        )
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            return Reason("rapl_failed", f"reading {path} failed: {error.strerror}"), "see `dmesg | grep -i rapl`"
        return Reason("rapl_forbidden", f"{path} may not be read by this user ({_mode(counter)})"), (
            f"sudo chmod o+r /{POWERCAP}/intel-rapl:*/energy_uj "
            "(until the next boot; a udev rule keeps it), or run as root"
        )
    if not text.strip().isdigit():
        return Reason("rapl_failed", f"{path} holds no number"), "see `dmesg | grep -i rapl`"
    return None, ""


def read_counter(root: str, path: str) -> int:
    """A file that holds one number.

    Raises:
        SensorForbiddenError: this user may not.
        SensorUnsupportedError: it does not exist.
        SensorBusyError: it held no number this time.
    """
    try:
        text = _open_and_read(os.path.join(root, path)).strip()
    except PermissionError as error:
        todo = f"sudo chmod o+r /{path}, or run as root"
        raise SensorForbiddenError(f"/{path} may not be read by this user", todo=todo) from error
    except FileNotFoundError as error:
        raise SensorUnsupportedError(f"/{path} does not exist") from error
    except OSError as error:  # ENODATA and EIO come and go with the power management of the part
        raise SensorBusyError(f"reading /{path} failed", why=error.strerror or str(error)) from error
    if not text.isdigit():
        raise SensorBusyError(f"reading /{path} failed", why=f"it holds {text[:20]!r}, no number")
    return int(text)


def _range(root: str, path: str) -> int:
    try:
        return read_counter(root, f"{path}/max_energy_range_uj")
    except SensorError:
        return 2**32 - 1  # the width of the register, in the coarsest unit: a wrap is at least recognised


def _read(root: str, path: str) -> str:
    try:
        return _open_and_read(os.path.join(root, path)).strip()
    except OSError:
        return ""


def _open_and_read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 64).decode("ascii", "replace")
    finally:
        os.close(descriptor)


def _mode(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"not even its mode: {error.strerror}"
    return f"mode {stat.S_IMODE(status.st_mode):04o}, owner uid {status.st_uid}"
