"""aiconfigurator Parquet (or CSV): serving kernels of LLMs (ai-dynamo/aiconfigurator, ``systems/data``).

One file per operation: ``gemm_perf``, ``context_attention_perf``, ``generation_attention_perf``, ``moe_perf`` and
``nccl_perf``. ``nccl_perf`` counts elements, not bytes, as its message size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wattline.errors import DataError
from wattline.formats import number_format
from wattline.predictors.importers.rows import Asked, Keep, Rows, formats_of, joined, made
from wattline.predictors.importers.source import Source, Table, name_of

SOURCE = "aiconfigurator (github.com/ai-dynamo/aiconfigurator)"
LICENCE = "Apache-2.0, data (c) NVIDIA"
UNITS = "milliseconds; watts, sampled every 100 ms over a second or more; message sizes in elements"
GIVEN: dict[str, str] = {}

_NEEDED = ("framework", "version", "device", "op_name", "kernel_source", "latency")
_COLLECTIVES = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all", "all_to_all": "all_to_all",
}  # fmt: skip
_CAP_SLACK = 0.01
"""Share by which a power limit may stay below the device's own and still count as none."""


def sniff(source: Source) -> bool:
    """Whether it has the columns that all tables of aiconfigurator share."""
    return set(_NEEDED) <= set(source.columns)


def read(source: Source, asked: Asked) -> Rows:
    """The rows of a table; see :mod:`wattline.predictors.importers`."""
    table = source.table()
    table.need(*_NEEDED)
    keep = Keep(len(table))
    names, time = table.words("op_name"), table.seconds("latency", 1e-3)
    keep.drop_untimed(time, "timer's tick")
    columns, whole = _by_kind(table, names, keep, source)
    ids, notes = asked.devices(set(table.words("device")[keep.mask]), source)
    device = np.array([ids.get(name, "") for name in table.words("device")], dtype=object)
    columns |= {
        "device": device, "time_s": time, "power_w": _power(table, device, keep, asked),
        "software": np.array(
            [f"{f.lower()} {v}" for f, v in zip(table.words("framework"), table.words("version"), strict=True)], object
        ),
    }  # fmt: skip
    order = ("op", "device", "impl", "dtype")
    columns = {**{name: columns[name] for name in order}, **columns}
    return Rows(made(columns, keep, source, whole=whole), len(table), keep.left_out, notes)


