"""The sizes and the output of NVIDIA's nccl-tests (and AMD's rccl-tests): read, and written.

Its table has a line per size with time, algbw and busbw, out of place and in place; a header names program and
devices. Its JSON (`-J`, version 2) holds the same by name (nccl-tests, README.md, doc/PERFORMANCE.md and src/util.cu).
Times are microseconds there and bandwidths GB/s of 1e9 bytes; here all is in SI base units.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wattline.errors import DataError, ParamError, storage_error
from wattline.workmodels.collectives import busbw_factor

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
PROGRAMS: dict[str, str] = {
    "all_reduce": "all_reduce_perf",
    "all_gather": "all_gather_perf",
    "reduce_scatter": "reduce_scatter_perf",
    "all_to_all": "alltoall_perf",
    "broadcast": "broadcast_perf",
    "reduce": "reduce_perf",
    "gather": "gather_perf",
    "scatter": "scatter_perf",
    "send_recv": "sendrecv_perf",
}
"""Its programs by our names; there is none for a barrier or for uneven parts."""
TYPES: dict[str, str] = {"fp32": "float", "fp64": "double", "fp16": "half", "bf16": "bfloat16", "int8": "int8"}
"""Its names of number formats by ours."""
_PARTED = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")  # its count is that of one rank's part
_SUMMED = ("all_reduce", "reduce_scatter", "reduce")
_ROOTED = ("broadcast", "reduce", "gather", "scatter")
_LEADING = 5  # columns before the figures: size, count, type, redop, root
_LEADING_ONCE = 3  # until 2021 redop and root stood only where a collective has them
_FIGURES = 4  # of each kind: time, algbw, busbw, wrong elements
_NULL_BODY = 32  # characters that stand for figures out of place that were not taken


@dataclass(frozen=True)
class Line:
    """One size.

    Attributes:
        size: S in bytes.
        count: elements, as it counts them.
        type: number format by its name.
        time_s: of one call.
        in_place: whether input and output share a buffer.
        wrong: elements that were wrong; ``None``: not checked.
    """

    size: int
    count: int
    type: str
    time_s: float
    in_place: bool
    wrong: int | None = None

    @property
    def dtype(self) -> str:
        """The number format by our name; its own where we have none (uint8, int32 ...)."""
        return next((ours for ours, theirs in TYPES.items() if theirs == self.type), self.type)


@dataclass(frozen=True)
class Table:
    """What one program printed.

    Attributes:
        name: the collective, as in ``collectives.<name>``.
        ranks: how many took part.
        lines: by size.
        device: of its ranks, as printed; empty where it is not said, or where they differ.
    """

    name: str
    ranks: int
    lines: Sequence[Line]
    device: str = ""

    @property
    def op(self) -> str:
        """``collectives.<name>``."""
        return f"collectives.{self.name}"


def parse_size(text: str) -> int:
    """Bytes from ``8``, ``64K``, ``1G``: powers of 1024, as nccl-tests reads them (unlike the rest of this program).

    Raises:
        ParamError: not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ParamError(f"not a size: {text!r}", todo="write it like 8, 64K, 128M or 1G")
    unit = _UNITS[found[2].upper()]
    return int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def read_file(path: str | os.PathLike[str]) -> list[Table]:
    """The tables of a file, text or JSON.

    Raises:
        StorageError: it cannot be read.
        DataError: it is not what nccl-tests writes, or does not say which collective or how many ranks.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    return parse(text, os.fspath(path))


def parse(text: str, source: str = "text") -> list[Table]:
    """The tables of a text; ``source`` names it in errors. Raises as :func:`read_file`."""
    tables = _from_json(text, source) if text.lstrip().startswith("{") else _from_text(text, source)
    if not tables:
        raise DataError(
            f"{source} holds no result of nccl-tests", todo="give it what `all_reduce_perf` prints, or its JSON (-J)"
        )
    return tables


# Text


def _from_text(text: str, source: str) -> list[Table]:
    tables: list[Table] = []
    named, ranks, width, counted_wrong = "", 0, _FIGURES, True
    lines: list[Line] = []
    devices: set[str] = set()

    def close() -> None:
        nonlocal ranks
        if lines:
            name = named or _from_busbw_kind(text) or _of_file(source)
            tables.append(_table(name, ranks, list(lines), source, devices))
            lines.clear()
        ranks = 0
        devices.clear()

    for raw in text.splitlines():
        if raw.startswith("#"):
            started = re.match(r"#\s*Collective test starting:\s*(\S+)", raw)
            if started:
                close()
                named = _name(started[1])
            elif re.match(r"#\s+Rank\s+\d+", raw):
                if lines:
                    close()
                ranks += 1
                devices.add(raw.rpartition("]")[2].strip())
            elif re.match(r"#\s+size\s+count", raw):
                names = raw.split()
                first, *second = [i for i, word in enumerate(names) if word in ("time", "cputime")] or [len(names)]
                width = (second[0] if second else len(names)) - first or _FIGURES
                counted_wrong = "error" not in names  # a largest error in older versions, not a count
            continue
        found = _text_line(raw, width)
        lines += found if counted_wrong else [replace(line, wrong=None) for line in found]
    close()
    # Without a header that names its devices (older versions under MPI) the two bandwidths tell the ranks.
    return [table if table.ranks else replace(table, ranks=_ranks_of(text, table, source)) for table in tables]


def _text_line(raw: str, width: int) -> list[Line]:
    words = raw.split()
    if len(words) < _LEADING_ONCE + width or not words[0].isdigit() or not words[1].isdigit():
        return []
    # With both kinds of figures all before them leads, be it three columns or five.
    leading = len(words) - 2 * width
    leading = leading if _LEADING_ONCE <= leading <= _LEADING else _LEADING
    lead = re.match(r"\s*" + r"\s+".join([r"\S+"] * leading), raw)
    if lead is None or len(words) < leading + width:
        return []
    rest = raw[lead.end() :]
    figures = rest.split()
    first_in_place = len(figures) < 2 * width and len(rest) - len(rest.lstrip()) > _NULL_BODY - 8
    bodies = [(figures[:width], first_in_place)]
    if len(figures) >= 2 * width:
        bodies.append((figures[width : 2 * width], True))
    found = []
    for body, in_place in bodies:
        try:
            time_s = float(body[0]) * 1e-6
            wrong = None if body[3] == "N/A" else int(float(body[3]))
        except (ValueError, OverflowError):
            return []
        found.append(Line(int(words[0]), int(words[1]), words[2], time_s, in_place, wrong))
    return found


def _name(program: str) -> str:
    """Our name of a program, by its file name (``/opt/all_reduce_perf_mpi``); empty where it is none."""
    stem = os.path.basename(program)
    for name, theirs in sorted(PROGRAMS.items(), key=lambda item: -len(item[1])):
        if stem.startswith(theirs):
            return name
    return ""


def _of_file(source: str) -> str:
    """The collective that a file is named after (``all_reduce_perf.txt``, ``nccl_allgather.log``)."""
    plain = re.sub(r"[^a-z]", "", os.path.basename(source).lower())
    names = sorted(PROGRAMS, key=lambda name: -len(name))
    return _name(os.path.basename(source)) or next((n for n in names if n.replace("_", "") in plain), "")


def _from_busbw_kind(text: str) -> str:
    """The program that a command line within the text names, if all of them name one."""
    found = {_name(word) for word in re.findall(r"[\w/.-]*_perf\w*", text)} - {""}
    return found.pop() if len(found) == 1 else ""


def _ranks_of(text: str, table: Table, source: str) -> int:
    """The ranks that make busbw of algbw, from the line with the highest bandwidth (figures are rounded)."""
    best = (0.0, 0.0)
    for raw in text.splitlines():
        found = re.match(r"\s*\d+\s+\d+(?:\s+\S+){0,4}?\s+[\d.]+\s+(\d+\.\d+)\s+(\d+\.\d+)\s+\S+", raw)
        if found:
            best = max(best, (float(found[1]), float(found[2])))
    share = best[1] / best[0] if best[0] else 0.0
    fits = [n for n in range(2, 4097) if abs(float(busbw_factor(table.name, n)) - share) < 0.002]
    if len(fits) != 1:
        raise DataError(f"{source} does not say how many ranks took part", todo="keep its header: '#  Rank  0 ...'")
    return fits[0]


def _table(name: str, ranks: int, lines: list[Line], source: str, devices: Iterable[str] = ()) -> Table:
    if not name:
        raise DataError(
            f"{source} does not say which collective it measured",
            todo="keep its header, or name the file after the program: all_reduce_perf.txt",
        )
    told = set(devices)
    return Table(name, ranks, tuple(lines), told.pop() if len(told) == 1 else "")


# JSON


def _from_json(text: str, source: str) -> list[Table]:
    try:
        data = json.loads(text)
        ranks = len(data["config"]["devices"])
        devices = {str(device.get("device_info", "")) for device in data["config"]["devices"]}
        args, results = data.get("args") or [""], data["results"]
        grouped: dict[str, list[Line]] = {}
        for entry in results:
            said = (str(entry.get("experiment_name", "")), str(args[0]), source)
            name = next((found for found in map(_name, said) if found), "") or _of_file(source)
            grouped.setdefault(name, []).extend(_json_lines(entry))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source} is not the JSON of nccl-tests", why=f"{type(error).__name__}: {error}",
            todo="write it again: `all_reduce_perf -J FILE`",
        ) from error  # fmt: skip
    if not ranks:
        raise DataError(f"{source} does not say how many ranks took part", why="its config lists no devices")
    return [_table(name, ranks, lines, source, devices) for name, lines in grouped.items() if lines]


def _json_lines(entry: Mapping[str, Any]) -> Iterable[Line]:
    for place in ("out_of_place", "in_place"):
        body = entry.get(place)
        if body is None:
            continue
        time_us = float(body["time"] if "time" in body else body["cpu_time"])
        wrong = body.get("nwrong")
        yield Line(
            int(entry["size"]), int(entry["count"]), str(entry["type"]), time_us * 1e-6, place == "in_place",
            None if wrong is None else int(float(wrong)),
        )  # fmt: skip


# Writing


def counted(name: str, size: int, ranks: int, element_bytes: int) -> int:
    """Elements as its second column counts them: of one rank's part where S is that of all parts."""
    return size // (element_bytes * (ranks if name in _PARTED else 1))


