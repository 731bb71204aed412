"""What is known beforehand of NVIDIA's power sensors, by architecture.

From public measurements (Yang, Adamek, Armour: "Part-time Power Measurements: nvidia-smi's Lack of Attention", 2023,
and its tables) and NVIDIA's description of ``nvmlDeviceGetPowerUsage``: "Ampere (except GA100) or newer" boards give an
average over one second there. They are priors: ``wattline calibrate`` finds the figures of the board at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.collectors.energy.sources import SensorProfile

PASCAL, VOLTA, TURING, AMPERE, ADA, HOPPER, BLACKWELL = 4, 5, 6, 7, 8, 9, 10
"""Numbers of nvmlDeviceArchitecture_t."""

GA100 = ("A100", "A800", "A30", "CMP 170HX")
"""Names of boards with the GA100 chip, whose plain power reading is not averaged."""

MODULES = ("GH200", "GB200", "GB300")
"""Boards where CPU and GPU share a module, and its sensor."""

GAIN_ERROR = 0.05
MILLIWATT = 1e-3
MILLIJOULE = 1e-3


@dataclass(frozen=True)
class PowerPrior:
    """Period and window of the instant reading, in seconds, and where they come from."""

    period_s: float
    window_s: float
    note: str


_MEASURED = "prior: public measurements of this architecture"
_GUESSED = "prior: no public measurement of this architecture; taken from Hopper"

_INSTANT: dict[int, PowerPrior] = {
    PASCAL: PowerPrior(0.020, 0.010, _MEASURED),
    VOLTA: PowerPrior(0.020, 0.010, _MEASURED),
    TURING: PowerPrior(0.100, 0.100, _MEASURED),
    AMPERE: PowerPrior(0.100, 0.100, _MEASURED + " (RTX 3090)"),
    ADA: PowerPrior(0.100, 0.100, "prior: taken from Ampere's small chips"),
    HOPPER: PowerPrior(0.100, 0.025, _MEASURED + ": three quarters of the time unseen"),
}
_GA100_PRIOR = PowerPrior(0.100, 0.025, _MEASURED + " (A100): three quarters of the time unseen")
_GH200_PRIOR = PowerPrior(0.100, 0.020, _MEASURED + " (GH200): covers the module")


def is_module(name: str) -> bool:
    """Whether a board's plain readings cover a module of CPU and GPU."""
    return any(word in name for word in MODULES)


def usage_is_averaged(architecture: int, name: str) -> bool:
    """Whether ``nvmlDeviceGetPowerUsage`` is a moving average of a second on this board."""
    return architecture >= AMPERE and not is_ga100(architecture, name)


def is_ga100(architecture: int, name: str) -> bool:
    """Whether the board carries a GA100 chip."""
    words = name.upper().replace("-", " ").split()
    return architecture == AMPERE and any(
        all(part in words for part in board.split()) for board in GA100
    )


def instant_profile(architecture: int, name: str) -> SensorProfile:
    """How the instant power reading of a board behaves."""
    prior = _INSTANT.get(architecture, PowerPrior(0.100, 0.025, _GUESSED))
    if is_ga100(architecture, name):
        prior = _GA100_PRIOR
    elif "GH200" in name:
        prior = _GH200_PRIOR
    return SensorProfile(
        prior.period_s, prior.window_s, resolution=MILLIWATT, gain_error=GAIN_ERROR, note=prior.note
    )


def average_profile(architecture: int, name: str) -> SensorProfile:
    """How the averaged power reading of a board behaves."""
    period_s = instant_profile(architecture, name).period_s
    note = "prior: averages over a second, by NVIDIA's documentation"
    return SensorProfile(period_s, 1.0, rise_s=0.0, resolution=MILLIWATT, gain_error=GAIN_ERROR, note=note)


def counter_profile(architecture: int) -> SensorProfile:
    """How the total energy counter of a board behaves."""
    period_s = 0.020 if architecture == VOLTA else 0.100
    note = "prior: counters change every 20 to 100 ms"
    # A counter adds up what the power sensor saw, so it lags by one of that sensor's periods at most.
    return SensorProfile(period_s, resolution=MILLIJOULE, gain_error=GAIN_ERROR, note=note)