def _by_kind(table: Table, names: Any, keep: Keep, source: Source) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Columns of the operations that one file holds, and which of them are whole numbers."""
    found = set(names)
    impl = {"impl": table.words("kernel_source")}
    if found == {"gemm"}:
        m, n, k = (table.sizes(name) for name in "mnk")
        keep.drop_absent(m=m, n=n, k=k)
        sizes = {"batch": 1, "m": m, "n": n, "k": k, "site": _label(n, k)}
        return {"op": "gemm.dense", **impl, **_dtype(table, "gemm_dtype", keep), **sizes}, ("batch", "m", "n", "k")
    if found in ({"context_attention"}, {"generation_attention"}):
        return _attention(table, keep, found == {"context_attention"})
    if found == {"moe"}:
        return _moe(table, keep)
    if found <= set(_COLLECTIVES):
        return _nccl(table, names, keep)
    kinds = "gemm, context_attention, generation_attention, moe, nccl"
    raise DataError(f"{source} holds {name_of(found)}, which is not imported", why=f"imported: {kinds}")


def _attention(table: Table, keep: Keep, context: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    batch, new, past = table.sizes("batch_size"), table.sizes("isl"), table.sizes("step", least=0)
    heads, kv_heads, width = table.sizes("num_heads"), table.sizes("num_key_value_heads", 0), table.sizes("head_dim")
    kv_heads = np.where(kv_heads == 0, heads, kv_heads)  # how it writes as many as query heads
    window = table.sizes("window_size", 0) if "window_size" in table else np.zeros(len(table))
    keep.drop_absent(batch_size=batch, isl=new, step=past, num_heads=heads, num_key_value_heads=kv_heads)
    keep.drop_absent(head_dim=width, window_size=window)
    if "beam_width" in table:
        keep.drop(table.sizes("beam_width") > 1, "several beams share a cache")
    kv = table.words("kv_cache_dtype")
    kv_format = formats_of(kv)
    keep.drop(kv_format == "", f"number formats that nobody knows here: {name_of(set(kv[kv_format == '']))}")
    columns = {
        "op": "attention.prefill" if context else "attention.decode", "impl": table.words("kernel_source"),
        **_dtype(table, "attn_dtype", keep), "batch": batch, "q_len": new, "kv_len": new + past,
        "heads": heads, "kv_heads": kv_heads, "head_dim": width, "kv_dtype": kv_format, "window": window,
        "causal": True, "site": _label(heads, kv_heads, width),
    }  # fmt: skip
    return columns, ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim", "window")


def _moe(table: Table, keep: Keep) -> tuple[dict[str, Any], tuple[str, ...]]:
    theirs = {
        "tokens": "num_tokens", "hidden": "hidden_size", "intermediate": "inter_size", "top_k": "topk",
        "experts": "num_experts", "tp": "moe_tp_size", "ep": "moe_ep_size",
    }  # fmt: skip
    sizes = {ours: table.sizes(name) for ours, name in theirs.items()}
    keep.drop_absent(**{theirs[name]: values for name, values in sizes.items()})
    columns = {
        "op": "gemm.moe", "impl": table.words("kernel_source"), **_dtype(table, "moe_dtype", keep), **sizes,
        "routing": table.words("distribution"),
        "site": _label(sizes["hidden"], sizes["intermediate"], sizes["experts"]),
    }  # fmt: skip
    return columns, tuple(sizes)


def _nccl(table: Table, names: Any, keep: Keep) -> tuple[dict[str, Any], tuple[str, ...]]:
    ranks, count = table.sizes("num_gpus"), table.sizes("message_size")
    keep.drop_absent(num_gpus=ranks, message_size=count)
    keep.drop(ranks < 2, "one rank")
    dtype = _dtype(table, "nccl_dtype", keep)
    width = np.array([number_format(name).bytes if name else np.nan for name in dtype["dtype"]])
    columns = {
        "op": np.array([f"collectives.{_COLLECTIVES[name]}" for name in names], dtype=object),
        "impl": np.array([name.lower() for name in table.words("kernel_source")], dtype=object),
        **dtype, "world_size": ranks, "bytes": count * width, "site": _label(ranks),
    }  # fmt: skip
    return columns, ("world_size", "bytes")


def _dtype(table: Table, name: str, keep: Keep) -> dict[str, Any]:
    theirs = table.words(name)
    ours = formats_of(theirs)
    keep.drop(ours == "", f"number formats that nobody knows here: {name_of(set(theirs[ours == '']))}")
    return {"dtype": ours}


def _power(table: Table, device: Any, keep: Keep, asked: Asked) -> Any:
    """Watts, NaN where not measured; rows under a power limit below the device's own are left out."""
    if "power" not in table:
        return np.nan
    power = table.numbers("power")
    if (power < 0).any():
        raise table.wrong("power", int(np.flatnonzero(power < 0)[0]), "power is negative")
    if "power_limit" in table:
        own = {name: asked.spec(name).tdp_w or np.nan for name in set(device) if name}
        usual = np.array([own.get(name, np.nan) for name in device])
        capped = table.numbers("power_limit") < (1 - _CAP_SLACK) * usual
        keep.drop(capped, "under a power limit below the device's own, which makes it another device")
    return np.where(power > 0, power, np.nan)


def _label(*columns: Any) -> list[str]:
    return joined(*(np.nan_to_num(values) for values in columns))
