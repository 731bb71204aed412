"""Attention in parts, in blocks, in batches and over patterns: work by hand, laws, every implementation, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError
from wattline.params import Value
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine
from wattline.workmodels import work_of

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
HEADS: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": "fp32"}
BASE: dict[str, dict[str, Any]] = {
    "attention.merge": {**HEADS, "batch": 3, "q_len": 2, "kv_len": 37, "shards": 4},
    "attention.linear": {"batch": 2, "heads": 3, "length": 50, "head_dim": 8, "block": 16, "dtype": "fp32"},
    "attention.hybrid": {**HEADS, "chunk": 7, "chunk_context": 20, "decodes": 3, "decode_context": 11},
    "attention.sparse": {**HEADS, "batch": 2, "q_len": 48, "kv_len": 48, "window": 9, "block": 12},
}
PATTERNS: dict[str, dict[str, Any]] = {
    "sink_window": {"sink": 3}, "block_topk": {"keep": 2}, "clusters": {"clusters": 6}, "budget": {"budget": 10},
}  # fmt: skip


def params_of(op: str, **given_: Value) -> dict[str, Value]:
    pattern = given_.get("pattern", "sink_window")
    extra = PATTERNS[str(pattern)] | ({"window": 0} if pattern != "sink_window" else {}) if "sparse" in op else {}
    return get(op).workload.params.parse({**BASE[op], **extra, **given_}, op=op)


def checked(op: str, impl: str, **given_: Any) -> Any:
    p = params_of(op, **given_)
    implementation = get_implementation(op, impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    kernel = implementation.build(p, Builder("cpu", CPU, seed=1))
    result = kernel.call()
    error, allowed, _ = get(op).workload.check(p, kernel, result)
    assert error <= allowed
    # And the check can fail.
    found = result if isinstance(result, tuple) else (result,)
    wrong = tuple(part * 1.5 if torch.is_tensor(part) else part for part in found)
    error, allowed, _ = get(op).workload.check(p, kernel, wrong if isinstance(result, tuple) else wrong[0])
    assert error > allowed
    return kernel


# --- merge


def test_work_of_merging_by_hand() -> None:
    p = {"batch": 2, "q_len": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "kv_len": 100, "shards": 5, "dtype": "bf16"}
    work = work_of("attention.merge", p)
    assert work.flops == {"fp32": 2 * 5 * 24 * 8}
    assert work.bytes_read["device"] == 5 * 24 * (8 * 2 + 4)
    assert work.bytes_written["device"] == 24 * (8 * 2 + 4)
    whole = work_of("attention.merge", {**p, "phase": "shards"})
    assert whole.total_flops == 4 * 24 * 100 * 8
    assert whole.bytes_at() == 2 * (2 * 24 * 8 + 2 * 2 * 100 * 2 * 8)
    assert whole.details["merge_bytes"] == work.bytes_at()
    shared = work_of("attention.merge", {**p, "phase": "prefix", "prefix": 60})
    assert shared.total_flops == whole.total_flops
    assert whole.bytes_at() - shared.bytes_at() == 2 * 2 * 60 * 2 * 8, "the prefix of one sequence is saved"
    with pytest.raises(ParamError, match="phase"):
        work_of("attention.merge", {**p, "phase": "apart"})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**16), st.booleans())
def test_merging_is_exact_whatever_the_shards_and_their_order(parts: int, keys: int, seed: int, blind: bool) -> None:
    from wattline.suites.attention.partial import merge_pairwise, merge_stacked, merge_two
    from wattline.suites.attention.reference import attend_rows

    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, 5, generator=generator, dtype=torch.float64) * 4 for n in (3, keys, keys))
    seen = torch.ones(3, keys, dtype=torch.bool)
    if blind:  # a query that sees nothing of some parts
        seen[0, : keys // 2] = False
    edges = sorted(int(torch.randint(0, keys + 1, (), generator=generator)) for _ in range(parts - 1))
    slices = [slice(a, b) for a, b in zip([0, *edges], [*edges, keys], strict=True) if b > a]
    found = [attend_rows(q, k[s], v[s], seen[:, s], 0.5) for s in slices]
    whole, lse = attend_rows(q, k, v, seen, 0.5)
    outs, lses = torch.stack([o for o, _ in found]), torch.stack([x for _, x in found])
    order = torch.randperm(len(found), generator=generator)
    for merge in (merge_stacked, merge_pairwise):
        for some in (torch.arange(len(found)), order):
            out, total = merge(outs[some], lses[some])
            assert torch.allclose(out, whole, rtol=1e-12, atol=1e-12)
            assert torch.allclose(total, lse, rtol=1e-12)
    if len(found) >= 3:
        left = merge_two(*merge_two(*found[0], *found[1]), *found[2])
        right = merge_two(*found[0], *merge_two(*found[1], *found[2]))
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(left, right, strict=True))


def test_a_query_that_saw_no_key_of_any_part_gives_zeros() -> None:
    from wattline.suites.attention.partial import merge_pairwise, merge_stacked

    outs, lses = torch.zeros(2, 1, 4), torch.full((2, 1), -torch.inf)
    for merge in (merge_stacked, merge_pairwise):
        out, lse = merge(outs, lses)
        assert bool((out == 0).all())
        assert lse.item() == -torch.inf


@pytest.mark.parametrize("impl", ["torch", "pairwise", "whole"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("given_", [{}, {"phase": "shards"}, {"phase": "prefix", "prefix": 20}, {"shards": 1}], ids=str)
def test_merge(impl: str, dtype: str, given_: dict[str, Any]) -> None:
    checked("attention.merge", impl, dtype=dtype, **given_)


def test_merge_compiled() -> None:
    assert checked("attention.merge", "compile", phase="shards").facts["compile_s"] > 0


# --- linear


def test_work_of_linear_attention_by_hand() -> None:
    p = {"batch": 2, "heads": 3, "length": 10, "head_dim": 4, "block": 4, "dtype": "fp32"}
    work = work_of("attention.linear", p)
    assert work.total_flops == 6 * 10 * 4 * 16
    assert work.bytes_at() == 4 * 4 * 6 * 10 * 4
    assert work.details["quadratic_flops"] == 6 * 4 * 4 * 55
    assert work.details["block_flops"] == 6 * (4 * 4 * (10 + 10 + 3) + 4 * 10 * 16)
    assert work_of("attention.linear", {**p, "direction": "backward"}).total_flops == 2.5 * work.total_flops


@pytest.mark.parametrize("impl", ["quadratic", "cumsum", "block"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "given_", [{}, {"decay": 0.9}, {"block": 1}, {"block": 64}, {"length": 1}, {"dtype": "fp64"}, {"dtype": "bf16"}],
    ids=str,
)  # fmt: skip
def test_linear(impl: str, direction: str, given_: dict[str, Any]) -> None:
    checked("attention.linear", impl, direction=direction, **given_)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 80), st.floats(0.5, 1.0), st.integers(0, 999))
def test_blocks_equal_the_quadratic_form(length: int, block: int, decay: float, seed: int) -> None:
    given_ = {"length": length, "block": block, "decay": decay, "dtype": "fp64", "batch": 1}
    kernels = [
        get_implementation("attention.linear", impl).build(
            params_of("attention.linear", **given_), Builder("cpu", CPU, seed=seed)
        )
        for impl in ("quadratic", "block")
    ]
    assert torch.allclose(kernels[0].call(), kernels[1].call(), rtol=1e-10, atol=1e-10)


def test_linear_compiled() -> None:
    assert checked("attention.linear", "compile", decay=0.95).facts["compile_s"] > 0


# --- hybrid


def test_work_of_a_hybrid_batch_by_hand() -> None:
    p = {"chunk": 4, "chunk_context": 10, "decodes": 3, "decode_context": 8, "heads": 4, "kv_heads": 2, "head_dim": 16}
    work = work_of("attention.hybrid", {**p, "dtype": "bf16"})
    pairs = (7 + 8 + 9 + 10) + 3 * 8
    assert work.total_flops == 4 * 4 * 16 * pairs
    assert work.bytes_at() == 2 * (2 * 7 * 64 + 2 * (10 + 24) * 2 * 16)
    layer = work_of("attention.hybrid", {**p, "dtype": "bf16", "hidden": 32})
    weights = 32 * 16 * (2 * 4 + 2 * 2)
    assert layer.details == {"attention_flops": work.total_flops, "projection_flops": 2 * 7 * weights}
    assert layer.bytes_at() == 2 * (2 * 7 * 32 + 2 * (10 + 24) * 2 * 16 + weights)
    alone = work_of("attention.hybrid", {**p, "dtype": "bf16", "chunk": 0})
    assert alone.total_flops == 4 * 4 * 16 * 24
    assert alone.bytes_at() == 2 * (2 * 3 * 64 + 2 * 24 * 2 * 16)


@pytest.mark.parametrize("impl", ["apart", "together"])
@pytest.mark.parametrize("given_", [{}, {"chunk": 0}, {"decodes": 0}, {"dtype": "bf16"}, {"chunk": 20}], ids=str)
@pytest.mark.parametrize("hidden", [0, 48])
def test_hybrid(impl: str, given_: dict[str, Any], hidden: int) -> None:
    checked("attention.hybrid", impl, hidden=hidden, **given_)


@pytest.mark.parametrize("given_", [{}, {"chunk": 0}, {"decodes": 0}], ids=str)
def test_hybrid_packed(given_: dict[str, Any]) -> None:
    checked("attention.hybrid", "packed", **given_)


def test_streams_need_an_accelerator_and_projections_are_not_packed() -> None:
    reason = get_implementation("attention.hybrid", "streams").unmet(params_of("attention.hybrid"), CPU)
    assert reason is not None
    assert reason.code == "no_cuda"
    reason = get_implementation("attention.hybrid", "packed").unmet(params_of("attention.hybrid", hidden=8), CPU)
    assert reason is not None
    assert reason.code == "projection"


# --- sparse


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_pairs_are_the_true_entries_of_the_mask(data: st.DataObject) -> None:
    from wattline.suites.attention import patterns

    pattern = data.draw(st.sampled_from(sorted(PATTERNS)))
    kv_len = data.draw(st.integers(1, 60))
    q_len, more = data.draw(st.integers(1, kv_len)), {}
    if pattern == "sink_window":
        window = data.draw(st.integers(1, kv_len))
        more = {"window": window, "sink": data.draw(st.integers(0, kv_len - window))}
    elif pattern == "block_topk":
        q_len = kv_len
        more = {"block": data.draw(st.integers(1, kv_len)), "keep": data.draw(st.integers(1, 8))}
    elif pattern == "clusters":
        clusters = data.draw(st.integers(1, 5))
        q_len, kv_len = q_len * clusters, kv_len * clusters
        more = {"clusters": clusters}
    else:
        more = {"budget": data.draw(st.integers(1, kv_len))}
    p = params_of("attention.sparse", **{"pattern": pattern, "q_len": q_len, "kv_len": kv_len, "sink": 0, **more})
    chosen = patterns.draw(p, Builder("cpu", CPU, seed=data.draw(st.integers(0, 99))))
    mask = patterns.dense(p, chosen, torch.device("cpu")).expand(2, 4, q_len, kv_len)
    work = work_of("attention.sparse", p)
    assert work.total_flops == pytest.approx(4 * 16 * int(mask.sum()))
    reached = mask.view(2, 2, 2, q_len, kv_len).any(dim=3).any(dim=2)  # of each key-value head
    keys = (work.bytes_at() / 4 - 2 * 2 * q_len * 4 * 16) / (2 * 16)
    assert keys >= int(reached.sum()) - 1e-6
    if pattern in ("sink_window", "budget"):
        assert keys == pytest.approx(int(reached.sum()))


@pytest.mark.parametrize("impl", ["mask", "gather", "compact"])
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@pytest.mark.parametrize(
    "given_",
    [{}, {"dtype": "bf16"}, {"kv_heads": 4}, {"kv_heads": 1, "batch": 1}, {"block": 48}, {"block": 1}],
    ids=str,
)
def test_sparse(impl: str, pattern: str, given_: dict[str, Any]) -> None:
    checked("attention.sparse", impl, pattern=pattern, **given_)


@pytest.mark.parametrize("impl", ["mask", "gather"])
@pytest.mark.parametrize(
    "given_", [{"q_len": 12}, {"q_len": 1}, {"sink": 0}, {"window": 45}, {"block": 64, "q_len": 5}], ids=str
)
def test_a_window_over_a_longer_context(impl: str, given_: dict[str, Any]) -> None:
    checked("attention.sparse", impl, **given_)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_sparse_by_flex_attention(pattern: str) -> None:
    checked("attention.sparse", "flex", pattern=pattern)


def test_blocks_that_no_query_block_fills_are_refused_by_gathering_alone() -> None:
    p = params_of("attention.sparse", pattern="block_topk", block=13)
    reason = get_implementation("attention.sparse", "gather").unmet(p, CPU)
    assert reason is not None
    assert reason.code == "alignment"
    checked("attention.sparse", "mask", pattern="block_topk", block=13)


# --- wrong questions


@pytest.mark.parametrize(
    ("op", "wrong", "says"),
    [
        ("attention.merge", {"kv_heads": 3}, "multiple"),
        ("attention.merge", {"phase": "prefix"}, "prefix"),
        ("attention.merge", {"prefix": 4}, "prefix"),
        ("attention.merge", {"phase": "shards", "shards": 38}, "shard"),
        ("attention.linear", {"decay": 0.0}, "decay"),
        ("attention.linear", {"decay": 1.5}, "decay"),
        ("attention.linear", {"length": 0}, "length"),
        ("attention.hybrid", {"chunk": 0, "decodes": 0}, "above 0"),
        ("attention.hybrid", {"chunk": 21}, "chunk_context"),
        ("attention.sparse", {"window": 0}, "window"),
        ("attention.sparse", {"window": 49}, "window"),
        ("attention.sparse", {"q_len": 49}, "q_len"),
        ("attention.sparse", {"pattern": "clusters", "clusters": 5}, "divides"),
        ("attention.sparse", {"pattern": "budget", "budget": 49}, "budget"),
        ("attention.sparse", {"pattern": "block_topk", "keep": 0}, "keep"),
        ("attention.sparse", {"budget": 3}, "budget"),
    ],
)
def test_impossible_parameters_are_refused_in_words(op: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamError) as caught:
        params_of(op, **({"sink": 0} if wrong.get("pattern") else {}), **wrong)
    assert says in str(caught.value)


@pytest.mark.parametrize("op", sorted(BASE))
def test_a_scout_is_a_smaller_case_of_the_same_kind(op: str) -> None:
    large = {
        "attention.merge": {"kv_len": 4096, "phase": "shards"},
        "attention.linear": {"length": 4096},
        "attention.hybrid": {"chunk": 512, "chunk_context": 4096, "decode_context": 4096},
        "attention.sparse": {"q_len": 4096, "kv_len": 4096, "window": 512, "block": 64},
    }[op]
    p = params_of(op, **large)
    smaller = get(op).workload.scout(p)
    assert smaller is not None
    parsed = get(op).workload.params.parse(smaller, op=op)
    assert get(op).workload.work(parsed).total_flops < get(op).workload.work(p).total_flops
    assert get(op).workload.scout(parsed) is None


def test_arrays_of_patterns() -> None:
    p = params_of("attention.sparse", pattern="budget")
    many = work_of("attention.sparse", {**p, "budget": np.array([5, 10])})
    assert list(many.flops["fp32"]) == [4 * 2 * 4 * 16 * 48 * n for n in (5, 10)]
