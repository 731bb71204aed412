"""Is a matrix product right? Comparison with a double-precision reference, whole or by projections.

Small products are compared element by element. Large ones are compared on sampled rows, and whole through random
projections: C r against A (B r) (Freivalds, "Probabilistic machines can use less running time", IFIP 1977), taken
over blocks of :data:`BLOCK` columns so that one wrong element is not drowned by the rounding of a long row.
References are computed from the inputs as rounded to their format, so only the product itself is judged.
"""

from __future__ import annotations

from math import isnan, sqrt
from typing import Any

from wattline.formats import number_format
from wattline.suites.sampled import spread

FULL_FLOPS = 3e8
"""Products of at most this many FLOPs are compared whole: some milliseconds in double precision."""

BLOCK = 128
"""Columns that one projection sums: the reference costs 1/BLOCK of the product's FLOPs."""

ROWS = 32
BATCHES = 4
CHUNK = 2**22
"""Elements converted to double precision at a time (32 MB)."""

_ELEMENT_WEIGHT = 4.0
"""The largest error of many elements lies some 4 to 5 standard deviations out; it is divided by this before it is
held against a tolerance meant for the norm."""

_UNIT = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11}
# Tensor cores truncate instead of rounding, with few guard bits (Fasi, Higham, Mikaitis and Pranesh, "Numerical
# behavior of NVIDIA tensor cores", PeerJ CS 2021), and Hopper adds FP8 products with some 14 bits (DeepSeek-V3
# technical report, arXiv:2412.19437, section 3.3.2).
_TENSOR_CORE_UNIT = 2.0**-21
_TENSOR_CORE_FP8_UNIT = 2.0**-14


def tolerance(dtype: str, out_dtype: str, k: int, *, acc: str = "default", accelerator: bool = False) -> float:
    """Largest ||out - ref|| / ||ref|| of a correct product.

    The output format's own tolerance, plus the accumulator's share: the rounding errors of k additions of random
    terms make a random walk, u sqrt(k) / 4 in relative terms (Higham and Mary, "A new approach to probabilistic
    rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019), here with a factor 8 in hand.

    Args:
        dtype: format of the operands.
        out_dtype: format of the result.
        k: terms per dot product.
        acc: the case's accumulate format.
        accelerator: the product ran on one, so maybe in tensor cores.
    """
    result = number_format(out_dtype)
    if result.kind == "int":
        return 0.0
    # tf32 products stored as fp32 carry the error of tf32.
    base = max(result.tolerance, number_format(dtype).tolerance if dtype == "tf32" else 0.0)
    unit = _UNIT["fp64"] if dtype == "fp64" else _UNIT["fp32"]
    if acc == "fp16":
        unit = _UNIT["fp16"]
    elif accelerator and number_format(dtype).rate == "fp8":
        unit = _TENSOR_CORE_FP8_UNIT
    elif accelerator and number_format(dtype).bits < 32:
        unit = _TENSOR_CORE_UNIT
    return base + 2.0 * unit * sqrt(k)


def compare(a: Any, b: Any, out: Any) -> tuple[float, str]:
    """Error of ``out`` against ``a @ b``, and how it was found.

    Args:
        a: [m, k] or [batch, m, k], any strides.
        b: [k, n] or [batch, k, n], any strides.
        out: [m, n] or [batch, m, n].

    Returns:
        The largest of the errors looked at, relative to the reference; NaN where ``out`` holds a NaN or an
        infinity, or has the wrong shape.
    """
    import torch

    if a.dim() == 2:
        a, b, out = a[None], b[None], (out[None] if out.dim() == 2 else out)
    batch, m, k = a.shape
    n = b.shape[2]
    if tuple(out.shape) != (batch, m, n):
        return float("nan"), f"shape {tuple(out.shape)} instead of {(batch, m, n)}"
    if not _finite(out):
        return float("nan"), "full"
    # In double precision the reference would be the product itself once more: projections take another way.
    if 2.0 * batch * m * n * k <= FULL_FLOPS and a.dtype != torch.float64:
        return _distance(out.double(), a.double() @ b.double()), "full"
    batches = spread(batch, BATCHES)
    rows = spread(m, ROWS)
    errors = [_rows_error(a[i], b[i], out[i], rows) for i in batches]
    errors += _projection_errors(a, b, out)
    found = float("nan") if any(map(isnan, errors)) else max(errors)
    return found, f"{len(rows)} rows of {len(batches)} in full, all {batch * m * n} elements by random projection"



