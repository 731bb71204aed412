"""Keys and values in few bits: quantised by group, packed into bytes, and turned back.

Asymmetric round-to-nearest, as of Liu et al., KIVI, arXiv:2402.02750: a group of numbers becomes codes
``round((x - zero) / scale)`` with ``zero`` its least number and ``scale`` its range over the largest code. A key shares
scale and zero with the tokens around it, channel by channel, because some channels are large throughout; a value with
its neighbours in the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any


@dataclass(frozen=True)
class Quantised:
    """A quantised cache: tensors.

    Attributes:
        k, v: packed codes ``[batch, kv_heads, tokens, d * bits / 8]``, uint8.
        k_scale, k_zero: ``[batch, kv_heads, tokens / group, d]``.
        v_scale, v_zero: ``[batch, kv_heads, tokens, d / group]``.
    """

    k: Any
    v: Any
    k_scale: Any
    k_zero: Any
    v_scale: Any
    v_zero: Any

    @property
    def tensors(self) -> tuple[Any, ...]:
        """All of them, in the order of the fields."""
        return (self.k, self.v, self.k_scale, self.k_zero, self.v_scale, self.v_zero)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(t.numel() * t.element_size() for t in self.tensors)


def pack(codes: Any, bits: int) -> Any:
    """Whole numbers below ``2**bits`` ``[..., d]`` as bytes ``[..., d * bits / 8]``.

    Byte j holds element j in its lowest bits, then j + d bits / 8, and so on: both ways, neighbours in memory stay
    neighbours, so that packing and unpacking run over whole vectors.
    """
    parts = 8 // bits
    pieces = codes.chunk(parts, dim=-1)
    packed = pieces[0]
    for i in range(1, parts):
        packed = packed | (pieces[i] << (bits * i))
    return packed


def unpack(packed: Any, bits: int) -> Any:
    """What :func:`pack` packed, uint8."""
    import torch

    if bits == 8:
        return packed
    mask = 2**bits - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-1)


def _quantise(x: Any, dim: int, bits: int) -> tuple[Any, Any, Any]:
    """Codes, scale and zero of groups that lie along ``dim``; the last two keep it, with length one."""
    import torch

    high = torch.float64 if x.dtype == torch.float64 else torch.float32
    largest = 2**bits - 1
    zero = x.amin(dim=dim, keepdim=True)
    scale = ((x.amax(dim=dim, keepdim=True).to(high) - zero.to(high)) / largest).to(x.dtype)
    # A group of equal numbers has no range: any scale gives code 0.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = torch.round((x.to(high) - zero.to(high)) / scale.to(high)).clamp(0, largest).to(torch.uint8)
    return codes, scale, zero


def quantise(k: Any, v: Any, bits: int, group: int) -> tuple[Any, ...]:
    """The tensors of a :class:`Quantised`.

    Args:
        k, v: ``[batch, kv_heads, tokens, d]``.
        bits: of a code: 8, 4 or 2.
        group: tokens that share the scale of a channel of keys, channels that share that of a value.
    """
    batch, heads, tokens, d = k.shape
    k_codes, k_scale, k_zero = _quantise(k.view(batch, heads, tokens // group, group, d), 3, bits)
    v_codes, v_scale, v_zero = _quantise(v.view(batch, heads, tokens, d // group, group), 4, bits)
    return (
        pack(k_codes.view(k.shape), bits), pack(v_codes.view(v.shape), bits),
        k_scale.squeeze(3), k_zero.squeeze(3), v_scale.squeeze(4), v_zero.squeeze(4),
    )  # fmt: skip


def dequantise(tensors: Sequence[Any], bits: int, group: int) -> tuple[Any, Any]:
    """Keys and values again, ``[batch, kv_heads, tokens, d]``, in the format of the scales.

    Args:
        tensors: those of a :class:`Quantised`, in order.
        bits, group: as they were quantised.
    """
    k, v, k_scale, k_zero, v_scale, v_zero = tensors
    k_codes, v_codes = unpack(k, bits), unpack(v, bits)
    batch, heads, tokens, d = k_codes.shape
    keys = k_codes.view(batch, heads, tokens // group, group, d).to(k_scale.dtype)
    keys = keys * k_scale.unsqueeze(3) + k_zero.unsqueeze(3)
    values = v_codes.view(batch, heads, tokens, d // group, group).to(v_scale.dtype)
    values = values * v_scale.unsqueeze(4) + v_zero.unsqueeze(4)
    return keys.view(k_codes.shape), values.view(v_codes.shape)


def exactly(cache: Quantised, bits: int, group: int, b: int, head: int) -> tuple[Any, Any]:
    """Keys and values of one sequence and head as the codes mean them, in double precision, ``[tokens, d]`` each."""
    part = [t[b : b + 1, head : head + 1] for t in cache.tensors]
    scales = [t.double() for t in part[2:]]
    k, v = dequantise([*part[:2], *scales], bits, group)
    return k[0, 0], v[0, 0]


def worst_rounding(k: Any, v: Any, cache: Quantised, bits: int, group: int) -> float:
    """How far the codes are from the numbers, over what rounding to nearest allows: at most 1 where all is right.

    Allowed is half a step, and what the rounding of scale and zero to their format adds: with ``u`` the spacing of
    that format at 1, ``2 u (|zero| + largest scale)``.

    Args:
        k, v: the numbers ``[batch, kv_heads, tokens, d]``.
        cache: their codes.
        bits, group: as they were quantised.
    """
    import torch

    spacing = torch.finfo(cache.k_scale.dtype).eps
    worst = 0.0
    for b in range(k.shape[0]):
        for head in range(k.shape[1]):
            found = exactly(cache, bits, group, b, head)
            steps = (cache.k_scale[b, head], cache.v_scale[b, head])
            zeros = (cache.k_zero[b, head], cache.v_zero[b, head])
            for x, y, step, zero, dim in zip((k, v), found, steps, zeros, (0, 1), strict=True):
                scale = step.double().repeat_interleave(group, dim=dim)
                least = zero.double().abs().repeat_interleave(group, dim=dim)
                allowed = scale / 2 + 2 * spacing * (least + (2**bits - 1) * scale)
                ratio = float(((x[b, head].double() - y).abs() / allowed).max())
                if isnan(ratio):
                    return ratio
                worst = max(worst, ratio)
    return worst
