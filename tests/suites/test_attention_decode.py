"""Decoding over caches of every layout: against double precision, and that what is outside of a cache is never read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError
from wattline.params import Value
from wattline.suites.attention.decode_numba import cut
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine

torch = pytest.importorskip("torch")
CPU, GPU = Machine(kind="cpu", torch_version=(2, 13)), Machine(kind="cuda", sm=90, torch_version=(2, 13))
OP = "attention.decode"


def params_of(**given_: Value) -> dict[str, Value]:
    shape = {"batch": 3, "kv_len": 97, "heads": 6, "kv_heads": 2, "head_dim": 24, "dtype": "fp32"}
    return get(OP).workload.params.parse({**shape, **given_}, op=OP)


def built(impl: str, **given_: Value) -> tuple[Kernel, dict[str, Value]]:
    p = params_of(**given_)
    implementation = get_implementation(OP, impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    return implementation.build(p, Builder("cpu", CPU, data="normal", seed=2)), p


def judged(kernel: Kernel, p: dict[str, Value], out: Any) -> bool:
    error, allowed, how = get(OP).workload.check(p, kernel, out)
    assert how == "full"
    return error <= allowed


CACHES = [
    {}, {"window": 5}, {"window": 97}, {"kv_len": 1}, {"heads": 2}, {"heads": 10}, {"kv_heads": 6},
    {"lengths": "lognormal"}, {"lengths": "zipf", "window": 20},
    {"page_size": 16}, {"page_size": 16, "window": 30}, {"page_size": 1}, {"page_size": 200},
    {"page_size": 8, "lengths": "uniform"}, {"page_size": 8, "lengths": "zipf", "window": 11},
    {"splits": 3}, {"kv_len": 96, "splits": 4}, {"kv_len": 96, "splits": 1}, {"page_size": 4, "splits": 5},
]  # fmt: skip


IMPLEMENTATIONS = ("naive", "sdpa", "sdpa_grouped", "split_kv", "paged_gather", "numba")


def takes(impl: str, cache: dict[str, Any]) -> bool:
    """Whether this kind of cache is one for the implementation, wherever it runs."""
    reason = get_implementation(OP, impl).unmet(params_of(**cache), CPU)
    return reason is None or reason.code not in ("paged", "contiguous", "splits", "split_shape")


@pytest.mark.parametrize(
    ("impl", "cache"), [(i, c) for i in IMPLEMENTATIONS for c in CACHES if takes(i, c)], ids=str
)
def test_right_over_every_cache(impl: str, cache: dict[str, Any]) -> None:
    kernel, p = built(impl, **cache)
    assert judged(kernel, p, kernel.call())


@pytest.mark.parametrize("dtype", ["fp64", "bf16", "fp16"])
@pytest.mark.parametrize("impl", ["naive", "sdpa", "sdpa_grouped", "split_kv", "paged_gather"])
def test_right_in_every_format(impl: str, dtype: str) -> None:
    page, splits = int(impl == "paged_gather") * 16, int(impl == "split_kv")
    kernel, p = built(impl, dtype=dtype, page_size=page, splits=splits)
    assert judged(kernel, p, kernel.call())


@pytest.mark.parametrize("kv_dtype", ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("impl", ["naive", "sdpa", "sdpa_grouped", "paged_gather"])
def test_narrow_caches(impl: str, kv_dtype: str) -> None:
    kernel, p = built(impl, kv_dtype=kv_dtype, page_size=int(impl == "paged_gather") * 16)
    assert kernel.inputs["k"].element_size() == (1 if kv_dtype.startswith("fp8") else 2)
    assert judged(kernel, p, kernel.call())


@pytest.mark.slow
def test_compiled_code_turns_bfloat16_and_fp8_into_numbers() -> None:
    for given_ in ({"dtype": "bf16"}, {"kv_dtype": "bf16", "page_size": 8}, {"kv_dtype": "fp8_e4m3", "window": 40}):
        kernel, p = built("numba", **given_)  # type: ignore[arg-type]
        assert judged(kernel, p, kernel.call())


@pytest.mark.parametrize(
    ("impl", "cache"),
    [("sdpa", {"lengths": "zipf"}), ("sdpa_grouped", {"window": 9}), ("paged_gather", {"page_size": 16, "window": 9}),
     ("numba", {"page_size": 16, "lengths": "uniform", "window": 9}), ("numba", {"lengths": "zipf"})],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_reach_changes_nothing(impl: str, cache: dict[str, Any]) -> None:
    kernel, p = built(impl, **cache)
    before = kernel.call().clone()
    whole = kernel.inputs["cache"]
    reach = set()
    for b, (begin, end) in enumerate(zip(whole.begins, whole.lengths, strict=True)):
        for token in range(begin, end):
            page = int(whole.table[b, token // whole.page_size]) if whole.page_size else b
            reach.add((page, token % whole.page_size if whole.page_size else token))
    assert len(reach) == whole.keys == int(get(OP).workload.work(p).details["keys"])
    for tensor in (whole.k, whole.v):
        for page in range(tensor.shape[0]):
            for token in range(tensor.shape[2]):
                if (page, token) not in reach:
                    tensor[page, :, token] = 30.0
    assert torch.equal(kernel.call(), before)


def test_pages_lie_in_a_random_order_and_nothing_is_shared() -> None:
    kernel, _ = built("paged_gather", page_size=8, lengths="uniform")
    cache = kernel.inputs["cache"]
    used = [page for b, n in enumerate(cache.lengths) for page in cache.table[b, : -(-n // 8)].tolist()]
    assert sorted(used) == list(range(cache.k.shape[0]))
    assert used != sorted(used)
    assert kernel.facts["pages"] == len(used)
    assert kernel.facts["mean_length"] == pytest.approx(sum(cache.lengths) / 3)
    # The copy takes as many pages of each sequence as the longest has.
    assert kernel.facts["gathered_bytes"] == 3 * -(-97 // 8) * 8 * 2 * 2 * 24 * 4
    assert kernel.facts["key_bytes"] == sum(cache.lengths) * 2 * 2 * 24 * 4


@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("lengths", ["equal", "uniform"])
def test_the_footprint_is_what_is_allocated(page_size: int, lengths: str) -> None:
    kernel, p = built("numba", page_size=page_size, lengths=lengths, kv_dtype="bf16")
    tensors = (kernel.inputs["q"], kernel.inputs["k"], kernel.inputs["v"], kernel.call())
    assert get(OP).workload.footprint(p) == sum(t.numel() * t.element_size() for t in tensors)


def test_wrong_results_are_found() -> None:
    kernel, p = built("sdpa_grouped")
    for spoil in (lambda x: x[:, [1, 0, 2, 3, 4, 5]], lambda x: x[[1, 0, 2]], lambda x: x * 1.001, lambda x: x[:, :5]):
        error, allowed, _ = get(OP).workload.check(p, kernel, spoil(kernel.call()))
        assert not error <= allowed


def test_long_contexts_are_compared_in_part_the_extremes_of_length_among_them() -> None:
    given_: dict[str, Value] = {"batch": 8, "kv_len": 30000, "heads": 64, "lengths": "zipf"}
    kernel, p = built("paged_gather", page_size=500, **given_)
    out = kernel.call()
    error, allowed, how = get(OP).workload.check(p, kernel, out)
    assert how == "2 key-value heads of 3 sequences"
    assert error <= allowed
    lengths = kernel.inputs["cache"].lengths
    for b in (lengths.index(max(lengths)), lengths.index(min(lengths))):
        wrong = out.clone()
        wrong[b] *= 1.1
        assert get(OP).workload.check(p, kernel, wrong)[0] > allowed


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(0, 500), st.integers(1, 3), st.integers(0, 9),
    st.integers(1, 8),
)  # fmt: skip
def test_pieces_cover_every_token_once(
    lengths: list[int], window: int, kv_heads: int, splits: int, threads: int
) -> None:
    begins = tuple(max(0, n - window) if window else 0 for n in lengths)
    pieces = cut(begins, tuple(lengths), kv_heads, splits=splits, threads=threads)
    at = 0
    for b, (begin, end) in enumerate(zip(begins, lengths, strict=True)):
        for head in range(kv_heads):
            token = begin
            while at < pieces.first[b * kv_heads + head + 1]:
                sequence, own, lo, hi = pieces.where[at].tolist()
                assert (sequence, own, lo) == (b, head, token)
                assert hi > lo
                token, at = hi, at + 1
            assert token == end
    assert at == len(pieces.where)
    if splits:
        assert len(pieces.where) == kv_heads * sum(min(splits, e - b) for b, e in zip(begins, lengths, strict=True))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"heads": 5}, "heads is a multiple of kv_heads"), ({"kv_len": 0}, "kv_len must be from 1"),
        ({"window": 98}, "window is 0 .none. or at most kv_len"), ({"window": -1}, "window must be from 0"),
        ({"page_size": -16}, "page_size must be from 0"), ({"splits": 98}, "splits is at most"),
        ({"window": 4, "splits": 5}, "splits is at most"), ({"dtype": "int8"}, "dtype is one of"),
        ({"kv_dtype": "fp32"}, "narrower than dtype"), ({"dtype": "bf16", "kv_dtype": "fp16"}, "narrower than dtype"),
        ({"lengths": "uniform", "batch": 1}, "unequal lengths need a batch"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_questions_are_refused_with_the_rule(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamError, match=says):
        params_of(**wrong)


def test_unknown_distributions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="value of lengths"):
        params_of(lengths="skewed")


@pytest.mark.parametrize(
    ("impl", "given_", "code"),
    [
        ("sdpa", {"page_size": 16}, "paged"), ("sdpa", {"splits": 2}, "splits"), ("split_kv", {}, "splits"),
        ("split_kv", {"splits": 2}, "split_shape"), ("split_kv", {"splits": 1, "kv_dtype": "bf16"}, "kv_dtype"),
        ("paged_gather", {}, "contiguous"), ("numba", {"dtype": "fp16"}, "no_kernel"),
        ("numba", {"dtype": "fp64", "kv_dtype": "bf16"}, "no_kernel"),
    ],
    ids=str,
)  # fmt: skip
def test_what_an_implementation_cannot_do_it_says(impl: str, given_: dict[str, Any], code: str) -> None:
    reason = get_implementation(OP, impl).unmet(params_of(**given_), CPU)
    assert reason is not None
    assert reason.code == code


@pytest.mark.parametrize("impl", ["flash_attn", "flashinfer"])
def test_libraries_for_gpus_are_unsupported_because(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = get_implementation(OP, impl)
    good = params_of(dtype="bf16", page_size=256, head_dim=128)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = found.unmet(good, GPU)
    assert reason is not None
    assert reason.code == "missing_library"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert found.unmet(good, GPU) is None
    for machine, changed, code in (
        (CPU, {}, "no_cuda"), (GPU, {"dtype": "fp32"}, "no_kernel"), (GPU, {"head_dim": 320}, "head_dim"),
    ):  # fmt: skip
        reason = found.unmet({**good, **changed}, machine)
        assert reason is not None
        assert reason.code == code


def test_shapes_and_scouts_are_valid_questions() -> None:
    workload = get(OP).workload
    for source, arguments in (("random", {"count": 20}), ("tokens", {"models": "llama-3-8b", "contexts": "1K,8K"})):
        found = list(workload.shapes(source, **arguments))
        assert found
        for shape in found:
            workload.params.parse({**shape, "dtype": "fp32"}, op=OP)
    p = params_of(kv_len=50000, lengths="zipf", window=40000, splits=300, batch=64)
    scout = workload.scout(p)
    assert scout is not None
    assert workload.params.parse(scout, op=OP) == scout
    assert workload.scout(scout) is None
