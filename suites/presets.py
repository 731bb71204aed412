"""Presets: what a run consists of, as TOML files composed from a base and overlays.

::

    extends = "standard"            # start from another preset (or a path beside this file)
    description = "one line"
    budget = "10m"                  # stop in time, so long for each suite in the plan; left out: none
    budget_total = "15m"            # and so long for all of them together; left out: no such limit
    aa = 8                          # cases measured twice, as A/A pairs

    [measure]                       # wattline.suites.settings.MeasureSettings
    time_limit_s = 0.7

    [sweep.squares]                 # a name, by which overlays and extending presets find it
    op = "gemm.dense"
    impl = "torch"                  # these three: one or a list
    regime = "cold"
    data = "uniform"
    shapes = { source = "squares", sizes = "128:2048:x2" }   # a shape source of the op, or none
    fixed = { layout = "nt" }
    product = { dtype = ["fp32", "bf16"] }
    zip = { m = "128,256", n = "512,1024" }
    where = ["m * n * k <= 2**33"]

    [overlay.gpu.sweep.squares]     # tables are merged, everything else is replaced; a parameter said above in
                                    # one of fixed, product and zip leaves the others
    shapes = { sizes = "128:16384:x2" }
    [overlay.cpu.sweep.graphs]
    enabled = false

A built-in preset consists of its file and of the parts in the folder of its name, one per operation: tables of sweeps
and their overlays in the same syntax, nothing else.

Overlays are named after the kind of device: ``cpu``, ``gpu`` (anything else), then the exact kind (``cuda``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from wattline.errors import ParamError, SchemaError, UsageError, storage_error, unknown_name
from wattline.suites.settings import MeasureSettings
from wattline.units import parse_duration

_TOP = ("extends", "description", "budget", "budget_total", "aa", "measure", "sweep", "overlay")
_PART = ("sweep", "overlay")
_OVERLAY = ("budget", "budget_total", "aa", "measure", "sweep")
_AXES = ("fixed", "product", "zip")
_HIDDEN = frozenset({"base"})
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Sweep:
    """One table of a preset: an op, its conditions and its axes. See the module's docstring for the fields."""

    name: str
    op: str
    impl: tuple[str, ...] = ("torch",)
    regime: tuple[str, ...] = ("cold",)
    data: tuple[str, ...] = ("uniform",)
    shapes: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    product: Mapping[str, Any] = field(default_factory=dict)
    zip: Mapping[str, Any] = field(default_factory=dict)
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A preset with its overlays applied.

    Attributes:
        name: its name, or the path of its file.
        description: one line.
        measure: settings of the measurement loop.
        budget_s: wall time to stop within, for each suite in the plan, or ``None``.
        budget_total_s: the same for all suites together, or ``None``.
        aa: number of A/A pairs.
        sweeps: in the order of the file.
    """

    name: str
    description: str
    measure: MeasureSettings
    budget_s: float | None
    budget_total_s: float | None
    aa: int
    sweeps: tuple[Sweep, ...]


def list_presets() -> dict[str, str]:
    """The built-in presets by name, with their descriptions."""
    return {name: str(_read(name).get("description", "")) for name in _names()}


def load_preset(name: str | Path, kind: str = "cpu") -> Preset:
    """A preset by name or by the path of a TOML file, for a kind of device.

    Args:
        name: a built-in name, or a path (anything with a slash or the ending ``.toml``).
        kind: torch's device type; chooses the overlays.

    Raises:
        UnknownNameError: no such preset, or an unknown key in it.
        SchemaError: the file is no TOML, or a value has the wrong type.
        StorageError: the file cannot be read.
    """
    where = f"preset {name}"
    merged = _compose(str(name), ())
    overlays = _table(merged.pop("overlay", {}), f"{where}: overlay")
    for overlay in dict.fromkeys(("cpu" if kind == "cpu" else "gpu", kind)):
        layer = _table(overlays.get(overlay, {}), f"{where}: overlay.{overlay}")
        merged = _lay(merged, layer)
    measure = MeasureSettings.from_dict(_table(merged.get("measure", {}), f"{where}: measure"))
    aa = merged.get("aa", 0)
    if isinstance(aa, bool) or not isinstance(aa, int) or aa < 0:
        raise ParamError(f"{where}: aa must be a whole number from 0, not {aa!r}", todo="write aa = 4, or leave it out")
    budget, total = (None if merged.get(key) is None else parse_duration(merged[key])
                     for key in ("budget", "budget_total"))  # fmt: skip
    sweeps = _table(merged.get("sweep", {}), f"{where}: sweep")
    return Preset(
        name=str(name),
        description=str(merged.get("description", "")),
        measure=measure,
        budget_s=budget,
        budget_total_s=total,
        aa=aa,
        sweeps=tuple(s for key, table in sweeps.items() if (s := _sweep(key, table, where)) is not None),
    )


def _names() -> list[str]:
    folder = resources.files("wattline.suites").joinpath("presets")
    found = {entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")}
    order = ("smoke", "quick", "standard", "full", "llm")
    return [n for n in order if n in found] + sorted(found - set(order) - _HIDDEN)


@lru_cache(maxsize=32)
def _text(name: str) -> str:
    if _is_path(name):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError):
                raise storage_error(error, "reading the preset", name) from error
            raise SchemaError(f"preset {name} is not text", why=str(error), todo="save it as TOML in UTF-8") from None
    if name not in {*_names(), *_HIDDEN}:
        raise unknown_name("preset", name, _names(), listing="wattline list presets")
    return resources.files("wattline.suites").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")


@lru_cache(maxsize=256)
def _part_text(name: str) -> str:
    return resources.files("wattline.suites").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".toml")


def _read(name: str, *, part: bool = False) -> dict[str, Any]:
    import tomllib

    try:
        data = tomllib.loads(_text(name) if not part else _part_text(name))
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"preset {name} is not TOML", why=str(error), todo="mend the line named") from None
    _known(data, _PART if part else _TOP, f"key of preset {name}")
    _sweeps(data, f"preset {name}")
    for kind, overlay in _table(data.get("overlay", {}), f"preset {name}: overlay").items():
        where = f"preset {name}: overlay.{kind}"
        _known(_table(overlay, where), _OVERLAY, f"key of overlay.{kind} in preset {name}")
        _sweeps(overlay, where)
    return data


def _with_parts(name: str) -> dict[str, Any]:
    """The file of a preset and, for a built-in one, its parts."""
    data = _read(name)
    folder = resources.files("wattline.suites").joinpath("presets", name)
    if _is_path(name) or not folder.is_dir():
        return data
    for part in sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml")):
        below = _read(f"{name}/{part.removesuffix('.toml')}", part=True)
        twice = set(below.get("sweep", {})) & set(data.get("sweep", {}))
        if twice:
            raise SchemaError(f"preset {name}: two of its files have a sweep {min(twice)!r}", todo="rename one")
        data = _lay(data, below)
    return data


def _sweeps(data: Mapping[str, Any], where: str) -> None:
    for key, sweep in _table(data.get("sweep", {}), f"{where}: sweep").items():
        _table(sweep, f"{where}: sweep.{key}")


def _compose(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The file's content laid over what it extends."""
    if name in seen or len(seen) >= _MAX_DEPTH:
        raise UsageError(
            f"preset {seen[0] if seen else name} extends itself", why=" -> ".join((*seen, name)),
            todo="take `extends` out of one of them",
        )  # fmt: skip
    data = _with_parts(name)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise SchemaError(
            f"preset {name}: extends must name one preset, not {parent!r}", todo='write it like extends = "quick"'
        )
    if _is_path(parent):
        parent = str(Path(name).parent / parent)
    return _lay(_compose(parent, (*seen, name)), data)


