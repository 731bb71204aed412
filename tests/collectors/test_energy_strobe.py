"""Sensors in step with the calls: when a share of every call may never be seen."""

from __future__ import annotations

import pytest

from wattline.collectors.energy.sensor import strobed_share
from wattline.collectors.energy.sources import COUNTER, POWER, Reading, SensorProfile, Source


class Some(Source):
    """A source that is only described."""

    vendor, field, scope = "test", "power", "gpu"

    def __init__(self, kind: str, period_s: float, window_s: float) -> None:
        self.kind, self.profile = kind, SensorProfile(period_s, window_s)

    def read(self) -> Reading:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "period_s", "window_s", "call_s", "share"),
    [
        (POWER, 0.1, 0.025, 0.050, 0.75),  # two calls a period, always at the same phases
        (POWER, 0.1, 0.025, 0.100, 0.75),
        (POWER, 0.1, 0.025, 0.300, 0.75),  # three periods a call, always at the same three places
        (POWER, 0.1, 0.025, 0.0513, 0.0),  # the phase drifts by a whole call within 50 periods
        (POWER, 0.1, 0.025, 0.0001, 0.0),  # 250 calls a look
        (POWER, 0.1, 0.100, 0.050, 0.0),  # sees all of the time
        (POWER, 0.1, 1.000, 0.050, 0.0),
        (COUNTER, 0.1, 0.0, 0.050, 0.0),  # counts all of the time
    ],
)
def test_the_unseen_share_by_hand(kind: str, period_s: float, window_s: float, call_s: float, share: float) -> None:
    found = strobed_share(Some(kind, period_s, window_s), call_s, periods=50, calls=round(5.0 / call_s))
    assert found == pytest.approx(share)
