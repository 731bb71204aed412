"""The best candidate, what cannot be told apart from it, and the trade of time against energy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import DataError, NotFittedError, ParamError, UnknownNameError, UnsupportedError
from wattline.predictors import Estimate, KernelPredictor
from wattline.predictors.planning import Choice, Ranking, best, grid, implementations, pareto
from wattline.predictors.planning.fronts import front_of, nondominated

NAN = float("nan")
SHAPE = {"m": 512, "n": 512, "k": 512, "device": "box"}


def choice(name: str, time: float, energy: float = NAN, spread: float = 0.1) -> Choice:
    figures = {}
    for kind, unit, value in (("time", "s", time), ("energy", "j", energy), ("power", "w", energy / time)):
        figures |= {f"{kind}_{unit}": value, f"{kind}_lo_{unit}": value * (1 - spread),
                    f"{kind}_hi_{unit}": value * (1 + spread)}  # fmt: skip
    estimate = Estimate(**figures, bound_s=0.0, bound_by="nothing", in_domain=True, source="learned", coverage=0.9)
    return Choice({"impl": name}, estimate)


def names(choices: Any) -> list[str]:
    return [each.candidate["impl"] for each in choices]


def test_what_overlaps_the_best_cannot_be_told_apart() -> None:
    """0.9 .. 1.1 against 1.08 .. 1.32 (overlaps) and 1.35 .. 1.65 (does not)."""
    found = Ranking("time", (choice("a", 1.0), choice("b", 1.2), choice("c", 1.5)))
    assert found.best.candidate == {"impl": "a"}
    assert names(found.rivals) == ["b"]
    assert not found.clear
    lines = str(found).splitlines()
    assert "impl=a: 1.00 s [900 ms, 1.10 s]" in lines[0]
    assert "cannot be told apart" in lines[1]
    assert "cannot be told apart" not in lines[2]
    assert Ranking("time", (choice("a", 1.0), choice("c", 1.5))).clear


def test_candidates_are_ranked_by_what_the_predictor_says(fitted: KernelPredictor) -> None:
    tried = grid(dtype=["fp32", "bf16"])
    for goal, figure in (("time", "time_s"), ("energy", "energy_j")):
        found = best(fitted, "gemm.dense", tried, by=goal, **SHAPE)
        values = [getattr(each.estimate, figure) for each in found.choices]
        assert values == sorted(values)
        alone = fitted.predict_one(op="gemm.dense", dtype="bf16", **SHAPE)
        mine = next(each for each in found.choices if each.candidate == {"dtype": "bf16"})
        assert getattr(mine.estimate, figure) == getattr(alone, figure)


def test_without_candidates_the_learned_implementations_are_tried(fitted: KernelPredictor) -> None:
    assert implementations(fitted, "gemm.dense") == [{"impl": "torch"}]
    assert names(best(fitted, "gemm.dense", dtype="fp32", **SHAPE).choices) == ["torch"]


def test_a_format_without_a_rate_is_left_out_with_the_reason(fitted: KernelPredictor) -> None:
    found = best(fitted, "gemm.dense", grid(dtype=["fp64", "bf16"]), **SHAPE)
    assert [dict(each.candidate) for each in found.refused] == [{"dtype": "fp64"}]
    assert "left out" in str(found)
    with pytest.raises(UnsupportedError, match="no candidate"):
        best(fitted, "gemm.dense", grid(dtype=["fp64"]), **SHAPE)


def test_faults_say_what_to_do(fitted: KernelPredictor, table: Any) -> None:
    ask: dict[str, Any] = {"dtype": "fp32", **SHAPE}
    with pytest.raises(UnknownNameError, match="goal 'speed'"):
        best(fitted, "gemm.dense", by="speed", **ask)
    with pytest.raises(ParamError, match="no candidate"):
        best(fitted, "gemm.dense", [], **ask)
    with pytest.raises(ParamError, match="given for all candidates and for one"):
        best(fitted, "gemm.dense", [{"dtype": "bf16"}], **ask)
    with pytest.raises(UnknownNameError):
        best(fitted, "gemm.dens", **ask)
    with pytest.raises(UnknownNameError):
        best(fitted, "gemm.dense", [{"dtype": "fp33"}], **SHAPE)
    with pytest.raises(ParamError, match="no value"):
        grid(block_m=[])
    with pytest.raises(NotFittedError):
        best(KernelPredictor(), "gemm.dense", **ask)
    y = table.y.assign(power_w=NAN)
    without = KernelPredictor({"box": table.spec}).fit(table.X, y, table.groups)
    with pytest.raises(DataError, match="no energy is known"):
        best(without, "gemm.dense", by="energy", **ask)
    with pytest.raises(DataError, match="choose by time"):
        pareto(without, "gemm.dense", **ask)


def test_all_combinations_make_the_grid() -> None:
    assert grid(a=[1, 2], b=["x"]) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


def test_front_by_hand() -> None:
    """b is slower and thirstier than a, by less than the intervals; d by far; c is the thriftiest."""
    found = front_of([choice("a", 1.0, 10.0), choice("b", 1.1, 10.5), choice("c", 2.0, 5.0), choice("d", 3.0, 30.0)])
    assert names(found.front) == ["a", "c"]
    assert names(found.possible) == ["b"]
    assert names(found.beaten) == ["d"]
    assert "impl=b: 1.10 s [990 ms, 1.21 s], 10.5 J [9.45 J, 11.6 J], cannot be told apart" in str(found)


def test_front_of_a_predictor(fitted: KernelPredictor) -> None:
    found = pareto(fitted, "gemm.dense", grid(dtype=["fp32", "bf16"]), **SHAPE)
    assert len(found.front) + len(found.possible) + len(found.beaten) == 2
    assert found.front


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    expected = {i for i, p in enumerate(points) if not any(beats(q, p) for q in points)}
    found = nondominated([(float(a), float(b)) for a, b in points])
    assert set(found) == expected
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


@given(POINTS, st.floats(0.0, 0.5))
def test_every_candidate_has_one_place_and_wider_intervals_beat_fewer(
    points: list[tuple[int, int]], spread: float
) -> None:
    def front(width: float) -> Any:
        return front_of([choice(str(i), 1.0 + a, 1.0 + b, width) for i, (a, b) in enumerate(points)])

    found = front(spread)
    placed = [*names(found.front), *names(found.possible), *names(found.beaten)]
    assert sorted(placed) == sorted(map(str, range(len(points))))
    assert set(names(front(spread + 0.2).beaten)) <= set(names(found.beaten))


def test_choices_are_plain_and_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        choice("a", 1.0).candidate = {}  # type: ignore[misc]
