"""`wattline list`: operations, presets, devices, number formats, regimes and data fills."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli.options import JsonOption, QuietOption
from wattline.cli.output import emit_json, heading, table

if TYPE_CHECKING:
    from wattline.suites.workload import Entry

EXAMPLES = "Examples: wattline list, wattline list gemm.dense, wattline list devices"


def command(
    what: Annotated[
        str | None,
        typer.Argument(metavar="WHAT", help="An operation or a suite; presets, devices, formats, regimes or data."),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List operations, or show one with its parameters and implementations; or list what else has names."""
    if what in _LISTS:
        columns, rows, right = _LISTS[what]()
        if json:
            emit_json([dict(zip(columns, row, strict=True)) for row in rows])
        elif quiet:
            _names(row[0] for row in rows)
        else:
            table(columns, rows, right=right)
        return
    from wattline.suites.registry import entries, get, members, suite_names

    if what is not None and what in suite_names():
        _operations(members(what), json=json, quiet=quiet)
    elif what is not None:
        _operation(what, get(what), json=json)
    else:
        _operations(entries(), json=json, quiet=quiet)


def _operations(names: Iterable[str], *, json: bool, quiet: bool) -> None:
    from wattline.suites.registry import broken_plugins, entries

    chosen = {op: entries()[op] for op in names}
    if json:
        emit_json([_described(op, entry) for op, entry in chosen.items()])
    elif quiet:
        _names(chosen)
    else:
        rows = [(op, ", ".join(e.implementations), " ".join(e.workload.params), _doc(e)) for op, e in chosen.items()]
        table(("operation", "implementations", "parameters", "what it is"), rows)
    for name, reason in broken_plugins().items():
        typer.echo(f"note: the plug-in {name} could not be loaded: {reason}", err=True)


def _operation(op: str, entry: Entry, *, json: bool) -> None:
    if json:
        emit_json(_described(op, entry))
        return
    described = _described(op, entry)
    typer.echo(f"{typer.style(op, bold=True)}: {described['doc']}")
    typer.echo()
    parameters = [
        (p["name"], p["takes"], "required" if p["required"] else p["default"], p["doc"])
        for p in described["parameters"]
    ]
    table(("parameter", "takes", "default", "meaning"), parameters)
    for rule in described["rules"]:
        typer.echo(f"rule: {rule}")
    typer.echo()
    heading("implementations and what they require")
    for found in described["implementations"]:
        typer.echo(f"  {found['name']}" + (f": {found['doc']}" if found["doc"] not in ("", described["doc"]) else ""))
        for requirement in found["requires"]:
            typer.echo(f"    - {requirement}")


def _described(op: str, entry: Entry) -> dict[str, Any]:
    params = entry.workload.params
    return {
        "op": op,
        "doc": _doc(entry),
        "parameters": [
            {
                "name": name,
                "takes": params[name].describe(),
                "required": params[name].required,
                "default": None if params[name].required else params[name].default,
                "doc": params[name].doc,
            }
            for name in params
        ],
        "rules": [rule.text for rule in params.constraints],
        "implementations": [
            {"name": found.name, "doc": found.doc, "requires": [r.text for r in found.requires]}
            for found in entry.implementations.values()
        ],
    }


def _doc(entry: Entry) -> str:
    doc = type(entry.workload).__doc__ or ""
    return doc.strip().splitlines()[0] if doc.strip() else ""


def _names(names: Any) -> None:
    for name in names:
        typer.echo(name)


_Listing = tuple[tuple[str, ...], list[tuple[Any, ...]], tuple[str, ...]]


def _devices() -> _Listing:
    from wattline.device import known_devices
    from wattline.units import format_si

    columns = ("device", "name", "arch", "peak", "format", "bandwidth", "memory", "power")
    rows = []
    for spec in known_devices().values():
        fmt = next((f for f in ("bf16", "fp16", "fp32") if f in spec.peak_flops), None)
        peak = format_si(spec.peak_flops[fmt], "FLOP/s") if fmt else None
        bandwidth = format_si(spec.memory_bandwidth, "B/s") if spec.memory_bandwidth else None
        memory = format_si(spec.memory_bytes, "B") if spec.memory_bytes else None
        power = format_si(spec.tdp_w, "W") if spec.tdp_w else None
        rows.append((spec.id, spec.name, spec.arch, peak, fmt, bandwidth, memory, power))
    return columns, rows, ("peak", "bandwidth", "memory", "power")


def _formats() -> _Listing:
    from wattline.formats import BENCH_FORMATS, FORMATS

    rows: list[tuple[Any, ...]] = [
        (f.name, f"{f.bits:g}", f.rate, f"{f.tolerance:g}", "yes" if f.name in BENCH_FORMATS else "no", f.doc)
        for f in FORMATS.values()
    ]
    return ("format", "bits", "rate", "tolerance", "measured", "what it is"), rows, ("bits",)


def _presets() -> _Listing:
    from wattline.suites.presets import list_presets

    return ("preset", "what it is"), list(list_presets().items()), ()


def _regimes() -> _Listing:
    from wattline.case import REGIMES

    return ("regime", "what it is"), list(REGIMES.items()), ()


def _data() -> _Listing:
    from wattline.case import FILLS

    return ("data", "what inputs are filled with"), list(FILLS.items()), ()


_LISTS = {"presets": _presets, "devices": _devices, "formats": _formats, "regimes": _regimes, "data": _data}
