"""The doctor: what this machine has, what it lacks, what that costs its user, and how to get it.

Plain data; the command line prints it. A probe that fails becomes a finding of its own, so looking never raises.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wattline.collectors import host
from wattline.collectors.energy import EnergySensor, MeteredSensor, find_energy_sensor
from wattline.collectors.energy.nvml_probe import NvmlState, probe_nvml
from wattline.collectors.telemetry import FOREIGN_LIMIT, MIN_SPAN_S, HostTelemetry
from wattline.units import format_bytes, format_si, format_time

Status = Literal["ok", "limited", "missing"]

LIBRARIES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("triton", ("triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "triton-windows"), "kernels written in Triton"),
    ("numba", ("numba",), "kernels compiled by Numba"),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "kernels of ONNX Runtime"),
    ("torchao", ("torchao",), "quantised products of torchao"),
    ("flash_attn", ("flash-attn",), "FlashAttention kernels"),
    ("transformer_engine", ("transformer-engine",), "FP8 layers of Transformer Engine"),
    ("xformers", ("xformers",), "attention kernels of xFormers"),
    ("cutlass", ("nvidia-cutlass-dsl", "nvidia-cutlass"), "kernels written with CUTLASS"),
)
"""Optional libraries: import name, packages that hold it, and what cannot be measured without it."""

LEAST_FREE_BYTES = 10**9
"""Free space below which storage counts as limited: raw samples of a full run take some 100 MB."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: ``"devices"``, ``"sensors"``, ``"clocks"``, ``"libraries"``, ``"storage"``, ``"limits"``, ``"load"``.
        name: what was looked at.
        status: ``"ok"``, ``"limited"`` (there, with a reservation) or ``"missing"``.
        detail: what was found.
        cost: what a lack costs the user; empty for ``"ok"``.
        remedy: how to get it; empty where there is nothing to do.
    """

    area: str
    name: str
    status: Status
    detail: str
    cost: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain JSON types."""
        return asdict(self)


def inspect_machine(
    root: str = "/",
    *,
    deep: bool = True,
    folder: str = ".",
    watch_s: float = 0.25,
    nvml: Callable[[], NvmlState] = probe_nvml,
) -> list[Finding]:
    """Look at everything that bears on measuring here. Never raises.

    Args:
        root: of the file tree that holds ``proc``, ``sys`` and ``dev``.
        deep: whether to import torch and ask it for accelerators; takes seconds where it is not loaded yet.
        folder: where runs are to be written.
        watch_s: how long to watch what other processes do; at least 0.2 s tell anything, 0 skips it.
        nvml: asks NVIDIA's library; for tests.
    """
    probes: tuple[tuple[str, str, Callable[[], Iterator[Finding]]], ...] = (
        ("devices", "cpu", lambda: _cpu(root)),
        ("devices", "accelerators", lambda: _accelerators(root, deep)),
        ("sensors", "cpu energy", lambda: _energy("cpu energy", find_energy_sensor("cpu", root))),
        ("sensors", "gpu energy", lambda: _gpu_energy(root, nvml)),
        ("sensors", "temperatures", lambda: _temperatures(root)),
        ("sensors", "heat events", lambda: _heat(root)),
        ("clocks", "timer", lambda: _timer(root)),
        ("clocks", "cpu frequency", lambda: _frequency(root)),
        ("libraries", "torch", lambda: _torch(deep)),
        ("libraries", "optional", _libraries),
        ("limits", "control groups", lambda: _limits(root)),
        ("storage", "run folder", lambda: _storage(folder)),
        ("load", "other processes", lambda: _load(root, watch_s)),
    )
    findings: list[Finding] = []
    for area, name, probe in probes:
        try:
            findings.extend(probe())
        except Exception as error:  # noqa: BLE001 - whatever a driver or a library throws is itself the finding
            first = (str(error).splitlines() or [""])[0]
            findings.append(
                Finding(area, name, "limited", f"looking failed: {type(error).__name__}: {first}", "this is not known")
            )
    return findings


def _cpu(root: str) -> Iterator[Finding]:
    facts = host.cpu_facts(root)
    if not facts.model and not facts.logical:
        yield Finding("devices", "cpu", "limited", "/proc and /sys say nothing of it", "its caches are not known")
        return
    caches = [
        f"L{level} {size / 2**20:g} MiB" if size >= 2**20 else f"L{level} {size / 2**10:g} KiB"
        for level in (1, 2, 3)
        if (size := facts.cache_bytes(level))
    ]
    parts = [
        facts.model or "unnamed",
        f"{facts.cores or '?'} cores, {facts.logical or '?'} hardware threads, {facts.sockets or '?'} socket(s)",
        *caches,
        f"{format_bytes(host.memory_bytes(root))} memory",
    ]
    yield Finding("devices", "cpu", "ok", ", ".join(parts))
    if facts.hypervisor:
        yield Finding(
            "devices",
            "virtual machine",
            "limited",
            f"runs on a hypervisor ({facts.hypervisor})",
            "neighbours may take processor time, cache and bandwidth; clocks, heat and energy are usually hidden",
            "measure on bare metal, or read the intervals and the steal_share column with care",
        )


