"""Who works for a run: one worker process, or a group of ranks that looks like one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wattline.errors import UsageError, storage_error
from wattline.files import LineAppender
from wattline.run import PlannedCase, RunWriter
from wattline.suites.supervisor import WorkerDied, WorkerHandle

if TYPE_CHECKING:
    from wattline.suites.collectives.launch import Launch

RANKS = "ranks"
"""Folder of a run with one file per rank: its iterations, one case a line."""
_LOSSES = 2  # of one case, over all sittings, until it is recorded as crashed


class Staff:
    """Starts the workers of a run, and keeps what only groups of ranks say.

    Args:
        writer: the run.
        launch: how a group is started; ``None``: the run is one of a single device.
    """

    def __init__(self, writer: RunWriter, launch: Launch | None) -> None:
        self._writer = writer
        self._launch = launch
        self._started = False
        self._broken = "a case hung, or its device failed"
        self._files: dict[int, LineAppender] = {}

    def check(self, plan: Mapping[str, Any]) -> None:
        """Whether the run has the ranks that its plan is for.

        Raises:
            UsageError: it has not.
        """
        planned, ranks = int(plan.get("ranks", 0)), self._launch.ranks if self._launch else 0
        if planned != ranks:
            raise UsageError(
                f"this run was planned for {_ranks(planned)}, and is given {_ranks(ranks)}",
                todo=f"start it with {_ranks(planned)}" if planned else "resume it without ranks",
            )

    def starts(self, most: int) -> int:
        """Attempts at starting a worker: one where a launcher has started the other ranks."""
        return most if self._launch is None or self._launch.again else 1

    def start(self, should_stop: Callable[[], bool]) -> WorkerHandle:
        """A new worker.

        Raises:
            DeviceError: it cannot be started, or a group is broken and nobody can start it again.
        """
        log = self._writer.path / "worker.log"
        if self._launch is None:
            return WorkerHandle(log, should_stop)
        from wattline.suites.collectives.launch import GroupHandle, cannot_form_again

        if self._started and not self._launch.again:
            raise cannot_form_again(self._launch, self._broken)
        self._started = True
        return GroupHandle(log, should_stop, self._launch)

    def greeted(self, ready: Mapping[str, Any]) -> None:
        """The first worker is ready: note who the ranks are."""
        if "ranks" in ready:
            self._writer.update(ranks=ready["ranks"])

    def attempts(self, most: int) -> int:
        """Attempts at a case whose worker dies: one where nobody can start the group again."""
        return self.starts(most)

    def given_up(self, planned: PlannedCase, died: WorkerDied) -> bool:
        """What becomes of a case whose group died where it cannot be started again.

        Returns:
            False where it can, and the case is tried again; true where the case is given up and recorded as crashed.

        Raises:
            DeviceError: the run ends here, and measures the case once more when it is resumed.
        """
        if self._launch is None or self._launch.again:
            return False
        from wattline.suites.collectives.launch import cannot_form_again

        self._broken = died.describe()
        lost = dict(self._writer.manifest.get("lost") or {})
        lost[planned.case.key] = lost.get(planned.case.key, 0) + 1
        self._writer.update(lost=lost)
        if lost[planned.case.key] < _LOSSES:
            raise cannot_form_again(self._launch, self._broken)
        return True

    def keep_series(self, rank: int, line: Mapping[str, Any]) -> None:
        """Append one case's iterations of a rank to its file. Only this process writes, so any file system will do.

        Raises:
            StorageError: (or a kind of it) it cannot be written.
        """
        if rank not in self._files:
            folder = self._writer.path / RANKS
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise storage_error(error, "making", folder) from error
            self._files[rank] = LineAppender(folder / f"rank-{rank:04d}.jsonl")
        self._files[rank].append(json.dumps(line, separators=(",", ":"), allow_nan=False))

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _ranks(count: int) -> str:
    return "one device" if not count else "1 rank" if count == 1 else f"{count} ranks"
