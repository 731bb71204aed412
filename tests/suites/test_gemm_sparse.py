"""gemm.sparse on the CPU: patterns as promised, every implementation against the reference, bad input refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.suites.fills import Builder
from wattline.suites.gemm import sparse_shapes, sparsity
from wattline.suites.gemm.copies import in_turn
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine, Value
from wattline.workmodels.sparse import stored

CPU = Machine(kind="cpu", torch_version=(2, 13))
H200 = Machine(kind="cuda", sm=90, torch_version=(2, 13))
WORKLOAD = get("gemm.sparse").workload

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")


def params(m: int = 7, n: int = 48, k: int = 64, dtype: str = "fp32", **more: Any) -> dict[str, Value]:
    return WORKLOAD.params.parse({"m": m, "n": n, "k": k, "density": 0.2, "dtype": dtype, **more}, op="gemm.sparse")


def build(p: dict[str, Value], impl: str = "torch", data: str = "uniform") -> Kernel:
    return get_implementation("gemm.sparse", impl).build(p, Builder("cpu", CPU, data=data))


def passes(p: dict[str, Value], kernel: Kernel, result: Any) -> bool:
    error, allowed, _ = WORKLOAD.check(p, kernel, result)
    return error <= allowed


CASES = {
    "csr": {}, "tokens first": {"activations": "mk"}, "skewed": {"skew": 1.5}, "full": {"density": 1},
    "one element": {"density": 0.0002}, "one token": {"m": 1, "n": 13, "k": 29},
    "block": {"pattern": "block"}, "half-filled block": {"pattern": "block", "n": 64, "block": 32, "block_fill": 0.5},
    "block, tokens first": {"pattern": "block", "activations": "mk"},
    "2:4": {"pattern": "2:4", "density": 0.5}, "2:4, odd groups": {"pattern": "2:4", "density": 0.5, "k": 60},
    "2:4, tokens first": {"pattern": "2:4", "density": 0.5, "activations": "mk"},
    "both": {"sparse": "both", "m": 40},
}  # fmt: skip


@pytest.mark.parametrize("impl", list(get("gemm.sparse").implementations))
@pytest.mark.parametrize("case", list(CASES))
def test_every_implementation_is_right(impl: str, case: str) -> None:
    p = params(**CASES[case])
    reason = get_implementation("gemm.sparse", impl).unmet(p, CPU)
    if reason is not None:
        assert reason.code in ("no_kernel", "no_cuda")
        return
    kernel = build(p, impl)
    if kernel.output is not None:
        kernel.output.fill_(float("nan"))
    result = kernel.call()
    assert passes(p, kernel, result)
    if kernel.eager is not None:
        assert passes(p, kernel, kernel.eager())
    assert kernel.facts["nnz"] == stored(p).nnz
    # A result that is off in one element does not pass.
    if p["sparse"] == "weight":
        wrong = result.clone()
        wrong[0, 0] += 1.0
        assert not passes(p, kernel, wrong)


@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
@pytest.mark.parametrize("impl", ["torch", "dense", "densify", "scipy"])
def test_formats(impl: str, dtype: str) -> None:
    p = params(dtype=dtype)
    reason = get_implementation("gemm.sparse", impl).unmet(p, CPU)
    if dtype == "bf16" and impl in ("torch", "scipy"):
        assert reason is not None
        assert "fp32 and fp64" in reason.message
        return
    assert reason is None
    kernel = build(p, impl)
    assert passes(p, kernel, kernel.call())


@pytest.mark.parametrize("data", ["zeros", "integers", "normal"])
def test_fills(data: str) -> None:
    p = params()
    for impl in ("torch", "densify"):
        kernel = build(p, impl, data)
        error, _, _ = WORKLOAD.check(p, kernel, kernel.call())
        assert error < 1e-6


def test_implementations_multiply_the_same_matrix() -> None:
    p = params(m=5, n=64, k=64, pattern="block", block_fill=0.3)
    results = [build(p, impl).call() for impl in ("torch", "dense", "densify", "numba")]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 50), st.floats(0.01, 1.0), st.floats(0.0, 3.0), st.integers(0, 3)
)  # fmt: skip
def test_patterns_hold_what_they_promise(rows: int, columns: int, density: float, skew: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = max(1, round(density * rows * columns))
    counts = sparsity.shares(rows, total, columns, skew, rng)
    assert counts.sum() == total
    assert 0 <= counts.min() <= counts.max() <= columns
    if skew == 0:
        assert counts.max() - counts.min() <= 1
    places = sparsity.draw(counts, columns, rng)
    assert np.array_equal(np.diff(places.pointers), counts)
    keys = places.rows * columns + places.columns
    assert np.all(np.diff(keys) > 0)  # in order, none twice
    assert 0 <= places.columns.min() <= places.columns.max() < columns


def test_a_power_law_of_rows() -> None:
    # Shares 1, 1/2, 1/3, 1/4 of 25 elements: 12, 6, 4, 3; with room for 8 the first row's rest goes to the others.
    rng = np.random.default_rng(0)
    assert sorted(sparsity.shares(4, 25, 100, 1.0, rng)) == [3, 4, 6, 12]
    assert sorted(sparsity.shares(4, 25, 8, 1.0, rng)) == [4, 5, 8, 8]


def test_columns_are_drawn_evenly() -> None:
    # Every column is hit as often as the next, in rows less and more than half full.
    for each in (3, 9):
        places = sparsity.draw(np.full(6000, each), 12, np.random.default_rng(1))
        hits = np.bincount(places.columns, minlength=12)
        expected, spread = 6000 * each / 12, np.sqrt(6000 * each / 12 * (1 - each / 12))
        assert np.all(np.abs(hits - expected) < 5 * spread)


def test_the_seed_decides_the_pattern() -> None:
    one, again, other = (sparsity.weights_of(params(pattern_seed=s)).columns for s in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 13), st.integers(0, 5))
def test_packing_two_of_four_round_trips(n: int, groups: int, seed: int) -> None:
    p = params(n=n, k=4 * groups, pattern="2:4", density=0.5, pattern_seed=seed)
    columns = sparsity.weights_of(p).columns.reshape(n, 2 * groups)
    per_group = columns.reshape(n, groups, 2)
    assert np.array_equal(per_group // 4, np.broadcast_to(np.arange(groups)[None, :, None], per_group.shape))
    assert np.all(per_group[..., 0] < per_group[..., 1])
    packed = sparsity.pack(columns)
    assert packed.nbytes == stored(p).index_bytes
    assert np.array_equal(sparsity.unpack(torch.from_numpy(packed), 2 * groups).numpy(), columns)


def test_pairs_are_what_the_formula_expects() -> None:
    p = params(m=96, n=200, k=128, density=0.1, sparse="both")
    kernel = build(p)
    result = kernel.call()
    assert passes(p, kernel, result)
    flops = WORKLOAD.work(p).total_flops
    assert 2 * kernel.facts["pairs"] == pytest.approx(flops, rel=0.03)
    read, written = WORKLOAD.work(p).bytes_read["device"], WORKLOAD.work(p).bytes_written["device"]
    assert read == 4 * 2 * (kernel.facts["nnz"] + kernel.facts["nnz_x"]) + 4 * (201 + 129)
    assert written == pytest.approx(min(4 * 200 * 96, 8 * kernel.facts["nnz_out"] + 4 * 201), rel=0.03)


def test_bytes_are_those_of_the_buffers() -> None:
    for more in ({"density": 0.05}, {"pattern": "block", "density": 0.2}, {"pattern": "2:4", "density": 0.5}):
        p = params(m=3, n=64, k=128, **more)
        kernel = build(p, "numba")
        places = sparsity.weights_of(p)
        held = kernel.inputs["values"].nbytes + kernel.inputs["x"].nbytes + kernel.output.nbytes
        if p["pattern"] == "2:4":
            held += sparsity.pack(places.columns.reshape(64, 64)).nbytes
        else:
            held += places.columns.nbytes + places.pointers.nbytes
        assert WORKLOAD.footprint(p) == held


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"density": 0}, "no work to measure"),
        ({"density": 1.5}, "density must be from 0 to 1"),
        ({"density": -0.1}, "density must be from 0 to 1"),
        ({"density": 1e-5}, "at least one element"),
        ({"pattern": "block", "n": 40}, "multiples of it"),
        ({"pattern": "block", "block": 24}, "16, 32 or 64"),
        ({"pattern": "block", "density": 0.6, "block_fill": 0.5}, "at most block_fill"),
        ({"block_fill": 0.5}, "belongs to pattern=block"),
        ({"pattern": "2:4"}, "density=0.5"),
        ({"pattern": "2:4", "density": 0.5, "k": 62}, "multiple of 4"),
        ({"pattern": "2:4", "density": 0.5, "skew": 1}, "no skew"),
        ({"sparse": "both", "pattern": "block"}, "pattern=csr"),
        ({"sparse": "both", "activations": "mk"}, "activations=km"),
        ({"m": 1, "k": 2, "sparse": "both"}, "at least one element"),
    ],
)
def test_impossible_parameters_are_refused_with_the_rule(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(ParamError, match=rule):
        params(**wrong)


@pytest.mark.parametrize(
    ("impl", "more", "machine", "code"),
    [
        ("torch", {}, CPU, None),
        ("torch", {"dtype": "bf16"}, CPU, "no_kernel"),
        ("torch", {"dtype": "bf16"}, H200, None),
        ("torch", {}, Machine(kind="xpu"), "no_kernel"),
        ("torch", {"pattern": "2:4", "density": 0.5}, CPU, "no_cuda"),
        ("torch", {"pattern": "2:4", "density": 0.5}, H200, "no_kernel"),
        ("torch", {"pattern": "2:4", "density": 0.5, "dtype": "bf16"}, H200, "alignment"),
        ("torch", {"pattern": "2:4", "density": 0.5, "dtype": "bf16", "n": 64}, H200, None),
        ("numba", {"activations": "mk"}, CPU, "no_kernel"),
        ("numba", {"sparse": "both"}, CPU, "no_kernel"),
        ("numba", {}, H200, "no_kernel"),
        ("scipy", {"pattern": "block"}, CPU, "no_kernel"),
        ("dense", {"dtype": "bf16"}, Machine(kind="xpu"), None),
    ],
)
def test_what_cannot_run_has_a_reason(impl: str, more: dict[str, Any], machine: Machine, code: str | None) -> None:
    reason = get_implementation("gemm.sparse", impl).unmet(params(**more), machine)
    assert (reason.code if reason else None) == code


def test_the_reason_given_for_half_precision_on_a_cpu_is_true() -> None:
    """torch really refuses it; should it learn to, the requirement must go."""
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.mm(torch.eye(4, dtype=torch.bfloat16).to_sparse_csr(), torch.ones(4, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "more",
    [
        {"density": 1e-6}, {"pattern": "block", "block": 64, "density": 0.001}, {"sparse": "both", "density": 0.001},
        {"pattern": "2:4", "density": 0.5}, {"pattern": "block", "block_fill": 0.1, "density": 0.05},
    ],
)  # fmt: skip
def test_scout_is_a_smaller_case_that_obeys_the_rules(more: dict[str, Any]) -> None:
    p = params(m=512, n=4096, k=2048, **more)
    scout = WORKLOAD.scout(p)
    assert scout is not None
    assert WORKLOAD.params.parse(scout) == scout
    assert max(int(scout[name]) for name in ("m", "n", "k")) == 128
    assert WORKLOAD.scout(scout) is None


def test_dense_copies_take_turns() -> None:
    ctx = Builder("cpu", Machine(kind="cpu", cache_bytes=1000))
    # Twice the cache is 2000 bytes: three copies of 800.
    made = [in_turn(ctx, 800, object) for _ in range(7)]
    assert len(set(map(id, made))) == 3
    assert made[3] is made[0]
    assert made[5] is made[2]
    other = Builder("cpu", Machine(kind="cpu", cache_bytes=1000))
    assert in_turn(other, 800, object) not in made
    assert len({id(v) for v in [in_turn(other, 10**6, object) for _ in range(4)]}) == 2


def test_random_shapes_cover_their_space() -> None:
    found = list(sparse_shapes.random(40, seed=2, align=32, lo=128))
    assert found == list(sparse_shapes.random(40, seed=2, align=32, lo=128))
    for s in found:
        p = params(**s)
        assert int(p["n"]) % 32 == int(p["k"]) % 32 == 0
        assert 0.005 <= float(p["density"]) <= 0.6
        assert WORKLOAD.work(p).total_flops <= 4e9 * 1.01
    # The first ten already spread over density: three in each third of its logarithm, give or take one.
    thirds = np.histogram(np.log([s["density"] for s in found[:10]]), np.linspace(np.log(0.005), np.log(0.6), 4))[0]
    assert thirds.min() >= 2
    with pytest.raises(ParamError, match="of 3 random shapes"):
        list(sparse_shapes.random(3, lo=1024, max_values=10))
    with pytest.raises(ParamError, match="density_lo"):
        list(sparse_shapes.random(3, density_lo=0.0))
    layers = list(sparse_shapes.layers("gpt-2", m=1))
    assert all(set(s) == {"m", "n", "k"} for s in layers)
