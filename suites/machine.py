"""Facts of the machine that plans and requirements ask about, with torch loaded only where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wattline.collectors.device import AcceleratorDevice, CpuDevice, Device, open_device
from wattline.collectors.energy import find_energy_sensor
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
