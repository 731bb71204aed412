"""The predictor's section: how far its estimates stray on shapes it has not seen, beside the roofline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.reports import svg
from wattline.reports.blocks import Figure, format_series
from wattline.reports.findings import Finding, percent
from wattline.reports.svg import Panel

if TYPE_CHECKING:
    import pandas as pd

BANDS = (0.10, 0.25)
"""Relative errors that are marked as bands."""
_FLOOR = 3
"""Groups of fewer rows have no coverage worth drawing."""
_GROUPS = 14
"""Most groups in the drawing of coverage; the table has all."""


@dataclass(frozen=True)
class Score:
    """How estimates compare with measurements in one group of rows.

    Attributes:
        group: e.g. ``"gemm.dense fp32"``.
        n: rows.
        median, mean: absolute relative error of the predictor.
        within: share of rows with an error of at most each of :data:`BANDS`.
        coverage: share of rows inside their interval, NaN without intervals.
        in_domain: share of rows that the predictor calls inside its domain.
        roofline_median, roofline_mean: absolute relative error of the bare bound.
    """

    group: str
    n: int
    median: float
    mean: float
    within: tuple[float, ...]
    coverage: float
    in_domain: float
    roofline_median: float
    roofline_mean: float


@dataclass(frozen=True)
class Prediction:
    """Estimates beside measurements.

    Attributes:
        frame: ``op``, ``dtype``, ``time_s``, ``predicted_s``, ``lo_s``, ``hi_s``, ``roofline_s`` (seconds),
            ``in_domain``, ``anchor`` (of the record, or NA).
        nominal: coverage that the intervals promise.
        how: how the rows were held out, a sentence.
        trained: what is known of the predictor, pairs of name and value.
        learning: ``rows``, ``mape`` and ``median_ape`` (percent) at growing shares of the rows, where taken.
        sampling: what a run that chose its cases kept: ``target``, and ``steps`` (``rows``, ``error``, ``upper`` ...).
    """

    frame: pd.DataFrame
    nominal: float
    how: str
    trained: Sequence[tuple[str, str]] = ()
    learning: pd.DataFrame | None = None
    sampling: Mapping[str, Any] | None = None

    def scores(self) -> list[Score]:
        """All rows first, then each operation and format, then the rows outside the domain."""
        return self._scores

    @cached_property
    def _scores(self) -> list[Score]:
        frame = self.frame
        found = [_score("all", frame)]
        groups = list(frame.groupby(["op", "dtype"], dropna=False, sort=True))
        if len(groups) > 1:
            found += [_score(" ".join(str(part) for part in key), part) for key, part in groups]
        outside = frame[~frame["in_domain"].astype(bool)]
        if 0 < len(outside) < len(frame):
            found += [
                _score("in the domain", frame[frame["in_domain"].astype(bool)]),
                _score("outside the domain", outside),
            ]
        return found

    def finding(self) -> Finding:
        """The predictor in one sentence, the roofline beside it."""
        s = _score("all", self.frame)
        title = (
            f"Times of unseen shapes are predicted to {percent(s.median)} (median error); the bare roofline errs by "
            f"{percent(s.roofline_median)}."
        )
        text = f"Mean error {percent(s.mean)} against {percent(s.roofline_mean)} on {s.n} rows; {self.how}."
        if np.isfinite(s.coverage):
            text += f" Intervals promised at {percent(self.nominal)} cover {percent(s.coverage)}."
        return Finding("predictor", title, text, "predictor", "predicted against measured")


def _score(group: str, rows: pd.DataFrame) -> Score:
    error = (rows["predicted_s"] / rows["time_s"] - 1).abs()
    roofline = (rows["roofline_s"] / rows["time_s"] - 1).abs()
    inside = (rows["time_s"] >= rows["lo_s"]) & (rows["time_s"] <= rows["hi_s"])
    known = rows["lo_s"].notna() & rows["hi_s"].notna()
    return Score(
        group=group,
        n=len(rows),
        median=float(error.median()),
        mean=float(error.mean()),
        within=tuple(float((error <= band).mean()) for band in BANDS),
        coverage=float(inside[known].mean()) if known.any() else float("nan"),
        in_domain=float(rows["in_domain"].astype(bool).mean()),
        roofline_median=float(roofline.median()),
        roofline_mean=float(roofline.mean()),
    )


def figures(prediction: Prediction) -> list[Figure]:
    """Predicted against measured for the predictor and for the roofline, and the signed error against time."""
    frame = prediction.frame
    formats = list(dict.fromkeys(frame["dtype"].fillna("")))
    legend = [(format_series(f), f or "no format") for f in formats]
    both = frame[["time_s", "predicted_s", "roofline_s"]].to_numpy(float)
    both = both[np.isfinite(both) & (both > 0)]
    low, high = float(both.min()) / 1.5, float(both.max()) * 1.5
    panels = [
        _against(f"pred-{i}", name, frame, column, (low, high))
        for i, (name, column) in enumerate((("predictor", "predicted_s"), ("roofline alone", "roofline_s")))
    ]
    against = Figure(
        "predicted", "Predicted against measured", panels,
        "Each point is one record whose shape was held out while learning. On the line the estimate equals the "
        "measurement; the bands are 10 % and 25 % of it. Below the line the estimate is too short. The roofline "
        "beside it knows only the datasheet or the measured ceilings: what lies between the two drawings is what was "
        "learned.",
        legend,
    )  # fmt: skip
    panel = Panel("pred-error", 920, 265).log("x").log("y", label=svg.ratio_tick)
    panel.titles("", "measured time (s)", "predicted against measured")
    for band, alpha in zip(BANDS, (0.16, 0.08), strict=True):
        panel.ax.axhspan(1 - band, 1 + band, color=svg.MUTED, alpha=alpha, linewidth=0)
    panel.ax.axhline(1, color=svg.MUTED, linewidth=1)
    _by_format(panel, frame, frame["time_s"], frame["predicted_s"] / frame["time_s"])
    size = Figure(
        "signed", "Signed error against size",
        [panel.svg(f"Signed relative error of {len(frame)} predictions against the measured time.")],
        "Above zero the estimate is too long. A slope or a bulge means that the model misjudges one range of sizes; "
        "a good model scatters evenly around zero.",
        legend, wide=True,
    )  # fmt: skip
    more = (_domain(prediction), _covered(prediction), _learning(prediction), _sampled(prediction))
    return [against, size, *(figure for figure in more if figure)]


def _domain(prediction: Prediction) -> Figure:
    """How errors are distributed inside and outside the domain, the roofline's beside."""
    frame = prediction.frame
    inside = frame["in_domain"].astype(bool)
    error = (frame["predicted_s"] / frame["time_s"] - 1).abs()
    bare = (frame["roofline_s"] / frame["time_s"] - 1).abs()
    panel = Panel("pred-domain", 470, 270).log("x", label=svg.percent_tick).linear("y", svg.percent_tick)
    panel.titles("", "error of at most", "share of the rows")
    lines = []
    for name, values, colour, style in (
        ("in the domain", error[inside], "c0", "-"), ("outside the domain", error[~inside], "c1", "-"),
        ("roofline, all rows", bare[np.isfinite(bare)], "dashed", "--"),
    ):  # fmt: skip
        if len(values):
            x = np.sort(np.maximum(values.to_numpy(float), 1e-3))
            y = np.arange(1, len(x) + 1) / len(x)
            kept = np.unique(np.linspace(0, len(x) - 1, 200).astype(int))
            ink = {"c0": svg.SERIES[0], "c1": svg.SERIES[1]}.get(colour, svg.MUTED)
            panel.ax.plot(x[kept], y[kept], style, color=ink, drawstyle="steps-post")
            lines.append((colour, f"{name} ({len(x)})"))
    for band in BANDS:
        panel.ax.axvline(band, color=svg.GRID, linewidth=1)
    panel.ax.set_ylim(0, 1.02)
    drawing = panel.svg(f"Distribution of errors: {int(inside.sum())} rows in the domain, {int((~inside).sum())} not.")
    caption = (
        "Does the predictor know when it does not know? The further left a line rises, the smaller the errors. Rows "
        "outside the domain lie beyond the shapes that were learned from; their line should lie to the right."
    )
    if inside.all():
        caption += " Every row of this run lies in the domain."
    return Figure("domain", "Errors inside and outside the domain", [drawing], caption, lines=lines)


