"""Telemetry: what else the machine did while a measurement ran.

A :class:`Telemetry` is started before the measured part and stopped after it; the result holds means as columns
(SI units in their names), validity flags, and why a column is missing. :class:`NullTelemetry` stands in where
there is none, so that callers never branch. GPUs are watched by :mod:`wattline.collectors.gpu_telemetry`.

:class:`HostTelemetry` reads the kernel's counters once at the start and once at the stop. There is no thread and no
polling, so nothing disturbs the measurement in between. Its columns:

==========================  =========================================================================================
``host_clock_hz``           clock of the processor that runs the measuring thread, mean of the two readings
``foreign_cpu_share``       processor time of other processes, as a share of all processors' time
``foreign_cores``           the same as a number of processors kept busy
``own_cores``               processors that our own processes kept busy
``interrupt_share``         time in interrupt handlers, as a share of all processors' time
``steal_share``             time that the hypervisor gave to others, as a share of all processors' time
``quota_throttled_s``       seconds waited for the container's CPU quota (processors' waits added up)
``quota_throttled_count``   periods in which that quota ran out
``thermal_throttle_count``  heat events of cores and packages (Intel)
==========================  =========================================================================================
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from wattline.collectors import counters
from wattline.errors import DeviceError, SensorError
from wattline.record import Flag
from wattline.trace import Moment
from wattline.trace import Series as Series  # noqa: PLC0414 - what a telemetry gives

FOREIGN_LIMIT = 0.05
"""Share of all processors' time above which other processes, or the hypervisor, raise a flag."""

MIN_SPAN_S = 0.2
"""Shorter spans have no load columns and flags: the kernel counts in ticks of 10 ms (proc_stat(5), USER_HZ)."""

MIN_FOREIGN_TICKS = 4
"""Foreign time below this many ticks raises no flag: user, system and own time are each rounded to a tick."""


@dataclass(frozen=True)
class TelemetryResult:
    """What was seen between start and stop.

    Attributes:
        means: value by column name; the name ends with the unit.
        flags: reservations about the measurement.
        missing: why a column is not there, by column name.
        series: quantities over time since the start; only of instruments that sample.
        span_s: seconds between start and stop.
        origin: the instant that the series count from, where there are any.
    """

    means: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    span_s: float = 0.0
    origin: Moment | None = None


class Telemetry(ABC):
    """An instrument that watches the machine during a measurement.

    Use :meth:`start` and :meth:`stop`, or a ``with`` block and then :attr:`result`. It may be started again.

    Attributes:
        result: of the last stop.
        polls: whether it reads while the measurement runs, and so may disturb it.
    """

    polls = False

    def __init__(self) -> None:
        self.result = TelemetryResult()
        self._running = False

    def start(self) -> None:
        """Begin watching.

        Raises:
            SensorError: it is watching already.
        """
        if self._running:
            raise SensorError("telemetry was started twice", todo="stop it before the next start")
        self._begin()
        self._running = True

    def stop(self) -> TelemetryResult:
        """End watching.

        Raises:
            SensorError: it was not started.
        """
        if not self._running:
            raise SensorError("telemetry was stopped before it was started")
        self._running = False
        self.result = self._end()
        return self.result

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what it holds; it may be called twice."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _begin(self) -> None:
        """Take the first readings. A reading that fails is noted for ``missing``, never raised."""

    @abstractmethod
    def _end(self) -> TelemetryResult:
        """Take the last readings and say what lies between."""


