"""Reading the host: `/proc`, `/sys` and control groups below a root that tests can replace.

Every function takes ``root`` (``"/"`` for this machine). A file that is absent, unreadable or malformed gives
``None``: what a kernel shows differs between machines, containers and virtual machines, and a missing fact is no
error. Sizes are bytes, clocks hertz.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

CPU = "sys/devices/system/cpu"

_FEATURES = frozenset(
    {
        *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16"),
        *("avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
        *("asimd", "asimdhp", "asimddp", "fphp", "sve", "sve2", "i8mm", "bf16", "svei8mm", "svebf16", "sme", "sme2"),
    }
)
"""Instruction sets that matrix kernels choose between, as /proc/cpuinfo spells them (x86 and Arm)."""

_ARM_PARTS = {
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0xc0", "0xac3"): "Ampere-1",
}
"""Arm processors have no model name there; source: Linux, arch/arm64/include/asm/cputype.h."""


def read_text(root: str, path: str) -> str | None:
    """The text of ``root/path`` without white space at its ends, or ``None`` where it cannot be read."""
    # Plain descriptors: telemetry reads dozens of these beside a measurement, and open() costs twice as much.
    try:
        descriptor = os.open(os.path.join(root, path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:
        return None  # e.g. a sysfs attribute whose hardware is away
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "replace").strip()


def read_int(root: str, path: str) -> int | None:
    """The whole number in ``root/path``, or ``None``."""
    text = read_text(root, path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def parse_cpu_list(text: str | None) -> tuple[int, ...]:
    """Processor numbers of a kernel list: ``"0-2,8"`` is ``(0, 1, 2, 8)``; malformed or missing is ``()``."""
    found: list[int] = []
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            return ()
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def parse_size(text: str | None) -> int | None:
    """Bytes of a kernel size: ``"48K"`` is 49,152; malformed or missing is ``None``."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)", (text or "").strip())
    return int(match.group(1)) << {"": 0, "K": 10, "M": 20, "G": 30}[match.group(2)] if match else None


@dataclass(frozen=True)
class Cache:
    """One level of cache.

    Attributes:
        level: 1 is the nearest to the core.
        kind: ``"data"``, ``"instruction"`` or ``"unified"``.
        size_bytes: of one instance.
        instances: how many of them the machine has.
    """

    level: int
    kind: str
    size_bytes: int
    instances: int


@dataclass(frozen=True)
class CpuFacts:
    """What the host says of its processors. Unknown is ``None`` or empty.

    Attributes:
        model, vendor: names.
        logical, cores, sockets, numa_nodes: counts, of those online.
        smt: whether cores run several hardware threads at once.
        caches: by level.
        governor, driver: of frequency scaling; several values are joined by ``+``.
        turbo: whether clocks above the base are allowed.
        min_hz, max_hz: range of the clock.
        hypervisor: name of what this virtual machine runs on; empty on bare metal.
        features: instruction sets that matter to matrix kernels.
    """

    model: str
    vendor: str
    logical: int | None
    cores: int | None
    sockets: int | None
    numa_nodes: int | None
    smt: bool | None
    caches: tuple[Cache, ...]
    governor: str
    driver: str
    turbo: bool | None
    min_hz: float | None
    max_hz: float | None
    hypervisor: str
    features: tuple[str, ...]

    def cache_bytes(self, level: int) -> int | None:
        """Size of one data or unified cache of that level."""
        sizes = [c.size_bytes for c in self.caches if c.level == level and c.kind != "instruction"]
        return max(sizes, default=None)


def online_cpus(root: str = "/") -> tuple[int, ...]:
    """Numbers of the processors that are online; ``()`` where the kernel does not say."""
    return parse_cpu_list(read_text(root, f"{CPU}/online"))


def allowed_cpus(root: str = "/") -> tuple[int, ...]:
    """Numbers of the processors that this process may run on (affinity and cpuset)."""
    match = re.search(r"^Cpus_allowed_list:\s*(\S+)", read_text(root, "proc/self/status") or "", re.MULTILINE)
    return parse_cpu_list(match.group(1)) if match else ()


