"""Who is told how a run goes, and how one ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wattline.device import DeviceSpec
from wattline.record import Record
from wattline.run import PlannedCase


class Observer:
    """Is told what happens. Every method does nothing; subclasses override what they need."""

    def run_started(
        self, *, path: Path, device: DeviceSpec, planned: int, done: int, budget_s: float | None
    ) -> None:
        """The worker is ready. ``done`` cases have records from before."""

    def note(self, message: str) -> None:
        """Something worth a line: what is being prepared, a warning."""

    def case_started(self, index: int, planned: PlannedCase) -> None:
        """Case number ``index`` (from 0, of all planned) begins."""

    def case_progress(self, phase: str, time_s: float | None, precision: float | None) -> None:
        """The case in flight: its phase, seconds per call and relative half-width so far."""

    def case_ended(self, record: Record) -> None:
        """A record has been written."""

    def run_ended(self, outcome: Outcome) -> None:
        """The run has ended, in whatever state."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        path: its folder.
        state: ``"complete"``, ``"out_of_budget"`` or ``"interrupted"``.
        planned: number of planned cases.
        done: number of records.
        by_status: number of records by status.
        wall_s: wall time of measuring, over all sittings.
        kernel_s: seconds of it inside warm-up and timed kernels.
    """

    path: Path
    state: str
    planned: int
    done: int
    by_status: Mapping[str, int]
    wall_s: float
    kernel_s: float

    @property
    def exit_code(self) -> int:
        """0 done, 1 some case failed, 130 interrupted."""
        if self.state == "interrupted":
            return 130
        return 1 if any(self.by_status.get(s) for s in ("failed", "crashed", "timeout", "out_of_memory")) else 0
