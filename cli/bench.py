"""`wattline bench`: measure, learn and report."""

from __future__ import annotations

import shlex
import socket
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli import options, ranks
from wattline.cli.options import Selection
from wattline.cli.output import emit_event

if TYPE_CHECKING:
    from wattline.predictors.choosing import CaseChooser
    from wattline.suites.collectives.launch import Launch
    from wattline.suites.plan import Plan
    from wattline.suites.runner import Observer, Outcome

EXAMPLES = "Example: wattline bench gemm --preset quick --budget 2m --set m=1024:8192:x2"

RUNS = Path("runs")


def command(
    *,
    suite: options.SuiteArgument = None,
    preset: options.PresetOption = None,
    budget: options.BudgetOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the run. Default: a new one under runs/."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out, or the newest unfinished run under runs/.")
    ] = False,
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
    energy_window: options.EnergyWindowOption = None,
    power_limits: options.PowerLimitsOption = None,
    clocks: options.ClocksOption = None,
    device: options.DeviceOption = None,
    ranks_: ranks.RanksOption = None,
    timeout: ranks.TimeoutOption = None,
    minbytes: ranks.BeginOption = None,
    maxbytes: ranks.EndOption = None,
    stepfactor: ranks.FactorOption = None,
    iters: ranks.IterationsOption = None,
    warmup_iters: ranks.WarmupOption = None,
    check: ranks.CheckOption = None,
    until_error: Annotated[
        str | None,
        typer.Option("--until-error", metavar="SHARE", help="Cases that teach most, until predictions err less: 5%."),
    ] = None,
    no_fit: Annotated[bool, typer.Option("--no-fit", help="Do not fit a predictor.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Do not write the report.")] = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Measure a preset, fit a predictor on what was measured, and write the report.

    Ctrl-C stops cleanly; --resume goes on. Exit code 1 says that some cases failed, 2 that none fitted the budget.
    """
    if energy_window is not None:
        measure = [*(measure or []), options.energy_setting(energy_window)]
    selection = Selection(
        names=suite, preset=preset, budget=budget, set_=set_, only=only, impls=impl, regimes=regime, fills=data,
        dtypes=dtype, aa=aa, seed=seed, max_cases=max_cases, measure=measure, device=device,
        power_limits=power_limits, clocks=clocks,
    )  # fmt: skip
    if until_error is not None:
        selection = _without_pairs(selection, ranks_)
    selection = ranks.SizeFlags(minbytes, maxbytes, stepfactor, iters, warmup_iters, check).applied(selection)
    launch = ranks.find_launch(selection.names, ranks_, timeout, selection.device_name, out if resume else None)
    if launch is not None and launch.place.rank:
        raise typer.Exit(ranks.be_member(launch))
    if resume:
        folder = out or newest_unfinished(RUNS)
        if launch is None and out is None:
            launch = ranks.find_launch(None, None, timeout, selection.device_name, folder)
        outcome = _resume(folder, selection, launch, until_error, json=json, quiet=quiet)
    else:
        folder = out or default_folder(selection.preset_name)
        outcome = _start(folder, selection, launch, until_error, json=json, quiet=quiet)
    if outcome.state == "interrupted":
        _tell_interrupted(outcome, json=json)
        raise typer.Exit(outcome.exit_code)
    if outcome.state == "out_of_budget" and not outcome.done:
        _refuse_empty_run(outcome, json=json)
    try:
        _finish(outcome, fit=not no_fit, report=not no_report, json=json, quiet=quiet)
    except KeyboardInterrupt:  # while learning or drawing: going on does that again and measures nothing twice
        outcome = replace(outcome, state="interrupted")
        _tell_interrupted(outcome, json=json)
    raise typer.Exit(outcome.exit_code)


def default_folder(preset: str, root: Path = RUNS) -> Path:
    """``runs/<date-time in UTC>-<host>-<preset>``, one that is not there yet."""
    from wattline.device import slug

    host = slug(socket.gethostname().split(".")[0])[:24]
    stem = f"{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}-{host}-{slug(preset)}"
    folder, number = root / stem, 1
    while folder.exists():
        number += 1
        folder = root / f"{stem}-{number}"
    return folder


def newest_unfinished(root: Path) -> Path:
    """The run under a folder that was written to last and is not complete.

    Raises:
        UsageError: there is none.
    """
    from wattline.errors import SchemaError, UsageError
    from wattline.run import MANIFEST, Run

    found: list[tuple[float, Path]] = []
    for manifest in root.glob(f"*/{MANIFEST}"):
        try:
            if Run(manifest.parent).state != "complete":
                found.append((max(path.stat().st_mtime for path in manifest.parent.iterdir()), manifest.parent))
        except (OSError, SchemaError):
            continue  # a folder that cannot be read is none to go on with; asked for by --out, it says why
    if not found:
        raise UsageError(
            f"no unfinished run under {root}/", why="--resume needs one to go on with", todo="name it with --out DIR"
        )
    return max(found)[1]


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"wattline bench --resume --out {shlex.quote(str(folder))}"


def _start(
    folder: Path, selection: Selection, launch: Launch | None, until_error: str | None, *, json: bool, quiet: bool
) -> Outcome:
    from wattline.cli.progress import make_observer
    from wattline.suites.runner import run_bench

    chooser = _chooser(until_error, selection.seed)
    plan = selection.plan(ranks=launch.ranks if launch else 0)
    with closing(make_observer(json=json, quiet=quiet)) as observer:
        _note_refusals(plan, observer)
        line = shlex.join(["wattline", *sys.argv[1:]])
        return run_bench(
            plan, folder, device=selection.device_name, observer=observer, command=line, launch=launch,
            chooser=chooser,
        )  # fmt: skip


def _note_refusals(plan: Plan, observer: Observer) -> None:
    if plan.refused:
        first = plan.refused[0]
        observer.note(
            f"{len(plan.refused)} cases are refused, such as {first.case.label()}: {first.reason.message}; "
            "`wattline plan` shows all"
        )


def _resume(
    folder: Path, selection: Selection, launch: Launch | None, until_error: str | None, *, json: bool, quiet: bool
) -> Outcome:
    from wattline.cli.progress import make_observer
    from wattline.run import Run
    from wattline.suites.runner import resume_bench

    _same_plan(folder, selection)
    begun = Run(folder).manifest  # a run that was begun with a target keeps it, unless it is given another
    target = until_error or (begun.get("sampling") or {}).get("target")
    chooser = _chooser(target, (begun.get("plan") or {}).get("seed"))
    with closing(make_observer(json=json, quiet=quiet)) as observer:
        return resume_bench(folder, budget_s=selection.budget_s, observer=observer, launch=launch, chooser=chooser)


def _chooser(until_error: str | float | None, seed: int | None) -> CaseChooser | None:
    """What chooses the cases of a run that ends at an error.

    Raises:
        ParamError: not a share.
    """
    if until_error is None:
        return None
    from wattline.predictors.choosing import CaseChooser

    share = until_error if isinstance(until_error, float) else options.parse_share(until_error)
    return CaseChooser(share, seed=seed or 0)


def _without_pairs(selection: Selection, ranks_: str | int | None) -> Selection:
    """A selection without what a run that ends at an error cannot have.

    Raises:
        UsageError: it was asked for.
    """
    from wattline.errors import UsageError

    asked = {
        "--aa": selection.aa, "--power-limits": selection.power_limits, "--clocks": selection.clocks,
        "--ranks": ranks_,
    }  # fmt: skip
    for flag, value in asked.items():
        if value:
            why = "it measures what a predictor learns most from: each case once, on one device, without caps"
            raise UsageError(f"--until-error and {flag} cannot be joined", why=why, todo=f"leave {flag} out")
    return replace(selection, aa=0)


def _same_plan(folder: Path, selection: Selection) -> None:
    """A resumed run keeps its plan: flags beside ``--resume`` may repeat what began it, not change it."""
    from wattline.errors import UsageError
    from wattline.run import Run

    begun: dict[str, Any] = (Run(folder).manifest.get("plan") or {}).get("arguments") or {}
    for name, (flag, value) in selection.arguments().items():
        if name in begun and begun[name] != value:
            raise UsageError(
                f"--resume cannot change {flag}",
                why=f"the run was begun with {begun[name]}, and is asked for {value}",
                todo=f"leave {flag} out: `{resume_command(folder)}`; or begin another run without --resume",
            )


def _tell_interrupted(outcome: Outcome, *, json: bool) -> None:
    if json:
        emit_event(
            "finished", state=outcome.state, run=str(outcome.path), exit_code=outcome.exit_code,
            resume=resume_command(outcome.path),
        )  # fmt: skip
    typer.echo(f"interrupted: {outcome.done} of {outcome.planned} cases are done and kept", err=True)
    typer.echo(f"  do: {resume_command(outcome.path)}", err=True)


def _refuse_empty_run(outcome: Outcome, *, json: bool) -> None:
    """End a run whose budget was spent before its first case: there is nothing to learn from and to report.

    Raises:
        UsageError: always.
    """
    from wattline.errors import UsageError

    error = UsageError(
        f"no case fitted into the budget: 0 of {outcome.planned} are done",
        why="the start of the worker and the probe of the machine's ceilings count too, and used it up",
        todo=f"give it more time: `{resume_command(outcome.path)} --budget 2m`; the probe is not repeated",
    )
    if json:
        emit_event("finished", state=outcome.state, run=str(outcome.path), exit_code=error.exit_code)
    raise error


def _finish(outcome: Outcome, *, fit: bool, report: bool, json: bool, quiet: bool) -> None:
    """Fit, report, and say where everything is; the paths come last."""
    from wattline.units import format_duration

    if not (json or quiet):
        counts = ", ".join(f"{number} {status}" for status, number in outcome.by_status.items() if number)
        wall, cases = format_duration(outcome.wall_s), "case" if outcome.planned == 1 else "cases"
        typer.echo(f"{outcome.done} of {outcome.planned} {cases} in {wall}: {counts or 'none'}")
        if outcome.state == "out_of_budget":
            typer.echo(f"the budget is spent; `{resume_command(outcome.path)} --budget 10m` goes on")
    predictor = _fit(outcome.path, quiet=quiet) if fit else None
    written = None
    if report:
        from wattline.reports import write_report

        written = write_report(outcome.path)
    if json:
        emit_event(
            "finished", state=outcome.state, run=str(outcome.path), exit_code=outcome.exit_code,
            by_status=dict(outcome.by_status), wall_s=outcome.wall_s, kernel_s=outcome.kernel_s,
            predictor=predictor and str(predictor), report=written and str(written),
        )  # fmt: skip
        return
    for name, path in (("predictor", predictor), ("report", written)):
        if path is not None:
            typer.echo(str(path) if quiet else f"{name:<9} {path}")


def _fit(folder: Path, *, quiet: bool) -> Path | None:
    from wattline.errors import DataError
    from wattline.predictors.datasets import fit_run

    try:
        predictor = fit_run(folder)
    except DataError as error:  # too few rows: the run stands, there is just nothing to learn from it
        if not quiet:
            typer.echo(f"note: no predictor: {error}", err=True)
        return None
    for cause, count in predictor.provenance_.get("left_out", {}).items():
        if not quiet:
            typer.echo(f"note: the predictor learned nothing from {count} records {cause}", err=True)
    return folder / "predictor.wl"