def cpu_facts(root: str = "/") -> CpuFacts:
    """What the host says of its processors."""
    first, described = _cpuinfo(root)
    online = online_cpus(root)
    cores = _distinct(root, online, "topology/core_cpus_list") or _distinct(
        root, online, "topology/thread_siblings_list"
    )
    smt = read_int(root, f"{CPU}/smt/active")
    policy = f"{CPU}/cpu0/cpufreq"
    flags = set((first.get("flags") or first.get("Features") or "").split())
    return CpuFacts(
        model=_model(root, first),
        vendor=first.get("vendor_id") or first.get("CPU implementer") or "",
        logical=len(online) or described or None,
        cores=len(cores) or None,
        sockets=len(_distinct(root, online, "topology/physical_package_id")) or None,
        numa_nodes=len(parse_cpu_list(read_text(root, "sys/devices/system/node/online"))) or None,
        smt=bool(smt) if smt is not None else None,
        caches=_caches(root, online),
        governor="+".join(sorted(_distinct(root, online, "cpufreq/scaling_governor"))),
        driver=read_text(root, f"{policy}/scaling_driver") or "",
        turbo=_turbo(root),
        min_hz=_kilohertz(root, f"{policy}/cpuinfo_min_freq"),
        max_hz=_kilohertz(root, f"{policy}/cpuinfo_max_freq"),
        hypervisor=_hypervisor(root, flags),
        features=tuple(sorted(flags & _FEATURES)),
    )


def _cpuinfo(root: str) -> tuple[dict[str, str], int]:
    """The first processor's entry of /proc/cpuinfo, and how many processors it lists."""
    text = read_text(root, "proc/cpuinfo") or ""
    first: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        first[key.strip()] = value.strip()
    return first, len(re.findall(r"^processor\s*:", text, re.MULTILINE))


def _model(root: str, first: dict[str, str]) -> str:
    if name := first.get("model name"):
        return name
    maker, part = first.get("CPU implementer", ""), first.get("CPU part", "")
    if (maker, part) in _ARM_PARTS:
        return _ARM_PARTS[maker, part]
    board = read_text(root, "proc/device-tree/model")
    return board.rstrip("\0") if board else (f"Arm implementer {maker} part {part}" if part else "")


def _distinct(root: str, cpus: tuple[int, ...], leaf: str) -> set[str]:
    return {text for cpu in cpus if (text := read_text(root, f"{CPU}/cpu{cpu}/{leaf}"))}


def _caches(root: str, cpus: tuple[int, ...]) -> tuple[Cache, ...]:
    seen: dict[tuple[int, str, int], set[str]] = {}
    for cpu in cpus:
        for index in range(8):  # no processor has more than five
            where = f"{CPU}/cpu{cpu}/cache/index{index}"
            level, kind = read_int(root, f"{where}/level"), read_text(root, f"{where}/type")
            size, shared = parse_size(read_text(root, f"{where}/size")), read_text(root, f"{where}/shared_cpu_list")
            if level is None:
                break
            if kind and size:
                seen.setdefault((level, kind.lower(), size), set()).add(shared or str(cpu))
    return tuple(Cache(*what, instances=len(owners)) for what, owners in sorted(seen.items()))


def _turbo(root: str) -> bool | None:
    off = read_int(root, f"{CPU}/intel_pstate/no_turbo")
    if off is not None:
        return not off
    boost = read_int(root, f"{CPU}/cpufreq/boost")
    return bool(boost) if boost is not None else None


def _kilohertz(root: str, path: str) -> float | None:
    value = read_int(root, path)
    return value * 1e3 if value else None


