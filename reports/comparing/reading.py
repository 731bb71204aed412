"""The sides of a comparison: a run, or several runs of the same thing, read for their statistics alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from wattline.case import Case
from wattline.errors import SchemaError, UsageError, WattlineError, storage_error
from wattline.expressions import evaluate, names_in
from wattline.garbage import seldom_collected
from wattline.record import DISQUALIFYING, entry_of
from wattline.run import MANIFEST, RECORDS, Run

FEWEST_SAMPLES = 3
"""A median of fewer samples has no interval."""
_TWO_SIGMA = 2 * 1.959964
_STATISTICAL = ("quantisation", "trial", "drift", "unseen")
"""Causes in an energy budget that differ from one reading to the next; the gain of a sensor does not."""


class Reading(NamedTuple):
    """One measurement of one quantity.

    Attributes:
        run: number of the run within its side.
        variant: which half of an A/A pair, or empty.
        value: seconds, or joules.
        own: relative standard deviation of the value within the measurement itself.
        systematic: relative standard deviation that all readings of one sensor share.
        lo, hi: the interval as recorded.
    """

    run: int
    variant: str
    value: float
    own: float
    systematic: float
    lo: float
    hi: float


@dataclass
class SideCase:
    """What one side knows of one case.

    Attributes:
        case: the case.
        time, energy: its readings that can be trusted; empty without any.
        fast: of the same records as ``time``, the 5th percentile of the samples; empty where a record does not tell it.
        status, why: of the last record that gave no figure that can be trusted; empty where all did.
        failed: records without a trusted figure.
        timer, sensor: what was read; several are joined by ``+``.
        work: what the case does, by its operations and bytes.
        flags: reservations about its figures.
        few: records left out because their median has too few samples.
    """

    case: Case
    time: list[Reading] = field(default_factory=list)
    fast: list[Reading] = field(default_factory=list)
    energy: list[Reading] = field(default_factory=list)
    status: str = ""
    why: str = ""
    failed: int = 0
    timer: str = ""
    sensor: str = ""
    work: tuple[Any, ...] | None = None
    flags: set[str] = field(default_factory=set)
    few: int = 0

    @property
    def label(self) -> str:
        """The case in one line."""
        return self.case.label()


@dataclass
class Side:
    """One side of a comparison.

    Attributes:
        path: as given.
        runs: its runs; more than one are repeats of the same thing.
        cases: by key, in the order of the records.
        problems: sentences on what was found amiss while reading.
        records: how many were read.
    """

    path: Path
    runs: list[Run]
    cases: dict[str, SideCase] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    records: int = 0

    @property
    def name(self) -> str:
        """The id of its run, or of the folder that holds its runs."""
        return self.runs[0].id if len(self.runs) == 1 else self.path.resolve().name

    @property
    def device(self) -> Mapping[str, Any]:
        """What the first run says of its device; empty where it does not."""
        found = self.runs[0].manifest.get("device")
        return found if isinstance(found, Mapping) else {}

    @property
    def device_name(self) -> str:
        """The device in words."""
        return str(self.device.get("name") or self.device.get("id") or "an unnamed device")

    @property
    def device_id(self) -> str:
        """The id of the device; empty where it is not known."""
        return str(self.device.get("id") or "")

    @property
    def finished(self) -> bool:
        """Whether every run came to the end of its plan."""
        return all(run.state == "complete" for run in self.runs)


class Only:
    """The conditions of ``--only``: as those of `bench`, over parameters, ``op``, ``impl``, ``regime`` and ``data``.

    Raises:
        UsageError: one cannot be read.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [(text, names_in(text)) for text in texts]
        self._seen: set[str] = set()

    def hold(self, case: Case) -> bool:
        """Whether the case meets all of them; one that names a parameter of other operations drops it."""
        values: dict[str, Any] = {**case.params, "op": case.op, "impl": case.impl}
        values |= {"regime": case.regime, "data": case.data}
        self._seen |= values.keys()
        return all(used <= values.keys() and evaluate(text, values) for text, used in self._texts)

    def check(self) -> None:
        """Called after all cases were seen.

        Raises:
            UsageError: a condition names what no case has.
        """
        for text, used in self._texts:
            if self._seen and (unknown := sorted(used - self._seen)):
                raise UsageError(
                    f"no case has {unknown[0]!r}", why=f"the condition {text!r} names it",
                    todo="name a parameter, op, impl, regime or data",
                )  # fmt: skip


