"""A case with a simulated power sensor beside it: joules, intervals, sources, flags and the trace in the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wattline.case import Case
from wattline.collectors.device import CpuDevice
from wattline.collectors.energy import find_energy_sensor
from wattline.collectors.telemetry import HostTelemetry, telemetry_for
from wattline.device import DeviceSpec
from wattline.record import Record
from wattline.run import PlannedCase
from wattline.suites.measure.case import CaseRunner
from wattline.suites.registry import get
from wattline.suites.settings import MeasureSettings
from wattline.suites.workload import Machine

pytest.importorskip("torch")
SETTINGS = MeasureSettings(min_time_s=0.05, time_limit_s=0.1, warmup_limit_s=0.02, min_samples=3, energy_window_s=1.0)
CASE = Case(
    "gemm.dense", "torch", get("gemm.dense").workload.params.parse({"m": 32, "n": 32, "k": 32, "dtype": "fp32"}), "hot"
)


def runner(sensor: Any, telemetry: Any) -> CaseRunner:
    return CaseRunner(
        CpuDevice(),
        Machine(kind="cpu", torch_version=(2, 13)),
        DeviceSpec(id="here", kind="cpu"),
        SETTINGS,
        progress=lambda *_: None,
        telemetry=telemetry,
        energy=sensor,
    )


def measured(record: Record) -> Any:
    assert record.status == "ok", record.reason
    assert record.measurement is not None
    return record.measurement


def test_rapl_beside_a_kernel_gives_joules_with_their_interval(simulated_rapl: Callable[..., Any]) -> None:
    rapl = simulated_rapl(idle_w=30.0, active_w=150.0)
    sensor = find_energy_sensor("cpu", rapl.root)
    assert sensor.available, sensor.reason
    with rapl.load():
        energy = measured(runner(sensor, HostTelemetry()).run(PlannedCase(CASE), seed=0)).energy
    assert energy is not None
    assert energy.power_w == pytest.approx(150.0, rel=0.02)
    assert 0 < energy.energy_lo_j < energy.energy_j < energy.energy_hi_j
    assert energy.scope == "package"
    assert "rapl" in energy.source
    assert energy.budget["gain"] > 0
    # What the line of JSON keeps is what was measured.
    record = runner(sensor, HostTelemetry()).run(PlannedCase(CASE), seed=0)
    assert Record.from_json(record.to_json()).measurement.energy.source == energy.source  # type: ignore[union-attr]


def test_a_simulated_gpu_gives_joules_telemetry_and_a_trace(
    simulated_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = simulated_gpus("h100")
    gpus.install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sensor, telemetry = find_energy_sensor("cuda"), telemetry_for("cuda")
    assert sensor.available, sensor.reason
    one = runner(sensor, telemetry)
    try:
        with gpus[0].load():
            active_w = gpus[0].power()
            m = measured(one.run(PlannedCase(CASE, "a"), seed=0))
    finally:
        telemetry.close()
        sensor.close()
    assert m.energy is not None
    assert m.energy.power_w == pytest.approx(active_w, rel=0.08)  # the gain of a board is +-5 %
    assert m.energy.energy_lo_j < m.energy.energy_j < m.energy.energy_hi_j
    assert "low_confidence" in m.energy.flags  # a second holds ten periods
    assert any(name.startswith("gpu_") for name in m.telemetry)
    trace = one.trace
    assert trace is not None
    assert (trace.key, trace.variant) == (CASE.key, "a")
    assert [band.label for band in trace.bands] == ["timing", "lead-in", "energy"]
    assert any(series.unit == "J" for series in trace.series.values())
    lead_in, energy = trace.bands[1:]
    assert lead_in.start_s < lead_in.end_s <= energy.start_s < energy.end_s


def test_a_gpu_that_is_pulled_costs_the_joules_and_not_the_time(
    simulated_gpus: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = simulated_gpus("h100")
    gpus.install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sensor, telemetry = find_energy_sensor("cuda"), telemetry_for("cuda")
    one = runner(sensor, telemetry)
    try:
        with gpus[0].load():
            first = measured(one.run(PlannedCase(CASE), seed=0))
            gpus[0].lose()
            second = measured(one.run(PlannedCase(CASE), seed=0))
    finally:
        telemetry.close()
        sensor.close()
    assert first.energy is not None
    assert second.energy is None
    assert second.stats.median_s > 0
    assert "energy_refused" in [flag.code for flag in second.flags]
