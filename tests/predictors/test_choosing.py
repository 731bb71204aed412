"""Cases of a run chosen until a predictor is good enough, on records of a machine whose cost is a formula."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattline.case import Case
from wattline.device import Ceilings, DeviceSpec
from wattline.errors import DataError, ParamError
from wattline.predictors.choosing import CaseChooser
from wattline.record import Check, Measurement, Reason, Record
from wattline.run import PlannedCase, RunWriter
from wattline.stats import summarize

BOX = DeviceSpec(
    id="test-cpu", kind="cpu", sm_count=2, l2_bytes=3e7,
    measured=Ceilings(flops={"fp32": 1e11}, memory_bandwidth=2e10, launch_s=2e-6),
)  # fmt: skip
SIZES = (16, 48, 128, 384, 1024)


def cases() -> list[Case]:
    shapes = [{"m": m, "n": n, "k": k, "dtype": "fp32", "layout": "nn"} for m in SIZES for n in SIZES for k in SIZES]
    return [Case("gemm.dense", "torch", {"batch": 1, **shape}) for shape in shapes]


def measured(case: Case, i: int) -> Record:
    p = case.params
    time = 3e-6 + 2.0 * p["m"] * p["n"] * p["k"] / 7e10
    samples = tuple(time * np.exp(0.01 * np.random.default_rng(i).standard_normal(9)))
    m = Measurement(samples, 1, summarize(samples), "precise", check=Check(1e-7, 1e-5, True, "full"))
    return Record(case, "ok", BOX.id, measurement=m, sequence=i, wall_s=0.2)


def drive(writer: RunWriter, chooser: CaseChooser, most: int = 10**6, broken: Any = ()) -> Iterator[int]:
    """Measure as the runner does; yields the position of each case."""
    plan = writer.plan()
    left = {i for i, each in enumerate(plan) if each.identity not in {r.identity for r in writer.records()}}
    while turn := chooser.next(writer, sorted(left)).cases:
        writer.update(sampling=dict(chooser.facts()))
        for i in turn:
            if not most:
                return
            most -= 1
            left.remove(i)
            failed = Record(plan[i].case, "failed", BOX.id, reason=Reason("error", "made so"), sequence=i)
            writer.append(failed if i in broken else measured(plan[i].case, i))
            yield i
    writer.update(sampling=dict(chooser.facts()))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    planned = [PlannedCase(case) for case in cases()]
    with RunWriter.create(tmp_path / "run", {"device": BOX.to_dict()}, planned) as found:
        yield found


def test_it_stops_at_the_target_with_its_reasons_in_the_manifest(writer: RunWriter) -> None:
    chooser = CaseChooser(0.3)
    order = list(drive(writer, chooser))
    assert len(order) == len(set(order)) < len(writer.plan())
    facts = writer.manifest["sampling"]
    assert (facts["reached"], facts["stopped"], facts["target"]) == (True, "the target is reached", 0.3)
    last = facts["steps"][-1]
    assert (last["of"], last["rows"]) == ("predictor", len(order))
    assert last["error"] <= last["upper"] <= 0.3
    rows = [step["rows"] for step in facts["steps"]]
    assert rows == sorted(set(rows))
    assert chooser.close(writer, "complete") == ""


def test_an_interrupted_run_goes_on_with_what_is_missing(writer: RunWriter) -> None:
    begun = list(drive(writer, CaseChooser(0.0001), most=30))
    steps = writer.manifest["sampling"]["steps"]
    rest = list(drive(writer, CaseChooser(0.0001), most=30))
    assert len({*begun, *rest}) == len(begun) + len(rest) == 60
    assert writer.manifest["sampling"]["steps"][: len(steps)] == steps


def test_equal_seeds_choose_equal_cases(tmp_path: Path) -> None:
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        planned = [PlannedCase(case) for case in cases()]
        with RunWriter.create(tmp_path / name, {"device": BOX.to_dict()}, planned) as found:
            orders.append(list(drive(found, CaseChooser(0.0001, seed=seed), most=40)))
    assert orders[0] == orders[1] != orders[2]


def test_what_failed_is_not_proposed_again_and_all_measured_is_said(writer: RunWriter) -> None:
    chooser = CaseChooser(0.0005)
    order = list(drive(writer, chooser, broken=range(0, 125, 5)))
    assert sorted(order) == list(range(125))
    facts = writer.manifest["sampling"]
    assert not facts["reached"]
    assert facts["stopped"] == "every case that can be learned from is measured"
    assert facts["steps"][-1]["rows"] == 100


def test_the_end_of_a_budget_is_told_with_the_error_so_far(writer: RunWriter) -> None:
    chooser = CaseChooser(0.0005)
    assert list(drive(writer, chooser, most=4))
    note = chooser.close(writer, "out_of_budget")
    assert note.startswith("the budget ended first: 4 rows are too few to tell the error")
    chooser = CaseChooser(0.0005)
    assert list(drive(writer, chooser, most=60))
    note = chooser.close(writer, "out_of_budget")
    assert note.startswith("the budget ended first: mean error")
    assert note.endswith("the target of 0.05% is not reached")
    assert chooser.facts()["steps"][-1]["of"] == "predictor"
    assert CaseChooser(0.1).close(writer, "interrupted") == ""


def test_cases_that_teach_nothing_are_counted_by_cause(tmp_path: Path) -> None:
    odd = Case("gemm.dense", "torch", {"batch": 1, "m": 8, "n": 8, "k": 8, "dtype": "fp64", "layout": "nn"})
    plain = cases()
    capped = Case("gemm.dense", "torch", dict(plain[0].params), power_limit_w=100.0)
    planned = [PlannedCase(plain[0], "a"), PlannedCase(odd), PlannedCase(capped), *map(PlannedCase, plain[1:])]
    with RunWriter.create(tmp_path / "run", {"device": BOX.to_dict()}, planned) as writer:
        chooser = CaseChooser(0.3)
        assert chooser.next(writer, range(len(planned))).cases
        facts = chooser.facts()
    assert facts["candidates"] == 124
    assert sum(facts["without"].values()) == 3
    assert any("fp64" in cause for cause in facts["without"])
    none = RunWriter.create(tmp_path / "none", {"device": BOX.to_dict()}, [PlannedCase(odd)])
    with none as writer, pytest.raises(DataError, match="can be learned from"):
        CaseChooser(0.3).next(writer, [0])


@pytest.mark.parametrize("target", [0.0, -0.1, 1.0, float("nan")])
def test_a_target_outside_its_range_is_refused(target: float) -> None:
    with pytest.raises(ParamError, match="error to reach"):
        CaseChooser(target)
