"""NVIDIA: power and energy through NVML (``pynvml``).

Readings, in order of preference:

1. ``nvmlDeviceGetTotalEnergyConsumption``: millijoules since the driver was loaded, Volta and newer;
2. ``nvmlDeviceGetSamples`` (total power): a buffer that the driver fills, with its own times;
3. field 186 (instant power), or ``nvmlDeviceGetPowerUsage`` where that one is instant;
4. field 185, or ``nvmlDeviceGetPowerUsage`` where it is an average over a second (Ampere and newer, but for GA100).

All of them cover the whole GPU (on Grace modules, the module). An instance of a split GPU (MIG) has no power sensor of
its own: the GPU's is read, and the figure is flagged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from wattline.collectors.energy import nvml_priors
from wattline.collectors.energy.errors import SensorBusyError, SensorUnsupportedError, code_of, nvml_error
from wattline.collectors.energy.sources import COUNTER, POWER, Reading, SensorProfile, Source
from wattline.errors import DeviceError, SensorError

FIELD_POWER_AVERAGE, FIELD_POWER_INSTANT = 185, 186
SCOPE_GPU, SCOPE_MODULE = 0, 1
TOTAL_POWER_SAMPLES = 0
NOT_FOUND = 6

_VALUE_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}
"""Members of nvmlValue_t by nvmlValueType_t."""


class NvmlDevice:
    """One GPU, opened through NVML. Closing it shuts this user's share of the library down.

    Args:
        index: of the GPU as CUDA counts it; see :func:`~wattline.collectors.nvml_device.open_gpu`.
        uuid: of the GPU or MIG instance; then the index does not matter.
        binding: a module like `pynvml`; the installed one where not given.

    Attributes:
        handle: NVML's, of the whole GPU even where an instance was named.
        name, uuid, driver, firmware: as the driver gives them; firmware is the VBIOS version.
        architecture: number of nvmlDeviceArchitecture_t; 0 where the driver does not say.
        mig: whether the GPU is split.

    Raises:
        SensorError: NVML is missing or refuses.
        DeviceError: the GPU is lost.
    """

    def __init__(self, index: int = 0, uuid: str = "", *, binding: Any = None) -> None:
        # That module takes its errors from this package: imported at the top, each would wait for the other.
        from wattline.collectors.nvml_device import open_gpu, uuids_of

        self._gpu = open_gpu(index, uuid=uuid or None, binding=binding)
        self.nvml = self._gpu.binding
        self.handle = self._gpu.handle
        try:
            if not (uuid or uuids_of(index)):
                self._refuse_mixed(f"finding GPU {index} in NVML")
            self.name = _text(self.call("nvmlDeviceGetName", self.handle))
            self.uuid = _text(self.call("nvmlDeviceGetUUID", self.handle))
            self.driver = _text(self.call("nvmlSystemGetDriverVersion"))
            self.firmware = _text(self._optional("nvmlDeviceGetVbiosVersion", ""))
            self.architecture = int(self._optional("nvmlDeviceGetArchitecture", 0))
            mode = self._optional("nvmlDeviceGetMigMode", (0, 0))
            self.mig = bool(mode[0]) or self._gpu.is_mig
        except BaseException:  # whatever it was: the library is not left open
            self.close()
            raise

    @property
    def module(self) -> bool:
        """Whether the plain readings cover a module of CPU and GPU."""
        return nvml_priors.is_module(self.name)

    def call(self, function: str, *arguments: Any, doing: str = "") -> Any:
        """Call a function of the library.

        Raises:
            SensorError: (one of its kinds, or :class:`DeviceError`) by the table of errors.
        """
        entry = getattr(self.nvml, function, None)
        doing = doing or f"reading {function.removeprefix('nvml')}"
        if entry is None:
            raise SensorUnsupportedError(f"{doing} failed", why="this version of nvidia-ml-py lacks it")
        try:
            return entry(*arguments)
        except self.nvml.NVMLError as error:
            raise nvml_error(code_of(error), doing) from error

    def field(self, number: int, scope: int) -> float:
        """One field value, e.g. power in milliwatts.

        Raises:
            SensorError: as :meth:`call`.
        """
        doing = f"reading field {number}"
        (found,) = self.call("nvmlDeviceGetFieldValues", self.handle, [(number, scope)], doing=doing)
        if found.nvmlReturn != 0:
            raise nvml_error(int(found.nvmlReturn), doing)
        return _value(found.value, int(found.valueType), doing)

    def close(self) -> None:
        """Give the library back; it may be called twice."""
        self._gpu.close()

    def _optional(self, function: str, missing: Any) -> Any:
        """What an old part or driver may not have."""
        try:
            return self.call(function, self.handle)
        except SensorError:
            return missing

    def _refuse_mixed(self, doing: str) -> None:
        """CUDA counts the fastest GPU first, NVML by bus: with unequal GPUs the numbers may mean different ones."""
        count = int(self.call("nvmlDeviceGetCount"))
        if count < 2 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
            return
        handles = [self.call("nvmlDeviceGetHandleByIndex", number, doing=doing) for number in range(count)]
        if len({_text(self.call("nvmlDeviceGetName", handle)) for handle in handles}) > 1:
            raise SensorError(
                f"{doing} failed",
                why="CUDA and NVML may count these unequal GPUs in different order",
                todo="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID in CUDA_VISIBLE_DEVICES",
            )


class NvmlSource(Source):
    """A reading of one GPU. The GPU stays open until its last source is closed.

    Args:
        device: the GPU.
        kind: counter or power.
        field: for people and records.
        profile: how it reads.
        read: gives millijoules or milliwatts.
        scope: what it covers; the GPU (or module) where not given.
        averaged: whether it is a moving average of a second.
    """

    vendor = "nvml"

    def __init__(
        self,
        device: NvmlDevice,
        kind: str,
        field: str,
        profile: SensorProfile,
        read: Callable[[], float],
        *,
        scope: str = "",
        averaged: bool = False,
    ) -> None:
        self.device = device
        self.kind = kind
        self.field = field
        self.profile = profile
        self.scope = scope or ("module" if device.module else "gpu")
        self.averaged = averaged
        self.flags = (("mig",) if device.mig else ()) + (("module_scope",) if self.scope == "module" else ())
        self._read = read

    def read(self) -> Reading:
        """See :meth:`Source.read`. A reading belongs to the middle of the call that took it."""
        begin = time.perf_counter()
        milli = self._read()
        end = time.perf_counter()
        return Reading((begin + end) / 2, milli * 1e-3, end - begin)

    def close(self) -> None:
        """Close the GPU: the first closed source does it for all."""
        self.device.close()


class NvmlSampleBuffer(NvmlSource):
    """The driver's own samples of total power."""

    buffered = True

    def __init__(self, device: NvmlDevice, profile: SensorProfile) -> None:
        super().__init__(device, POWER, "power sample buffer", profile, self._latest)

    def history(self, since_s: float) -> Sequence[Reading]:
        """See :meth:`Source.history`; the driver's wall-clock times are put on our clock."""
        wall_s, ours_s = time.time(), time.perf_counter()
        since_us = max(0, int((wall_s - ours_s + since_s) * 1e6))
        doing = "reading the power sample buffer"
        try:
            kind, samples = self.device.call(
                "nvmlDeviceGetSamples", self.device.handle, TOTAL_POWER_SAMPLES, since_us, doing=doing
            )
        except SensorUnsupportedError as error:
            cause = error.__cause__
            if isinstance(cause, Exception) and code_of(cause) == NOT_FOUND:  # "no sample since then"
                return ()
            raise
        readings = []
        for sample in samples:
            time_s = sample.timeStamp * 1e-6 - wall_s + ours_s
            if sample.timeStamp and since_s <= time_s <= ours_s + 1.0:  # unfilled slots hold zeros
                readings.append(Reading(time_s, _value(sample.sampleValue, kind, doing) * 1e-3))
        return sorted(readings, key=lambda reading: reading.time_s)

    def _latest(self) -> float:
        readings = self.history(time.perf_counter() - 10.0)
        if not readings:
            raise SensorBusyError("reading the power sample buffer failed", why="it is empty")
        return readings[-1].value * 1e3


