"""A fake /proc and /sys tree, so that every kind of host can be tested on any, and a GPU whose caps may be set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wattline_sim.capped_gpu import Gpu, Run

CPUINFO = """processor\t: {cpu}
vendor_id\t: GenuineIntel
model name\t: Imaginary Xeon 9999 @ 3.00GHz
cpu MHz\t\t: {mhz}
flags\t\t: fpu avx2 fma avx512f amx_bf16 {more}
"""


class FakeHost:
    """Files below a temporary root; by default a bare-metal machine of 4 threads, 2 cores, 1 socket."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self.root = str(root)

    def write(self, path: str, text: object) -> Path:
        """Write one file, parents made."""
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")
        return target

    def cpu(self, leaf: str, values: list[object]) -> None:
        """Write one leaf of each processor's folder."""
        for number, value in enumerate(values):
            self.write(f"sys/devices/system/cpu/cpu{number}/{leaf}", value)

    def stat(self, *, user: int = 0, idle: int = 0, steal: int = 0, irq: int = 0, cpus: int = 4) -> None:
        """Write /proc/stat, in ticks."""
        lines = [f"cpu  {user} 0 0 {idle} 0 {irq} 0 {steal} 0 0", *(f"cpu{n} 0 0 0 0 0 0 0 0 0 0" for n in range(cpus))]
        self.write("proc/stat", "\n".join([*lines, "intr 5 5", "ctxt 1"]))

    def process(self, pid: int, ticks: int, *, children: tuple[int, ...] = (), waited: int = 0, cpu: int = 0) -> None:
        """Write /proc/<pid>: its ticks, those of children waited for, and its living children."""
        fields = ["R", *["0"] * 10, str(ticks), "0", str(waited), "0", *["0"] * 21, str(cpu), "0"]
        self.write(f"proc/{pid}/stat", f"{pid} (a (strange) name) {' '.join(fields)}")
        self.write(f"proc/{pid}/task/{pid}/children", " ".join(map(str, children)))

    def cpuinfo(self, *, more: str = "aperfmperf", mhz: tuple[float, ...] = (3000.0,) * 4) -> None:
        """Write /proc/cpuinfo."""
        self.write("proc/cpuinfo", "\n".join(CPUINFO.format(cpu=n, mhz=m, more=more) for n, m in enumerate(mhz)))

    def cgroup_v2(self, path: str = "/box", mount_root: str = "/", limits: dict[str, str] | None = None) -> str:
        """Mount version 2; returns the folder of the process's group below the root."""
        self.write("proc/self/cgroup", f"0::{path}")
        mount = f"30 20 0:26 {mount_root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw"
        self.write("proc/self/mountinfo", mount)
        folder = "sys/fs/cgroup" + path.removeprefix(mount_root.rstrip("/"))
        for name, value in (limits or {}).items():
            self.write(f"{folder}/{name}", value)
        return folder


@pytest.fixture
def bare_host(tmp_path: Path) -> FakeHost:
    """An empty tree: a kernel that shows nothing."""
    return FakeHost(tmp_path / "host")


@pytest.fixture
def fake_host(bare_host: FakeHost) -> FakeHost:
    """Two cores with two threads each, 48 KiB and 2 MiB caches per core, 32 MiB shared, 64 GiB of memory."""
    h = bare_host
    h.cpuinfo()
    h.write("sys/devices/system/cpu/online", "0-3")
    h.write("sys/devices/system/cpu/smt/active", 1)
    h.write("sys/devices/system/node/online", "0-1")
    h.write("sys/devices/system/cpu/intel_pstate/no_turbo", 0)
    h.cpu("topology/core_cpus_list", ["0,2", "1,3", "0,2", "1,3"])
    h.cpu("topology/physical_package_id", [0, 0, 0, 0])
    for index, (level, kind, size, shared) in enumerate(
        [
            (1, "Data", "48K", ["0,2", "1,3"] * 2),
            (1, "Instruction", "32K", ["0,2", "1,3"] * 2),
            (2, "Unified", "2048K", ["0,2", "1,3"] * 2),
            (3, "Unified", "32768K", ["0-3"] * 4),
        ]
    ):
        h.cpu(f"cache/index{index}/level", [level] * 4)
        h.cpu(f"cache/index{index}/type", [kind] * 4)
        h.cpu(f"cache/index{index}/size", [size] * 4)
        h.cpu(f"cache/index{index}/shared_cpu_list", list(shared))
    h.cpu("cpufreq/scaling_governor", ["powersave"] * 4)
    h.cpu("cpufreq/scaling_driver", ["intel_pstate"] * 4)
    h.cpu("cpufreq/cpuinfo_min_freq", [800000] * 4)
    h.cpu("cpufreq/cpuinfo_max_freq", [4200000] * 4)
    h.cpu("cpufreq/scaling_cur_freq", [1000000, 2000000, 3000000, 4000000])
    h.cpu("thermal_throttle/core_throttle_count", [3, 5, 3, 5])
    h.cpu("thermal_throttle/package_throttle_count", [7, 7, 7, 7])
    h.write("proc/meminfo", f"MemTotal:       {64 * 2**20} kB\nMemFree:        1 kB")
    h.write("proc/self/status", "Name:\tpython\nCpus_allowed_list:\t0-1")
    h.write("proc/loadavg", "0.50 0.20 0.10 1/87 6844")
    h.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    h.write("etc/os-release", 'NAME="X"\nPRETTY_NAME="Imaginary Linux 1"')
    h.write("proc/sys/kernel/osrelease", "6.1.0-imaginary")
    h.stat(idle=1000)
    return h


@pytest.fixture
def clock() -> Callable[[], float]:
    """Seconds that a test sets: ``clock.now = 1.5``."""

    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    return Clock()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A stand-in for a GPU whose caps may be set; see wattline_sim.capped_gpu."""
    gpu = Gpu(tmp_path)
    monkeypatch.setenv("FAKE_GPU", str(gpu.path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))  # the watchdog's pynvml
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return gpu


@pytest.fixture
def capping() -> Iterator[Callable[..., Run]]:
    """Starts processes that cap that GPU; none outlives its test."""
    started: list[Run] = []

    def start(*arguments: str) -> Run:
        started.append(Run(*arguments))
        return started[-1]

    yield start
    for each in started:
        for pid in filter(None, (each.process.pid, each.forked)):
            if pid != each.process.pid or each.process.poll() is None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        each.process.wait(timeout=30)
        each.process.stdout.close()
