"""Vidur CSV: profiles of LLM layers and of links (microsoft/vidur, folder ``data/profiling``).

``mlp.csv`` gives four matrix products a row, ``attention.csv`` prefill or decoding, ``all_reduce.csv`` and
``send_recv.csv`` a message. Device and model stand in the folders' names alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wattline.predictors.importers.rows import Asked, Keep, Rows, joined, made
from wattline.predictors.importers.source import Source, Table

SOURCE = "Vidur (github.com/microsoft/vidur)"
LICENCE = "MIT"
UNITS = "milliseconds with three decimals, medians; message sizes in bytes"
GIVEN = {"model": "name of the model that was profiled", "topology": "name of the machine of the links"}

FOLDERS: dict[str, str] = {"a100": "a100-sxm-80gb", "a40": "a40", "h100": "h100-sxm"}
"""Devices by the first word of the folders that its profiles lie in (``a100_dgx``, ``a40_pairwise_nvlink``)."""
_PROJECTIONS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
_LINKS = ("all_reduce", "send_recv", "all_gather", "reduce_scatter")
_TICK = "microsecond"


def sniff(source: Source) -> bool:
    """Whether it has medians of its profiler, and the columns of one of its tables."""
    names = set(source.columns)
    timed = any(name.startswith("time_stats.") for name in names)
    return timed and bool({"n_expanded_embd", "prefill_chunk_size", "collective"} & names)


def read(source: Source, asked: Asked) -> Rows:
    """The rows of a profile; see :mod:`wattline.predictors.importers`."""
    table = source.table()
    folder, device = _folder(source)
    notes = []
    if device and not asked.device and "" not in asked.renamed:
        notes.append(f"on {device} by the folder {folder}")
        asked = Asked(device, asked.renamed, asked.specs, asked.facts)
    ids, more = asked.devices({""}, source)
    if "collective" in table:
        columns, keep, whole, read_ = _links(table, asked.facts.get("topology") or folder)
    elif "prefill_chunk_size" in table:
        columns, keep, whole, read_ = _attention(table)
    else:
        columns, keep, whole, read_ = _products(table)
        notes.append("norms, activations, embeddings and additions of the layers are left out: only products are sized")
    model = asked.facts.get("model") or (source.path.parent.name if folder and "collective" not in table else "")
    described = {"device": ids[""], "power_w": np.nan, **({"model": model} if model else {})}
    order = ("op", "device", "impl", "dtype")
    columns = {**{name: (columns | described)[name] for name in order}, **columns, **described}
    return Rows(made(columns, keep, source, whole=whole), read_, keep.left_out, notes + more)


def _folder(source: Source) -> tuple[str, str]:
    """The folder of the profile that names the device, and the device; empty where none does."""
    for part in reversed(source.path.absolute().parts[:-1]):
        if part.split("_")[0] in FOLDERS:
            return part, FOLDERS[part.split("_")[0]]
    return "", ""


def _products(table: Table) -> tuple[dict[str, Any], Keep, tuple[str, ...], int]:
    """Four products a row: queries, keys and values; output; up (and gate); down; split over tensor-parallel ranks."""
    m, ranks = table.sizes("num_tokens"), table.sizes("num_tensor_parallel_workers")
    width, inner = table.sizes("n_embd"), table.sizes("n_expanded_embd")
    heads, kv_heads = table.sizes("n_head"), table.sizes("n_kv_head")
    gates = np.where([word.lower() == "true" for word in table.words("use_gated_mlp")], 2, 1)
    head = width / heads
    sizes = {
        "attn_pre_proj": ((heads + 2 * kv_heads) * head / ranks, width),
        "attn_post_proj": (width, width / ranks),
        "mlp_up_proj": (gates * inner / ranks, width),
        "mlp_down_proj": (width, inner / ranks),
    }
    parts: dict[str, list[Any]] = {"n": [], "k": [], "time_s": [], "layer": []}
    for name in _PROJECTIONS:
        parts["n"].append(sizes[name][0])
        parts["k"].append(sizes[name][1])
        parts["time_s"].append(table.seconds(f"time_stats.{name}.median", 1e-3))
        parts["layer"].append(np.full(len(table), name, dtype=object))
    columns: dict[str, Any] = {name: np.concatenate(found) for name, found in parts.items()}
    rows = np.tile(m, len(_PROJECTIONS))
    keep = Keep(len(rows))
    keep.drop_absent(num_tokens=rows, sizes=columns["n"] + columns["k"])
    keep.drop_untimed(columns["time_s"], _TICK)
    uneven = (columns["n"] != np.floor(columns["n"])) | (columns["k"] != np.floor(columns["k"]))
    keep.drop(uneven, "a layer that its ranks cannot share evenly")
    label = joined(np.nan_to_num(columns["n"]), np.nan_to_num(columns["k"]))
    columns |= {"op": "gemm.dense", "impl": "torch", "dtype": "fp16", "batch": 1, "m": rows, "site": label}
    return columns, keep, ("batch", "m", "n", "k"), len(rows)


def _attention(table: Table) -> tuple[dict[str, Any], Keep, tuple[str, ...], int]:
    """Prefill of one chunk, or one new token of each sequence, after ``kv_cache_size`` tokens that lie in pages."""
    ranks, batch = table.sizes("num_tensor_parallel_workers"), table.sizes("batch_size")
    past = table.sizes("kv_cache_size", 0)
    heads, kv_heads = table.sizes("n_q_head"), table.sizes("n_kv_head")
    prefill = np.array([word.lower() == "true" for word in table.words("is_prefill")])
    new = np.where(prefill, table.sizes("prefill_chunk_size", 0), 1)
    time = np.full(len(table), np.nan)
    for kind, rows in (("attn_prefill", prefill), ("attn_decode", ~prefill)):
        if rows.any():
            time[rows] = table.seconds(f"time_stats.{kind}.median", 1e-3)[rows]
    keep = Keep(len(table))
    keep.drop_absent(batch_size=batch, kv_cache_size=past, n_q_head=heads, n_kv_head=kv_heads)
    keep.drop(new < 1, "no new token")
    keep.drop_untimed(time, _TICK)
    own, own_kv = heads / ranks, np.maximum(kv_heads / ranks, 1)
    keep.drop((own != np.floor(own)) | (own_kv != np.floor(own_kv)), "heads that its ranks cannot share evenly")
    head_dim = table.sizes("n_embd") / heads
    backend = [word.rpartition(".")[2].lower() or "unknown" for word in table.words("attention_backend")]
    columns = {
        "op": np.where(prefill, "attention.prefill", "attention.decode").astype(object),
        "impl": np.array(backend, dtype=object), "dtype": "fp16", "batch": batch, "q_len": new, "kv_len": past + new,
        "heads": own, "kv_heads": own_kv, "head_dim": head_dim, "causal": True, "time_s": time,
        "site": joined(*(np.nan_to_num(v) for v in (own, own_kv, head_dim))),
    }  # fmt: skip
    if "block_size" in table:
        columns["page_size"] = table.sizes("block_size")
    whole = ("batch", "q_len", "kv_len", "heads", "kv_heads", "head_dim")
    return columns, keep, whole, len(table)


def _links(table: Table, topology: str) -> tuple[dict[str, Any], Keep, tuple[str, ...], int]:
    names = table.words("collective")
    size, ranks, local = table.sizes("size"), table.sizes("num_workers"), table.sizes("devices_per_node")
    keep = Keep(len(table))
    time = np.full(len(table), np.nan)
    for name in set(names) & set(_LINKS):
        time[names == name] = table.seconds(f"time_stats.{name}.median", 1e-3)[names == name]
    keep.drop(~np.isin(names, _LINKS), "no collective of ours")
    keep.drop_absent(size=size, num_workers=ranks, devices_per_node=local)
    keep.drop(ranks < 2, "one rank")
    keep.drop_untimed(time, _TICK)
    columns = {
        "op": np.array([f"collectives.{name}" for name in names], dtype=object), "impl": "nccl", "dtype": "fp16",
        "world_size": ranks, "ranks_per_node": local, "bytes": size, "time_s": time,
        "site": joined(np.nan_to_num(ranks)), **({"topology": topology} if topology else {}),
    }  # fmt: skip
    return columns, keep, ("world_size", "ranks_per_node", "bytes"), len(table)
