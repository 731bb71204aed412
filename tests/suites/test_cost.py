"""Cost estimates with a simulated machine: who is skipped, who is not, and how few scouts it takes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from wattline.case import Case
from wattline.params import Value
from wattline.suites.measure.cost import CostModel
from wattline.suites.registry import get


def case(size: int, dtype: str = "fp16") -> Case:
    params = get("gemm.dense").workload.params.parse({"m": size, "n": size, "k": size, "dtype": dtype})
    return Case("gemm.dense", "torch", params)


class Machine:
    """Runs products at a rate, after a launch cost; remembers what it ran."""

    def __init__(self, flops_per_s: float, launch_s: float = 0.0) -> None:
        self.rate = flops_per_s
        self.launch_s = launch_s
        self.ran: list[int] = []
        self.spent = 0.0

    def __call__(self, params: Mapping[str, Value]) -> float:
        self.ran.append(int(params["m"]))
        took = self.launch_s + 2.0 * int(params["m"]) * int(params["n"]) * int(params["k"]) / self.rate
        self.spent += took
        return took


def affordable(model: CostModel, size: int, machine: Machine, limit_s: float = 1.0) -> float | None:
    found = model.affordable(case(size), get("gemm.dense").workload, limit_s, machine)
    return None if found is None else found.call_s


def test_a_thousand_times_too_slow_is_found_out_before_anybody_waits() -> None:
    machine = Machine(1e9)  # half precision on a CPU without it
    found = affordable(CostModel(), 2048, machine)
    assert found == pytest.approx(2 * 2048**3 / 1e9, rel=1e-6)
    assert machine.spent < 0.1


def test_a_quick_machine_costs_one_small_scout() -> None:
    machine = Machine(200e9)
    assert affordable(CostModel(), 2048, machine) is None
    assert machine.ran == [128]


def test_launch_cost_does_not_condemn_large_cases() -> None:
    # 10 us of launch around 128^3: the small scout suggests 21 s for 16384^3, which really takes 11 ms.
    machine = Machine(800e12, launch_s=10e-6)
    assert affordable(CostModel(), 16384, machine) is None
    assert machine.ran == [128, 256, 512]


def test_waiting_for_a_busy_processor_does_not_condemn_a_case() -> None:
    # 22 ms of waiting around 128^3: alone it says 1.4 s for 512^3, which really takes 3 ms.
    machine = Machine(100e9, launch_s=0.022)
    assert affordable(CostModel(), 512, machine) is None
    assert machine.ran == [128, 256]


def test_a_hopeless_machine_is_not_asked_twice() -> None:
    machine = Machine(1e7)  # 0.4 s for 128^3
    assert affordable(CostModel(), 2048, machine) is not None
    assert machine.ran == [128]


def test_what_was_measured_is_not_scouted_again() -> None:
    model, machine = CostModel(), Machine(200e9)
    model.learn(case(1024), 2.0 * 1024**3, 0.0107)
    assert affordable(model, 2048, machine) is None
    assert machine.ran == []


def test_a_small_case_is_its_own_scout() -> None:
    machine = Machine(1e3)
    assert affordable(CostModel(), 64, machine) is None
    assert machine.ran == []


def test_formats_are_kept_apart() -> None:
    model, machine = CostModel(), Machine(1e9)
    model.learn(case(2048, "fp32"), 2.0 * 2048**3, 0.08)
    assert affordable(model, 2048, machine) is not None


def test_the_basis_is_told() -> None:
    model = CostModel()
    model.learn(case(256), 2.0 * 256**3, 0.03)
    estimate = model.estimate(case(512), 2.0 * 512**3)
    assert estimate is not None
    assert estimate.call_s == pytest.approx(0.24)
    assert "m=256 n=256 k=256" in estimate.basis
    assert "0.03 s" in estimate.basis