def _accelerators(root: str, deep: bool) -> Iterator[Finding]:
    nodes = {"NVIDIA": "dev/nvidia0", "AMD": "dev/kfd"}
    present = [maker for maker, node in nodes.items() if os.path.exists(os.path.join(root, node))]
    if not deep:
        seen = f"device files of {' and '.join(present)}" if present else "no device files of NVIDIA or AMD"
        yield Finding("devices", "accelerators", "limited", f"torch was not asked; {seen}", "", "ask with deep=True")
        return
    import torch

    if not torch.accelerator.is_available():
        if present:
            build = "CUDA" if torch.version.cuda else "ROCm" if torch.version.hip else "the CPU only"
            yield Finding(
                "devices",
                "accelerators",
                "limited",
                f"{' and '.join(present)} device files are present, but torch, built for {build}, uses none",
                "only the CPU is measured",
                "install the build of torch that fits the driver: https://pytorch.org/get-started/locally/",
            )
        else:
            cost, remedy = "only the CPU is measured", "use a machine with one"
            yield Finding("devices", "accelerators", "missing", "torch sees none", cost, remedy)
        return
    kind = torch.accelerator.current_accelerator().type
    for index in range(torch.accelerator.device_count()):
        facts: Any = getattr(torch, kind).get_device_properties(index)
        detail = f"{facts.name}, {format_bytes(facts.total_memory)} memory"
        yield Finding("devices", f"{kind}:{index}", "ok", detail)


def _energy(name: str, sensor: EnergySensor) -> Iterator[Finding]:
    with sensor:
        if isinstance(sensor, MeteredSensor):
            yield _readable(name, sensor)
            return
        if sensor.reason is None:
            yield Finding("sensors", name, "ok", sensor.source)
            return
        # There, but not to be read by this user or in this state: more can be done about it than about a lack.
        present = sensor.reason.code.endswith(("_forbidden", "_hidden", "_no_permission", "_failed", "_lost"))
        yield Finding(
            "sensors",
            name,
            "limited" if present else "missing",
            sensor.reason.message,
            "times only: no joules for it",
            sensor.remedy,
        )


def _gpu_energy(root: str, nvml: Callable[[], NvmlState]) -> Iterator[Finding]:
    """One finding per GPU."""
    state = nvml()
    for index in range(max(1, len(state.gpus))):
        name = "gpu energy" if index == 0 else f"gpu {index} energy"
        yield from _energy(name, find_energy_sensor("gpu", root, index=index, nvml=lambda: state))


def _readable(name: str, sensor: MeteredSensor) -> Finding:
    """What will be read, what checks it, and how well its behaviour is known."""
    first = sensor.sources[0]
    detail = [first.label]
    if len(sensor.sources) > 1:
        detail.append(f"then {', '.join(source.field for source in sensor.sources[1:])}")
    window = sensor.window()
    found = "calibrated" if first.profile.calibrated else "from public measurements, not of this machine"
    detail.append(f"a new value every {format_time(first.profile.period_s)} ({found})")
    detail.append(f"{window.measured_s:g} s window, {window.lead_in_s:.3g} s lead-in")
    cost = sensor.note
    if cost or not first.profile.calibrated:
        cost = cost or "windows and intervals rest on priors; every figure says so"
        remedy = "" if first.profile.calibrated else "wattline calibrate"
        return Finding("sensors", name, "limited" if sensor.note else "ok", "; ".join(detail), cost, remedy)
    return Finding("sensors", name, "ok", "; ".join(detail))


def _temperatures(root: str) -> Iterator[Finding]:
    folder = "sys/class/hwmon"
    names: list[str] = []
    if os.path.isdir(os.path.join(root, folder)):
        chips = sorted(os.listdir(os.path.join(root, folder)))
        names = [name for chip in chips if (name := host.read_text(root, f"{folder}/{chip}/name"))]
    if names:
        yield Finding("sensors", "temperatures", "ok", f"hwmon shows {', '.join(names)}")
    else:
        yield Finding(
            "sensors",
            "temperatures",
            "missing",
            f"/{folder} shows no sensors",
            "whether heat slowed a run cannot be seen",
            "on bare metal: sudo sensors-detect (package lm-sensors); virtual machines have none",
        )


def _heat(root: str) -> Iterator[Finding]:
    cpus = host.online_cpus(root) or (0,)
    count = host.read_int(root, f"{host.CPU}/cpu{cpus[0]}/thermal_throttle/package_throttle_count")
    if count is not None:
        yield Finding("sensors", "heat events", "ok", f"counted by the kernel ({count} since the start)")
    else:
        yield Finding(
            "sensors",
            "heat events",
            "missing",
            "no thermal_throttle counters (Intel on bare metal has them)",
            "a run slowed by heat is not flagged; the drift check still sees a slowdown within one case",
        )


