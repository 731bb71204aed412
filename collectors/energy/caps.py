"""Power limits and clocks of an NVIDIA GPU, as an axis of a sweep: opt-in, and put back on every way out.

What does a cap cost in speed, and save in joules? A sweep over caps answers it::

    with GpuCaps(0) as caps:
        for cap in parse_caps("none,600,500", ""):
            held = caps.apply(cap)          # read back from the driver
            ...measure...
    # as it was found

The limit is put back when the ``with`` block ends, however it ends; when the process is killed, SIGKILL included, a
watchdog process puts it back (:mod:`~wattline.collectors.energy.caps_watchdog`); when both are killed together, the
next :class:`GpuCaps` of that GPU does. The driver gives no way to read a clock lock: locks that somebody else set
before are lifted by putting the clocks back, and cannot be known.

Changing either needs the superuser. Without the right, :attr:`GpuCaps.reason` says so and a run goes on read-only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattline.collectors.energy.caps_guard import Watchdog
from wattline.collectors.energy.caps_watchdog import put_back
from wattline.collectors.energy.errors import SensorBusyError, code_of, nvml_error
from wattline.errors import DeviceError, ParamError, SensorError, UnsupportedError, WattlineError
from wattline.ranges import parse_range
from wattline.reasons import Reason
from wattline.units import format_si, parse_number

_ROOT = "run as root, or let the administrator set it: sudo nvidia-smi -pl WATTS, sudo nvidia-smi -lgc MHZ"
_READ_ONLY = {
    "NVMLError_NoPermission": ("no_permission", "this user may not change the GPU's power limit and clocks", _ROOT),
    "NVMLError_NotSupported": ("not_supported", "this GPU, or its driver, lets nobody change it", ""),
    "NVMLError_FunctionNotFound": ("not_supported", "this driver is too old for it", "upgrade the driver"),
}
"""Errors of the library that leave the settings read-only: code, sentence, remedy."""


@dataclass(frozen=True)
class Cap:
    """What to hold a GPU to; ``None`` leaves a setting as it was found.

    Attributes:
        power_limit_w: the power limit.
        sm_clock_hz: the clock of its multiprocessors, locked.
    """

    power_limit_w: float | None = None
    sm_clock_hz: float | None = None

    @property
    def label(self) -> str:
        """For people: ``"500 W, 1.41 GHz"``, or ``"no cap"``."""
        parts = []
        if self.power_limit_w is not None:
            parts.append(f"{self.power_limit_w:g} W")
        if self.sm_clock_hz is not None:
            parts.append(format_si(self.sm_clock_hz, "Hz"))
        return ", ".join(parts) or "no cap"


@dataclass(frozen=True)
class CapState:
    """What the driver says of one GPU.

    Attributes:
        uuid: names the GPU.
        name: e.g. ``"NVIDIA H200"``.
        power_limit_w: set now; ``None`` where the part has no such limit.
        enforced_power_limit_w: the lowest of all limits in force: what is really held.
        lowest_power_limit_w, highest_power_limit_w: what may be set.
        default_power_limit_w: from the factory.
        sm_clocks_hz: clocks that may be locked, rising; empty where none may.
    """

    uuid: str
    name: str
    power_limit_w: float | None = None
    enforced_power_limit_w: float | None = None
    lowest_power_limit_w: float | None = None
    highest_power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    sm_clocks_hz: tuple[float, ...] = ()


def parse_caps(power_limits: str = "", clocks: str = "") -> tuple[Cap, ...]:
    """The caps that two options name: every power limit with every clock, in the order written.

    Args:
        power_limits: watts: ``"700,600,500"``, ``"300:700:+100"``, ``"650W"``; ``default`` (or ``none``) for the
            limit as it was found.
        clocks: of the multiprocessors: ``"1410MHz"``, ``"1.41GHz"``, plain numbers in MHz as nvidia-smi has them;
            ``default`` (or ``none``) for no lock.

    Returns:
        The product of both; one cap without any limit where both are empty.

    Raises:
        ParamError: not such a list.
    """
    limits = _values(power_limits, "W", 1.0, "power limit") or (None,)
    locks = _values(clocks, "Hz", 1e6, "clock") or (None,)
    return tuple(Cap(limit, clock) for limit in limits for clock in locks)


def _values(text: str, unit: str, plain: float, what: str) -> tuple[float | None, ...]:
    """Numbers with or without their unit; a number without one counts in ``plain``."""
    found: list[float | None] = []
    for part in filter(None, (item.strip() for item in text.split(","))):
        if part.lower() in ("default", "none"):
            found.append(None)
        elif ":" in part:
            found += [value * plain for value in parse_range(part)]
        else:
            with_unit = part[-len(unit) :].lower() == unit.lower()
            found.append(parse_number(part[: -len(unit)].strip()) if with_unit else parse_number(part) * plain)
    wrong = [value for value in found if value is not None and value <= 0]
    if wrong:
        raise ParamError(f"a {what} must be above zero, not {wrong[0]:g}", todo="write default for no cap")
    return tuple(dict.fromkeys(found))


class GpuCaps:
    """Power limit and clocks of one GPU, held and put back. Use it as a ``with`` block.

    Args:
        device: NVML's index, or the UUID.
        binding: a module like `pynvml`, for tests; the installed one where not given. The watchdog always uses the
            installed one.
        state_dir: where the journal stands; ``$XDG_STATE_HOME/wattline`` where not given.

    Attributes:
        found: the settings before anything was changed.
        reason: why nothing can be changed; ``None`` where power limits, clocks or both can.
        remedy: what would help.
        mended: what an earlier run had left behind and was put back at the start; or ``None``.
    """

    found: CapState
    reason: Reason | None = None
    remedy: str = ""
    mended: Mapping[str, Any] | None = None

    def __init__(
        self, device: int | str = 0, *, binding: Any = None, state_dir: str | os.PathLike[str] | None = None
    ) -> None:
        self._device = device
        self._nvml = binding
        self._state_dir = Path(state_dir) if state_dir is not None else _state_dir()
        self._handle: Any = None
        self._watchdog: Watchdog | None = None
        self._pid = 0
        self._limit_changed = self._clocks_changed = False

    def __enter__(self) -> Self:
        """Read the settings, find out whether they may be changed, and start the watchdog if so.

        Raises:
            UnsupportedError: there is no NVML, or no such GPU; or another process holds caps on it.
            DeviceError: the GPU failed.
            StorageError: the journal cannot be written.
        """
        self._pid = os.getpid()
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError as error:
                raise UnsupportedError(
                    "no power caps", why=str(error), todo="pip install nvidia-ml-py", code="no_binding"
                ) from None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise self._typed(error, "asking for the NVIDIA driver") from None
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        name = self._device
        by = self._nvml.nvmlDeviceGetHandleByIndex if isinstance(name, int) else self._nvml.nvmlDeviceGetHandleByUUID
        try:
            self._handle = by(name)
            self.found = self.read()
        except self._nvml.NVMLError as error:
            raise self._typed(error, f"asking for the GPU {name}") from None
        self.reason = self._why_read_only()
        if self.reason is None:
            self._watchdog = Watchdog(self._state_dir, self.found.uuid)
            self.mended = self._watchdog.mended
            # Read again now that the settings are ours: an earlier watchdog may have been putting them back meanwhile.
            self.found = self.read()

    @property
    def writable(self) -> bool:
        """Whether caps can be set."""
        return self.reason is None and self._watchdog is not None

    def read(self) -> CapState:
        """The settings as the driver reports them now."""
        nvml, handle = self._nvml, self._handle

        def ask(function: str, *arguments: Any) -> Any:
            try:
                return getattr(nvml, function)(handle, *arguments)
            except nvml.NVMLError as error:
                if type(error).__name__ in _READ_ONLY:
                    return None
                raise self._typed(error, "reading the GPU's limits") from None

        def watts(function: str) -> float | None:
            value = ask(function)
            return None if value is None else value * 1e-3  # the library counts in milliwatts

        lowest, highest = ask("nvmlDeviceGetPowerManagementLimitConstraints") or (None, None)
        memory = ask("nvmlDeviceGetSupportedMemoryClocks")
        # The clocks that go with the fastest memory: the memory's own is left alone.
        clocks = (ask("nvmlDeviceGetSupportedGraphicsClocks", max(memory)) if memory else None) or ()
        return CapState(
            uuid=_text(ask("nvmlDeviceGetUUID")),
            name=_text(ask("nvmlDeviceGetName")),
            power_limit_w=watts("nvmlDeviceGetPowerManagementLimit"),
            enforced_power_limit_w=watts("nvmlDeviceGetEnforcedPowerLimit"),
            lowest_power_limit_w=None if lowest is None else lowest * 1e-3,
            highest_power_limit_w=None if highest is None else highest * 1e-3,
            default_power_limit_w=watts("nvmlDeviceGetPowerManagementDefaultLimit"),
            sm_clocks_hz=tuple(sorted(clock * 1e6 for clock in clocks)),
        )

    def _why_read_only(self) -> Reason | None:
        """Set the power limit to what it is: changes nothing, and says whether we may."""
        found = self.found
        if found.power_limit_w is None:
            if found.sm_clocks_hz:
                return None
            return Reason("not_supported", f"{found.name} has neither a power limit nor clocks that can be set")
        try:
            self._nvml.nvmlDeviceSetPowerManagementLimit(self._handle, round(found.power_limit_w * 1e3))
        except self._nvml.NVMLError as error:
            refusal = _READ_ONLY.get(type(error).__name__)
            if refusal is None:
                raise self._typed(error, "trying whether the power limit may be set") from None
            code, message, self.remedy = refusal
            if code == "not_supported" and found.sm_clocks_hz:
                return None  # a part whose limit is fixed may still have clocks that are not
            return Reason(code, f"{message}: caps are not applied, and the run goes on read-only")
        return None

    def check(self, cap: Cap) -> Cap:
        """What would be set for a cap: the clock is the nearest that the GPU has.

        Raises:
            ParamError: outside what the GPU allows.
            UnsupportedError: the GPU has no such setting.
        """
        found, clock = self.found, cap.sm_clock_hz
        if cap.power_limit_w is not None:
            low, high = found.lowest_power_limit_w, found.highest_power_limit_w
            if found.power_limit_w is None or low is None or high is None:
                raise UnsupportedError(f"{found.name} has no power limit that can be set", code="not_supported")
            if not low <= cap.power_limit_w <= high:
                raise ParamError(
                    f"no power limit of {cap.power_limit_w:g} W on {found.name}",
                    why=f"its driver allows {low:g} to {high:g} W",
                    todo="choose limits within that range",
                )
        if clock is not None:
            clocks = found.sm_clocks_hz
            if not clocks:
                raise UnsupportedError(f"{found.name} has no clocks that can be locked", code="not_supported")
            if not clocks[0] * 0.99 <= clock <= clocks[-1] * 1.01:
                raise ParamError(
                    f"no clock of {format_si(clock, 'Hz')} on {found.name}",
                    why=f"it runs at {format_si(clocks[0], 'Hz')} to {format_si(clocks[-1], 'Hz')}",
                    todo="choose clocks within that range",
                )
            at = bisect_left(clocks, clock)
            wanted = clock
            clock = min(clocks[max(0, at - 1) : at + 1], key=lambda each: abs(each - wanted))
        return Cap(cap.power_limit_w, clock)

    def apply(self, cap: Cap) -> CapState:
        """Hold the GPU to a cap; settings that it does not name go back to what was found.

        Returns:
            The settings as the driver then reports them; ``enforced_power_limit_w`` is what is in force.

        Raises:
            UnsupportedError: read-only, or the GPU has no such setting.
            ParamError: outside what the GPU allows; nothing was changed.
            DeviceError: the GPU failed.
            SensorError: the driver took the limit and reports another.
        """
        if self.reason is not None or self._watchdog is None:
            reason = self.reason or Reason("closed", "the caps are not open")
            raise UnsupportedError(f"no cap of {cap.label}", why=reason.message, todo=self.remedy, code=reason.code)
        cap = self.check(cap)
        limit, clock = cap.power_limit_w, cap.sm_clock_hz
        to_limit = limit is not None or self._limit_changed
        to_clocks = clock is not None or self._clocks_changed
        # First the promise to put it back, then the change.
        self._watchdog.arm(self._plan(to_limit, to_clocks))
        before, limit_set = (self._limit_changed, self._clocks_changed), False
        self._limit_changed, self._clocks_changed = to_limit, to_clocks
        target_w = limit if limit is not None else self.found.power_limit_w
        try:
            if to_limit and target_w is not None:
                self._nvml.nvmlDeviceSetPowerManagementLimit(self._handle, round(target_w * 1e3))
                limit_set = True
            if clock is not None:
                mhz = round(clock * 1e-6)
                self._nvml.nvmlDeviceSetGpuLockedClocks(self._handle, mhz, mhz)
            elif to_clocks:
                self._nvml.nvmlDeviceResetGpuLockedClocks(self._handle)
        except self._nvml.NVMLError as error:
            if type(error).__name__ in _READ_ONLY:  # what was refused was not changed: nobody must put it back
                self._limit_changed, self._clocks_changed = before[0] or limit_set, before[1]
                self._watchdog.arm(self._plan(self._limit_changed, self._clocks_changed))
            raise self._typed(error, f"setting {cap.label} on {self.found.name}") from None
        now = self.read()
        if to_limit and target_w is not None and (now.power_limit_w is None or abs(now.power_limit_w - target_w) > 0.5):
            raise SensorError(
                f"a power limit of {target_w:g} W was set and reads {now.power_limit_w} W",
                todo="see nvidia-smi -q -d POWER: another tool may be setting it",
            )
        return now

    def restore(self) -> None:
        """Put everything back as it was found; nothing changed means nothing to do.

        Raises:
            DeviceError: it could not be; the watchdog goes on trying for some seconds after the close.
        """
        if not (self._limit_changed or self._clocks_changed):
            return
        wrong = put_back(self._nvml, self._plan(self._limit_changed, self._clocks_changed))
        if wrong:
            raise DeviceError(
                f"the settings of {self.found.name} could not be put back",
                why="; ".join(wrong),
                todo="sudo nvidia-smi -pl WATTS and -rgc put them back by hand; "
                f"found: {self.found.power_limit_w} W",
            )
        self._limit_changed = self._clocks_changed = False

    def close(self) -> None:
        """Put everything back and let the watchdog go; closing twice does no harm.

        Raises:
            DeviceError: see :meth:`restore`.
        """
        if self._pid != os.getpid():
            return  # a forked child: the settings are its parent's
        self._pid = 0
        try:
            self.restore()
        finally:
            if self._watchdog is not None:
                self._watchdog.close(done=not (self._limit_changed or self._clocks_changed))
                self._watchdog = None
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _plan(self, limit: bool, clocks: bool) -> dict[str, Any]:
        limit_w = self.found.power_limit_w
        return {
            "uuid": self.found.uuid,
            "power_limit_mw": round(limit_w * 1e3) if limit and limit_w is not None else None,
            "reset_clocks": clocks,
        }

    def _typed(self, error: Exception, doing: str) -> WattlineError:
        name = type(error).__name__
        if name in _READ_ONLY:
            code, message, remedy = _READ_ONLY[name]
            return UnsupportedError(f"{doing} failed", why=message, todo=remedy, code=code)
        found = nvml_error(code_of(error), doing)
        if isinstance(found, SensorBusyError):
            return DeviceError(found.what, why=found.why, todo=found.todo or "see whether nvidia-smi works")
        if isinstance(found, SensorError):  # no driver, or no such GPU: nothing failed, there is nothing to cap
            return UnsupportedError(found.what, why=found.why, todo=found.todo, code="no_gpu")
        return found


def _state_dir() -> Path:
    """Where programs keep what must outlive them (XDG base directory specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "wattline"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
