"""Attention of one new token for each sequence of a batch over a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import sqrt
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.suites.attention import shapes
from wattline.suites.attention.cache import (
    Cache,
    compare_decode,
    format_of,
    make_cache,
    tokens_allocated,
)
from wattline.suites.attention.partial import merge_stacked
from wattline.suites.attention.prefill import FORMAT_RULE, HEAD_RULE
from wattline.suites.attention.prefill import naive as attend_naively
from wattline.suites.attention.reference import tolerance
from wattline.suites.attention.sdpa import ANY, force
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import module, never, torch_at_least
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.workmodels.lengths import DISTRIBUTIONS, MOST_RAGGED

KV_FORMATS = ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2")

WINDOW_RULE = Constraint(
    "window is 0 (none) or at most kv_len", lambda p: int(p["window"]) <= int(p["kv_len"])
)
KV_RULE = Constraint(
    "kv_dtype is same, or a format narrower than dtype",
    lambda p: (
        p["kv_dtype"] == "same" or number_format(str(p["kv_dtype"])).bits < number_format(str(p["dtype"])).bits
    ),
)
SPLIT_RULE = Constraint(
    "splits is at most the tokens in reach, kv_len or window",
    lambda p: int(p["splits"]) <= (int(p["window"]) or int(p["kv_len"])),
)
RAGGED_RULE = Constraint(
    f"unequal lengths need a batch from 2 to {MOST_RAGGED}",
    lambda p: p["lengths"] == "equal" or 2 <= int(p["batch"]) <= MOST_RAGGED,
)

CONTIGUOUS = never(
    lambda p, m: int(p["page_size"]) > 0, "paged", "the cache is in pages: it reads contiguous ones (page_size=0)"
)
PAGED = never(
    lambda p, m: int(p["page_size"]) == 0, "contiguous", "the cache is contiguous: it reads pages (page_size above 0)"
)
UNSPLIT = never(
    lambda p, m: int(p["splits"]) > 0, "splits", "a number of splits is asked for: it cannot be told (splits=0)"
)
SAME = never(
    lambda p, m: p["kv_dtype"] != "same", "kv_dtype", "kv_dtype differs from dtype: it takes one format for all"
)
CUDA = never(lambda p, m: m.kind != "cuda", "no_cuda", "the device is no CUDA or ROCm GPU")
HALF = never(
    lambda p, m: p["dtype"] not in ("bf16", "fp16"),
    "no_kernel",
    "dtype is neither bf16 nor fp16, which is all it takes",
)


def random(count: int = 24, **limits: Any) -> Iterator[dict[str, Any]]:
    """Points spread over lengths and batch; see :func:`wattline.suites.attention.shapes.random`."""
    yield from shapes.random(count, decode=True, **limits)


SOURCES: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"tokens": shapes.tokens, "random": random}


def kernel_of(q: Any, cache: Cache, call: Callable[[], Any], **facts: Any) -> Kernel:
    """A kernel with what is worth knowing of its cache."""
    inputs = {"q": q, "k": cache.k, "v": cache.v, "cache": cache}
    width = 2 * cache.k.shape[1] * cache.k.shape[3] * cache.k.element_size()
    known: dict[str, Any] = {"keys": cache.keys, "key_bytes": cache.keys * width}
    if not cache.equal:
        known |= {"shortest": min(cache.lengths), "mean_length": sum(cache.lengths) / len(cache.lengths)}
    if cache.table is not None:
        known["pages"] = cache.k.shape[0]
    return Kernel(call, inputs, facts=known | facts)


def queries_of(p: ParamValues, ctx: BuildContext) -> Any:
    """``[batch, heads, head_dim]``."""
    return ctx.tensor((int(p["batch"]), int(p["heads"]), int(p["head_dim"])), str(p["dtype"]))


@workload("attention.decode", impl="sdpa", requires=(torch_at_least(2, 5), CONTIGUOUS, UNSPLIT))
class Decode(Workload):
    """One new token of each sequence attends to its cache: o = softmax(q K^T / sqrt(d)) V.

    The cache is contiguous, ``[batch, kv_heads, kv_len, head_dim]``, or in pages of ``page_size`` tokens that lie in a
    random order. ``kv_len`` is the longest sequence; the others are as ``lengths`` says.
    """

    params = Params(
        HEAD_RULE, FORMAT_RULE, WINDOW_RULE, KV_RULE, SPLIT_RULE, RAGGED_RULE,
        batch=Int(1, doc="sequences"),
        kv_len=Int(doc="tokens in the cache of the longest sequence"),
        heads=Int(doc="query heads"),
        kv_heads=Int(doc="key-value heads"),
        head_dim=Int(doc="width of a head"),
        dtype=DType(doc="number format of queries and results"),
        kv_dtype=Choice("same", *KV_FORMATS, doc="number format of keys and values; converted as they are read"),
        window=Int(0, lo=0, doc="most recent tokens that are attended to; 0: all"),
        page_size=Int(0, lo=0, doc="tokens of a page; 0: a contiguous cache"),
        lengths=Choice(*DISTRIBUTIONS, doc="how long the sequences are, beside the longest"),
        length_seed=Int(0, lo=0, doc="of the lengths that are drawn"),
        splits=Int(0, lo=0, doc="parts that each context is cut into, worked on apart; 0: as the implementation likes"),
    )  # fmt: skip
    shape_sources = SOURCES
    tracks_memory = True

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the cache is allocated whole, whatever is in reach."""
        row = int(p["heads"]) * int(p["head_dim"]) * number_format(str(p["dtype"])).bytes
        token = 2 * int(p["kv_heads"]) * int(p["head_dim"]) * number_format(format_of(p)).bytes
        return 2 * int(p["batch"]) * row + tokens_allocated(p) * token

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch's scaled_dot_product_attention, which shares key heads by itself."""
        return _sdpa(p, ctx, grouped=False)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        cache = kernel.inputs["cache"]
        error, how = compare_decode(
            kernel.inputs["q"], result, cache.sequence, cache.lengths, int(p["kv_heads"])
        )
        return error, tolerance(str(p["dtype"])), how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: a shorter context, for fewer sequences."""
        if int(p["kv_len"]) <= size:
            return None
        batch = max(1 if p["lengths"] == "equal" else 2, min(int(p["batch"]), 8))
        window, splits = (min(int(p[name]), size) for name in ("window", "splits"))
        return {**p, "batch": batch, "kv_len": size, "window": window, "splits": min(splits, window or size)}


def _reach(cache: Cache, longest: int) -> tuple[Any, Any, Any]:
    """Keys and values of a contiguous cache, cut to what is in reach where that is the same for all sequences, and
    else the mask ``[batch, 1, 1, longest]`` over all of them."""
    if cache.equal:
        begin = cache.begins[0]
        return cache.k[:, :, begin:], cache.v[:, :, begin:], None
    return cache.k, cache.v, cache.mask(0, longest)


def _sdpa(p: ParamValues, ctx: BuildContext, *, grouped: bool) -> Kernel:
    cache, q = make_cache(p, ctx), queries_of(p, ctx)
    k, v, mask = _reach(cache, int(p["kv_len"]))
    return kernel_of(q, cache, attention(q, lambda: (k, v), mask, grouped=grouped))


def attention(q: Any, keys: Callable[[], tuple[Any, Any]], mask: Any, *, grouped: bool) -> Callable[[], Any]:
    """torch's scaled_dot_product_attention of one token, on the backend that torch chooses.

    Args:
        q: ``[batch, heads, d]``.
        keys: gives K and V, ``[batch, kv_heads, tokens, d]``, in any format; called anew each time.
        mask: ``[batch, 1, 1, tokens]``, bool, or ``None``.
        grouped: query heads that share a key head are passed as so many rows of one head: the key head is then read
            once for all of them. Otherwise torch is told that heads are shared, and does as it does.

    Returns:
        A call that gives ``[batch, heads, d]``.
    """
    from torch.nn.functional import scaled_dot_product_attention

    force(ANY)
    batch, heads, d = q.shape
    kv_heads = keys()[0].shape[1]
    options: dict[str, Any] = {} if mask is None else {"attn_mask": mask}
    if grouped:
        rows = q.view(batch, kv_heads, heads // kv_heads, d)
    else:
        rows = q.view(batch, heads, 1, d)
        options |= {"enable_gqa": True} if heads != kv_heads else {}

    def call() -> Any:
        k, v = keys()
        if k.dtype != q.dtype:
            k, v = k.to(q.dtype), v.to(q.dtype)
        return scaled_dot_product_attention(rows, k, v, **options).reshape(batch, heads, -1)

    return call


@implementation("attention.decode", "naive", requires=(CONTIGUOUS, UNSPLIT))
def naive(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Attention as it is defined: scores, mask, softmax and weighted sum, each written to memory."""
    cache, q = make_cache(p, ctx), queries_of(p, ctx)
    batch, heads, d = q.shape
    k, v, mask = _reach(cache, int(p["kv_len"]))
    seen = None if mask is None else mask[:, None]
    scale = 1.0 / sqrt(d)

    def call() -> Any:
        keys, values = (k, v) if k.dtype == q.dtype else (k.to(q.dtype), v.to(q.dtype))
        return attend_naively(q.view(batch, heads, 1, d), keys, values, seen, scale).view(batch, heads, d)

    return kernel_of(q, cache, call)


