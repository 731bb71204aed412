"""Cases in turn: the plan's order, or that of a chooser, each asked for when the one before has its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattline.case import Case
from wattline.run import PlannedCase, Run, RunWriter
from wattline.suites.choosing import closed, in_turn
from wattline.suites.observer import Observer


@dataclass(frozen=True)
class Answer:
    cases: tuple[int, ...] = ()
    note: str = ""


class Script:
    """A chooser that answers from a list and remembers what it was asked."""

    target = 0.05

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[list[int]] = []

    def next(self, run: Run, left: Sequence[int]) -> Answer:
        self.asked.append(list(left))
        return self.answers.pop(0)

    def close(self, run: Run, state: str) -> str:
        return f"ended {state}"

    def facts(self) -> Mapping[str, Any]:
        return {"target": self.target, "turns": len(self.asked)}


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def planned(count: int) -> list[PlannedCase]:
    shapes = [{"m": 8 + i, "n": 8, "k": 8, "dtype": "fp32"} for i in range(count)]
    return [PlannedCase(Case("gemm.dense", "torch", shape)) for shape in shapes]


def test_without_a_chooser_the_plan_is_followed(tmp_path: Path) -> None:
    todo = list(enumerate(planned(3)))
    with RunWriter.create(tmp_path / "run", {"device": {"id": "x"}}, planned(3)) as writer:
        assert list(in_turn(todo, writer, None, (), Observer())) == todo
        closed(None, writer, "complete", Observer())
        assert "sampling" not in writer.manifest


def test_a_chooser_is_asked_after_each_batch_until_it_has_enough(tmp_path: Path) -> None:
    plan = planned(6)
    script = Script(Answer((4, 2)), Answer((5,), "one more"), Answer(note="enough"))
    notes = Notes()
    with RunWriter.create(tmp_path / "run", {"device": {"id": "x"}}, plan) as writer:
        # The first is done already, the second refused: it is recorded first, and not offered.
        todo = list(enumerate(plan))[1:]
        order = [i for i, _ in in_turn(todo, writer, script, {plan[1].case.key}, notes)]
        closed(script, writer, "complete", notes)
    assert order == [1, 4, 2, 5]
    assert script.asked == [[2, 3, 4, 5], [3, 5], [3]]
    assert notes.notes == ["one more", "enough", "ended complete"]
    assert Run(tmp_path / "run").manifest["sampling"] == {"target": 0.05, "turns": 3}


def test_it_ends_when_nothing_is_left_and_says_nothing_of_a_run_that_never_began(tmp_path: Path) -> None:
    plan, notes = planned(2), Notes()
    script = Script(Answer((1, 0)))
    with RunWriter.create(tmp_path / "run", {}, plan) as writer:
        assert [i for i, _ in in_turn(list(enumerate(plan)), writer, script, (), notes)] == [1, 0]
        closed(script, writer, "interrupted", notes)
    assert notes.notes == []
