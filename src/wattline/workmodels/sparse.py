"""Work of products with sparse matrices: useful operations, and the bytes that a storage of non-zeros takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattline.errors import ParamError
from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import ceil_div, least

INDEX_BYTES = 4.0
"""Row pointers and column indices are 32-bit integers, as libraries take them (MKL's usual interface, cuSPARSE)."""


@dataclass(frozen=True)
class Stored:
    """What a storage of the weights holds; numbers, or arrays of one shape.

    Attributes:
        nnz: elements that the pattern keeps.
        values: elements stored: more than ``nnz`` where blocks are filled in part.
        units: what is placed at random: elements (csr), blocks (block), groups of four (2:4).
        most_units: places for them.
        index_bytes: bytes of the indices.
    """

    nnz: Any
    values: Any
    units: Any
    most_units: Any
    index_bytes: Any


def _nearest(x: Any) -> Any:
    """The nearest whole number, of numbers and arrays alike; halves go up."""
    return (x + 0.5) // 1.0


def per_block(block: Any, block_fill: Any) -> Any:
    """Elements of one block that are kept; at least one."""
    kept = _nearest(block_fill * block * block)
    return kept + (kept < 1)


def stored(p: Mapping[str, Any]) -> Stored:
    """What the weights ``[n, k]`` of these parameters take; see :func:`sparse`.

    Raises:
        ParamError: an unknown pattern.
    """
    n, k = 1.0 * p["n"], 1.0 * p["k"]
    pattern = p.get("pattern", "csr")
    if pattern == "csr":
        nnz = _nearest(p["density"] * n * k)
        return Stored(nnz, nnz, nnz, n * k, INDEX_BYTES * (nnz + n + 1))
    if pattern == "block":
        block = p.get("block", 16)
        each = per_block(block, p.get("block_fill", 1.0))
        rows = n // block
        blocks = _nearest(p["density"] * n * k / each)
        indices = INDEX_BYTES * (blocks + rows + 1)
        return Stored(blocks * each, blocks * block * block, blocks, rows * (k // block), indices)
    if pattern == "2:4":
        groups = n * (k // 4)
        # Two places of four: 2 bits each. A row fills whole bytes.
        return Stored(2 * groups, 2 * groups, groups, groups, n * ceil_div(k, 8))
    raise ParamError(f"unknown sparsity pattern {pattern!r}", why="known: csr, block, 2:4")


def sparse_activations(p: Mapping[str, Any]) -> Any:
    """Elements that sparse activations ``[k, m]`` keep."""
    return _nearest(p["density"] * (1.0 * p["k"] * p["m"]))


def sparse(p: Mapping[str, Any]) -> Work:
    """``C[n, m] = W[n, k] @ X[k, m]`` with W, or both, sparse.

    FLOPs are the useful ones, the same however the product is made. With dense X: ``2 m nnz``. With both sparse:
    ``2 nnz(W) nnz(X) / k``, twice the expected number of pairs ``W[i, j] X[j, c]``. That expectation is exact: the
    columns of a row of W are drawn evenly, so each column j holds ``nnz(W) / k`` elements on average, whatever the
    rows hold.

    Bytes: weights in the smaller of their storages, sparse or dense (beyond some two thirds, values and indices take
    more than a dense matrix does), X and C once. Sparse results are counted at their expected number of elements,
    ``n m (1 - (1 - nnz(X) / (k m)) ** (nnz(W) / n))``, in the smaller of CSR and dense.

    Storage: csr has values, a column index for each, and row pointers; block has whole blocks, an index for each, and
    pointers to rows of blocks (the blocked CSR of BLAS libraries); 2:4 has two values of every four neighbours and
    two bits for each (Mishra et al., "Accelerating sparse deep neural networks", arXiv:2104.08378).

    Details: ``nnz``; ``stored_flops``, with the zeros that blocks store; ``dense_flops``; ``stored_bytes`` of the
    weights, indices included, and ``index_bytes`` of it; ``dense_bytes`` of the weights.

    Args:
        p: ``m``, ``n``, ``k``, ``density``, ``dtype``; may be left out: ``pattern`` (``"csr"``), ``block`` (16) and
            ``block_fill`` (1) of it, ``sparse`` (``"weight"``, or ``"both"``).

    Raises:
        ParamError: an unknown pattern, or both operands sparse in another than csr.
    """
    fmt = number_format(p["dtype"])
    width = fmt.bytes
    m, n, k = 1.0 * p["m"], 1.0 * p["n"], 1.0 * p["k"]
    weights = stored(p)
    stored_bytes = weights.values * width + weights.index_bytes
    dense_bytes = n * k * width
    flops, stored_flops = 2.0 * m * weights.nnz, 2.0 * m * weights.values
    read, written = k * m * width, n * m * width
    if p.get("sparse", "weight") == "both":
        if p.get("pattern", "csr") != "csr":
            raise ParamError("both operands can be sparse only in the pattern csr")
        nnz_x = sparse_activations(p)
        flops = stored_flops = 2.0 * weights.nnz * nnz_x / k
        results = n * m * (1.0 - (1.0 - nnz_x / (k * m)) ** (weights.nnz / n))
        read = least(read, _csr_bytes(nnz_x, k, width))
        written = least(written, _csr_bytes(results, n, width))
    return Work(
        flops={fmt.rate: flops},
        bytes_read={"device": least(stored_bytes, dense_bytes) + read},
        bytes_written={"device": written},
        details={
            "nnz": weights.nnz,
            "stored_flops": stored_flops,
            "dense_flops": 2.0 * m * n * k,
            "stored_bytes": stored_bytes,
            "index_bytes": weights.index_bytes,
            "dense_bytes": dense_bytes,
        },
    )


def _csr_bytes(nnz: Any, rows: Any, width: float) -> Any:
    return nnz * (width + INDEX_BYTES) + INDEX_BYTES * (rows + 1)
