"""What a person or a program sees while a run goes on: a progress bar, plain lines, JSON events or nothing.

Progress goes to stderr, so that stdout holds results only; JSON events are results. Nothing here starts a thread:
a bar that redraws itself would take time from the very kernels that are being measured, so it is drawn when the
runner reports something, at most some times a second.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wattline.cli.output import emit_event
from wattline.device import DeviceSpec
from wattline.record import Record
from wattline.run import PlannedCase
from wattline.suites.runner import Observer, Outcome
from wattline.units import format_duration, format_si, format_time

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REDRAW_S = 0.2
"""Shortest time between two drawings of the bar."""
LABEL = 18
"""Characters that the label of a case keeps beside a long figure."""
WIDE = 110
"""Columns from which on the bar itself has more than a token width."""


class Quiet(Observer):
    """Says nothing."""

    def close(self) -> None:
        """Give the terminal back; safe to call at any time."""


def make_observer(*, json: bool, quiet: bool) -> Quiet:
    """The observer for this process: by flags first, then by whether a person reads stderr. Close it at the end."""
    if json:
        return JsonObserver()
    if quiet:
        return Quiet()
    redraws = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")  # Rich draws no bar there
    return BarObserver() if redraws else LineObserver()


def figure(record: Record) -> str:
    """A record's result in a few words: time with its interval and rate, or why there is none."""
    if record.measurement is None or record.status != "ok":
        return record.reason.message if record.reason else ""
    stats = record.measurement.stats
    words = [f"{format_time(stats.median_s)} +-{100 * stats.half_width:.1f}%"]
    if record.work and record.work.total_flops:
        words.append(format_si(record.work.total_flops / stats.median_s, "FLOP/s"))
    if record.efficiency is not None:
        # The ceilings of an unlisted device were probed in a moment and may read low; the run's end raises them.
        above = record.efficiency > 1.05
        words.append("above the probed ceiling" if above else f"{100 * record.efficiency:.0f}% of bound")
    if record.measurement.energy is not None:
        words.append(format_si(record.measurement.energy.energy_j, "J"))
    if record.flags:
        words.append(f"({', '.join(dict.fromkeys(record.flags))})")  # load by others has two causes and one code
    return ", ".join(words)


class LineObserver(Quiet):
    """One plain line per case."""

    def __init__(self) -> None:
        self._done = 0
        self._planned = 0

    def run_started(self, *, path: Path, device: DeviceSpec, planned: int, done: int, budget_s: float | None) -> None:
        """See :class:`Observer`."""
        self._done, self._planned = done, planned
        self._say(_opening(path, device, planned, done, budget_s))

    def note(self, message: str) -> None:
        """See :class:`Observer`."""
        self._say(f"note: {message}")

    def case_ended(self, record: Record) -> None:
        """See :class:`Observer`."""
        self._done += 1
        count = f"{self._done:>{len(str(self._planned))}}/{self._planned}"
        self._say(f"[{count}] {record.status:<11} {record.case.label()}  {figure(record)}".rstrip())

    def _say(self, line: str) -> None:
        typer.echo(line, err=True)


class JsonObserver(Quiet):
    """One JSON object a line on stdout: ``{"event": "case_ended", ...}``."""

    def run_started(self, *, path: Path, device: DeviceSpec, planned: int, done: int, budget_s: float | None) -> None:
        """See :class:`Observer`."""
        emit_event("run_started", run=str(path), device=device.to_dict(), planned=planned, done=done, budget_s=budget_s)

    def note(self, message: str) -> None:
        """See :class:`Observer`."""
        emit_event("note", message=message)

    def case_started(self, index: int, planned: PlannedCase) -> None:
        """See :class:`Observer`."""
        emit_event("case_started", index=index, key=planned.case.key, variant=planned.variant, **_case(planned.case))

    def case_ended(self, record: Record) -> None:
        """See :class:`Observer`."""
        emit_event("case_ended", **summary(record))


def summary(record: Record) -> dict[str, Any]:
    """A record as a flat JSON object, without its samples. Times in seconds, energy in joules."""
    data: dict[str, Any] = {"key": record.case.key, "variant": record.variant, **_case(record.case)}
    data |= {"status": record.status, "device": record.device, "flags": list(record.flags)}
    if record.reason:
        data |= {"reason_code": record.reason.code, "reason": record.reason.message}
    if record.measurement:
        stats = record.measurement.stats
        data |= {"time_s": stats.median_s, "time_lo_s": stats.lo_s, "time_hi_s": stats.hi_s, "samples": stats.n}
        if record.measurement.energy:
            energy = record.measurement.energy
            data |= {"power_w": energy.power_w, "energy_j": energy.energy_j}
    data |= {"bound_s": record.bound_s, "bound_by": record.bound_by, "wall_s": record.wall_s}
    return data