def _hypervisor(root: str, flags: set[str]) -> str:
    if kind := read_text(root, "sys/hypervisor/type"):
        return kind
    product = " ".join(read_text(root, f"sys/class/dmi/id/{n}") or "" for n in ("sys_vendor", "product_name"))
    for mark, name in (("KVM", "kvm"), ("QEMU", "kvm"), ("VMware", "vmware"), ("VirtualBox", "virtualbox")):
        if mark in product:
            return name
    # CPUID leaf 1, ECX bit 31: set by every hypervisor, never by hardware.
    return "unnamed" if "hypervisor" in flags else ""


def memory_bytes(root: str = "/") -> int | None:
    """Memory of the machine in bytes."""
    match = re.search(r"^MemTotal:\s*(\d+) kB", read_text(root, "proc/meminfo") or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


@dataclass(frozen=True)
class Cgroup:
    """Where one controller keeps this process's limits.

    Attributes:
        version: 1 or 2.
        folders: below the root: the process's own group first, then its parents up to the mount point. A limit
            anywhere on this way holds.
    """

    version: int
    folders: tuple[str, ...]


@lru_cache(maxsize=64)
def find_cgroup(controller: str, root: str = "/") -> Cgroup | None:
    """The control groups that limit this process's ``"cpu"`` or ``"memory"``, or ``None``.

    Version 1 where the controller is mounted on its own (hybrid systems too), else version 2. The way down comes
    from /proc/self/mountinfo and /proc/self/cgroup; see cgroups(7). Looked up once per process, which is not
    expected to change its group.
    """
    paths: dict[str, str] = {}  # by controller; "" is version 2
    for line in (read_text(root, "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths.update(dict.fromkeys(names.split(","), path))
    unified: Cgroup | None = None
    for line in (read_text(root, "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        inside, mount = fields[3], fields[4].lstrip("/")
        if kind[0] == "cgroup" and controller in kind[2].split(",") and controller in paths:
            return Cgroup(1, tuple(_ways(root, mount, inside, paths[controller])))
        if kind[0] == "cgroup2" and "" in paths:
            unified = Cgroup(2, tuple(_ways(root, mount, inside, paths[""])))
    return unified


def _ways(root: str, mount: str, inside: str, path: str) -> Iterator[str]:
    """Folders from the group itself up to the mount point; a group outside of the mount leaves the mount alone."""
    below = path.removeprefix(inside.rstrip("/")).strip("/") if path.startswith(inside) else ""
    if ".." not in below.split("/"):
        while below:
            if os.path.isdir(os.path.join(root, mount, below)):
                yield f"{mount}/{below}"
            below = below.rpartition("/")[0]
    yield mount


def cpu_quota(root: str = "/") -> float | None:
    """Processors' worth of time that the control groups allow, e.g. 1.5; ``None`` where unlimited."""
    group = find_cgroup("cpu", root)
    limits: list[float] = []
    for folder in group.folders if group else ():
        if group and group.version == 2:
            quota, _, period = (read_text(root, f"{folder}/cpu.max") or "max").partition(" ")
        else:
            quota = read_text(root, f"{folder}/cpu.cfs_quota_us") or "-1"
            period = read_text(root, f"{folder}/cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit(root: str = "/") -> int | None:
    """Bytes of memory that the control groups allow; ``None`` where unlimited."""
    group = find_cgroup("memory", root)
    leaf = "memory.max" if group and group.version == 2 else "memory.limit_in_bytes"
    limits = [value for folder in (group.folders if group else ()) if (value := read_int(root, f"{folder}/{leaf}"))]
    # Version 1 writes "unlimited" as the largest multiple of a page: far above any machine's memory.
    total = memory_bytes(root) or 1 << 60
    return min((value for value in limits if value < total), default=None)


def container(root: str = "/") -> str:
    """What container this process runs in (``"docker"``, ``"podman"`` ...); empty where none shows."""
    if os.path.exists(os.path.join(root, "run/.containerenv")):
        return "podman"
    if os.path.exists(os.path.join(root, ".dockerenv")):
        return "docker"
    groups = read_text(root, "proc/self/cgroup") or ""
    return next((name for name in ("kubepods", "docker", "lxc", "containerd") if name in groups), "")
