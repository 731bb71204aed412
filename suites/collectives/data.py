"""Data that every rank can compute for every other: small whole numbers, exact in each format, so that results are
compared bit by bit.

Element ``e`` of rank ``r`` holds ``(mix(e) + 3 r) mod m``, where ``mix`` has no short period (a block that lands in
the wrong place shows) and ``m`` is chosen so that the sum over all ranks is exact in the format, in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

EXACT = {"fp64": 2**31, "fp32": 2**24, "fp16": 2**11, "bf16": 2**8, "int8": 2**7 - 1}
"""Whole numbers up to these are exact (2 to the number of significand bits; IEEE 754-2019, table 3.5; bfloat16: 8)."""
CHUNK = 2**20
_SPREAD = 97  # distinct values where nothing is added


def _modulus(fmt: str, terms: int) -> int:
    """Values 0 .. m-1 such that ``terms`` of them add up to a number that the format holds."""
    return max(1, min(_SPREAD, EXACT[fmt] // max(1, terms)) if terms > 1 else _SPREAD)


def _mix(begin: int, end: int, device: Any) -> Any:
    import torch

    h = torch.arange(begin, end, dtype=torch.int64, device=device)
    # A 32-bit finaliser (multiply, fold, twice), so that no shift of the elements leaves the residues in place.
    for factor, bits in ((2654435761, 15), (2246822519, 13)):
        h = (h * factor) & 0xFFFFFFFF
        h ^= h >> bits
    return h


def most_ranks() -> dict[str, int]:
    """Ranks up to which sums are exact, by format: with more even ones and zeros would exceed it."""
    return {fmt: limit // 2 for fmt, limit in EXACT.items()}


def fill(out: Any, fmt: str, rank: int, *, begin: int = 0, terms: int = 1) -> None:
    """Write a rank's elements ``begin ..`` into a flat tensor.

    Args:
        out: flat, contiguous.
        fmt: its format.
        rank: whose data.
        begin: number of the first element.
        terms: ranks over which it will be added.
    """
    m = _modulus(fmt, terms)
    for at in range(0, out.numel(), CHUNK):
        piece = out[at : at + CHUNK]
        mixed = _mix(begin + at, begin + at + piece.numel(), piece.device)
        piece.copy_((mixed + 3 * rank) % m)


def wrong_elements(out: Any, want: Callable[[int, int], Any]) -> tuple[int, int]:
    """How many elements differ from what is wanted, and the first of them (-1: none). NaN differs from everything.

    Args:
        out: flat.
        want: gives the wanted elements ``begin .. end`` as whole numbers.
    """
    import torch

    count, first = 0, -1
    for at in range(0, out.numel(), CHUNK):
        piece = out[at : at + CHUNK]
        differ = piece != want(at, at + piece.numel()).to(piece.dtype)
        found = int(torch.count_nonzero(differ))
        if found and first < 0:
            first = at + int(torch.nonzero(differ)[0])
        count += found
    return count, first


def moved(fmt: str, rank: int, device: Any, *, begin: int = 0) -> Callable[[int, int], Any]:
    """What a rank's data looks like where it arrives."""
    m = _modulus(fmt, 1)
    return lambda lo, hi: (_mix(begin + lo, begin + hi, device) + 3 * rank) % m


def summed(fmt: str, ranks: int, device: Any, *, begin: int = 0) -> Callable[[int, int], Any]:
    """The sum of all ranks' data: it depends on an element's residue alone, so a table of m sums holds them all."""
    import torch

    m = _modulus(fmt, ranks)
    table = torch.zeros(m, dtype=torch.int64, device=device)
    residues = torch.arange(m, dtype=torch.int64, device=device)
    for rank in range(ranks):
        table += (residues + 3 * rank) % m
    return lambda lo, hi: table[_mix(begin + lo, begin + hi, device) % m]


def verdict(parts: list[tuple[str, Any, Callable[[int, int], Any]]]) -> tuple[float, float, str]:
    """Compare tensors with what they must hold.

    Args:
        parts: name, flat tensor and wanted elements of each.

    Returns:
        The share of wrong elements, a tolerance of none, and in words what was wrong.
    """
    total = wrong = 0
    notes = []
    for name, out, want in parts:
        count, first = wrong_elements(out, want)
        total, wrong = total + out.numel(), wrong + count
        if count:
            notes.append(f"{count} of {out.numel()} elements of {name} are wrong, the first is number {first}")
    return (wrong / total if total else 0.0), 0.0, "bit by bit" + (": " + "; ".join(notes) if notes else "")
