"""The group of ranks as the runner's worker: started by torchrun, or joined where a launcher has started us."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from wattline.errors import DeviceError
from wattline.suites import protocol
from wattline.suites.collectives.world import Place
from wattline.suites.supervisor import WorkerDied, WorkerHandle, WorkerHung

MEMBER = "wattline.suites.collectives.member"
_QUIT_S = 20.0  # torchrun waits for all of its ranks, and looks once in a while


class RankLost(WorkerDied):
    """A rank died or hangs, and another told so before the group ended.

    Args:
        what: who.
        why: how it was noticed.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(1)
        self._words = f"{what} ({why})" if why else what

    def describe(self) -> str:
        """What happened, in words."""
        return self._words


@dataclass(frozen=True)
class Launch:
    """How a run gets its ranks.

    Attributes:
        ranks: how many.
        place: where this process stands; ``launched``: the others are there already.
        device: name of the device, for every rank.
        timeout_s: how long ranks wait for each other at the start.
    """

    ranks: int
    place: Place
    device: str = "auto"
    timeout_s: float = 60.0

    @property
    def again(self) -> bool:
        """Whether a broken group can be started anew: not where a launcher has started the other ranks."""
        return not self.place.launched

    def command(self) -> list[str]:
        """What starts the group, or this rank of it."""
        member = ["-m", MEMBER, "--device", self.device, "--timeout", f"{self.timeout_s:g}"]
        if self.place.launched:
            return [sys.executable, *member]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        return [sys.executable, *torchrun, *member]


class GroupHandle(WorkerHandle):
    """The ranks of a run, behind the interface of one worker process.

    Args:
        log: as of :class:`WorkerHandle`.
        should_stop: as of :class:`WorkerHandle`.
        launch: how it is started.
    """

    quit_s = _QUIT_S

    def __init__(self, log: Path, should_stop: Callable[[], bool], launch: Launch) -> None:
        self._launch = launch
        super().__init__(log, should_stop)

    def _open(self, output: BinaryIO) -> tuple[subprocess.Popen[bytes], int]:
        """One socket both ways, as the standard input of rank 0: torchrun passes no other descriptor on."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    self._launch.command(), stdin=theirs.fileno(), stdout=output, stderr=output, start_new_session=True
                )
            except OSError:
                ours.close()
                raise
        return process, ours.detach()

    def send(self, kind: str, **content: Any) -> None:
        """See :meth:`WorkerHandle.send`."""
        data = protocol.encode(kind, **content)
        os.set_blocking(self._read, True)
        try:
            while data:
                data = data[os.write(self._read, data) :]
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            os.set_blocking(self._read, False)

    def _unless_failed(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["kind"] == protocol.LOST:
            self._reap_group()
            if message["hung"]:
                self.kill()
                raise WorkerHung(f"{message['what']} ({message['why']})")
            raise RankLost(message["what"], message["why"])
        return super()._unless_failed(message)

    def _reap_group(self) -> None:
        """Let the other ranks say what they saw: torchrun ends them, and then itself."""
        try:
            self._process.wait(timeout=_QUIT_S)
        except subprocess.TimeoutExpired:
            self.kill()


def cannot_form_again(launch: Launch, why: str) -> DeviceError:
    """The error of a group that is broken where nobody can start its ranks again."""
    name = "torchrun" if launch.place.launcher == "torchrun" else "srun"
    return DeviceError(
        "the group of ranks is broken, and the run ends here", why=why,
        todo=f"finished cases are kept: start {name} again with --resume and the same --out",
    )  # fmt: skip
