"""Linear attention in three forms: quadratic, cumulative sums, and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import nan
from typing import Any

from wattline.params import Choice, Constraint, DType, Float, Int, Params, Value
from wattline.suites.attention.prefill import FORMAT_RULE
from wattline.suites.attention.reference import FULL_PAIRS, HEADS, ROWS, relative_error, tolerance
from wattline.suites.attention.shapes import Sizes, sizes_of
from wattline.suites.compiled import compiled, compiler
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import never
from wattline.suites.sampled import spread
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

FACTOR = 3.0
"""On the tolerance: sums over all tokens, of rounded products."""


def decays(decay: float, heads: int, like: Any) -> Any:
    """The decay of each head ``[heads, 1, 1]``: the first has ``decay``, further ones forget less and less, down to an
    eighth of its rate (as in RetNet, Sun et al., arXiv:2307.08621, heads differ in reach)."""
    import torch

    rates = torch.linspace(1.0, 0.125, heads, dtype=torch.float64, device=like.device)
    return (torch.tensor(decay, dtype=torch.float64) ** rates)[:, None, None]


def quadratic(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """All scores at once: ``((Q K^T) * M) V`` with ``M_ij = decay^(i - j)`` for ``j <= i``.

    Args:
        q, k, v: ``[batch, heads, length, d]``.
        mask: ``M``, ``[heads, length, length]``.
    """
    return (q @ k.transpose(2, 3) * mask) @ v


def cumulative(q: Any, k: Any, v: Any) -> Any:
    """All states at once: every ``k_i v_i^T`` is written out and summed along the tokens. Without decay only; arguments
    as for :func:`quadratic`."""
    states = (k[..., :, None] * v[..., None, :]).cumsum(dim=2)
    return (q[..., None, :] @ states)[..., 0, :]


def blocked(q: Any, k: Any, v: Any, factors: list[tuple[Any, Any, Any, Any]]) -> Any:
    """Blocks of tokens: the quadratic form within each, a running state between them.

    Args:
        q, k, v: as for :func:`quadratic`.
        factors: of every block in turn, from :func:`block_factors`.
    """
    import torch

    wide = torch.promote_types(q.dtype, torch.float32)
    state = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=wide, device=q.device)
    begin, out = 0, []
    for mask, into, outof, across in factors:
        part = slice(begin, begin + mask.shape[-1])
        begin = part.stop
        qs, ks, vs = q[:, :, part], k[:, :, part], v[:, :, part]
        out.append((qs @ ks.transpose(2, 3) * mask) @ vs + (qs * into) @ state.to(q.dtype))
        state = state * across + ((ks * outof).transpose(2, 3) @ vs).to(wide)
    return torch.cat(out, dim=2)


def block_factors(length: int, block: int, decay: Any, like: Any) -> list[tuple[Any, Any, Any, Any]]:
    """What each block multiplies: scores, queries before the state, keys into the state, and the state itself."""
    import torch

    wide = torch.promote_types(like.dtype, torch.float32)

    def of(size: int) -> tuple[Any, Any, Any, Any]:
        steps = torch.arange(size, dtype=torch.float64, device=like.device)[:, None]
        into, outof = decay ** (steps + 1), decay ** (size - 1 - steps)
        return _mask(size, decay, like), into.to(like.dtype), outof.to(like.dtype), (decay**size).to(wide)

    blocks, rest = divmod(length, block)
    return [of(block)] * blocks + ([of(rest)] if rest else [])


def _mask(length: int, decay: Any, like: Any) -> Any:
    import torch

    i = torch.arange(length, dtype=torch.float64, device=like.device)
    steps = i[:, None] - i[None, :]
    return torch.where(steps >= 0, decay ** steps.clamp_min(0), 0.0).to(like.dtype)


def inputs_of(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Q, K and V ``[batch, heads, length, head_dim]``; K scaled so that sums over the tokens stay small."""
    shape = tuple(int(p[name]) for name in ("batch", "heads", "length", "head_dim"))
    inputs = {name: ctx.tensor(shape, str(p["dtype"])) for name in ("q", "k", "v")}
    inputs["k"] *= shape[3] ** -0.5
    inputs["decay"] = decays(float(p["decay"]), shape[1], inputs["q"])
    return inputs


def kernel_of(
    p: ParamValues, ctx: BuildContext, inputs: dict[str, Any], form: Callable[[Any, Any, Any], Any]
) -> Kernel:
    """The kernel of one form and direction."""
    import torch

    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    if p["direction"] == "forward":
        return Kernel(lambda: form(q, k, v), inputs)
    for tensor in (q, k, v):
        tensor.requires_grad_()
    with torch.enable_grad():
        out = form(q, k, v)
    d_out = inputs["d_out"] = ctx.tensor(tuple(out.shape), str(p["dtype"]))
    return Kernel(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True), inputs)


def lengths(
    length: Sizes = "256:8192:x2", batch: Sizes = 1, heads: Sizes = 8, head_dim: Sizes = 64
) -> Iterator[dict[str, Any]]:
    """The product of what is given.

    Args:
        length: tokens.
        batch: sequences.
        heads: heads.
        head_dim: width of a head.
    """
    for d in sizes_of(head_dim):
        for h in sizes_of(heads):
            for b in sizes_of(batch):
                for n in sizes_of(length):
                    yield {"batch": b, "heads": h, "length": n, "head_dim": d}


