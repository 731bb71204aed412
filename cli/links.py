"""`wattline links`: latency and bandwidth of collectives, out of a run or out of what nccl-tests printed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli.options import JsonOption
from wattline.cli.output import emit_json, table
from wattline.units import format_bytes, format_time

if TYPE_CHECKING:
    from wattline.predictors.alphabeta import Estimate
    from wattline.predictors.links import Fitted

_COLUMNS = (
    "collective", "ranks", "sizes", "latency per round", "bus bandwidth", "fit error", "unseen sizes", "unseen ranks"
)  # fmt: skip
EXAMPLES = "Examples: wattline links RUN, wattline links all_reduce_perf.txt --bytes 1G --ranks 64"


def command(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run, or nccl-tests' output (text or -J).")],
    size: Annotated[
        str | None, typer.Option("--bytes", "-b", metavar="SIZE", help="Also predict this size (4K = 4096).")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", metavar="N", min=2, help="... of so many ranks. Default: as measured.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the intervals.")] = 0,
    json: JsonOption = False,
) -> None:
    """Fit latency and bandwidth of each collective, with the error on sizes and ranks that were left out."""
    from wattline.errors import UsageError
    from wattline.nccl_tests import parse_size
    from wattline.predictors.links import fit_links

    if ranks is not None and size is None:
        raise UsageError("--ranks without --bytes", todo="add the size that is to be predicted: --bytes 1M")
    wanted = None if size is None else parse_size(size)
    found = fit_links(source, seed=seed)
    if json:
        emit_json([_described(fitted, wanted, ranks) for fitted in found])
        return
    table(_COLUMNS, [row for fitted in found for row in _rows(fitted)])
    for fitted in found:
        if fitted.model is None:
            typer.echo(f"note: no fit of {fitted.label()}: {fitted.why_not}", err=True)
        elif wanted is not None:
            _tell_prediction(fitted, wanted, ranks)


def _ranks_for(fitted: Fitted, ranks: int | None) -> int:
    assert fitted.model is not None
    return ranks or int(fitted.model.ranks.max())


def _predicted(fitted: Fitted, size: int, ranks: int | None) -> tuple[int, float, float, float]:
    assert fitted.model is not None
    n = _ranks_for(fitted, ranks)
    time_s, lo, hi = (float(each) for each in fitted.model.predict(size, n))
    return n, time_s, lo, hi


def _tell_prediction(fitted: Fitted, size: int, ranks: int | None) -> None:
    assert fitted.model is not None
    n, time_s, lo, hi = _predicted(fitted, size, ranks)
    how = ""
    if fitted.model.assumed and n != int(fitted.model.ranks[0]):
        how = " (one number of ranks was measured: latency is assumed to grow as in a tree)"
    span = f"{format_time(lo)} to {format_time(hi)}"
    sized = "" if fitted.name == "barrier" else f", {format_bytes(size)}"
    typer.echo(f"{fitted.label()}{sized}, {n} ranks: {format_time(time_s)}, 90 % of calls {span}{how}")


def _rows(fitted: Fitted) -> list[tuple[object, ...]]:
    model = fitted.model
    if model is None:
        return []
    ranks = ", ".join(str(n) for n in sorted({int(n) for n in model.ranks}))
    held = {("ranks" if "ranks" in h.what else "sizes"): f"{h.error:.0%}" for h in model.held_out}
    rows: list[tuple[object, ...]] = []
    for i, segment in enumerate(model.segments):
        sizes = "-" if fitted.name == "barrier" else f"{format_bytes(segment.begin)} .. {format_bytes(segment.end)}"
        first = i == 0
        rows.append(
            (
                fitted.label() if first else "", ranks if first else "", sizes,
                _estimate(segment.alpha_s, format_time),
                "-" if fitted.name == "barrier" else _bandwidth(segment.bandwidth),
                f"{model.error:.1%}" if first else "", held.get("sizes", "-") if first else "",
                held.get("ranks", "-") if first else "",
            )
        )  # fmt: skip
    return rows


def _bandwidth(estimate: Estimate) -> str:
    return _estimate(estimate, lambda value: "unbounded" if math.isinf(value) else f"{value / 1e9:.3g} GB/s")


def _estimate(estimate: Estimate, words: Any) -> str:
    return f"{words(estimate.value)} ({words(estimate.lo)} .. {words(estimate.hi)})"


def _described(fitted: Fitted, size: int | None, ranks: int | None) -> dict[str, Any]:
    out: dict[str, Any] = {"collective": fitted.name, "conditions": dict(fitted.conditions)}
    if fitted.model is None:
        return out | {"fit": None, "why_not": fitted.why_not}
    out["fit"] = fitted.model.to_dict()
    if size is not None:
        n, time_s, lo, hi = _predicted(fitted, size, ranks)
        out["prediction"] = {"bytes": size, "ranks": n, "time_s": time_s, "time_lo_s": lo, "time_hi_s": hi}
    return out
