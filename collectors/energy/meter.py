"""The energy of any code: :class:`EnergyMeter`, for scripts, training loops and notebooks.

::

    from wattline import EnergyMeter

    with EnergyMeter() as meter:
        with meter.window("epoch"):
            with meter.window("forward", calls=100):
                for _ in range(100):
                    model(batch)
            ...
    print(meter.result("forward"))                  # joules with their interval, watts, source, reservations
    print(meter.result("forward").energy_per_call_j)

Windows are named; they may nest, overlap and repeat. They are spans of arbitrary code, so the joules hold what the
device did in the time, idle gaps included. For the energy of one kernel, at its own clocks, use a benchmark.

A window below two of the sensor's periods is refused (its :attr:`WindowEnergy.reason` says so), one below twenty is
flagged, and no sensor means no joules: asking for them raises. There are no zeros.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from wattline.collectors.energy.common import EnergySensor, NoEnergySensor
from wattline.collectors.energy.find import find_energy_sensor
from wattline.collectors.energy.nvml_probe import probe_nvml
from wattline.collectors.energy.sensor import MeteredSensor
from wattline.collectors.energy.spans import DeviceEnergy, Span, SpanTracker
from wattline.errors import ParamError, SensorError, unknown_name
from wattline.reasons import Reason
from wattline.units import format_si


@dataclass(frozen=True)
class WindowEnergy:
    """What a window used.

    Attributes:
        name: of the window.
        duration_s: its length.
        devices: what each device used, by its name.
        calls: calls that it held, as its opener said.
    """

    name: str
    duration_s: float
    devices: Mapping[str, DeviceEnergy]
    calls: int = 1

    @property
    def reason(self) -> Reason | None:
        """Why there are no joules; ``None`` where every device gave some."""
        if not self.devices:
            return Reason("no_sensor", "no device with an energy sensor was metered")
        return next((device.reason for device in self.devices.values() if device.reason is not None), None)

    @property
    def energy_j(self) -> float:
        """Joules of all devices together.

        Raises:
            SensorError: a device gave none; :attr:`devices` has the others.
        """
        return sum(device.joules for device in self._measured() if device.joules is not None)

    @property
    def energy_lo_j(self) -> float:
        """Lower end of the interval of :attr:`energy_j`; the devices' gains may all err to the same side."""
        return sum(device.lo_j for device in self._measured())

    @property
    def energy_hi_j(self) -> float:
        """Upper end of the interval."""
        return sum(device.hi_j for device in self._measured())

    @property
    def power_w(self) -> float:
        """Mean power of all devices together."""
        return self.energy_j / self.duration_s

    @property
    def energy_per_call_j(self) -> float:
        """Joules per call, for windows opened with a number of calls."""
        return self.energy_j / self.calls

    @property
    def source(self) -> str:
        """Sensors and fields."""
        return ", ".join(dict.fromkeys(device.source for device in self.devices.values() if device.source))

    @property
    def flags(self) -> tuple[str, ...]:
        """Reservations of all devices (codes of :data:`wattline.collectors.energy.flags.ENERGY_FLAGS`)."""
        return tuple(dict.fromkeys(flag for device in self.devices.values() for flag in device.flags))

    def _measured(self) -> list[DeviceEnergy]:
        reason = self.reason
        if reason is not None:
            remedy = next((d.remedy for d in self.devices.values() if d.reason is reason), "")
            raise SensorError(f"no joules for the window {self.name!r}", why=reason.message, todo=remedy)
        return list(self.devices.values())

    def __str__(self) -> str:
        span = format_si(self.duration_s, "s")
        if self.reason is not None:
            return f"{self.name}: no joules in {span}: {self.reason.message}"
        interval = f"[{format_si(self.energy_lo_j, 'J')}, {format_si(self.energy_hi_j, 'J')}]"
        flags = f"; {', '.join(self.flags)}" if self.flags else ""
        joules, watts = format_si(self.energy_j, "J"), format_si(self.power_w, "W")
        return f"{self.name}: {joules} {interval}, {watts} over {span} ({self.source}{flags})"


