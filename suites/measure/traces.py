"""Traces: what sensors and kernels did on one time axis while a case was measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from wattline.case import Case
from wattline.collectors.energy.common import EnergySensor
from wattline.collectors.telemetry import TelemetryResult
from wattline.trace import Band, Series, Trace


class Phases:
    """Collects the phases of a measurement as bands.

    Attributes:
        bands: label, begin and end on ``perf_counter``, in seconds.
    """

    def __init__(self) -> None:
        self.bands: list[tuple[str, float, float]] = []

    @contextmanager
    def phase(self, label: str) -> Iterator[None]:
        """One phase; noted when it ends without an error."""
        begin = time.perf_counter()
        yield
        self.bands.append((label, begin, time.perf_counter()))


def make_trace(
    case: Case,
    telemetry: TelemetryResult,
    sensor: EnergySensor,
    phases: Phases,
    *,
    variant: str = "",
    device: str = "",
) -> Trace | None:
    """The trace of one case, or ``None`` where nothing was sampled over time.

    Args:
        case: what ran.
        telemetry: with its series.
        sensor: its latest readings join the series.
        phases: lead-in, timing and energy.
        variant: under which variant.
        device: id of the device.
    """
    origin = telemetry.origin
    if origin is None:
        return None
    series = dict(telemetry.series)
    for watched in getattr(sensor, "watched", ()):
        if watched.readings:
            source, readings = watched.source, watched.readings
            unit = "J" if source.kind == "counter" else "W"
            times, values = [r.time_s for r in readings], [r.value for r in readings]
            series[source.label] = Series.of(times, values, origin.perf_s, unit)
    if not series:
        return None
    bands = tuple(Band(begin - origin.perf_s, end - origin.perf_s, label) for label, begin, end in phases.bands)
    return Trace(
        key=case.key,
        zero_unix_s=origin.unix_s,
        span_s=telemetry.span_s,
        variant=variant,
        label=case.label(),
        device=device,
        series=series,
        bands=bands,
        missing=dict(telemetry.missing),
    )
