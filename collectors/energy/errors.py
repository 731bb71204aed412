"""Errors of sensors, and the one table from NVML's error codes to them."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.errors import DeviceError, SensorError, WattlineError


class SensorUnsupportedError(SensorError):
    """This part, driver or library does not have the reading."""


class SensorForbiddenError(SensorError):
    """The reading is there, but not for this user."""


class SensorBusyError(SensorError):
    """The reading failed this time; the next may succeed."""


@dataclass(frozen=True)
class _Kind:
    error: type[WattlineError]
    why: str
    todo: str = ""


_DRIVER = "see that `nvidia-smi` works"
_UPDATE = "a newer driver may have it"

NVML_ERRORS: dict[int, _Kind] = {
    1: _Kind(SensorError, "NVML is not initialised", "open it again"),
    2: _Kind(SensorUnsupportedError, "this driver does not know the question", _UPDATE),
    3: _Kind(SensorUnsupportedError, "this GPU does not have it"),
    4: _Kind(SensorForbiddenError, "this user may not", "run as root, or ask the administrator of the machine"),
    6: _Kind(SensorUnsupportedError, "NVML knows no such object"),
    8: _Kind(DeviceError, "a power cable of the GPU is not attached", "attach all power cables"),
    9: _Kind(SensorError, "the NVIDIA kernel module is not loaded, or not passed on", "modprobe nvidia; or --gpus all"),
    10: _Kind(SensorBusyError, "the driver did not answer in time"),
    11: _Kind(DeviceError, "the driver sees an interrupt problem with a GPU", _DRIVER),
    12: _Kind(SensorError, "libnvidia-ml.so.1 is not installed", "install the NVIDIA driver"),
    13: _Kind(SensorUnsupportedError, "this driver's library lacks the function", _UPDATE),
    15: _Kind(DeviceError, "the GPU has fallen off the bus", "reboot; see `dmesg | grep -i xid`"),
    16: _Kind(DeviceError, "the GPU needs a reset", "sudo nvidia-smi --gpu-reset, once nothing uses it"),
    17: _Kind(SensorBusyError, "the operating system refused"),
    18: _Kind(SensorError, "the NVIDIA library and kernel module differ in version", "reboot after a driver update"),
    19: _Kind(SensorBusyError, "the GPU is in use"),
    20: _Kind(SensorBusyError, "out of memory"),
    21: _Kind(SensorBusyError, "there are no data yet"),
    23: _Kind(SensorBusyError, "the driver lacks resources"),
    25: _Kind(SensorUnsupportedError, "the library expects another version of the question", _UPDATE),
    26: _Kind(SensorUnsupportedError, "this driver has dropped the function"),
    27: _Kind(SensorBusyError, "the driver is not ready"),
    28: _Kind(DeviceError, "no such GPU", _DRIVER),
    999: _Kind(SensorBusyError, "NVML gives no cause"),
}
"""By code (nvml.h, nvmlReturn_t): the typed error, what it means and what helps."""

STICKY = frozenset({8, 11, 15, 16, 28})
"""Codes after which the device is gone for this process."""


def nvml_error(code: int, doing: str) -> WattlineError:
    """The typed error for a code that NVML returned while ``doing`` something, e.g. ``"reading power"``."""
    kind = NVML_ERRORS.get(code, _Kind(SensorError, f"NVML error {code}", _DRIVER))
    if kind.error is DeviceError:
        return DeviceError(f"{doing} failed", why=kind.why, todo=kind.todo, sticky=code in STICKY)
    return kind.error(f"{doing} failed", why=kind.why, todo=kind.todo)


def code_of(error: Exception) -> int:
    """The numeric code that an ``NVMLError`` carries; 999 where it carries none."""
    value = getattr(error, "value", None)
    return value if isinstance(value, int) else 999
