"""What is compared of a result too large to be compared whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.sampled import spread
from wattline.suites.workload import Machine


def test_spread_by_hand() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(7, 1) == [6]
    assert spread(7, 0) == []
    assert spread(0, 3) == []


@given(st.integers(0, 500), st.integers(0, 60))
def test_spread_holds_what_was_asked_for(count: int, wanted: int) -> None:
    found = spread(count, wanted)
    assert found == sorted(set(found))
    assert len(found) == min(count, wanted)
    assert all(0 <= i < count for i in found)
    if found:
        assert found[-1] == count - 1
    if len(found) > 1:
        assert found[0] == 0


HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": "fp32"}
CASES = [
    ("attention.prefill", "flash", {"batch": 3, "q_len": 70, "kv_len": 90, **HEADS}),
    ("attention.prefill", "naive", {"batch": 3, "q_len": 70, "kv_len": 90, "direction": "backward", **HEADS}),
    ("attention.linear", "block", {"batch": 3, "length": 90, "heads": 5, "head_dim": 16, "dtype": "fp32"}),
    ("attention.linear", "quadratic",
     {"batch": 3, "length": 90, "heads": 5, "head_dim": 16, "dtype": "fp32", "direction": "backward"}),
    ("attention.sparse", "gather", {"batch": 3, "q_len": 90, "kv_len": 90, "window": 16, "block": 30, **HEADS}),
    ("attention.hybrid", "apart",
     {"chunk": 60, "chunk_context": 80, "decodes": 60, "decode_context": 70, **HEADS}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "impl", "sizes"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_large_attention_is_compared_on_samples_and_a_wrong_one_still_fails(
    monkeypatch: pytest.MonkeyPatch, op: str, impl: str, sizes: Mapping[str, Any]
) -> None:
    from wattline.suites.attention import linear, reference, sparse

    for module in (reference, linear, sparse):
        monkeypatch.setattr(module, "FULL_PAIRS", 1)
    machine = Machine()
    workload = get(op).workload
    p = workload.params.parse(sizes)
    kernel = get_implementation(op, impl).build(p, Builder("cpu", machine, seed=3))
    result = kernel.call()
    error, allowed, method = workload.check(p, kernel, result)
    assert error <= allowed
    assert "full" not in method.split()
    wrong = tuple(1.5 * part for part in result) if isinstance(result, tuple) else 1.5 * result
    error, allowed, _ = workload.check(p, kernel, wrong)
    assert error > allowed
