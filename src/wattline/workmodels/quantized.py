"""Work of products of quantised matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.quantization import (
    ELEMENTS,
    block_count,
    code_bytes,
    scale_bytes,
    scheme_of,
    weight_block,
)
from wattline.work import Work


def quantized(p: Mapping[str, Any]) -> Work:
    """``C[m, n] = A[m, k] @ W[n, k]^T`` with the weights, and maybe the activations, quantised and packed.

    FLOPs: ``2 m n k``, as of the dense product, so that schemes compare; in the format that the scheme multiplies in.
    Bytes: codes as packed, scales and zero points read once, C written once in ``dtype``. Details: the parts of the
    bytes; for bit planes ``plane_ops``, the AND-and-count operations on single bits (``bits abits m n k``); for
    tables ``lookups``, one for eight bits of a plane.

    Args:
        p: ``m``, ``n``, ``k``, ``scheme`` and ``dtype``; ``group`` (0: one scale per row), ``bits`` and ``abits`` (0)
            may be left out.
    """
    scheme, dtype = scheme_of(str(p["scheme"])), str(p["dtype"])
    m, n, k = p["m"], p["n"], p["k"]
    bits, abits = p.get("bits", 0), p.get("abits", 0)
    compute = number_format(dtype)
    weight = code_bytes(ELEMENTS[scheme.weight], n, k, bits)
    blocks = block_count(n, k, weight_block(scheme, p.get("group", 0)))
    scales = blocks * scale_bytes(scheme, dtype) + 4.0 * scheme.tensor_scale
    zeros = blocks * scale_bytes(scheme, dtype) * scheme.zeros
    act, act_scales = 1.0 * m * k * compute.bytes, 0.0 * m
    if scheme.act:
        act = code_bytes(ELEMENTS[scheme.act], m, k, abits)
        width = 4.0 if scheme.scale == "dtype" else scale_bytes(scheme, dtype)
        act_scales = block_count(m, k, scheme.act_block) * width + 4.0 * scheme.tensor_scale
    details = {
        "weight_bytes": weight, "scale_bytes": scales, "zero_bytes": zeros,
        "activation_bytes": act, "activation_scale_bytes": act_scales,
    }  # fmt: skip
    if scheme.planes and scheme.act:
        details["plane_ops"] = 1.0 * bits * abits * m * n * k
    elif scheme.planes:
        details["lookups"] = 1.0 * bits * m * n * -(-k // 8)
    return Work(
        flops={scheme.rate or compute.rate: 2.0 * m * n * k},
        bytes_read={"device": weight + scales + zeros + act + act_scales},
        bytes_written={"device": 1.0 * m * n * compute.bytes},
        details=details,
    )
