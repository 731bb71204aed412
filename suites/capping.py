"""Power limits and clocks during a run: held for the cases that ask for them, and put back on every way out.

The parent process holds them, not the worker: a worker that crashes, hangs or is replaced changes nothing about what
the GPU is held to. When the parent itself is killed, the watchdog of
:class:`~wattline.collectors.energy.caps.GpuCaps` puts everything back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from wattline.case import Case
from wattline.errors import DeviceError, ParamError, UnsupportedError, WattlineError
from wattline.record import Flag, Reason, Record
from wattline.suites.workload import Machine

if TYPE_CHECKING:
    from wattline.collectors.energy.caps import Cap, CapState, GpuCaps

SETTLE_S = 0.5
"""Wait after a change, several of the 100 ms at which current drivers renew what they report. It lets the change reach
the board before anything is launched; the limit itself acts under load only, which is what each case's own warm-up,
that ends when its times agree, is for."""

_MOVED_W = 0.5
"""Difference between two power limits that is none: drivers count in milliwatts, some boards in whole watts."""


def unmet_caps(case: Case, machine: Machine) -> Reason | None:
    """Why a machine cannot hold what a case asks for, as far as it shows without touching anything, or ``None``."""
    if not case.capped:
        return None
    from wattline.collectors.nvml_device import not_nvidia

    return not_nvidia(machine.kind, rocm=machine.hip)


class Capping:
    """Holds the GPU of a run to what its cases ask for. Use it as a ``with`` block around all of them.

    Nothing is opened, let alone changed, in a run whose cases have no caps.

    Args:
        note: is told what is worth a line.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._gpu: GpuCaps | None = None
        self._why: Reason | None = None
        self._present: Cap | None = None  # None: not known
        self._state: CapState | None = None
        self._clock_hz: float | None = None
        self._left: WattlineError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gpu, self._gpu = self._gpu, None
        if gpu is None:
            return
        try:
            gpu.close()
        except WattlineError as failed:
            self._left = failed
            if kind is not None:  # that error is raised, and this one would never be seen
                self._note(str(failed))

    def check_put_back(self) -> None:
        """Raise what kept the settings from being put back, if anything did. To be asked when all is written.

        Raises:
            DeviceError: they could not be; it says what to do by hand.
        """
        if self._left is not None:
            raise self._left

    def begin(self, gpu: Mapping[str, Any], cases: Iterable[Case]) -> dict[str, Any] | None:
        """Find out whether caps can be set, and say so; a run whose cases have none touches nothing.

        Args:
            gpu: what the worker says of its GPU: ``gpu`` (UUID) and ``reason`` (why its caps are out of reach).
            cases: all of the run.

        Returns:
            What the run's manifest keeps, ``None`` where no case has caps.
        """
        capped = sum(case.capped for case in cases)
        if not capped:
            return None
        remedy = ""
        if gpu["reason"] is not None:
            self._why = Reason(**gpu["reason"])
        else:
            remedy = self._open(str(gpu["gpu"]))
        found = self._gpu.found if self._gpu is not None else None
        which = "1 case with caps is" if capped == 1 else f"{capped} cases with caps are"
        if self._why is None and found is not None:
            limit = "" if found.power_limit_w is None else f"; the power limit was found at {found.power_limit_w:g} W"
            self._note(f"{which} measured under them, and all is put back at the end{limit}")
        elif self._why is not None:
            do = f"; to have them: {remedy}" if remedy else ""
            self._note(f"{which} recorded as unsupported, the others are measured: {self._why.message}{do}")
        kept = None if found is None else {k: v for k, v in asdict(found).items() if k != "sm_clocks_hz"}
        return {"found": kept, "reason": None if self._why is None else asdict(self._why)}

    def _open(self, uuid: str) -> str:
        """Open the GPU's settings; returns what would help where they cannot be changed."""
        from wattline.collectors.energy.caps import Cap, GpuCaps

        gpu = GpuCaps(uuid)
        try:
            gpu.__enter__()
        except WattlineError as error:
            self._why = _reason(error)
            return error.todo
        self._gpu, self._why, self._present, self._state = gpu, gpu.reason, Cap(), gpu.found
        if gpu.mended is not None:
            self._note("an earlier run was killed with all its processes and had left caps; they were taken off first")
        return gpu.remedy

    def hold(self, case: Case) -> tuple[str, Reason] | None:
        """Hold the GPU to what a case asks for, or to what was found.

        Returns:
            ``None`` when it is; else the status and the reason of a case that cannot be measured.
        """
        if self._why is not None:
            return ("unsupported", self._why) if case.capped else None
        if self._gpu is None:
            return None
        from wattline.collectors.energy.caps import Cap

        wanted = Cap(case.power_limit_w, case.clock_hz)
        if wanted == self._present:
            return None
        try:
            if case.capped:
                self._clock_hz = self._gpu.check(wanted).sm_clock_hz
                self._present = None
                self._state = self._gpu.apply(wanted)
            else:
                self._present = self._clock_hz = None
                self._gpu.restore()
                self._state = self._gpu.read()
        except WattlineError as error:
            if not case.capped:
                return "failed", Reason("cap_not_lifted", f"the caps of the case before stay: {_said(error)}")
            # A limit that the driver took and does not report is not held, which is no fault of the kernel's either.
            return "failed" if isinstance(error, DeviceError) else "unsupported", _reason(error)
        self._present = wanted
        time.sleep(SETTLE_S)
        return None

    def stamp(self, record: Record) -> Record:
        """The record with what the driver reports of the caps afterwards, and a flag where that is not what was asked.

        Facts, of a case with caps: ``held_power_limit_w``, the lowest of all limits in force, and ``held_clock_hz``,
        the clock that was locked: the nearest that the GPU has.
        """
        if self._gpu is None or self._state is None or record.measurement is None:
            return record
        measured, before, asked_w = record.measurement, self._state, record.case.power_limit_w
        facts: dict[str, Any] = {"held_clock_hz": self._clock_hz}
        doubt = ""
        try:
            now = self._gpu.read()
        except WattlineError as error:
            doubt = f"the limit could not be read back: {_said(error)}" if record.case.capped else ""
        else:
            was_w, is_w, held_w = before.power_limit_w, now.power_limit_w, now.enforced_power_limit_w
            facts["held_power_limit_w"] = held_w or is_w
            if was_w is not None and (is_w is None or abs(is_w - was_w) > _MOVED_W):
                doubt = f"something else changed the power limit meanwhile, from {was_w:g} W to {is_w} W"
                self._present, self._state = None, now  # the next case sets its own
            elif asked_w is not None and held_w is not None and held_w < asked_w - _MOVED_W:
                doubt = f"{asked_w:g} W were asked for and set, and another limit holds the GPU to {held_w:g} W"
        found = {name: value for name, value in facts.items() if value is not None and record.case.capped}
        flags = (*measured.flags, Flag("cap_not_held", doubt)) if doubt else measured.flags
        return replace(record, measurement=replace(measured, facts={**measured.facts, **found}, flags=flags))


def _said(error: WattlineError) -> str:
    return ": ".join(part for part in (error.what, error.why) if part)


def _reason(error: WattlineError) -> Reason:
    if isinstance(error, UnsupportedError):
        return Reason(error.code, _said(error))
    if isinstance(error, ParamError):
        return Reason("cap_out_of_range", _said(error))
    return Reason("device_error" if isinstance(error, DeviceError) else "cap_not_set", _said(error))