def _lay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A preset or an overlay laid over another."""
    # A budget of its own comes with a total of its own, or with none: the one below belongs to the budget below.
    left = {"sweep", "overlay"} | ({"budget_total"} if "budget" in above else set())
    merged = _merge(
        {key: value for key, value in below.items() if key not in left},
        {key: value for key, value in above.items() if key not in ("sweep", "overlay")},
    )
    for part, lay in (("sweep", _lay_sweep), ("overlay", _lay)):
        old, new = dict(below.get(part, {})), above.get(part, {})
        for key, table in new.items():
            old[key] = lay(old[key], table) if key in old else table
        merged[part] = old
    return merged


def _lay_sweep(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep laid over another: what the upper one says of a parameter replaces what the lower one says of it."""
    below = dict(below)
    said = {name for part in _AXES if isinstance(above.get(part), Mapping) for name in above[part]}
    for part in _AXES:
        if isinstance(below.get(part), Mapping):
            below[part] = {name: value for name, value in below[part].items() if name not in said}
    new, old = above.get("shapes"), below.get("shapes")
    if isinstance(new, Mapping) and isinstance(old, Mapping) and new.get("source") not in (None, old.get("source")):
        below.pop("shapes")  # the arguments of one source mean nothing to another
    return _merge(below, above)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged, everything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _sweep(name: str, given: object, where: str) -> Sweep | None:
    where = f"sweep {name} of {where}"
    table = dict(_table(given, where))
    enabled = table.pop("enabled", True)
    _known(table, [*(f.name for f in fields(Sweep) if f.name != "name"), "enabled"], f"key of {where}")
    if not isinstance(enabled, bool):
        raise SchemaError(f"{where}: enabled must be true or false, not {enabled!r}", todo="write enabled = false")
    if not enabled:
        return None
    if not isinstance(table.get("op"), str):
        raise SchemaError(f"{where} has no op", todo='add op = "suite.name"')
    for key in ("impl", "regime", "data", "where"):
        if key in table:
            table[key] = _words(table[key], f"{where}: {key}")
    for key in ("shapes", "fixed", "product", "zip"):
        _table(table.get(key, {}), f"{where}: {key}")
    return Sweep(name=name, **table)


def _words(value: object, where: str) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise SchemaError(
            f"{where} must be a word or a list of words, not {value!r}", todo="write words within quotes"
        )
    return tuple(words)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemaError(f"{where} must be a table, not {value!r}")
    return dict(value)


def _known(table: Mapping[str, Any], names: Any, kind: str) -> None:
    for key in table:
        if key not in names:
            raise unknown_name(kind, key, names)
