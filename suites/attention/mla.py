"""Multi-head latent attention: a cache of latents that all heads share, read as they are or expanded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite, nan, sqrt
from typing import Any

from wattline.errors import ParamError, UsageError
from wattline.formats import number_format
from wattline.params import Constraint, DType, Int, Params, Value
from wattline.suites.attention.masks import Mask
from wattline.suites.attention.prefill import FORMAT_RULE
from wattline.suites.attention.reference import FULL_PAIRS, attend_rows, relative_error
from wattline.suites.attention.sdpa import ANY, attend, bias_of
from wattline.suites.attention.shapes import Sizes, sizes_of
from wattline.suites.compiled import compiled, compiler
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import torch_at_least
from wattline.suites.sampled import spread
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

FACTOR = 3.0
"""On the tolerance of the format: queries or keys, weights of the softmax and the result are rounded in turn."""

ROWS, HEADS, SEQUENCES = 16, 4, 2
"""Queries, heads and sequences that are compared where there are too many to compare all."""

LENGTH_RULE = Constraint(
    "q_len is at most kv_len: the queries are the last tokens of the context",
    lambda p: int(p["q_len"]) <= int(p["kv_len"]),
)


def sliced(models: Sequence[str] | str = "deepseek-v3", tp: int = 1) -> Iterator[dict[str, int]]:
    """Heads and ranks of public models on one of ``tp`` tensor-parallel ranks: heads are dealt out, latents are not.

    Raises:
        UnknownNameError: no such model.
        UsageError: it has no latent attention, or its heads are no multiple of ``tp``.
    """
    from wattline.suites.models import get_model

    for name in (models,) if isinstance(models, str) else models:
        model = get_model(name)
        if not model.kv_rank:
            raise UsageError(f"{name} has no latent attention", todo="measure it as attention.decode or .prefill")
        if tp < 1 or model.heads % tp:
            raise UsageError(
                f"{name} cannot be sliced {tp} ways", why=f"it has {model.heads} heads",
                todo="choose a degree that divides them",
            )  # fmt: skip
        yield {
            "heads": model.heads // tp, "kv_rank": model.kv_rank, "rope_dim": model.rope_dim,
            "nope_dim": model.nope_dim, "v_dim": model.v_dim,
        }  # fmt: skip


def tokens(
    models: Sequence[str] | str = "deepseek-v3", contexts: Sizes = "128:16384:x2", batch: Sizes = 1, q_len: Sizes = 1,
    tp: Sizes = 1,
) -> Iterator[dict[str, int]]:  # fmt: skip
    """The last ``q_len`` tokens of contexts of public models, as far as contexts have so many.

    Args:
        models: names in the model table.
        contexts: tokens in the cache.
        batch: sequences.
        q_len: queries; 0: as many as the context has tokens.
        tp: tensor-parallel degrees.
    """
    for degree in sizes_of(tp):
        for shape in sliced(models, degree):
            for many in sizes_of(batch):
                for length in sizes_of(contexts):
                    for queries in sizes_of(q_len):
                        if queries <= length:
                            yield {**shape, "batch": many, "kv_len": length, "q_len": queries or length}


def random(
    count: int = 16, *, seed: int = 0, lo: int = 16, hi: int = 4096, heads: Sizes = "8,16,32,64", max_batch: int = 4,
    max_flops: float = 4e9,
) -> Iterator[dict[str, int]]:  # fmt: skip
    """Points spread log-uniformly over lengths, queries and batch, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most tokens of a context.
        heads: to choose from; ranks and widths are those of DeepSeek-V3.
        max_batch: most sequences.
        max_flops: points whose dearer form takes more are passed over.

    Raises:
        ParamError: limits that hardly a point meets.
    """
    from wattline.workmodels import work_of

    numbers, found = sizes_of(heads), 0
    for u in points(4, 1000 * count, seed=seed):
        length = round(log_uniform(u[1], lo, hi))
        shape = {
            "batch": round(log_uniform(u[0], 1, max_batch)), "kv_len": length,
            "q_len": round(log_uniform(u[2], 1, length)), "heads": numbers[int(u[3] * len(numbers))],
        }  # fmt: skip
        details = work_of("attention.mla", {**shape, "dtype": "fp32"}).details
        if max(details["absorbed_flops"], details["expanded_flops"]) > max_flops:
            continue
        yield shape
        found += 1
        if found == count:
            return
    raise ParamError(f"found only {found} of {count} random shapes within the limits", todo="raise max_flops")


SOURCES: Mapping[str, Callable[..., Iterator[dict[str, int]]]] = {"tokens": tokens, "random": random}


def inputs_of(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """The tensors of a case.

    Returns:
        ``q`` ``[batch, heads, q_len, nope_dim + rope_dim]``, whose last part carries positions; ``latents`` ``[batch,
        kv_len, kv_rank + rope_dim]``, whose last part is the rotary key that all heads share; ``w_uk`` ``[heads,
        nope_dim, kv_rank]`` and ``w_uv`` ``[heads, v_dim, kv_rank]``, the up-projections, scaled by
        ``kv_rank ** -0.5`` so that keys are as large as latents.
    """
    batch, q_len, kv_len, heads = (int(p[name]) for name in ("batch", "q_len", "kv_len", "heads"))
    rank, rope, nope, v = (int(p[name]) for name in ("kv_rank", "rope_dim", "nope_dim", "v_dim"))
    dtype = str(p["dtype"])
    return {
        "q": ctx.tensor((batch, heads, q_len, nope + rope), dtype),
        "latents": ctx.tensor((batch, kv_len, rank + rope), dtype),
        "w_uk": ctx.tensor((heads, nope, rank), dtype).mul_(rank**-0.5),
        "w_uv": ctx.tensor((heads, v, rank), dtype).mul_(rank**-0.5),
    }


def scale_of(p: ParamValues) -> float:
    """On the scores: of the width that keys have, whichever form is computed."""
    return 1.0 / sqrt(int(p["nope_dim"]) + int(p["rope_dim"]))


def mask_of(p: ParamValues) -> Mask:
    """Causal; the queries are the last tokens."""
    return Mask(int(p["q_len"]), int(p["kv_len"]))


def absorb(q: Any, w_uk: Any) -> Any:
    """Queries in the space of latents: ``[batch, heads, q_len, kv_rank + rope_dim]``."""
    import torch

    nope = w_uk.shape[1]
    # A sum by heads: a broadcast product would copy the weights for every sequence.
    return torch.cat([torch.einsum("bhqn,hnr->bhqr", q[..., :nope], w_uk), q[..., nope:]], dim=-1)


def release(out: Any, w_uv: Any) -> Any:
    """Results out of the space of latents: ``[batch, heads, q_len, v_dim]``."""
    import torch

    return torch.einsum("bhqr,hvr->bhqv", out, w_uv)


def expand(latents: Any, w_uk: Any, w_uv: Any) -> tuple[Any, Any]:
    """Keys and values of all heads, ``[batch, heads, kv_len, nope_dim + rope_dim]`` and ``[..., v_dim]``."""
    import torch

    batch, kv_len, _ = latents.shape
    heads, nope, rank = w_uk.shape
    # One product for all heads, since they share the latents; heads then lie side by side in each token.
    shared = latents[..., :rank]
    keys = torch.matmul(shared, w_uk.view(heads * nope, rank).T).view(batch, kv_len, heads, nope)
    rotary = latents[:, :, None, rank:].expand(-1, -1, heads, -1)
    values = torch.matmul(shared, w_uv.view(-1, rank).T).view(batch, kv_len, heads, -1)
    return torch.cat([keys, rotary], dim=-1).transpose(1, 2), values.transpose(1, 2)


def absorbed_form(  # noqa: PLR0917 - tensors, then what is constant
    q: Any, latents: Any, w_uk: Any, w_uv: Any, seen: Any, scale: float
) -> Any:
    """The absorbed form in plain operations: one key head, whose rows are all heads' queries."""
    import torch

    batch, heads, q_len, _ = q.shape
    rank = w_uk.shape[2]
    rows = (absorb(q, w_uk) * scale).reshape(batch, heads * q_len, -1)
    scores = torch.matmul(rows, latents.transpose(1, 2))
    if seen is not None:
        scores = scores.view(batch, heads, q_len, -1).masked_fill(~seen, -torch.inf).view(batch, heads * q_len, -1)
    weights = torch.softmax(scores, dim=-1)
    out = torch.matmul(weights, latents[..., :rank])
    return release(out.view(batch, heads, q_len, rank), w_uv)


