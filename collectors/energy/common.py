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

The sensors that read NVML, RAPL and AMD SMI are made by :func:`~wattline.collectors.energy.find_energy_sensor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from wattline.errors import ParamError, SensorError
from wattline.record import Energy, Reason


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
