"""Runs compared: verdicts on planted changes, on nothing at all, and on what is no change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.errors import ParamError, SchemaError, UsageError
from wattline.record import Flag, Reason, Record
from wattline.reports import compare_runs
from wattline.reports.comparing.comparison import VERDICTS, Comparison, group_by
from wattline.reports.comparing.judging import LESS, MORE, SAME
from wattline.run import MANIFEST, RECORDS

Noisy = Callable[..., Path]
Write = Callable[..., Path]
SLOWED = (10, 21, 33)


def slowed(i: int, case: Case) -> float:
    return 1.05 if i in SLOWED else 1.0


def repeated(noisy: Noisy, name: str, seed: int, runs: int = 4, **how: Any) -> Path:
    """Several runs of one thing; returns their folder."""
    made = [noisy(f"{name}/{r}", seed + r, **how) for r in range(runs)]
    return made[0].parent


def verdicts(comparison: Comparison) -> list[str]:
    return [result.verdict for result in comparison.cases]


def test_planted_changes_are_told_and_nothing_else(noisy: Noisy) -> None:
    found = compare_runs(repeated(noisy, "base", 1), repeated(noisy, "new", 11, change=slowed))
    keys = list(found.a.cases)
    assert {r.key for r in found.of("slower")} == {keys[i] for i in SLOWED}
    assert found.counts["same"] >= 35
    assert found.time.noise.source == "repeated runs"
    assert found.time.noise.scale == pytest.approx(0.008, rel=0.25)
    for result in found.of("slower"):
        assert result.time is not None
        low, high = result.time.bounds
        assert low < result.time.share < high
        assert result.time.share == pytest.approx(0.05, abs=0.025)


@pytest.mark.parametrize("scale", [0.002, 0.008, 0.05])
def test_a_run_against_itself_is_never_slower(noisy: Noisy, scale: float) -> None:
    run = noisy("one", 1, scale=scale, energy=200.0)
    found = compare_runs(run, run)
    assert set(verdicts(found)) <= {"same", "cannot tell"}
    assert set(found.energy_counts) <= {"same", "cannot tell"}
    assert any("same run" in problem for problem in found.problems)
    assert found.differences == []


def test_turning_the_sides_turns_every_verdict(noisy: Noisy) -> None:
    a, b = noisy("a", 1), noisy("b", 2, change=lambda i, c: {4: 1.3, 30: 0.7}.get(i, 1.0), level=0.01)
    there, back = compare_runs(a, b), compare_runs(b, a)
    turned = {"slower": "faster", "faster": "slower"}
    assert [turned.get(v, v) for v in verdicts(there)] == verdicts(back)
    assert {"slower", "faster"} <= set(verdicts(there))
    assert there.time.shift.value == pytest.approx(-back.time.shift.value)


@pytest.mark.parametrize("factor", [1e-6, 1e3])
def test_the_unit_of_time_says_nothing(
    noisy: Noisy, edit_records: Callable[..., None], factor: float
) -> None:
    a, b = noisy("a", 1), noisy("b", 2, change=slowed)
    before = verdicts(compare_runs(a, b))

    def scaled(entry: dict[str, Any]) -> None:
        stats = entry["measurement"]["stats"]
        for name in stats:
            stats[name] *= 1 if name == "n" else factor

    for run in (a, b):
        edit_records(run, scaled)
    assert verdicts(compare_runs(a, b)) == before


def test_false_positives_stay_rare_where_nothing_differs(noisy: Noisy) -> None:
    """Forty comparisons of sixty cases with heavy tails: cases called different, and comparisons with any such case."""
    cases = wrong = spoiled = 0
    for seed in range(40):
        a = noisy(f"a{seed}", 1000 + seed, freedom=3.0, scale=0.02, level=0.01)
        b = noisy(f"b{seed}", 2000 + seed, freedom=3.0, scale=0.02, level=-0.01)
        found = compare_runs(a, b)
        different = len(found.of("slower")) + len(found.of("faster"))
        cases, wrong, spoiled = cases + found.compared, wrong + different, spoiled + bool(different)
    assert cases == 2400
    assert wrong / cases < 0.01
    assert spoiled / 40 <= 0.1
    assert wrong < 20


def test_pairs_tell_of_the_noise_where_intervals_do_not(noisy: Noisy) -> None:
    found = compare_runs(noisy("a", 1, pairs=30, scale=0.03), noisy("b", 2, pairs=30, scale=0.03))
    assert found.time.aa_pairs == 60
    assert found.time.aa_apart > 40, "the intervals within a measurement hold a tenth of the noise"
    assert found.time.aa_told <= 8


class TestShift:
    def test_a_machine_in_another_state_makes_no_case_slower(self, noisy: Noisy) -> None:
        found = compare_runs(noisy("a", 1), noisy("b", 2, level=0.015))
        assert found.time.shift.value == pytest.approx(0.015, abs=0.006)
        assert not found.of("slower")
        assert not found.time.shift.beyond

    def test_a_change_of_everything_is_told_apart_from_noise(self, noisy: Noisy) -> None:
        found = compare_runs(noisy("a", 1), noisy("b", 2, level=0.15))
        assert (found.time.shift.word, found.time.shift.beyond) == (MORE, True)
        assert not found.time.shift.removed
        assert len(found.of("slower")) > 50, "as measured"

    def test_repeats_tell_a_small_change_of_everything(self, noisy: Noisy) -> None:
        a = repeated(noisy, "a", 1)
        b = repeated(noisy, "b", 11, level=0.03)
        assert compare_runs(a, b).time.shift.word == MORE
        assert compare_runs(b, a).time.shift.word == LESS
        assert compare_runs(a, repeated(noisy, "c", 21)).time.shift.word == SAME

    def test_repeats_whose_levels_scatter_hide_it(self, noisy: Noisy) -> None:
        for r, level in enumerate((0.0, 0.05, -0.04)):
            noisy(f"a/{r}", r, level=level)
            noisy(f"b/{r}", 10 + r, level=level + 0.02)
        found = compare_runs(*(noisy("a/3", 3).parent, noisy("b/3", 13, level=0.02).parent))
        assert found.time.shift.word == "cannot tell"

    def test_where_most_cases_changed_the_rest_is_not_called_faster(self, noisy: Noisy) -> None:
        found = compare_runs(
            repeated(noisy, "a", 1), repeated(noisy, "b", 11, change=lambda i, c: 1.2 if i % 3 else 1.0)
        )
        assert found.time.shift.beyond
        assert {i % 3 for i, r in enumerate(found.cases) if r.verdict == "slower"} == {1, 2}
        assert len(found.of("slower")) == 40
        assert not found.of("faster")

    def test_few_cases_have_none(self, noisy: Noisy) -> None:
        found = compare_runs(noisy("a", 1, count=6), noisy("b", 2, count=6, level=0.4))
        assert not found.time.shift.removed
        assert "fewer than 8" in found.time.shift.why_not
        assert len(found.of("slower")) == 6


class TestEnergy:
    def test_joules_have_verdicts_of_their_own(self, noisy: Noisy, edit_records: Callable[..., None]) -> None:
        a, b = repeated(noisy, "a", 1, energy=300.0), repeated(noisy, "b", 11, energy=300.0)

        def dearer(entry: dict[str, Any]) -> None:
            if entry["case"]["op"] == "softmax.rows":
                for name in ("energy_j", "energy_lo_j", "energy_hi_j"):
                    entry["measurement"]["energy"][name] *= 1.1

        for run in b.iterdir():
            edit_records(run, dearer)
        found = compare_runs(a, b)
        assert {r.case.op for r in found.of_energy(MORE)} == {"softmax.rows"}
        assert not found.of("slower")
        (group,) = (g for g in group_by(found, "energy") if g.name.startswith("softmax"))
        assert group.verdict is not None
        assert group.verdict.word == MORE

    def test_the_gain_of_one_sensor_cancels(self, noisy: Noisy) -> None:
        found = compare_runs(noisy("a", 1, energy=300.0), noisy("b", 2, energy=300.0))
        assert found.energy is not None
        errors = [change.error for change in found.energy.changes.values()]
        assert max(errors) < 0.03, "the sensor's 5 % belong to both sides"

    def test_between_machines_it_does_not(self, noisy: Noisy, other_device: DeviceSpec) -> None:
        found = compare_runs(noisy("a", 1, energy=300.0), noisy("b", 2, energy=300.0, device=other_device))
        assert found.energy is not None
        assert min(change.error for change in found.energy.changes.values()) > 0.035

    def test_other_sensors_are_not_compared(self, noisy: Noisy, edit_records: Callable[..., None]) -> None:
        a, b = noisy("a", 1, energy=300.0), noisy("b", 2, energy=300.0)
        edit_records(b, lambda entry: entry["measurement"]["energy"].update(scope="module"))
        found = compare_runs(a, b)
        assert found.energy is None
        assert "another sensor" in found.cases[0].energy_why

    def test_no_joules_no_verdict(self, noisy: Noisy) -> None:
        found = compare_runs(noisy("a", 1), noisy("b", 2))
        assert found.energy is None
        assert found.energy_counts == {}


class TestWhatIsNoChange:
    def both(self, write: Write, case: Case, make: Callable[..., Record], **how: Any) -> tuple[Record, Record]:
        return make(case, 1e-3), make(case, 1e-3, **how)

    def test_each_kind_has_its_verdict(
        self, write_records: Write, make_cases: Callable[[int], list[Case]], simple_record: Callable[..., Record]
    ) -> None:
        cases = make_cases(6)
        good = [simple_record(case, 1e-3) for case in cases]
        bad = Reason("kernel_error", "it fell over")

        def failed(case: Case) -> Record:
            return Record(case, "failed", "example-gpu", bad)

        a = write_records("a", [good[0], good[1], failed(cases[2]), failed(cases[3]), good[5]])
        assert good[5].measurement is not None
        spoiled = replace(good[5].measurement, flags=(Flag("above_bound", "too fast"),))
        b = write_records("b", [
            good[0], failed(cases[1]), good[2], failed(cases[3]), good[4], replace(good[5], measurement=spoiled)
        ])  # fmt: skip
        found = {r.key: r for r in compare_runs(a, b).cases}
        words = [found[case.key].verdict for case in cases]
        assert words == ["same", "broken", "fixed", "no figure", "new", "broken"] or words[0] == "cannot tell"
        assert words[1:] == ["broken", "fixed", "no figure", "new", "broken"]
        assert found[cases[1].key].why == "failed: it fell over"
        assert found[cases[5].key].why == "above bound"
        back = {r.key: r.verdict for r in compare_runs(b, a).cases}
        assert [back[case.key] for case in cases[1:]] == ["fixed", "broken", "no figure", "missing", "fixed"]

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda e: e["measurement"].update(timer="perf_counter_ns"), "another clock"),
            (lambda e: e["work"]["flops"].update({n: 2 * v for n, v in e["work"]["flops"].items()}), "other work"),
            (lambda e: e["measurement"]["stats"].update(n=2), "fewer than three samples"),
        ],
    )
    def test_other_things_are_not_comparable(
        self, noisy: Noisy, edit_records: Callable[..., None], change: Callable[[dict[str, Any]], None], why: str
    ) -> None:
        a, b = noisy("a", 1, count=3, pairs=0), noisy("b", 2, count=3, pairs=0)
        edit_records(b, change)
        found = compare_runs(a, b)
        assert verdicts(found) == ["not comparable"] * 3
        assert all(why in result.why for result in found.cases)

    def test_another_precision_of_products_spoils_fp32_alone(self, noisy: Noisy) -> None:
        facts = {"torch": {"float32_matmul_precision": "high"}}
        found = compare_runs(noisy("a", 1, count=12), noisy("b", 2, count=12, environment=facts))
        spoiled = {r.case.dtype for r in found.of("not comparable")}
        assert spoiled == {"fp32"}
        assert found.compared == 5

    def test_a_run_that_ended_early_says_so(self, noisy: Noisy) -> None:
        found = compare_runs(noisy("a", 1, count=12), noisy("b", 2, count=10, state="out_of_budget"))
        assert [r.why for r in found.of("missing")] == ["B ended before the end of its plan"] * 2
        assert any("out of budget" in problem for problem in found.problems)

    def test_several_runs_that_ended_early_share_a_sentence(self, noisy: Noisy) -> None:
        for i in range(3):
            side = noisy(f"base/{i}", i, state="out_of_budget" if i else "complete").parent
        found = compare_runs(side, noisy("new", 9)).problems
        early = [problem for problem in found if "come to the end" in problem]
        assert early == ["A: the runs 1 and 2 did not come to the end of their plans (out of budget)"]

    def test_every_verdict_is_explained(self) -> None:
        assert all(VERDICTS.values())


class TestConditions:
    def test_what_differs_is_weighed(self, noisy: Noisy) -> None:
        facts = {"libraries": {"torch": "2.13.0"}, "torch": {"threads": 8}, "hostname": "lab-2", "load": {"one": 9}}
        found = compare_runs(noisy("a", 1), noisy("b", 2, environment=facts))
        weights = {d.name: d.weight for d in found.differences}
        assert weights["libraries.torch"] == "note"
        assert weights["torch.threads"] == "caution"
        assert weights["hostname"] == "note"
        assert "load.one" not in weights
        assert "taken_at" not in weights
        assert found.differences[0].weight == "caution"

    def test_other_machines_are_judged_as_measured(self, noisy: Noisy, other_device: DeviceSpec) -> None:
        found = compare_runs(noisy("a", 1), noisy("b", 2, device=other_device, speed=1.5))
        assert not found.same_machine
        assert not found.time.shift.removed
        assert found.counts == {"faster": 60}
        (whole,) = group_by(found, "time", "all")
        assert whole.ratio == pytest.approx(1 / 1.5, rel=0.02)

    def test_runs_of_two_devices_are_not_one_side(self, noisy: Noisy, other_device: DeviceSpec) -> None:
        noisy("a/1", 1)
        with pytest.raises(UsageError, match="different devices"):
            compare_runs(noisy("a/2", 2, device=other_device).parent, noisy("b", 3))


class TestGroups:
    def test_an_operation_is_told_where_its_cases_are_not(self, noisy: Noisy) -> None:
        how = {"scale": 0.02, "count": 240}
        found = compare_runs(noisy("a", 1, **how), noisy("b", 2, **how, change=lambda i, c: 1 + 0.06 * (i % 12 == 11)))
        assert not found.of("slower")
        (group,) = (g for g in found.groups if g.name == "softmax.rows fp32")
        assert group.verdict is not None
        assert group.verdict.word == MORE

    def test_the_ratio_is_the_geometric_mean(
        self, write_records: Write, make_cases: Callable[[int], list[Case]], simple_record: Callable[..., Record]
    ) -> None:
        cases = make_cases(3)[::2]
        a = write_records("a", [simple_record(case, 1e-3) for case in cases])
        b = write_records("b", [simple_record(case, 1e-3 * f) for case, f in zip(cases, (2, 8), strict=True)])
        (group,) = compare_runs(a, b).groups
        assert (group.name, group.count) == ("gemm.dense fp32", 2)
        assert group.ratio == pytest.approx(4)
        assert group.verdict is None


    def test_what_all_cases_share_averages_out_over_none(self, noisy: Noisy, other_device: DeviceSpec) -> None:
        a, b = noisy("a", 1, energy=300.0), noisy("b", 2, energy=315.0, device=other_device)
        (whole,) = group_by(compare_runs(a, b), "energy", "all")
        assert whole.verdict is not None
        assert whole.verdict.word == "cannot tell", "5 % more lie within the gains of two sensors"
        assert whole.verdict.hi - whole.verdict.lo > 0.1


class TestReading:
    def test_conditions_keep_cases(self, noisy: Noisy) -> None:
        a, b = noisy("a", 1), noisy("b", 2)
        assert compare_runs(a, b, only=["m <= 640", "dtype == 'bf16'"]).compared == 5
        assert compare_runs(a, b, only=["op == 'softmax.rows'"]).compared == 5
        with pytest.raises(UsageError, match="no case has 'heads'"):
            compare_runs(a, b, only=["heads > 2"])

    @pytest.mark.parametrize("how", [{"margin": 0.0}, {"margin": 1.5}, {"confidence": 1.0}, {"confidence": 0.3}])
    def test_senseless_figures_are_refused(self, noisy: Noisy, how: dict[str, float]) -> None:
        with pytest.raises(ParamError):
            compare_runs(noisy("a", 1), noisy("b", 2), **how)

    def test_a_later_record_of_a_case_counts(self, noisy: Noisy) -> None:
        a, b = noisy("a", 1, pairs=0), noisy("b", 2, pairs=0)
        lines = (b / RECORDS).read_text(encoding="utf-8").splitlines()
        spoiled = json.loads(lines[0])
        spoiled["status"] = "failed"
        (b / RECORDS).write_text("\n".join([json.dumps(spoiled), *lines]) + "\n", encoding="utf-8")
        assert compare_runs(a, b).compared == 60

    def test_what_is_no_run_is_refused(self, noisy: Noisy, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for wrong in ("empty", "absent"):
            with pytest.raises(SchemaError, match="not a run folder"):
                compare_runs(noisy(f"a-{wrong}", 1), tmp_path / wrong)

    def test_an_empty_run_compares_to_nothing(self, noisy: Noisy, write_records: Write) -> None:
        found = compare_runs(noisy("a", 1), write_records("b", []))
        assert found.counts == {"missing": 60}
        assert any("holds no records" in problem for problem in found.problems)
        assert compare_runs(write_records("c", []), write_records("d", [])).cases == []

    def test_a_run_of_failures_is_broken(
        self, noisy: Noisy, write_records: Write, make_cases: Callable[[int], list[Case]]
    ) -> None:
        records = [Record(c, "crashed", "example-gpu", Reason("died", "signal 11")) for c in make_cases(60)]
        found = compare_runs(noisy("a", 1), write_records("b", records))
        assert found.counts == {"broken": 60}
        assert found.cases[0].why == "crashed: signal 11"

    def test_a_torn_last_line_is_left_out(self, noisy: Noisy) -> None:
        a, b = noisy("a", 1, pairs=0), noisy("b", 2, pairs=0, state="running")
        with (b / RECORDS).open("a", encoding="utf-8") as out:
            out.write('{"schema":1,"case":{"op":"gemm.dense"},"measurement":{"samples_s":[1e-3,')
        found = compare_runs(a, b)
        assert found.compared == 60
        assert any("torn" in problem for problem in found.problems)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda e: e.update(schema=99), "schema 99"),
            (lambda e: e.pop("case"), "damaged"),
            (lambda e: e["measurement"]["stats"].update(lo_s=-1.0), "no interval"),
            (lambda e: e["measurement"]["stats"].update(median_s="fast"), "damaged"),
            (lambda e: e["measurement"].pop("stats"), "damaged"),
            (lambda e: e.update(status=3), "damaged"),
        ],
    )
    def test_damage_is_an_error_that_names_its_line(
        self, noisy: Noisy, edit_records: Callable[..., None], damage: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        a, b = noisy("a", 1, count=3, pairs=0), noisy("b", 2, count=3, pairs=0)
        edit_records(b, lambda entry: damage(entry) if entry["sequence"] == 1 else None)
        with pytest.raises(SchemaError) as caught:
            compare_runs(a, b)
        assert "line 2" in str(caught.value)
        assert message in str(caught.value)

    def test_a_manifest_with_next_to_nothing_does(self, noisy: Noisy) -> None:
        a, b = noisy("a", 1), noisy("b", 2)
        (b / MANIFEST).write_text('{"schema": 1}', encoding="utf-8")
        found = compare_runs(a, b)
        assert found.compared == 60
        assert found.same_machine, "a side that names no device is taken to be of the same"

    def test_flags_are_told_beside_the_figure(self, noisy: Noisy, edit_records: Callable[..., None]) -> None:
        a, b = noisy("a", 1), noisy("b", 2)
        edit_records(b, lambda e: e["measurement"].update(flags=[{"code": "noisy", "message": "wide"}]))
        assert compare_runs(a, b).cases[0].notes == ("noisy in B",)

    def test_samples_are_not_needed(self, noisy: Noisy, edit_records: Callable[..., None]) -> None:
        a, b = noisy("a", 1), noisy("b", 2)
        before = compare_runs(a, b).time.changes
        edit_records(b, lambda e: e["measurement"].update(samples_s=[math.pi]))
        assert compare_runs(a, b).time.changes == before
