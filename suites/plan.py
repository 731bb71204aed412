"""Plan: from a preset and what the user asks to the cases of a run, in order. Neither torch nor numpy is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from wattline.axes import MAX_CASES
from wattline.case import Case
from wattline.errors import ParamError, PlanError, UsageError
from wattline.record import Reason
from wattline.run import PlannedCase
from wattline.suites.capping import SETTLE_S, unmet_caps
from wattline.suites.cases import Conditions, Wanted, asked_for, check_wanted, explicit_ops, from_preset
from wattline.suites.order import cut, gather, pair_up, spread
from wattline.suites.presets import Preset, load_preset
from wattline.suites.registry import get, get_implementation, select, suite_of
from wattline.suites.rotation import estimate_memory
from wattline.suites.settings import MeasureSettings, watching_s
from wattline.suites.workload import Machine
from wattline.units import format_bytes

MEMORY_SHARE = 0.9
"""Share of the device's memory that a case may take: the rest is left to the system and the libraries."""

OVERHEAD_S = 0.15
"""Set-up and check of a case, beyond its warm-up and timing."""

START_S = 4.0
"""Starting the worker, and the probe of memory and launches."""

PROBE_FORMAT_S = 0.4
"""The probe of one number format."""

ENERGY_S = 5.0
"""The load that energy is measured over by a sensor's own rule, where the settings do not say."""

ENERGY_LEAD_S = 0.5
"""Lead-in and lead-out of it."""

UNSUPPORTED_S = 0.01
"""An unsupported case costs a record only."""

_SWEEP = "asked for"
_MOST_LOOKED_AT = 5 * MAX_CASES  # combinations, before conditions: half a minute's work


