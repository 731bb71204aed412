"""Calls that need something done before each of them, outside of what is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wattline.collectors.timers import Call, Timer
from wattline.suites.workload import Kernel


class Prepared:
    """A call and what goes before it.

    Attributes:
        call: what is timed.
        prepare: what is not.
    """

    def __init__(self, call: Call, prepare: Callable[[], None]) -> None:
        self.call = call
        self.prepare = prepare

    def __call__(self) -> Any:
        """Both, one after the other."""
        self.prepare()
        return self.call()


class PreparedTimer(Timer):
    """Times the calls of a batch one by one, with what each needs done before it in between.

    Args:
        timer: the clock.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self.name = timer.name
        self.min_batch_s = timer.min_batch_s
        self.max_batch_calls = timer.max_batch_calls

    @property
    def launch_bound(self) -> bool:
        """See :class:`wattline.collectors.timers.EventTimer`: of the last call."""
        return bool(getattr(self._timer, "launch_bound", False))

    def time(self, calls: Sequence[Call]) -> float:
        """See :meth:`Timer.time`: the seconds of the calls alone."""
        if not calls:
            return self._timer.time(())
        spent = 0.0
        for call in calls:
            if isinstance(call, Prepared):
                call.prepare()
                call = call.call  # noqa: PLW2901 - the rest of it
            spent += self._timer.time((call,))
        return spent

    def sustain(self, take: Callable[[int], Sequence[Call]], count: int, seconds: float) -> tuple[int, float]:
        """See :meth:`Timer.sustain`: preparations leave gaps, so the load is not an uninterrupted one."""
        return self._timer.sustain(take, count, seconds)


def prepared(kernel: Kernel, call: Call | None, timer: Timer) -> tuple[Call, Timer]:
    """A kernel's call as the loop runs it, and the timer that it needs.

    Args:
        kernel: the kernel.
        call: what to time instead of its own call, or ``None``.
        timer: the clock; already a :class:`PreparedTimer` where another kernel needed one.
    """
    chosen = kernel.call if call is None else call
    if kernel.prepare is None:
        return chosen, timer
    return Prepared(chosen, kernel.prepare), timer if isinstance(timer, PreparedTimer) else PreparedTimer(timer)
