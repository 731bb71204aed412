"""Power limits and clocks as conditions of cases: set before a case, put back when the run ends, however it ends.

The parent process holds them, not the worker: a worker may crash, hang and be replaced, and the cap of the next case
does not depend on how the last one ended. When the parent is killed, the watchdog of
:mod:`wattline.collectors.energy.caps` puts everything back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wattline.case import Case
from wattline.errors import WattlineError
from wattline.reasons import Reason

if TYPE_CHECKING:
    from wattline.collectors.energy.caps import CapState, GpuCaps


class Capping:
    """Holds one device to the caps of the cases, one after the other.

    Nothing is opened before the first case that has a cap.

    Args:
        uuid: of the GPU as NVML writes it; empty where the device is none.
        kind: of the device, for messages.
        note: told once why nothing can be set, and what an earlier run had left behind.
    """

    def __init__(self, uuid: str, kind: str, note: Callable[[str], None]) -> None:
        self._uuid, self._kind, self._note = uuid, kind, note
        self._caps: GpuCaps | None = None
        self._refusal: Reason | None = None
        self._held: tuple[float | None, float | None] = (None, None)
        self._state: CapState | None = None

    def hold(self, case: Case) -> Reason | None:
        """Hold the device to what the case asks for, which may be nothing.

        Returns:
            Why it cannot be held to that; then it is as it was found.
        """
        wanted = (case.power_limit_w, case.clock_hz)
        if wanted == self._held:
            return None
        if self._caps is None and self._refusal is None:
            self._open()
        if self._caps is None:
            return self._refusal if case.capped else None
        from wattline.collectors.energy.caps import Cap

        try:
            self._state = self._caps.apply(Cap(*wanted))
        except WattlineError as error:
            self._held = (None, None)
            with suppress(WattlineError):  # it is tried again when the run ends, and said then
                # What the last case set must not stay for those that ask for nothing.
                self._caps.restore()
            code = getattr(error, "code", "") or "no_cap"
            return Reason(code, str(error)) if case.capped else None
        self._held = wanted
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """What the driver reported after the cap in force was set; empty without one."""
        if self._state is None or self._held == (None, None):
            return {}
        found = {"held_power_limit_w": self._state.enforced_power_limit_w or self._state.power_limit_w}
        return {name: value for name, value in found.items() if value is not None}

    def close(self) -> WattlineError | None:
        """Put everything back; closing twice does no harm.

        Returns:
            Why it could not be, with how to do it by hand: an error for the caller to raise once its run is written.
        """
        caps, self._caps = self._caps, None
        self._held = (None, None)
        if caps is not None:
            try:
                caps.close()
            except WattlineError as error:
                return error
        return None

    def _open(self) -> None:
        if not self._uuid:
            text = f"power limits and clocks can be set on NVIDIA GPUs, and this device is of type {self._kind}"
            self._refuse(Reason("no_caps", text), "")
            return
        from wattline.collectors.energy.caps import GpuCaps

        caps = GpuCaps(self._uuid)
        try:
            caps.__enter__()
        except WattlineError as error:
            self._refuse(Reason(getattr(error, "code", "") or "no_caps", str(error)), error.todo)
            return
        if caps.reason is not None:
            caps.close()
            self._refuse(caps.reason, caps.remedy)
            return
        if caps.mended:
            self._note("an earlier run had left a cap on this GPU; it was put back first")
        self._caps = caps

    def _refuse(self, reason: Reason, remedy: str) -> None:
        self._refusal = reason
        told = f"{reason.message}; cases without a cap are measured as ever"
        self._note(f"{told}; to set caps: {remedy}" if remedy else told)
