"""Boosted oblivious trees: what sharp steps a kernel's speed has (another tile, another algorithm), they learn.

Every tree asks the same question of all rows at each of its levels, so that the answers to its questions are the bits
of the number of a leaf (Kohavi, Bottom-Up Induction of Oblivious Read-Once Decision Graphs, 1994; Prokhorenkova et
al., CatBoost, 2018). That is what makes them cheap: one row is a comparison, a packing of bits and a look-up for all
trees at once, and many rows are comparisons of whole columns. Trees are added in the manner of gradient boosting
(Friedman, Greedy Function Approximation, 2001) on squared error whose largest residuals are clipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TREES = 1000
DEPTH = 8
"""Levels of a tree: as many as a byte has bits."""
LEAVES = 1 << DEPTH
RATE = 0.08
"""Share of its best correction that a tree adds."""
PENALTY = 0.2
"""Rows of residual zero that every leaf is thought to hold besides its own."""
CLIP = 6.0
"""Residuals count as at most so many times their median size."""
BINS = 64
"""Values that a feature is told apart by."""
PLENTY = 40_000
"""Rows beyond which a tree chooses among half of the features, by half of the rows (the other half next time): it costs
little there and takes a quarter of the time (J. Friedman, Stochastic Gradient Boosting, 2002)."""
_MANY = 4096
"""Rows from which on compiled loops answer, where there are any: the same figures in half the time."""
_CHUNK = 32768
"""Rows evaluated at once: long enough that calls of numpy cost little, short enough for a core's cache."""


