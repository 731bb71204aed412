"""`wattline calibrate`: how the power sensor of this machine reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wattline.cli.options import DeviceOption, JsonOption, QuietOption
from wattline.cli.output import emit_json, heading
from wattline.errors import SensorError

if TYPE_CHECKING:
    from wattline.collectors.device import Device
    from wattline.collectors.energy.calibrate import Calibration
    from wattline.collectors.energy.calibrate_sensor import SensorCalibration
    from wattline.collectors.energy.fits import Estimate
    from wattline.collectors.energy.sensor import MeteredSensor

EXAMPLES = "Example: wattline calibrate --device cuda"

LACKING = 1
"""Exit code where some sources could not be calibrated."""


def command(
    device: DeviceOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Half the time, twice the uncertainty.")] = False,
    external_meter: Annotated[
        Path | None,
        typer.Option(
            "--external-meter",
            metavar="FILE.csv",
            help="Log that a power meter writes meanwhile (time, power_w): sets gain and offset.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find how the power sensor reads: update period, averaging window, lag, and whether its readings agree.

    Switches a load on and off for one to three minutes: nothing else should use the device meanwhile. What is found is
    kept for this device, driver and firmware, and used by every later run. Exit code 1 says that a source failed.
    """
    from wattline.collectors.device import open_device
    from wattline.collectors.energy import calibrate, calibrate_sensor, loads, profiles

    def progress(message: str) -> None:
        if not quiet:
            typer.echo(f"{message} ...", err=True)

    opened = open_device(device or "auto")
    sensor = _sensor(opened)
    with sensor, loads.MatmulLoad(opened) as load:
        found = calibrate_sensor.calibrate_sensor(
            sensor.sources,
            load,
            effort=calibrate.QUICK if quick else calibrate.THOROUGH,
            meter=external_meter,
            progress=progress,
        )
    stored = profiles.save_profiles(sensor.key, found.profiles())
    if json:
        emit_json({"device": opened.spec().name, "key": sensor.key, "stored": str(stored), **found.to_dict()})
    else:
        _show(found)
        typer.echo(f"kept in {stored}")
    if found.failures:
        raise typer.Exit(LACKING)


def _sensor(device: Device) -> MeteredSensor:
    """The device's sensor.

    Raises:
        SensorError: there is none, with the true reason.
    """
    from wattline.collectors.energy.find import find_energy_sensor
    from wattline.collectors.energy.sensor import MeteredSensor

    sensor = find_energy_sensor(device.kind, index=device.index)
    if isinstance(sensor, MeteredSensor):
        return sensor
    why = sensor.reason.message if sensor.reason else f"{sensor.name} cannot be polled"
    raise SensorError(f"no power sensor of {device.kind}:{device.index} to calibrate", why=why, todo=sensor.remedy)


def _show(found: SensorCalibration) -> None:
    for _, each in found.sources:
        heading(each.label)
        for name, text in _facts(each):
            typer.echo(f"  {name:<8} {text}")
    for label, error in found.failures.items():
        heading(label)
        typer.echo(f"  {typer.style('not calibrated', fg='red')}: {error.why or error.what}")
        if error.todo:
            typer.echo(f"  do: {error.todo}")
    heading("levels")
    for level in found.levels.levels:
        typer.echo(f"  {level.level:<5} {level.power_w:8.2f} W +- {level.half_width:.2%}  {level.label}")
    for agreement in found.levels.agreements:
        mark = typer.style("ok" if agreement.agrees else "DIFFERS", fg="green" if agreement.agrees else "red")
        text = f"{agreement.difference:+.2%} +- {agreement.half_width:.2%} against {agreement.against}"
        typer.echo(f"  {agreement.level:<5} {mark:<7} {agreement.label}: {text}")
    for gain in found.gains:
        text = f"true = {gain.gain:.4f} x read {gain.offset_w:+.2f} W, within {gain.error:.1%}"
        typer.echo(f"  meter {gain.label}: {text}")


def _facts(found: Calibration) -> list[tuple[str, str]]:
    from wattline.units import format_si, format_time

    facts: list[tuple[str, str]] = []

    def add(name: str, estimate: Estimate | None) -> None:
        if estimate is not None:
            facts.append((name, f"{format_time(estimate.value)} +- {format_time(1.96 * estimate.error)}"))

    add("period", found.period)
    add("sees" if found.kind == "counter" else "window", found.window)
    add("lag", found.lag)
    add("rise", found.rise)
    unit: Any = "J" if found.kind == "counter" else "W"
    facts.append(("steps", f"{format_si(found.profile.resolution, unit)}"))
    facts.append(
        ("from", f"{found.updates} updates, {found.switches} switches, a poll every {format_time(found.poll_s)}")
    )
    facts += [("note", note) for note in found.notes]
    return facts