@implementation("attention.decode", "sdpa_grouped", requires=(torch_at_least(2, 5), CONTIGUOUS, UNSPLIT))
def sdpa_grouped(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The same, with query heads that share a key head as rows of one head."""
    return _sdpa(p, ctx, grouped=True)


@implementation(
    "attention.decode", "split_kv",
    requires=(
        CONTIGUOUS, SAME,
        never(lambda p, m: int(p["splits"]) == 0, "splits",
              "no number of splits is given: it makes as many parts as it is told"),
        never(lambda p, m: p["lengths"] != "equal" or int(p["window"]) > 0 or int(p["kv_len"]) % int(p["splits"]) > 0,
              "split_shape", "parts are no equal views of the cache: splits must divide kv_len, lengths be equal, and "
              "no window be set"),
    ),
)  # fmt: skip
def split_kv(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Plain matrix products over parts of the context at once, merged by their log-sum-exp."""
    import torch

    cache, q = make_cache(p, ctx), queries_of(p, ctx)
    batch, heads, d = q.shape
    kv_heads, splits = cache.kv_heads, int(p["splits"])
    group, part = heads // kv_heads, int(p["kv_len"]) // splits
    # A part of a key head is a head of its own: views all of them.
    k = cache.k.view(batch, kv_heads, splits, part, d)
    v = cache.v.view(batch, kv_heads, splits, part, d)
    high = torch.float64 if q.dtype == torch.float64 else torch.float32
    scale = 1.0 / sqrt(d)

    def call() -> Any:
        rows = (q * scale).view(batch, kv_heads, 1, group, d).expand(-1, -1, splits, -1, -1)
        scores = torch.matmul(rows, k.transpose(-1, -2)).to(high)
        lses = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - lses.unsqueeze(-1)).to(q.dtype)
        outs = torch.matmul(weights, v)
        return merge_stacked(outs.movedim(2, 0), lses.movedim(2, 0))[0].reshape(batch, heads, d)

    return kernel_of(q, cache, call, splits=splits)


