"""Power and energy: sensors, the meter, calibration. Nothing here loads torch."""

from __future__ import annotations

from wattline.collectors.energy.common import EnergySensor, EnergyWindow, NoEnergySensor
from wattline.collectors.energy.find import POWERCAP, RAPL_ENERGY, find_energy_sensor
from wattline.collectors.energy.flags import BUDGET, ENERGY_FLAGS
from wattline.collectors.energy.sensor import Level, MeteredSensor

__all__ = [
    "BUDGET",
    "ENERGY_FLAGS",
    "POWERCAP",
    "RAPL_ENERGY",
    "EnergySensor",
    "EnergyWindow",
    "Level",
    "MeteredSensor",
    "NoEnergySensor",
    "find_energy_sensor",
]
