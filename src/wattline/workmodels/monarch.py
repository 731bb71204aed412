"""Work of products with Monarch matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work


def monarch(p: Mapping[str, Any]) -> Work:
    """``y = P^T L P R x`` for each of ``m`` rows x of ``size`` elements (Dao et al., arXiv:2204.00595, section 3).

    R has ``blocks`` blocks of ``size / blocks`` squared; P turns ``[blocks, size / blocks]`` around; L has
    ``size / blocks`` blocks of ``blocks`` squared. So R costs each row ``size / blocks`` multiplications per element
    and L costs it ``blocks``:

    FLOPs: ``2 m size (size / blocks + blocks)``. Bytes: x, L and R read once, y written once; what passes between the
    two products need not leave a cache. The paper's square case, ``blocks = sqrt(size)``, is the least: ``4 m
    size**1.5``.

    Details: ``dense_flops`` and ``dense_bytes``, of the same operator multiplied out to a dense matrix.

    Args:
        p: ``m``, ``size``, ``blocks``, ``dtype``.
    """
    fmt = number_format(p["dtype"])
    m, size, blocks = 1.0 * p["m"], 1.0 * p["size"], 1.0 * p["blocks"]
    weights = size * (size / blocks + blocks)
    return Work(
        flops={fmt.rate: 2.0 * m * weights},
        bytes_read={"device": (m * size + weights) * fmt.bytes},
        bytes_written={"device": m * size * fmt.bytes},
        details={"dense_flops": 2.0 * m * size * size, "dense_bytes": size * size * fmt.bytes},
    )
