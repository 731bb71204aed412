"""Wattline: what kernels cost in seconds and in joules, measured, learned and predicted.

The names here are the vocabulary that every part shares. They load neither torch nor pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Case",
    "DeviceSpec",
    "EnergyMeter",
    "Record",
    "Run",
    "WattlineError",
    "Work",
    "__version__",
    "bound",
    "work_of",
]

_HOME = {
    "Case": "wattline.case",
    "DeviceSpec": "wattline.device",
    "EnergyMeter": "wattline.collectors.energy.meter",
    "Record": "wattline.record",
    "Run": "wattline.run",
    "WattlineError": "wattline.errors",
    "Work": "wattline.work",
    "bound": "wattline.work",
    "work_of": "wattline.workmodels",
}

if TYPE_CHECKING:
    from wattline.case import Case
    from wattline.device import DeviceSpec
    from wattline.errors import WattlineError
    from wattline.record import Record
    from wattline.run import Run
    from wattline.work import Work, bound
    from wattline.workmodels import work_of


def __getattr__(name: str) -> Any:
    # Loaded on first use: `wattline --help` pays for none of them.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