def nvml_sources(device: NvmlDevice) -> tuple[list[Source], dict[str, str]]:
    """The readings that a GPU has, in order of preference, each tried once.

    Returns:
        The sources; and of the readings that it lacks, the reason by field.

    Raises:
        DeviceError: the GPU is lost.
    """
    architecture, name, handle = device.architecture, device.name, device.handle
    instant = nvml_priors.instant_profile(architecture, name)
    average = nvml_priors.average_profile(architecture, name)
    averaged = nvml_priors.usage_is_averaged(architecture, name)

    def energy() -> float:
        return float(device.call("nvmlDeviceGetTotalEnergyConsumption", handle, doing="reading the energy counter"))

    def usage() -> float:
        return float(device.call("nvmlDeviceGetPowerUsage", handle, doing="reading the power"))

    def field(number: int, scope: int) -> Callable[[], float]:
        return lambda: device.field(number, scope)

    candidates: list[NvmlSource] = [
        NvmlSource(device, COUNTER, "total energy counter", nvml_priors.counter_profile(architecture), energy),
        NvmlSampleBuffer(device, instant),
        NvmlSource(device, POWER, "instant power (186)", instant, field(FIELD_POWER_INSTANT, SCOPE_GPU), scope="gpu"),
    ]
    if device.module:
        module = field(FIELD_POWER_INSTANT, SCOPE_MODULE)
        candidates.append(NvmlSource(device, POWER, "instant module power (186)", instant, module, scope="module"))
    if not averaged:
        candidates.append(NvmlSource(device, POWER, "power usage", instant, usage))
    one_second = field(FIELD_POWER_AVERAGE, SCOPE_GPU)
    candidates.append(NvmlSource(device, POWER, "average power (185)", average, one_second, scope="gpu", averaged=True))
    if averaged:
        candidates.append(NvmlSource(device, POWER, "average power usage", average, usage, averaged=True))
    return _answering(candidates)


def _answering(candidates: Sequence[NvmlSource]) -> tuple[list[Source], dict[str, str]]:
    found: list[Source] = []
    missing: dict[str, str] = {}
    for source in candidates:
        try:
            reading = source.read()
            # An energy counter of nothing and a power of 0 W come from parts that pretend to have the sensor.
            if not reading.value > 0:
                raise SensorUnsupportedError(f"{source.field} reads {reading.value:g}", why="it says nothing")
        except SensorError as error:
            missing[source.field] = error.why or error.what
            continue
        except DeviceError:
            source.close()
            raise
        found.append(source)
    return found, missing


def metered(sources: Sequence[Source]) -> list[Source]:
    """Those worth polling: no second reading of the same thing, averages only where no other power answers.

    An averaged reading would lengthen every lead-in by a second, and each polled source takes the driver's lock.
    """
    kept: list[Source] = []
    for source in sources:
        same = [s for s in kept if (s.kind, s.scope) == (source.kind, source.scope)]
        if not same or (not source.averaged and all(s.buffered for s in same)):
            kept.append(source)
    return kept


def _value(value: Any, kind: int, doing: str) -> float:
    member = _VALUE_MEMBERS.get(kind)
    if member is None:
        raise SensorUnsupportedError(f"{doing} failed", why=f"a value of unknown type {kind}")
    return float(getattr(value, member))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
