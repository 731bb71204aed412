"""A simulated device to calibrate: a clock, the true power, and a load that sets it."""

from __future__ import annotations

from typing import Any

from wattline_sim.sources import Load, SimulatedCounter, SimulatedPower, VirtualClock, Waveform, simulate

IDLE_W, ACTIVE_W = 80.0, 500.0


class Bench:
    """Its sources claim priors that are wrong by some tens of percent."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.truth = Waveform(IDLE_W)
        self.load = Load(self.clock, self.truth, IDLE_W, ACTIVE_W)

    def source(self, row: str, seed: int = 1, **options: Any) -> SimulatedPower | SimulatedCounter:
        """A row of the sensor table."""
        return simulate(row, self.clock, self.truth, seed=seed, known=False, **options)
