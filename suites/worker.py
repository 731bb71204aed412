"""The worker process: opens the device once, stays warm, and measures the cases that its parent sends.

Started as ``python -m wattline.suites.worker <descriptor>``. It ends when its parent ends, however that happens.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from wattline.case import Case
from wattline.collectors.device import Device, open_device
from wattline.collectors.energy import EnergySensor, find_energy_sensor
from wattline.collectors.energy.profiles import device_of
from wattline.collectors.nvml_device import identify
from wattline.collectors.telemetry import Telemetry, telemetry_for
from wattline.device import Ceilings, DeviceSpec
from wattline.errors import DeviceError, SensorError, WattlineError
from wattline.run import PlannedCase
from wattline.suites import protocol
from wattline.suites.machine import greeting, machine_of, may_have_accelerator, sensor_facts
from wattline.suites.measure.case import KERNEL_ERRORS, CaseRunner, sticky_record
from wattline.suites.settings import MeasureSettings
from wattline.suites.workload import Machine


class Worker:
    """Answers requests until its input ends."""

    def __init__(self, sender: protocol.Sender) -> None:
        self._send = sender.send
        self._device: Device | None = None
        self._machine: Machine | None = None
        self._spec: DeviceSpec | None = None
        self._settings = MeasureSettings()
        self._runner: CaseRunner | None = None
        self._telemetry: Telemetry | None = None
        self._energy: EnergySensor | None = None

    def handle(self, message: Mapping[str, Any]) -> None:
        """Carry out one request."""
        handlers = {protocol.HELLO: self._hello, protocol.PROBE: self._probe, protocol.MEASURE: self._measure}
        try:
            handlers[message["kind"]](message)
        except WattlineError as error:
            self._send(
                protocol.FAILED, error=type(error).__name__, what=error.what, why=error.why, todo=error.todo
            )

    def _hello(self, message: Mapping[str, Any]) -> None:
        import torch

        torch.set_grad_enabled(False)  # measurements of forward kernels carry no graph along
        # Looked for before the device is opened: the power at rest is that without a context.
        name = str(message["device"])
        guess = "cpu" if name == "cpu" or not may_have_accelerator() else "cuda"
        number = name.partition(":")[2]
        sensor = find_energy_sensor(guess, index=int(number) if number.isascii() and number.isdigit() else 0)
        levels = bool(message.get("levels"))
        window_s = message["settings"].get("energy_window_s")
        levelled = _measure_level(sensor, "idle", window_s) if levels and sensor.available else ""
        self._device = device = open_device(name)
        gpu = identify(device.kind, device.index)
        # CUDA and NVML may count GPUs in different orders: what torch calls this one settles which sensor is its.
        another = bool(gpu.gpu) and not (sensor.available and _watches(sensor, gpu.gpu))
        if device.kind != guess or another:
            sensor.close()
            sensor = find_energy_sensor(device.kind, index=device.index, uuid=gpu.uuid)
            late = "which device was meant was known only once it was in use: no power at rest without a context"
            levelled = late if levels and sensor.available else ""
        if levels and sensor.available:
            levelled = _measure_level(sensor, "resident", window_s) or levelled
        self._machine = machine_of(device)
        self._spec = device.spec()
        if message.get("ceilings"):
            self._spec = self._spec.with_measured(Ceilings.from_dict(message["ceilings"]))
        self._settings = MeasureSettings.from_dict(message["settings"])
        self._telemetry = telemetry_for(device.kind, device.index, uuid=gpu.uuid)
        self._energy = sensor
        self._renew()
        energy = sensor_facts(sensor, levels_missing=levelled)
        self._send(protocol.READY, **greeting(device, self._spec, gpu, energy))

    def _renew(self) -> None:
        if not (self._device and self._machine and self._spec and self._telemetry and self._energy):
            raise WattlineError("the worker has no device", why="it was asked to measure before it was greeted")
        self._runner = CaseRunner(
            self._device, self._machine, self._spec, self._settings,
            progress=self._progress, telemetry=self._telemetry, energy=self._energy,
        )  # fmt: skip

    def _probe(self, message: Mapping[str, Any]) -> None:
        from wattline.suites.probe import probe
        from wattline.suites.watching import watching_cost

        if self._device is None or self._machine is None or self._spec is None:
            raise WattlineError("the worker has no device", why="it was asked to probe before it was greeted")
        found = probe(
            self._device,
            self._machine,
            message["formats"],
            lambda what: self._send(protocol.PROGRESS, phase=f"probe: {what}", time_s=None, precision=None),
        )
        self._spec = self._spec.with_measured(found.ceilings)
        self._renew()
        self._send(protocol.PROGRESS, phase="probe: cost of watching", time_s=None, precision=None)
        assert self._telemetry is not None  # as the device, since the greeting
        assert self._energy is not None
        cost = watching_cost(self._device, self._telemetry, self._energy, self._settings)
        self._send(protocol.PROBED, device=self._spec.to_dict(), probe=found.to_dict(), sampler_overhead=cost)

    def _measure(self, message: Mapping[str, Any]) -> None:
        if self._runner is None or self._spec is None:
            raise WattlineError("the worker has no device", why="it was asked to measure before it was greeted")
        planned = PlannedCase(Case.from_dict(message["case"]), message["variant"])
        seed, sequence = message["seed"], message["sequence"]
        try:
            record = self._runner.run(planned, seed=seed, sequence=sequence)
        except (DeviceError, *KERNEL_ERRORS) as error:
            # The device calls it sticky: report what happened, and let the parent replace this process.
            sticky = sticky_record(error, planned, self._spec.id, seed=seed, sequence=sequence)
            self._send(protocol.STICKY, record=sticky.to_json())
            return
        if self._runner.trace is not None:
            self._send(protocol.TRACE, trace=self._runner.trace.to_dict())
        self._send(protocol.RECORD, record=record.to_json())

    def _progress(self, phase: str, time_s: float | None, precision: float | None) -> None:
        self._send(protocol.PROGRESS, phase=phase, time_s=time_s, precision=precision)


def _watches(sensor: EnergySensor, uuid: str) -> bool:
    """Whether a sensor is that of the GPU with this UUID, as far as it says whose it is."""
    return device_of(str(getattr(sensor, "key", ""))) in ("", uuid)


def _measure_level(sensor: EnergySensor, name: str, window_s: float | None) -> str:
    """Measure the power at rest; returns why it could not be, or nothing."""
    measure = getattr(sensor, "measure_level", None)
    if measure is None:
        return ""
    try:
        measure(name, window_s)
    except SensorError as error:
        return str(error)
    return ""


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux: prctl(PR_SET_PDEATHSIG))."""
    import ctypes

    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def main(argv: list[str]) -> int:
    """Serve the parent that started this process; returns the exit status."""
    parent, descriptor = int(argv[0]), int(argv[1])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    worker = Worker(protocol.Sender(descriptor))
    for line in sys.stdin.buffer:
        message = protocol.decode(line)
        if message["kind"] == protocol.QUIT:
            break
        try:
            worker.handle(message)
        except BrokenPipeError:
            return 1
    # Skip the interpreter's and the libraries' own teardown: after a device error it may hang.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
