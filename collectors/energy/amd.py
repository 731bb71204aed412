"""AMD: power and energy through AMD SMI (the optional Python package ``amdsmi``, which comes with ROCm).

The energy accumulator counts in units of some 15 microjoules. It is known to stand still while the GPU sleeps and to
fall back after a reset: the estimator sees both. On parts of two dies (MI200 series) one sensor covers the card and
only the first die shows it: the figure is flagged, and the second die says where its sensor is.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from wattline.collectors.energy.errors import SensorBusyError, SensorForbiddenError, SensorUnsupportedError
from wattline.collectors.energy.sources import COUNTER, POWER, Reading, SensorProfile, Source
from wattline.errors import DeviceError, SensorError, WattlineError

DUAL_DIE = ("MI250", "MI250X")
"""Boards that show two devices and one power sensor."""

COUNTER_PERIOD_S = 1e-3
POWER_PERIOD_S = 0.1
_PRIOR = "prior: no public measurement of this sensor"

AMD_ERRORS: dict[int, type[WattlineError]] = {
    2: SensorUnsupportedError,  # NOT_SUPPORTED
    3: SensorUnsupportedError,  # NOT_YET_IMPLEMENTED
    7: SensorUnsupportedError,  # API_FAILED: an absent file of the driver
    8: SensorBusyError,  # TIMEOUT
    9: SensorBusyError,  # RETRY
    10: SensorForbiddenError,  # NO_PERM
    12: DeviceError,  # IO: the device does not answer
    30: SensorBusyError,  # BUSY
    31: DeviceError,  # NOT_FOUND
    32: SensorError,  # NOT_INIT
    40: SensorBusyError,  # NO_DATA
}
"""By code (amdsmi.h, amdsmi_status_t)."""


class AmdDevice:
    """One AMD GPU, opened through AMD SMI.

    Args:
        index: of the GPU as ROCm counts: the numbers of ``HIP_VISIBLE_DEVICES``, ``ROCR_VISIBLE_DEVICES`` or
            ``CUDA_VISIBLE_DEVICES`` are honoured.
        binding: a module like ``amdsmi``; the installed one where not given.

    Raises:
        SensorError: AMD SMI is missing, refuses, or shows no such GPU.
    """

    def __init__(self, index: int = 0, *, binding: Any = None) -> None:
        self.smi = binding if binding is not None else _import()
        self._open = False
        self.call("amdsmi_init", doing="opening AMD SMI")
        self._open = True
        try:
            handles = self.call("amdsmi_get_processor_handles")
            number = _visible(index)
            if not 0 <= number < len(handles):
                raise SensorError(f"opening AMD GPU {number} failed", why=f"AMD SMI sees {len(handles)}")
            self.handle = handles[number]
            asic = self._optional("amdsmi_get_gpu_asic_info", {})
            self.name = str(asic.get("market_name", "")) if isinstance(asic, Mapping) else ""
            self.uuid = str(self._optional("amdsmi_get_gpu_device_uuid", ""))
            driver = self._optional("amdsmi_get_gpu_driver_info", {})
            self.driver = str(driver.get("driver_version", "")) if isinstance(driver, Mapping) else str(driver)
            vbios = self._optional("amdsmi_get_gpu_vbios_info", {})
            self.firmware = str(vbios.get("version", "")) if isinstance(vbios, Mapping) else ""
        except BaseException:  # whatever it was: the library is not left open
            self.close()
            raise

    @property
    def dual_die(self) -> bool:
        """Whether the card shows two devices and has one sensor."""
        words = self.name.upper().replace("/", " ").split()
        return any(word in DUAL_DIE for word in words)

    def call(self, function: str, *arguments: Any, doing: str = "") -> Any:
        """Call a function of the library.

        Raises:
            SensorError: (one of its kinds, or :class:`DeviceError`) by the table of errors.
        """
        doing = doing or f"asking {function}"
        entry = getattr(self.smi, function, None)
        if entry is None:
            raise SensorUnsupportedError(f"{doing} failed", why="this version of amdsmi lacks it")
        try:
            return entry(*arguments)
        except self.smi.AmdSmiException as error:
            code = error.get_error_code() if hasattr(error, "get_error_code") else -1
            kind = AMD_ERRORS.get(int(code), SensorError)
            raise kind(f"{doing} failed", why=f"AMD SMI: {error}") from error

    def close(self) -> None:
        """Give the library back; it may be called twice."""
        if self._open:
            self._open = False
            with contextlib.suppress(self.smi.AmdSmiException):
                self.smi.amdsmi_shut_down()

    def _optional(self, function: str, missing: Any) -> Any:
        try:
            return self.call(function, self.handle)
        except SensorError:
            return missing


class AmdSource(Source):
    """A reading of one GPU.

    Args:
        device: the GPU; the first closed source closes it.
        kind: counter or power.
        field: for people and records.
        profile: how it reads.
        read: gives joules or watts.
    """

    vendor = "amdsmi"

    def __init__(
        self, device: AmdDevice, kind: str, field: str, profile: SensorProfile, read: Callable[[], float]
    ) -> None:
        self.device = device
        self.kind = kind
        self.field = field
        self.profile = profile
        self.scope = "card" if device.dual_die else "gpu"
        self.flags = ("shared_card",) if device.dual_die else ()
        self._read = read

    def read(self) -> Reading:
        """See :meth:`Source.read`."""
        begin = time.perf_counter()
        value = self._read()
        end = time.perf_counter()
        return Reading((begin + end) / 2, value, end - begin)

    def close(self) -> None:
        """Close the GPU."""
        self.device.close()


def amd_sources(device: AmdDevice) -> tuple[list[Source], dict[str, str]]:
    """The readings that a GPU has, in order of preference, each tried once.

    Returns:
        The sources; and of the readings that it lacks, the reason by field.
    """

    def energy() -> float:
        found = device.call("amdsmi_get_energy_count", device.handle, doing="reading the energy counter")
        # The accumulator was called "power" before ROCm 6.
        count = found.get("energy_accumulator", found.get("power"))
        return _number(count, "the energy counter") * _number(found.get("counter_resolution"), "its unit") * 1e-6

    def power() -> float:
        found = device.call("amdsmi_get_power_info", device.handle, doing="reading the power")
        # Which one a part fills depends on its generation; the others hold "N/A" or 65535.
        for name in ("current_socket_power", "socket_power", "average_socket_power"):
            value = found.get(name)
            if isinstance(value, int | float) and 0 < value < 0xFFFF:
                return float(value)
        raise SensorUnsupportedError("reading the power failed", why=f"AMD SMI gives {found}")

    unit = 15.3e-6
    counter = SensorProfile(COUNTER_PERIOD_S, resolution=unit, gain_error=0.05, note=_PRIOR)
    usage = SensorProfile(POWER_PERIOD_S, POWER_PERIOD_S, resolution=1.0, gain_error=0.05, note=_PRIOR)
    found: list[Source] = []
    missing: dict[str, str] = {}
    for source in (
        AmdSource(device, COUNTER, "energy accumulator", counter, energy),
        AmdSource(device, POWER, "socket power", usage, power),
    ):
        try:
            if source.read().value > 0:
                found.append(source)
                continue
            why = "it reads 0"
            if device.dual_die:
                why += ": the sensor of a card of two dies belongs to its first die"
        except SensorError as error:
            why = error.why or error.what
        missing[source.field] = why
    return found, missing


def _visible(index: int) -> int:
    """The number of a device among all, by the variables that hide some; HIP's applies to what ROCr shows."""
    for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name == "CUDA_VISIBLE_DEVICES" and "HIP_VISIBLE_DEVICES" in os.environ:
            continue  # HIP reads its own name first
        entries = [entry.strip() for entry in os.environ.get(name, "").split(",") if entry.strip()]
        if not entries:
            continue
        if index >= len(entries) or not entries[index].isdigit():
            raise SensorError(
                f"opening AMD GPU {index} failed", why=f"{name}={os.environ[name]} does not number it",
                todo=f"list devices by number in {name}",
            )
        index = int(entries[index])
    return index


def _number(value: Any, what: str) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise SensorUnsupportedError(f"reading {what} failed", why=f"AMD SMI gives {value!r}")


def _import() -> Any:
    try:
        return importlib.import_module("amdsmi")
    except (ImportError, OSError, KeyError) as error:  # without ROCm the package fails on its library in many ways
        raise SensorError(
            "AMD SMI cannot be opened",
            why=f"the Python package amdsmi cannot be imported: {error}",
            todo="install ROCm's amd-smi-lib and pip install /opt/rocm/share/amd_smi",
        ) from error
