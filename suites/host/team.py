"""A team of threads that run one compiled function together, each on processors of its own where asked.

Not numba's pool: its threads cannot be placed, and a process has one pool only. The functions release Python's lock,
so the hand-over (some ten microseconds) is all that Python costs.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence

Task = Callable[[int], None]


class Team:
    """Threads that wait for work.

    Args:
        threads: how many work; the caller is one of them unless ``cpus`` are named.
        cpus: processors that the threads are held to, in turn; empty: the system decides. A caller is never held to
            one: threads that a library starts later would inherit that.
    """

    def __init__(self, threads: int, cpus: Sequence[int] = ()) -> None:
        self.threads = threads
        self._helps = range(0 if cpus else 1, threads)
        self._begin = {i: threading.Semaphore(0) for i in self._helps}
        self._end = {i: threading.Semaphore(0) for i in self._helps}
        self._box: list[Task | None] = [None]
        self._errors: list[BaseException] = []
        for i in self._helps:
            cpu = cpus[i % len(cpus)] if cpus else None
            # Bound to parts of the team, not to itself: a team that is forgotten ends its threads.
            arguments = (i, cpu, self._begin[i], self._end[i], self._box, self._errors)
            threading.Thread(target=_serve, args=arguments, daemon=True).start()
        self._finish = weakref.finalize(self, _dismiss, list(self._begin.values()), self._box)

    def run(self, task: Task) -> None:
        """Call ``task(i)`` for each thread ``i`` and wait for all.

        Raises:
            RuntimeError: one of them raised.
        """
        self._box[0] = task
        for i in self._helps:
            self._begin[i].release()
        if 0 not in self._begin:
            task(0)
        for i in self._helps:
            self._end[i].acquire()
        if self._errors:
            error = self._errors[0]
            self._errors.clear()
            raise RuntimeError(f"a thread of the team failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End the threads."""
        self._finish()


_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


def _serve(  # noqa: PLR0917 - a thread's arguments have no names
    i: int, cpu: int | None, begin: threading.Semaphore, end: threading.Semaphore, box: list[Task | None],
    errors: list[BaseException],
) -> None:  # fmt: skip
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})  # 0: the calling thread
    while True:
        begin.acquire()
        task = box[0]
        if task is None:
            return
        try:
            task(i)
        except _ERRORS as error:
            errors.append(error)
        del task
        end.release()


def _dismiss(begins: Sequence[threading.Semaphore], box: list[Task | None]) -> None:
    box[0] = None
    for begin in begins:
        begin.release()


def shares(count: int, parts: int, multiple: int = 1) -> list[tuple[int, int]]:
    """``count`` elements in ``parts`` consecutive ranges of nearly equal length, each a multiple (but the last)."""
    edges = [min(count, -(-count * i // parts // multiple) * multiple) for i in range(parts)]
    return list(zip(edges, [*edges[1:], count], strict=True))
