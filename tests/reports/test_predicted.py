"""The predictor's section: errors and coverage are counted right, and its absence is explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wattline.reports.data import ReportData
from wattline.reports.evaluated import prediction_of
from wattline.reports.predicted import Prediction, figures, wilson

FRAME = pd.DataFrame(
    {
        "op": ["gemm.dense"] * 4,
        "dtype": ["fp32", "fp32", "bf16", "bf16"],
        "time_s": [1.0, 1.0, 1.0, 1.0],
        "predicted_s": [1.05, 0.8, 1.3, 1.0],
        "lo_s": [0.9, 0.7, 1.1, 0.9],
        "hi_s": [1.2, 0.9, 1.5, 1.1],
        "roofline_s": [0.5, 0.5, 0.5, 0.25],
        "in_domain": [True, True, True, False],
        "anchor": ["r-1", "r-2", None, "r-4"],
    }
)


def test_scores_by_hand() -> None:
    scores = Prediction(FRAME, 0.9, "by hand").scores()
    assert [s.group for s in scores] == [
        "all", "gemm.dense bf16", "gemm.dense fp32", "in the domain", "outside the domain",
    ]  # fmt: skip
    whole = scores[0]
    # Errors 0.05, 0.2, 0.3, 0; inside the interval: yes, no, no, yes.
    assert whole.n == 4
    assert whole.median == pytest.approx(0.125)
    assert whole.mean == pytest.approx(0.1375)
    assert whole.within == (0.5, 0.75)
    assert whole.coverage == 0.5
    assert whole.in_domain == 0.75
    assert whole.roofline_median == 0.5
    assert whole.roofline_mean == pytest.approx(0.5625)
    assert scores[-1].n == 1


def test_the_finding_names_the_roofline_beside_it() -> None:
    finding = Prediction(FRAME, 0.9, "by hand").finding()
    assert "predicted to 12 % (median error); the bare roofline errs by 50 %" in finding.title
    assert "promised at 90 % cover 50 %" in finding.text


def test_points_without_a_record_are_drawn_but_not_linked() -> None:
    against, signed, *_ = figures(Prediction(FRAME, 0.9, "by hand"))
    assert [panel.count("<a href=") for panel in against.panels] == [3, 3]
    assert "#r-4" in signed.panels[0]


def test_no_predictor_is_explained(run_of: Callable[..., Path]) -> None:
    prediction, why = prediction_of(ReportData.read(run_of([])), None, None)
    assert prediction is None
    assert "wattline fit" in why


def test_a_damaged_bundle_is_explained(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    run = run_of([make_record(make_case(64, 64, 64))])
    (run / "predictor.wl").write_bytes(b"not a bundle")
    prediction, why = prediction_of(ReportData.read(run), None, None)
    assert prediction is None
    assert "cannot be used" in why


def test_too_few_rows_are_explained(
    run_of: Callable[..., Path], make_case: Callable[..., Any], make_record: Callable[..., Any]
) -> None:
    run = run_of([make_record(make_case(64, 64, 64))])
    prediction, why = prediction_of(ReportData.read(run), object(), None)  # type: ignore[arg-type]
    assert prediction is None
    assert "at least two groups" in why


def test_held_out_rows_lead_to_their_records(big_run: Path) -> None:
    from wattline.predictors import Evaluation

    data = ReportData.read(big_run)
    usable = data.usable
    frame = usable[["op", "dtype", "time_s"]].assign(
        predicted_s=usable["time_s"], lo_s=usable["time_s"], hi_s=usable["time_s"], roofline_s=usable["bound_s"],
        in_domain=True,
    )  # fmt: skip
    given = Evaluation(frame, {"nominal": 0.8}, pd.DataFrame(), pd.DataFrame(), "given")
    prediction, why = prediction_of(data, None, given)
    assert why == ""
    assert prediction
    assert prediction.nominal == 0.8
    assert prediction.frame["anchor"].tolist() == usable["anchor"].tolist()
    assert prediction.scores()[0].median == 0.0


def test_a_run_that_chose_its_cases_shows_the_error_on_the_way() -> None:
    steps = [{"rows": n, "judged": n // 3, "error": 3.0 / n, "upper": 4.0 / n} for n in (30, 40, 60)]
    sampling = {"target": 0.08, "reached": True, "steps": steps}
    *_, sampled = figures(Prediction(FRAME, 0.9, "by hand", sampling=sampling))
    assert sampled.title == "Error while sampling"
    assert "target of 8 %, which was reached" in sampled.caption
    assert "(20 in the end)" in sampled.caption
    short = {**sampling, "steps": steps[:1]}
    shown = [figure.title for figure in figures(Prediction(FRAME, 0.9, "by hand", sampling=short))]
    assert "Error while sampling" not in shown


def test_errors_inside_and_outside_the_domain_are_told_apart() -> None:
    domain = next(f for f in figures(Prediction(FRAME, 0.9, "by hand")) if f.id == "domain")
    labels = [label for _, label in domain.lines]
    assert labels == ["in the domain (3)", "outside the domain (1)", "roofline, all rows (4)"]
    within = Prediction(FRAME.assign(in_domain=True), 0.9, "by hand")
    assert "Every row of this run lies in the domain" in next(f for f in figures(within) if f.id == "domain").caption


def test_coverage_is_drawn_for_groups_of_some_size() -> None:
    assert "coverage" in [f.id for f in figures(Prediction(FRAME, 0.9, "by hand"))]
    bare = FRAME.assign(lo_s=float("nan"), hi_s=float("nan"))
    assert "coverage" not in [f.id for f in figures(Prediction(bare, 0.9, "by hand"))]


def test_the_interval_of_wilson() -> None:
    # 8 of 10 at z = 1.96: the textbook's 0.490 to 0.943.
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson(1.0, 5)[1] == pytest.approx(1.0)
    assert 0 < wilson(0.0, 5)[1] < 0.5
