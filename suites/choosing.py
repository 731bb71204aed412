"""Who decides which case is next: the plan's order, or a chooser that has seen what was measured so far.

Choosers learn, and what learns lives with the predictors, which this room knows nothing of: the front door hands one
in that fits :class:`Chooser`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from wattline.run import PlannedCase, Run, RunWriter
from wattline.suites.observer import Observer

Numbered = tuple[int, PlannedCase]


class Turn(Protocol):
    """What a chooser answers."""

    @property
    def cases(self) -> Sequence[int]:
        """Positions in the plan, in the order to measure them; none: enough is known, or there is no more to learn."""
        ...

    @property
    def note(self) -> str:
        """A line for whoever watches; may be empty."""
        ...


class Chooser(Protocol):
    """Chooses cases by what the run holds so far."""

    @property
    def target(self) -> float:
        """The mean relative error that is wanted of predictions."""
        ...

    def next(self, run: Run, left: Sequence[int]) -> Turn:
        """The next cases.

        Args:
            run: with its device and every record so far.
            left: positions in the plan without a record.
        """
        ...

    def close(self, run: Run, state: str) -> str:
        """Judge what is there as the sitting ends.

        Args:
            run: the run.
            state: how it ended, as :class:`wattline.suites.observer.Outcome` names it.

        Returns:
            A line for whoever watches; may be empty.
        """
        ...

    def facts(self) -> Mapping[str, Any]:
        """For the manifest: the target, whether it is reached, and the error after so many rows, in JSON types."""
        ...


def in_turn(
    todo: Sequence[Numbered], writer: RunWriter, chooser: Chooser | None, refused: Collection[str], observer: Observer
) -> Iterator[Numbered]:
    """The cases of a sitting, one at a time.

    Args:
        todo: what has no record yet, in the order of the plan.
        writer: the run; each case has its record there before the next is asked for.
        chooser: ``None``: the plan's order, and all of them.
        refused: keys of cases that are recorded and not run; they come first, whoever chooses.
        observer: is told what the chooser notes.
    """
    if chooser is None:
        yield from todo
        return
    left = dict(todo)
    for index, planned in todo:
        if planned.case.key in refused:
            del left[index]
            yield index, planned
    while left:
        turn = chooser.next(writer, sorted(left))
        writer.update(sampling=dict(chooser.facts()))
        if turn.note:
            observer.note(turn.note)
        if not turn.cases:
            return
        for index in turn.cases:
            yield index, left.pop(index)


def closed(chooser: Chooser | None, writer: RunWriter, state: str, observer: Observer) -> None:
    """Let a chooser judge the end of a sitting, and write down what it says."""
    if chooser is None or not writer.manifest.get("device"):
        return
    note = chooser.close(writer, state)
    if note:
        observer.note(note)
    writer.update(sampling=dict(chooser.facts()))
