"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.errors import ParamError, UsageError

if TYPE_CHECKING:
    from wattline.suites.plan import Plan
    from wattline.suites.workload import Machine

DEFAULT_PRESET = "standard"

SuiteArgument = Annotated[
    list[str] | None, typer.Argument(metavar="SUITE", help="Suites (gemm) or operations (gemm.dense). Default: all.")
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", "-p", metavar="NAME", help="A preset or a TOML file. Default: standard.")
]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", metavar="TIME", help="Stop in time with a balanced subset: 90s, 10m, 1h.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=RANGE", help="An axis, such as m=1024:8192:x2 or n=8,16 (repeat)."),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="CONDITION", help="Keep the cases that meet it: 'm*n <= 1e6' (repeat)."),
]
ImplOption = Annotated[
    list[str] | None, typer.Option("--impl", metavar="NAME", help="Only this implementation (repeat).")
]
RegimeOption = Annotated[
    list[str] | None,
    typer.Option("--regime", metavar="NAME", help="Only this regime: cold, hot, graph or eager (repeat)."),
]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", metavar="FILL", help="Only this fill of the inputs (repeat).")
]
DtypeOption = Annotated[
    list[str] | None,
    typer.Option("--dtype", metavar="FORMAT", help="Only this number format: fp32, bf16 ... (repeat)."),
]
AaOption = Annotated[
    int | None, typer.Option("--aa", metavar="N", help="Measure N cases twice, to see what can be told apart.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of the order and of the inputs. Default: 0.")
]
MaxCasesOption = Annotated[int | None, typer.Option("--max-cases", metavar="N", help="No more than N cases.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 ... Default: auto.")
]
MeasureOption = Annotated[
    list[str] | None,
    typer.Option("--measure", metavar="NAME=VALUE", help="A setting of the loop: time_limit_s=0.5 (repeat)."),
]
EnergyWindowOption = Annotated[
    str | None,
    typer.Option("--energy-window", metavar="TIME", help="Load per case that energy is measured over: 2s, 500ms."),
]
PowerLimitsOption = Annotated[
    str | None,
    typer.Option("--power-limits", metavar="WATTS", help="Each case at each power limit: 700,600,default (as root)."),
]
ClocksOption = Annotated[
    str | None,
    typer.Option("--clocks", metavar="MHZ", help="Each case at each locked clock: 1980,1410,default (as root)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only what was asked for, and errors.")]


@dataclass(frozen=True)
class Selection:
    """What a user selected: the options that `plan` and `bench` share, as given (``None`` or empty: not given)."""

    names: Sequence[str] | None = None
    preset: str | None = None
    budget: str | None = None
    set_: Sequence[str] | None = None
    only: Sequence[str] | None = None
    impls: Sequence[str] | None = None
    regimes: Sequence[str] | None = None
    fills: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    aa: int | None = None
    seed: int | None = None
    max_cases: int | None = None
    measure: Sequence[str] | None = None
    power_limits: str | None = None
    clocks: str | None = None
    device: str | None = None

    @property
    def preset_name(self) -> str:
        """The preset's name, or its file's without folder and suffix."""
        return Path(self.preset or DEFAULT_PRESET).stem

    @property
    def device_name(self) -> str:
        """The device that was asked for; an empty name is a wrong one, not none."""
        return "auto" if self.device is None else self.device

    @property
    def budget_s(self) -> float | None:
        """The budget in seconds.

        Raises:
            ParamError: not a duration.
        """
        from wattline.units import parse_duration

        return None if self.budget is None else parse_duration(self.budget)

    def arguments(self) -> dict[str, tuple[str, Any]]:
        """What was given of the plan, by the name that :func:`wattline.suites.plan.make_plan` has for it.

        Returns:
            Flag as written, and value. The budget and the device are left out: they are no part of the plan.
        """
        given: dict[str, tuple[str, Any]] = {
            "preset": ("--preset", self.preset and str(_preset(self.preset))),
            "names": ("SUITE", self.names and list(self.names)),
            "set_": ("--set", self.set_ and assignments(self.set_, "--set")),
            "only": ("--only", self.only and list(self.only)),
            "impls": ("--impl", self.impls and list(self.impls)),
            "regimes": ("--regime", self.regimes and list(self.regimes)),
            "fills": ("--data", self.fills and list(self.fills)),
            "dtypes": ("--dtype", self.dtypes and list(self.dtypes)),
            "aa": ("--aa", self.aa),
            "seed": ("--seed", self.seed),
            "max_cases": ("--max-cases", self.max_cases),
            "measure": ("--measure", self.measure and _settings(self.measure)),
            "power_limits": ("--power-limits", _caps_text(self.power_limits, "--power-limits")),
            "clocks": ("--clocks", _caps_text(self.clocks, "--clocks")),
        }
        return {name: (flag, value) for name, (flag, value) in given.items() if value is not None and value != []}

    def plan(self, machine: Machine | None = None, *, ranks: int = 0) -> Plan:
        """The plan of this selection.

        Args:
            machine: the device's facts; ``None``: those of the device that was asked for.
            ranks: how many it is for; 0: one device.

        Raises:
            WattlineError: an unknown name, a range that never ends, an empty selection, a device that is not there.
        """
        from wattline.suites.machine import machine_facts
        from wattline.suites.plan import make_plan

        given = {name: value for name, (_, value) in self.arguments().items() if name != "preset"}
        return make_plan(
            _preset(self.preset or DEFAULT_PRESET),
            **given,
            budget_s=self.budget_s,
            machine=replace(machine or machine_facts(self.device_name), ranks=ranks),
        )


