"""Mixture-of-experts layers: routing, work, every implementation against double precision, wrong questions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError, UsageError
from wattline.params import Value
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine
from wattline.workmodels import work_of

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
BASE: dict[str, Any] = {"tokens": 33, "hidden": 64, "intermediate": 96, "experts": 8, "top_k": 2, "dtype": "fp32"}


def params_of(**given: Value) -> dict[str, Value]:
    return get("gemm.moe").workload.params.parse({**BASE, **given}, op="gemm.moe")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 8), st.sampled_from(["balanced", "uniform"]),
    st.integers(0, 3),
)
def test_every_token_visits_different_experts_and_none_is_lost(
    tokens: int, ep: int, top_k: int, routing: str, seed: int
) -> None:
    from wattline.suites.gemm.routing import draw

    whole = draw(tokens, 8, top_k, routing=routing, seed=seed)
    assert whole.pairs == tokens * top_k
    assert all(len(set(row)) == top_k for row in whole.experts.tolist())
    torch.testing.assert_close(whole.weights.sum(dim=1), torch.ones(tokens))
    part = draw(tokens, 8, top_k, routing=routing, ep=ep, seed=seed)
    # The most loaded rank: never less than its share.
    assert part.pairs * ep >= tokens * top_k
    assert Counter(e for row in part.experts.tolist() for e in row if e < part.local) == {
        e: n for e, n in enumerate(part.counts) if n
    }
    # The work model counts no expert that is not visited, and no pair that is not there.
    p = params_of(tokens=tokens, top_k=top_k, routing=routing, ep=ep)
    work = work_of("gemm.moe", p)
    matrices = 3 * 64 * 96
    assert work.total_flops <= 2 * part.pairs * matrices + 1e-6
    visited = sum(1 for n in part.counts if n)
    assert work.bytes_read["device"] <= 4 * (visited * matrices + tokens * 64) + 1e-6


def test_balanced_and_skewed_loads() -> None:
    from wattline.suites.gemm.routing import draw

    even = draw(64, 8, 2)
    assert even.counts == (16,) * 8
    assert even.imbalance == 1.0
    loads = [max(draw(512, 8, 2, routing="power_law", skew=s).counts) for s in (0.0, 1.0, 3.0)]
    assert loads[0] < loads[1] < loads[2] <= 512
    assert draw(512, 8, 2, routing="power_law", skew=3.0, seed=1).counts != draw(
        512, 8, 2, routing="power_law", skew=3.0, seed=2
    ).counts


@pytest.mark.parametrize("impl", list(get("gemm.moe").implementations))
@pytest.mark.parametrize(
    "given_",
    [
        {}, {"tokens": 1}, {"dtype": "bf16"}, {"dtype": "fp16"}, {"gated": False}, {"tp": 2}, {"ep": 4, "top_k": 3},
        {"routing": "power_law", "skew": 2.0}, {"routing": "uniform", "ep": 8},
        {"experts": 64, "top_k": 1, "tokens": 3},
    ],
    ids=str,
)  # fmt: skip
def test_right(impl: str, given_: dict[str, Any]) -> None:
    p = params_of(**given_)
    implementation = get_implementation("gemm.moe", impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    kernel = implementation.build(p, Builder("cpu", CPU, seed=1))
    error, allowed, how = get("gemm.moe").workload.check(p, kernel, kernel.call())
    assert how == "full"
    assert error <= allowed
    assert sum(kernel.facts["tokens_per_expert"]) == kernel.facts["pairs"]
    assert kernel.facts["imbalance"] >= 1.0 or kernel.facts["pairs"] == 0


def test_a_lost_token_is_found() -> None:
    p = params_of()
    kernel = get_implementation("gemm.moe", "torch").build(p, Builder("cpu", CPU, seed=1))
    out = kernel.call()
    out[5] = 0
    error, allowed, _ = get("gemm.moe").workload.check(p, kernel, out)
    assert error > allowed


def test_many_tokens_are_sampled() -> None:
    p = params_of(tokens=200)
    kernel = get_implementation("gemm.moe", "padded").build(p, Builder("cpu", CPU, seed=1))
    error, allowed, how = get("gemm.moe").workload.check(p, kernel, kernel.call())
    assert how == "48 tokens"
    assert error <= allowed
    assert kernel.facts["padded_rows_ratio"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"top_k": 9}, "top_k is at most experts"), ({"ep": 3}, "experts is a multiple of ep"),
        ({"tp": 5}, "intermediate is a multiple of tp"), ({"dtype": "int8"}, "value of dtype"),
        ({"skew": 1.0}, "skew is 0 unless"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused_with_the_rule(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises((ParamError, UnknownNameError), match=says):
        params_of(**wrong)


def test_layers_of_models() -> None:
    workload = get("gemm.moe").workload
    found = list(workload.shapes("layers", models="mixtral-8x7b", tokens="1,16", ep="1,8,3"))
    assert len(found) == 4  # three ranks divide no eight experts
    assert found[0] == {
        "tokens": 1, "hidden": 4096, "intermediate": 14336, "experts": 8, "top_k": 2, "gated": True, "ep": 1, "tp": 1,
    }  # fmt: skip
    with pytest.raises(UsageError, match="has no experts"):
        list(workload.shapes("layers", models="llama-3-8b"))
    for shape in workload.shapes("random", count=20):
        workload.params.parse({**shape, "dtype": "fp32"}, op="gemm.moe")


def test_grouped_products_say_what_they_need() -> None:
    grouped = get_implementation("gemm.moe", "grouped")
    hopper = Machine(kind="cuda", sm=90, torch_version=(2, 13))
    assert grouped.unmet(params_of(dtype="bf16"), hopper) is None
    for machine, p, code in (
        (Machine(kind="cpu", torch_version=(2, 6)), params_of(), "old_torch"),
        (hopper, params_of(), "no_kernel"),
        (CPU, params_of(hidden=65), "alignment"),
        (Machine(kind="xpu", torch_version=(2, 13)), params_of(), "no_kernel"),
    ):
        reason = grouped.unmet(p, machine)
        assert reason is not None
        assert reason.code == code