def _covered(prediction: Prediction) -> Figure | None:
    """Coverage of the intervals by group, with what chance allows."""
    known = [s for s in prediction.scores() if np.isfinite(s.coverage) and s.n >= _FLOOR]
    if not known:
        return None
    shown = known[:1] + sorted(known[1:], key=lambda s: -s.n)[:_GROUPS]
    panel = Panel("pred-covered", 470, 80 + 20 * len(shown)).linear("x", svg.percent_tick)
    panel.titles("", "share inside the interval", "")
    panel.ax.axvline(prediction.nominal, color=svg.INK, linewidth=1.1, linestyle="--")
    for y, score in zip(range(len(shown))[::-1], shown, strict=True):
        low, high = wilson(score.coverage, score.n)
        panel.ax.hlines([y], [low], [high], color=svg.SERIES[0], linewidth=1.6)
        panel.ax.plot([score.coverage], [y], "o", color=svg.SERIES[0], markersize=5)
    names = [f"{s.group} ({s.n})" for s in shown]
    panel.ax.set_yticks(range(len(shown))[::-1], [svg.printable(name[:40]) for name in names], fontsize=9)
    panel.ax.set_ylim(-0.7, len(shown) - 0.3)
    panel.ax.set_xlim(0, 1.02)
    panel.ax.grid(visible=False, axis="y")
    drawing = panel.svg(f"Coverage of {len(shown)} groups against the nominal {percent(prediction.nominal)}.")
    caption = (
        f"Do the intervals hold what they promise ({percent(prediction.nominal)}, dashed)? Lines span what the number "
        "of rows (in brackets) leaves open: the 95 % interval of Wilson. A group left of the dashed line is surer of "
        "itself than it should be." + (f" The {_GROUPS} largest groups." if len(known) > len(shown) else "")
    )
    return Figure("coverage", "Coverage of the intervals", [drawing], caption)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a proportion by E. B. Wilson (J. Am. Stat. Assoc. 22, 1927, p. 209), at 95 % by default."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _learning(prediction: Prediction) -> Figure | None:
    """Error against the number of rows learned from, where an evaluation took it."""
    curve = prediction.learning
    if curve is None or len(curve) < 2:
        return None
    panel = Panel("pred-learning", 470, 270).log("x", label=lambda v, _: f"{v:g}").linear("y", svg.percent_tick)
    panel.titles("", "rows learned from", "error")
    for column, series in (("median_ape", 0), ("mape", 1)):
        panel.ax.plot(curve["rows"], curve[column] / 100, marker="o", markersize=5, color=svg.SERIES[series])
    panel.ax.set_ylim(0, None)
    drawing = panel.svg(f"Learning curve with {len(curve)} steps.")
    return Figure(
        "learning",
        "Learning curve",
        [drawing],
        "Error on held-out shapes against the number of rows learned from. Where the curve still falls, more "
        "measurements would help; where it is flat, they would not.",
        lines=(("c0", "median error"), ("c1", "mean error")),
    )