@implementation("attention.decode", "paged_gather", requires=(torch_at_least(2, 5), PAGED, UNSPLIT))
def paged_gather(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Pages copied together by the block table, then torch's attention, query heads grouped."""
    import torch

    cache, q = make_cache(p, ctx), queries_of(p, ctx)
    page, kv_heads, d = cache.page_size, cache.kv_heads, int(p["head_dim"])
    batch, longest = len(cache.lengths), max(cache.lengths)
    first = min(cache.begins) // page
    last = -(-longest // page)
    table = cache.table[:, first:last].long()
    # Rows of [pages * kv_heads, page * d]: one copy puts them where attention wants them.
    heads = torch.arange(kv_heads, device=table.device)[None, :, None]
    index = (table[:, None, :] * kv_heads + heads).flatten()
    flat = [_bits(t).view(t.shape[0] * kv_heads, page * d) for t in (cache.k, cache.v)]
    stored = cache.k.dtype
    cut, mask = slice(0, (last - first) * page), None
    if cache.equal:
        cut = slice(cache.begins[0] - first * page, longest - first * page)
    else:
        mask = cache.mask(first * page, (last - first) * page)

    def keys() -> tuple[Any, Any]:
        k, v = (t.index_select(0, index).view(stored).view(batch, kv_heads, -1, d)[:, :, cut] for t in flat)
        return k, v

    gathered = index.numel() * page * d * 2 * cache.k.element_size()
    call = attention(q, keys, mask, grouped=True)
    return kernel_of(q, cache, call, gathered_bytes=gathered, index_bytes=index.numel() * index.element_size())


def _bits(tensor: Any) -> Any:
    """As whole numbers where the format is too narrow for torch to copy by index."""
    import torch

    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


@implementation(
    "attention.decode", "numba",
    requires=(
        module("numba"),
        never(lambda p, m: m.kind != "cpu", "cpu_only", "the device is no CPU: Numba compiles it for CPUs only"),
        never(lambda p, m: "fp16" in (p["dtype"], p["kv_dtype"]), "no_kernel",
              "a format is fp16, which Numba has not on a CPU"),
        never(lambda p, m: p["dtype"] == "fp64" and p["kv_dtype"] not in ("same", "fp32"), "no_kernel",
              "keys are narrow and dtype is fp64: it turns narrow formats into single precision"),
    ),
)  # fmt: skip
def numba(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Own CPU kernel compiled by Numba: contiguous or paged, nothing gathered, evenly cut whatever the lengths."""
    from wattline.suites.attention.decode_numba import decoder

    cache, q = make_cache(p, ctx), queries_of(p, ctx)
    call, seconds, pieces = decoder(q, cache, format_of(p), int(p["splits"]))
    return kernel_of(q, cache, call, compile_s=seconds, pieces=pieces)


@implementation(
    "attention.decode", "flash_attn",
    requires=(
        module("flash_attn"), CUDA, HALF, SAME,
        never(lambda p, m: int(p["head_dim"]) > 256, "head_dim",
              "head_dim is above 256, the most that flash-attn takes"),
        never(lambda p, m: int(p["page_size"]) % 256 > 0, "page_size", "page_size is no multiple of 256, as flash-attn "
              "wants it"),
    ),
)  # fmt: skip
def flash_attn(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The flash-attn package's flash_attn_with_kvcache, where it is installed: contiguous or paged."""
    from importlib import import_module

    import torch

    attend = import_module("flash_attn").flash_attn_with_kvcache
    cache, q = make_cache(p, ctx), queries_of(p, ctx)
    lengths = torch.tensor(cache.lengths, dtype=torch.int32, device=cache.device)
    # It wants tokens before heads, at any stride; its causal mask is aligned to the end of each sequence.
    k, v = cache.k.transpose(1, 2), cache.v.transpose(1, 2)
    reach = (cache.window - 1, 0) if cache.window else (-1, -1)

    def call() -> Any:
        out = attend(
            q.unsqueeze(1), k, v, cache_seqlens=lengths, block_table=cache.table, causal=True, window_size=reach,
            num_splits=int(p["splits"]),
        )  # fmt: skip
        return out.squeeze(1)

    return kernel_of(q, cache, call)


@implementation(
    "attention.decode", "flashinfer",
    requires=(
        module("flashinfer"), CUDA, HALF, PAGED, UNSPLIT,
        never(lambda p, m: p["kv_dtype"] == "fp32", "kv_dtype", "keys are wider than queries"),
        never(lambda p, m: int(p["head_dim"]) not in (64, 128, 256), "head_dim",
              "head_dim is not one of 64, 128 and 256, which FlashInfer takes"),
    ),
)  # fmt: skip
def flashinfer(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The FlashInfer package's decoding over pages, planned before it is timed, where it is installed."""
    from importlib import import_module

    import torch

    library = import_module("flashinfer")
    cache, q = make_cache(p, ctx), queries_of(p, ctx)
    page, device = cache.page_size, cache.device
    counts = torch.tensor([-(-n // page) for n in cache.lengths], dtype=torch.int32)
    pointers = torch.zeros(len(counts) + 1, dtype=torch.int32)
    pointers[1:] = counts.cumsum(0)
    pages = torch.cat([cache.table[b, :n] for b, n in enumerate(counts.tolist())])
    last = torch.tensor([(n - 1) % page + 1 for n in cache.lengths], dtype=torch.int32, device=device)
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device=device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    wrapper.plan(
        pointers.to(device), pages, last, int(p["heads"]), cache.kv_heads, int(p["head_dim"]), page,
        window_left=cache.window - 1 if cache.window else -1, q_data_type=q.dtype, kv_data_type=cache.k.dtype,
    )  # fmt: skip
    kernel = kernel_of(q, cache, lambda: wrapper.run(q, (cache.k, cache.v)))
    kernel.extra_bytes = workspace.numel()
    return kernel
