"""Telemetry of an NVIDIA GPU: clocks, heat, throttling, load, power limit, PCIe traffic, other processes.

A thread of its own asks the driver every 100 ms, which is as often as most of its readings change; asking faster
takes the driver's lock and slows the kernels that are being measured (what it costs is measured, not assumed: see
:func:`wattline.collectors.overhead.sampler_overhead`). Counters are read at the start and the stop only. Columns:

===============================  ====================================================================================
``gpu_sm_clock_hz``              clock of the multiprocessors; ``gpu_sm_clock_min_hz`` is its lowest reading
``gpu_memory_clock_hz``          clock of the memory
``gpu_temperature_c``            core; ``gpu_temperature_max_c`` is its highest reading
``gpu_memory_temperature_c``     memory
``gpu_power_instant_w``          field 186: averaged over the sensor's own short window
``gpu_power_usage_w``            where there is no field 186: averaged over 1 s on most parts since Ampere
``gpu_utilization``              share of the driver's interval in which a kernel ran (not how full the GPU was)
``gpu_memory_utilization``       share of it in which memory was read or written
``gpu_throttle_<cause>_share``   share of the readings with that cause: power, thermal, hardware, sync_boost,
                                 user_clocks, idle
``gpu_violation_<policy>_s``     seconds throttled by the driver's own counters: power, thermal, sync_boost,
                                 board_limit, reliability
``gpu_power_limit_w``            enforced limit
``gpu_pcie_tx_bytes_per_s``      from the GPU to the host; ``gpu_pcie_rx_bytes_per_s`` the other way
``gpu_foreign_processes``        other processes with a compute context on the GPU
``gpu_polls``                    readings taken; ``gpu_poll_s`` is what one took (median, waits included)
``gpu_sampler_cpu_share``        processor time of the thread that reads, as a share of the span
===============================  ====================================================================================

What a part does not offer is in ``missing`` with the reason. Power here shows how a measurement went; joules come
from :mod:`wattline.collectors.energy`.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol

from wattline.collectors.gpu_readings import POLICIES, GpuReader, Totals, foreign_processes, throttle_causes
from wattline.collectors.nvml_device import OpenGpu, open_gpu
from wattline.collectors.telemetry import HostTelemetry, Telemetry, TelemetryResult
from wattline.errors import DeviceError
from wattline.record import Flag
from wattline.trace import Moment, Series, unit_of

PERIOD_S = 0.1
"""Time between two polls: most of what NVML reports is renewed every 100 ms (Ampere, Hopper), or a little faster."""

PCIE_PERIOD_S = 2.0
"""Time between two PCIe readings where there are no counters: one holds the driver for 40 ms."""

THROTTLE_LIMIT = 0.01
"""Share of the span above which throttling raises a flag."""

PATIENCE_S = 5.0
"""A driver that has not answered for so long is left alone: the measurement goes on without it."""


class Reader(Protocol):
    """What is asked of a GPU; see :class:`~wattline.collectors.gpu_readings.GpuReader`."""

    missing: dict[str, str]

    def poll(self) -> dict[str, float]:
        """The cheap readings, by column."""
        ...

    def totals(self) -> Totals:
        """Counters and slow readings."""
        ...

    def pcie_rates(self) -> dict[str, float]:
        """Bytes per second."""
        ...

    @property
    def has_pcie_rates(self) -> bool:
        """Whether they may be asked."""
        ...


class _Watch:
    """The readings of one span, filled by one thread at a time."""

    def __init__(self, reader: Reader, period_s: float, *, pcie: bool) -> None:
        self._reader = reader
        self._period_s = period_s
        self._pcie = pcie
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wattline-telemetry", daemon=True)
        self.moment = Moment.now()
        self.readings: dict[str, tuple[list[float], list[float]]] = {}
        self.took_s: list[float] = []
        self.cpu_s: float | None = None
        self.lost = ""
        self.lost_s = 0.0
        self._abandoned = False

    @property
    def stuck(self) -> bool:
        """Whether the thread still waits for the driver."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Read once, then again every period."""
        self.poll()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and read once more, unless the driver hangs or the GPU is gone."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self.lost = self.lost or f"the driver has not answered for {PATIENCE_S:.0f} s"
            self.lost_s = self.lost_s or self._now()
            self._abandoned = True  # should it come back, it changes nothing any more
        elif not self.lost:
            self.poll()

    def poll(self) -> None:
        """One reading of everything that is cheap."""
        begin = self._now()
        try:
            self._keep(self._reader.poll(), begin)
        except DeviceError as error:
            self.lost, self.lost_s = error.why or error.what, begin

    def _run(self) -> None:
        due, pcie_due = self._period_s, PCIE_PERIOD_S / 2
        while not self.lost and not self._ended.wait(max(0.0, due - self._now())):
            self.poll()
            if self._pcie and self._now() >= pcie_due and not self.lost:
                pcie_due += PCIE_PERIOD_S
                self._ask_pcie()
            # Polls that came too late are left out, not caught up with.
            due = max(due + self._period_s, self._now() + self._period_s / 2)
        self.cpu_s = time.thread_time()

    def _ask_pcie(self) -> None:
        begin = self._now()
        try:
            rates = self._reader.pcie_rates()
        except DeviceError as error:
            self.lost, self.lost_s = error.why or error.what, begin
            return
        for column, rate in rates.items():
            self._append(column, begin, rate)

    def _keep(self, seen: dict[str, float], begin: float) -> None:
        end = self._now()
        self.took_s.append(end - begin)
        for column, value in seen.items():
            self._append(column, (begin + end) / 2, value)

    def _append(self, column: str, at_s: float, value: float) -> None:
        if self._abandoned:
            return
        times, values = self.readings.setdefault(column, ([], []))
        times.append(at_s)
        values.append(value)

    def _now(self) -> float:
        return Moment.now().perf_s - self.moment.perf_s


