"""Families of operations: which parameters an operation has, and the physics features that explain its speed.

A feature function returns ``(busy, features)``: the seconds that the device is busy at best, tile and wave
quantisation included, and a list of dimensionless or logarithmic numbers. Features describe a kernel relative to
the device (waves, fill, bytes over cache size), so that what one device taught holds on the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wattline.predictors.physics import ONE, TINY, Machine, Terms
from wattline.workmodels.collectives import COLLECTIVES

Features = tuple[Any, list[Any]]
FeatureFunction = Callable[[Mapping[str, Any], Terms, Machine, Any], Features]

USUAL = 0.8
"""Share of its peak that a library's large products reach on devices that no power limit holds back."""
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
        power_only: features that power alone reads; zero where time is learned.
        streamed: seconds that one byte of each number of the activations takes to move; ``None``: unknown.
    """

    name: str
    params: Mapping[str, float | None]
    features: FeatureFunction
    names: tuple[str, ...]
    power_only: frozenset[str] = frozenset()
    streamed: Callable[[Mapping[str, Any], Machine], Any] | None = None


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


def _alignment(size: Any, xp: Any) -> Any:
    """Base-2 logarithm of the largest power of two, at most 128, that divides a size; 0 of what is no whole number."""
    if xp is ONE:
        return _ALIGNMENTS[int(size) & 127] if size == int(size) else 0.0
    whole = xp.whole(size)
    return xp.where(whole == size, xp.taken(_ALIGNMENTS, whole & 127), 0.0)


_ALIGNMENTS = (7.0, *(float((i & -i).bit_length() - 1) for i in range(1, 128)))
"""By the last seven bits of a size."""


def _sustained(busy: Any, t: Terms, xp: Any) -> Any:
    """Seconds of arithmetic as libraries usually reach them, and as the power limit pays for them."""
    return xp.most(busy / USUAL, t.powered)


_ROOF = ("log_roof", "log_balance", "compute_share", "log_cache", "cache_share")

_SHARES_OF_PEAK = {(256, 128): 1.0, (128, 128): 0.95, (128, 64): 0.8, (64, 64): 0.65, (32, 32): 0.35}
"""What a tile of some height and width reaches; data reuse falls with its size."""
_TILES = tuple((height, width, height * width / share) for (height, width), share in _SHARES_OF_PEAK.items())
"""Tile height, width, and its area over the share of peak that it reaches."""
_LEAST_DEPTH = 512.0
"""Depth that is worth a part of its own where a product is split along it."""


def _gemm(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    batch, rows, cols, depth = p["batch"], p["m"], p["n"], p["k"]
    out: list[Any] = _roof(t, m, xp)
    per_flop = t.compute / (2.0 * batch * rows * cols * depth)  # seconds per FLOP of the whole device
    added = 8.0 * batch * rows * cols / (m.bandwidth or 1e11)  # a part of the result written and read, four bytes each
    busy: Any = None
    units, ceil, floor, most, least = m.units, xp.ceil, xp.floor, xp.most, xp.least
    deep, everywhere = depth / _LEAST_DEPTH, 2.0 * units * depth * per_flop
    split = xp is not ONE or deep > 1.0
    for height, width, effort in _TILES:
        tiles = 1.0 * batch * ceil(rows / height) * ceil(cols / width)
        waves = tiles / units
        whole = ceil(waves)
        # One wave does units tiles at once; a last wave that is partly empty takes as long as a full one. Where tiles
        # are few, libraries split the depth where that is quicker: multiprocessors share a tile, and add up their parts
        # in memory.
        seconds = whole * effort * everywhere
        if split:
            parts = most(1.0, least(floor(units / tiles), deep))
            seconds = least(seconds, seconds / parts + parts * added)
        busy = seconds if busy is None else least(busy, seconds)
        if height in (128, 64) and width == height:
            out += [xp.log2(waves), waves / whole, rows * cols * batch / (tiles * height * width)]
        elif height == 256:
            out += [waves / whole]
    if not m.tiled:
        busy = t.compute
    # The number of rows is what grows beyond what was measured (tokens of a batch): as a feature of its own it would
    # stay at its edge there. Waves and fills say what matters of it to time; readings of power go by it.
    out += [
        xp.log2(xp.most(t.compute, TINY) / xp.most(busy, TINY)), xp.log2(1.0 * depth),
        _alignment(rows, xp), _alignment(cols, xp), _alignment(depth, xp),
        xp.log2(1.0 * batch), xp.log2(1.0 * cols), xp.log2(1.0 * rows),
    ]  # fmt: skip
    return xp.most(_sustained(busy, t, xp), t.memory), out


_GEMM = (
    *_ROOF, "wave_256", "log_waves_128", "wave_128", "fill_128", "log_waves_64", "wave_64", "fill_64",
    "log_quantisation", "log_k", "align_m", "align_n", "align_k", "log_batch", "log_n", "log_m",
)  # fmt: skip


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
    # The last block of rows of one head sees the most keys and cannot be quicker than one multiprocessor.
    rows = xp.least(q_len, 128.0)
    seen = xp.least(span, kv_len)
    pairs = batch * heads * q_len * xp.most(seen - 0.5 * xp.least(q_len, seen), 1.0)
    longest = t.compute * rows * seen * m.units / pairs
    tiles = blocks * 128.0 * (xp.ceil(seen / 128) * 128.0) / pairs
    out = [
        *_roof(t, m, xp),
        xp.log2(waves), waves / whole, xp.log2(packed_waves), packed_waves / xp.ceil(packed_waves),
        xp.log2(chunks), chunks / (1.0 + chunks),
        xp.log2(batch), xp.log2(q_len), xp.log2(kv_len), xp.log2(span), xp.log2(heads), xp.log2(kv_heads),
        xp.log2(heads / kv_heads), xp.log2(dim), 1.0 * (window > 0), span / kv_len,
        1.0 * (dim > 128), 1.0 * (q_len >= 64), _alignment(kv_len, xp), _alignment(q_len, xp),
        _alignment(heads / kv_heads, xp), xp.log2((longest + TINY) / (t.compute + TINY)), xp.log2(tiles),
    ]  # fmt: skip
    return xp.most(_sustained(t.compute, t, xp), t.memory), out


_ATTENTION = (
    *_ROOF, "log_waves", "wave", "log_packed", "packed_wave", "log_chunks", "chunk_share",
    "log_batch", "log_q", "log_kv", "log_span", "log_heads", "log_kv_heads",
    "log_group", "log_dim", "windowed", "span_share", "wide_head", "long_q", "align_kv", "align_q",
    "align_group", "log_longest", "log_tiles",
)  # fmt: skip


_BLOCKS = ((16, 0.3), (32, 0.5), (64, 0.7), (128, 0.9))
"""Rows of an expert that a block of a grouped kernel takes, and the share of peak that such a block reaches."""


def _moe(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    tokens, experts, top_k = 1.0 * p["tokens"], 1.0 * p["experts"], 1.0 * p["top_k"]
    hidden, inner = 1.0 * p["hidden"], 1.0 * p["intermediate"] / p["tp"]
    ep = 1.0 * p["ep"]
    local = xp.most(experts / ep, 1.0)
    routed = tokens * top_k / ep
    # The bound counts weights that are certainly read; the expectation is that those of every expert chosen are.
    active = xp.most(xp.least(local, routed), 1.0)
    each = xp.most(routed / active, 1.0)
    bandwidth = m.bandwidth or 1e11
    weights = active * t.details["expert_bytes"] / bandwidth
    # Between its two products a layer writes and reads what the experts hand on, two bytes a number.
    handed = 2.0 * routed * (3.0 * hidden + 6.0 * inner) / bandwidth
    out: list[Any] = []
    busy: Any = None
    for rows, share in _BLOCKS:
        blocks = active * xp.ceil(each / rows)
        fill = routed / (blocks * rows)
        waves = blocks * xp.ceil(2.0 * inner / 128) / m.units
        seconds = t.compute / xp.least(fill, 1.0) / share
        busy = seconds if busy is None else xp.least(busy, seconds)
        if rows in (16, 128):
            out += [fill, xp.log2(waves), waves / xp.ceil(waves)]
    busy = xp.most(busy, t.powered)
    moved = weights + handed
    out += [
        xp.log2(busy / moved), moved / (moved + busy), xp.log2(handed / weights), xp.log2(xp.most(busy, moved)),
        xp.log2(each), xp.log2(active), active / local, xp.log2(t.details["expert_bytes"]),
        xp.log2(active * t.details["expert_bytes"] / (m.cache or 1e6)),
        xp.log2(tokens), xp.log2(hidden), xp.log2(inner), xp.log2(ep), xp.log2(1.0 * p["tp"]),
        _alignment(inner, xp), xp.log2(local), xp.log2(top_k),
    ]  # fmt: skip
    return xp.most(busy, moved), out


_MOE = (
    "fill_16", "log_waves_16", "wave_16", "fill_128", "log_waves_128", "wave_128",
    "log_balance", "memory_share", "log_handed", "log_busy", "log_each", "log_active", "active_share", "log_expert",
    "log_cache", "log_tokens", "log_hidden", "log_inner", "log_ep", "log_tp", "align_inner", "log_local",
    "log_top_k",
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
    return xp.most(_sustained(t.compute, t, xp), t.memory), out


_ROWS = (*_ROOF, "log_rows", "log_cols", "log_waves", "wave", "col_fill", "cols_4")


def _generic(p: Mapping[str, Any], t: Terms, m: Machine, xp: Any) -> Features:
    return xp.most(xp.most(t.compute, t.memory), t.link), [*_roof(t, m, xp), xp.log2(t.link + TINY)]


_GEMM_PARAMS: dict[str, float | None] = {"batch": 1.0, "m": NEEDED, "n": NEEDED, "k": NEEDED}


def _gemm_streamed(p: Mapping[str, Any], m: Machine) -> Any:
    return 1.0 * p["batch"] * p["m"] * p["k"] / (m.bandwidth or 1e11)


_GEMM_FAMILY = Family("gemm", _GEMM_PARAMS, _gemm, _GEMM, frozenset({"log_m"}), _gemm_streamed)
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
