"""Work models: cases worked by hand, laws, and formulas against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError, UnknownNameError
from wattline.workmodels import known_ops, work_of
from wattline.workmodels.attention import causal_pairs, keys_touched
from wattline.workmodels.collectives import busbw_factor, rounds

small = st.integers(1, 40)


def mask_pairs(q_len: int, kv_len: int, window: int) -> set[tuple[int, int]]:
    """The pairs of a causal sliding mask, one by one."""
    pairs = set()
    for i, j in itertools.product(range(q_len), range(kv_len)):
        position = kv_len - q_len + i
        if j <= position and (window == 0 or j > position - window):
            pairs.add((i, j))
    return pairs


@given(small, small, st.integers(0, 50))
def test_causal_pairs_are_those_of_the_mask(q_len: int, kv_len: int, window: int) -> None:
    assert causal_pairs(q_len, kv_len, window) == len(mask_pairs(q_len, kv_len, window))


@given(small, st.integers(0, 40), st.integers(0, 50))
def test_keys_touched_are_the_columns_of_the_mask(q_len: int, more: int, window: int) -> None:
    kv_len = q_len + more
    assert keys_touched(q_len, kv_len, window) == len({j for _, j in mask_pairs(q_len, kv_len, window)})


def test_pairs_of_arrays_equal_those_of_numbers() -> None:
    rng = np.random.default_rng(0)
    q, kv, window = rng.integers(1, 50, (3, 200))
    window[::3] = 0
    one_by_one = [causal_pairs(int(a), int(b), int(c)) for a, b, c in zip(q, kv, window, strict=True)]
    assert np.array_equal(causal_pairs(q, kv, window), one_by_one)


def test_prefill_by_hand() -> None:
    # 4 queries over 4 keys, causal: 1 + 2 + 3 + 4 = 10 pairs; 2 heads of 8: 2 * 2 * 10 * 16 = 640 FLOPs.
    work = work_of("attention.prefill", {"q_len": 4, "kv_len": 4, "heads": 2, "head_dim": 8, "dtype": "bf16"})
    assert work.flops == {"bf16": 640.0}
    assert work.bytes_read == {"device": 4 * 2 * 8 * 2 + 4 * 2 * 16 * 2}
    assert work.bytes_written == {"device": 4 * 2 * 8 * 2}


def test_decode_by_hand() -> None:
    # Bytes: Q + O + min(kv, window) * kv_heads * (d_k + d_v) * b(kv), the formula of the design.
    p = {"batch": 3, "kv_len": 1000, "heads": 32, "kv_heads": 8, "head_dim": 128, "window": 128}
    work = work_of("attention.decode", {**p, "dtype": "bf16", "kv_dtype": "fp8"})
    assert work.bytes_at() == 3 * (2 * 32 * 128 * 2 + 128 * 8 * 256 * 1)
    assert work.total_flops == 3 * 2 * 32 * 128 * 256


def test_backward_costs_two_and_a_half_forwards() -> None:
    p = {"q_len": 64, "kv_len": 64, "heads": 2, "head_dim": 8, "dtype": "fp16"}
    forward, backward = work_of("attention.prefill", p), work_of("attention.prefill", {**p, "direction": "backward"})
    assert backward.total_flops == 2.5 * forward.total_flops
    assert backward.bytes_at() > forward.bytes_at()


def test_a_window_without_a_mask_is_refused() -> None:
    p = {"q_len": 4, "kv_len": 4, "heads": 1, "head_dim": 8, "dtype": "bf16", "causal": False}
    assert work_of("attention.prefill", p).total_flops == 2 * 16 * 16
    with pytest.raises(ParamError, match="causal"):
        work_of("attention.prefill", {**p, "window": 2})
    with pytest.raises(ParamError, match="direction"):
        work_of("attention.prefill", {**p, "direction": "sideways"})


def test_moe_by_hand() -> None:
    # 2 tokens to 2 of 4 experts: 4 experts active; each holds 3 * 8 * 16 weights.
    p = {"tokens": 2, "hidden": 8, "intermediate": 16, "experts": 4, "top_k": 2, "dtype": "bf16"}
    work = work_of("gemm.moe", p)
    assert work.total_flops == 2 * 4 * 3 * 8 * 16
    assert work.bytes_read["device"] == 4 * 3 * 8 * 16 * 2 + 2 * 8 * 2
    # Skewed routing may send both tokens to the same two experts.
    skewed = work_of("gemm.moe", {**p, "routing": "power_law_1.2"})
    assert skewed.bytes_read["device"] == 2 * 3 * 8 * 16 * 2 + 2 * 8 * 2
    # Not gated: two matrices. Halved by tensor parallelism, and by expert parallelism.
    assert work_of("gemm.moe", {**p, "gated": False}).total_flops == pytest.approx(work.total_flops * 2 / 3)
    assert work_of("gemm.moe", {**p, "tp": 2}).total_flops == work.total_flops / 2
    assert work_of("gemm.moe", {**p, "ep": 2}).total_flops == work.total_flops / 2


@pytest.mark.parametrize(
    ("name", "factor"),
    [("all_reduce", 1.75), ("all_gather", 0.875), ("reduce_scatter", 0.875), ("all_to_all", 0.875), ("gather", 0.875),
     ("scatter", 0.875), ("broadcast", 1.0), ("reduce", 1.0), ("send_recv", 1.0), ("all_to_all_v", 1.0)],
)  # fmt: skip
def test_link_bytes_of_eight_ranks(name: str, factor: float) -> None:
    work = work_of(f"collectives.{name}", {"bytes": 1000, "world_size": 8})
    assert work.link_bytes == {"fabric": 1000 * factor}
    assert work.messages == {"fabric": 3.0}


def test_one_rank_sends_nothing_and_a_barrier_no_bytes() -> None:
    for op in known_ops():
        if op.startswith("collectives."):
            assert sum(work_of(op, {**params_of(op), "world_size": 1}).link_bytes.values()) == 0
    barrier = work_of("collectives.barrier", {"world_size": 5})
    assert barrier.messages == {"fabric": 3.0}
    assert not barrier.link_bytes


def test_rounds_of_arrays_equal_those_of_numbers() -> None:
    ranks = np.arange(1, 100)
    assert np.array_equal(rounds(ranks), [rounds(int(n)) for n in ranks])
    assert np.array_equal(busbw_factor("all_reduce", ranks), [busbw_factor("all_reduce", int(n)) for n in ranks])


def test_rowwise_by_hand() -> None:
    p = {"rows": 10, "cols": 100, "dtype": "bf16"}
    assert work_of("elementwise.add", p).bytes_at() == 3 * 1000 * 2
    assert work_of("elementwise.addu", p).bytes_at() == 2 * 1000 * 2
    assert work_of("elementwise.copy", p).total_flops == 0
    assert work_of("norm.layernorm", p).bytes_at() == 2 * 1000 * 2
    with pytest.raises(UnknownNameError, match="op"):
        work_of("elementwise.frobnicate", p)


FULL = {
    "attention.prefill": {"batch": 2, "q_len": 64, "kv_len": 128, "heads": 4, "kv_heads": 2, "head_dim": 64},
    "attention.decode": {"batch": 2, "kv_len": 128, "heads": 4, "kv_heads": 2, "head_dim": 64},
    "attention.kvquant": {"batch": 2, "kv_len": 128, "heads": 4, "kv_heads": 2, "head_dim": 64, "bits": 4, "group": 32},
    "attention.mla": {"batch": 2, "q_len": 8, "kv_len": 128, "heads": 4, "kv_rank": 64},
    "gemm.dense": {"batch": 2, "m": 32, "n": 48, "k": 64},
    "gemm.moe": {"tokens": 16, "hidden": 64, "intermediate": 128, "experts": 8, "top_k": 2},
    # The fewest operations lie at blocks = sqrt(size): here and above more blocks are more work.
    "gemm.monarch": {"m": 8, "size": 256, "blocks": 16},
    "gemm.quantized": {"m": 16, "n": 48, "k": 64, "group": 32, "scheme": "w4a16"},
    "gemm.sparse": {"m": 32, "n": 48, "k": 64, "density": 0.1},
    "gemm.tiled": {"m": 32, "n": 48, "k": 64, "block_m": 16, "block_n": 16, "block_k": 16},
    "gemm.lowrank": {"m": 16, "n": 48, "k": 64, "rank": 4, "adapters": 3},
    "attention.merge": {"batch": 2, "q_len": 3, "kv_len": 64, "heads": 4, "kv_heads": 2, "head_dim": 8, "shards": 4},
    "attention.linear": {"batch": 2, "length": 64, "heads": 4, "head_dim": 16},
    "attention.hybrid": {
        "chunk": 16, "chunk_context": 256, "decodes": 3, "decode_context": 64, "heads": 4, "kv_heads": 2, "head_dim": 16
    },
    "attention.sparse": {
        "batch": 2, "q_len": 64, "kv_len": 1024, "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 32, "sink": 4
    },
    "conv.2d": {"n": 2, "c": 8, "h": 32, "w": 48, "k": 16, "r": 3, "s": 3},
    "conv.long": {"batch": 2, "channels": 8, "length": 256, "taps": 16},
    "fusion.chain": {"rows": 32, "cols": 64, "length": 4},
    "collectives.overlap": {"m": 16, "n": 24, "k": 32, "bytes": 4096, "world_size": 4},
    "collectives.strided": {"count": 32, "block": 2, "stride": 64, "world_size": 4},
    "collectives.moe": {"tokens": 16, "hidden": 64, "experts": 8, "top_k": 2, "world_size": 4},
    "collectives.stragglers": {"bytes": 4096, "work": 64, "world_size": 4},
    "host.stream": {"bytes": 1 << 20, "kernel": "triad"},
    "memory.bandwidth": {"bytes": 1 << 20, "kernel": "read"},
    "memory.latency": {"bytes": 1 << 20, "steps": 1 << 10},
    "launch.overhead": {"launches": 100},
    "launch.trace": {"layers": 2, "batch": 2, "tokens": 16, "hidden": 64},
    "offload.bidirectional": {"bytes": 1 << 20, "chunk": 1 << 16},
    "offload.d2d": {"bytes": 1 << 20},
    "offload.d2h": {"bytes": 1 << 20, "chunk": 0},
    "offload.gather": {"rows": 1000, "row_bytes": 512},
    "offload.h2d": {"bytes": 1 << 20, "chunk": 1 << 16},
    "offload.optimizer": {"parameters": 1 << 20, "cpu_share": 0.1},
    "offload.pinned_alloc": {"bytes": 1 << 20, "count": 4},
    "offload.pipeline": {"layers": 4, "bytes": 1 << 20, "to": "device"},
    "offload.swap": {"blocks": 8, "block_bytes": 1 << 16},
    "storage.read": {"bytes": 1 << 30, "span": 1 << 20, "block": 1 << 12},
    "storage.write": {"bytes": 1 << 30, "span": 1 << 20, "block": 1 << 12},
    "storage.checkpoint": {"bytes": 1 << 20},
}
# Not sizes of what is worked on: more of them may well be less work (a larger filter has fewer positions).
NOT_SIZES = ("kv_heads", "top_k", "experts", "world_size", "r", "s", "group")


def params_of(op: str) -> dict[str, Any]:
    if op.startswith("collectives."):
        return FULL.get(op, {"bytes": 4096, "world_size": 4})
    return FULL.get(op, {"rows": 32, "cols": 64})


@given(st.sampled_from(sorted(known_ops())), st.integers(2, 9), st.data())
def test_more_of_anything_is_never_less_work(op: str, factor: int, data: st.DataObject) -> None:
    p = params_of(op)
    name = data.draw(st.sampled_from([n for n in p if n not in NOT_SIZES and not isinstance(p[n], str)]))
    less = work_of(op, {**p, "dtype": "bf16"})
    more = work_of(op, {**p, name: p[name] * factor, "dtype": "bf16"})
    assert more.total_flops >= less.total_flops
    assert more.bytes_at() >= less.bytes_at()
    assert sum(more.link_bytes.values()) >= sum(less.link_bytes.values())


@given(st.sampled_from(["attention.prefill", "attention.decode", "gemm.dense"]), st.integers(1, 64))
def test_work_is_linear_in_the_batch(op: str, batch: int) -> None:
    p = {**FULL[op], "dtype": "fp16"}
    one, many = work_of(op, {**p, "batch": 1}), work_of(op, {**p, "batch": batch})
    assert many.total_flops == pytest.approx(batch * one.total_flops)
    assert many.bytes_at() == pytest.approx(batch * one.bytes_at())


@pytest.mark.parametrize("op", sorted(known_ops()))
def test_arrays_give_what_numbers_give(op: str) -> None:
    p = params_of(op)
    rng = np.random.default_rng(1)
    words = {name: value for name, value in p.items() if isinstance(value, str)}
    columns = {name: value * rng.integers(1, 9, 20) for name, value in p.items() if name not in words}
    work = work_of(op, {**columns, **words, "dtype": "bf16"})
    for i in range(20):
        one = work_of(op, {**{k: v[i].item() for k, v in columns.items()}, **words, "dtype": "bf16"})
        assert np.broadcast_to(work.total_flops, 20)[i] == pytest.approx(one.total_flops)
        assert np.broadcast_to(work.bytes_at(), 20)[i] == pytest.approx(one.bytes_at())


def test_large_arrays_do_not_wrap() -> None:
    size = np.array([65536], dtype=np.int64)
    shape = {"batch": 64 * size, "q_len": size, "kv_len": size, "heads": 96, "kv_heads": 8, "head_dim": 128}
    p = {**shape, "dtype": "bf16"}
    assert work_of("attention.prefill", p).total_flops[0] > 2.0**64