def _sampled(prediction: Prediction) -> Figure | None:
    """Error after each batch of a run that chose its cases by what they teach."""
    steps = (prediction.sampling or {}).get("steps", ())
    if prediction.sampling is None or len(steps) < 2:
        return None
    target = float(prediction.sampling["target"])
    panel = Panel("pred-sampled", 470, 270).log("x", label=lambda v, _: f"{v:g}").linear("y", svg.percent_tick)
    panel.titles("", "cases measured", "mean error")
    rows = [step["rows"] for step in steps]
    for name, series in (("error", 0), ("upper", 1)):
        panel.ax.plot(rows, [step[name] for step in steps], marker="o", markersize=5, color=svg.SERIES[series])
    panel.ax.axhline(target, color=svg.MUTED, linewidth=1)
    panel.ax.set_ylim(0, None)
    last = steps[-1]
    reached = "was reached" if prediction.sampling.get("reached") else "was not reached"
    return Figure(
        "sampled",
        "Error while sampling",
        [panel.svg(f"Error after {len(steps)} batches of chosen cases.")],
        f"This run measured what a predictor learned most from. The error is judged on cases drawn at random "
        f"({last['judged']} in the end), each predicted without its own shape; the line is the target of "
        f"{100 * target:g} %, which {reached}. While it is far off, the error is that of the sampler's own process.",
        lines=(("c0", "mean error"), ("c1", "upper end of its interval")),
    )


def _against(name: str, title: str, frame: pd.DataFrame, column: str, span: tuple[float, float]) -> Any:
    panel = Panel(name, 430, 350).log("xy").titles(title, "measured time (s)", "estimated time (s)")
    line = np.array(span)
    for band, alpha in zip(BANDS, (0.16, 0.08), strict=True):
        panel.ax.fill_between(line, line * (1 - band), line * (1 + band), color=svg.MUTED, alpha=alpha, linewidth=0)
    panel.ax.plot(line, line, color=svg.MUTED, linewidth=1)
    _by_format(panel, frame, frame["time_s"], frame[column])
    panel.ax.set_xlim(*span)
    panel.ax.set_ylim(*span)
    error = (frame[column] / frame["time_s"] - 1).abs()
    return panel.svg(
        f"{title}: estimated against measured time of {len(frame)} records, median error "
        f"{percent(float(error.median()))}."
    )


def _by_format(panel: Panel, frame: pd.DataFrame, x: pd.Series[float], y: pd.Series[float]) -> None:
    """Points in the colour of their format; those without a record of this run are drawn without a link."""
    for dtype in dict.fromkeys(frame["dtype"].fillna("")):
        here = frame["dtype"].fillna("") == dtype
        linked = here & frame["anchor"].notna()
        panel.points(x[linked], y[linked], frame["anchor"][linked].astype(str), format_series(dtype))
        loose = here & ~linked
        if loose.any():
            panel.ax.scatter(x[loose], y[loose], s=16, color=svg.SERIES[format_series(dtype)], linewidths=0)
