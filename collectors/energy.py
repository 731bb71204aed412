"""Energy sensors: the interface that the measurement loop drives, and the null object where there is none.

A sensor needs one uninterrupted load. The loop asks it how long, keeps the same kernel running back to back, and
starts and stops the sensor inside::

    window = sensor.window(requested_s)
    run_for(window.lead_in_s)                       # the sensor's average no longer holds any idle time
    sensor.start()
    calls, device_time_s = run_for(window.measured_s)
    energy = sensor.stop(calls, device_time_s)      # still under load
    run_for(window.lead_out_s)                      # no idle edge within the sensor's lag

Joules per call are the watts between the sensor's own edges times the device time per call, so the readings need
not coincide with the calls. :class:`NoEnergySensor` asks for a window of no length and returns ``None``: callers
never branch. No sensor means no joules; nothing is ever estimated in its place.

Readers for NVML and RAPL are not part of this version: :func:`find_energy_sensor` says what the machine offers.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from wattline.collectors import nvml as _nvml
from wattline.errors import ParamError, SensorError
from wattline.record import Energy, Reason

POWERCAP = "sys/class/powercap"
RAPL_ENERGY = f"{POWERCAP}/intel-rapl:0/energy_uj"
"""The package counter, on Intel and AMD alike (Linux, Documentation/power/powercap/powercap.rst)."""


@dataclass(frozen=True)
class EnergyWindow:
    """The uninterrupted load that a sensor needs, in seconds.

    Attributes:
        lead_in_s: before the sensor is started.
        measured_s: between start and stop.
        lead_out_s: after the stop.
        note: a reservation for the reader, e.g. that the request is too short for full confidence; or empty.
    """

    lead_in_s: float = 0.0
    measured_s: float = 0.0
    lead_out_s: float = 0.0
    note: str = ""

    @property
    def total_s(self) -> float:
        """Seconds of load altogether."""
        return self.lead_in_s + self.measured_s + self.lead_out_s


class EnergySensor(ABC):
    """A source of joules.

    Subclasses fill the attributes and implement :meth:`window`, :meth:`_begin` and :meth:`_end`.

    Attributes:
        name: short, e.g. ``"nvml"`` or ``"rapl"``.
        scope: what it covers: ``"gpu"``, ``"module"``, ``"package"``, ``"dram"`` ...
        source: which reading, e.g. ``"NVML total energy counter"``; goes into the record.
        reason: why it cannot be read, or ``None`` where it can.
        remedy: what would enable it; empty where it is available.
    """

    name: str
    scope: str
    source: str
    reason: Reason | None = None
    remedy: str = ""
    _running: bool = False

    @property
    def available(self) -> bool:
        """Whether it gives joules."""
        return self.reason is None

    @abstractmethod
    def window(self, requested_s: float | None = None) -> EnergyWindow:
        """The load it needs.

        Args:
            requested_s: the measured part that the user asks for; the sensor's own choice where not given.

        Raises:
            SensorError: so short that it could say nothing.
        """

    def start(self) -> None:
        """Begin to count; the load is running already.

        Raises:
            SensorError: it counts already, or the sensor failed.
        """
        if self._running:
            raise SensorError(f"the energy sensor {self.name} was started twice", todo="stop it before the next start")
        self._begin()
        self._running = True

    def stop(self, calls: int, device_time_s: float) -> Energy | None:
        """End counting; the load is still running.

        Args:
            calls: calls that ran since the start.
            device_time_s: seconds that the device was busy with them.

        Returns:
            Power and joules per call; ``None`` from a sensor that is not available.

        Raises:
            SensorError: it was not started, or failed meanwhile.
            ParamError: no calls, or no time.
        """
        if not self._running:
            raise SensorError(f"the energy sensor {self.name} was stopped before it was started")
        self._running = False
        if self.available and not (calls >= 1 and 0 < device_time_s < float("inf")):
            raise ParamError(f"no energy per call of {calls} calls in {device_time_s} s")
        return self._end(calls, device_time_s)

    def cancel(self) -> None:
        """Forget a start whose load failed; without one it does nothing."""
        self._running = False

    def close(self) -> None:  # noqa: B027 - most sensors hold nothing
        """Give back what the sensor holds; it may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _begin(self) -> None:
        """Take the first reading."""

    @abstractmethod
    def _end(self, calls: int, device_time_s: float) -> Energy | None:
        """Take the last reading and say what lies between."""


