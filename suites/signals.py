"""What SIGINT, SIGTERM and SIGHUP mean to a run: the first ends it after the case in flight, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequests:
    """Counts the user's signals.

    Args:
        tell: told once, at the first signal, what the next one will do.

    Attributes:
        count: signals so far.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told = False
        self.count = 0

    @property
    def soon(self) -> bool:
        """The case in flight may end; no other begins."""
        self._announce()
        return self.count >= 1

    def now(self) -> bool:
        """Nothing is waited for. Asked several times a second while a case runs."""
        self._announce()
        return self.count >= 2

    def _announce(self) -> None:
        # Not from the handler: it may interrupt a write to the same stream, which Python refuses to enter again.
        if self.count and not self._told:
            self._told = True
            self._tell("stopping after the case in flight; once more to stop at once")

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.count += 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over SIGINT, SIGTERM and SIGHUP; outside the main thread signals stay with their owner."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A signal that is ignored stays so: nohup means that a lost terminal shall not end the run.
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        ]
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
