"""Flat frames: Parquet or CSV with columns op, device, impl, dtype, the parameters, time_s, power_w and site.

This is what `wattline import` writes; tables of one's own need ``op``, ``device``, ``dtype`` and ``time_s``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wattline.errors import DataError
from wattline.predictors.importers.rows import Asked, Keep, Rows, formats_of, made
from wattline.predictors.importers.source import Source, name_of, values_of

SOURCE = "a flat frame"
LICENCE = ""
UNITS = "seconds a call; watts"
GIVEN: dict[str, str] = {"impl": "implementation, where the column is missing"}

_NEEDED = ("op", "device", "dtype", "time_s")



def sniff(source: Source) -> bool:
    """Whether it has the columns that every row needs."""
    return set(_NEEDED) <= set(source.columns)


def read(source: Source, asked: Asked) -> Rows:
    """The rows of a frame; see :mod:`wattline.predictors.importers`."""
    table = source.table()
    table.need(*_NEEDED)
    keep = Keep(len(table))
    time = table.seconds("time_s", 1.0)
    power = table.numbers("power_w") if "power_w" in table else np.full(len(table), np.nan)
    if (power < 0).any():
        raise table.wrong("power_w", int(np.flatnonzero(power < 0)[0]), "power is negative")
    theirs = table.words("dtype")
    dtype = formats_of(theirs)
    keep.drop(table.words("op") == "", "no operation")
    keep.drop(dtype == "", f"number formats that nobody knows here: {name_of(set(theirs[dtype == '']))}")
    keep.drop_untimed(time, "timer's tick")
    names = table.words("device")
    keep.drop(names == "", "no device")
    ids, notes = asked.devices(set(names[keep.mask]), source)
    impl = table.words("impl") if "impl" in table else np.full(len(table), asked.facts.get("impl", ""), dtype=object)
    if (impl[keep.mask] == "").any():
        raise DataError(f"{source} does not say which implementation it measured", todo="give it: --set impl=NAME")
    columns: dict[str, Any] = {
        "op": table.words("op"), "device": np.array([ids.get(n, "") for n in names], dtype=object), "impl": impl,
        "dtype": dtype,
    }  # fmt: skip
    columns |= {name: values_of(table, name) for name in table.columns if name not in (*columns, "time_s", "power_w")}
    columns |= {"time_s": time, "power_w": np.where(power > 0, power, np.nan)}
    return Rows(made(columns, keep, source), len(table), keep.left_out, notes)
