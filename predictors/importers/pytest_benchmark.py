"""pytest-benchmark JSON: what `wattline export` writes, and any other whose benchmarks say what they ran.

A benchmark says so in its ``params`` or its ``extra_info``: ``op``, ``dtype``, and the operation's parameters, and if
it likes ``device``, ``impl``, ``regime``, ``data`` and ``power_w``. What all benchmarks of a file share may be given
beside it (``--set op=gemm.dense --set dtype=fp32``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from wattline.case import CAPS
from wattline.device import DeviceSpec
from wattline.errors import DataError, WattlineError
from wattline.predictors.importers.rows import Asked, Keep, Rows, made
from wattline.predictors.importers.source import Source

SOURCE = "pytest-benchmark (github.com/ionelmc/pytest-benchmark)"
LICENCE = ""
UNITS = "seconds a call, the median of the rounds"
GIVEN = {
    "op": "operation of the benchmarks that name none",
    "dtype": "number format, as op",
    "impl": "implementation, as op",
    "*": "any parameter of the operation, as op",
}

_WORDS = ("op", "device", "impl", "dtype", "regime", "data")
_OWN = "wattline::"
_ABOUT = frozenset(
    {"key", "flags", "energy_source", "energy_scope", "bound_by", "variant", "time_lo_s", "time_hi_s", "bound_s",
     "flops", "bytes_moved", "energy_j", "energy_lo_j", "energy_hi_j", "power_w", "time_s"}
)  # fmt: skip
"""Entries of ``extra_info`` that say what was observed, and are no parameters."""


def sniff(source: Source) -> bool:
    """Whether it has a list of benchmarks beside machine and version."""
    data = source.json
    return isinstance(data, dict) and isinstance(data.get("benchmarks"), list) and "machine_info" in data


def read(source: Source, asked: Asked) -> Rows:
    """The benchmarks of a file; see :mod:`wattline.predictors.importers`."""
    if not sniff(source):
        raise DataError(f"{source} is not the JSON of pytest-benchmark", todo="write it with --benchmark-json=FILE")
    data = source.json
    machine = data.get("machine_info") or {}
    found = [_row(bench, asked, source, number) for number, bench in enumerate(data["benchmarks"], 1)]
    if not found:
        raise DataError(f"{source} holds no benchmark", todo="run pytest without --benchmark-disable")
    specs = _specs(machine, source)
    told = Asked(asked.device, asked.renamed, {**specs, **asked.specs}, asked.facts)
    # The file as a whole was measured on one machine; it says on which if its own benchmarks do not.
    default = str(machine.get("device") or machine.get("device_name") or "")
    for row in found:
        row["device"] = row["device"] or default
    keep = Keep(len(found))
    _leave_out(keep, found)
    ids, notes = told.devices({row["device"] for row, kept in zip(found, keep.mask, strict=True) if kept}, source) \
        if keep.mask.any() else ({}, [])  # fmt: skip
    for row in found:
        row["device"] = ids.get(row["device"], "")
    if keep.left_out and not keep.mask.any():
        raise DataError(
            f"{source} holds no benchmark that says what it ran",
            why="; ".join(f"{count}: {why}" for why, count in keep.left_out.items()),
            todo="put op, dtype and parameters into benchmark.extra_info, or give what all share: --set op=gemm.dense",
        )
    order = [*_WORDS, "time_s", "power_w", *_params(found)]
    columns = {name: _column([row["params"].get(name, row.get(name)) for row in found]) for name in order}
    used = {spec.id: spec for spec in specs.values() if spec.id in set(ids.values())}
    return Rows(made(columns, keep, source), len(found), keep.left_out, notes, used)


def _row(bench: Any, asked: Asked, source: Source, number: int) -> dict[str, Any]:
    """Words, figures and parameters of one benchmark."""
    try:
        name, time = str(bench["fullname"]), bench["stats"]["median"]
        extra = {**(bench.get("extra_info") or {})}
        params = {**(bench.get("params") or {})}
    except (KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{source}: benchmark {number} is none of pytest-benchmark", why=why) from None
    if not isinstance(time, int | float) or not time >= 0:
        raise DataError(f"{source}: benchmark {number} ({name}): its median is {time!r}, not a time in seconds")
    said: dict[str, Any] = {k: _literal(v) for k, v in asked.facts.items()}
    said |= {k: v for k, v in extra.items() if k not in _ABOUT}
    said |= params
    if name.startswith(_OWN):
        said["op"] = bench.get("group")
        time = extra.get("time_s", time)
    words = {word: str(said.get(word) or "") for word in _WORDS}
    plain = {k: v for k, v in said.items() if k not in (*_WORDS, "variant", "licence")}
    row: dict[str, Any] = {**words, "impl": words["impl"] or "function", "time_s": float(time), "name": name}
    row["capped"] = any(cap in plain for cap in CAPS)
    row["params"] = {k: v for k, v in plain.items() if isinstance(v, int | float | str | bool) and k not in CAPS}
    row["odd"] = [k for k, v in plain.items() if not isinstance(v, int | float | str | bool | None)]
    power = extra.get("power_w")
    row["power_w"] = float(power) if isinstance(power, int | float) and power > 0 else np.nan
    return row


def _literal(text: str) -> float | str:
    """A fact that was given: a number where it reads as one."""
    try:
        return float(text)
    except ValueError:
        return text


def _leave_out(keep: Keep, found: list[dict[str, Any]]) -> None:
    from wattline.formats import FORMATS

    def those(test: Any) -> Any:
        return np.array([bool(test(row)) for row in found])

    keep.drop(those(lambda row: not row["op"]), "benchmarks that name no operation (op)")
    keep.drop(those(lambda row: not row["dtype"]), "benchmarks that name no number format (dtype)")
    keep.drop(those(lambda row: row["dtype"] not in FORMATS), "number formats that nobody knows here")
    keep.drop(those(lambda row: row["capped"]), "under a power limit or a locked clock")
    keep.drop(those(lambda row: row["odd"]), "parameters that are neither numbers nor words")
    keep.drop(those(lambda row: row["time_s"] == 0), "a time of 0: below the timer's tick")


def _params(found: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in found for name in row["params"]))


def _column(values: list[Any]) -> Any:
    """Values of one column, numbers as numbers where all of them are; text where any is."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float} and kinds:
        return np.array([np.nan if v is None else v for v in values], dtype=float)
    if kinds == {bool}:
        return np.array(["" if v is None else str(v).lower() for v in values], dtype=object)
    return np.array([None if v is None or v == "" else str(v) for v in values], dtype=object)


def _specs(machine: Mapping[str, Any], source: Source) -> dict[str, DeviceSpec]:
    """The specification that our own files carry."""
    spec = machine.get("wattline_device")
    if not isinstance(spec, dict):
        return {}
    try:
        found = DeviceSpec.from_dict(spec)
    except (WattlineError, TypeError, ValueError) as error:
        raise DataError(f"{source}: its device makes no sense", why=re.sub(r"\s+", " ", str(error))) from None
    return {found.id: found}