class Forest:
    """Trees that add up.

    Attributes:
        bias: added to every row.
        feature: ``(trees, 8)``, the column that each level asks about.
        cut: ``(trees, 8)`` float32, above which the answer is one.
        leaf: ``(trees, 256)`` float32, what each leaf adds.
    """

    def __init__(self, bias: float, feature: NDArray[Any], cut: NDArray[Any], leaf: NDArray[Any]) -> None:
        self.bias = float(bias)
        self.feature = np.ascontiguousarray(feature, np.int64)
        self.cut = np.ascontiguousarray(cut, np.float32)
        self.leaf = np.ascontiguousarray(leaf, np.float32)
        self._flat = self.leaf.reshape(-1)
        self._ones = np.ones(len(self.leaf), np.float32)
        self._first = np.arange(len(self.leaf), dtype=np.int64) * LEAVES
        self._columns, self._cuts = self.feature.reshape(-1), self.cut.reshape(-1)
        # Many levels ask the same question: it is answered once for a column of rows.
        pairs = np.stack([self._columns.astype(np.float64), self._cuts.astype(np.float64)], axis=1)
        questions, index = np.unique(pairs, axis=0, return_inverse=True)
        self._question_columns = questions[:, 0].astype(np.int64)
        self._question_cuts = questions[:, 1].astype(np.float32)
        self._asked = np.ascontiguousarray(index.reshape(self.feature.shape), np.int64)

    def predict(self, x: Array) -> Array:
        """What the trees add up to for features ``(n, d)``."""
        n = len(x)
        if n == 1:
            return np.array([self.predict_one(x[0])])
        out = np.empty(n)
        if n >= _MANY and not unavailable():
            columns, cuts = self._question_columns, self._question_cuts
            _compiled(answer)(np.ascontiguousarray(x.T, np.float32), columns, cuts, *self._fours(), out)
            out += self.bias
            return out
        for start in range(0, n, _CHUNK):
            self._some(x, out, start)
        return out + self.bias

    def predict_one(self, row: Array) -> float:
        """The same for one row ``(d,)``."""
        # No index is out of range: "clip" only spares the look at each.
        bits = row.astype(np.float32).take(self._columns, mode="clip") > self._cuts
        leaves = np.packbits(bits) + self._first
        return self.bias + float(self._flat.take(leaves, mode="clip") @ self._ones)

    def _fours(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Questions and leaves with trees that add nothing where their number is no multiple of four."""
        missing = -len(self.leaf) % 4
        if not missing:
            return self._asked, self.leaf
        more = ((0, missing), (0, 0))
        return np.pad(self._asked, more), np.pad(self.leaf, more)

    def _some(self, x: Array, out: Array, start: int) -> None:
        part = np.ascontiguousarray(x[start : start + _CHUNK].T, np.float32)
        n = part.shape[1]
        answers = np.empty((len(self._question_cuts), n), np.uint8)
        for row, column, cut in zip(answers, self._question_columns, self._question_cuts, strict=True):
            np.greater(part[column], cut, out=row.view(np.bool_))
        total, index, value = np.zeros(n), np.empty(n, np.uint8), np.empty(n, np.float32)
        for asked, leaf in zip(self._asked.tolist(), self.leaf, strict=True):
            index[:] = answers[asked[0]]
            for question in asked[1:]:
                np.add(index, index, out=index)
                np.bitwise_or(index, answers[question], out=index)
            np.take(leaf, index, out=value, mode="clip")
            total += value
        out[start : start + n] = total

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its state as arrays."""
        feature = self.feature.astype(np.uint16)
        return {"bias": np.array([self.bias]), "feature": feature, "cut": self.cut, "leaf": self.leaf}

    @classmethod
    def from_arrays(cls, a: Mapping[str, NDArray[Any]]) -> Forest:
        """From :meth:`arrays`.

        Raises:
            ValueError: the arrays do not fit each other.
        """
        feature, cut, leaf = a["feature"], a["cut"], a["leaf"]
        if feature.shape != cut.shape or feature.shape[1:] != (DEPTH,) or leaf.shape != (len(feature), LEAVES):
            raise ValueError(f"trees of shapes {feature.shape}, {cut.shape}, {leaf.shape}")
        return cls(float(a["bias"][0]), feature, cut, leaf)

    # -- learning -------------------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, x: Array, y: Array, *, seed: int, trees: int = TREES, rate: float = RATE) -> Forest:
        """Boost trees on ``y (n,)``.

        Args:
            x: features ``(n, d)``.
            y: targets ``(n,)``.
            seed: of the features among which each tree chooses.
            trees: how many.
            rate: share of its best correction that a tree adds.
        """
        x = x.astype(np.float32)  # what is asked when predicting
        borders = [_borders(column) for column in x.T]
        used = np.array([i for i, b in enumerate(borders) if len(b)], np.int64)
        feature, cut = np.zeros((trees, DEPTH), np.int64), np.full((trees, DEPTH), np.inf, np.float32)
        leaf = np.zeros((trees, LEAVES), np.float32)
        bias = float(np.median(y))
        if len(used):
            bins = np.stack([np.searchsorted(borders[i], x[:, i], side="left").astype(np.uint8) for i in used])
            counts = np.array([len(borders[i]) + 1 for i in used], np.int64)
            rng = np.random.default_rng(seed)
            few = len(y) <= PLENTY
            many = len(used) if few else max(1, len(used) // 2)
            chosen = np.stack([rng.permutation(len(used))[:many] for _ in range(trees)])
            looked = len(y) if few else len(y) // 2
            # Each half in the order of the rows, which memory likes.
            halves = np.split(np.arange(len(y)) if few else rng.permutation(len(y)), [looked])
            order = np.concatenate([np.sort(half) for half in halves])
            level = np.zeros((trees, DEPTH), np.int64)
            _compiled(grow)(bins, counts, y - bias, chosen, order, looked, feature, level, leaf, rate, PENALTY, CLIP)
            for t, d in np.ndindex(trees, DEPTH):
                f = feature[t, d]
                if level[t, d] < len(borders[used[f]]):
                    cut[t, d] = borders[used[f]][level[t, d]]
                feature[t, d] = used[f]
        return cls(bias, feature, cut, leaf)


def unavailable() -> str:
    """Why trees cannot be grown here, or ''."""
    from importlib.util import find_spec

    return "" if find_spec("numba") else "numba is not installed"


def _borders(column: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values that tell a feature apart: between all its values, or at quantiles where they are many."""
    values, counts = np.unique(column, return_counts=True)
    if len(values) > BINS:
        share = np.cumsum(counts) / len(column)
        at = np.unique(np.searchsorted(share, np.arange(1, BINS) / BINS, side="left"))
        at = at[at < len(values) - 1]
    else:
        at = np.arange(len(values) - 1)
    middle = (values[at].astype(np.float64) + values[at + 1]) / 2
    # Rounded, the middle may be the upper value: the question is "above?", so the lower one serves as well.
    return np.asarray(np.where(middle.astype(np.float32) < values[at + 1], middle, values[at]), np.float32)


@functools.lru_cache(maxsize=4)
def _compiled(function: Callable[..., None]) -> Any:
    """A loop of this module, compiled; once for this machine where the package's folder can be written."""
    from importlib import import_module

    numba: Any = import_module("numba")
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep what was compiled
        return numba.njit(**options)(function)


def answer(  # noqa: PLR0917 (a compiled function takes no keywords)
    x: Any, columns: Any, cuts: Any, asked: Any, leaf: Any, out: Any
) -> None:
    """What trees add up to; plain loops, to be compiled.

    Args:
        x: features by column ``(d, n)`` float32.
        columns, cuts: ``(questions,)``, the feature of each question and the cut above which the answer is one.
        asked: ``(trees, 8)``, the question of each level; trees in fours.
        leaf: ``(trees, 256)``.
        out: ``(n,)``, filled in.
    """
    n = x.shape[1]
    block = 512  # rows whose answers fit into a core's second-level cache
    answers, index = np.zeros((len(cuts), block), np.uint8), np.zeros((4, block), np.uint8)
    i0, i1, i2, i3 = index[0], index[1], index[2], index[3]
    total = np.zeros(block)
    for start in range(0, n, block):
        count = min(block, n - start)
        for q in range(len(cuts)):
            cut = cuts[q]
            column = x[columns[q], start : start + count]
            for i in range(count):
                answers[q, i] = column[i] > cut
        for i in range(count):
            total[i] = 0.0
        # All levels of a tree in one loop, and four trees to a sum: what is written in between is what takes the time.
        for tree in range(0, len(asked), 4):
            for j in range(4):
                own, q = index[j], asked[tree + j]
                r0, r1, r2, r3 = answers[q[0]], answers[q[1]], answers[q[2]], answers[q[3]]
                r4, r5, r6, r7 = answers[q[4]], answers[q[5]], answers[q[6]], answers[q[7]]
                for i in range(block):
                    own[i] = (
                        (r0[i] << 7) | (r1[i] << 6) | (r2[i] << 5) | (r3[i] << 4)
                        | (r4[i] << 3) | (r5[i] << 2) | (r6[i] << 1) | r7[i]
                    )  # fmt: skip
            l0, l1, l2, l3 = leaf[tree], leaf[tree + 1], leaf[tree + 2], leaf[tree + 3]
            for i in range(count):
                total[i] = total[i] + l0[i0[i]] + l1[i1[i]] + l2[i2[i]] + l3[i3[i]]
        for i in range(count):
            out[start + i] = total[i]


def grow(  # noqa: PLR0917 (a compiled function takes no keywords)
    bins: Any, counts: Any, residual: Any, chosen: Any, order: Any, looked: int,
    feature: Any, level: Any, leaf: Any, rate: float, penalty: float, clip: float,
) -> None:  # fmt: skip
    """Grow trees one after the other; plain loops, to be compiled.

    Args:
        bins: ``(features, n)`` uint8, the bin of each row.
        counts: ``(features,)``, how many bins each feature has.
        residual: ``(n,)`` what is left to explain; changed in place.
        chosen: ``(trees, k)`` features among which each tree chooses.
        order: ``(n,)`` the rows in the order in which trees look at them, round and round.
        looked: how many of them a tree looks at to find its questions; its leaves are of all.
        feature, level: ``(trees, 8)`` filled in: the feature asked and the bin above which the answer is one.
        leaf: ``(trees, 256)`` filled in.
        rate, penalty, clip: see the constants of this module.
    """
    n = bins.shape[1]
    trees, depth = feature.shape
    many = chosen.shape[1]
    most = 0
    for c in counts:
        most = max(most, c)
    half = leaf.shape[1] // 2
    # Sum of gradients and number of rows, side by side, of each leaf and bin.
    sums, old = np.zeros((many, half * most, 2)), np.zeros((many, half * most, 2))
    place, gradient = np.zeros(looked, np.int64), np.zeros(n)
    own_rows, leaf_of = np.zeros(looked, np.int64), np.zeros(n, np.int64)
    summed, summed_at, summed_gradient = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64), np.zeros(n + 1)
    score, held, wanted = np.zeros(most), np.zeros(2 * half), np.zeros(2 * half, np.int64)
    limit = 0.0
    for tree in range(trees):
        if tree % 10 == 0:
            limit = clip * np.median(np.abs(residual)) + 1e-12
        for i in range(n):
            gradient[i] = min(max(residual[i], -limit), limit)
        first = (tree * looked) % n
        for j in range(looked):
            own_rows[j] = order[(first + j) % n]
            place[j] = 0
        for depth_now in range(depth):
            leaves = 1 << depth_now
            # Only the smaller child of each leaf is summed; its sibling is what remains of the parent.
            if depth_now == 0:
                wanted[0] = 1
            else:
                for q in range(leaves):
                    held[q] = 0.0
                for j in range(looked):
                    held[place[j]] += 1.0
                for q in range(0, leaves, 2):
                    wanted[q] = 1 if held[q] < held[q + 1] else 0
                    wanted[q + 1] = 1 - wanted[q]
                sums, old = old, sums
            # Which rows those are is written down once for all features, without a branch that nobody can predict.
            many_summed = 0
            for j in range(looked):
                q, i = place[j], own_rows[j]
                summed[many_summed], summed_at[many_summed], summed_gradient[many_summed] = i, q * most, gradient[i]
                many_summed += wanted[q]
            best, best_feature, best_bin = -1.0, 0, most
            for k in range(many):
                f = chosen[tree, k]
                width = counts[f]
                s, bin_of = sums[k], bins[f]
                for q in range(leaves):
                    for at in range(q * most, q * most + width):
                        s[at, 0] = 0.0
                        s[at, 1] = 0.0
                for j in range(many_summed):
                    at = summed_at[j] + bin_of[summed[j]]
                    s[at, 0] += summed_gradient[j]
                    s[at, 1] += 1.0
                if depth_now > 0:
                    for q in range(leaves):
                        if not wanted[q]:
                            own, parent, sibling = q * most, (q // 2) * most, (q ^ 1) * most
                            for b in range(width):
                                s[own + b, 0] = old[k, parent + b, 0] - s[sibling + b, 0]
                                s[own + b, 1] = old[k, parent + b, 1] - s[sibling + b, 1]
                for b in range(width):
                    score[b] = 0.0
                for q in range(leaves):
                    own, total, whole = q * most, 0.0, 0.0
                    for at in range(own, own + width):
                        total += s[at, 0]
                        whole += s[at, 1]
                    if whole > 0.5:
                        left, few = 0.0, 0.0
                        for b in range(width - 1):
                            left += s[own + b, 0]
                            few += s[own + b, 1]
                            right = total - left
                            score[b] += left * left / (few + penalty) + right * right / (whole - few + penalty)
                for b in range(width - 1):
                    if score[b] > best:
                        best, best_feature, best_bin = score[b], f, b
            feature[tree, depth_now] = best_feature
            level[tree, depth_now] = best_bin
            for j in range(looked):
                place[j] = 2 * place[j] + (1 if bins[best_feature, own_rows[j]] > best_bin else 0)
        for i in range(n):
            leaf_of[i] = 0
        for depth_now in range(depth):
            column, above = bins[feature[tree, depth_now]], level[tree, depth_now]
            for i in range(n):
                leaf_of[i] = 2 * leaf_of[i] + (1 if column[i] > above else 0)
        for q in range(leaf.shape[1]):
            leaf[tree, q] = 0.0
            held[q] = 0.0
        for i in range(n):
            leaf[tree, leaf_of[i]] += gradient[i]
            held[leaf_of[i]] += 1.0
        for q in range(leaf.shape[1]):
            leaf[tree, q] = rate * leaf[tree, q] / (held[q] + penalty)
        for i in range(n):
            residual[i] -= leaf[tree, leaf_of[i]]
