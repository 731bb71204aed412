"""Plans: what is asked becomes cases, in order, within memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import wattline.suites.plan as plan_module
from wattline.case import REGIMES
from wattline.errors import ParamError, PlanError, RangeError, UnknownNameError, UsageError
from wattline.suites.capping import SETTLE_S
from wattline.suites.cases import from_preset
from wattline.suites.plan import UNSUPPORTED_S, Plan, make_plan
from wattline.suites.workload import Machine

CPU = Machine(kind="cpu", torch_version=(2, 13), memory_bytes=8 * 10**9, cache_bytes=32 * 2**20)
GPU = Machine(kind="cuda", sm=90, torch_version=(2, 13), memory_bytes=141 * 10**9, cache_bytes=50 * 2**20)
SIZE = {"m": "64,128", "n": "32", "k": "16:64:x2"}
dense_plan = partial(make_plan, names=("gemm.dense",))


def _column(plan: Plan, name: str) -> Counter[object]:
    return Counter(p.case.params[name] for p in plan.cases)


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", ["smoke", "quick", "standard", "full", "llm"])
def test_built_in_presets_make_plans_that_fit(name: str, machine: Machine) -> None:
    plan = make_plan(name, machine=machine)
    assert not plan.refused
    assert plan.budget_s is not None
    assert 0 < plan.estimated_s <= plan.budget_s
    assert 0 < plan.peak_bytes < 0.9 * machine.memory_bytes
    assert len({p.identity for p in plan.cases}) == len(plan.cases)
    variants = Counter(p.variant for p in plan.cases)
    assert variants["a"] == variants["b"] > 0


def test_smoke_touches_every_regime_three_formats_and_something_unsupported() -> None:
    from wattline.suites.registry import get_implementation

    for machine in (CPU, GPU):
        plan = make_plan("smoke", names=["gemm.dense"], machine=machine)
        assert {p.case.regime for p in plan.cases} == set(REGIMES)
        assert {"fp32", "bf16", "int8"} <= {p.case.dtype for p in plan.cases}
        torch_impl = get_implementation("gemm.dense", "torch")
        assert any(torch_impl.unmet(p.case.params, machine) for p in plan.cases)


def test_standard_on_a_cpu_holds_what_the_report_and_the_predictor_need() -> None:
    plan = make_plan("standard", names=["gemm.dense"], machine=CPU)
    cases = [p.case for p in plan.cases if p.variant != "b"]
    cold32 = [c.params for c in cases if c.regime == "cold" and c.dtype == "fp32" and c.data == "uniform"]
    line = [p for p in cold32 if p["m"] == 256 and p["k"] == 256]
    grid = [p for p in cold32 if p["k"] == 1024 and p["m"] <= 1024 and p["n"] <= 1024]
    assert len(line) >= 40
    assert {(p["m"], p["n"]) for p in grid} >= {(m, n) for m in (64, 256, 1024) for n in (64, 256, 1024)}
    assert {c.dtype for c in cases} >= {"fp32", "bf16", "fp16", "fp64", "int8", "fp8_e4m3", "fp8_e5m2", "tf32"}
    assert {c.data for c in cases} == {"uniform", "normal", "zeros", "integers", "sparse"}
    assert {c.params["layout"] for c in cases} == {"nn", "nt", "tn", "tt"}
    assert sum(p.variant == "a" for p in plan.cases) == 8


def test_everything_given_is_exactly_the_product() -> None:
    plan = dense_plan(set_=SIZE, dtypes=["fp32", "bf16"], regimes=["hot", "cold"], machine=CPU)
    assert len(plan.cases) == 2 * 1 * 3 * 2 * 2
    assert not any(p.variant for p in plan.cases)
    assert plan.budget_s is None
    assert _column(plan, "k") == {16: 8, 32: 8, 64: 8}
    default = make_plan(names=["gemm"], set_=SIZE, machine=CPU)
    assert {(p.case.dtype, p.case.regime, p.case.data) for p in default.cases} == {("fp32", "cold", "uniform")}
    assert len(dense_plan(set_=SIZE, machine=CPU).cases) == 6
    chosen = dense_plan(set_={**SIZE, "dtype": "int8", "regime": "hot,eager", "data": "zeros"}, aa=2, machine=CPU)
    assert len(chosen.cases) == 12 + 2
    assert {(p.case.dtype, p.case.data) for p in chosen.cases} == {("int8", "zeros")}


def test_a_part_given_replaces_that_of_the_preset() -> None:
    whole = dense_plan("smoke", aa=0, machine=CPU)
    changed = dense_plan("smoke", aa=0, set_={"m": "33"}, machine=CPU)
    assert set(_column(changed, "m")) == {33}
    assert 0 < len(changed.cases) <= len(whole.cases)
    two = dense_plan("smoke", aa=0, set_={"m": "33,34"}, machine=CPU)
    assert len(two.cases) == 2 * len(changed.cases)
    hot = dense_plan("smoke", aa=0, set_={"regime": "hot"}, machine=CPU)
    assert {p.case.regime for p in hot.cases} == {"hot"}


def test_names_narrow_a_preset() -> None:
    plan = make_plan("standard", names=["gemm"], regimes=["hot"], dtypes=["bf16"], machine=CPU)
    assert {(p.case.regime, p.case.dtype) for p in plan.cases} == {("hot", "bf16")}
    zeros = make_plan("standard", fills=["zeros"], impls=["torch"], machine=CPU)
    assert {p.case.data for p in zeros.cases} == {"zeros"}


def test_conditions_filter() -> None:
    plan = make_plan("standard", only=["m * n * k <= 2**24", "dtype != 'fp32' or regime == 'hot'"], machine=CPU)
    for p in plan.cases:
        v = p.case.params
        assert v["m"] * v["n"] * v["k"] <= 2**24
        assert v["dtype"] != "fp32" or p.case.regime == "hot"
    assert len(make_plan("smoke", only=["op == 'gemm.dense' and impl == 'torch'"], machine=CPU).cases) > 10


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"preset": "standart"}, UnknownNameError, "standard"),
        ({"names": ["gemm.dens"]}, UnknownNameError, "gemm.dense"),
        ({"regimes": ["cool"]}, UnknownNameError, "cold"),
        ({"fills": ["zeroes"]}, UnknownNameError, "zeros"),
        ({"dtypes": ["fp31"]}, UnknownNameError, "fp32"),
        ({"impls": ["torhc"]}, UnknownNameError, "torch"),
        ({"set_": {"mm": "3"}}, UnknownNameError, "near it: m"),
        ({"set_": {"layout": "nx"}}, UnknownNameError, "layout"),
        ({"set_": {"regime": "cool"}}, UnknownNameError, "cold"),
        ({"set_": {**SIZE, "m": "0"}}, ParamError, "from 1"),
        ({"set_": {**SIZE, "m": "-4"}}, ParamError, "from 1"),
        ({"set_": {**SIZE, "m": "2P"}}, ParamError, "from 1"),
        ({"set_": {**SIZE, "m": "1.5"}}, ParamError, "whole"),
        ({"set_": {**SIZE, "m": "1:8:x1"}}, RangeError, "never ends"),
        ({"set_": {**SIZE, "m": "1:90000:+1", "n": "1:9000:+1"}}, PlanError, "combinations"),
        ({"set_": {**SIZE, "out_dtype": "fp32"}}, ParamError, "out_dtype"),
        ({"only": ["q > 1"]}, UnknownNameError, "condition"),
        ({"only": ["m >"]}, UsageError, "read"),
        ({"only": ["m > 10**9"]}, UsageError, "nothing is left"),
        ({"names": ["gemm"], "preset": "smoke", "dtypes": ["fp64"]}, UsageError, "fp64"),
        ({"measure": {"time_limit": 1}}, UnknownNameError, "time_limit_s"),
        ({"measure": {"time_limit_s": -1}}, ParamError, "above zero"),
        ({"budget_s": 0}, ParamError, "budget"),
        ({"aa": -1}, ParamError, "A/A"),
        ({"max_cases": 0}, ParamError, "above zero"),
    ],
)
def test_mistakes_are_named(arguments: dict, error: type[Exception], words: str | None) -> None:
    with pytest.raises(error, match=words):
        make_plan(**arguments, machine=CPU)


def test_an_op_without_cases_in_the_preset_names_what_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.write_text('description = "nothing"')
    with pytest.raises(UsageError, match="missing: n, k"):
        make_plan(empty, names=["gemm.dense"], set_={"m": "1"}, machine=CPU)
    with pytest.raises(UsageError, match="nothing is left"):
        make_plan(empty, machine=CPU)


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ('shapes = { sizes = 3 }', "no source"),
        ('shapes = { source = "squars" }', "squares"),
        ('shapes = { source = "squares", size = 3 }', "wrong arguments"),
        ('shapes = { source = "squares", sizes = 8 }\nproduct = { m = 3 }', "from its shapes"),
        ('shapes = { source = "squares", sizes = 8 }', "dtype"),
        ('impl = "torhc"\nshapes = { source = "squares", sizes = 8 }', "torch"),
    ],
)
def test_mistakes_in_a_sweep_are_named(tmp_path: Path, sweep: str, words: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f'[sweep.a]\nop = "gemm.dense"\n{sweep}\n')
    with pytest.raises(UsageError, match=words):
        make_plan(path, machine=CPU)


def test_cases_larger_than_memory_are_refused_with_the_figure() -> None:
    # Two cold sets of three 64Ki x 64Ki fp32 matrices: 103 GB.
    with pytest.raises(PlanError, match=r"103 GB .* 8\.00 GB"):
        dense_plan(set_={"m": "64Ki", "n": "64Ki", "k": "64Ki"}, machine=CPU)
    plan = dense_plan(set_={"m": "64,64Ki", "n": "64Ki", "k": "64Ki"}, regimes=["hot"], machine=Machine(
        memory_bytes=20 * 10**9, cache_bytes=2**25))  # fmt: skip
    assert [p.case.params["m"] for p in plan.cases] == [64]
    assert [r.case.params["m"] for r in plan.refused] == [65536]
    assert "51.5 GB" in plan.refused[0].reason.message
    assert plan.refused[0].reason.code == "larger_than_memory"
    # Nothing is known of the memory: nothing is refused.
    assert not dense_plan(set_={"m": "64Ki", "n": "64Ki", "k": "64Ki"}, machine=Machine()).refused


def test_the_same_case_of_two_sweeps_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "twice.toml"
    one = 'op = "gemm.dense"\nfixed = { dtype = "fp32" }\n'
    path.write_text(
        f'[sweep.a]\n{one}shapes = {{ source = "squares", sizes = "8,16" }}\n'
        f'[sweep.b]\n{one}product = {{ m = "8", n = "8", k = "8,16" }}\n'
    )
    assert len(make_plan(path, machine=CPU).cases) == 3


def test_zipped_axes_conditions_and_regimes_of_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "zip.toml"
    path.write_text(
        '[sweep.a]\nop = "gemm.dense"\nregime = ["hot", "cold"]\nzip = { m = "8,16,32", n = "1,2,3" }\n'
        'fixed = { k = 4, dtype = "fp32" }\nwhere = ["m > 8"]\n'
    )
    found = {(p.case.params["m"], p.case.params["n"], p.case.regime) for p in make_plan(path, machine=CPU).cases}
    assert found == {(m, n, r) for m, n in ((16, 2), (32, 3)) for r in ("hot", "cold")}


def test_order_is_decided_by_the_seed_and_arguments_make_the_plan_again() -> None:
    first = make_plan("standard", set_={"layout": "nt"}, only=["m > 16"], seed=7, max_cases=50, machine=CPU)
    again = make_plan(**json.loads(json.dumps(dict(first.arguments))), machine=CPU)
    assert again == first
    other = make_plan("standard", set_={"layout": "nt"}, only=["m > 16"], seed=8, max_cases=50, machine=CPU)
    assert [p.identity for p in other.cases] != [p.identity for p in first.cases]


@pytest.mark.parametrize("seed", range(5))
def test_two_fifths_of_standard_already_covers_formats_regimes_and_fills(seed: int) -> None:
    whole = dense_plan("standard", seed=seed, machine=CPU)
    part = dense_plan("standard", seed=seed, max_cases=len(whole.cases) * 2 // 5, machine=CPU)
    assert len(part.cases) == len(whole.cases) * 2 // 5
    assert {p.case.regime for p in part.cases} == {p.case.regime for p in whole.cases}
    assert {p.case.data for p in part.cases} == {p.case.data for p in whole.cases}
    assert {p.case.dtype for p in part.cases} == {p.case.dtype for p in whole.cases}
    halves = Counter(p.case.key for p in part.cases if p.variant)
    assert set(halves.values()) <= {2}  # no half of an A/A pair without the other


def test_pairs_are_never_cases_that_cannot_run() -> None:
    plan = make_plan("smoke", aa=100, machine=CPU)
    paired = [p.case for p in plan.cases if p.variant == "a"]
    assert len(paired) == len(plan.cases) - len({p.case for p in plan.cases})
    assert not any(c.dtype == "tf32" or c.regime == "graph" for c in paired)


def test_estimates() -> None:
    measure = {"time_limit_s": 2.0, "warmup_limit_s": 0.5}
    plan = dense_plan(set_=SIZE, measure=measure, machine=CPU)
    start = 4.0 + 0.4 + 2 * 8 * 0.4  # worker and probe, one format, the cost of watching
    assert plan.estimated_s == pytest.approx(start + 6 * (2.0 + 0.5 + 0.15))
    metered = dense_plan(set_=SIZE, measure={**measure, "energy_window_s": 3}, machine=replace(CPU, energy="rapl"))
    assert metered.estimated_s == pytest.approx(start + 6 * (2.0 + 0.5 + 0.15 + 3.0 + 0.5))
    assert plan.peak_bytes == pytest.approx(2 * 32 * 2**20, rel=0.5)  # small sets fill twice the cache
    assert dense_plan(set_=SIZE, measure=measure, budget_s=3, machine=CPU).estimated_s == 3
    unsupported = dense_plan(set_=SIZE, dtypes=["tf32"], measure=measure, machine=CPU)
    assert unsupported.estimated_s < start + 1
    short = make_plan("standard", measure={"time_limit_s": 0.1}, machine=CPU)
    assert short.settings.min_time_s == 0.1  # who shortens the limit means the whole measurement


def test_a_preset_bounds_each_suite_and_all_together(tmp_path: Path) -> None:
    path, bounded = tmp_path / "two.toml", tmp_path / "bounded.toml"
    sweeps = (
        'budget = "60s"\n{total}aa = 0\n[sweep.one]\nop = "gemm.dense"\nfixed = {{ m = 64, n = 64, k = 64, dtype = '
        '"fp32" }}\n[sweep.two]\nop = "rope"\nfixed = {{ rows = 8, cols = 8, heads = 2, dtype = "fp32" }}\n'
    )
    path.write_text(sweeps.format(total=""))
    assert make_plan(str(path), machine=CPU).budget_s == 120
    assert make_plan(str(path), names=["rope"], machine=CPU).budget_s == 60
    bounded.write_text(sweeps.format(total='budget_total = "90s"\n'))
    assert make_plan(str(bounded), machine=CPU).budget_s == 90
    assert make_plan(str(bounded), names=["rope"], machine=CPU).budget_s == 60
    assert make_plan(str(bounded), budget_s=200, machine=CPU).budget_s == 200


def test_planning_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from wattline.suites.plan import make_plan; from wattline.suites.workload import Machine; "
        "make_plan('full', machine=Machine()); "
        "print([m for m in ('torch', 'numpy', 'pandas', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("only", "says"), [((), "more than 50 cases"), (("m < 0",), "more than 250 combinations")], ids=["plain", "only"]
)
def test_a_plan_of_millions_is_refused_before_its_cases_are_made(
    only: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An axis replaced in every case of a preset multiplies: it must not fill memory and time first."""
    made = 0

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        nonlocal made
        for each in from_preset(*args, **kwargs):
            made += 1
            yield each

    monkeypatch.setattr(plan_module, "from_preset", counted)
    monkeypatch.setattr(plan_module, "MAX_CASES", 50)
    monkeypatch.setattr(plan_module, "_MOST_LOOKED_AT", 250)
    with pytest.raises(PlanError, match=says):
        make_plan("smoke", set_={"m": "1:100000:+1"}, only=only, machine=CPU)
    assert made <= 251