@dataclass(frozen=True)
class Refused:
    """A case that the plan leaves out.

    Attributes:
        case: what was asked.
        reason: why not, with the figure.
    """

    case: Case
    reason: Reason


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        preset: name or path of the preset.
        cases: in the order of the run, A/A variants included.
        refused: cases left out, such as those larger than memory.
        settings: of the measurement loop.
        budget_s: wall time to stop within, or ``None``.
        seed: of the order and of the inputs.
        arguments: what the user asked, in JSON types: ``make_plan(**arguments, machine=...)`` makes it again.
        ranks: how many ranks it is for; 0: it is the plan of one device.
        estimated_s: upper estimate of the wall time, never above the budget.
        peak_bytes: the most memory that any case takes, its rotation included.
    """

    preset: str
    cases: tuple[PlannedCase, ...]
    refused: tuple[Refused, ...]
    settings: MeasureSettings
    budget_s: float | None
    seed: int
    arguments: Mapping[str, Any]
    estimated_s: float
    peak_bytes: float
    ranks: int = 0


def make_plan(
    preset: str | Path = "standard",
    *,
    names: Sequence[str] = (),
    impls: Sequence[str] = (),
    regimes: Sequence[str] = (),
    fills: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    set_: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    budget_s: float | None = None,
    aa: int | None = None,
    seed: int = 0,
    max_cases: int | None = None,
    measure: Mapping[str, Any] | None = None,
    power_limits: str = "",
    clocks: str = "",
    machine: Machine,
) -> Plan:
    """Make the plan of a run.

    Without ``set_`` the cases are the preset's, narrowed to what is named. Where ``set_`` gives every required
    parameter of an op (``dtype`` apart, fp32 unless given), its cases are exactly the combinations asked for;
    otherwise each parameter in ``set_`` replaces that of the preset's cases.

    Args:
        preset: name, or path of a TOML file.
        names: ops (``"gemm.dense"``) or suites (``"gemm"``); all when empty.
        impls, regimes, fills, dtypes: only these.
        set_: parameters, or ``regime``, ``data``, ``impl``, as values or ranges: ``{"m": "1024:8192:x2"}``.
        only: conditions over parameters, ``op``, ``impl``, ``regime`` and ``data`` that a case must meet.
        budget_s: wall time to stop within; the preset's when not given.
        aa: number of A/A pairs; the preset's when not given (none for cases given by ``set_`` alone).
        seed: of the order and of the inputs.
        max_cases: no more cases than this: a balanced part.
        measure: settings of the measurement loop that replace the preset's.
        power_limits: watts to hold the device to, each case once with each: ``"700,600,default"``.
        clocks: clocks to lock it to, likewise: ``"1980,1410MHz"``; see
            :func:`wattline.collectors.energy.caps.parse_caps`.
        machine: what it will run on.

    Raises:
        UnknownNameError: an op, preset, parameter, regime, fill or format that does not exist.
        ParamError: a value out of range.
        PlanError: no case fits the machine's memory, or there are too many.
        UsageError: nothing is left to run.
    """
    given = dict(set_ or {})
    _check_limits(budget_s, aa, max_cases)
    ops = _of_one_kind(select(names), names, machine)
    wanted = check_wanted(ops, impls, regimes, fills, dtypes)
    loaded = load_preset(preset, machine.kind)
    settings = _settings(loaded.measure, measure or {})
    if (settings.iterations or settings.warmup_iterations) and not machine.ranks:
        raise UsageError(
            "a fixed number of iterations is for runs of several ranks", why="on one device the criterion decides",
            todo="use time_limit_s, max_samples or stopping",
        )  # fmt: skip
    explicit = explicit_ops(ops, given, named=bool(names))
    conditions = Conditions(only, ops)
    held_to = _caps(power_limits, clocks)
    if machine.ranks and held_to != [(None, None)]:
        what = "power limits and clocks are set for one device, and this run has ranks on several"
        raise UsageError(what, todo="leave them out")
    unique: dict[str, tuple[Case, str]] = {}
    found = 0
    for op in ops:
        tagged: Iterable[tuple[Case, str]] = ()
        if op in explicit:
            tagged = ((case, _SWEEP) for case in asked_for(op, given, wanted))
        elif not explicit or op in names:
            tagged = from_preset(op, loaded, given, wanted, needed=bool(names and given))
        placed = get(op).workload.placed
        for asked, sweep in tagged:
            case = placed(asked, machine)
            found += 1
            if conditions.hold(case):
                for limit, clock in held_to:
                    capped = replace(case, power_limit_w=limit, clock_hz=clock)
                    unique.setdefault(capped.key, (capped, sweep))
            # Asked as they come: an axis of thousands in each of a preset's cases would fill the memory first.
            if len(unique) > MAX_CASES or found > _MOST_LOOKED_AT:
                raise PlanError(
                    f"the plan has more than {MAX_CASES:,} cases"
                    if len(unique) > MAX_CASES
                    else f"the conditions leave few of more than {_MOST_LOOKED_AT:,} combinations",
                    todo="narrow an axis, or give every required parameter with --set",
                )
    if not unique:
        raise UsageError(
            "nothing is left to run",
            why=_why_nothing(found, loaded, ops, wanted, only),
            todo="`wattline plan` without the filters shows what there is",
        )
    kept, refused = _within_memory(unique.values(), machine)
    strata = {
        case.key: (case.op, case.impl, case.dtype, case.regime, case.data, sweep, *case.caps.items())
        for case, sweep in kept
    }
    order = spread([case for case, _ in kept], lambda c: strata[c.key], _work, seed)
    if len(held_to) > 1:  # cut first: in a stretch that is cut afterwards, whole caps would be missing
        order = gather(order[:max_cases], _cap_of, seed)
    pairs = aa if aa is not None else (0 if explicit else loaded.aa)
    planned = pair_up(order, pairs, lambda c: _work(c) if _runs(c, machine) else float("inf"))
    if max_cases is not None:
        planned = cut(planned, max_cases)
    budget = budget_s if budget_s is not None else (None if explicit else _budget_of(loaded, planned))
    return Plan(
        preset=str(preset),
        cases=tuple(planned),
        refused=tuple(refused),
        settings=settings,
        budget_s=budget,
        seed=seed,
        arguments={
            "preset": str(preset),
            "names": list(names),
            "impls": list(impls),
            "regimes": list(regimes),
            "fills": list(fills),
            "dtypes": list(dtypes),
            "set_": {name: _plain(value) for name, value in given.items()},
            "only": list(only),
            "budget_s": budget_s,
            "aa": aa,
            "seed": seed,
            "max_cases": max_cases,
            "measure": dict(measure or {}),
            "power_limits": power_limits,
            "clocks": clocks,
        },
        estimated_s=_estimate(planned, settings, budget, machine),
        peak_bytes=max((estimate_memory(p.case, machine) for p in planned), default=0.0),
        ranks=machine.ranks,
    )


def _of_one_kind(ops: Sequence[str], names: Sequence[str], machine: Machine) -> list[str]:
    """The operations of several ranks, in a run that has ranks; those of one device, in one that has none."""
    several = [op for op in ops if get(op).workload.distributed]
    single = [op for op in ops if op not in several]
    if not names:
        return several if machine.ranks else single
    if several and single:
        raise UsageError(
            f"{several[0]} and {single[0]} cannot be measured in one run",
            why="one is done by several ranks together, the other by one device",
            todo="start a run for each",
        )
    if several and not machine.ranks:
        raise UsageError(
            f"{several[0]} is done by several ranks, and this run has none", todo="give --ranks, or start with torchrun"
        )
    if single and machine.ranks:
        raise UsageError(
            f"{single[0]} runs on one device, and this run has {machine.ranks} ranks",
            todo="leave --ranks out, and start it without torchrun or srun",
        )
    return list(ops)


def _caps(power_limits: str, clocks: str) -> list[tuple[float | None, float | None]]:
    """The power limits and clocks that each case is to be held to in turn; ``None`` is without one."""
    if not (power_limits or clocks):
        return [(None, None)]
    from wattline.collectors.energy.caps import parse_caps

    return [(cap.power_limit_w, cap.sm_clock_hz) for cap in parse_caps(power_limits, clocks)]


def _cap_of(case: Case) -> tuple[tuple[str, float], ...]:
    return tuple(case.caps.items())


def _plain(value: object) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _settings(preset: MeasureSettings, changed: Mapping[str, Any]) -> MeasureSettings:
    values = {**preset.to_dict(), **changed}
    limit = values["time_limit_s"]
    if "time_limit_s" in changed and "min_time_s" not in changed and isinstance(limit, int | float):
        values["min_time_s"] = min(preset.min_time_s, limit)  # who shortens the limit means the whole measurement
    return MeasureSettings.from_dict(values)


def _budget_of(preset: Preset, planned: Sequence[PlannedCase]) -> float | None:
    """The preset's budget, once for each suite that has a part in the plan, within that for all together."""
    limits = [preset.budget_total_s]
    if preset.budget_s is not None:
        limits.append(preset.budget_s * max(1, len({suite_of(item.case.op) for item in planned})))
    return min((limit for limit in limits if limit is not None), default=None)