def _finite(out: Any) -> bool:
    import torch

    if not out.dtype.is_floating_point:
        return True
    flat = out.reshape(-1)
    return all(bool(torch.isfinite(piece).all()) for piece in flat.split(16 * CHUNK))


def _distance(out: Any, ref: Any, least: float = 0.0) -> float:
    """The larger of the relative error in norm and the (weighted) relative error of the worst element.

    Args:
        out: what was computed.
        ref: what is right.
        least: the norm of the reference counts as at least this. A signed sum is as large as the norm of its terms
            only on average; where few sums nearly cancel, errors must be held against the terms.
    """
    import torch

    difference = (out - ref).abs()
    if not bool(difference.any()):
        return 0.0
    size = max(float(torch.linalg.vector_norm(ref)), least)
    if size == 0.0:
        return float("inf")
    in_norm = float(torch.linalg.vector_norm(difference)) / size
    rms = size / sqrt(ref.numel())
    worst = float((difference / (ref.abs() + rms)).max())
    return max(in_norm, worst / _ELEMENT_WEIGHT)


def _rows_error(a: Any, b: Any, out: Any, rows: list[int]) -> float:
    """Error of whole rows; B is converted some columns at a time."""
    import torch

    index = torch.tensor(rows, device=a.device)
    left = _take_rows(a, index).double()
    k, n = b.shape
    step = max(1, CHUNK // k)
    pieces = [left @ b[:, j : j + step].double() for j in range(0, n, step)]
    return _distance(_take_rows(out, index).double(), torch.cat(pieces, dim=1))


def _take_rows(matrix: Any, index: Any) -> Any:
    """Rows of a matrix; torch cannot index 8-bit floats everywhere, so they are taken as bytes."""
    import torch

    if matrix.dtype.itemsize == 1:
        return matrix.view(torch.uint8).index_select(0, index).view(matrix.dtype)
    return matrix.index_select(0, index)


def _projection_errors(a: Any, b: Any, out: Any) -> list[float]:
    import torch

    batch, m, k = a.shape
    n = b.shape[2]
    generator = torch.Generator().manual_seed(20259)
    signs = (torch.randint(0, 2, (BLOCK,), generator=generator) * 2 - 1).double().to(a.device)
    together = CHUNK // max(m * k, k * n, m * n)
    if together > 1:  # many small products: several at a time
        errors = []
        for i in range(0, batch, together):
            some = slice(i, i + together)
            right = _sums(b[some].double(), signs)
            terms = out[some].double()
            least = float(torch.linalg.vector_norm(terms))
            errors.append(_distance(_sums(terms, signs), a[some].double() @ right, least))
        return errors
    return [_projection_error(a[i], b[i], out[i], signs) for i in range(batch)]


def _projection_error(a: Any, b: Any, out: Any, signs: Any) -> float:
    import torch

    right = _project(b, signs)
    step = max(1, CHUNK // a.shape[1])
    pieces = [a[i : i + step].double() @ right for i in range(0, a.shape[0], step)]
    return _distance(_project(out, signs), torch.cat(pieces), _norm(out))


def _project(matrix: Any, signs: Any) -> Any:
    """:func:`_sums` of a matrix that is converted some rows at a time."""
    import torch

    step = max(1, CHUNK // matrix.shape[1])
    return torch.cat([_sums(matrix[i : i + step].double(), signs) for i in range(0, matrix.shape[0], step)])


def _norm(matrix: Any) -> float:
    """Frobenius norm in double precision, of some rows at a time."""
    import torch

    step = max(1, CHUNK // matrix.shape[1])
    parts = [torch.linalg.vector_norm(matrix[i : i + step].double()) for i in range(0, matrix.shape[0], step)]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def _sums(values: Any, signs: Any) -> Any:
    """Signed sums over blocks of BLOCK columns: [..., columns] becomes [..., ceil(columns / BLOCK)]."""
    import torch

    columns = values.shape[-1]
    whole = columns // BLOCK * BLOCK
    sums = []
    if whole:
        sums.append(values[..., :whole].reshape(*values.shape[:-1], -1, BLOCK) @ signs)
    if whole < columns:
        sums.append((values[..., whole:] @ signs[: columns - whole])[..., None])
    return torch.cat(sums, dim=-1)
