"""Alpha-beta models of all collectives of a run, or of what nccl-tests printed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattline import nccl_tests
from wattline.errors import DataError
from wattline.predictors.alphabeta import AlphaBeta, fit_alpha_beta
from wattline.record import Record
from wattline.run import Run
from wattline.workmodels.collectives import COLLECTIVES

_SAME = ("backend", "groups", "mode", "dtype", "skew")
"""Parameters that must be equal within a fit; size and ranks vary."""


@dataclass(frozen=True)
class Fitted:
    """The model of one collective under one set of conditions.

    Attributes:
        name: the collective.
        conditions: backend, mode, number format and the like.
        model: the fit; ``None`` where there are too few points.
        why_not: the reason then.
    """

    name: str
    conditions: tuple[tuple[str, str], ...]
    model: AlphaBeta | None
    why_not: str = ""

    def label(self) -> str:
        """``all_reduce gloo fp32``."""
        usual = {"groups": "1", "mode": "sync", "regime": "hot", "impl": "torch", "in_place": "no"}
        words = [v if k in ("backend", "dtype") else f"{k}={v}" for k, v in self.conditions if usual.get(k) != v]
        return " ".join([self.name, *words])


_Points = dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[float, float, float]]]


def fit_links(source: str | os.PathLike[str] | Run | Iterable[Record], *, seed: int = 0) -> list[Fitted]:
    """Fit every collective of a source.

    Args:
        source: a run, its folder, records, or a file that nccl-tests wrote.
        seed: of the intervals.

    Raises:
        StorageError: it cannot be read.
        DataError: it holds no collective of at least two ranks.
    """
    if isinstance(source, str | os.PathLike) and Path(source).is_file():
        points = _of_tables(nccl_tests.read_file(source))
        name = os.fspath(source)
    else:
        records = source if not isinstance(source, str | os.PathLike | Run) else _run(source).records()
        points = _of_records(records)
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the run"
    if not points:
        raise DataError(
            f"{name} holds no collective of two ranks or more",
            todo="measure some: `wattline bench collectives --ranks 2`",
        )
    return [_fitted(op, conditions, rows, seed) for (op, conditions), rows in sorted(points.items())]


def _run(source: str | os.PathLike[str] | Run) -> Run:
    return source if isinstance(source, Run) else Run(source)


def _fitted(
    name: str, conditions: tuple[tuple[str, str], ...], rows: Sequence[tuple[float, float, float]], seed: int
) -> Fitted:
    size, ranks, times = zip(*rows, strict=True)
    try:
        return Fitted(name, conditions, fit_alpha_beta(name, size, ranks, times, seed=seed))
    except DataError as error:
        return Fitted(name, conditions, None, error.what)


def _of_records(records: Iterable[Record]) -> _Points:
    found: _Points = {}
    for record in records:
        case, time_s = record.case, record.time_s
        name = case.op.removeprefix("collectives.")
        if record.status != "ok" or time_s is None or case.op == name or name not in COLLECTIVES:
            continue
        ranks = int(case.params["world_size"])
        if ranks < 2 or record.variant == "b":
            continue
        told = [(key, str(case.params[key])) for key in _SAME if key in case.params]
        conditions = (*told, ("regime", case.regime), ("impl", case.impl))
        assert record.measurement is not None  # it has a time
        size = float(record.measurement.facts.get("actual_bytes") or case.params.get("bytes") or 0)
        found.setdefault((name, conditions), []).append((size, float(ranks), time_s))
    return found


def _of_tables(tables: Iterable[nccl_tests.Table]) -> _Points:
    found: _Points = {}
    for table in tables:
        for line in table.lines:
            if table.ranks < 2 or line.time_s <= 0 or not line.size:
                continue
            conditions = (("dtype", line.dtype), ("in_place", "yes" if line.in_place else "no"))
            found.setdefault((table.name, conditions), []).append((float(line.size), float(table.ranks), line.time_s))
    return found