def _check_limits(budget_s: float | None, aa: int | None, max_cases: int | None) -> None:
    if budget_s is not None and not 0 < budget_s < float("inf"):
        raise ParamError(f"the budget must be above zero, not {budget_s!r}", todo="leave it out for no limit")
    if aa is not None and aa < 0:
        raise ParamError(f"the number of A/A pairs must not be negative: {aa}", todo="0 measures no case twice")
    if max_cases is not None and max_cases < 1:
        raise ParamError(f"the number of cases must be above zero: {max_cases}", todo="leave it out for all of them")


def _why_nothing(found: int, preset: Preset, ops: Sequence[str], wanted: Wanted, only: Sequence[str]) -> str:
    if found:
        return f"none of {found:,} cases meets {' and '.join(only)}"
    asked = [word for words in (wanted.impls, wanted.regimes, wanted.fills, wanted.dtypes) for word in words]
    what = f" with {', '.join(asked)}" if asked else ""
    return f"the preset {preset.name} has no case of {', '.join(ops) or 'any op'}{what}"


def _within_memory(
    cases: Iterable[tuple[Case, str]], machine: Machine
) -> tuple[list[tuple[Case, str]], list[Refused]]:
    kept: list[tuple[Case, str]] = []
    refused: list[Refused] = []
    limit = MEMORY_SHARE * machine.memory_bytes
    for case, sweep in cases:
        need = estimate_memory(case, machine)
        if not machine.memory_bytes or need <= limit:
            kept.append((case, sweep))
            continue
        message = (
            f"it takes {format_bytes(need)} with its rotation, more than {MEMORY_SHARE:.0%} "
            f"of the {format_bytes(machine.memory_bytes)} of this device"
        )
        refused.append(Refused(case, Reason("larger_than_memory", message)))
    if not kept:
        smallest = min(refused, key=lambda r: estimate_memory(r.case, machine))
        which = "the case" if len(refused) == 1 else f"even the smallest of {len(refused):,} cases"
        raise PlanError(
            f"{which} is larger than memory: {smallest.case.label()}",
            why=smallest.reason.message,
            todo="choose smaller sizes, or the regime hot, which keeps one set of buffers",
        )
    return kept, refused


@lru_cache(maxsize=100_000)
def _work(case: Case) -> float:
    """A rough measure of cost that orders cases by size: FLOPs, and bytes where they weigh more."""
    work = get(case.op).workload.work(case.params)
    return work.total_flops + 50.0 * work.total_bytes  # about a machine's balance, in FLOPs per byte


def _runs(case: Case, machine: Machine) -> bool:
    if (case.regime == "graph" and machine.kind == "cpu") or unmet_caps(case, machine) is not None:
        return False
    return get_implementation(case.op, case.impl).unmet(case.params, machine) is None


def _estimate(
    planned: Sequence[PlannedCase], settings: MeasureSettings, budget_s: float | None, machine: Machine
) -> float:
    each = settings.time_limit_s + settings.warmup_limit_s + OVERHEAD_S
    if machine.energy:
        each += (settings.energy_window_s or ENERGY_S) + ENERGY_LEAD_S
    start = START_S + PROBE_FORMAT_S * len({p.case.dtype for p in planned}) + watching_s(settings)
    running = [p.case for p in planned if _runs(p.case, machine)]
    total = start + each * len(running) + UNSUPPORTED_S * (len(planned) - len(running))
    total += SETTLE_S * sum(_cap_of(case) != _cap_of(following) for case, following in pairwise(running))
    return total if budget_s is None else min(total, budget_s)
