"""Predictable data: exact in every format, in any order of adding, and without a period that would hide a mix-up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.suites.collectives import data

torch = pytest.importorskip("torch")
DTYPES = {
    "fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8
}  # fmt: skip


@settings(max_examples=40)
@given(st.sampled_from(sorted(DTYPES)), st.integers(1, 40), st.integers(0, 3000), st.randoms(use_true_random=False))
def test_sums_are_exact_in_any_order(fmt: str, ranks: int, begin: int, chance: object) -> None:
    parts = []
    for rank in range(ranks):
        part = torch.empty(64, dtype=DTYPES[fmt])
        data.fill(part, fmt, rank, begin=begin, terms=ranks)
        parts.append(part)
    chance.shuffle(parts)  # type: ignore[attr-defined]
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    want = data.summed(fmt, ranks, total.device, begin=begin)
    assert data.wrong_elements(total, want) == (0, -1)


@pytest.mark.parametrize("fmt", sorted(DTYPES))
def test_what_is_moved_arrives_as_it_was(fmt: str) -> None:
    x = torch.empty(3 * data.CHUNK // 2, dtype=DTYPES[fmt])  # more than one piece
    data.fill(x, fmt, 5)
    assert data.wrong_elements(x, data.moved(fmt, 5, x.device)) == (0, -1)
    assert data.wrong_elements(x[1000:], data.moved(fmt, 5, x.device, begin=1000)) == (0, -1)


@pytest.mark.parametrize("shift", [1, 8, 64, 97, 128, 1024, 4096, 65536, 97 * 128])
def test_a_part_in_the_wrong_place_shows(shift: int) -> None:
    x = torch.empty(1 << 18)
    data.fill(x, "fp32", 0)
    wrong, _ = data.wrong_elements(x[shift : shift + 4096], data.moved("fp32", 0, x.device))
    assert wrong > 4096 * 0.5


def test_another_ranks_data_show() -> None:
    x = torch.empty(512)
    data.fill(x, "fp32", 1)
    assert data.wrong_elements(x, data.moved("fp32", 2, x.device)) == (512, 0)


def test_one_flipped_bit_nan_and_a_missing_rank_show() -> None:
    x = torch.empty(1000, dtype=torch.float32)
    data.fill(x, "fp32", 0)
    x.view(torch.int32)[617] ^= 1
    assert data.wrong_elements(x, data.moved("fp32", 0, x.device)) == (1, 617)
    x[3] = float("nan")
    error, tolerance, words = data.verdict([("the copy", x, data.moved("fp32", 0, x.device))])
    assert (error, tolerance) == (0.002, 0.0)
    assert "2 of 1000 elements of the copy are wrong, the first is number 3" in words
    y = torch.empty(1000)
    data.fill(y, "fp32", 0, terms=2)  # rank 1 is missing from the sum
    assert data.wrong_elements(y, data.summed("fp32", 2, y.device))[0] > 900


def test_every_format_says_up_to_how_many_ranks_it_is_exact() -> None:
    assert data.most_ranks() == {"fp64": 2**30, "fp32": 2**23, "fp16": 1024, "bf16": 128, "int8": 63}
