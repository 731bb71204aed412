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
from typing import Any

from wattline.collectors.energy.errors import code_of, nvml_error
from wattline.errors import SensorError, WattlineError


class OpenGpu:
    """A GPU in NVML; the library counts who has it open.

    Attributes:
        binding: a module like ``pynvml``, initialised.
        handle: of the device as the binding gives it: the whole GPU where torch's device is a part of one (MIG).
        is_mig: whether torch's device is a part of that GPU.
    """

    def __init__(self, binding: Any, handle: Any, *, is_mig: bool = False) -> None:
        self.binding = binding
        self.handle = handle
        self.is_mig = is_mig
        self._open = True

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
    return OpenGpu(binding, whole if whole is not None else handle, is_mig=whole is not None)


def gpu_uuid(kind: str, index: int = 0, *, binding: Any = None) -> str:
    """The UUID of a device of torch as NVML writes it.

    Empty where it is no CUDA device, where NVML does not answer or knows no such device (one of AMD's, say), or where
    the device is a part of a GPU (MIG) whose settings others share.
    """
    if kind != "cuda":
        return ""
    try:
        gpu = open_gpu(index, binding=binding)
    except WattlineError:
        return ""
    try:
        found = gpu.binding.nvmlDeviceGetUUID(gpu.handle)
    except gpu.binding.NVMLError:
        return ""
    finally:
        gpu.close()
    return "" if gpu.is_mig else found.decode() if isinstance(found, bytes) else str(found)


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


def _shut(binding: Any) -> None:
    with contextlib.suppress(binding.NVMLError):
        binding.nvmlShutdown()
