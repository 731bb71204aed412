"""Attention of prompts: masks against formulas, every implementation against double precision, wrong questions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import ParamError, UnsupportedError, UsageError
from wattline.params import Value
from wattline.suites.attention import shapes
from wattline.suites.attention.masks import Mask
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine
from wattline.workmodels import work_of
from wattline.workmodels.attention import io_lower_bound

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
GPU = Machine(kind="cuda", torch_version=(2, 13), sm=90)
OP = "attention.prefill"
BASE: dict[str, Any] = {"q_len": 33, "kv_len": 33, "heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": "fp32"}
ON_CPU = ("naive", "flash", "math")


def params_of(**given_: Value) -> dict[str, Value]:
    return get(OP).workload.params.parse({**BASE, **given_}, op=OP)


def checked(impl: str, **given_: Any) -> Any:
    p = params_of(**given_)
    implementation = get_implementation(OP, impl)
    reason = implementation.unmet(p, CPU)
    assert reason is None, reason
    kernel = implementation.build(p, Builder("cpu", CPU, seed=2))
    result = kernel.call()
    error, allowed, _ = get(OP).workload.check(p, kernel, result)
    assert error <= allowed
    return kernel


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40), st.booleans())
def test_the_formula_counts_the_true_entries_of_the_mask(q_len: int, kv_len: int, window: int, causal: bool) -> None:
    q_len = min(q_len, kv_len)
    window = min(window, kv_len) if causal else 0
    mask = Mask(q_len, kv_len, causal, window).dense(torch.device("cpu"))
    p = {"q_len": q_len, "kv_len": kv_len, "heads": 3, "kv_heads": 3, "head_dim": 8, "head_dim_v": 4, "dtype": "fp32"}
    work = work_of(OP, {**p, "causal": causal, "window": window})
    assert work.total_flops == 2 * 3 * int(mask.sum()) * (8 + 4)
    keys = int(mask.any(dim=0).sum())
    assert work.bytes_read["device"] == 4 * 3 * (q_len * 8 + keys * (8 + 4))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 30))
def test_a_sink_is_seen_by_all_and_some_rows_are_rows_of_the_whole(q: int, kv: int, window: int, sink: int) -> None:
    mask = Mask(min(q, kv), kv, True, window, sink)
    whole = mask.dense(torch.device("cpu"))
    positions = torch.arange(mask.q_len) + kv - mask.q_len
    for i, at in enumerate(positions.tolist()):
        seen = [j for j in range(kv) if j <= at and (j > at - window or j < sink)]
        assert whole[i].nonzero().flatten().tolist() == seen
    assert torch.equal(mask.visible(torch.tensor([0])), whole[:1])


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "given_",
    [
        {}, {"causal": False}, {"kv_len": 50}, {"window": 7}, {"kv_len": 50, "window": 9}, {"kv_heads": 4},
        {"kv_heads": 1, "batch": 3}, {"dtype": "bf16"}, {"dtype": "fp64"}, {"q_len": 1}, {"q_len": 1, "kv_len": 1},
    ],
    ids=str,
)  # fmt: skip
def test_right(impl: str, direction: str, given_: dict[str, Any]) -> None:
    checked(impl, direction=direction, **given_)


@pytest.mark.parametrize("impl", ["naive", "math"])
def test_values_may_be_wider_than_keys(impl: str) -> None:
    checked(impl, head_dim_v=24)


def test_compiled_once_and_its_cost_apart() -> None:
    assert checked("compile").facts["compile_s"] > 0
    assert checked("compile", direction="backward").facts["compile_s"] > 0


@pytest.mark.parametrize("given_", [{}, {"window": 5}, {"kv_len": 64}, {"causal": False}], ids=str)
def test_flex_attention(given_: dict[str, Any]) -> None:
    assert checked("flex", **given_).facts["compile_s"] > 0


@pytest.mark.parametrize("backend", ["efficient", "cudnn"])
def test_a_backend_that_refuses_gives_the_words_of_torch(backend: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        get_implementation(OP, backend).build(params_of(), Builder("cpu", CPU, seed=2))
    assert caught.value.code == "backend_refuses"
    assert backend in str(caught.value)
    assert "kernel" in str(caught.value)


def test_a_forced_backend_does_not_leak_into_the_next_case() -> None:
    checked("math")
    assert not torch.backends.cuda.flash_sdp_enabled()
    checked("flash")
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize(
    ("impl", "given_", "machine", "code"),
    [
        ("flex", {"direction": "backward"}, CPU, "no_backward"),
        ("flex", {"dtype": "fp64"}, CPU, "no_kernel"),
        ("flex", {"head_dim": 8}, CPU, "head_dim"),
        ("flash_attn", {"dtype": "bf16"}, GPU, "missing_library"),
    ],
)
def test_what_cannot_run_has_a_reason(impl: str, given_: dict[str, Any], machine: Machine, code: str) -> None:
    reason = get_implementation(OP, impl).unmet(params_of(**given_), machine)
    assert reason is not None
    assert reason.code == code


@pytest.mark.parametrize("factor", [0.9, float("nan")])
def test_a_wrong_result_is_found(factor: float) -> None:
    p = params_of()
    kernel = get_implementation(OP, "naive").build(p, Builder("cpu", CPU, seed=2))
    error, allowed, _ = get(OP).workload.check(p, kernel, kernel.call() * factor)
    assert not error <= allowed


def test_long_prompts_are_checked_on_some_rows() -> None:
    p = params_of(q_len=2048, kv_len=2048)
    kernel = get_implementation(OP, "flash").build(p, Builder("cpu", CPU, seed=2))
    out = kernel.call()
    error, allowed, how = get(OP).workload.check(p, kernel, out)
    assert error <= allowed
    assert "rows" in how
    out[:, :, -1] = 0  # the last row is always among them
    assert get(OP).workload.check(p, kernel, out)[0] > allowed


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kv_heads": 3}, "multiple of kv_heads"), ({"window": 34}, "window"),
        ({"window": 3, "causal": False}, "causal"),
        ({"kv_len": 0}, "kv_len"), ({"q_len": 34}, "q_len"), ({"dtype": "int8"}, "dtype"), ({"window": -1}, "window"),
        ({"head_dim": 0}, "head_dim"),
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused_in_words(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamError) as caught:
        params_of(**wrong)
    assert says in str(caught.value)


def test_traffic_between_memories_by_hand() -> None:
    # 2 sequences, 4 heads, 10 x 20 pairs, d 8: N M d^2 / (elements of the fast memory), at 2 bytes each.
    p = {"batch": 2, "q_len": 10, "kv_len": 20, "heads": 4, "head_dim": 8, "causal": False, "dtype": "bf16"}
    assert io_lower_bound(p, 1024) == 2 * 4 * 10 * 20 * 8 * 8 / 512 * 2
    # Less fast memory than one d x d block: N M d / sqrt(elements).
    assert io_lower_bound(p, 64) == pytest.approx(2 * 4 * 10 * 20 * 8 / 32**0.5 * 2)


def test_the_traffic_bound_stands_in_the_facts() -> None:
    kernel = checked("flash")
    facts = kernel.facts
    assert facts["io_memory_bytes"] > 0
    assert facts["io_bound_bytes"] == pytest.approx(io_lower_bound(params_of(), facts["io_memory_bytes"]))


def test_heads_of_models_and_their_slices() -> None:
    assert shapes.heads_of("llama-3-8b") == {"heads": 32, "kv_heads": 8, "head_dim": 128}
    assert shapes.heads_of("llama-3-8b", 16) == {"heads": 2, "kv_heads": 1, "head_dim": 128}
    with pytest.raises(UsageError, match="sliced"):
        shapes.heads_of("llama-3-8b", 7)
    with pytest.raises(UsageError, match="latent"):
        shapes.heads_of("deepseek-v3")
    assert [s["q_len"] for s in shapes.prompts(lengths="128:512:x2")] == [128, 256, 512]
    assert all(s["q_len"] <= s["kv_len"] for s in shapes.chunks(chunk="128,4096", contexts="1024,8192"))


def test_any_prefix_of_the_random_shapes_covers_the_space() -> None:
    many = list(shapes.random(40, seed=3))
    assert many[:10] == list(shapes.random(10, seed=3))
    lengths = [s["kv_len"] for s in many[:12]]
    assert min(lengths) < 100
    assert max(lengths) > 1000
    for shape in many:
        params_of(**shape)
    assert all("q_len" not in s for s in shapes.random(5, decode=True))
    with pytest.raises(ParamError, match="random shapes"):
        list(shapes.random(5, lo=4096, hi=8192, max_pairs=1))
