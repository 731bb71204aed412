"""Newest tokens beside a chunk: the chunk from which on they ride free, found where it was put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.reports import figures_hybrid, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render

BATCH = {
    "chunk_context": 512, "decode_context": 512, "heads": 8, "kv_heads": 2, "head_dim": 64, "hidden": 512,
    "dtype": "fp32",
}  # fmt: skip
CHUNKS = (32, 128, 512)
Read = Callable[..., ReportData]


@pytest.fixture
def read(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> Read:
    def made(added: dict[str, tuple[float, ...]], name: str = "run", leave: Any = None, **record: Any) -> ReportData:
        """``added``: for each implementation, what 16 decodes add to each chunk; alone they take 1 ms."""
        how = {"noise": 1e-6, **record}
        cases = []
        for impl, extra in added.items():
            cases.append((impl, 0, 16, 1e-3))
            for chunk, more in zip(CHUNKS, extra, strict=True):
                cases += [(impl, chunk, 0, 1e-5 * chunk), (impl, chunk, 16, 1e-5 * chunk + more)]
        made = [
            make_record(Case("attention.hybrid", impl, {**BATCH, "chunk": chunk, "decodes": decodes}), time_s=t, **how)
            for impl, chunk, decodes, t in cases if (chunk, decodes) != leave
        ]  # fmt: skip
        return ReportData.read(run_of(made, name))

    return made


def test_the_chunk_from_which_decodes_ride_free(read: Read) -> None:
    data = read({"together": (6e-4, 5e-5, 2e-5), "apart": (1e-3, 1e-3, 9e-4)})
    apart, together = figures_hybrid.rides(data)
    assert together.shares == pytest.approx((0.6, 0.05, 0.02), rel=1e-2)
    assert (together.free_from(), apart.free_from()) == (128, None)
    found = figures_hybrid.finding(data)
    assert found is not None
    assert found.title == "16 newest tokens ride free beside chunks of 128 tokens and more (together)."
    assert "chunk 32 60 %" in found.items[1]
    assert found in findings.find(data)
    (figure,) = figures_hybrid.figures(data)
    assert [name for _, name in figure.legend] == ["apart", "together"]
    assert figure.panels[0].count("<a href") == 2 * len(CHUNKS)
    assert 'id="hybrid"' in render(data)


def test_a_larger_chunk_that_costs_again_withdraws_the_claim(read: Read) -> None:
    (ride,) = figures_hybrid.rides(read({"together": (5e-5, 5e-4, 5e-5)}))
    assert ride.free_from() == 512


def test_never_free_says_the_best_share(read: Read) -> None:
    found = figures_hybrid.finding(read({"apart": (1e-3, 8e-4, 9e-4)}))
    assert found is not None
    assert "never ride free" in found.title
    assert "80 %" in found.title


def test_doubt_counts_against_freedom(read: Read) -> None:
    noisy = read({"together": (6e-4, 5e-5, 2e-5)}, noise=0.3)
    (ride,) = figures_hybrid.rides(noisy)
    assert ride.free_from() is None


@pytest.mark.parametrize("leave", [(0, 16), "chunks"])
def test_without_the_parts_apart_nothing_is_claimed(read: Read, leave: Any, run_of: Any, make_record: Any) -> None:
    if leave == "chunks":
        cases = [Case("attention.hybrid", "apart", {**BATCH, "chunk": c, "decodes": 16}) for c in (0, *CHUNKS)]
        data = ReportData.read(run_of([make_record(c, time_s=1e-3) for c in cases]))
    else:
        data = read({"together": (6e-4, 5e-5, 2e-5)}, leave=leave)
    assert figures_hybrid.finding(data) is None
    assert figures_hybrid.figures(data)[0].missing


def test_disturbed_records_carry_no_verdict(read: Read) -> None:
    found = figures_hybrid.finding(read({"together": (6e-4, 5e-5, 2e-5)}, flags=("noisy",)))
    assert found is not None
    assert found.quiet


def test_nothing_in_a_run_without_them(run_of: Any, make_record: Any, make_case: Any) -> None:
    data = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_hybrid.figures(data) == []
    assert figures_hybrid.finding(data) is None