class GpuTelemetry(Telemetry):
    """Watches one GPU.

    Flags raised, each with the figures behind it:

    - ``throttled_power``, ``throttled_thermal``, ``throttled_hardware``: the cause held for more than 1 % of the
      readings, or of the span by the driver's own counter.
    - ``foreign_process``: another process has a compute context on the GPU.

    Args:
        reader: what is asked.
        period_s: time between two polls.
        pids: processes of ours; this one where not given.
        root: of the file tree that holds ``proc``, for tests.
        gpu: to be closed by :meth:`close`.
    """

    polls = True

    def __init__(
        self,
        reader: Reader,
        *,
        period_s: float = PERIOD_S,
        pids: Iterable[int] | None = None,
        root: str = "/",
        gpu: OpenGpu | None = None,
    ) -> None:
        super().__init__()
        self._reader = reader
        self._period_s = period_s
        self._pids = tuple(pids) if pids is not None else None
        self._root = root
        self._gpu = gpu
        self._skipped = False
        self._watch: _Watch | None = None
        self._first: Totals | None = None

    @classmethod
    def open(cls, index: int = 0, *, uuid: str | None = None, binding: Any = None) -> GpuTelemetry:
        """The telemetry of a CUDA device.

        Args:
            index: the device's number as torch counts.
            uuid: its UUID as NVML writes it (``"GPU-..."``); found out where not given.
            binding: a module like ``pynvml``, for tests.

        Raises:
            SensorError: (or :class:`~wattline.errors.DeviceError`) NVML does not answer, or not for this device.
        """
        gpu = open_gpu(index, uuid=uuid, binding=binding)
        return cls(GpuReader(gpu.binding, gpu.handle), gpu=gpu)

    def close(self) -> None:
        """See :meth:`Telemetry.close`."""
        # A thread that still waits for the driver must not lose it underneath: then the library stays open.
        if self._gpu is not None and not (self._watch and self._watch.stuck):
            self._gpu.close()

    def _begin(self) -> None:
        self._skipped = self._watch is not None and self._watch.stuck
        if self._skipped:
            return  # _end says so; a second thread would hang beside the first
        self._first = None
        pcie = False
        lost = ""
        try:
            self._first = self._reader.totals()
            pcie = not self._first.pcie_bytes and self._reader.has_pcie_rates
        except DeviceError as error:
            lost = error.why or error.what
        self._watch = _Watch(self._reader, self._period_s, pcie=pcie)
        if lost:
            self._watch.lost = lost
        else:
            self._watch.start()

    def _end(self) -> TelemetryResult:
        watch = self._watch
        assert watch is not None  # stop() checked it
        if self._skipped:
            return TelemetryResult(missing={"gpu_telemetry": watch.lost}, origin=Moment.now())
        watch.stop()
        span_s = Moment.now().perf_s - watch.moment.perf_s
        last: Totals | None = None
        if not watch.lost:
            try:
                last = self._reader.totals()
            except DeviceError as error:
                watch.lost, watch.lost_s = error.why or error.what, span_s
        means: dict[str, float] = {}
        missing: dict[str, str] = {}
        flags: list[Flag] = []
        shares = _summary(watch, means)
        if watch.cpu_s is not None:
            means["gpu_sampler_cpu_share"] = watch.cpu_s / span_s
        _counters(self._first, last, span_s, means, missing)
        self._processes(self._first, last, means, missing, flags)
        flags += _throttle_flags(shares, means, span_s)
        there = watch.readings.keys() | means.keys()
        missing |= {column: why for column, why in self._reader.missing.items() if column not in there}
        if watch.lost:
            missing["gpu_telemetry"] = f"it ended after {watch.lost_s:.3g} s of {span_s:.3g} s: {watch.lost}"
        series = {name: Series.of(t, v, unit=unit_of(name)) for name, (t, v) in watch.readings.items()}
        return TelemetryResult(means, tuple(flags), missing, series, span_s, watch.moment)

    def _processes(
        self,
        first: Totals | None,
        last: Totals | None,
        means: dict[str, float],
        missing: dict[str, str],
        flags: list[Flag],
    ) -> None:
        lists = [t.processes for t in (first, last) if t is not None and t.processes is not None]
        if not lists:
            return
        own = self._pids if self._pids is not None else (os.getpid(),)
        # Each end by itself: where processes cannot be told by number, those of both ends together would count twice.
        number, by_name = max(foreign_processes(listed, own, self._root) for listed in lists)
        means["gpu_foreign_processes"] = float(number)
        if number:
            which = f"{number} other process{'es have' if number > 1 else ' has'} a compute context on the GPU"
            doubt = "" if by_name else " (the driver names processes by numbers of another namespace)"
            flags.append(Flag("foreign_process", which + doubt))


