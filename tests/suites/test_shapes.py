"""Shape sources of matrix products."""

from __future__ import annotations

from math import log

import pytest

from wattline.errors import ParamError, UnknownNameError, UsageError
from wattline.suites.gemm import shapes


def test_squares() -> None:
    assert [s["m"] for s in shapes.squares()] == [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
    assert list(shapes.squares(7)) == [{"m": 7, "n": 7, "k": 7}]
    assert [s["k"] for s in shapes.squares(["1,2", "64:128:x2"])] == [1, 2, 64, 128]


def test_skinny_takes_the_layers_of_models() -> None:
    found = list(shapes.skinny("llama-3-8b", m="1,4", tp="1,8", layers=["qkv", "down"]))
    assert [(s["m"], s["n"], s["k"]) for s in found] == [
        (1, 6144, 4096), (4, 6144, 4096), (1, 4096, 14336), (4, 4096, 14336),
        (1, 768, 4096), (4, 768, 4096), (1, 4096, 1792), (4, 4096, 1792),
    ]  # fmt: skip
    assert {s["layout"] for s in found} == {"nt"}


def test_skinny_repeats_no_shape_and_leaves_out_impossible_slices() -> None:
    # The two share every layer but the vocabulary.
    both = list(shapes.skinny(["mistral-7b", "llama-3-8b"], m=1))
    assert len(both) == 6
    assert len({(s["n"], s["k"]) for s in both}) == 6
    assert len(list(shapes.skinny(["qwen2.5-0.5b", "llama-3-8b"], m=1, tp="1,4"))) == 5 + 5 + 5
    with pytest.raises(UsageError, match="14 heads"):
        list(shapes.skinny("qwen2.5-0.5b", tp=4))
    with pytest.raises(UnknownNameError, match="gate_up"):
        list(shapes.skinny("llama-3-8b", layers="gateup"))
    with pytest.raises(UnknownNameError, match="model"):
        list(shapes.skinny("lama"))


def test_unaligned_by_hand() -> None:
    found = [tuple(s.values()) for s in shapes.unaligned(64, ["cube", "odd", "prime", "m", "k"])]
    assert found == [
        (63, 63, 63), (65, 65, 65), (61, 61, 61), (67, 67, 67), (61, 61, 61), (67, 67, 67), (65, 64, 64), (64, 64, 65)
    ]  # fmt: skip
    assert [s["m"] for s in shapes.unaligned(512, "prime")] == [509, 521]
    with pytest.raises(UnknownNameError, match="prime"):
        list(shapes.unaligned(64, "primes"))
    with pytest.raises(ParamError):
        list(shapes.unaligned(4))


def test_line_moves_along_one_axis() -> None:
    found = list(shapes.line("k", "10:14:+2", m=3, n=4))
    assert found == [{"m": 3, "n": 4, "k": k} for k in (10, 12, 14)]
    with pytest.raises(UnknownNameError):
        list(shapes.line("b"))


def test_random_keeps_its_limits_and_its_seed() -> None:
    found = list(shapes.random(200, seed=3, lo=16, hi=2048, align=8, max_flops="4G", max_bytes=2e7))
    assert found == list(shapes.random(200, seed=3, lo=16, hi=2048, align=8, max_flops="4G", max_bytes=2e7))
    assert found != list(shapes.random(200, seed=4, lo=16, hi=2048, align=8, max_flops="4G", max_bytes=2e7))
    assert len({tuple(s.values()) for s in found}) == 200
    for s in found:
        m, n, k = s["m"], s["n"], s["k"]
        assert all(16 <= v <= 2048 and v % 8 == 0 for v in (m, n, k))
        assert 2 * m * n * k <= 4e9
        assert 4 * (m * k + k * n + m * n) <= 2e7


def test_random_is_log_uniform() -> None:
    found = list(shapes.random(3000, lo=16, hi=4096, max_flops=1e15, max_bytes=1e15))
    for axis in "mnk":
        # Eight octaves, each should hold an eighth: 375, standard deviation 18.
        counts = [0] * 8
        for s in found:
            counts[min(int(log(s[axis] / 16, 2)), 7)] += 1
        assert all(abs(count - 375) < 90 for count in counts)


def test_random_refuses_limits_that_no_point_meets() -> None:
    with pytest.raises(ParamError, match="0 of 5"):
        list(shapes.random(5, lo=1024, hi=2048, max_flops=1000))
    with pytest.raises(ParamError):
        list(shapes.random(5, lo=100, hi=10))