def run_folders(path: str | os.PathLike[str]) -> list[Path]:
    """The runs that a folder stands for: itself, or those in it.

    Raises:
        SchemaError: it is no run and holds none.
        StorageError: it cannot be read.
    """
    folder = Path(path)
    if (folder / MANIFEST).exists():
        return [folder]
    try:
        inner = sorted(child for child in folder.iterdir() if (child / MANIFEST).is_file()) if folder.is_dir() else []
    except OSError as error:
        raise storage_error(error, "reading", folder) from error
    if not inner:
        Run(folder)  # says what is wrong with it
        raise SchemaError(f"{folder} is not a run folder", todo="give a folder that `wattline bench` made")
    return inner


def read_side(path: str | os.PathLike[str], only: Sequence[str] = ()) -> Side:
    """Read one side of a comparison.

    Args:
        path: a run folder, or a folder of several runs of the same thing.
        only: conditions that its cases must meet.

    Raises:
        StorageError: it cannot be read.
        SchemaError: no run, a damaged one, or one of a newer version.
        UsageError: a condition that cannot be read; runs of different devices in one folder.
    """
    side = Side(Path(path), [Run(folder) for folder in run_folders(path)])
    conditions = Only(only)
    devices = {str((run.manifest.get("device") or {}).get("id", "")) for run in side.runs} - {""}
    if len(devices) > 1:
        raise UsageError(
            f"{path} holds runs of different devices", why=" and ".join(sorted(devices)),
            todo="the runs of one side are repeats of the same thing; give each device a folder of its own",
        )  # fmt: skip
    for number, run in enumerate(side.runs):
        _read_run(side, number, run, conditions.hold if only else None)
    side.problems += _unfinished(side.runs)
    conditions.check()
    return side


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    """A sentence for each way in which runs did not come to their end."""
    for state in dict.fromkeys(run.state for run in runs if run.state != "complete"):
        ids = [run.id for run in runs if run.state == state]
        why = f"({state.replace('_', ' ')})"
        if len(ids) == 1:
            yield f"the run {ids[0]} did not come to the end of its plan {why}"
        else:
            yield f"the runs {', '.join(ids[:-1])} and {ids[-1]} did not come to the end of their plans {why}"


def _read_run(side: Side, number: int, run: Run, wanted: Callable[[Case], bool] | None) -> None:
    latest: dict[tuple[str, str], _Entry] = {}
    with seldom_collected():
        for entry in run.each(lambda line: _entry(line, number)):
            # Of two records of one case the later one counts: it was measured again.
            latest[entry.key, entry.variant] = entry
            side.records += 1
    for entry in latest.values():
        held = side.cases.get(entry.key)
        if held is None:
            if wanted is not None and not wanted(entry.case):
                continue
            held = side.cases[entry.key] = SideCase(entry.case)
        _take(held, entry)
    if not latest:
        beside = "" if (run.path / RECORDS).exists() else f": there is no {RECORDS}"
        side.problems.append(f"the run {run.id} holds no records{beside}")
    side.problems += [f"run {run.id}: {warning}" for warning in run.warnings]


class _Entry(NamedTuple):
    """A record as far as it is needed."""

    key: str
    variant: str
    case: Case
    status: str
    why: str
    time: Reading | None
    fast: Reading | None
    energy: Reading | None
    few: bool
    flags: frozenset[str]
    timer: str
    sensor: str
    work: tuple[Any, ...] | None


