"""`wattline import`: measurements that other programs wrote, as data to fit on."""  # noqa: N999 - the command's name

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli.options import JsonOption, QuietOption, assignments
from wattline.cli.output import emit_json

if TYPE_CHECKING:
    from wattline.predictors.imported import Imported

WIDTH = 80
"""Columns that the summary fits in."""
SUFFIX = ".parquet"
EXAMPLES = "Example: wattline import gemm_perf.parquet, then wattline fit --data gemm_perf.data.parquet"


def command(
    *,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files of measurements, or folders of runs.")],
    format_: Annotated[
        str, typer.Option(
            "--format", "-f", metavar="NAME",
            help="auto, neusight, aiconfigurator, vidur, nccl-tests, nvbandwidth, fio, pytest-benchmark, wattline-run"
            " or frame.",
        ),
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(
            "--out", "-o", metavar="PATH",
            help="One .parquet file for all, or a folder for one each. Default: NAME.data.parquet of each, here.",
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(
            "--device", metavar="[NAME=]ID", help="Device that a file does not name, or calls NAME (repeat).",
        ),
    ] = None,
    device_spec: Annotated[
        list[Path] | None, typer.Option(
            "--device-spec", metavar="FILE", help="JSON of an unlisted device: id, kind, peak_flops ... (repeat).",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option(
            "--set", metavar="NAME=VALUE", help="What a file leaves out: bytes=256M, licence=MIT ... (repeat).",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Import measurements of other programs: rows in SI units that `wattline fit --data` learns from.

    What each format gives, in which units and under which licence, is in docs/importing.md.
    """
    from wattline.predictors.imported import together
    from wattline.predictors.importers import import_data, spec_list

    specs = spec_list(device_spec or ())
    named = _devices(device or ())
    given = assignments(set_ or (), "--set")
    targets = _targets(files, out)
    found = [import_data(path, format_, device=named, specs=specs, given=given) for path in files]
    written = [together(found)] if len(set(targets)) == 1 else found
    for target, part in zip(dict.fromkeys(targets), written, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        part.save(target)
    if json:
        emit_json([_described(part, target) for part, target in zip(found, targets, strict=True)])
        return
    for part in found:
        if not quiet:
            typer.echo("\n".join(summary(part)))
    for target in dict.fromkeys(targets):
        typer.echo(str(target) if quiet else f"data {target}")


def _devices(items: Sequence[str]) -> dict[str, str]:
    """Device ids by the names in a file; the empty name of a file that says none."""
    from wattline.errors import UsageError

    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.rpartition("=")
        if not value or (equals and not name):
            raise UsageError(f"cannot read --device {item}", todo="write it like h200-sxm, or 'NVIDIA H200=h200-sxm'")
        if name in found:
            raise UsageError(f"--device names {name or 'the device'} twice", todo="give it once")
        found[name] = value
    return found


def _targets(files: Sequence[Path], out: Path | None) -> list[Path]:
    """Where the rows of each file go.

    Raises:
        UsageError: a target that is one of the files.
    """
    from wattline.errors import UsageError

    if out is not None and out.suffix == SUFFIX and not out.is_dir():
        targets = [out] * len(files)
    else:
        targets = [(out or Path()) / f"{name}.data{SUFFIX}" for name in _names(files)]
    inputs = {path.resolve() for path in files}
    for target in targets:
        if target.resolve() in inputs:
            raise UsageError(f"{target} is one of the files to import", todo="choose another --out")
    return targets


def _names(files: Sequence[Path]) -> list[str]:
    """A name for each file: its own without the suffix, with folders before it where two would be the same."""
    parts = [[*path.absolute().parts[1:-1], path.stem if path.is_file() else path.name] for path in files]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["-".join(part) + f"-{number}" for number, part in enumerate(parts, 1)]


def summary(part: Imported) -> Iterator[str]:
    """What was imported, in lines of at most 80 columns."""
    from wattline.units import format_time

    y = part.y
    measured = int(y["power_w"].notna().sum())
    for facts in part.facts:
        yield from _wrapped(f"{facts.file}: {facts.source}", "", "  ")
        yield from _entry("rows", f"{facts.rows} of {facts.read}")
        for cause, count in facts.left_out.items():
            yield from _entry("left out", f"{count}: {cause}")
        yield from _entry("units", f"{facts.units} (in the file)")
        yield from _entry("licence", facts.licence or "not stated: it is for whoever measured to say")
        for note in facts.notes:
            yield from _entry("note", note)
    for name, column in (("operations", "op"), ("devices", "device"), ("formats", "dtype"), ("code", "impl")):
        counts = part.frame[column].value_counts()
        shown = ", ".join(f"{value} {count}" for value, count in counts.head(8).items())
        yield from _entry(name, shown + (f" and {len(counts) - 8} more" if len(counts) > 8 else ""))
    span = f"{format_time(float(y['time_s'].min()))} to {format_time(float(y['time_s'].max()))}"
    yield from _entry("times", span)
    yield from _entry("power", f"of {measured} rows" if measured else "not measured")


def _entry(name: str, text: str) -> list[str]:
    return _wrapped(text, f"  {name:<11} ", " " * 14)


def _wrapped(text: str, begin: str, further: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=further, break_on_hyphens=False)


def _described(part: Imported, target: Path) -> dict[str, Any]:
    from dataclasses import asdict

    counts = {name: part.frame[name].value_counts().to_dict() for name in ("op", "device", "impl", "dtype")}
    sources = [asdict(facts) for facts in part.facts]
    return {"data": str(target), "sources": sources, "rows": len(part.frame), "counts": counts}
