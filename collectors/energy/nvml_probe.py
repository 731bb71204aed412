"""Whether NVIDIA's management library (NVML) answers on this machine, and if not, why.

One question asked by the snapshot, the doctor and the energy sensors. Errors of the library become states with a
sentence for people; nothing is raised.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NvmlGpu:
    """A GPU as NVML names it.

    Attributes:
        name: e.g. ``"NVIDIA H200"``.
        memory_bytes: size of its memory.
        power_limit_w: the limit enforced now, or ``None`` where it does not say.
    """

    name: str
    memory_bytes: int | None = None
    power_limit_w: float | None = None


@dataclass(frozen=True)
class NvmlState:
    """What NVML answered.

    Attributes:
        code: ``"ready"``, or why not: ``"no_binding"`` (the Python package is missing), ``"no_library"``,
            ``"no_driver"``, ``"no_permission"``, ``"no_gpu"``, ``"failed"``.
        detail: the same for people.
        driver: version of the driver, where it answered.
        gpus: those it sees.
    """

    code: str
    detail: str
    driver: str = ""
    gpus: tuple[NvmlGpu, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether sensors can be read through it."""
        return self.code == "ready"


_CODES = {
    "NVMLError_LibraryNotFound": ("no_library", "libnvidia-ml.so.1 is not installed: no NVIDIA driver"),
    "NVMLError_DriverNotLoaded": ("no_driver", "the NVIDIA kernel module is not loaded, or not passed on"),
    "NVMLError_NoPermission": ("no_permission", "this user may not talk to the NVIDIA driver"),
    "NVMLError_LibRmVersionMismatch": ("failed", "the NVIDIA library and kernel module differ in version"),
    "NVMLError_GpuIsLost": ("failed", "a GPU has fallen off the bus"),
}
"""The library's errors by class name: state and sentence."""

REMEDIES = {
    "no_binding": "pip install nvidia-ml-py",
    "no_library": "with an NVIDIA GPU: install its driver; a container is to be started with --gpus all",
    "no_driver": "load the driver (modprobe nvidia); in a container, pass the devices on (--gpus all)",
    "no_permission": "give this user read and write access to /dev/nvidiactl and /dev/nvidia*",
    "no_gpu": "make a GPU visible to this machine or container (--gpus all)",
    "failed": "see that `nvidia-smi` works: the library refuses in the same way there",
}
"""What would help, by state."""


def probe_nvml(binding: Any = None) -> NvmlState:
    """Ask NVML for the driver's version and the GPUs it sees; opened and closed again, some milliseconds.

    Args:
        binding: a module like `pynvml`, for tests; the installed one where not given.
    """
    if binding is None:
        try:
            binding = importlib.import_module("pynvml")
        except ImportError as error:
            return NvmlState("no_binding", f"the Python package nvidia-ml-py cannot be imported: {error}")
    try:
        binding.nvmlInit()
    except binding.NVMLError as error:
        return _failure(error)
    try:
        driver = _text(binding.nvmlSystemGetDriverVersion())
        gpus = tuple(_gpu(binding, index) for index in range(binding.nvmlDeviceGetCount()))
    except binding.NVMLError as error:
        return _failure(error)
    finally:
        with contextlib.suppress(binding.NVMLError):
            binding.nvmlShutdown()
    if not gpus:
        return NvmlState("no_gpu", f"driver {driver} answers, but shows no GPU", driver)
    return NvmlState("ready", f"driver {driver}, {len(gpus)} GPU(s)", driver, gpus)


def _failure(error: Exception) -> NvmlState:
    code, detail = _CODES.get(type(error).__name__, ("failed", f"NVML failed: {error}"))
    return NvmlState(code, detail)


def _gpu(binding: Any, index: int) -> NvmlGpu:
    handle = binding.nvmlDeviceGetHandleByIndex(index)
    name = _text(binding.nvmlDeviceGetName(handle))
    memory: int | None = None
    limit: float | None = None
    # Parts that share memory with the host, or have no power management, refuse these two.
    with contextlib.suppress(binding.NVMLError):
        memory = int(binding.nvmlDeviceGetMemoryInfo(handle).total)
    with contextlib.suppress(binding.NVMLError):
        limit = binding.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3  # the library counts in milliwatts
    return NvmlGpu(name, memory, limit)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
