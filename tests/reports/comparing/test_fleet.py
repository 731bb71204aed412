"""Machines that differ from their peers: found, named with evidence, and never accused for noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.reports.comparing.reading import Side, read_side
from wattline.reports.several.fleet import Fleet, fleets, holm

Noisy = Callable[..., Path]


def softmax_slow(i: int, case: Case) -> float:
    return 1.15 if case.op == "softmax.rows" else 1.0


def fleet_of(sides: list[Side], **how: str) -> Fleet:
    (found,) = fleets(sides, margin=0.02, confidence=0.95, **how)  # type: ignore[arg-type]
    return found


@pytest.fixture
def machines(noisy: Noisy) -> Callable[..., list[Side]]:
    """Five machines of which some differ: keywords of the noisy run by number."""

    def make(
        different: dict[int, dict[str, object]] | None = None, count: int = 5, seed: int = 0, **how: object
    ) -> list[Side]:
        return [
            read_side(noisy(f"node-{seed}-{i}", 100 * seed + i, **{**how, **(different or {}).get(i, {})}))
            for i in range(count)
        ]

    return make


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_a_slow_machine_is_named_with_its_cases(machines: Callable[..., list[Side]]) -> None:
    found = fleet_of(machines({3: {"level": 0.12}}))
    (outlier,) = found.outliers
    assert (outlier.side, outlier.scope, outlier.cases) == (3, "", 60)
    assert outlier.share == pytest.approx(0.127, abs=0.02)
    assert outlier.peers < 0.02
    assert len(outlier.evidence) == 3
    assert all(e.share > outlier.share for e in outlier.evidence)
    assert found.levels[3] == pytest.approx(outlier.share)


def test_one_operation_of_a_machine_is_named(machines: Callable[..., list[Side]]) -> None:
    (outlier,) = fleet_of(machines({1: {"change": softmax_slow}})).outliers
    assert (outlier.side, outlier.scope) == (1, "softmax.rows fp32")
    assert outlier.share == pytest.approx(0.15, abs=0.03)
    assert all("softmax" in e.label for e in outlier.evidence)


def test_a_fast_machine_stands_out_as_well(machines: Callable[..., list[Side]]) -> None:
    (outlier,) = fleet_of(machines({0: {"level": -0.12}})).outliers
    assert outlier.side == 0
    assert outlier.share < 0


def test_equal_machines_are_not_accused(machines: Callable[..., list[Side]]) -> None:
    accused = [bool(fleet_of(machines(seed=seed, scale=0.02, freedom=4.0)).outliers) for seed in range(1, 21)]
    assert sum(accused) <= 2


def test_where_all_machines_scatter_none_stands_out(machines: Callable[..., list[Side]]) -> None:
    scattered = {i: {"level": level} for i, level in enumerate((-0.1, 0.06, 0.0, 0.11, -0.05))}
    assert fleet_of(machines(scattered)).outliers == []


def test_joules_have_a_fleet_of_their_own(noisy: Noisy) -> None:
    sides = [read_side(noisy(f"n{i}", i, energy=330.0 if i == 2 else 300.0)) for i in range(4)]
    assert [o.side for o in fleet_of(sides, quantity="energy").outliers] == [2]
    assert fleet_of(sides).outliers == []


def test_a_fleet_needs_three_of_a_kind_and_cases(noisy: Noisy, other_device: DeviceSpec) -> None:
    two = [read_side(noisy(f"n{i}", i)) for i in range(2)]
    assert fleets([*two, read_side(noisy("o", 9, device=other_device))], margin=0.02, confidence=0.95) == []
    few = [read_side(noisy(f"f{i}", i, count=5, pairs=0)) for i in range(3)]
    assert "8 are needed" in fleet_of(few).why_not


def test_a_machine_that_measured_little_is_no_outlier(noisy: Noisy, write_records: Callable[..., Path]) -> None:
    sides = [read_side(noisy(f"n{i}", i)) for i in range(3)]
    sides.append(read_side(write_records("none", [])))
    assert fleet_of(sides).outliers == []
