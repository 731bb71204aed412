"""Calibrated profiles, kept per device, driver and firmware in the user's cache folder.

A driver or a VBIOS may change how a sensor averages, so a profile holds for the versions that it was found with and
for no others. The file is ``$XDG_CACHE_HOME/wattline/sensors.json`` (``~/.cache`` where that is not set).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from wattline.collectors.energy.sources import SensorProfile
from wattline.errors import SchemaError, storage_error
from wattline.files import write_json

SCHEMA = 1


def profiles_path(environment: Mapping[str, str] | None = None) -> Path:
    """Where the profiles are kept."""
    values = os.environ if environment is None else environment
    cache = values.get("XDG_CACHE_HOME", "")
    # The specification of the XDG folders has relative paths ignored.
    folder = Path(cache) if os.path.isabs(cache) else Path(values.get("HOME") or Path.home()) / ".cache"
    return folder / "wattline" / "sensors.json"


def device_key(uuid: str, driver: str, firmware: str) -> str:
    """What a profile belongs to."""
    return " | ".join((uuid, driver, firmware))


def device_of(key: str) -> str:
    """The UUID in a key of :func:`device_key`."""
    return key.partition(" | ")[0]


def load_profile(key: str, field: str, path: Path | None = None) -> SensorProfile | None:
    """The calibrated profile of a device's reading, or ``None`` where there is none.

    Args:
        key: from :func:`device_key`.
        field: of the source, e.g. ``"total energy counter"``.
        path: of the file; the user's where not given.

    Raises:
        SchemaError: the file is damaged or of a newer version.
        StorageError: it cannot be read.
    """
    data = load_all(path).get(key, {}).get(field)
    if data is None:
        return None
    known = {f.name for f in fields(SensorProfile)}
    try:
        return SensorProfile(**{name: value for name, value in data.items() if name in known})
    except (TypeError, AttributeError) as error:
        raise SchemaError(f"a damaged sensor profile in {path or profiles_path()}", why=str(error)) from None


def save_profiles(key: str, profiles: Mapping[str, SensorProfile], path: Path | None = None) -> Path:
    """Keep a device's profiles by field, beside those of other devices; the file is replaced as a whole.

    Raises:
        SchemaError: the file that is there is damaged or of a newer version; it stays as it is.
        StorageError: it cannot be written.
    """
    target = path or profiles_path()
    devices = load_all(target)
    devices[key] = {**devices.get(key, {}), **{name: asdict(profile) for name, profile in profiles.items()}}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, "making", target.parent) from error
    write_json(target, {"schema": SCHEMA, "devices": devices})
    return target


def load_all(path: Path | None = None) -> dict[str, dict[str, Any]]:
    """All profiles as plain JSON types: by device, then by field. Empty where nothing was calibrated yet.

    Raises:
        SchemaError: the file is damaged or of a newer version.
        StorageError: it cannot be read.
    """
    target = path or profiles_path()
    try:
        text = target.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise storage_error(error, "reading", target) from error
    todo = f"remove {target} and run `wattline calibrate` again"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SchemaError(f"{target} is no file of sensor profiles", why=str(error), todo=todo) from None
    if not isinstance(data, dict) or not isinstance(data.get("devices"), dict):
        raise SchemaError(f"{target} is no file of sensor profiles", why="it has no devices", todo=todo)
    if data.get("schema") != SCHEMA:
        raise SchemaError(
            f"{target} has schema {data.get('schema')}", why=f"this version reads schema {SCHEMA}", todo=todo
        )
    return dict(data["devices"])
