"""NeuSight CSV: fp32 kernels timed on several GPUs (sitar-lab/NeuSight, folder ``data/dataset``).

A product of its tables is ``(B, M, N) x (B, N, K)``: its N is the inner size, our k.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wattline.errors import DataError
from wattline.predictors.importers.rows import Asked, Keep, Rows, joined, made
from wattline.predictors.importers.source import Source, Table, name_of

SOURCE = "NeuSight (github.com/sitar-lab/NeuSight)"
LICENCE = "MIT"
UNITS = "milliseconds, the mean of the fastest 5 of 25 calls"
GIVEN: dict[str, str] = {}

_PRODUCTS = ("bmm", "linear")
_ROWWISE = {"softmax": "softmax.rows", "ln": "norm.layernorm", "layernorm": "norm.layernorm"}
_NEEDED = ("OPName", "Latency", "Device")


def sniff(source: Source) -> bool:
    """Whether it has the columns of NeuSight's tables."""
    return set(_NEEDED) <= set(source.columns)


def read(source: Source, asked: Asked) -> Rows:
    """The rows of a table; see :mod:`wattline.predictors.importers`."""
    table = source.table()
    table.need(*_NEEDED)
    ops = np.array([_op(name) for name in table.words("OPName")], dtype=object)
    names = table.words("Device")
    keep = Keep(len(table))
    time = table.seconds("Latency", 1e-3)
    unknown = set(table.words("OPName")[ops == ""])
    keep.drop(ops == "", f"operations without a counterpart here: {name_of(unknown)}")
    keep.drop_untimed(time, "timer's tick")
    ids, notes = asked.devices(set(names[keep.mask]), source)
    device = np.array([ids.get(name, "") for name in names], dtype=object)
    kinds = np.array([name.lower() for name in table.words("OPName")], dtype=object)
    keep.drop((kinds == "linear") & (device == "p4"), "linear layers on a P4: its training and test files disagree 4x")
    columns: dict[str, Any] = {
        "op": ops, "device": device, "impl": "torch", "dtype": "fp32", "time_s": time, "power_w": np.nan,
        "software": _software(table),
    }  # fmt: skip
    whole: tuple[str, ...] = ()
    if keep.mask.any() and set(ops[keep.mask]) == {"gemm.dense"}:
        batch = table.sizes("B") if "B" in table else np.ones(len(table))
        m, k, n = (table.sizes(name) for name in "MNK")
        keep.drop_absent(B=batch, M=m, N=k, K=n)
        label = joined(*(np.nan_to_num(v) for v in (batch, m, n, k)))
        columns |= {"kind": kinds, "batch": batch, "m": m, "n": n, "k": k, "site": label}
        whole = ("batch", "m", "n", "k")
    elif keep.mask.any() and "gemm.dense" not in ops[keep.mask]:
        rows, cols = table.sizes("B"), table.sizes("H")
        keep.drop_absent(B=rows, H=cols)
        columns |= {"rows": rows, "cols": cols, "site": joined(np.nan_to_num(rows), np.nan_to_num(cols))}
        whole = ("rows", "cols")
    elif keep.mask.any():
        raise DataError(f"{source} mixes products and row-wise operations, whose columns differ", todo="split it")
    return Rows(made(columns, keep, source, whole=whole), len(table), keep.left_out, notes)


def _op(name: str) -> str:
    """Our name of an operation; empty where there is none."""
    from wattline.workmodels.rowwise import ELEMENTWISE

    plain = name.strip().lower()
    if plain in _PRODUCTS:
        return "gemm.dense"
    plain = plain.removeprefix("vec")
    return f"elementwise.{plain}" if plain in ELEMENTWISE else _ROWWISE.get(plain, "")


def _software(table: Table) -> Any:
    if "Torch Version" not in table:
        return None
    versions = [name.lstrip("p") for name in table.words("Torch Version")]
    return np.array([f"torch {version}" if version else "" for version in versions], dtype=object)
