"""Facts of the machine that plans and requirements ask about, with torch loaded only where it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wattline.collectors.device import AcceleratorDevice, CpuDevice, Device, open_device
from wattline.collectors.energy import EnergySensor, find_energy_sensor
from wattline.collectors.environment import environment_id, snapshot
from wattline.device import DeviceSpec
from wattline.record import Reason
from wattline.suites.workload import Machine

_ACCELERATOR_NODES = ("dev/nvidiactl", "dev/nvidia0", "dev/kfd", "dev/dxg", "dev/accel", "dev/habanalabs")


def may_have_accelerator(root: str = "/") -> bool:
    """Whether the system shows any accelerator at all, found without loading torch."""
    base = Path(root)
    return any((base / node).exists() for node in _ACCELERATOR_NODES) or any((base / "dev/dri").glob("renderD*"))


def machine_of(device: Device) -> Machine:
    """The facts of an opened device; loads torch."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    major_minor = (version[0], version[1])
    if isinstance(device, AcceleratorDevice):
        properties: Any = device.properties
        hip = torch.version.hip is not None
        sm = 0 if hip or device.kind != "cuda" else 10 * properties.major + properties.minor
        sensor = _sensor(device.kind, device.index)
        return Machine(
            device.kind, hip, sm, major_minor, int(properties.total_memory), device.cache_bytes(), sensor
        )
    return _cpu_machine(major_minor)


def machine_facts(device: str = "auto") -> Machine:
    """The facts of a device by name, without torch when it is (or can only be) the CPU.

    Raises:
        UnsupportedError: this machine has no such device.
    """
    if device == "cpu" or (device == "auto" and not may_have_accelerator()):
        return _cpu_machine(_installed_torch())
    return machine_of(open_device(device))


def _cpu_machine(version: tuple[int, int]) -> Machine:
    cpu = CpuDevice()
    return Machine(
        kind="cpu", torch_version=version, memory_bytes=cpu.free_memory(), cache_bytes=cpu.cache_bytes(),
        energy=_sensor("cpu", 0),
    )  # fmt: skip


def greeting(device: Device, spec: DeviceSpec, gpu: Any, energy: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker, or the first of several ranks, says of itself when it is ready.

    Args:
        device: that it runs on.
        spec: its description.
        gpu: what NVML knows of it (a dataclass).
        energy: of :func:`sensor_facts`.
    """
    environment, timer = snapshot(), device.timer()
    return {
        "device": spec.to_dict(),
        "gpu": asdict(gpu),
        "environment": environment,
        "environment_id": environment_id(environment),
        "timer": {"name": timer.name, "min_batch_s": timer.min_batch_s, "overhead_s": timer.overhead_s()},
        "energy": dict(energy),
    }


def sensor_facts(sensor: EnergySensor, *, reason: Reason | None = None, levels_missing: str = "") -> dict[str, Any]:
    """What a run's manifest says of its energy sensor.

    Args:
        sensor: of the device, or of rank 0's.
        reason: why there are no joules although this sensor can be read.
        levels_missing: why the power at rest is not known.
    """
    why = reason or sensor.reason
    return {
        "available": why is None,
        "name": sensor.name,
        "reason": None if why is None else {"code": why.code, "message": why.message},
        "source": sensor.source,
        "scope": sensor.scope,
        "remedy": sensor.remedy,
        "levels": {name: asdict(level) for name, level in getattr(sensor, "levels", {}).items()},
        "levels_missing": levels_missing,
        "profiles": [{"source": s.label, **asdict(s.profile)} for s in getattr(sensor, "sources", ())],
    }


def _sensor(kind: str, index: int) -> str:
    """The name of the device's energy sensor, or nothing."""
    sensor = find_energy_sensor(kind, index=index)
    try:
        return sensor.name if sensor.available else ""
    finally:
        sensor.close()


def _installed_torch() -> tuple[int, int]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        major, minor = version("torch").split(".")[:2]
    except (PackageNotFoundError, ValueError):
        return (0, 0)
    return int(major), int(minor)
