"""Which GPU of NVML a device of torch is, and NVML opened for as long as it is looked at.

CUDA and NVML count GPUs in different orders, and ``CUDA_VISIBLE_DEVICES`` hides some from CUDA only: the UUID is
what both agree on.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattline.collectors.energy.errors import code_of, nvml_error
from wattline.collectors.telemetry import is_rocm
from wattline.errors import SensorError, WattlineError
from wattline.reasons import Reason


class OpenGpu:
    """A GPU in NVML; the library counts who has it open.

    Attributes:
        binding: a module like ``pynvml``, initialised.
        handle: of the device as the binding gives it: the whole GPU where torch's device is a part of one (MIG).
        is_mig: whether torch's device is a part of that GPU.
    """

    def __init__(self, binding: Any, handle: Any, *, part: Any = None) -> None:
        self.binding = binding
        self.handle = handle
        self.is_mig = part is not None
        self._named = part if part is not None else handle
        self._open = True

    def uuids(self) -> tuple[str, str]:
        """UUID of torch's device and of the whole GPU, as NVML writes them; the same but for a part of one.

        Raises:
            SensorError: (or :class:`~wattline.errors.DeviceError`) NVML does not say.
        """
        try:
            named, whole = (self.binding.nvmlDeviceGetUUID(handle) for handle in (self._named, self.handle))
        except self.binding.NVMLError as error:
            raise nvml_error(code_of(error), "asking for the GPU's UUID") from None
        return _text(named), _text(whole)

    def close(self) -> None:
        """Leave NVML; it may be called twice."""
        if self._open:
            self._open = False
            _shut(self.binding)


def open_gpu(index: int = 0, *, uuid: str | None = None, binding: Any = None) -> OpenGpu:
    """Open NVML and find a CUDA device in it.

    Args:
        index: the device's number as torch counts.
        uuid: its UUID as NVML writes it (``"GPU-..."`` or ``"MIG-..."``); found out where not given: from torch where
            CUDA is in use, else from ``CUDA_VISIBLE_DEVICES``, else the number is taken as NVML's.
        binding: a module like ``pynvml``, for tests; the installed one where not given.

    Raises:
        SensorError: (or :class:`~wattline.errors.DeviceError`) NVML does not answer, or has no such device.
    """
    if binding is None:
        try:
            binding = importlib.import_module("pynvml")
        except ImportError as error:
            raise SensorError(
                "NVML cannot be asked",
                why=f"the Python package nvidia-ml-py cannot be imported: {error}",
                todo="pip install nvidia-ml-py",
            ) from None
    try:
        binding.nvmlInit()
    except binding.NVMLError as error:
        raise nvml_error(code_of(error), "opening NVML") from None
    try:
        handle = _handle(binding, index, uuid)
        whole = _parent(binding, handle)
    except binding.NVMLError as error:
        _shut(binding)
        raise nvml_error(code_of(error), f"finding GPU {uuid or index} in NVML") from None
    return OpenGpu(binding, handle) if whole is None else OpenGpu(binding, whole, part=handle)


@dataclass(frozen=True)
class Identity:
    """Which GPU computes, and whether its power limit and clocks are for us to set.

    Attributes:
        uuid: of torch's device as NVML writes it (``"GPU-..."``, or ``"MIG-..."`` of a part); empty where NVML does
            not know it.
        gpu: UUID of the whole GPU.
        reason: why limits and clocks are out of reach here; ``None`` where they may be tried.
    """

    uuid: str = ""
    gpu: str = ""
    reason: Reason | None = None


def not_nvidia(kind: str, *, rocm: bool) -> Reason | None:
    """Why the limits of such a device are out of reach, whatever the machine; ``None`` for NVIDIA's.

    Args:
        kind: the device's type as torch names it.
        rocm: torch drives AMD GPUs under the name of CUDA.
    """
    other = {"cpu": "the processor", "cuda": "an AMD GPU" if rocm else ""}.get(kind, f"of the kind {kind}")
    message = f"power limits and clocks are set through NVIDIA's driver, and this device is {other}"
    return Reason("no_caps", message) if other else None


def identify(kind: str, index: int = 0, *, binding: Any = None) -> Identity:
    """The GPU that a device of torch is. Never raises.

    Args:
        kind: the device's type as torch names it.
        index: its number as torch counts.
        binding: a module like ``pynvml``, for tests.
    """
    reason = not_nvidia(kind, rocm=is_rocm())
    if reason is not None:
        return Identity(reason=reason)
    try:
        gpu = open_gpu(index, binding=binding)
        try:
            uuid, whole = gpu.uuids()
        finally:
            gpu.close()
    except WattlineError as error:
        return Identity(reason=Reason("no_nvml", ": ".join(part for part in (error.what, error.why) if part)))
    if gpu.is_mig:
        message = "the GPU is split (MIG): its power limit and clocks hold for all parts, whoever uses them"
        return Identity(uuid, whole, Reason("mig", message))
    return Identity(uuid, whole)


def _handle(binding: Any, index: int, uuid: str | None) -> Any:
    names = [uuid] if uuid else uuids_of(index)
    for name in names:
        try:
            return binding.nvmlDeviceGetHandleByUUID(name)
        except binding.NVMLError:
            if name == names[-1]:
                raise
    return binding.nvmlDeviceGetHandleByIndex(visible_index(index))


def _parent(binding: Any, handle: Any) -> Any:
    """The GPU that a MIG instance is part of, or ``None``: power, clocks and heat exist for whole GPUs only."""
    with contextlib.suppress(AttributeError, binding.NVMLError):  # drivers before 450 know no MIG
        if binding.nvmlDeviceIsMigDeviceHandle(handle):
            return binding.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return None


def uuids_of(index: int, environment: Mapping[str, str] | None = None) -> list[str]:
    """Possible UUIDs of a CUDA device in NVML's spelling, the likeliest first; empty where none is known.

    Args:
        index: the device's number as torch counts.
        environment: of the process, for tests.
    """
    torch = sys.modules.get("torch")  # not loaded for this
    if torch is not None and torch.cuda.is_initialized():
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        if uuid is not None:
            return [f"GPU-{uuid}", f"MIG-{uuid}"]
    listed = _listed(environment)
    named = index < len(listed) and listed[index].startswith(("GPU-", "MIG-"))
    return [listed[index]] if named else []


def visible_index(index: int, environment: Mapping[str, str] | None = None) -> int:
    """NVML's number of a CUDA device, by ``CUDA_VISIBLE_DEVICES`` where that lists numbers.

    It holds where CUDA counts by bus as NVML does (one kind of GPU, or ``CUDA_DEVICE_ORDER=PCI_BUS_ID``).

    Args:
        index: the device's number as torch counts.
        environment: of the process, for tests.
    """
    listed = _listed(environment)
    return int(listed[index]) if index < len(listed) and listed[index].isdigit() else index


def _listed(environment: Mapping[str, str] | None) -> list[str]:
    text = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES", "")
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _shut(binding: Any) -> None:
    with contextlib.suppress(binding.NVMLError):
        binding.nvmlShutdown()
