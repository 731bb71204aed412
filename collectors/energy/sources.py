"""Sources: one reading of one sensor each, and what is known of how it reads.

A *counter* gives joules that rise; a *power* source gives watts, averaged by the hardware over a window and renewed
every period. Times are seconds of :func:`time.perf_counter`, so that readings and kernels share one clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

COUNTER = "counter"
POWER = "power"


@dataclass(frozen=True)
class Reading:
    """One reading.

    Attributes:
        time_s: when it was taken (``perf_counter``), or when the driver says that it was.
        value: joules since an arbitrary origin (counter, wraps already undone), or watts (power).
        took_s: how long the read lasted.
    """

    time_s: float
    value: float
    took_s: float = 0.0


@dataclass(frozen=True)
class SensorProfile:
    """How a sensor reads: a prior from public measurements, or the result of a calibration.

    Attributes:
        period_s: time between two changes of the reading.
        window_s: span that a power reading averages over (0 for a counter).
        lag_s: delay of the reading behind the power.
        rise_s: time to reach 90 % of a step.
        resolution: smallest step of the reading, in its own unit (J or W).
        gain_error: relative systematic error that software cannot remove.
        calibrated: found on this machine (else a prior).
        note: what a reader should know, with the source of the prior.
        gain, offset_w: what an external meter says: true watts = gain * watts read + offset_w.
    """

    period_s: float
    window_s: float = 0.0
    lag_s: float = 0.0
    rise_s: float = 0.0
    resolution: float = 0.0
    gain_error: float = 0.05
    calibrated: bool = False
    note: str = ""
    gain: float = 1.0
    offset_w: float = 0.0


class Source(ABC):
    """One readable quantity of one sensor. Vendor modules implement it; the meter polls it.

    Attributes:
        kind: :data:`COUNTER` or :data:`POWER`.
        vendor: ``"nvml"``, ``"rapl"``, ``"amdsmi"``.
        field: which reading, e.g. ``"total energy counter"``.
        scope: what it covers: ``"gpu"``, ``"module"``, ``"package"``, ``"dram"``, ``"psys"``.
        profile: how it reads.
        averaged: a power source whose window is a second or more: good for steady load only.
        buffered: not to be polled: the driver keeps readings, and :meth:`history` fetches them.
        flags: codes of :data:`wattline.collectors.energy.flags.ENERGY_FLAGS` that hold for every reading of it.
    """

    kind: str
    vendor: str
    field: str
    scope: str
    profile: SensorProfile
    averaged: bool = False
    buffered: bool = False
    flags: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For records: ``"nvml: total energy counter (gpu)"``."""
        return f"{self.vendor}: {self.field} ({self.scope})"

    @abstractmethod
    def read(self) -> Reading:
        """Read it now.

        Raises:
            SensorError: (or :class:`~wattline.errors.DeviceError` for a lost device) it cannot be read.
        """

    def history(self, since_s: float) -> Sequence[Reading]:
        """Readings that the driver kept since then, with the driver's own times; empty where it keeps none."""
        return ()

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Give back what it holds."""