def random(
    count: int = 12, *, seed: int = 0, lo: int = 32, hi: int = 8192, max_tokens: int = 32768
) -> Iterator[dict[str, Any]]:
    """Points spread log-uniformly, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most tokens.
        max_tokens: points with more tokens over all sequences and heads are passed over.
    """
    found = 0
    for u in points(4, seed=seed):
        batch, n = round(log_uniform(u[0], 1, 8)), round(log_uniform(u[1], lo, hi))
        heads, d = round(log_uniform(u[2], 1, 32)), (32, 64, 128)[int(3 * u[3])]
        if batch * heads * n <= max_tokens:
            yield {"batch": batch, "heads": heads, "length": n, "head_dim": d}
            found += 1
        if found >= count:
            return


SOURCES: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"lengths": lengths, "random": random}


@workload("attention.linear", impl="quadratic")
class LinearAttention(Workload):
    """Causal attention without softmax, whose state does not grow with the tokens."""

    params = Params(
        FORMAT_RULE,
        Constraint("decay is above 0 and at most 1", lambda p: 0 < float(p["decay"]) <= 1),
        batch=Int(1, doc="sequences"),
        length=Int(doc="tokens of each sequence"),
        heads=Int(doc="heads"),
        head_dim=Int(doc="width of a head"),
        block=Int(64, doc="tokens of a block, for the form in blocks"),
        decay=Float(1.0, doc="what the first head keeps of the past at each token; 1: all"),
        dtype=DType(doc="number format of Q, K, V and O"),
        direction=Choice("forward", "backward", doc="backward: gradients of Q, K and V, the forward pass done before"),
    )  # fmt: skip
    shape_sources = SOURCES
    tracks_memory = True

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: all scores at once."""
        inputs = inputs_of(p, ctx)
        mask = _mask(int(p["length"]), inputs["decay"], inputs["q"])
        return kernel_of(p, ctx, inputs, lambda q, k, v: quadratic(q, k, v, mask))

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: the sums written out, in double precision, for some tokens of some heads."""
        import torch

        found = result if isinstance(result, tuple) else (result,)
        allowed = FACTOR * tolerance(str(p["dtype"])) * (2 if len(found) == 3 else 1)
        q, k, v = (kernel.inputs[name].detach() for name in ("q", "k", "v"))
        batch, heads, length, _ = q.shape
        if any(g.shape != q.shape or not bool(torch.isfinite(g).all()) for g in found):
            return nan, allowed, "full"
        full = batch * heads * length * length <= FULL_PAIRS
        rows = torch.tensor(spread(length, length if full else ROWS), device=q.device)
        picked = [(b, h) for b in spread(batch, batch if full else 1) for h in spread(heads, heads if full else HEADS)]
        worst = 0.0
        for b, h in picked:
            q1, k1, v1 = (t[b, h].double() for t in (q, k, v))
            grad = kernel.inputs["d_out"][b, h].double() if len(found) == 3 else None
            refs = _reference(q1, k1, v1, grad, decay=kernel.inputs["decay"][h], rows=rows)
            worst = max([worst, *(relative_error(g[b, h][rows], ref) for g, ref in zip(found, refs, strict=True))])
        return worst, allowed, "full" if full else f"{len(rows)} tokens of {len(picked)} heads"

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`."""
        return None if int(p["length"]) <= size else {**p, "length": size}


def _reference(q: Any, k: Any, v: Any, d_out: Any, *, decay: Any, rows: Any) -> tuple[Any, ...]:
    """Output, or gradients of q, k and v, at some tokens of one head, from the sums that define them.

    With ``w_ij = decay^(i - j)`` for ``j <= i``: ``dq_i = sum_j w_ij (dO_i v_j) k_j``, ``dk_j = sum_i w_ij (dO_i v_j)
    q_i``, ``dv_j = sum_i w_ij (q_i k_j) dO_i``.
    """
    import torch

    steps = rows[:, None] - torch.arange(len(q), device=q.device)[None, :]
    past = torch.where(steps >= 0, decay.view(()) ** steps.clamp_min(0), 0.0)
    if d_out is None:
        return ((q[rows] @ k.T * past) @ v,)
    future = torch.where(steps <= 0, decay.view(()) ** (-steps).clamp_min(0), 0.0)
    d_q = (d_out[rows] @ v.T * past) @ k
    d_k = (v[rows] @ d_out.T * future) @ q
    d_v = (k[rows] @ q.T * future) @ d_out
    return d_q, d_k, d_v


@implementation(
    "attention.linear", "cumsum",
    requires=(never(lambda p, m: p["decay"] != 1, "decay", "plain cumulative sums have no decay"),),
)  # fmt: skip
def cumsum(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Cumulative sums over all tokens of the products of keys and values: one matrix for each token is written."""
    return kernel_of(p, ctx, inputs_of(p, ctx), cumulative)


@implementation("attention.linear", "block")
def block_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Blocks: quadratic within, a running state between them (intra- and inter-block)."""
    inputs = inputs_of(p, ctx)
    factors = block_factors(int(p["length"]), int(p["block"]), inputs["decay"], inputs["q"])
    return kernel_of(p, ctx, inputs, lambda q, k, v: blocked(q, k, v, factors))


@implementation("attention.linear", "compile", requires=(compiler(),))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The quadratic form through torch.compile."""
    import torch

    inputs = inputs_of(p, ctx)
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    mask = _mask(int(p["length"]), inputs["decay"], q)
    backward = p["direction"] == "backward"
    for tensor in (q, k, v):
        tensor.requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        ready, seconds = compiled(quadratic, q, k, v, mask)
    kernel = kernel_of(p, ctx, inputs, lambda q, k, v: ready(q, k, v, mask))
    kernel.facts["compile_s"] = seconds
    return kernel
