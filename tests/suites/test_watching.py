"""The cost of watching, as a run measures it."""

from __future__ import annotations

import pytest

from wattline.collectors.device import CpuDevice
from wattline.collectors.energy import NoEnergySensor
from wattline.collectors.telemetry import HostTelemetry
from wattline.errors import SensorError
from wattline.record import Reason
from wattline.suites.settings import MeasureSettings, watching_block_s, watching_s
from wattline.suites.watching import watching_cost

pytest.importorskip("torch")
SETTINGS = MeasureSettings(time_limit_s=0.1, min_time_s=0.1)
NONE = NoEnergySensor(Reason("none", "there is none"), name="none")


class Counting(NoEnergySensor):
    """Notes how often it was started and let go."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(Reason("none", "there is none"), name="counting")
        self.started = self.cancelled = 0
        self._fails = fails

    def _begin(self) -> None:
        if self._fails:
            raise SensorError("the sensor fell silent")
        self.started += 1

    def cancel(self) -> None:
        super().cancel()
        self.cancelled += 1


def test_every_second_block_is_watched() -> None:
    sensor = Counting()
    found = watching_cost(CpuDevice(), HostTelemetry(), sensor, SETTINGS, pairs=3)
    assert (sensor.started, sensor.cancelled) == (3, 3)
    assert found["pairs"] == 3
    assert 0 < found["ratio_lo"] <= found["ratio"] <= found["ratio_hi"]
    assert found["kernel"].startswith("fp32 product")
    assert found["sampled"] == "HostTelemetry, no energy sensor"


def test_a_sensor_that_fails_is_said_and_costs_nothing_else() -> None:
    found = watching_cost(CpuDevice(), HostTelemetry(), Counting(fails=True), SETTINGS, pairs=3)
    assert found["reason"]["code"] == "sampler_failed"
    assert "fell silent" in found["reason"]["message"]


def test_it_takes_a_few_seconds_whatever_the_preset() -> None:
    assert watching_block_s(SETTINGS) == 0.1
    assert watching_block_s(MeasureSettings(time_limit_s=1.0)) == pytest.approx(0.2)
    assert watching_s(MeasureSettings(time_limit_s=1000.0)) == 8.0