def test_a_condition_with_an_unknown_name_says_where() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown parameter 'q' in the condition 'q < 3'"):
        make_plan("smoke", only=["q < 3"], machine=CPU)


def test_caps_multiply_the_cases_and_are_spread() -> None:
    plan = dense_plan(set_=SIZE, power_limits="600,500,default", clocks="1410", machine=CPU)
    free = dense_plan(set_=SIZE, machine=CPU)
    assert len(plan.cases) == 3 * len(free.cases)
    assert Counter(p.case.power_limit_w for p in plan.cases) == dict.fromkeys((600.0, 500.0, None), len(free.cases))
    assert {p.case.clock_hz for p in plan.cases} == {1.41e9}
    assert plan.arguments["power_limits"] == "600,500,default"
    first = [p.case.power_limit_w for p in plan.cases[: len(plan.cases) // 2]]
    assert len(set(first)) == 3  # no block of one cap, whose drift would look like its effect
    with pytest.raises(ParamError, match="above zero"):
        dense_plan(set_=SIZE, power_limits="-5", machine=CPU)


def test_caps_multiply_the_cases_and_are_kept_for_a_resume() -> None:
    plan = dense_plan(set_=SIZE, power_limits="700,500,default", clocks="1500", machine=GPU)
    caps = Counter((p.case.power_limit_w, p.case.clock_hz) for p in plan.cases)
    assert caps == {(700.0, 1.5e9): 6, (500.0, 1.5e9): 6, (None, 1.5e9): 6}
    assert (plan.arguments["power_limits"], plan.arguments["clocks"]) == ("700,500,default", "1500")
    again = make_plan(**plan.arguments, machine=GPU)
    assert again.cases == plan.cases
    free = dense_plan(set_=SIZE, machine=GPU)
    assert {p.case.key for p in dense_plan(set_=SIZE, power_limits="default", machine=GPU).cases} == {
        p.case.key for p in free.cases
    }


def test_caps_change_seldom_and_every_part_of_a_plan_has_all_of_them() -> None:
    sizes = {"m": "64:4096:x2", "n": "32,64,128", "k": "16,32"}
    plan = dense_plan(set_=sizes, power_limits="700,600,500", machine=GPU)
    limits = [p.case.power_limit_w for p in plan.cases]
    assert len(limits) == 126
    for begin in range(0, 126, 18):  # stretches of six cases a limit
        assert set(limits[begin : begin + 18]) == {700.0, 600.0, 500.0}
    assert sum(one != following for one, following in pairwise(limits)) <= 2 * 7
    cut = dense_plan(set_=sizes, power_limits="700,600,500", max_cases=9, machine=GPU)
    assert set(Counter(p.case.power_limit_w for p in cut.cases)) == {700.0, 600.0, 500.0}
    # Each change costs its wait; on a machine that cannot hold caps there are none, and capped cases cost a record.
    one = dense_plan(set_=sizes, power_limits="700", machine=GPU)
    each = (one.estimated_s - dense_plan(set_=SIZE, power_limits="700", machine=GPU).estimated_s) / (42 - 6)
    changes = sum(one != following for one, following in pairwise(limits))
    assert plan.estimated_s == pytest.approx(one.estimated_s + 84 * each + SETTLE_S * changes)
    processor = dense_plan(set_=SIZE, power_limits="700", machine=CPU)
    start = processor.estimated_s - 6 * UNSUPPORTED_S
    assert dense_plan(set_=SIZE, machine=CPU).estimated_s > start + 5


def test_caps_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ParamError, match="above zero"):
        dense_plan(set_=SIZE, power_limits="0", machine=GPU)
    with pytest.raises(ParamError):
        dense_plan(set_=SIZE, clocks="fast", machine=GPU)