@dataclass
class _Open:
    """A window that was opened, and perhaps ended."""

    name: str
    begin_s: float
    spans: dict[str, Span]
    calls: int
    end_s: float | None = None


class EnergyMeter:
    """Measures the energy of named windows of any code. Use it as a ``with`` block.

    Entering takes until every counter has changed once (some tenths of a second on a GPU); leaving takes some of the
    sensors' periods, until the last windows are settled. Marks themselves cost microseconds.

    Args:
        devices: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ..., one or several; where not given, the CPU and every GPU that
            can be read.
        sensors: sensors by device name, in place of looking them up; the caller closes them.
        synchronize: called at both marks, so that queued work falls into the window that launched it. Where not
            given, torch's current accelerator is synchronised if the process has used one; ``None`` for never.
        tracker: makes what follows a device; for tests.
        clock: the clock of the readings; for tests.
    """

    def __init__(
        self,
        devices: str | Sequence[str] | None = None,
        *,
        sensors: Mapping[str, EnergySensor] | None = None,
        synchronize: Callable[[], Any] | str | None = "auto",
        tracker: Callable[[str, MeteredSensor | NoEnergySensor], SpanTracker] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._devices = (devices,) if isinstance(devices, str) else devices
        self._sensors = sensors
        self._synchronize = synchronize
        self._tracker = tracker or SpanTracker
        self._clock = clock
        self._looked_up: dict[str, EnergySensor] = {}
        self._trackers: dict[str, SpanTracker] = {}
        self._open: dict[str, _Open] = {}
        self._ended: dict[str, list[_Open]] = {}
        self._found: dict[int, WindowEnergy] = {}
        self._lock = threading.RLock()
        self._running = False

    @property
    def devices(self) -> dict[str, Reason | None]:
        """The devices metered, each with the reason why it has no sensor, if so."""
        return {name: tracker.sensor.reason for name, tracker in self._trackers.items()}

    @property
    def available(self) -> bool:
        """Whether every device metered has a sensor that can be read."""
        return bool(self._trackers) and all(reason is None for reason in self.devices.values())

    def __enter__(self) -> Self:
        """Find the sensors and begin to poll. A missing sensor is no error here: results give its reason.

        Raises:
            SensorError: entered before.
        """
        if self._running or self._trackers:
            raise SensorError("an energy meter was entered twice", todo="make another one")
        try:
            for name, sensor in (self._sensors or self._look_up()).items():
                if not isinstance(sensor, MeteredSensor | NoEnergySensor):
                    raise ParamError(f"the sensor of {name} has no readings to follow: {type(sensor).__name__}")
                self._trackers[name] = self._tracker(name, sensor)
            for tracker in self._trackers.values():
                tracker.start()
        except BaseException:
            self._stop()
            raise
        self._running = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Settle the windows that have ended, forget those still open, end the polling. Twice does no harm."""
        if not self._running:
            return
        self._running = False
        with self._lock:
            for opened in self._open.values():
                self._drop(opened)
            self._open.clear()
        self._stop()
        for windows in self._ended.values():
            for window in windows:
                self._settle(window)

    @contextlib.contextmanager
    def window(self, name: str, *, calls: int = 1) -> Iterator[None]:
        """A window around a block; a block that raises leaves no result.

        Args:
            name: of the window; it may be used again once it has ended.
            calls: how many calls of something it holds, for joules per call.

        Raises:
            SensorError: the meter is not running, or the window is open already.
            ParamError: no calls.
        """
        self.begin(name, calls=calls)
        try:
            yield
        except BaseException:
            with self._lock:
                opened = self._open.pop(name, None)
            if opened is not None:
                self._drop(opened)
            raise
        self.end(name)

    def begin(self, name: str, *, calls: int = 1) -> None:
        """Open a window, to overlap with others as it likes; see :meth:`window`."""
        if calls < 1:
            raise ParamError(f"a window of {calls} calls")
        self._mark()
        with self._lock:
            if not self._running:
                raise SensorError(f"the window {name!r} of a meter that is not running", todo="enter it first")
            if name in self._open:
                raise SensorError(f"the window {name!r} is open already", todo="end it first, or use another name")
            spans = {device: tracker.begin() for device, tracker in self._trackers.items()}
            self._open[name] = _Open(name, self._clock(), spans, calls)

    def end(self, name: str) -> None:
        """End a window. Its result is settled some periods later; nothing waits for it here.

        Raises:
            SensorError: no such window is open.
        """
        self._mark()
        with self._lock:
            opened = self._open.pop(name, None)
            if opened is None:
                raise SensorError(f"the window {name!r} is not open", todo="begin it first")
            opened.end_s = self._clock()
            for device, span in opened.spans.items():
                self._trackers[device].end(span)
            self._ended.setdefault(name, []).append(opened)

    def result(self, name: str) -> WindowEnergy:
        """What the latest window of that name used; waits for the readings, some periods at most.

        Raises:
            UnknownNameError: no window of that name has ended.
        """
        return self._settle(self._of(name)[-1])

    def results(self, name: str) -> tuple[WindowEnergy, ...]:
        """What every window of that name used, in the order in which they ended; see :meth:`result`."""
        return tuple(self._settle(window) for window in self._of(name))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the windows that have ended."""
        return tuple(self._ended)

    def _of(self, name: str) -> list[_Open]:
        with self._lock:
            windows = self._ended.get(name)
            if not windows:
                raise unknown_name("energy window", name, self._ended)
            return list(windows)

    def _settle(self, window: _Open) -> WindowEnergy:
        found = self._found.get(id(window))
        if found is None:
            assert window.end_s is not None  # only ended windows are looked up
            devices = {name: self._trackers[name].settle(span) for name, span in window.spans.items()}
            found = WindowEnergy(window.name, window.end_s - window.begin_s, devices, window.calls)
            self._found[id(window)] = found  # the window itself is kept: its id stays its own
        return found

    def _drop(self, opened: _Open) -> None:
        for device, span in opened.spans.items():
            self._trackers[device].drop(span)

    def _stop(self) -> None:
        with contextlib.ExitStack() as stack:
            for sensor in self._looked_up.values():
                stack.callback(sensor.close)
            for tracker in self._trackers.values():
                stack.callback(tracker.stop)

    def _look_up(self) -> dict[str, EnergySensor]:
        """The sensors of the devices asked for, or of all that can be read."""
        for name in self._devices or present_devices():
            if name in self._looked_up:
                raise ParamError(f"the device {name!r} is metered twice")
            self._looked_up[name] = sensor_of(name)
        found = self._looked_up
        readable = {name: sensor for name, sensor in found.items() if sensor.available}
        # Asked for by name, a device without a sensor stays, with its reason; so do all where none can be read.
        return found if self._devices is not None or not readable else readable

    def _mark(self) -> None:
        """Let queued work end before a mark is set."""
        if callable(self._synchronize):
            self._synchronize()
        elif self._synchronize is not None:
            _synchronize_torch()


def present_devices() -> tuple[str, ...]:
    """Names of the devices of this machine that may have a sensor: the GPUs that this process may use, and the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(probe_nvml().gpus)
    if visible is not None:
        count = min(count, len([entry for entry in visible.split(",") if entry.strip()]))
    return (*(f"cuda:{index}" for index in range(count)), "cpu")


def sensor_of(name: str) -> EnergySensor:
    """The energy sensor of a device by its name, e.g. ``"cpu"`` or ``"cuda:1"``; GPUs are counted as CUDA does.

    Raises:
        ParamError: not such a name.
    """
    kind, colon, number = name.partition(":")
    if not kind or (colon and not number.isdigit()):
        raise ParamError(f"not a device: {name!r}", todo="write cpu, cuda, cuda:1 ...")
    return find_energy_sensor(kind, index=int(number or 0))


def _synchronize_torch() -> None:
    """Wait for torch's current accelerator, if this process has used one; torch is never loaded for it."""
    torch = sys.modules.get("torch")
    accelerator = getattr(torch, "accelerator", None)
    if torch is None or accelerator is None or not accelerator.is_available():
        return
    module = getattr(torch, accelerator.current_accelerator().type, None)
    started = getattr(module, "is_initialized", None)
    if started is None or started():  # a context that nobody has opened takes memory and a second
        accelerator.synchronize()
