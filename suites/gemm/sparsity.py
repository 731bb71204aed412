"""Where the non-zeros of a sparse matrix stand: patterns drawn from a seed, and the storages made of them.

A pattern is a pure function of a case's parameters, so every implementation multiplies the same matrix. Its number of
elements is exact. Rows hold equal numbers of them, give or take one, or a power law's share; within a row every set
of places is as likely as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from wattline.workmodels.sparse import per_block, sparse_activations, stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wattline.suites.workload import ParamValues

    Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Places:
    """Places of a sparse matrix, row by row and rising within a row.

    Attributes:
        pointers: where each row begins, ``[rows + 1]``, int32.
        columns: of the elements (or blocks, or of the two of each group of four), int32.
    """

    pointers: NDArray[np.int32]
    columns: NDArray[np.int32]

    @property
    def rows(self) -> Ints:
        """The row of each element."""
        import numpy as np

        return np.repeat(np.arange(len(self.pointers) - 1), np.diff(self.pointers))


def shares(rows: int, total: int, most: int, skew: float, rng: np.random.Generator) -> Ints:
    """How many of ``total`` elements each row holds.

    Args:
        rows: number of rows.
        total: elements, at most ``rows * most``.
        most: places in a row.
        skew: exponent s of a power law: the row of rank r is given a share ``r**-s``, and what does not fit it goes
            to the others; 0 for equal shares. Ranks are dealt to the rows at random.
        rng: of the ranks, and of the rows that hold one more where the division leaves a rest.

    Returns:
        ``[rows]``, of sum ``total``, each at most ``most``.
    """
    import numpy as np

    weights = np.arange(1, rows + 1, dtype=np.float64) ** -skew
    wanted = np.zeros(rows)
    open_ = np.ones(rows, dtype=bool)
    left = float(total)
    while left > 0 and open_.any():
        wanted[open_] = weights[open_] * (left / weights[open_].sum())
        full = open_ & (wanted >= most)
        if not full.any():
            break
        wanted[full] = most
        open_ &= ~full
        left = total - float(most) * int((~open_).sum())
    counts: Ints = np.floor(wanted + 1e-9).astype(np.int64)
    # The rest goes to the largest fractions, and among equal ones to whom chance chooses.
    fractions = np.where(counts < most, wanted - counts, -1.0)
    order = np.lexsort((rng.random(rows), -fractions))
    counts[order[: total - int(counts.sum())]] += 1
    return rng.permutation(counts)


def draw(counts: Ints, columns: int, rng: np.random.Generator) -> Places:
    """Places at random: ``counts[i]`` different ones of ``columns`` in row i, every set as likely as any other.

    Missing elements are drawn again and again, those that hit a place already taken are dropped: work in proportion
    to the elements and not to the places. Rows that are more than half full are drawn by what they lack.
    """
    import numpy as np

    dense = counts > columns // 2
    wanted = np.where(dense, columns - counts, counts)
    keys: Ints = np.empty(0, dtype=np.int64)
    have = np.zeros_like(wanted)
    while (missing := wanted - have).any():
        rows = np.repeat(np.arange(len(counts)), missing)
        # By sorting: numpy 2.3 and newer find unique numbers by hashing, a hundred times slower on keys like these.
        keys = np.sort(np.concatenate([keys, rows * columns + rng.integers(0, columns, len(rows))]))
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
        have = np.bincount(keys // columns, minlength=len(counts))
    if dense.any():
        of_dense = dense[keys // columns]
        kept = np.ones((int(dense.sum()), columns), dtype=bool)
        kept[(np.cumsum(dense) - 1)[keys[of_dense] // columns], keys[of_dense] % columns] = False
        rows, places = np.nonzero(kept)
        keys = np.sort(np.concatenate([keys[~of_dense], np.flatnonzero(dense)[rows] * columns + places]))
    pointers = np.concatenate([[0], np.cumsum(counts)])
    return Places(pointers.astype(np.int32), (keys % columns).astype(np.int32))


def weights_of(p: ParamValues) -> Places:
    """Places of the weights: elements (csr), blocks (block), or kept columns ``[n, k / 2]`` in flat order (2:4)."""
    names = ("n", "k", "density", "pattern", "block", "block_fill", "skew", "pattern_seed")
    return _weights(tuple((name, p[name]) for name in names))


@lru_cache(maxsize=2)
def _weights(items: tuple[tuple[str, Any], ...]) -> Places:
    import numpy as np

    p = dict(items)
    n, k, rng = p["n"], p["k"], np.random.default_rng(p["pattern_seed"])
    units = int(stored(p).units)
    if p["pattern"] == "csr":
        return draw(shares(n, units, k, p["skew"], rng), k, rng)
    if p["pattern"] == "block":
        rows, columns = n // int(p["block"]), k // int(p["block"])
        return draw(shares(rows, units, columns, p["skew"], rng), columns, rng)
    two = draw(np.full(units, 2), 4, rng).columns.reshape(n, k // 4, 2) + 4 * np.arange(k // 4)[None, :, None]
    return Places((np.arange(n + 1) * (k // 2)).astype(np.int32), two.astype(np.int32).ravel())


@lru_cache(maxsize=2)
def _activations(k: int, m: int, nnz: int, seed: int) -> Places:
    import numpy as np

    rng = np.random.default_rng([seed, 1])
    return draw(shares(k, nnz, m, 0.0, rng), m, rng)


def activations_of(p: ParamValues) -> Places:
    """Places of sparse activations ``[k, m]``."""
    nnz = int(sparse_activations(p))
    return _activations(int(p["k"]), int(p["m"]), nnz, int(p["pattern_seed"]))


@lru_cache(maxsize=2)
def _kept(blocks: int, block: int, each: int, seed: int) -> NDArray[np.bool_]:
    import numpy as np

    rng = np.random.default_rng([seed, 2])
    inside = draw(np.full(blocks, each), block * block, rng)
    kept = np.zeros((blocks, block * block), dtype=bool)
    kept[inside.rows, inside.columns] = True
    return kept.reshape(blocks, block, block)


def kept_in_blocks(p: ParamValues) -> NDArray[np.bool_] | None:
    """Which elements of each stored block are kept, ``[blocks, block, block]``; ``None``: all."""
    block = int(p["block"])
    each = int(per_block(block, p["block_fill"]))
    if each == block * block:
        return None
    return _kept(int(stored(p).units), block, each, int(p["pattern_seed"]))


def pack(columns: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Kept columns ``[n, k / 2]`` of a 2:4 matrix as 2 bits each, ``[n, ceil(k / 8)]``.

    A byte holds two groups of four, the first in its low half; of each group the first place in the low two bits.
    """
    import numpy as np

    n, half = columns.shape
    bits = (columns % 4).astype(np.uint8)
    if half % 4:  # an odd number of groups: the last byte's high half is idle
        bits = np.concatenate([bits, np.zeros((n, 4 - half % 4), dtype=np.uint8)], axis=1)
    four = bits.reshape(n, -1, 4)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(np.left_shift(four, shifts), axis=-1)
    return packed


