"""Latent attention: both forms against double precision and against each other."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.errors import ParamError, UnknownNameError, UsageError
from wattline.params import Value
from wattline.suites.attention.mla import absorb, expand, release
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
OP = "attention.mla"
FORMS = ("absorbed", "absorbed_sdpa", "expanded")


def params_of(**given_: Value) -> dict[str, Value]:
    shape = {"kv_len": 33, "heads": 3, "kv_rank": 20, "rope_dim": 4, "nope_dim": 10, "v_dim": 6, "dtype": "fp32"}
    return get(OP).workload.params.parse({**shape, **given_}, op=OP)


def built(impl: str, **given_: Value) -> tuple[Kernel, dict[str, Value]]:
    p = params_of(**given_)
    implementation = get_implementation(OP, impl)
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    return implementation.build(p, Builder("cpu", CPU, data="normal", seed=4)), p


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("given_", [{}, {"batch": 2}, {"q_len": 7, "batch": 2}, {"q_len": 33}, {"kv_len": 1}], ids=str)
@pytest.mark.parametrize("impl", FORMS)
def test_right(impl: str, given_: dict[str, Any], dtype: str) -> None:
    kernel, p = built(impl, dtype=dtype, **given_)
    error, allowed, how = get(OP).workload.check(p, kernel, kernel.call())
    assert how == "full"
    assert error <= allowed


def test_what_the_compiler_fuses_is_right() -> None:
    kernel, p = built("compile", q_len=5)
    error, allowed, _ = get(OP).workload.check(p, kernel, kernel.call())
    assert error <= allowed
    assert kernel.facts["compile_s"] > 0


def test_the_forms_are_one_by_associativity() -> None:
    kernel, _ = built("absorbed", dtype="fp64", batch=2, q_len=4)
    i = kernel.inputs
    keys, values = expand(i["latents"], i["w_uk"], i["w_uv"])
    assert keys.shape == (2, 3, 33, 14)
    scores = torch.matmul(i["q"], keys.transpose(2, 3))
    torch.testing.assert_close(torch.einsum("bhqc,bkc->bhqk", absorb(i["q"], i["w_uk"]), i["latents"]), scores)
    weights = torch.rand(2, 3, 4, 33, dtype=torch.float64)
    out = torch.einsum("bhqk,bkr->bhqr", weights, i["latents"][..., :20])
    torch.testing.assert_close(release(out, i["w_uv"]), weights @ values)


def test_a_query_sees_nothing_behind_itself() -> None:
    for impl in FORMS:
        kernel, _ = built(impl, q_len=5)
        before = kernel.call().clone()
        kernel.inputs["latents"][:, -2:] = 9.0
        after = kernel.call()
        assert torch.equal(after[:, :, :3], before[:, :, :3])
        assert not torch.equal(after[:, :, 3:], before[:, :, 3:])


def test_wrong_results_are_found() -> None:
    kernel, p = built("absorbed", batch=2, q_len=4)
    out = kernel.call()
    for wrong in (out[[1, 0]], out[:, [1, 0, 2]], out[:, :, [1, 0, 2, 3]], out * 1.001, out[..., :5], out * torch.nan):
        error, allowed, _ = get(OP).workload.check(p, kernel, wrong)
        assert not error <= allowed


def test_the_footprint_is_what_is_allocated() -> None:
    kernel, p = built("expanded", batch=2, q_len=4)
    tensors = (*kernel.inputs.values(), kernel.call())
    assert get(OP).workload.footprint(p) == sum(t.numel() * t.element_size() for t in tensors)
    assert kernel.facts["token_bytes"] == 24 * 4
    assert kernel.facts["expanded_bytes"] == 2 * 3 * 33 * (14 + 6) * 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"q_len": 34}, "q_len is at most kv_len"), ({"kv_len": 0}, "kv_len must be from 1"),
     ({"kv_rank": 0}, "kv_rank must be from 1"), ({"dtype": "int8"}, "dtype is one of")],
    ids=str,
)  # fmt: skip
def test_wrong_questions_are_refused_with_the_rule(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamError, match=says):
        params_of(**wrong)


def test_shapes_of_models_are_sliced_by_heads_alone() -> None:
    workload = get(OP).workload
    found = list(workload.shapes("tokens", contexts="64,1024", q_len="1,128", tp=8))
    assert [(s["kv_len"], s["q_len"]) for s in found] == [(64, 1), (1024, 1), (1024, 128)]
    assert all((s["heads"], s["kv_rank"], s["rope_dim"], s["nope_dim"], s["v_dim"]) == (16, 512, 64, 128, 128)
               for s in found)  # fmt: skip
    assert next(workload.shapes("tokens", contexts=64, q_len=0))["q_len"] == 64
    for shape in [*found, *workload.shapes("random", count=20)]:
        workload.params.parse({**shape, "dtype": "fp32"}, op=OP)
    with pytest.raises(UsageError, match="no latent attention"):
        list(workload.shapes("tokens", models="llama-3-8b"))
    with pytest.raises(UsageError, match="cannot be sliced"):
        list(workload.shapes("tokens", tp=3))
    with pytest.raises(UnknownNameError, match="model"):
        list(workload.shapes("tokens", models="deepseek-v9"))
    with pytest.raises(ParamError, match="max_flops"):
        list(workload.shapes("random", count=2, max_flops=10))


def test_scouts_are_valid_questions() -> None:
    workload = get(OP).workload
    scout = workload.scout(params_of(kv_len=4096, q_len=4096))
    assert scout is not None
    assert workload.params.parse(scout, op=OP) == scout
    assert workload.scout(scout) is None
