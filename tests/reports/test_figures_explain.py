"""What explains the time of an operation: whatever it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wattline.case import Case
from wattline.reports import figures_explain, findings
from wattline.reports.data import ReportData
from wattline.reports.html import render
from wattline.workmodels import work_of

IMAGE = {
    "n": 1, "r": 3, "s": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1, "dtype": "fp32",
    "memory": "channels_last",
}  # fmt: skip
SHAPES = [(c, h, k) for c in (8, 64) for h in (8, 16, 32) for k in (16, 128)]


@pytest.fixture
def read(run_of: Callable[..., Path], make_record: Callable[..., Any]) -> Callable[..., ReportData]:
    def made(
        seconds: Callable[[Any], float], shapes: Any = SHAPES, name: str = "run", **record: Any
    ) -> ReportData:
        cases = [Case("conv.2d", "torch", {**IMAGE, "c": c, "h": h, "w": h, "k": k}) for c, h, k in shapes]
        timed = [make_record(c, time_s=seconds(work_of(c.op, c.params)), noise=1e-6, **record) for c in cases]
        return ReportData.read(run_of(timed, name))

    return made


def test_activations_explain_what_was_made_from_them(read: Callable[..., ReportData]) -> None:
    data = read(lambda work: 1e-9 * work.details["activations"])
    (found,) = figures_explain.explained(data)
    assert found.shares[0] == ("activations", pytest.approx(1.0, abs=1e-6))
    assert dict(found.shares)["FLOPs"] < 0.9
    (told,) = figures_explain.find(data)
    assert "better by its activations (100 % of the variance) than by its FLOPs" in told.title
    assert told in findings.find(data)
    (figure,) = figures_explain.figures(data)
    assert len(figure.panels) == len(found.shares)
    assert figure.panels[0].count("<a href") == len(SHAPES)
    assert 'id="explain-conv-2d"' in render(data)


def test_flops_explain_what_was_made_from_them(read: Callable[..., ReportData]) -> None:
    (told,) = figures_explain.find(read(lambda work: 1e-11 * work.total_flops))
    assert "is explained best by FLOPs: 100 %" in told.title


def test_too_few_or_disturbed_shapes_explain_nothing(read: Callable[..., ReportData]) -> None:
    assert figures_explain.find(read(lambda work: 1e-3, SHAPES[:7])) == []
    assert figures_explain.find(read(lambda work: 1e-11 * work.total_flops, name="noisy", flags=("noisy",))) == []


def test_determination_by_hand() -> None:
    x = pd.Series(np.geomspace(1, 128, 8))
    assert figures_explain.determination(x, x**2) == pytest.approx(1.0)
    # log y = +-1 in turn over log x = 0 .. 7: products 4, squares 42 and 8, so R^2 = 16 / (42 * 8).
    turns = pd.Series(np.exp([-1, 1] * 4))
    assert figures_explain.determination(x, turns) == pytest.approx(16 / (42 * 8))
    assert figures_explain.determination(x, pd.Series(np.ones(8))) is None
    assert figures_explain.determination(pd.Series(np.ones(8)), x) is None
    assert figures_explain.determination(x[:7], x[:7]) is None