def _summary(watch: _Watch, means: dict[str, float]) -> dict[str, tuple[int, int]]:
    """Means of what was polled; returns, by throttle cause, in how many of how many readings it held."""
    shares: dict[str, tuple[int, int]] = {}
    causes = {f"gpu_throttle_{cause}": cause for cause in throttle_causes(0)}
    for column, (_, values) in watch.readings.items():
        mean = statistics.fmean(values)
        if column in causes:
            means[f"{column}_share"] = mean
            shares[causes[column]] = (sum(map(bool, values)), len(values))
        else:
            means[column] = mean
    if "gpu_sm_clock_hz" in watch.readings:
        means["gpu_sm_clock_min_hz"] = min(watch.readings["gpu_sm_clock_hz"][1])
    if "gpu_temperature_c" in watch.readings:
        means["gpu_temperature_max_c"] = max(watch.readings["gpu_temperature_c"][1])
    if watch.took_s:
        means["gpu_polls"] = float(len(watch.took_s))
        means["gpu_poll_s"] = statistics.median(watch.took_s)
    return shares


def _counters(
    first: Totals | None, last: Totals | None, span_s: float, means: dict[str, float], missing: dict[str, str]
) -> None:
    """Differences of the driver's counters."""
    if first is None or last is None or span_s <= 0:
        return
    for policy in POLICIES:
        if policy in first.violation_s and policy in last.violation_s:
            column, delta = f"gpu_violation_{policy}_s", last.violation_s[policy] - first.violation_s[policy]
            # A counter renewed once in a while may show a little more than the span, not several times it.
            if 0 <= delta <= 2 * span_s + 1:
                means[column] = delta
            else:
                missing[column] = f"the driver's counter moved by {delta:.3g} s within {span_s:.3g} s"
    for column in first.pcie_bytes.keys() & last.pcie_bytes.keys():
        count = last.pcie_bytes[column] - first.pcie_bytes[column]
        if count >= 0:
            means[column] = count / span_s
        else:
            missing[column] = "the driver's counter went back"
    if last.power_limit_w is not None:
        means["gpu_power_limit_w"] = last.power_limit_w


def _throttle_flags(shares: dict[str, tuple[int, int]], means: dict[str, float], span_s: float) -> list[Flag]:
    flags = []
    for cause in ("power", "thermal", "hardware"):
        held, readings = shares.get(cause, (0, 0))
        counted = means.get(f"gpu_violation_{cause}_s", 0.0)
        if max(held / readings if readings else 0.0, counted / span_s if span_s > 0 else 0.0) <= THROTTLE_LIMIT:
            continue
        told = [f"in {held} of {readings} readings"] if readings else []
        if f"gpu_violation_{cause}_s" in means:
            told.append(f"for {counted:.3g} of {span_s:.3g} s by the driver's counter")
        message = f"clocks were lowered {' and '.join(told)}"
        if cause == "power" and "gpu_power_limit_w" in means:
            message += f"; the limit is {means['gpu_power_limit_w']:.0f} W"
        if cause == "thermal" and "gpu_temperature_max_c" in means:
            message += f"; up to {means['gpu_temperature_max_c']:.0f} degrees C"
        flags.append(Flag(f"throttled_{cause}", message))
    return flags


class AcceleratorTelemetry(Telemetry):
    """The GPU and, beside it, the host that launches its kernels.

    Args:
        gpu: watches the GPU.
        host: watches the host; its load and heat are columns, not flags.
    """

    polls = True

    def __init__(self, gpu: GpuTelemetry, host: HostTelemetry | None = None) -> None:
        super().__init__()
        self._gpu = gpu
        self._host = host or HostTelemetry(is_device=False)

    def _begin(self) -> None:
        self._host.start()
        self._gpu.start()

    def _end(self) -> TelemetryResult:
        # The GPU first: it cools and clocks down as soon as its work is done.
        gpu, host = self._gpu.stop(), self._host.stop()
        return TelemetryResult(
            {**host.means, **gpu.means},
            (*host.flags, *gpu.flags),
            {**host.missing, **gpu.missing},
            {**host.series, **gpu.series},
            gpu.span_s,
            gpu.origin,
        )

    def close(self) -> None:
        """See :meth:`Telemetry.close`."""
        self._gpu.close()
        self._host.close()
