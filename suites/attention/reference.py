"""Is attention right? Comparison with double precision, whole for small cases and on sampled rows for long ones.

Inputs are taken as rounded to their format, so that only the attention itself is judged.
"""

from __future__ import annotations

from math import isfinite, nan, sqrt
from typing import Any

from wattline.formats import number_format
from wattline.suites.attention.masks import Mask
from wattline.suites.sampled import spread

FULL_PAIRS = 2**22
"""Query-key pairs, over all heads, up to which every row is compared: about 30 MB of scores in double precision."""
ROWS, HEADS, BATCHES = 48, 4, 2

FACTOR = 2.0
"""On the tolerance of the format: an implementation rounds the weights of the softmax and the result, both once."""


def tolerance(dtype: str) -> float:
    """Largest ``||out - ref|| / ||ref||`` of a correct implementation with inputs in ``dtype``."""
    return FACTOR * number_format(dtype).tolerance


def attend_rows(q: Any, k: Any, v: Any, seen: Any, scale: float) -> tuple[Any, Any]:
    """Attention of some queries of one head, in double precision.

    Args:
        q: ``[r, d_qk]``.
        k: ``[kv_len, d_qk]``.
        v: ``[kv_len, d_v]``.
        seen: ``[r, kv_len]``, bool.
        scale: on the scores.

    Returns:
        The outputs ``[r, d_v]`` and the log-sum-exp of the scores ``[r]``; a query that sees no key gives zeros and
        minus infinity.
    """
    import torch

    scores = (q.double() @ k.double().T * scale).masked_fill(~seen, -torch.inf)
    largest = scores.amax(dim=1, keepdim=True).nan_to_num(neginf=0.0)
    weights = torch.exp(scores - largest)
    total = weights.sum(dim=1, keepdim=True)
    out = (weights @ v.double()) / total.clamp_min(torch.finfo(torch.float64).tiny)
    return out, (largest + torch.log(total))[:, 0]


def compare(q: Any, k: Any, v: Any, out: Any, mask: Mask, *, scale: float | None = None) -> tuple[float, str]:
    """Error of attention outputs, and how it was found.

    Args:
        q: ``[batch, heads, q_len, d_qk]``.
        k: ``[batch, kv_heads, kv_len, d_qk]``; ``heads / kv_heads`` successive query heads share one.
        v: ``[batch, kv_heads, kv_len, d_v]``.
        out: ``[batch, heads, q_len, d_v]``.
        mask: which keys a query sees.
        scale: on the scores; ``None``: ``1 / sqrt(d_qk)``.

    Returns:
        The error in norm relative to the reference, the largest over the heads looked at; NaN where ``out`` holds
        a NaN or an infinity, or has the wrong shape.
    """
    import torch

    batch, heads, q_len, d = q.shape
    kv_heads, kv_len = k.shape[1], k.shape[2]
    wanted = (batch, heads, q_len, v.shape[3])
    if tuple(out.shape) != wanted:
        return nan, f"shape {tuple(out.shape)} instead of {wanted}"
    if not bool(torch.isfinite(out).all()):
        return nan, "full"
    scale = scale if scale is not None else 1.0 / sqrt(d)
    full = batch * heads * q_len * kv_len <= FULL_PAIRS
    batches = spread(batch, batch if full else BATCHES)
    some_heads = spread(heads, heads if full else HEADS)
    rows = torch.tensor(spread(q_len, q_len if full else ROWS), device=q.device)
    seen = mask.visible(rows)
    worst = 0.0
    for b in batches:
        for h in some_heads:
            shared = h // (heads // kv_heads)
            ref, _ = attend_rows(q[b, h][rows], k[b, shared], v[b, shared], seen, scale)
            worst = max(worst, relative_error(out[b, h][rows], ref))
    how = "full" if full else f"{len(rows)} rows of {len(some_heads)} heads of {len(batches)} sequences"
    return worst, how


def relative_error(out: Any, ref: Any, cancelled: Any | None = None) -> float:
    """``||out - ref|| / ||ref||`` in double precision; NaN where either is not finite.

    Args:
        out: the result.
        ref: what it should be.
        cancelled: where ``ref`` is a difference, what is subtracted: its rounding stays where the difference vanishes,
            so the error is relative to the larger of the two.
    """
    import torch

    size = float(torch.linalg.vector_norm(ref.double()))
    if cancelled is not None:
        size = max(size, float(torch.linalg.vector_norm(cancelled)))
    distance = float(torch.linalg.vector_norm(out.double() - ref.double()))
    if not (isfinite(size) and isfinite(distance)):
        return nan
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def compare_gradients(
    inputs: tuple[Any, Any, Any], d_out: Any, found: tuple[Any, Any, Any], mask: Mask, *, scale: float | None = None
) -> tuple[float, str]:
    """Error of the gradients with respect to Q, K and V: the largest over the heads looked at.

    With P the weights, dP = dO V^T and D = rowsum(P * dP): dS = P * (dP - D), dQ = dS K scale, dK = dS^T Q scale,
    dV = P^T dO (Dao et al., FlashAttention, arXiv:2205.14135, appendix B.2). Heads that share a key head add up.

    Args:
        inputs: Q, K and V as for :func:`compare`, as are ``mask`` and ``scale``.
        d_out: gradient of the output ``[batch, heads, q_len, d_v]``.
        found: gradients in the shapes of the inputs.
    """
    import torch

    q, k, v = inputs
    if not all(bool(torch.isfinite(g).all()) for g in found):
        return nan, "full"
    batch, heads, q_len, d = q.shape
    kv_heads, kv_len = k.shape[1], k.shape[2]
    group = heads // kv_heads
    scale = scale if scale is not None else 1.0 / sqrt(d)
    full = batch * heads * q_len * kv_len <= FULL_PAIRS
    batches, shared_heads = spread(batch, batch if full else 1), spread(kv_heads, kv_heads if full else 1)
    step = max(1, FULL_PAIRS // kv_len)
    worst = 0.0
    for b in batches:
        for s in shared_heads:
            keys, values = k[b, s].double(), v[b, s].double()
            d_k, d_v = torch.zeros_like(keys), torch.zeros_like(values)
            k_lost = torch.zeros_like(keys)
            for h in range(s * group, (s + 1) * group):
                parts, lost = [], []
                for begin in range(0, q_len, step):
                    rows = torch.arange(begin, min(begin + step, q_len), device=q.device)
                    queries, grad = q[b, h][rows].double(), d_out[b, h][rows].double()
                    scores = (queries @ keys.T * scale).masked_fill(~mask.visible(rows), -torch.inf)
                    p = torch.softmax(scores, dim=1).nan_to_num(0.0)
                    d_p = grad @ values.T
                    mean = p * (p * d_p).sum(dim=1, keepdim=True)
                    d_s = p * d_p - mean
                    parts.append(d_s @ keys * scale)
                    lost.append(mean @ keys * scale)
                    d_k += d_s.T @ queries * scale
                    k_lost += mean.T @ queries * scale
                    d_v += p.T @ grad
                worst = max(worst, relative_error(found[0][b, h], torch.cat(parts), torch.cat(lost)))
            worst = max(worst, relative_error(found[1][b, s], d_k, k_lost), relative_error(found[2][b, s], d_v))
    return worst, "full" if full else f"{group} heads of 1 sequence"
