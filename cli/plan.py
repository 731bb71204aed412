"""`wattline plan`: the cases that `bench` would run, with time and memory, touching nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli import options, ranks
from wattline.cli.options import Selection
from wattline.cli.output import emit_json, table
from wattline.units import format_bytes, format_duration

if TYPE_CHECKING:
    from wattline.case import Case
    from wattline.record import Reason
    from wattline.run import PlannedCase
    from wattline.suites.plan import Plan
    from wattline.suites.workload import Machine

EXAMPLES = "Example: wattline plan gemm --preset quick --set m=1024:8192:x2 --cases"

SHOWN_REFUSALS = 10


def command(
    *,
    suite: options.SuiteArgument = None,
    preset: options.PresetOption = None,
    budget: options.BudgetOption = None,
    set_: options.SetOption = None,
    only: options.OnlyOption = None,
    impl: options.ImplOption = None,
    regime: options.RegimeOption = None,
    data: options.DataOption = None,
    dtype: options.DtypeOption = None,
    aa: options.AaOption = None,
    seed: options.SeedOption = None,
    max_cases: options.MaxCasesOption = None,
    measure: options.MeasureOption = None,
    power_limits: options.PowerLimitsOption = None,
    clocks: options.ClocksOption = None,
    device: options.DeviceOption = None,
    ranks_: ranks.RanksOption = None,
    minbytes: ranks.BeginOption = None,
    maxbytes: ranks.EndOption = None,
    stepfactor: ranks.FactorOption = None,
    iters: ranks.IterationsOption = None,
    warmup_iters: ranks.WarmupOption = None,
    check: ranks.CheckOption = None,
    cases: Annotated[bool, typer.Option("--cases", help="Show each case, in the order of the run.")] = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Show the cases that bench would run with these options, their time and memory. Touches nothing.

    Exit code 2 says that nothing is left to run.
    """
    selection = Selection(
        names=suite, preset=preset, budget=budget, set_=set_, only=only, impls=impl, regimes=regime, fills=data,
        dtypes=dtype, aa=aa, seed=seed, max_cases=max_cases, measure=measure, device=device,
        power_limits=power_limits, clocks=clocks,
    )  # fmt: skip
    selection = ranks.SizeFlags(minbytes, maxbytes, stepfactor, iters, warmup_iters, check).applied(selection)
    from wattline.suites.machine import machine_facts

    launch = ranks.find_launch(selection.names, ranks_, None, selection.device_name)
    machine = replace(machine_facts(selection.device_name), ranks=launch.ranks if launch else 0)
    plan = selection.plan(machine, ranks=machine.ranks)
    if json:
        emit_json(_described(plan, machine, each=cases))
    elif cases:
        _each(plan, machine, quiet=quiet)
    elif not quiet:
        _groups(plan, machine)
    if not (json or quiet):
        _totals(plan)


def _grouped(plan: Plan) -> dict[tuple[str, str, str, str], list[PlannedCase]]:
    groups: dict[tuple[str, str, str, str], list[PlannedCase]] = {}
    for planned in plan.cases:
        case = planned.case
        groups.setdefault((case.op, case.impl, case.dtype or "", case.regime), []).append(planned)
    return dict(sorted(groups.items()))


@dataclass(frozen=True)
class _Group:
    """Cases that share operation, implementation, format and regime.

    Attributes:
        cases: how many.
        unsupported: how many of them this machine cannot run; they are recorded with the reason.
        time_s: upper estimate.
        memory_bytes: the most that one of them takes.
    """

    cases: int
    unsupported: int
    time_s: float
    memory_bytes: float


def _group(cases: Sequence[PlannedCase], plan: Plan, machine: Machine) -> _Group:
    from wattline.suites.plan import OVERHEAD_S, UNSUPPORTED_S
    from wattline.suites.rotation import estimate_memory

    each = plan.settings.time_limit_s + plan.settings.warmup_limit_s + OVERHEAD_S
    unsupported = sum(unmet(planned.case, machine) is not None for planned in cases)
    time_s = each * (len(cases) - unsupported) + UNSUPPORTED_S * unsupported
    return _Group(len(cases), unsupported, time_s, max(estimate_memory(c.case, machine) for c in cases))