def _case(case: Any) -> dict[str, Any]:
    return dict(case.to_dict())


class BarObserver(Quiet):
    """A progress bar with the time left, the current case and its running figure; troubles as lines above it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._begin = 0.0
        self._drawn = 0.0
        self._done = self._planned = self._before = 0
        self._budget_s: float | None = None
        self._label = ""
        self._bar = 20

    def run_started(self, *, path: Path, device: DeviceSpec, planned: int, done: int, budget_s: float | None) -> None:
        """See :class:`Observer`."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True, highlight=False)
        self._bar = 20 if console.width >= WIDE else 8
        console.print(_opening(path, device, planned, done, budget_s), markup=False)
        self._progress = Progress(
            BarColumn(bar_width=self._bar),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False, style="cyan"),
            TextColumn("{task.description}", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._begin, self._budget_s = time.monotonic(), budget_s
        self._done = self._before = done
        self._planned = planned
        self._task = self._progress.add_task("", total=planned, completed=done, left="")
        self._progress.start()

    def note(self, message: str) -> None:
        """See :class:`Observer`."""
        self._above(f"note: {message}")

    def case_started(self, index: int, planned: PlannedCase) -> None:
        """See :class:`Observer`."""
        self._label = planned.case.label()
        self._draw(self._label, "", force=False)

    def case_progress(self, phase: str, time_s: float | None, precision: float | None) -> None:
        """See :class:`Observer`."""
        running = phase
        if time_s is not None:
            running += f" {format_time(time_s)}"
        if precision is not None and precision < 10:
            running += f" +-{100 * precision:.1f}%"
        self._draw(self._label, running, force=False)

    def case_ended(self, record: Record) -> None:
        """See :class:`Observer`."""
        self._done += 1
        if record.status not in ("ok", "unsupported"):
            self._above(f"{record.status}: {record.case.label()}  {figure(record)}")
        self._draw(record.case.label(), figure(record), force=self._done == self._planned)

    def run_ended(self, outcome: Outcome) -> None:
        """See :class:`Observer`."""
        self.close()

    def close(self) -> None:
        """See :class:`Quiet`: takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def time_left_s(self, now: float) -> float | None:
        """Seconds left, by the mean of the cases so far (their order is random) and the budget; ``None`` at first."""
        ended = self._done - self._before
        elapsed = now - self._begin
        left = None if ended < 1 else elapsed / ended * (self._planned - self._done)
        if self._budget_s is not None:
            rest = max(self._budget_s - elapsed, 0.0)
            left = rest if left is None else min(left, rest)
        return left

    def _above(self, line: str) -> None:
        if self._progress is not None:
            self._progress.console.print(line, markup=False)
        else:
            typer.echo(line, err=True)

    def _draw(self, label: str, running: str, *, force: bool) -> None:
        now = time.monotonic()
        if self._progress is None or self._task is None or (not force and now - self._drawn < REDRAW_S):
            return
        self._drawn = now
        seconds = self.time_left_s(now)
        left = "" if seconds is None else f"{format_duration(seconds)} left"
        # What the bar, the count, the time left and the blanks between them leave over.
        room = self._progress.console.width - self._bar - 2 * len(str(self._planned)) - 1 - len(left) - 4
        self._progress.update(self._task, completed=self._done, description=fit(label, running, room), left=left)
        self._progress.refresh()


def fit(label: str, running: str, room: int) -> str:
    """The label of a case and its running figure in so many characters: of a long label the middle is left out.

    A label begins with what runs and ends with the conditions; the sizes between them are told in full when a case has
    ended badly, and in the run folder.
    """
    room = max(room, 0)
    while len(running) > room - LABEL and ", " in running:  # the time stays longest, then the speed
        running = running.rpartition(", ")[0]
    running = running[:room]
    space = room - len(running) - (2 if running else 0)
    if len(label) > space:
        head = (space - 3 + 1) // 2
        label = label[:head] + "..." + label[len(label) - (space - 3 - head) :] if space > 6 else ""
    return f"{label}  {running}" if label and running else label or running


def _opening(path: Path, device: DeviceSpec, planned: int, done: int, budget_s: float | None) -> str:
    words = f"{planned} {'case' if planned == 1 else 'cases'} on {device.name or device.id} into {path}"
    if done:
        words += f", {done} done before"
    if budget_s is not None:
        words += f", within {format_duration(budget_s)}"
    return words