class NoEnergySensor(EnergySensor):
    """Stands in where nothing can be measured: asks for no load, returns ``None``, and says why.

    Args:
        reason: why there is no sensor.
        name: the sensor that is missing.
        scope: what it would cover.
        source: what it would read.
        remedy: what would enable it.
    """

    def __init__(
        self, reason: Reason, *, name: str = "none", scope: str = "", source: str = "", remedy: str = ""
    ) -> None:
        self.reason = reason
        self.name = name
        self.scope = scope
        self.source = source
        self.remedy = remedy

    def window(self, requested_s: float | None = None) -> EnergyWindow:
        """See :meth:`EnergySensor.window`: no length, whatever was asked."""
        return EnergyWindow(note=self.reason.message if self.reason else "")

    def _begin(self) -> None:
        """Nothing to read."""

    def _end(self, calls: int, device_time_s: float) -> None:
        """No joules."""


def find_energy_sensor(
    device_kind: str, root: str = "/", *, nvml: Callable[[], _nvml.NvmlState] = _nvml.probe_nvml
) -> EnergySensor:
    """The energy sensor of a device kind, or the null object with the true reason why there is none.

    Args:
        device_kind: ``"cpu"``, or an accelerator's: ``"gpu"``, ``"cuda"`` (CUDA and ROCm alike), ``"xpu"`` ...
        root: of the file tree that holds ``sys`` and ``dev``.
        nvml: asks NVIDIA's library; for tests.
    """
    if device_kind == "cpu":
        return _rapl(root)
    if device_kind in ("gpu", "cuda"):
        state = nvml()
        # /dev/kfd is the compute interface of AMD's kernel driver.
        if not state.ready and os.path.exists(os.path.join(root, "dev/kfd")):
            return _unread("amd_smi", "gpu", "AMD SMI energy counter", "an AMD GPU is present")
        return _from_nvml(state)
    message = f"no energy sensor is known for {device_kind} devices"
    return NoEnergySensor(
        Reason("no_sensor_known", message), name=device_kind, remedy="none in this version; times are measured as ever"
    )


def _unread(name: str, scope: str, source: str, found: str) -> NoEnergySensor:
    """A sensor that the machine has and this version does not read."""
    return NoEnergySensor(
        Reason(f"{name}_not_built", f"{found}, but reading its energy is not built yet in this version"),
        name=name,
        scope=scope,
        source=source,
        remedy="nothing on this machine: a later version of wattline reads it",
    )


def _from_nvml(state: _nvml.NvmlState) -> NoEnergySensor:
    source = "NVML total energy counter"
    if state.ready:
        return _unread("nvml", "gpu", source, f"NVML answers ({state.detail})")
    return NoEnergySensor(
        Reason(f"nvml_{state.code}", state.detail),
        name="nvml",
        scope="gpu",
        source=source,
        remedy=_nvml.REMEDIES[state.code],
    )


def _rapl(root: str) -> NoEnergySensor:
    """RAPL through powercap: absent, hidden, forbidden, or readable."""
    path = "/" + RAPL_ENERGY

    def missing(code: str, message: str, remedy: str) -> NoEnergySensor:
        return NoEnergySensor(
            Reason(code, message), name="rapl", scope="package", source=f"RAPL, {path}", remedy=remedy
        )

    zone, counter = os.path.join(root, os.path.dirname(RAPL_ENERGY)), os.path.join(root, RAPL_ENERGY)
    if not os.path.lexists(zone):
        return missing(
            "rapl_absent",
            f"{path} does not exist: this machine shows no RAPL counters",
            "on bare metal with an Intel or AMD (Zen and newer) processor: sudo modprobe intel_rapl_msr; "
            "a virtual machine sees it only where the hypervisor passes it on",
        )
    try:
        descriptor = os.open(counter, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, 64)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        # Container engines mask /sys/devices/virtual/powercap since 2023 (PLATYPUS, CVE-2020-8694): the links under
        # /sys/class stay behind and lead nowhere.
        return missing(
            "rapl_hidden",
            f"{path} leads nowhere: a container engine hides RAPL from this container",
            "run outside of the container, or start it with --security-opt systempaths=unconfined",
        )
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            return missing("rapl_failed", f"reading {path} failed: {error.strerror}", "see `dmesg | grep -i rapl`")
        return missing(
            "rapl_forbidden",
            f"{path} may not be read by this user ({_mode(counter)})",
            f"sudo chmod o+r {path} (until the next boot; a udev rule keeps it), or run as root",
        )
    if not text.strip().isdigit():
        return missing("rapl_failed", f"{path} holds no number", "see `dmesg | grep -i rapl`")
    return _unread("rapl", "package", f"RAPL, {path}", f"{path} is there and may be read")


def _mode(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"not even its mode: {error.strerror}"
    return f"mode {stat.S_IMODE(status.st_mode):04o}, owner uid {status.st_uid}"
