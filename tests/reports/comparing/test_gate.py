"""What makes a comparison fail, and what cannot be judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.errors import ParamError, UnknownNameError, UsageError
from wattline.reports import compare_runs
from wattline.reports.comparing.gate import Gate, check, margin_for, parse_gates, parse_share

Noisy = Callable[..., Path]


def slowed(i: int, case: Case) -> float:
    return {3: 1.5, 20: 1.25}.get(i, 1.0)


def test_the_list_is_read() -> None:
    gates = parse_gates("slower:3%, energy:0.05,missing,failed")
    assert gates == [Gate("slower", 0.03), Gate("energy", 0.05), Gate("missing"), Gate("failed")]
    assert [str(g) for g in gates] == ["slower:3%", "energy:5%", "missing", "failed"]
    assert parse_gates("slower") == [Gate("slower", 0.0)]


@pytest.mark.parametrize("text", ["slowe:3%", "faster:3%", "slower:3%,,speed"])
def test_unknown_gates_are_refused(text: str) -> None:
    with pytest.raises(UnknownNameError):
        parse_gates(text)


@pytest.mark.parametrize("text", ["slower:fast", "slower:-3%", "slower:150%", "missing:3%", "slower:", "slower:nan"])
def test_senseless_thresholds_are_refused(text: str) -> None:
    with pytest.raises(ParamError):
        parse_gates(text)


@pytest.mark.parametrize("text", ["", " , ", "slower:3%,slower:5%"])
def test_none_and_twice_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gates(text)


def test_shares() -> None:
    assert parse_share("2.5%", "it") == pytest.approx(0.025)
    assert parse_share(" 0.5 ", "it") == 0.5


def test_the_margin_never_hides_what_a_gate_asks_for() -> None:
    gates = parse_gates("slower:1%,energy:5%")
    assert margin_for(gates, None, 0.02) == 0.01
    assert margin_for(parse_gates("slower,failed"), None, 0.02) == 0.02
    assert margin_for([], 0.3, 0.02) == 0.3
    with pytest.raises(UsageError, match="above the threshold"):
        margin_for(gates, 0.03, 0.02)


def test_cases_fail_from_their_threshold_on(noisy: Noisy) -> None:
    found = compare_runs(noisy("a", 1), noisy("b", 2, change=slowed))
    (violation,) = check(found, parse_gates("slower:3%"))
    assert [c.key for c in violation.cases] == [list(found.a.cases)[i] for i in (3, 20)]
    assert "2 cases slower" in violation.text
    (violation,) = check(found, parse_gates("slower:40%"))
    assert len(violation.cases) == 1
    assert check(found, parse_gates("slower:70%")) == []
    assert check(compare_runs(noisy("c", 3), noisy("d", 4)), parse_gates("slower:3%,missing,failed")) == []


def test_what_all_cases_share_fails_as_well(noisy: Noisy) -> None:
    each, together = check(compare_runs(noisy("a", 1), noisy("b", 2, level=0.2)), parse_gates("slower:3%"))
    assert len(each.cases) > 50
    assert not together.cases
    assert "all cases together" in together.text
    assert check(compare_runs(noisy("c", 1, level=0.2), noisy("d", 2)), parse_gates("slower:3%")) == []


def test_joules_fail_by_themselves(noisy: Noisy) -> None:
    found = compare_runs(noisy("a", 1, energy=200.0), noisy("b", 2, energy=200.0, change=slowed))
    (violation,) = check(found, parse_gates("energy:5%"))
    assert "more energy" in violation.text


def test_lost_cases_fail(noisy: Noisy, edit_records: Callable[..., None]) -> None:
    a, b = noisy("a", 1, count=12), noisy("b", 2, count=10)
    edit_records(b, lambda e: e.update(status="failed") if e["sequence"] == 17 else None)
    violations = check(compare_runs(a, b), parse_gates("missing,failed"))
    assert [str(v.gate) for v in violations] == ["missing", "failed"]
    assert [len(v.cases) for v in violations] == [2, 1]


class TestWhatCannotBeJudged:
    def test_other_machines(self, noisy: Noisy, other_device: DeviceSpec) -> None:
        found = compare_runs(noisy("a", 1), noisy("b", 2, device=other_device))
        with pytest.raises(UsageError, match="between machines"):
            check(found, parse_gates("slower:3%"))
        assert check(found, parse_gates("missing")) == []

    def test_no_joules(self, noisy: Noisy) -> None:
        with pytest.raises(UsageError, match="cannot be judged"):
            check(compare_runs(noisy("a", 1), noisy("b", 2)), parse_gates("energy:5%"))

    def test_nothing_in_common(self, noisy: Noisy, write_records: Callable[..., Path]) -> None:
        with pytest.raises(UsageError, match="cannot be judged"):
            check(compare_runs(noisy("a", 1), write_records("b", [])), parse_gates("slower:3%"))
