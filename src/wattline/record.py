"""Record: one measured case, one JSON line.

A record says what was asked (the case), what happened (the status and its reason), what was measured
(:class:`Measurement`), and under which conditions (device, environment, seed, flags). The schema is versioned;
:data:`SCHEMA` rises when a reader of an older version would misread a newer line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from wattline.case import Case
from wattline.errors import SchemaError, UnknownNameError
from wattline.reasons import Reason as Reason  # noqa: PLC0414 - part of the vocabulary of records
from wattline.stats import TimeStats
from wattline.work import Work

SCHEMA = 1

STATUSES: dict[str, str] = {
    "ok": "measured and checked",
    "failed": "the result was wrong (the check failed), or the kernel raised an error",
    "unsupported": "this machine or version cannot run it",
    "skipped": "not run: too slow or too large for the limits given",
    "timeout": "hung: killed at its deadline",
    "crashed": "the worker process died",
    "out_of_memory": "the device or host ran out of memory",
}
"""What may become of a case."""

FLAGS: dict[str, str] = {
    "throttled_power": "clocks were lowered to stay within the power limit",
    "throttled_thermal": "clocks were lowered because of heat",
    "throttled_hardware": "clocks were lowered by the hardware",
    "throttled_quota": "the container's CPU quota ran out during the measurement",
    "clock_drift": "the first and the last third of the samples differ: the speed was not steady",
    "too_few_samples": "fewer samples than the minimum",
    "foreign_process": "other processes used the device meanwhile",
    "noisy": "the interval of the median is wide",
    "above_bound": "faster than the device allows: the work model or the timer is wrong",
    "check_failed": "the result differs from the reference by more than its format allows",
    "energy_refused": "the energy sensor could say nothing over so short a load: no joules",
    "cap_not_held": "another power limit was in force than the case asks for",
    "above_link_peak": "the bus bandwidth exceeds the link's peak: switches that add on the way, or a wrong peak",
    "launch_bound": "launching took longer than the kernel: the time is the host's, not the device's",
}
"""Validity flags by code."""

DISQUALIFYING = frozenset({"above_bound", "cap_not_held", "check_failed"})
"""Flags that keep a record away from every predictor and every headline."""


@dataclass(frozen=True)
class Flag:
    """A validity flag raised on a measurement: a code of :data:`FLAGS` and the figures behind it."""

    code: str
    message: str


@dataclass(frozen=True)
class Check:
    """How a result compared with its reference.

    Attributes:
        error: ||out - ref|| / ||ref||; NaN when the result held a NaN or an unwritten element.
        tolerance: largest error allowed.
        passed: the verdict; NaN never passes.
        method: ``"full"``, or how it was sampled.
    """

    error: float
    tolerance: float
    passed: bool
    method: str

    def __eq__(self, other: object) -> bool:
        """Field by field; figures that are unknown (NaN) are the same on both sides."""
        return _same(self, other) if isinstance(other, Check) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.tolerance, self.passed, self.method))


@dataclass(frozen=True)
class Energy:
    """Power and energy of one call, from a sensor.

    Attributes:
        power_w: mean power while the kernel ran.
        energy_j: joules per call.
        energy_lo_j, energy_hi_j: with the whole error budget.
        idle_w: power at rest, where measured.
        source: sensor and field.
        scope: ``"gpu"``, ``"module"``, ``"package"`` ...
        budget: relative error by cause.
        flags: codes of reservations.
    """

    power_w: float
    energy_j: float
    energy_lo_j: float
    energy_hi_j: float
    source: str
    scope: str
    idle_w: float | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Samples and what they say.

    Attributes:
        samples_s: seconds per call, one entry per sample, in the order taken; none dropped.
        calls_per_sample: calls that each sample averages.
        stats: their statistics.
        stop: why sampling stopped (``"precise"``, ``"stable_noise"``, ``"time_limit"``, ``"sample_limit"``,
            ``"iterations"`` where so many were asked for).
        warmup_calls, warmup_s: length of the warm-up.
        warmup_stop: why it ended (``"settled"``, ``"time_limit"``, ``"shrunk"``).
        first_call_s: the very first call, with lazy initialisation.
        rotations: number of buffer sets rotated through.
        timer: clock that was read, e.g. ``"perf_counter_ns"`` or ``"device events"``.
        timer_overhead_s: cost of reading it, per sample (not subtracted).
        timed_s: seconds inside timed samples.
        energy: joules, or ``None`` where no sensor measured.
        telemetry: means over the measured part by column name, e.g. ``{"host_clock_hz": 3.1e9}``.
        facts: what the kernel and its check say of themselves by name, e.g. ``{"compile_s": 3.1,
            "tokens_per_expert": [12, 4]}``: numbers, words, or lists of them; ``peak_bytes``, the memory that one
            call took beyond its buffers, where the workload asks for it; and of a case with caps what the driver
            reported afterwards: ``held_power_limit_w`` and ``held_clock_hz``.
        flags: validity flags.
        check: the comparison with the reference, or ``None`` where it was turned off.
    """

    samples_s: tuple[float, ...]
    calls_per_sample: int
    stats: TimeStats
    stop: str
    warmup_calls: int = 0
    warmup_s: float = 0.0
    warmup_stop: str = ""
    first_call_s: float = math.nan
    rotations: int = 1
    timer: str = ""
    timer_overhead_s: float = 0.0
    timed_s: float = 0.0
    energy: Energy | None = None
    telemetry: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    check: Check | None = None

    def __eq__(self, other: object) -> bool:
        """Field by field; figures that are unknown (NaN) are the same on both sides."""
        return _same(self, other) if isinstance(other, Measurement) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.samples_s, self.calls_per_sample, self.stop))


