"""Work of linear attention: no softmax, so that the keys and values seen so far fit into one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.errors import ParamError
from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import ceil_div, least, triangle


def linear(p: Mapping[str, Any]) -> Work:
    """``o_i = q_i S_i`` with ``S_i = decay S_(i-1) + k_i v_i^T``, a matrix ``[d, d_v]`` for each head.

    (Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236; with decay and in blocks Qin et al., "Lightning
    Attention-2", arXiv:2401.04658.)

    The work is the recurrence's, the least of the known forms: ``2 d d_v`` FLOPs to add ``k v^T`` and ``2 d d_v`` for
    ``q S``, for each token and head; backward the gradients of q, k and v, ``3 x 2 d d_v`` beyond the two running
    matrices at ``2 d d_v`` each: 2.5 times the forward. Bytes: Q, K, V, O once; backward reads Q, K, V, dO, writes
    dQ, dK, dV.

    ``details`` hold what the other forms take: ``quadratic_flops``, ``2 pairs (d + d_v)`` over the causal triangle, and
    ``block_flops``, ``4 d d_v`` between blocks and the triangle within each block of ``block`` tokens.

    Args:
        p: ``length``, ``heads``, ``head_dim``, ``dtype``; may be left out: ``batch`` (1), ``block`` (64),
            ``direction`` (``"forward"`` or ``"backward"``).

    Raises:
        ParamError: an unknown direction.
    """
    fmt = number_format(p["dtype"])
    batch, length, heads, d = p.get("batch", 1), p["length"], p["heads"], p["head_dim"]
    block = least(p.get("block", 64), length)
    direction = p.get("direction", "forward")
    if direction not in ("forward", "backward"):
        raise ParamError(f"direction must be forward or backward, not {direction!r}")
    sequences = 1.0 * batch * heads
    times = 1.0 if direction == "forward" else 2.5
    elements = sequences * length * d
    blocks = ceil_div(length, block)
    last = length - (blocks - 1) * block
    inner = (blocks - 1) * triangle(block) + triangle(last)
    details = {
        "quadratic_flops": times * sequences * 4.0 * d * triangle(length),
        "block_flops": times * sequences * (4.0 * d * inner + 4.0 * length * d * d),
    }
    flops = {fmt.rate: times * 4.0 * elements * d}
    if direction == "forward":
        return Work(flops, {"device": 3 * elements * fmt.bytes}, {"device": elements * fmt.bytes}, details=details)
    return Work(flops, {"device": 4 * elements * fmt.bytes}, {"device": 3 * elements * fmt.bytes}, details=details)
