"""Counters that the kernel keeps of load, quota, heat and clocks; telemetry takes their differences.

Like :mod:`wattline.collectors.host`: below a root, and ``None`` for whatever this machine does not show.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from wattline.collectors import host


@dataclass(frozen=True)
class Ticks:
    """Counters of /proc/stat over all processors, in ticks of 10 ms (USER_HZ).

    Attributes:
        processes: user, nice and system time.
        interrupts: time in interrupt handlers, hard and soft.
        steal: time that the hypervisor gave to others.
        total: all of these, idle time included.
        cpus: processors that are online.
    """

    processes: int
    interrupts: int
    steal: int
    total: int
    cpus: int


def ticks(root: str) -> Ticks | None:
    """The processors' time since the start of the machine: the "cpu" line of proc_stat(5)."""
    text = host.read_text(root, "proc/stat") or ""
    head, _, rest = text.partition("\n")
    fields = head.split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    # Guest time follows, and is part of user time already.
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[1:9])
    cpus = 0
    for line in rest.splitlines():
        if not line.startswith("cpu"):
            break
        cpus += 1
    busy = user + nice + system
    return Ticks(busy, irq + softirq, steal, busy + idle + iowait + irq + softirq + steal, max(1, cpus))


def tree_ticks(root: str, pids: Iterable[int]) -> int | None:
    """Processor time in ticks of the processes and all their descendants, those already waited for included."""
    total, seen, pending = 0, set[int](), list(pids)
    found = False
    while pending:
        pid = pending.pop()
        # The name in brackets may hold spaces and brackets: fields are counted from its end (proc_pid_stat(5)).
        fields = (host.read_text(root, f"proc/{pid}/stat") or "").rpartition(")")[2].split()
        if pid in seen or len(fields) < 15:
            continue
        seen.add(pid)
        found = True
        total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        pending.extend(children(root, pid))
    return total if found else None


def children(root: str, pid: int) -> list[int]:
    """Living children of a process; empty where the kernel does not list them."""
    if pid == os.getpid() and root == "/" and not _has_children():
        return []  # one call instead of one file per thread
    found: list[int] = []
    try:
        threads = os.listdir(os.path.join(root, f"proc/{pid}/task"))
    except OSError:
        return found
    for thread in threads:
        listed = host.read_text(root, f"proc/{pid}/task/{thread}/children") or ""
        found.extend(map(int, listed.split()))
    return found


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # reaps nothing
    except ChildProcessError:
        return False
    return True


def heat_files(root: str) -> tuple[str, ...]:
    """Paths of the heat counters: one per core and one per package, since all threads of a core show the same."""
    cores: dict[str, str] = {}
    for cpu in host.online_cpus(root):
        where = f"{host.CPU}/cpu{cpu}"
        core = host.read_text(root, f"{where}/topology/core_cpus_list") or str(cpu)
        package = host.read_text(root, f"{where}/topology/physical_package_id") or "0"
        cores.setdefault(f"core {core}", f"{where}/thermal_throttle/core_throttle_count")
        cores.setdefault(f"package {package}", f"{where}/thermal_throttle/package_throttle_count")
    return tuple(path for path in cores.values() if host.read_int(root, path) is not None)


def heat(root: str, paths: tuple[str, ...]) -> int | None:
    """Heat events of the counters that :func:`heat_files` found, added up."""
    counts = [count for path in paths if (count := host.read_int(root, path)) is not None]
    return sum(counts) if paths and len(counts) == len(paths) else None


def clock_source(root: str) -> str:
    """Where the clock can be read: ``"cpufreq"``, ``"cpuinfo"`` or (nowhere) empty."""
    cpus = host.online_cpus(root) or (0,)
    if host.read_int(root, f"{host.CPU}/cpu{cpus[0]}/cpufreq/scaling_cur_freq"):
        return "cpufreq"
    # Without the two counters APERF and MPERF the kernel prints a constant as "cpu MHz": no measurement.
    return "cpuinfo" if re.search(r"\baperfmperf\b", host.read_text(root, "proc/cpuinfo") or "") else ""


def clock_hz(root: str, source: str, pids: tuple[int, ...]) -> float | None:
    """Clock in hertz of the processor that the first process runs on, from :func:`clock_source`.

    That one is surely busy; a mean over all would mix in processors at rest. Only this one is read: each reading of
    another processor's clock interrupts it.
    """
    if not source or not pids:
        return None
    fields = (host.read_text(root, f"proc/{pids[0]}/stat") or "").rpartition(")")[2].split()
    if len(fields) < 37 or not fields[36].isdigit():
        return None
    cpu = fields[36]  # "processor", field 39 of proc_pid_stat(5)
    if source == "cpufreq":
        kilohertz = host.read_int(root, f"{host.CPU}/cpu{cpu}/cpufreq/scaling_cur_freq")
        return kilohertz * 1e3 if kilohertz else None
    entry = re.search(
        rf"^processor\s*:\s*{cpu}$(?:\n.+)*?\ncpu MHz\s*:\s*([\d.]+)",
        host.read_text(root, "proc/cpuinfo") or "",
        re.MULTILINE,
    )
    return float(entry.group(1)) * 1e6 if entry else None


def quota_counters(root: str) -> dict[str, tuple[int, float]]:
    """Periods in which the CPU quota ran out, and seconds waited for the next, by control group.

    Of the groups between this process and the mount point, those that report a quota: each counts its own limit
    only. The kernel adds up the waiting of all processors, so seconds may exceed the time that passed.
    """
    group = host.find_cgroup("cpu", root)
    found: dict[str, tuple[int, float]] = {}
    for folder in group.folders if group else ():
        values: dict[str, str] = {}
        for line in (host.read_text(root, f"{folder}/cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            values[name] = value
        if not values.get("nr_throttled", "").isdigit():
            continue
        # Microseconds in version 2, nanoseconds in version 1.
        micro, nano = values.get("throttled_usec", ""), values.get("throttled_time", "")
        waited_s = int(micro) * 1e-6 if micro.isdigit() else int(nano) * 1e-9 if nano.isdigit() else 0.0
        found[folder] = (int(values["nr_throttled"]), waited_s)
    return found