@workload("attention.mla", impl="absorbed", requires=())
class LatentAttention(Workload):
    """Multi-head latent attention of DeepSeek-V2 and V3, from queries and cached latents to results of heads.

    A head's key is made from the latent of a token (and a rotary part that all heads share), and so is its value:
    ``expanded`` makes them, ``absorbed`` takes queries to the latents instead. ``q_len`` of 1 is decoding.
    """

    params = Params(
        FORMAT_RULE, LENGTH_RULE,
        batch=Int(1, doc="sequences"),
        q_len=Int(1, doc="queries: the last tokens of the context"),
        kv_len=Int(doc="tokens in the cache"),
        heads=Int(128, doc="query heads"),
        kv_rank=Int(512, doc="width of a latent"),
        rope_dim=Int(64, doc="width of the rotary part, one for all heads"),
        nope_dim=Int(128, doc="width of a head's key without its rotary part"),
        v_dim=Int(128, doc="width of a head's value"),
        dtype=DType(doc="number format of everything"),
    )  # fmt: skip
    shape_sources = SOURCES
    tracks_memory = True

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: matrix products in the space of latents, softmax between."""
        i = inputs_of(p, ctx)
        mask = mask_of(p)
        seen = None if mask.trivial else mask.dense(ctx.torch_device)
        scale = scale_of(p)
        return kernel_of(p, i, lambda: absorbed_form(i["q"], i["latents"], i["w_uk"], i["w_uv"], seen, scale))

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: against the expanded form in double precision."""
        error, how = compare(p, kernel.inputs, result)
        return error, FACTOR * number_format(str(p["dtype"])).tolerance, how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: a shorter context."""
        if int(p["kv_len"]) <= size:
            return None
        return {**p, "kv_len": size, "q_len": max(1, int(p["q_len"]) * size // int(p["kv_len"]))}


def kernel_of(p: ParamValues, inputs: dict[str, Any], call: Callable[[], Any], **facts: Any) -> Kernel:
    """A kernel with the bytes of a token in its cache."""
    token = (int(p["kv_rank"]) + int(p["rope_dim"])) * inputs["latents"].element_size()
    return Kernel(call, inputs, facts={"token_bytes": token, **facts})


def compare(p: ParamValues, inputs: Mapping[str, Any], out: Any) -> tuple[float, str]:
    """Error of a result, the largest over the heads looked at, and how many they were."""
    import torch

    q, latents = inputs["q"], inputs["latents"]
    batch, heads, q_len, _ = q.shape
    kv_len, rank = latents.shape[1], int(p["kv_rank"])
    wanted = (batch, heads, q_len, int(p["v_dim"]))
    if tuple(out.shape) != wanted:
        return nan, f"shape {tuple(out.shape)} instead of {wanted}"
    if not bool(torch.isfinite(out).all()):
        return nan, "full"
    full = batch * heads * q_len * kv_len <= FULL_PAIRS and batch * heads * kv_len * rank <= 2**24
    rows = torch.tensor(spread(q_len, q_len if full else ROWS), device=q.device)
    seen = mask_of(p).visible(rows)
    some_batches, some_heads = spread(batch, batch if full else SEQUENCES), spread(heads, heads if full else HEADS)
    worst = 0.0
    for b in some_batches:
        own = latents[b].double()
        for h in some_heads:
            keys = torch.cat([own[:, :rank] @ inputs["w_uk"][h].double().T, own[:, rank:]], dim=1)
            values = own[:, :rank] @ inputs["w_uv"][h].double().T
            ref, _ = attend_rows(q[b, h][rows], keys, values, seen, scale_of(p))
            error = relative_error(out[b, h][rows], ref)
            if not isfinite(error):
                return nan, "full"
            worst = max(worst, error)
    how = "full" if full else f"{len(rows)} rows of {len(some_heads)} heads of {len(some_batches)} sequences"
    return worst, how


@implementation("attention.mla", "absorbed_sdpa", requires=(torch_at_least(2, 5),))
def absorbed_sdpa(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Queries taken to the latents, then torch's attention, for which latents are both keys and values."""
    i = inputs_of(p, ctx)
    mask, scale, rank = mask_of(p), scale_of(p), int(p["kv_rank"])
    batch, heads, q_len, _ = i["q"].shape
    # One head of keys, whose values are the keys themselves, rotary part included: kernels want one width. What comes
    # of that part is dropped. A single query needs no mask, and all heads are rows of the one head.
    latents = i["latents"][:, None]
    alone = q_len == 1
    shape = (batch, 1, heads, -1) if alone else (batch, heads, q_len, -1)
    seen = Mask(heads, int(p["kv_len"]), causal=False) if alone else mask

    def call() -> Any:
        rows = absorb(i["q"], i["w_uk"]).view(shape)
        out = run(rows, latents, latents)[..., :rank]
        return release(out.reshape(batch, heads, q_len, rank), i["w_uv"])

    run = _attending(absorb(i["q"], i["w_uk"]).view(shape), latents, latents, seen, scale)
    return kernel_of(p, i, call)