def unpack(packed: Any, half: int) -> Any:
    """The columns that :func:`pack` packed, as an int64 torch tensor ``[n, half]``.

    Args:
        packed: torch tensor ``[n, ceil(half / 4)]``, uint8.
        half: elements kept in a row, ``k / 2``.
    """
    import torch

    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device)
    two_bits = (packed[..., None] >> shifts & 3).reshape(packed.shape[0], -1)[:, :half]
    groups = torch.arange(half, device=packed.device) // 2 * 4
    return two_bits.long() + groups


def scatter(p: ParamValues, values: Any) -> Any:
    """The weights as a dense matrix ``[n, k]``, made from the pattern and not from a storage's own conversion.

    Args:
        p: parameters.
        values: torch tensor of the stored values: ``[nnz]``, ``[blocks, block, block]`` or ``[n, k / 2]``.
    """
    import torch

    n, k = int(p["n"]), int(p["k"])
    places = weights_of(p)
    result = torch.zeros((n, k), dtype=values.dtype, device=values.device)
    rows = torch.from_numpy(places.rows).to(values.device)
    columns = torch.from_numpy(places.columns).long().to(values.device)
    if p["pattern"] == "block":
        block = int(p["block"])
        result.view(n // block, block, k // block, block).transpose(1, 2)[rows, columns] = values
    else:
        result[rows, columns] = values.reshape(-1)
    return result
