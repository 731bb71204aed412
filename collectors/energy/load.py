"""One uninterrupted load under a sensor: what the measuring loop and the meter of single callables have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from wattline.collectors.energy.common import EnergySensor, EnergyWindow
from wattline.collectors.timers import Call, Timer
from wattline.errors import DeviceError, SensorError
from wattline.record import Energy

Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class LoadEnergy:
    """What a load gave.

    Attributes:
        energy: per call; ``None`` where the sensor gave none.
        refusal: why the sensor could not say, or ``None``.
        calls, device_time_s: of the measured part; 0 where it did not run.
    """

    energy: Energy | None = None
    refusal: SensorError | DeviceError | None = None
    calls: int = 0
    device_time_s: float = 0.0


def energy_of_load(
    sensor: EnergySensor,
    timer: Timer,
    take: Callable[[int], Sequence[Call]],
    count: int,
    window: EnergyWindow,
    *,
    calls_each: int = 1,
    phase: Phase = lambda _: nullcontext(),
) -> LoadEnergy:
    """Lead-in, measured part and lead-out of the same calls, back to back.

    A sensor that fails costs the joules only; what the calls raise is passed on.

    Args:
        sensor: of the device that runs the load.
        timer: of that device.
        take: gives the next calls, so many of them.
        count: calls of one batch.
        window: how long, from the sensor.
        calls_each: kernels that each call stands for, as in a captured graph.
        phase: told the begin and end of ``"lead-in"`` and ``"energy"``.
    """
    if window.lead_in_s > 0:
        with phase("lead-in"):
            timer.sustain(take, count, window.lead_in_s)
    try:
        sensor.start()
    except (SensorError, DeviceError) as error:
        return LoadEnergy(refusal=error)
    try:
        with phase("energy"):
            calls, device_time_s = timer.sustain(take, count, window.measured_s)
    except BaseException:
        sensor.cancel()
        raise
    calls *= calls_each
    try:
        energy = sensor.stop(calls, device_time_s)
    except (SensorError, DeviceError) as error:
        return LoadEnergy(None, error, calls, device_time_s)
    if window.lead_out_s > 0:
        timer.sustain(take, count, window.lead_out_s)
    return LoadEnergy(energy, None, calls, device_time_s)