def unmet(case: Case, machine: Machine) -> Reason | None:
    """Why a machine cannot run a case, as far as it shows without trying, or ``None``."""
    from wattline.record import Reason
    from wattline.suites.capping import unmet_caps
    from wattline.suites.registry import get_implementation

    out_of_reach = unmet_caps(case, machine)
    if out_of_reach is not None:
        return out_of_reach
    if case.regime == "graph" and machine.kind == "cpu":
        return Reason("no_graphs", "torch captures no graphs on cpu")
    return get_implementation(case.op, case.impl).unmet(case.params, machine)


def _groups(plan: Plan, machine: Machine) -> None:
    rows = []
    for names, cases in _grouped(plan).items():
        group = _group(cases, plan, machine)
        time, memory = format_duration(group.time_s), format_bytes(group.memory_bytes)
        rows.append((*names, group.cases, group.unsupported or "", time, memory))
    columns = ("operation", "implementation", "format", "regime", "cases", "unsupported", "time", "memory")
    table(columns, rows, right=columns[4:])


def _each(plan: Plan, machine: Machine, *, quiet: bool) -> None:
    from wattline.suites.rotation import estimate_memory

    if quiet:
        for planned in plan.cases:
            typer.echo(f"{planned.case.key} {planned.case.label()} {planned.variant}".rstrip())
        return
    rows = []
    for i, planned in enumerate(plan.cases):
        reason = unmet(planned.case, machine)
        memory = format_bytes(estimate_memory(planned.case, machine))
        note = f"unsupported: {reason.message}" if reason else ""
        rows.append((i, planned.case.label(), planned.variant, memory, note))
    table(("#", "case", "A/A", "memory", "note"), rows, right=("#", "memory"))


def _totals(plan: Plan) -> None:
    typer.echo()
    typer.echo(
        f"preset {plan.preset}: {len(plan.cases)} cases, at most about {format_duration(plan.estimated_s)}, "
        f"largest case {format_bytes(plan.peak_bytes)}"
        + (f", budget {format_duration(plan.budget_s)}" if plan.budget_s is not None else "")
    )
    if plan.refused:
        typer.echo(f"refused: {len(plan.refused)}")
    for refused in plan.refused[:SHOWN_REFUSALS]:
        typer.echo(f"  {refused.case.label()}: {refused.reason.message}")
    if len(plan.refused) > SHOWN_REFUSALS:
        typer.echo(f"  and {len(plan.refused) - SHOWN_REFUSALS} more; --json lists all")


def _described(plan: Plan, machine: Machine, *, each: bool) -> dict[str, Any]:
    groups = [
        dict(zip(("op", "impl", "dtype", "regime"), names, strict=True)) | asdict(_group(cases, plan, machine))
        for names, cases in _grouped(plan).items()
    ]
    data: dict[str, Any] = {
        "preset": plan.preset,
        "cases": len(plan.cases),
        "estimated_s": plan.estimated_s,
        "peak_bytes": plan.peak_bytes,
        "budget_s": plan.budget_s,
        "seed": plan.seed,
        "settings": plan.settings.to_dict(),
        "groups": groups,
        "refused": [{**r.case.to_dict(), "code": r.reason.code, "reason": r.reason.message} for r in plan.refused],
    }
    if each:
        data["plan"] = [_one(planned, machine) for planned in plan.cases]
    return data


def _one(planned: PlannedCase, machine: Machine) -> dict[str, Any]:
    from wattline.suites.rotation import estimate_memory

    reason = unmet(planned.case, machine)
    return {
        "key": planned.case.key,
        "variant": planned.variant,
        **planned.case.to_dict(),
        "memory_bytes": estimate_memory(planned.case, machine),
        "unsupported": reason and {"code": reason.code, "reason": reason.message},
    }