def _entry(line: str, number: int) -> _Entry:
    """A line as far as it is needed, with its fields looked at.

    Raises:
        SchemaError: no record, or a damaged one.
    """
    data = entry_of(line)
    try:
        case = Case.from_dict(data["case"])
        key, variant, status = data.get("key") or case.key, data.get("variant") or "", data["status"]
        for word in (key, variant, status):
            if not isinstance(word, str):
                raise TypeError("key, variant and status must be words")
        reason = data.get("reason")
        why = str(reason["message"]) if reason else ""
        measurement = data.get("measurement")
        if status != "ok" or not measurement:
            return _Entry(key, variant, case, status, why, None, None, None, False, _NONE, "", "", None)
        stats = measurement["stats"]
        time = _reading((number, variant), stats["median_s"], stats["lo_s"], stats["hi_s"])
        fast = _fast(time, stats.get("p5_s"))
        flags = measurement.get("flags")
        raised = frozenset(str(flag["code"]) for flag in flags) if flags else _NONE
        joules = measurement.get("energy")
        energy = _joules(joules, (number, variant)) if joules else None
        sensor = f"{joules.get('source', '')} ({joules.get('scope', '')})" if joules else ""
        timer, few = str(measurement.get("timer") or ""), int(stats["n"]) < FEWEST_SAMPLES
        return _Entry(
            key, variant, case, status, why, time, fast, energy, few, raised, timer, sensor, _work(data.get("work"))
        )
    except (KeyError, TypeError, ValueError, AttributeError, WattlineError) as error:
        raise SchemaError("a damaged record", why=f"missing or wrong field: {error}") from None


_NONE: frozenset[str] = frozenset()


def _reading(where: tuple[int, str], value: float, lo: float, hi: float) -> Reading:
    if not 0 < lo <= value <= hi < math.inf:
        raise ValueError(f"no interval around a figure above zero: {lo}, {value}, {hi}")
    return Reading(*where, value, math.log(hi / lo) / _TWO_SIGMA, 0.0, lo, hi)


def _fast(time: Reading, p5: float | None) -> Reading | None:
    """The 5th percentile in the place of the median, with an interval as wide: a record has none of its own for it."""
    if not p5:
        return None
    factor = p5 / time.value
    if not 0 < factor <= 1:
        raise ValueError(f"a 5th percentile of {p5} beside a median of {time.value}")
    return time._replace(value=p5, lo=time.lo * factor, hi=time.hi * factor)


def _joules(joules: Mapping[str, Any], where: tuple[int, str]) -> Reading | None:
    if not joules["energy_j"]:
        return None
    found = _reading(where, joules["energy_j"], joules["energy_lo_j"], joules["energy_hi_j"])
    budget = joules.get("budget")
    if not budget:
        return found
    # Relative half-widths of 95 % intervals. The gain is one and the same for all readings of a sensor.
    own = math.sqrt(sum(float(budget.get(cause, 0.0)) ** 2 for cause in _STATISTICAL)) * 2 / _TWO_SIGMA
    return found._replace(own=own, systematic=float(budget.get("gain", 0.0)) * 2 / _TWO_SIGMA)


def _take(held: SideCase, entry: _Entry) -> None:
    spoiled = DISQUALIFYING & entry.flags
    if entry.time is None or spoiled:
        held.failed += 1
        held.status, held.why = (sorted(spoiled)[0] if spoiled else entry.status), entry.why
        return
    if entry.few:
        held.few += 1
        return
    held.time.append(entry.time)
    if entry.fast is not None:
        held.fast.append(entry.fast)
    held.timer = _joined(held.timer, entry.timer)
    if entry.flags:
        held.flags |= entry.flags
    if entry.energy is not None:
        held.energy.append(entry.energy)
        held.sensor = _joined(held.sensor, entry.sensor)
    held.work = entry.work


def _joined(known: str, new: str) -> str:
    words = known.split(" + ") if known else []
    return known if not new or new in words else " + ".join([*words, new])


def _work(work: Any) -> tuple[Any, ...] | None:
    """What must agree for times to be of the same work: its operations and bytes."""
    if not isinstance(work, Mapping):
        return None
    return tuple(work.get(name) or {} for name in ("flops", "bytes_read", "bytes_written", "link_bytes"))


def same_work(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    """Whether two cases do the same work, to six digits; unknown work is the same as any."""
    if a is None or b is None or a == b:
        return True
    return all(
        math.isclose(float(one.get(name) or 0), float(other.get(name) or 0), rel_tol=1e-6)
        for one, other in zip(a, b, strict=True)
        for name in {*one, *other}
    )