def to_text(tables: Sequence[Table], title: str = "wattline") -> str:
    """The tables as its programs print them, one after the other."""
    out = []
    for table in tables:
        program = PROGRAMS[table.name]
        out += [f"# {title}", f"# Collective test starting: {program}", "#", "# Using devices"]
        out += [f"#  Rank {rank:2d} Group  0" for rank in range(table.ranks)]
        lead = f"{'':>10}  {'':>12}  {'':>8}  {'':>6}  {'':>6}"
        out += ["#", f"# {lead}           out-of-place                       in-place          "]
        figures = f"  {'time':>7}  {'algbw':>6}  {'busbw':>6}  {'#wrong':>6}"
        names = f"{'size':>10}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}"
        out.append(f"# {names}{figures}{figures}")
        units = f"  {'(us)':>7}  {'(GB/s)':>6}  {'(GB/s)':>6}  {'':>6}"
        out.append(f"# {'(B)':>10}  {'(elements)':>12}  {'':>8}  {'':>6}  {'':>6}{units}{units}")
        buses = []
        for line in table.lines:
            algbw, busbw = _bandwidths(table, line)
            buses.append(busbw)
            redop, root = _words(table.name)
            wrong = "   N/A" if line.wrong is None else f"{line.wrong:6g}"
            body = f"  {_fixed(line.time_s * 1e6, 7)}  {_fixed(algbw, 6)}  {_fixed(busbw, 6)}  {wrong}"
            gap = " " * _NULL_BODY if line.in_place else ""
            out.append(f"{line.size:12d}  {line.count:12d}  {line.type:>8}  {redop:>6}  {root:6d}{gap}{body}")
        bad = sum(line.wrong or 0 for line in table.lines)
        out.append(f"# {'Out of bounds values':<20} : {bad} {'FAILED' if bad else 'OK'}")
        out.append(f"# {'Avg bus bandwidth':<20} : {sum(buses) / max(1, len(buses)):g} ")
        out += ["#", f"# Collective test concluded: {program}", ""]
    return "\n".join(out)


