"""Attention over a part of the keys, and how the parts become the whole.

Of each part a query keeps its output ``o`` and the log-sum-exp ``l`` of its scores. Two parts merge into
``l = log(exp(l1) + exp(l2))`` and ``o = exp(l1 - l) o1 + exp(l2 - l) o2``: associative, and exact but for rounding
(Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wattline.errors import UnsupportedError


def merge_stacked(outs: Any, lses: Any) -> tuple[Any, Any]:
    """Merge all parts at once.

    Args:
        outs: ``[parts, ..., d]``.
        lses: ``[parts, ...]``, single precision or better; minus infinity for a query that saw no key of a part.

    Returns:
        The output ``[..., d]`` in the format of ``outs`` and the log-sum-exp ``[...]``.
    """
    import torch

    largest = lses.amax(dim=0).nan_to_num(neginf=0.0)
    weights = torch.exp(lses - largest)
    total = weights.sum(dim=0)
    # A query that saw no key at all: zero, as its sum of weights is.
    shares = weights / total.clamp_min(torch.finfo(total.dtype).tiny)
    out = (outs.to(shares.dtype) * shares[..., None]).sum(dim=0)
    return out.to(outs.dtype), largest + torch.log(total)


def merge_two(out: Any, lse: Any, out2: Any, lse2: Any) -> tuple[Any, Any]:
    """Merge a part into what is there already, as a ring of devices does that gets one part after the other.

    Args:
        out: ``[..., d]``, single precision or better, so that many steps do not add up their rounding.
        lse: ``[...]``.
        out2, lse2: the new part, in any format.
    """
    import torch

    both = torch.logaddexp(lse, lse2)
    # Where neither saw a key, the difference of infinities would be NaN.
    old, new = (torch.exp(part - both).nan_to_num(nan=0.0)[..., None] for part in (lse, lse2))
    return out * old + out2 * new, both


def merge_pairwise(outs: Any, lses: Any) -> tuple[Any, Any]:
    """Merge one part after the other; arguments and result as for :func:`merge_stacked`."""
    out, lse = outs[0].to(lses.dtype), lses[0]
    for part in range(1, len(outs)):
        out, lse = merge_two(out, lse, outs[part], lses[part])
    return out.to(outs.dtype), lse


def attention_with_lse(q: Any, k: Any, v: Any, scale: float) -> Callable[[], tuple[Any, Any]]:
    """Attention in which every query sees every key, by the fused kernel of torch that hands out its log-sum-exp.

    Args:
        q: ``[batch, heads, q_len, d]``.
        k, v: ``[batch, kv_heads, kv_len, d]``, or a batch of one that all sequences share.
        scale: on the scores.

    Returns:
        A call that returns the output ``[batch, heads, q_len, d]`` and the log-sum-exp ``[batch, heads, q_len]``.

    Raises:
        UnsupportedError: torch has no such kernel for this device and format.
    """

    batch, heads, q_len, d = q.shape
    kv_heads = k.shape[1]
    # Where nothing is masked, queries of heads (and of sequences) that share keys are rows of one product.
    if len(k) == batch:
        queries = q.reshape(batch, kv_heads, heads // kv_heads * q_len, d)
    else:
        queries = q.view(batch, kv_heads, -1, d).transpose(0, 1).reshape(1, kv_heads, -1, d)
    kernel = _kernel_of(queries)

    def call() -> tuple[Any, Any]:
        out, lse = kernel(queries, k, v, scale)[:2]
        if len(k) == batch:
            return out.reshape(batch, heads, q_len, d), lse.reshape(batch, heads, q_len)
        out = out.view(kv_heads, batch, -1, d).transpose(0, 1)
        return out.reshape(batch, heads, q_len, d), lse.view(kv_heads, batch, -1).transpose(0, 1).reshape(
            batch, heads, q_len
        )

    try:
        call()
    except RuntimeError as error:
        raise UnsupportedError(
            "torch has no attention kernel with log-sum-exp for this case", why=str(error).splitlines()[0],
            todo="choose another number format or head_dim", code="no_kernel",
        ) from None  # fmt: skip
    return call


def _kernel_of(q: Any) -> Callable[[Any, Any, Any, float], Sequence[Any]]:
    """The operator of torch behind scaled_dot_product_attention: the public function keeps the log-sum-exp back."""
    import torch

    ops = torch.ops.aten
    if q.device.type == "cpu":
        return lambda q, k, v, scale: ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    if q.dtype in (torch.float16, torch.bfloat16):
        return lambda q, k, v, scale: ops._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    return lambda q, k, v, scale: ops._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)
