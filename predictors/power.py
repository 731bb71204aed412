"""Power between idle and the cap: learned on the log-odds of where it lies between the two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

HEADROOM = 1.03
"""Boards read up to some 3 % above their limit over short windows."""
_EDGE = 0.004
_USUAL_IDLE = 0.12
"""Idle power as a share of the cap where nothing is known: data-centre boards rest at 10 to 15 %."""


class Limits:
    """Idle power and cap by device.

    Attributes:
        known: (idle, cap) in watts of the devices whose power was measured.
    """

    def __init__(self, known: Mapping[str, tuple[float, float]]) -> None:
        self.known = dict(known)

    @classmethod
    def fit(cls, devices: NDArray[Any], power: Array, specs: Mapping[str, DeviceSpec]) -> Limits:
        """From measured power: the cap is the power limit (or, unknown, above the highest reading)."""
        known = {}
        for name in np.unique(devices):
            seen, spec = power[devices == name], specs[str(name)]
            cap = max(HEADROOM * spec.tdp_w, 1e-9) if spec.tdp_w else 1.1 * float(seen.max())
            idle = min(spec.idle_w or 0.95 * float(seen.min()), 0.98 * float(seen.min()), 0.9 * cap)
            known[str(name)] = (idle, cap)
        return cls(known)

    def of(self, spec: DeviceSpec) -> tuple[float, float]:
        """Idle and cap of a device, NaN where neither its limit nor any reading is known."""
        if spec.id in self.known:
            return self.known[spec.id]
        if not spec.tdp_w:
            return float("nan"), float("nan")
        cap = HEADROOM * spec.tdp_w
        shares = [idle / top for idle, top in self.known.values()]
        return spec.idle_w or cap * (float(np.median(shares)) if shares else _USUAL_IDLE), cap


def log_odds(power: Any, idle: Any, cap: Any) -> Any:
    """Where power lies between idle and cap, as log-odds; at the ends held off by 0.4 %."""
    share = np.clip((power - idle) / (cap - idle), _EDGE, 1 - _EDGE)
    return np.log(share / (1 - share))


def watts(odds: Any, idle: Any, cap: Any) -> Any:
    """The inverse of :func:`log_odds`."""
    return idle + (cap - idle) / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0)))


def watts_one(odds: float, idle: float, cap: float) -> float:
    """:func:`watts` of one row."""
    return idle + (cap - idle) / (1.0 + math.exp(-min(max(odds, -30.0), 30.0)))


def utilisation(compute: Any, memory: Any, base: Any, time: Any) -> Array:
    """How busy each part of the device is, given the time that a kernel takes.

    Returns:
        ``(n, 6)``: shares of compute and memory, their logarithms, log time and log(time / base).
    """
    c = np.minimum(compute / time, 1.5)
    m = np.minimum(memory / time, 3.0)
    logs = [np.log2(np.maximum(c, 1e-5)), np.log2(np.maximum(m, 1e-5)), np.log2(time), np.log2(time / base)]
    return np.stack(np.broadcast_arrays(c, m, *logs), axis=-1).reshape(-1, 6)


def utilisation_one(compute: float, memory: float, base: float, time: float) -> list[float]:
    """:func:`utilisation` of one row."""
    one, two = min(compute / time, 1.5), min(memory / time, 3.0)
    log = math.log2
    return [one, two, log(max(one, 1e-5)), log(max(two, 1e-5)), log(time), log(time / base)]