def _timer(root: str) -> Iterator[Finding]:
    steps: list[int] = []
    before = time.perf_counter_ns()
    for _ in range(1000):
        now = time.perf_counter_ns()
        if now > before:
            steps.append(now - before)
        before = now
    step_s = sorted(steps)[len(steps) // 2] * 1e-9 if steps else float("inf")
    source = host.read_text(root, "sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown"
    detail = f"perf_counter steps by {format_time(step_s)}; kernel clock source {source}"
    if step_s <= 1e-6:
        yield Finding("clocks", "timer", "ok", detail)
    else:
        yield Finding(
            "clocks",
            "timer",
            "limited",
            detail,
            "short kernels need larger batches, and their spread is less well seen",
            "boot with a TSC clock source (kernel parameter clocksource=tsc), where the machine allows it",
        )


def _frequency(root: str) -> Iterator[Finding]:
    facts = host.cpu_facts(root)
    if not facts.governor:
        yield Finding(
            "clocks",
            "cpu frequency",
            "missing",
            "no frequency scaling is visible",
            "the clock of a measurement is not recorded",
            "visible on bare metal only, as a rule",
        )
        return
    limits = f", {format_si(facts.min_hz, 'Hz')} to {format_si(facts.max_hz, 'Hz')}" if facts.max_hz else ""
    turbo = {True: ", turbo on", False: ", turbo off", None: ""}[facts.turbo]
    detail = f"governor {facts.governor} ({facts.driver or 'unknown driver'}){limits}{turbo}"
    if facts.governor == "performance":
        yield Finding("clocks", "cpu frequency", "ok", detail)
    else:
        yield Finding(
            "clocks",
            "cpu frequency",
            "limited",
            detail,
            "the clock follows the load: short kernels spread more and need a longer warm-up",
            "sudo cpupower frequency-set -g performance",
        )


def _torch(deep: bool) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("libraries", "torch", "missing", "not installed", "nothing can be measured", "pip install torch")
        return
    detail = f"version {_version(('torch',)) or 'unknown'}"
    if deep:
        import torch

        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        build = build if torch.version.cuda or torch.version.hip else "CPU"
        detail += f", built for {build}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    yield Finding("libraries", "torch", "ok", detail)


def _libraries() -> Iterator[Finding]:
    for name, packages, use in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            remedy = f"pip install {packages[0]} (where this platform has it)"
            yield Finding("libraries", name, "missing", "not installed", f"{use} cannot be measured", remedy)
        else:
            yield Finding("libraries", name, "ok", f"version {_version(packages) or 'unknown'}")


def _version(packages: tuple[str, ...]) -> str:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _limits(root: str) -> Iterator[Finding]:
    quota, memory, kind = host.cpu_quota(root), host.memory_limit(root), host.container(root)
    cpus, allowed = len(host.online_cpus(root)), len(host.allowed_cpus(root))
    where = f"in a container ({kind}), " if kind else ""
    if quota is not None:
        yield Finding(
            "limits",
            "cpu quota",
            "limited",
            f"{where}{quota:g} processors' worth of time",
            "once it is used up, all threads wait for the next period: figures jump",
            "give the container whole processors (--cpuset-cpus) instead of a quota (--cpus)",
        )
    else:
        yield Finding("limits", "cpu quota", "ok", f"{where}none")
    if allowed and allowed < cpus:
        detail = f"this process may use {allowed} of {cpus} processors"
        yield Finding("limits", "processors", "limited", detail, "the others' load still shares memory and clocks")
    if memory is not None:
        detail = f"{where}{format_bytes(memory)} of {format_bytes(host.memory_bytes(root))}"
        yield Finding("limits", "memory", "limited", detail, "larger cases are refused or killed", "raise the limit")
    else:
        yield Finding("limits", "memory", "ok", f"{where}no limit below the machine's own")


def _storage(folder: str) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    path = os.path.abspath(folder)
    if not os.access(folder, os.W_OK):
        cost, remedy = "runs cannot be written here", "choose another folder with --out"
        yield Finding("storage", "run folder", "missing", f"{path} may not be written to", cost, remedy)
    elif free < LEAST_FREE_BYTES:
        cost, remedy = "a long run may fill it and stop", "free some space, or choose another folder with --out"
        yield Finding("storage", "run folder", "limited", f"{format_bytes(free)} free in {path}", cost, remedy)
    else:
        yield Finding("storage", "run folder", "ok", f"{format_bytes(free)} free in {path}")


def _load(root: str, watch_s: float) -> Iterator[Finding]:
    if watch_s <= 0:
        return
    with HostTelemetry(root) as watched:
        time.sleep(max(watch_s, MIN_SPAN_S + 0.01))
    seen = watched.result
    if "foreign_cpu_share" not in seen.means:
        why = seen.missing.get("foreign_cpu_share", "unknown")
        yield Finding("load", "other processes", "limited", why, "whether others disturb a run cannot be seen")
        return
    share, steal = seen.means["foreign_cpu_share"], seen.means["steal_share"]
    detail = f"others use {share:.0%} of the processors now, steal {steal:.0%} (over {format_time(seen.span_s)})"
    if max(share, steal) <= FOREIGN_LIMIT:
        yield Finding("load", "other processes", "ok", detail)
    else:
        cost = "figures come out slower and spread more; affected ones are flagged foreign_process"
        yield Finding("load", "other processes", "limited", detail, cost, "stop other work, or measure later")
