"""The parent's handle on a worker process: start it, ask it, watch its silence, end it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wattline.errors import DeviceError, WattlineError
from wattline.suites import protocol

START_DEADLINE_S = 300.0
"""Longest silence while a worker starts: loading torch from a cold network file system takes minutes."""
_TICK_S = 0.25


class WorkerDied(Exception):  # noqa: N818 - an event that the runner handles, not an error of the user's
    """The worker's process ended by itself.

    Attributes:
        status: its exit status; negative: minus the signal that killed it.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status

    def describe(self) -> str:
        """What happened, in words."""
        if self.status >= 0:
            return f"the worker process ended with status {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = "unknown"
        hint = ""
        if -self.status == signal.SIGKILL:
            hint = " (the system's out-of-memory killer, or somebody's kill -9)"
        elif -self.status in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
            hint = " (a fault inside the kernel or a library)"
        return f"the worker process was killed by signal {-self.status} {name}{hint}"


class WorkerHung(Exception):  # noqa: N818
    """The worker said nothing for longer than its deadline and was killed."""


class StopNow(Exception):  # noqa: N818
    """The user asked twice to stop."""


class WorkerHandle:
    """One worker process.

    Args:
        log: file that receives what the worker prints, opened for appending.
        should_stop: asked several times a second while waiting; true ends the wait with :class:`StopNow`.

    Raises:
        DeviceError: the process cannot be started.
    """

    quit_s = 5.0
    """Seconds that it may take to end when asked to."""

    def __init__(self, log: Path, should_stop: Callable[[], bool]) -> None:
        self._log_path = log
        self._should_stop = should_stop
        self._buffer = b""
        try:
            self._log_begin = log.stat().st_size if log.exists() else 0
            with open(log, "ab") as output:
                self._process, self._read = self._open(output)
        except OSError as error:
            raise DeviceError("cannot start a worker process", why=str(error)) from error
        os.set_blocking(self._read, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._read, selectors.EVENT_READ)

    def _open(self, output: BinaryIO) -> tuple[subprocess.Popen[bytes], int]:
        """Start the process; returns it and the descriptor that its answers are read from."""
        read, write = os.pipe()
        try:
            return self._start(write, output), read
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)

    @staticmethod
    def _start(descriptor: int, output: BinaryIO) -> subprocess.Popen[bytes]:
        # Its own session: a terminal's Ctrl-C reaches the parent only, and the whole group can be killed.
        return subprocess.Popen(
            [sys.executable, "-m", "wattline.suites.worker", str(os.getpid()), str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(descriptor,),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, kind: str, **content: Any) -> None:
        """Send a request; a worker that is gone shows when its answer is awaited."""
        stdin = self._process.stdin
        if stdin is None:
            raise DeviceError("the worker has no input")
        with contextlib.suppress(BrokenPipeError):
            stdin.write(protocol.encode(kind, **content))
            stdin.flush()

    def answers(self, silence_s: float) -> Iterator[dict[str, Any]]:
        """The worker's messages as they come.

        Args:
            silence_s: longest wait between two of them.

        Raises:
            WorkerHung: it was silent for too long; it has been killed.
            WorkerDied: its process ended.
            StopNow: the user wants to stop; the worker has been killed.
            WattlineError: it reports that it cannot carry out the request.
        """
        heard = time.monotonic()
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                heard = time.monotonic()
                yield self._unless_failed(protocol.decode(line))
                continue
            if self._should_stop():
                self.kill()
                raise StopNow
            if not self._selector.select(_TICK_S):
                if time.monotonic() - heard > silence_s:
                    self.kill()
                    raise WorkerHung
                continue
            try:
                chunk = os.read(self._read, 1 << 16)
            except ConnectionResetError:  # a socket's way to say that the other end closed with words unread
                chunk = b""
            if not chunk:
                raise WorkerDied(self._reap())
            self._buffer += chunk

    def wait_for(
        self, kinds: tuple[str, ...], silence_s: float, others: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """The first answer of one of these kinds; what comes before goes to ``others``. Raises as :meth:`answers`."""
        for message in self.answers(silence_s):
            if message["kind"] in kinds:
                return message
            if others is not None:
                others(message)
        raise AssertionError("unreachable: answers() only ends by raising")

    def _unless_failed(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["kind"] != protocol.FAILED:
            return message
        from wattline import errors

        kind = getattr(errors, message["error"], WattlineError)
        raise kind(message["what"], why=message["why"], todo=message["todo"])

    def log_tail(self, lines: int = 8) -> str:
        """The last lines that this worker printed."""
        try:
            with open(self._log_path, "rb") as handle:
                handle.seek(self._log_begin)
                text = handle.read()[-20_000:].decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])

    def quit(self) -> None:
        """Ask it to end, and kill it when it does not within a few seconds. One that has ended is left alone."""
        if self._read < 0:
            return
        self.send(protocol.QUIT)
        try:
            self._process.wait(timeout=self.quit_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reap()
        self._close()

    def _reap(self) -> int:
        try:
            return self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            # Uninterruptible sleep (a driver that hangs): it cannot be reaped, and must not hold us up.
            return -signal.SIGKILL

    def _close(self) -> None:
        if self._read >= 0:
            self._selector.close()
            os.close(self._read)
            self._read = -1
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