def to_json(tables: Sequence[Table], *, args: Sequence[str], start: str, hosts: Sequence[Mapping[str, Any]]) -> str:
    """The tables as its JSON of version 2; each result names its program as ``experiment_name``.

    Args:
        tables: of runs with equally many ranks.
        args: the command line.
        start: when it began.
        hosts: ``rank``, ``pid`` and ``hostname`` of every rank.
    """
    results, buses, bad = [], [], 0
    for table in tables:
        redop, root = _words(table.name)
        for line in table.lines:
            algbw, busbw = _bandwidths(table, line)
            buses.append(busbw)
            bad += line.wrong or 0
            body = {"time": line.time_s * 1e6, "alg_bw": algbw, "bus_bw": busbw, "nwrong": line.wrong}
            results.append(
                {
                    "size": line.size, "count": line.count, "type": line.type, "redop": redop, "root": f"{root:6d}",
                    "out_of_place": None if line.in_place else body, "in_place": body if line.in_place else None,
                    "experiment_name": PROGRAMS[table.name],
                }
            )  # fmt: skip
    data = {
        "version": 2, "start_time": start, "args": list(args), "env": [],
        "config": {"devices": [{"group": 0, **host} for host in hosts]}, "results": results,
        "out_of_bounds": {"count": bad, "okay": str(bad == 0).lower()},
        "average_bus_bandwidth": {"bandwidth": sum(buses) / max(1, len(buses)), "okay": "unchecked"},
    }  # fmt: skip
    return json.dumps(data, indent=1) + "\n"


def _bandwidths(table: Table, line: Line) -> tuple[float, float]:
    """algbw and busbw in GB/s of 1e9 bytes."""
    algbw = line.size / line.time_s * 1e-9
    return algbw, algbw * float(busbw_factor(table.name, table.ranks))


def _words(name: str) -> tuple[str, int]:
    return "sum" if name in _SUMMED else "none", 0 if name in _ROOTED else -1


def _fixed(value: float, width: int) -> str:
    """As many decimals as there is room for, two at most."""
    digits = len(str(int(value)))
    decimals = 2 if digits < width - 2 else 1 if digits < width - 1 else 0
    return f"{value:{width}.{decimals}f}"
