"""Sparse products in a report: the density where they begin to pay, found where it was put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattline.case import Case
from wattline.reports import figures_sparse, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render

SPARSE = {
    "m": 128, "n": 1024, "k": 1024, "pattern": "csr", "block": 16, "block_fill": 1.0, "sparse": "weight",
    "activations": "km", "skew": 0.0, "pattern_seed": 0, "dtype": "fp32",
}  # fmt: skip
DENSITIES = (0.02, 0.1, 0.5)


@pytest.fixture
def run_with(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> Callable[..., ReportData]:
    """A run with sparse times in proportion to density, and a dense level of 10 ms."""

    def read(
        slopes: dict[str, float], *, dense: bool = True, record: dict[str, Any] | None = None, name: str = "run",
        **more: Any,
    ) -> ReportData:  # fmt: skip
        how = {"noise": 1e-6, **(record or {})}
        times = [(impl, d, slope * d) for impl, slope in slopes.items() for d in DENSITIES]
        times += [("dense", 0.1, 0.01)] if dense else []
        cases = [(Case("gemm.sparse", impl, {**SPARSE, **more, "density": d}), t) for impl, d, t in times]
        return ReportData.read(run_of([make_record(case, time_s=t, **how) for case, t in cases], name))

    return read


def test_the_density_where_sparse_begins_to_pay(run_with: Callable[..., ReportData]) -> None:
    data = run_with({"torch": 0.05, "numba": 0.025, "scipy": 1.0})
    found = figures_sparse.finding(data)
    assert found is not None
    assert found.kind == "sparse_density"
    assert found.title == "Sparse weights beat dense ones below a density of 0.2 to 0.4."
    assert [item.rpartition(": ")[2] for item in found.items] == [
        "quicker than dense below a density of 0.4",
        "slower than dense at every density between 0.02 and 0.5",
        "quicker than dense below a density of 0.2",
    ]
    assert found in findings.find(data)
    (figure,) = figures_sparse.figures(data)
    assert [name for _, name in figure.legend] == ["numba csr", "scipy csr", "torch csr", "stored dense"]
    assert len(figure.panels) == 1
    assert figure.panels[0].count("<a href") == 3 * len(DENSITIES) + 1
    assert "2 meet the dense one" in figure.panels[0]
    assert 'id="sparse"' in render(data)


@pytest.mark.parametrize(("slope", "word"), [(0.001, "every density"), (10.0, "no density")])
def test_always_and_never(run_with: Callable[..., ReportData], slope: float, word: str) -> None:
    found = figures_sparse.finding(run_with({"torch": slope}))
    assert found is not None
    assert word in found.title


def test_without_a_baseline_or_records_nothing_is_claimed(
    run_with: Callable[..., ReportData], run_of: Callable[..., Path], make_case: Callable[..., Any],
    make_record: Callable[..., Any],
) -> None:  # fmt: skip
    bare = run_with({"torch": 0.05}, dense=False, name="bare")
    assert figures_sparse.finding(bare) is None
    assert len(figures_sparse.figures(bare)[0].panels) == 1
    none = ReportData.read(run_of([make_record(make_case(64, 64, 64))]))
    assert figures_sparse.finding(none) is None
    assert figures_sparse.figures(none) == []
    both = run_with({"torch": 0.05}, sparse="both", name="both")
    assert figures_sparse.figures(both)[0].missing


@pytest.mark.parametrize("disturbed", [{"noise": 2.0}, {"flags": ("foreign_process",)}])
def test_disturbed_records_carry_no_verdict(run_with: Callable[..., ReportData], disturbed: dict[str, Any]) -> None:
    found = figures_sparse.finding(run_with({"torch": 0.05}, record=disturbed))
    assert found is not None
    assert found.quiet
    assert "cannot be told" in found.title