class NullTelemetry(Telemetry):
    """Watches nothing, and says why.

    Args:
        reason: why there is no telemetry.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason
        self._started_s = 0.0

    def _begin(self) -> None:
        self._started_s = time.monotonic()

    def _end(self) -> TelemetryResult:
        return TelemetryResult(missing={"telemetry": self.reason}, span_s=time.monotonic() - self._started_s)


@dataclass(frozen=True)
class _Reading:
    at_s: float
    ticks: counters.Ticks | None
    own_ticks: int | None
    quota: Mapping[str, tuple[int, float]]
    heat: int | None
    clock_hz: float | None


class HostTelemetry(Telemetry):
    """Load, quota, heat and clock of the host.

    Flags raised:

    - ``foreign_process``: other processes took more than 5 % of all processors' time, or the hypervisor did (the
      message then says steal). Interrupts count as nobody's. The kernel counts in ticks of 10 ms, so spans below
      0.2 s have neither this flag nor the load columns, and four ticks are the least that raises it.
    - ``throttled_quota``: the CPU quota ran out in at least one period.
    - ``throttled_thermal``: a core or package reported a heat event.

    Args:
        root: of the file tree that holds ``proc`` and ``sys``.
        pids: processes that count as our own together with all their descendants; this one where not given. The
            process of the measuring thread comes first: its processor's clock is read.
        is_device: whether the host itself is the device under test. If not, load and heat are columns only: they
            say nothing about an accelerator.
        clock: seconds, monotonic; for tests.
    """

    def __init__(
        self,
        root: str = "/",
        pids: Iterable[int] | None = None,
        *,
        is_device: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._root = root
        self._pids = tuple(pids) if pids is not None else None
        self._is_device = is_device
        self._clock = clock
        self._first: _Reading | None = None
        self._heat_files: tuple[str, ...] | None = None
        self._clock_source: str | None = None

    def _begin(self) -> None:
        # What never changes is looked up once, before the first reading.
        if self._heat_files is None:
            self._heat_files = counters.heat_files(self._root)
        if self._clock_source is None:
            self._clock_source = counters.clock_source(self._root)
        self._first = self._read()

    def _end(self) -> TelemetryResult:
        last, first = self._read(), self._first
        assert first is not None  # stop() checked it
        means: dict[str, float] = {}
        missing: dict[str, str] = {}
        flags: list[Flag] = []
        span_s = last.at_s - first.at_s
        self._load(first, last, means, missing, flags)
        self._quota(first, last, means, missing, flags)
        if first.heat is not None and last.heat is not None:
            heat = means["thermal_throttle_count"] = float(last.heat - first.heat)
            if heat > 0 and self._is_device:
                flags.append(Flag("throttled_thermal", f"{heat:.0f} heat events of the processor in {span_s:.3g} s"))
        else:
            missing["thermal_throttle_count"] = "this kernel or processor shows no thermal_throttle counters"
        clocks = [r.clock_hz for r in (first, last) if r.clock_hz]
        if clocks:
            means["host_clock_hz"] = sum(clocks) / len(clocks)
        else:
            missing["host_clock_hz"] = "neither frequency scaling nor clock counters are visible"
        return TelemetryResult(means, tuple(flags), missing, span_s=span_s)

    def _read(self) -> _Reading:
        pids = self._pids if self._pids is not None else (os.getpid(),)
        return _Reading(
            at_s=self._clock(),
            ticks=counters.ticks(self._root),
            own_ticks=counters.tree_ticks(self._root, pids),
            quota=counters.quota_counters(self._root),
            heat=counters.heat(self._root, self._heat_files or ()),
            clock_hz=counters.clock_hz(self._root, self._clock_source or "", pids),
        )

    def _load(
        self,
        first: _Reading,
        last: _Reading,
        means: dict[str, float],
        missing: dict[str, str],
        flags: list[Flag],
    ) -> None:
        if first.ticks is None or last.ticks is None:
            missing["foreign_cpu_share"] = "/proc/stat cannot be read"
            return
        if last.ticks.total <= first.ticks.total:
            missing["foreign_cpu_share"] = "the counters of /proc/stat did not move"
            return
        span_s, cpus = last.at_s - first.at_s, last.ticks.cpus
        if span_s < MIN_SPAN_S:
            missing["foreign_cpu_share"] = f"load is counted in ticks of 10 ms: no figure below {MIN_SPAN_S} s"
            return
        # The counters' own total, not the clock: both sides of every share come from the same ticks.
        total = last.ticks.total - first.ticks.total
        steal = (last.ticks.steal - first.ticks.steal) / total
        means["steal_share"] = steal
        means["interrupt_share"] = (last.ticks.interrupts - first.ticks.interrupts) / total
        if steal > FOREIGN_LIMIT and self._is_device:
            limit = f"limit {FOREIGN_LIMIT:.0%}"
            message = f"steal: the hypervisor gave {steal:.1%} of the processors' time to others ({limit})"
            flags.append(Flag("foreign_process", message))
        if first.own_ticks is None or last.own_ticks is None:
            missing["foreign_cpu_share"] = "our own processor time cannot be read"
            return
        own = last.own_ticks - first.own_ticks
        # Rounding to ticks can leave a little less than nothing.
        foreign = max(0, last.ticks.processes - first.ticks.processes - own)
        means["own_cores"] = own / total * cpus
        means["foreign_cores"] = foreign / total * cpus
        means["foreign_cpu_share"] = foreign / total
        if foreign / total > FOREIGN_LIMIT and foreign >= MIN_FOREIGN_TICKS and self._is_device:
            message = (
                f"other processes used {foreign / total:.1%} of the processors' time "
                f"({foreign / total * cpus:.2g} of {cpus} processors; limit {FOREIGN_LIMIT:.0%})"
            )
            flags.append(Flag("foreign_process", message))

    def _quota(
        self,
        first: _Reading,
        last: _Reading,
        means: dict[str, float],
        missing: dict[str, str],
        flags: list[Flag],
    ) -> None:
        # Of the groups on the way up, the one that held us back the longest: their waits overlap.
        waits = [
            (now[1] - first.quota[group][1], now[0] - first.quota[group][0])
            for group, now in last.quota.items()
            if group in first.quota
        ]
        if not waits:
            missing["quota_throttled_s"] = "no control group reports its CPU quota"
            return
        waited_s, periods = max(waits)
        means["quota_throttled_s"], means["quota_throttled_count"] = max(0.0, waited_s), float(max(0, periods))
        if periods > 0:
            within = f"{waited_s:.3g} s waited within {last.at_s - first.at_s:.3g} s"
            flags.append(Flag("throttled_quota", f"the CPU quota ran out in {periods} periods: {within}"))


def telemetry_for(kind: str, index: int = 0, *, uuid: str = "", binding: Any = None) -> Telemetry:
    """The telemetry of a device.

    For accelerators the host is watched too, since it launches the kernels. Where the accelerator itself cannot be
    watched, the column ``device_clock_hz`` is missing with the reason.

    Args:
        kind: ``"cpu"``, or an accelerator's as torch names it: ``"cuda"`` (NVIDIA, and AMD through ROCm), ``"xpu"`` ...
        index: which one of its kind, as torch counts.
        uuid: of an NVIDIA GPU, as NVML writes it; then the index does not matter.
        binding: a module like ``pynvml``, for tests.
    """
    if kind == "cpu":
        return HostTelemetry()
    if kind != "cuda":
        return _BesideAccelerator(kind, "this version reads those of NVIDIA GPUs only")
    if binding is None and is_rocm():
        return _BesideAccelerator(kind, "this is an AMD GPU, and this version reads those of NVIDIA GPUs only")
    from wattline.collectors.gpu_telemetry import AcceleratorTelemetry, GpuTelemetry

    try:
        return AcceleratorTelemetry(GpuTelemetry.open(index, uuid=uuid or None, binding=binding))
    except (SensorError, DeviceError) as error:
        return _BesideAccelerator(kind, "; ".join(part for part in (error.what, error.why, error.todo) if part))


def is_rocm() -> bool:
    """Whether torch, where it is loaded, drives AMD GPUs under the name of CUDA."""
    torch = sys.modules.get("torch")  # where a device is measured, torch is loaded
    return bool(torch is not None and getattr(torch.version, "hip", None))


class _BesideAccelerator(HostTelemetry):
    """The host while an accelerator is measured that cannot be watched itself."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(is_device=False)
        self._note = f"clocks, temperature and throttle reasons of this {kind} device are not read: {why}"

    def _end(self) -> TelemetryResult:
        seen = super()._end()
        return replace(seen, missing={**seen.missing, "device_clock_hz": self._note})
