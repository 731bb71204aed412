"""What NVML says of one GPU beside its joules: clocks, heat, throttling, load, PCIe traffic, processes.

:class:`GpuReader` has two kinds of reading. :meth:`GpuReader.poll` is cheap and asked again and again;
:meth:`GpuReader.totals` reads counters and whatever is slow, at the two ends of a span. A quantity that the part, the
driver or its permissions do not offer has no column but a reason in :attr:`GpuReader.missing`; it is asked once and
then left alone. Nothing is ever filled in with a zero.

What a call costs decides what is polled: a field value such as the instant power takes microseconds, the byte
counters of PCIe some tenths of a millisecond, and ``nvmlDeviceGetPcieThroughput`` 20 ms per direction, since it
counts for that long (NVML API reference). The latter is read seldom, and only where the counters are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from wattline.collectors.energy.errors import (
    SensorBusyError,
    SensorForbiddenError,
    SensorUnsupportedError,
    code_of,
    nvml_error,
)
from wattline.errors import DeviceError

FIELD_POWER_INSTANT = 186
FIELD_MEMORY_TEMPERATURE = 82
FIELDS_PCIE = {"gpu_pcie_tx_bytes_per_s": 197, "gpu_pcie_rx_bytes_per_s": 198}
"""Bytes that the GPU has sent to the host (tx) and received from it (rx) since the driver was loaded."""

POLICIES = {"power": (74, 0), "thermal": (75, 1), "sync_boost": (76, 2), "board_limit": (77, 3), "reliability": (79, 5)}
"""Counters of the time spent below the wanted clocks, in ns: field, and policy of nvmlDeviceGetViolationStatus."""

_GPU_IDLE, _USER_CLOCKS, _POWER_CAP, _HW_SLOWDOWN, _SYNC_BOOST = 0x1, 0x2 | 0x100, 0x4, 0x8, 0x10
_SW_THERMAL, _HW_THERMAL, _POWER_BRAKE = 0x20, 0x40, 0x80

_NO_VALUE = 0xFFFFFFFF  # NVML_VALUE_NOT_AVAILABLE of 32-bit readings
_VALUE_TYPES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_64_BITS = frozenset({"ulVal", "ullVal", "sllVal"})
_FUNCTION_NOT_FOUND = 13  # NVML_ERROR_FUNCTION_NOT_FOUND
_ALSO = {
    "nvmlDeviceGetCurrentClocksEventReasons": ("nvmlDeviceGetCurrentClocksThrottleReasons",),  # before driver 535
    "nvmlDeviceGetTemperature": ("nvmlDeviceGetTemperatureV",),  # the other is announced to go
    "nvmlDeviceGetComputeRunningProcesses": ("nvmlDeviceGetComputeRunningProcesses_v2",),  # before driver 510
}
"""Other names of the same functions, for drivers that lack the first."""

def throttle_causes(reasons: int) -> dict[str, bool]:
    """Why the clocks are lower than they could be, from NVML's bit mask of clock event reasons.

    Args:
        reasons: the mask.

    Returns:
        By cause: ``power`` (the cap holds), ``thermal`` (software or hardware), ``hardware`` (power brake, or a
        slowdown that names no heat), ``sync_boost``, ``user_clocks`` (locked or application clocks), ``idle``.
    """
    thermal = bool(reasons & (_SW_THERMAL | _HW_THERMAL))
    slowed = bool(reasons & _HW_SLOWDOWN) and not reasons & _HW_THERMAL
    return {
        "power": bool(reasons & _POWER_CAP),
        "thermal": thermal,
        "hardware": bool(reasons & _POWER_BRAKE) or slowed,
        "sync_boost": bool(reasons & _SYNC_BOOST),
        "user_clocks": bool(reasons & _USER_CLOCKS),
        "idle": bool(reasons & _GPU_IDLE),
    }


@dataclass(frozen=True)
class Totals:
    """Counters at one end of a span.

    Attributes:
        violation_s: seconds spent throttled since the driver was loaded, by policy.
        pcie_bytes: bytes since the driver was loaded, by column of :data:`FIELDS_PCIE`.
        power_limit_w: the limit that is enforced now.
        processes: process ids with a compute context on the GPU, or ``None`` where that cannot be told.
    """

    violation_s: Mapping[str, float] = field(default_factory=dict)
    pcie_bytes: Mapping[str, int] = field(default_factory=dict)
    power_limit_w: float | None = None
    processes: frozenset[int] | None = None


class GpuReader:
    """Reads one GPU.

    Args:
        binding: a module like ``pynvml``, initialised by its owner.
        handle: of the device, as the binding gives it; of the whole GPU where it is cut into MIG instances.

    Attributes:
        missing: why a column is not there, by column.
    """

    def __init__(self, binding: Any, handle: Any) -> None:
        self._nvml = binding
        self._handle = handle
        self._given_up: set[str] = set()
        self._known_as: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def poll(self) -> dict[str, float]:
        """The cheap readings, by column, in SI units; a column that failed is absent.

        Raises:
            DeviceError: the GPU is lost, or the driver gone: asking again is of no use.
        """
        n, seen = self._nvml, dict[str, float]()
        for column, kind in (("gpu_sm_clock_hz", n.NVML_CLOCK_SM), ("gpu_memory_clock_hz", n.NVML_CLOCK_MEM)):
            # Zero is what parts that sleep, or do not tell, answer: no clock of a GPU at work is zero.
            self._one(seen, column, "nvmlDeviceGetClockInfo", 1e6, kind, least=1)
        self._one(seen, "gpu_temperature_c", "nvmlDeviceGetTemperature", 1.0, n.NVML_TEMPERATURE_GPU)
        self._fields(
            seen,
            {
                "gpu_power_instant_w": (FIELD_POWER_INSTANT, 1e-3),
                "gpu_memory_temperature_c": (FIELD_MEMORY_TEMPERATURE, 1.0),
            },
        )
        if "gpu_power_instant_w" not in seen:
            # Averaged over a second on Ampere and newer (GA100 excepted), instant before: hence a name of its own.
            self._one(seen, "gpu_power_usage_w", "nvmlDeviceGetPowerUsage", 1e-3, least=1)
        self._many(seen, ("gpu_utilization", "gpu_memory_utilization"), "nvmlDeviceGetUtilizationRates", self._rates)
        causes = tuple(f"gpu_throttle_{cause}" for cause in throttle_causes(0))
        self._many(seen, causes, "nvmlDeviceGetCurrentClocksEventReasons", self._throttle)
        return seen

    def totals(self) -> Totals:
        """Counters and slow readings.

        Raises:
            DeviceError: see :meth:`poll`.
        """
        raw: dict[str, float] = {}
        fields = {f"gpu_violation_{name}_s": (number, 1e-9) for name, (number, _) in POLICIES.items()}
        self._fields(raw, fields | {name: (number, 1.0) for name, number in FIELDS_PCIE.items()}, counters=True)
        for name, (_, policy) in POLICIES.items():
            if (column := f"gpu_violation_{name}_s") not in raw:
                self._many(raw, (column,), "nvmlDeviceGetViolationStatus", partial(self._violation, column, policy))
        limit: dict[str, float] = {}
        self._one(limit, "gpu_power_limit_w", "nvmlDeviceGetEnforcedPowerLimit", 1e-3, least=1)
        return Totals(
            violation_s={name: raw[c] for name in POLICIES if (c := f"gpu_violation_{name}_s") in raw},
            pcie_bytes={name: int(raw[name]) for name in FIELDS_PCIE if name in raw},
            power_limit_w=limit.get("gpu_power_limit_w"),
            processes=self._processes(),
        )

    def pcie_rates(self) -> dict[str, float]:
        """Bytes per second over PCIe, counted by the driver for 20 ms each: seldom to be asked.

        NVML writes "KB/s"; a KB is taken as 1000 bytes.

        Raises:
            DeviceError: see :meth:`poll`.
        """
        seen: dict[str, float] = {}
        for counter, column in enumerate(FIELDS_PCIE):
            self._one(seen, column, "nvmlDeviceGetPcieThroughput", 1e3, counter)
        return seen

    @property
    def has_pcie_rates(self) -> bool:
        """Whether :meth:`pcie_rates` may still give anything."""
        return any(f"nvmlDeviceGetPcieThroughput {column}" not in self._given_up for column in FIELDS_PCIE)

    def _rates(self) -> dict[str, float]:
        rates = self._call("nvmlDeviceGetUtilizationRates")
        return {"gpu_utilization": rates.gpu / 100, "gpu_memory_utilization": rates.memory / 100}

    def _throttle(self) -> dict[str, float]:
        mask = int(self._call("nvmlDeviceGetCurrentClocksEventReasons"))
        return {f"gpu_throttle_{cause}": float(there) for cause, there in throttle_causes(mask).items()}

    def _violation(self, column: str, policy: int) -> dict[str, float]:
        return {column: self._call("nvmlDeviceGetViolationStatus", policy).violationTime * 1e-9}

    def _processes(self) -> frozenset[int] | None:
        found: dict[str, frozenset[int]] = {}
        name, column = "nvmlDeviceGetComputeRunningProcesses", "gpu_foreign_processes"
        self._many(found, (column,), name, lambda: {column: frozenset(int(each.pid) for each in self._call(name))})
        return found.get(column)

    def _fields(
        self, seen: dict[str, float], wanted: Mapping[str, tuple[int, float]], *, counters: bool = False
    ) -> None:
        """Several field values in one call of the driver; each has its own status.

        Args:
            seen: filled by column.
            wanted: field number and factor to SI units, by column.
            counters: they only rise, so those of 32 bits are refused: under load they would wrap within a span.
        """
        ask = {c: f for c, f in wanted.items() if f"field {f[0]}" not in self._given_up}
        if not ask:
            return
        got: dict[str, Any] = {}

        def call() -> dict[str, Any]:
            values = self._call("nvmlDeviceGetFieldValues", [number for number, _ in ask.values()])
            return dict(zip(ask, values, strict=True))

        self._many(got, tuple(ask), "nvmlDeviceGetFieldValues", call)
        for column, value in got.items():
            number, factor = ask[column]
            if value.nvmlReturn != 0:
                self._failed((column,), f"field {number}", self._nvml.NVMLError(value.nvmlReturn))
                continue
            name = _VALUE_TYPES[value.valueType] if 0 <= value.valueType < len(_VALUE_TYPES) else ""
            if not name or (counters and name not in _64_BITS):
                self._given_up.add(f"field {number}")
                self.missing[column] = f"NVML, field {number}: a counter of type {value.valueType} cannot be relied on"
                continue
            number_read = getattr(value.value, name)
            if not counters and not 0 < number_read < _NO_VALUE:  # a silent sensor answers zero, not an error
                self.missing.setdefault(column, f"NVML, field {number}: no value")
                continue
            seen[column] = number_read * factor
            self.missing.pop(column, None)

    def _one(
        self, seen: dict[str, float], column: str, name: str, factor: float, *arguments: int, least: int = 0
    ) -> None:
        def call() -> dict[str, float]:
            value = self._call(name, *arguments)
            return {column: value * factor} if least <= value < _NO_VALUE else {}

        self._many(seen, (column,), name, call)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the binding, by an older name where the driver or the binding does not know this one."""
        # A binding and a driver of different age: pynvml turns an unknown function into an error of its own.
        mismatch = getattr(self._nvml, "NVMLLibraryMismatchError", self._nvml.NVMLError)
        known = self._known_as.get(name)
        for candidate in (known,) if known else (name, *_ALSO.get(name, ())):
            function = getattr(self._nvml, candidate, None)
            if function is None:
                continue
            try:
                result = function(self._handle, *arguments)
            except mismatch as error:
                if isinstance(error, self._nvml.NVMLError) and code_of(error) != _FUNCTION_NOT_FOUND:
                    raise
            except self._nvml.NVMLError as error:
                if code_of(error) != _FUNCTION_NOT_FOUND:
                    raise
            else:
                self._known_as[name] = candidate
                return result
        raise self._nvml.NVMLError(_FUNCTION_NOT_FOUND)

    def _many(
        self, seen: dict[str, Any], columns: tuple[str, ...], name: str, ask: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Ask once; failures become reasons, those that will not change are remembered."""
        if f"{name} {columns[0]}" in self._given_up:
            return
        try:
            found = ask()
        except self._nvml.NVMLError as error:
            self._failed(columns, name, error)
            return
        seen.update(found)
        for column in columns:
            if column in found:
                self.missing.pop(column, None)
            else:
                self.missing.setdefault(column, f"NVML, {name}: no value")

    def _failed(self, columns: tuple[str, ...], name: str, error: Exception) -> None:
        typed = nvml_error(code_of(error), f"NVML, {name}")
        if isinstance(typed, SensorUnsupportedError | SensorForbiddenError):
            self._given_up.add(name if name.startswith("field ") else f"{name} {columns[0]}")
        elif not isinstance(typed, SensorBusyError):  # the GPU or the driver is gone
            raise DeviceError("the GPU can be watched no longer", why=f"{name}: {typed.why}", todo=typed.todo)
        for column in columns:
            self.missing[column] = f"NVML, {name}: {typed.why}"


def foreign_processes(listed: Iterable[int], own: Iterable[int], root: str = "/") -> tuple[int, bool]:
    """How many of the processes on a GPU are not ours.

    In a container the driver may name processes by the host's numbers, which say nothing here. Where none of ours is
    listed and this is not the system's first process namespace, one of them is taken to be us.

    Args:
        listed: process ids that the driver names.
        own: process ids of ours.
        root: of the file tree that holds ``proc``, for tests.

    Returns:
        Their number, and whether it was counted by name (else it is the least that it can be).
    """
    there, ours = frozenset(listed), frozenset(own)
    if there & ours or _first_namespace(root):
        return len(there - ours), True
    return max(0, len(there) - 1), False


def _first_namespace(root: str) -> bool:
    try:
        # The kernel's fixed number of the first one (include/linux/proc_ns.h, PROC_PID_INIT_INO).
        return os.readlink(os.path.join(root, "proc/self/ns/pid")) == "pid:[4026531836]"
    except OSError:
        return False
