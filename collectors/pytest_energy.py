"""What the fixture ``energy_benchmark`` does; loaded when a test asks for it (see the plugin beside it)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import pytest

from wattline.collectors.device import AcceleratorDevice
from wattline.collectors.energy import EnergySensor
from wattline.collectors.energy.meter import sensor_of
from wattline.collectors.energy.percall import CallEnergy, energy_per_call
from wattline.collectors.timers import HostTimer, Timer
from wattline.errors import ParamError, WattlineError
from wattline.reasons import Reason
from wattline.units import format_si, format_time, parse_duration


class SensorPool:
    """Gives the energy sensor of each device once, and closes them all at the end."""

    def __init__(self) -> None:
        self._sensors: dict[str, EnergySensor] = {}

    def __call__(self, device: str) -> EnergySensor:
        """The sensor of a device, e.g. ``"cpu"`` or ``"cuda:1"``; the null object where there is none."""
        if device not in self._sensors:
            self._sensors[device] = sensor_of(device)
        return self._sensors[device]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sensor in self._sensors.values():
            sensor.close()


class EnergyBenchmark:
    """Times a function and measures its joules per call; what the fixture ``energy_benchmark`` gives.

    Args:
        sensors: gives the sensor of a device by its name.
        benchmark: the fixture of pytest-benchmark, or ``None`` without it.
        device: whose energy; ``"auto"``: the accelerator if the function used one, else the CPU.
        window_s: length of the measured load; the sensor's own rule where not given.
        reason: why no energy is to be measured at all.
        publish: is told the flat result, to go into reports.

    Attributes:
        extra_info: joules and what belongs to them, or ``energy_missing``; the same as of ``benchmark``.
        result: the energy of one call.
        device: the device that was measured, once it is known.
    """

    def __init__(
        self,
        sensors: Callable[[str], EnergySensor],
        benchmark: Any = None,
        *,
        device: str = "auto",
        window_s: float | None = None,
        reason: Reason | None = None,
        publish: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.benchmark = benchmark
        self.device = device
        self.extra_info: dict[str, Any] = {} if benchmark is None else benchmark.extra_info
        self.result: CallEnergy | None = None
        self._sensors = sensors
        self._window_s = window_s
        self._reason = reason
        self._publish = publish

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Time the function, then run it back to back for the sensor's window.

        Args:
            function: is called very often; it must not use up its arguments.
            args: for the function.
            kwargs: for the function.

        Returns:
            What the function returns.

        Raises:
            ParamError: called twice in one test, or no such device.
        """
        if self.result is not None:
            raise ParamError("energy_benchmark was called twice", todo="one function per test; parametrize for more")
        call = partial(function, *args, **kwargs)
        if self.benchmark is not None:
            value = self.benchmark(function, *args, **kwargs)
            stats = self.benchmark.stats
            call_s = float(stats.stats.median) if stats is not None else 0.0
        else:
            value, call_s = _once(call)
        self.result = self._measure(call, call_s)
        flat = self.result.to_dict() | {"energy_device": self.device}
        self.extra_info.update(flat)
        if self._publish is not None:
            self._publish(flat)
        return value

    def _measure(self, call: Callable[[], Any], call_s: float) -> CallEnergy:
        reason = self._reason
        if reason is None and self.benchmark is not None and not self.benchmark.enabled:
            reason = Reason("disabled", "benchmarks are disabled: the function ran once")
        if self.device == "auto":
            self.device = device_in_use()
        if reason is not None:
            return CallEnergy(reason=reason)
        sensor = self._sensors(self.device)
        if sensor.reason is not None:
            return CallEnergy(reason=sensor.reason, remedy=sensor.remedy)
        try:
            timer = timer_of(self.device)
        except WattlineError as error:
            return CallEnergy(reason=Reason("no_device", str(error)))
        return energy_per_call(call, sensor, timer, call_s=call_s, window_s=self._window_s)


def device_in_use() -> str:
    """The accelerator that this process has used through torch, e.g. ``"cuda:0"``; else ``"cpu"``. Loads nothing."""
    torch = sys.modules.get("torch")
    accelerator = getattr(torch, "accelerator", None)
    if torch is None or accelerator is None or not accelerator.is_available():
        return "cpu"
    kind = accelerator.current_accelerator().type
    started = getattr(getattr(torch, kind, None), "is_initialized", None)
    if started is not None and not started():
        return "cpu"
    return f"{kind}:{accelerator.current_device_index()}"


def timer_of(device: str) -> Timer:
    """The timer of a device; only an accelerator's needs torch."""
    if device == "cpu":
        return HostTimer()
    _, _, number = device.partition(":")
    return AcceleratorDevice(int(number or 0)).timer()


def _once(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and about how long one takes: the first is not asked, it may load and compile."""
    value = call()
    begin = time.perf_counter()
    call()
    return value, time.perf_counter() - begin


def make(
    request: pytest.FixtureRequest, sensors: Callable[[str], EnergySensor], benchmark: Any
) -> EnergyBenchmark:
    """The fixture's value, from the options and the test's marker ``energy``."""
    config = request.config
    text, device = config.getoption("--energy-window"), config.getoption("--energy-device")
    window_s = parse_duration(text) if text is not None else None
    marker = request.node.get_closest_marker("energy")
    if marker is not None:
        unknown = set(marker.kwargs) - {"window_s", "device"}
        if unknown or marker.args:
            raise pytest.UsageError(f"the marker energy takes window_s and device, not {marker.args or unknown}")
        window_s = marker.kwargs.get("window_s", window_s)
        device = marker.kwargs.get("device", device)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    reason = None
    if workers > 1:
        message = f"{workers} tests run at once (pytest-xdist): the joules would be those of all"
        reason = Reason("shared_device", message)
    properties = request.node.user_properties

    def publish(flat: Mapping[str, Any]) -> None:
        properties.extend((name, value) for name, value in flat.items() if isinstance(value, str | float | int))
        properties.append(("energy_flags", ", ".join(flat.get("energy_flags", ()))))

    return EnergyBenchmark(
        sensors, benchmark, device=device, window_s=window_s, reason=reason, publish=publish
    )


def summary(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Lines for the terminal: a table of those with joules, then each reason with the tests that it stands for.

    Args:
        rows: name of the test and its properties.
    """
    table = [("test", "J/call", "95 %", "power", "time/call", "source", "flags")]
    missing: dict[tuple[str, str], list[str]] = {}
    for name, values in rows:
        if "energy_j" not in values:
            missing.setdefault((values["energy_missing"], values.get("energy_remedy", "")), []).append(name)
            continue
        table.append(
            (
                name,
                format_si(values["energy_j"], "J"),
                f"{format_si(values['energy_lo_j'], 'J')} to {format_si(values['energy_hi_j'], 'J')}",
                format_si(values["power_w"], "W"),
                format_time(values["energy_time_s"]),
                values["energy_source"],
                values.get("energy_flags", ""),
            )
        )
    if len(table) > 1:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for (message, remedy), names in missing.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"no joules for {shown}: {message}"
        if remedy:
            yield f"  to enable it: {remedy}"