def _attending(q: Any, k: Any, v: Any, mask: Mask, scale: float) -> Callable[[Any, Any, Any], Any]:
    """torch's attention under a mask, of any queries, keys and values like these; tried once, so that it may refuse."""
    from torch.nn.functional import scaled_dot_product_attention

    attend(q, k, v, mask, ANY, scale=scale)
    options: dict[str, Any] = {"scale": scale, **bias_of(mask, q.device, ANY)}
    if q.shape[1] != k.shape[1]:
        options["enable_gqa"] = True
    return lambda queries, keys, values: scaled_dot_product_attention(queries, keys, values, **options)


@implementation("attention.mla", "expanded", requires=(torch_at_least(2, 5),))
def expanded(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Keys and values of all heads made from the latents, then torch's attention on a backend of its choice."""
    i = inputs_of(p, ctx)
    k, v = expand(i["latents"], i["w_uk"], i["w_uv"])
    run = _attending(i["q"], k, v, mask_of(p), scale_of(p))
    made = sum(t.numel() * t.element_size() for t in (k, v))
    del k, v

    def call() -> Any:
        return run(i["q"], *expand(i["latents"], i["w_uk"], i["w_uv"]))

    return kernel_of(p, i, call, expanded_bytes=made)


@implementation("attention.mla", "compile", requires=(torch_at_least(2, 5), compiler()))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The absorbed form in plain operations through torch.compile."""
    i = inputs_of(p, ctx)
    mask = mask_of(p)
    seen = None if mask.trivial else mask.dense(ctx.torch_device)
    example = (i["q"], i["latents"], i["w_uk"], i["w_uv"], seen, scale_of(p))
    ready, seconds = compiled(absorbed_form, *example)
    return kernel_of(p, i, lambda: ready(*example), compile_s=seconds)
