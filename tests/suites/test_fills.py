"""Inputs in every number format."""

from __future__ import annotations

import math

import pytest
import torch

from wattline.case import FILLS
from wattline.errors import UnknownNameError
from wattline.formats import BENCH_FORMATS, number_format
from wattline.suites import fills
from wattline.suites.fills import Builder
from wattline.suites.workload import Machine

COUNT = 60_000


def _draw(fmt: str, data: str, seed: int = 0, count: int = COUNT) -> torch.Tensor:
    return Builder("cpu", Machine(), data=data, seed=seed).tensor((count,), fmt)


@pytest.mark.parametrize("fmt", BENCH_FORMATS)
@pytest.mark.parametrize("data", FILLS)
def test_every_fill_has_the_moments_it_promises(fmt: str, data: str) -> None:
    x = _draw(fmt, data)
    assert x.dtype == getattr(torch, number_format(fmt).torch_name)
    values = x.double()
    assert bool(torch.isfinite(values).all())
    low, high, std = float(values.min()), float(values.max()), float(values.std())
    whole = number_format(fmt).kind == "int"
    full = 127.0 if whole else 1.0
    if data == "zeros":
        assert low == high == 0
    elif data == "integers":
        assert sorted(set(values.tolist())) == list(range(-4, 5))
        assert std == pytest.approx(math.sqrt(60 / 9), rel=0.02)
    elif data == "normal":
        assert std == pytest.approx(fills.INT8_NORMAL_STD if whole else 1.0, rel=0.02)
        assert high > 3 * std
        assert low < -3 * std
    else:
        assert (low, high) == (pytest.approx(-full, rel=0.01), pytest.approx(full, rel=0.01))
        spread = full / math.sqrt(3) * (math.sqrt(0.5) if data == "sparse" else 1)
        assert std == pytest.approx(spread, rel=0.02)
        assert abs(float(values.mean())) < 0.02 * full
    if data == "sparse":
        assert float((values == 0).double().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "fp8_e4m3", "int8"])
def test_the_seed_decides(fmt: str) -> None:
    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return torch.equal(a.view(torch.uint8), b.view(torch.uint8))

    assert same(_draw(fmt, "uniform", 5), _draw(fmt, "uniform", 5))
    assert not same(_draw(fmt, "uniform", 5), _draw(fmt, "uniform", 6))
    builder = Builder("cpu", Machine(), seed=5)
    assert not same(builder.tensor((COUNT,), fmt), builder.tensor((COUNT,), fmt))


def test_formats_agree_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fills, "CHUNK", 1000)  # several pieces, the last one short
    exact = _draw("fp32", "uniform", count=4321)
    assert torch.equal(_draw("bf16", "uniform", count=4321), exact.bfloat16())
    assert torch.equal(_draw("fp64", "uniform", count=4321), exact.double())
    assert torch.equal(_draw("fp16", "sparse", count=4321), _draw("fp32", "sparse", count=4321).half())


def test_pieces_do_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fills, "CHUNK", 1000)
    pieces = _draw("bf16", "uniform", count=3000).view(3, 1000)
    assert not torch.equal(pieces[0], pieces[1])
    assert not torch.equal(pieces[1], pieces[2])


def test_shapes_and_empty() -> None:
    builder = Builder("cpu", Machine())
    assert builder.tensor((2, 3, 5), "fp8_e5m2").shape == (2, 3, 5)
    assert builder.empty((7, 2), "int32").dtype == torch.int32


def test_an_unknown_fill_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="uniform"):
        Builder("cpu", Machine(), data="unifrom")
