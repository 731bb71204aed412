"""Decoding and its caches: work by hand, formulas against what is counted one by one, laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import UnknownNameError
from wattline.workmodels import work_of
from wattline.workmodels.lengths import DISTRIBUTIONS, lengths_of

DECODE, KVQUANT, MLA = "attention.decode", "attention.kvquant", "attention.mla"
SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 8, "dtype": "bf16"}


def test_decode_by_hand() -> None:
    # Two sequences of 10 tokens, 4 query heads on 2 key heads of width 8: 2 * 4 * 20 * (8 + 8) FLOPs; Q and O of 64
    # elements each, 20 keys and values of 2 heads.
    work = work_of(DECODE, {**SHAPE, "batch": 2, "kv_len": 10})
    assert work.flops == {"bf16": 2560.0}
    assert work.bytes_read == {"device": 2 * 4 * 8 * 2 + 20 * 2 * 16 * 2}
    assert work.bytes_written == {"device": 2 * 4 * 8 * 2}
    assert work.details == {"keys": 20, "padded_bytes": 20 * 2 * 16 * 2}


def test_a_window_a_narrow_cache_pages_and_splits_by_hand() -> None:
    p = {**SHAPE, "kv_len": 10, "window": 3, "kv_dtype": "fp8_e4m3", "page_size": 4, "splits": 2}
    work = work_of(DECODE, p)
    assert work.total_flops == 2 * 4 * 3 * 16
    assert work.bytes_read["device"] == 4 * 8 * 2 + 3 * 2 * 16 * 1
    assert work.details == {
        "keys": 3, "padded_bytes": 10 * 32, "page_bytes": 12 * 32, "index_bytes": 3 * 4,
        "partial_bytes": 2 * 4 * 2 * 4 * 9,
    }  # fmt: skip


def test_widths_of_keys_and_values_may_differ() -> None:
    work = work_of(DECODE, {**SHAPE, "kv_len": 10, "head_dim_v": 4})
    assert work.total_flops == 2 * 4 * 10 * 12
    assert work.bytes_written["device"] == 4 * 4 * 2


@given(
    st.integers(1, 20), st.integers(1, 300), st.integers(0, 350), st.sampled_from(DISTRIBUTIONS), st.integers(0, 99),
    st.integers(1, 40),
)  # fmt: skip
def test_the_formula_equals_the_count(  # noqa: PLR0917
    batch: int, kv_len: int, window: int, distribution: str, seed: int, page: int
) -> None:
    lengths = lengths_of(batch, kv_len, distribution, seed)
    seen = [sum(1 for j in range(n) if not window or j >= n - window) for n in lengths]
    work = work_of(DECODE, {
        **SHAPE, "batch": batch, "kv_len": kv_len, "window": window, "lengths": distribution, "length_seed": seed,
        "page_size": page,
    })  # fmt: skip
    assert work.total_flops == 2 * 4 * sum(seen) * 16
    assert work.bytes_at() == 2 * batch * 4 * 8 * 2 + sum(seen) * 2 * 16 * 2
    pages = sum(len({j // page for j in range(n)}) for n in lengths)
    assert work.details["page_bytes"] == pages * page * 64
    assert work.details["index_bytes"] == pages * 4
    assert work.details["padded_bytes"] >= work.details["keys"] * 64


@given(st.integers(1, 200), st.integers(1, 10**6), st.sampled_from(DISTRIBUTIONS), st.integers(0, 99))
def test_lengths_reach_the_longest_and_no_further(batch: int, longest: int, distribution: str, seed: int) -> None:
    lengths = lengths_of(batch, longest, distribution, seed)
    assert len(lengths) == batch
    assert max(lengths) == longest
    assert min(lengths) >= 1
    assert lengths == lengths_of(batch, longest, distribution, seed)


def test_lengths_are_distributed_as_they_are_called() -> None:
    assert lengths_of(3, 7) == (7, 7, 7)
    assert sorted(lengths_of(4, 120, "zipf", 5)) == [30, 40, 60, 120]
    uniform = np.array(lengths_of(4000, 10**6, "uniform", 1))
    assert uniform.mean() == pytest.approx(5e5, rel=0.05)
    lognormal = np.log(lengths_of(4000, 10**9, "lognormal", 1))
    assert lognormal.std() == pytest.approx(1.0, rel=0.05)
    assert lengths_of(9, 99, "uniform", 1) != lengths_of(9, 99, "uniform", 2)
    with pytest.raises(UnknownNameError, match="lognormal"):
        lengths_of(2, 9, "log-normal")


def test_unequal_lengths_of_arrays_equal_those_of_numbers() -> None:
    rng = np.random.default_rng(0)
    columns = {"batch": rng.integers(1, 12, 20), "kv_len": rng.integers(1, 90, 20), "window": rng.integers(0, 60, 20)}
    p = {**SHAPE, "lengths": "lognormal", "length_seed": 3, "page_size": 16}
    together = work_of(DECODE, {**p, **columns})
    for i in range(20):
        one = work_of(DECODE, {**p, **{name: int(values[i]) for name, values in columns.items()}})
        assert together.total_flops[i] == one.total_flops
        assert together.bytes_at()[i] == one.bytes_at()
        assert together.details["index_bytes"][i] == one.details["index_bytes"]


def test_quantised_bytes_by_hand() -> None:
    # 32 tokens of 2 heads of 64 channels, 4 bits by 32: codes 2 * 32 * 2 * 64 / 2 bytes; scales and zeros of keys
    # 2 * 2 * 1 * 64, of values 2 * 2 * 32 * 2, each of 2 bytes.
    p = {"kv_len": 32, "heads": 4, "kv_heads": 2, "head_dim": 64, "bits": 4, "group": 32, "dtype": "bf16"}
    read = work_of(KVQUANT, p)
    codes, scales = 2 * 32 * 2 * 64 / 2, (2 * 2 * 1 * 64 + 2 * 2 * 32 * 2) * 2
    assert read.details["packed_bytes"] == codes
    assert read.details["scale_bytes"] == scales
    assert read.details["native_bytes"] == 2 * 32 * 2 * 64 * 2
    assert read.bytes_at() == codes + scales + 2 * 4 * 64 * 2
    assert read.total_flops == work_of(DECODE, p).total_flops
    append = work_of(KVQUANT, {**p, "phase": "append"})
    assert append.bytes_read["device"] == read.details["native_bytes"]
    assert append.bytes_written["device"] == codes + scales
    assert append.total_flops == 4 * 2 * 32 * 2 * 64


@given(
    st.sampled_from([8, 4, 2]), st.sampled_from([16, 32, 64]), st.integers(1, 50), st.sampled_from(["read", "append"])
)  # fmt: skip
def test_fewer_bits_are_never_more_bytes(bits: int, group: int, groups: int, phase: str) -> None:
    p = {"kv_len": groups * group, "heads": 4, "kv_heads": 2, "head_dim": 64, "group": group, "dtype": "fp16"}
    fewer, more = (work_of(KVQUANT, {**p, "phase": phase, "bits": b}) for b in (bits // 2, bits))
    assert fewer.bytes_at() < more.bytes_at()
    assert fewer.total_flops == more.total_flops


def mla_flops(p: dict[str, Any], *, absorbed: bool) -> int:
    """Both forms, product by product: 2 m n k each."""
    b, h, q, kv = p["batch"], p["heads"], p["q_len"], p["kv_len"]
    r, e, n, v = p["kv_rank"], p["rope_dim"], p["nope_dim"], p["v_dim"]
    pairs = sum(kv - q + i + 1 for i in range(q))
    if absorbed:
        products = [q * n * r, pairs * (r + e), pairs * r, q * r * v]
    else:
        products = [kv * r * n, kv * r * v, pairs * (n + e), pairs * v]
    return 2 * b * h * sum(products)


@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 60), st.integers(1, 32))
def test_latent_attention_is_the_lesser_of_its_forms(batch: int, q_len: int, more: int, rank: int) -> None:
    p = {
        "batch": batch, "q_len": q_len, "kv_len": q_len + more, "heads": 4, "kv_rank": rank, "rope_dim": 4,
        "nope_dim": 8, "v_dim": 6, "dtype": "bf16",
    }  # fmt: skip
    work = work_of(MLA, p)
    assert work.details["absorbed_flops"] == mla_flops(p, absorbed=True)
    assert work.details["expanded_flops"] == mla_flops(p, absorbed=False)
    assert work.total_flops == min(work.details["absorbed_flops"], work.details["expanded_flops"])
    assert work.bytes_at() == 2 * (
        batch * q_len * 4 * (12 + 6) + batch * (q_len + more) * (rank + 4) + 4 * rank * (8 + 6)
    )


def test_decoding_absorbs_and_a_long_prompt_expands() -> None:
    # DeepSeek-V3: a token of its cache takes 576 numbers, where 128 heads with keys and values of 128 take 32768.
    decode = work_of(MLA, {"kv_len": 4096, "heads": 128, "dtype": "bf16"})
    assert decode.total_flops == decode.details["absorbed_flops"]
    assert decode.details["latent_bytes"] == 4096 * 576 * 2
    prompt = work_of(MLA, {"kv_len": 4096, "q_len": 4096, "heads": 128, "dtype": "bf16"})
    assert prompt.total_flops == prompt.details["expanded_flops"]
