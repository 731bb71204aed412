"""Joules per call of any callable: one uninterrupted load around a sensor's window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wattline.collectors.energy.common import EnergySensor
from wattline.collectors.energy.load import energy_of_load
from wattline.collectors.timers import Timer
from wattline.errors import SensorError, WattlineError
from wattline.reasons import Reason
from wattline.record import Energy


@dataclass(frozen=True)
class CallEnergy:
    """What one call cost.

    Attributes:
        energy: power and joules per call; ``None`` where there is a reason instead.
        reason: why there are no joules.
        remedy: what would help.
        calls: made within the window.
        time_s: seconds per call within the window: energy and time are of the same calls at the same clocks.
        window_s: length of the window.
    """

    energy: Energy | None = None
    reason: Reason | None = None
    remedy: str = ""
    calls: int = 0
    time_s: float = math.nan
    window_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Flat, of plain types: ``energy_j`` and what belongs to it, or ``energy_missing``."""
        if self.energy is None:
            missing = self.reason.message if self.reason else "no sensor answered"
            data: dict[str, Any] = {"energy_missing": missing}
            return data | ({"energy_remedy": self.remedy} if self.remedy else {})
        energy = self.energy
        data = {
            "energy_j": energy.energy_j,
            "energy_lo_j": energy.energy_lo_j,
            "energy_hi_j": energy.energy_hi_j,
            "power_w": energy.power_w,
            "energy_time_s": self.time_s,
            "energy_calls": self.calls,
            "energy_window_s": self.window_s,
            "energy_source": energy.source,
            "energy_scope": energy.scope,
            "energy_budget": dict(energy.budget),
            "energy_flags": list(energy.flags),
        }
        return data | ({"idle_w": energy.idle_w} if energy.idle_w is not None else {})


def energy_per_call(
    call: Callable[[], Any], sensor: EnergySensor, timer: Timer, *, call_s: float, window_s: float | None = None
) -> CallEnergy:
    """Run a callable back to back for as long as a sensor needs, and say what one call of it cost.

    The load goes on before and after the window, so that no idle time is averaged in. A sensor that is missing,
    refuses the window or fails meanwhile gives its reason, never joules of nothing; then the callable is not run
    for longer than it took to find out.

    Args:
        call: the load. What it raises is passed on.
        sensor: of the device that it runs on.
        timer: of that device.
        call_s: seconds that a call takes, roughly: for the length of a batch.
        window_s: length of the measured part; the sensor's own rule where not given.
    """
    if sensor.reason is not None:
        return CallEnergy(reason=sensor.reason, remedy=sensor.remedy)
    count = max(1, min(timer.max_batch_calls, math.ceil(timer.min_batch_s / max(call_s, 1e-9))))
    batch = [call] * count

    def take(wanted: int) -> Sequence[Callable[[], Any]]:
        return batch if wanted == count else [call] * wanted

    try:
        window = sensor.window(window_s)
    except SensorError as error:
        return _refused(error)
    if window.total_s <= 0:
        return CallEnergy(reason=Reason("no_window", window.note or "the sensor asks for no load"))
    found = energy_of_load(sensor, timer, take, count, window)
    if found.refusal is not None:
        return _refused(found.refusal)
    if found.energy is None:
        return CallEnergy(reason=Reason("no_energy", f"{sensor.source} gave no joules"))
    return CallEnergy(found.energy, None, "", found.calls, found.device_time_s / found.calls, found.device_time_s)


def _refused(error: WattlineError) -> CallEnergy:
    reason = Reason("energy_refused", "; ".join(part for part in (error.what, error.why) if part))
    return CallEnergy(reason=reason, remedy=error.todo)
