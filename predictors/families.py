"""Families of operations: which parameters an operation has, and the physics features that explain its speed.

A feature function returns ``(busy, features)``: the seconds that the device is busy at best, tile and wave
quantisation included, and a list of dimensionless or logarithmic numbers. Features describe a kernel relative to
the device (waves, fill, bytes over cache size), so that what one device taught holds on the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wattline.predictors.physics import TINY, Machine, Terms
from wattline.workmodels.collectives import COLLECTIVES

Features = tuple[Any, list[Any]]
FeatureFunction = Callable[[Mapping[str, Any], Terms, Machine, Any], Features]

NEEDED = None
"""Default of a parameter that must be given."""


@dataclass(frozen=True)
class Family:
    """Operations that one model covers.

    Attributes:
        name: the family's name.
        params: numeric parameters with their defaults (:data:`NEEDED`: none).
        features: the feature function.
        names: names of the features, in its order.
        few_only: features for fits on few rows alone. Sizes as such leave the trained box beyond it while waves and
            fills stay inside: a network has nothing to say of such corners (on the rows of the Vidur table above
            m = 1024 it erred by 9 % with them and by 6 % without, on held-out shapes alike).
    """

    name: str
    params: Mapping[str, float | None]
    features: FeatureFunction
    names: tuple[str, ...]
    few_only: frozenset[str] = frozenset()


def _roof(t: Terms, m: Machine, xp: Any) -> list[Any]:
    """Where the work stands on the roofline, and against the cache."""
    compute, memory = t.compute + TINY, t.memory + TINY
    cache = t.moved / (m.cache or 1e6)
    return [
        xp.log2(xp.most(compute, memory)),
        xp.log2(compute / memory),
        compute / (compute + memory),
        xp.log2(cache + 1e-9),
        cache / (1.0 + cache),
    ]


_ROOF = ("log_roof", "log_balance", "compute_share", "log_cache", "cache_share")

_TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 64, 0.65), (32, 32, 0.35))
"""Tile height, width and the share of peak that such a tile reaches (data reuse falls with its size)."""


def _gemm(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    batch, rows, cols, depth = p["batch"], p["m"], p["n"], p["k"]
    out: list[Any] = _roof(t, m, xp)
    per_flop = t.compute / (2.0 * batch * rows * cols * depth)  # seconds per FLOP of the whole device
    busy: Any = None
    for height, width, share in _TILES:
        tiles = 1.0 * batch * xp.ceil(rows / height) * xp.ceil(cols / width)
        waves = tiles / m.units
        whole = xp.ceil(waves)
        # One wave does units tiles at once; a last wave that is partly empty takes as long as a full one.
        seconds = whole * m.units * (2.0 * height * width * depth) * per_flop / share
        busy = seconds if busy is None else xp.least(busy, seconds)
        if height in (128, 64) and width == height:
            out += [xp.log2(waves), waves / whole, rows * cols * batch / (tiles * height * width)]
        elif height == 256:
            out += [waves / whole]
    if not m.tiled:
        busy = t.compute
    out += [
        xp.log2(xp.most(t.compute, TINY) / xp.most(busy, TINY)), xp.log2(1.0 * depth),
        1.0 * (rows % 8 == 0), 1.0 * (cols % 8 == 0), 1.0 * (depth % 8 == 0),
        1.0 * (rows % 64 == 0), 1.0 * (cols % 64 == 0), 1.0 * (depth % 64 == 0),
        xp.log2(1.0 * batch), xp.log2(1.0 * rows), xp.log2(1.0 * cols),
    ]  # fmt: skip
    return xp.most(busy, t.memory), out


_GEMM = (
    *_ROOF, "wave_256", "log_waves_128", "wave_128", "fill_128", "log_waves_64", "wave_64", "fill_64",
    "log_quantisation", "log_k", "m_8", "n_8", "k_8", "m_64", "n_64", "k_64", "log_batch", "log_m", "log_n",
)  # fmt: skip


_GEMM_SIZES = frozenset({"log_roof", "log_cache", "log_batch", "log_m", "log_n"})


def _attention(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    batch, q_len, kv_len = 1.0 * p["batch"], 1.0 * p["q_len"], 1.0 * p["kv_len"]
    heads, kv_heads, dim, window = 1.0 * p["heads"], 1.0 * p["kv_heads"], 1.0 * p["head_dim"], p["window"]
    span = xp.where(window > 0, xp.least(1.0 * window, kv_len), kv_len)
    blocks = batch * heads * xp.ceil(q_len / 128)
    waves = blocks / m.units
    whole = xp.ceil(waves)
    packed = batch * kv_heads * xp.ceil(q_len * (heads / kv_heads) / 64)  # query heads of a group share one block
    packed_waves = packed / m.units
    chunks = packed * xp.ceil(span / 256) / m.units  # work left if the keys are split
    out = [
        *_roof(t, m, xp),
        xp.log2(waves), waves / whole, xp.log2(packed_waves), packed_waves / xp.ceil(packed_waves),
        xp.log2(chunks), chunks / (1.0 + chunks),
        xp.log2(batch), xp.log2(q_len), xp.log2(kv_len), xp.log2(span), xp.log2(heads), xp.log2(kv_heads),
        xp.log2(heads / kv_heads), xp.log2(dim), 1.0 * (window > 0), span / kv_len,
        1.0 * (dim > 128), 1.0 * (q_len >= 64), 1.0 * (kv_len % 128 == 0),
    ]  # fmt: skip
    return xp.most(t.compute, t.memory), out


_ATTENTION = (
    *_ROOF, "log_waves", "wave", "log_packed", "packed_wave", "log_chunks", "chunk_share",
    "log_batch", "log_q", "log_kv", "log_span", "log_heads", "log_kv_heads",
    "log_group", "log_dim", "windowed", "span_share", "wide_head", "long_q", "kv_128",
)  # fmt: skip


def _moe(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    tokens, experts, top_k = 1.0 * p["tokens"], 1.0 * p["experts"], 1.0 * p["top_k"]
    hidden, inner = 1.0 * p["hidden"], 1.0 * p["intermediate"] / p["tp"]
    ep = 1.0 * p["ep"]
    local = experts / ep
    routed = tokens * top_k / ep
    active = xp.least(local, routed)
    each = routed / xp.most(active, 1e-3)
    blocks = active * xp.ceil(each / 64) * xp.ceil(2.0 * inner / 128)
    waves = blocks / m.units
    # The bound counts weights that are certainly read; the expectation is that every active expert's are.
    wanted = xp.most(t.memory, TINY) * active / xp.least(local, xp.most(top_k / ep, 1e-3))
    out = [
        *_roof(t, m, xp),
        xp.log2(waves), waves / xp.ceil(waves), each / (64.0 * xp.ceil(each / 64)), xp.log2(each), xp.log2(active),
        xp.log2(tokens), xp.log2(hidden), xp.log2(inner), xp.log2(experts), xp.log2(local), xp.log2(top_k),
        xp.log2(ep), xp.log2(1.0 * p["tp"]), xp.log2(wanted), 1.0 * (inner % 128 == 0), active / local,
    ]  # fmt: skip
    return xp.most(t.compute, t.memory), out


_MOE = (
    *_ROOF, "log_waves", "wave", "fill", "log_each", "log_active", "log_tokens", "log_hidden", "log_inner",
    "log_experts", "log_local", "log_top_k", "log_ep", "log_tp", "log_expected", "inner_128", "active_share",
)  # fmt: skip


def _collective(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    size, ranks = xp.most(1.0 * p["bytes"], 1.0), 1.0 * p["world_size"]
    out = [xp.log2(size), xp.log2(ranks), xp.log2(size / ranks), xp.log2(t.link + TINY), t.rounds + 0.0 * size]
    return t.link, out


_COLLECTIVE = ("log_bytes", "log_ranks", "log_share", "log_link", "rounds")


def _rows(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    rows, cols = 1.0 * p["rows"], 1.0 * p["cols"]
    waves = rows / m.units
    out = [
        *_roof(t, m, xp), xp.log2(rows), xp.log2(cols), xp.log2(waves), waves / xp.ceil(waves),
        cols / 1024.0 / xp.ceil(cols / 1024.0), 1.0 * (cols % 4 == 0),
    ]  # fmt: skip
    return xp.most(t.compute, t.memory), out


_ROWS = (*_ROOF, "log_rows", "log_cols", "log_waves", "wave", "col_fill", "cols_4")


def _generic(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    return xp.most(xp.most(t.compute, t.memory), t.link), [*_roof(t, m, xp), xp.log2(t.link + TINY)]


_GEMM_FAMILY = Family("gemm", {"batch": 1.0, "m": NEEDED, "n": NEEDED, "k": NEEDED}, _gemm, _GEMM, _GEMM_SIZES)
_ATTENTION_PARAMS: dict[str, float | None] = {
    "batch": 1.0, "q_len": NEEDED, "kv_len": NEEDED, "heads": NEEDED, "kv_heads": NEEDED, "head_dim": NEEDED,
    "window": 0.0,
}  # fmt: skip
_BY_OP: dict[str, Family] = {
    "gemm.dense": _GEMM_FAMILY,
    "attention.prefill": Family("prefill", _ATTENTION_PARAMS, _attention, _ATTENTION),
    "attention.decode": Family("decode", {**_ATTENTION_PARAMS, "q_len": 1.0}, _attention, _ATTENTION),
    "gemm.moe": Family(
        "moe",
        {
            "tokens": NEEDED, "hidden": NEEDED, "intermediate": NEEDED, "experts": NEEDED, "top_k": NEEDED,
            "tp": 1.0, "ep": 1.0,
        },
        _moe, _MOE,
    ),
}  # fmt: skip
_COLLECTIVE_FAMILY = Family("collectives", {"bytes": NEEDED, "world_size": NEEDED}, _collective, _COLLECTIVE)
_ROW_FAMILY = Family("rowwise", {"rows": NEEDED, "cols": NEEDED}, _rows, _ROWS)


def family_of(op: str) -> Family:
    """The family that covers an operation; one of its own, with roofline features alone, for any other."""
    if op in _BY_OP:
        return _BY_OP[op]
    if op == "collectives.barrier":
        return Family("barrier", {"world_size": NEEDED}, _generic, (*_ROOF, "log_link"))
    if op.removeprefix("collectives.") in COLLECTIVES:
        return _COLLECTIVE_FAMILY
    if op.startswith("elementwise.") or op in ("softmax.rows", "norm.layernorm", "norm.rmsnorm", "rope"):
        return _ROW_FAMILY
    return Family(op, {}, _generic, (*_ROOF, "log_link"))