@dataclass(frozen=True)
class Record:
    """What became of one case in one run.

    Attributes:
        case: what was asked.
        status: a key of :data:`STATUSES`.
        device: id of the device it ran on.
        reason: why there is no figure, for every status but ``"ok"``.
        measurement: the figures, for status ``"ok"`` (and ``"failed"`` checks, where they were taken).
        work: FLOPs and bytes of the case.
        bound_s: the roofline bound on this device, where one is known.
        bound_by: what bounds it.
        variant: ``"a"`` or ``"b"`` where the same case is measured twice on purpose, else empty.
        seed: of the random inputs.
        started_at: ISO 8601 in UTC.
        wall_s: seconds that the whole case took, set-up and check included.
        sequence: position in the order of the run.
    """

    case: Case
    status: str
    device: str
    reason: Reason | None = None
    measurement: Measurement | None = None
    work: Work | None = None
    bound_s: float | None = None
    bound_by: str = ""
    variant: str = ""
    seed: int = 0
    started_at: str = ""
    wall_s: float = 0.0
    sequence: int = -1

    @property
    def identity(self) -> tuple[str, str]:
        """What makes this record one of its kind in a run: the case's key and the variant."""
        return self.case.key, self.variant

    @property
    def flags(self) -> tuple[str, ...]:
        """The codes of its validity flags, each once: two causes may raise the same flag."""
        return tuple(dict.fromkeys(f.code for f in self.measurement.flags)) if self.measurement else ()

    @property
    def valid(self) -> bool:
        """Whether a predictor may learn from it."""
        return self.status == "ok" and self.measurement is not None and not DISQUALIFYING.intersection(self.flags)

    @property
    def time_s(self) -> float | None:
        """Median seconds per call, or ``None``."""
        return self.measurement.stats.median_s if self.measurement else None

    @property
    def efficiency(self) -> float | None:
        """Bound over measured time: 1 is as fast as the device allows."""
        time = self.time_s
        return self.bound_s / time if time and self.bound_s else None

    def to_json(self) -> str:
        """One line of JSON without the line end."""
        data: dict[str, Any] = {"schema": SCHEMA, "key": self.case.key, "case": self.case.to_dict()}
        data |= {"status": self.status, "device": self.device}
        if self.reason:
            data["reason"] = asdict(self.reason)
        if self.measurement:
            data["measurement"] = _measurement_dict(self.measurement)
        if self.work:
            data["work"] = self.work.to_dict()
        if self.bound_s is not None:
            data |= {"bound_s": self.bound_s, "bound_by": self.bound_by}
        if self.variant:
            data["variant"] = self.variant
        data |= {"seed": self.seed, "started_at": self.started_at, "wall_s": round(self.wall_s, 6)}
        data["sequence"] = self.sequence
        return json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record that :meth:`to_json` wrote.

        Raises:
            SchemaError: not a record, or one of a newer schema.
        """
        return cls.from_dict(_parsed(line))

    @classmethod
    def from_dict(cls, data: Any) -> Record:
        """From parsed JSON; see :meth:`from_json`."""
        _check_schema(data)
        try:
            reason, measured, work = data.get("reason"), data.get("measurement"), data.get("work")
            return cls(
                case=Case.from_dict(data["case"]),
                status=data["status"],
                device=data["device"],
                reason=Reason(**reason) if reason else None,
                measurement=_measurement(measured) if measured else None,
                work=Work.from_dict(work) if work else None,
                bound_s=data.get("bound_s"),
                bound_by=data.get("bound_by", ""),
                variant=data.get("variant", ""),
                seed=data.get("seed", 0),
                started_at=data.get("started_at", ""),
                wall_s=data.get("wall_s", 0.0),
                sequence=data.get("sequence", -1),
            )
        except (KeyError, TypeError, ValueError, AttributeError, UnknownNameError) as error:
            raise SchemaError("a damaged record", why=f"missing or wrong field: {error}") from None


_SAMPLES = '"samples_s":['
"""Begins the samples of a line. Within a string of JSON the quotes would be escaped, so it stands nowhere else."""


def entry_of(line: str) -> dict[str, Any]:
    """The line of a record as parsed JSON without its samples: for readers of many records who need statistics only.

    The samples are most of a line, and are cut out before it is parsed.

    Raises:
        SchemaError: not a record, or one of a newer schema. Its fields are not looked at.
    """
    begin = line.find(_SAMPLES)
    end = line.find("]", begin) if begin >= 0 else -1
    if end >= 0:
        line = f"{line[: begin + len(_SAMPLES)]}{line[end:]}"
    data = _parsed(line)
    _check_schema(data)
    return dict(data)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SchemaError("not a record", why=f"not JSON: {error}") from None


def _check_schema(data: Any) -> None:
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise SchemaError("not a record", why="it has no schema number")
    if data["schema"] > SCHEMA:
        raise SchemaError(
            f"a record of schema {data['schema']}",
            why=f"this version reads schema {SCHEMA} and older",
            todo="upgrade wattline",
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two objects of one dataclass hold the same: left to dataclasses, NaN equals itself in tuples, so up to
    Python 3.12, and not since."""
    return all(_finite(getattr(one, name)) == _finite(getattr(other, name)) for name in one.__dataclass_fields__)


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes ``null``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _measurement_dict(m: Measurement) -> dict[str, Any]:
    data = {name: getattr(m, name) for name in m.__dataclass_fields__}
    data["samples_s"] = [float(f"{v:.7g}") for v in m.samples_s]  # a clock has no more digits than that
    data["stats"] = m.stats.to_dict()
    data["energy"] = asdict(m.energy) if m.energy else None
    data["flags"] = [asdict(f) for f in m.flags]
    data["check"] = asdict(m.check) if m.check else None
    return {k: v for k, v in data.items() if v is not None and v not in ([], {})}


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _measurement(data: dict[str, Any]) -> Measurement:
    values = dict(data)
    values["samples_s"] = tuple(values.get("samples_s", ()))
    telemetry = values.get("telemetry", {})
    values["telemetry"] = {name: math.nan if value is None else value for name, value in telemetry.items()}
    values["stats"] = TimeStats(**values["stats"])
    wrong = [name for name, value in vars(values["stats"]).items() if not _is_figure(value)]
    if wrong:
        raise ValueError(f"stats.{wrong[0]} is no figure")
    values["flags"] = tuple(Flag(**f) for f in values.get("flags", ()))
    if values.get("first_call_s") is None:
        values["first_call_s"] = math.nan
    if values.get("energy"):
        energy = dict(values["energy"])
        energy["flags"] = tuple(energy.get("flags", ()))
        values["energy"] = Energy(**energy)
    if values.get("check"):
        check = dict(values["check"])
        if check.get("error") is None:
            check["error"] = math.nan
        values["check"] = Check(**check)
    return Measurement(**values)
