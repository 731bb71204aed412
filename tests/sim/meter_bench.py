"""The public meter in virtual time: sensors whose truth is known, and a load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wattline_sim.sources import VirtualClock, Waveform, simulate

from wattline import EnergyMeter
from wattline.collectors.energy.common import EnergySensor, NoEnergySensor
from wattline.collectors.energy.polling import Poller
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.collectors.energy.sources import Source
from wattline.collectors.energy.spans import SpanPoller, SpanTracker


class Bench:
    """Sensors, a meter and a load in virtual time."""

    def __init__(self, idle_w: float = 80.0) -> None:
        self.clock = VirtualClock()
        self.truth = Waveform(idle_w)
        self.polls: list[SpanPoller] = []
        self.sensors: dict[str, EnergySensor] = {}

    def sensor(self, *rows: str, device: str = "gpu", truth: Waveform | None = None, **options: Any) -> list[Any]:
        sources = [
            simulate(row, self.clock, truth or self.truth, seed=number, **options) for number, row in enumerate(rows)
        ]
        self.sensors[device] = MeteredSensor("simulated", sources, clock=self.clock)
        return sources

    def meter(self, **options: Any) -> EnergyMeter:
        clock, polls = self.clock, self.polls

        class VirtualPoller(SpanPoller):
            """Without a thread: steps when the virtual clock passes."""

            def start(self) -> None:
                Poller.start(self)
                polls.append(self)
                self.ticker = clock.every(0.002, self.step)

            def stop(self) -> Any:
                self.ticker.cancel()
                return Poller.stop(self)

        def make(sources: Sequence[Source]) -> SpanPoller:
            return VirtualPoller(sources, clock=clock)

        def tracker(name: str, sensor: MeteredSensor | NoEnergySensor) -> SpanTracker:
            return SpanTracker(name, sensor, poller=make, clock=clock, sleep=clock.sleep)

        given = {"synchronize": None} | options
        return EnergyMeter(sensors=self.sensors, tracker=tracker, clock=clock, **given)