def _settings(items: Sequence[str]) -> dict[str, Any]:
    return {name: literal(value) for name, value in assignments(items, "--measure").items()}


def _caps_text(text: str | None, flag: str) -> str | None:
    """A list of caps as written.

    Raises:
        ParamError: it is none.
    """
    if text is None:
        return None
    from wattline.collectors.energy.caps import parse_caps

    try:
        if not text.strip(" ,"):
            raise ParamError("it names nothing")
        parse_caps(**{flag[2:].replace("-", "_"): text})
    except ParamError as error:
        example = "700,600W,default" if flag == "--power-limits" else "1980,1500MHz,default"
        raise ParamError(f"cannot read {flag} {text}", why=error.what, todo=f"write it like {example}") from None
    return text


def _preset(name: str) -> str | Path:
    """A name, or a file: whatever ends in .toml or has a folder in it."""
    return Path(name) if name.endswith(".toml") or "/" in name else name


def parse_share(text: str) -> float:
    """``5%`` or ``0.05`` as a share.

    Raises:
        ParamError: neither.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if rest or not value > 0:
        raise ParamError(f"cannot read {text!r} as a share", todo="write it like 5% or 0.05")
    return value / 100 if percent else value


def energy_setting(text: str) -> str:
    """``--energy-window 500ms`` as the setting that it stands for.

    Raises:
        ParamError: not a duration.
    """
    from wattline.units import parse_duration

    return f"energy_window_s={parse_duration(text)}"


def assignments(items: Sequence[str], flag: str) -> dict[str, str]:
    """``["m=512", "n=8:64:x2"]`` as a mapping.

    Args:
        items: as written.
        flag: where they were written, for the error.

    Raises:
        UsageError: an item without ``=``, or a name given twice.
    """
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name, value = name.strip(), value.strip()
        if not (name and equals and value):
            example = "time_limit_s=0.5" if flag == "--measure" else "m=512"
            raise UsageError(f"cannot read {item!r}", why=f"{flag} takes NAME=VALUE", todo=f"write it like {example}")
        if name in found:
            raise UsageError(f"{name!r} is given twice", why=f"{found[name]} and {value}", todo="give it once")
        found[name] = value
    return found


def literal(text: str) -> int | float | bool | str:
    """A word as the value it looks like: whole number, number (suffixes K M G read), true/false, or text."""
    from wattline.errors import ParamError
    from wattline.units import parse_number

    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = parse_number(text)
    except ParamError:
        return text
    return int(text) if text.lstrip("+-").isdigit() else int(value) if value.is_integer() and "." not in text else value


def parameters(op: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of an operation as typed values, without its defaults.

    Operations that a suite declares are checked against the declaration; of others (a predictor may have learned
    more operations than this machine can run) each value is read as what it looks like.

    Raises:
        UnknownNameError: a parameter or a value that the operation does not have.
        ParamError: a value outside its limits.
    """
    from wattline.suites.registry import entries

    entry = entries().get(op)
    if entry is None:
        return {name: literal(value) for name, value in given.items()}
    declared = entry.workload.params
    typed = {name: declared[name].parse(value, name) for name, value in given.items() if name in declared}
    if len(typed) < len(given):
        declared.parse(given, op=op)  # raises, with the near spellings
    return typed
