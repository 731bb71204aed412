"""Lengths of the sequences of a batch: named distributions, the same numbers wherever they are asked for.

Work models count with them, workloads build their caches by them: what is counted is what runs. Only
``random.random`` is drawn from, whose sequence Python keeps the same between versions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import cos, exp, log, pi, sqrt
from random import Random
from typing import Any

from wattline.errors import unknown_name

DISTRIBUTIONS = ("equal", "uniform", "lognormal", "zipf")
"""How the lengths of a batch are distributed.

``equal``: all the longest. ``uniform``: between nothing and the longest. ``lognormal``: the logarithm is normal with
standard deviation 1. ``zipf``: the r-th longest is 1/r of the longest.
"""

MOST_RAGGED = 65536
"""Sequences up to which unequal lengths are drawn one by one."""

_PLAIN = (int, float)


@lru_cache(maxsize=1024)
def _shares(batch: int, distribution: str, seed: int) -> tuple[float, ...]:
    """Lengths as shares of the longest, in a random order."""
    random = Random(seed)
    if distribution == "uniform":
        drawn = [1.0 - random.random() for _ in range(batch)]
    elif distribution == "lognormal":
        # Box and Muller: two uniform numbers make a normal one.
        drawn = [
            exp(sqrt(-2.0 * log(1.0 - random.random())) * cos(2.0 * pi * random.random())) for _ in range(batch)
        ]
    elif distribution == "zipf":
        places = sorted((random.random(), i) for i in range(batch))
        drawn = [0.0] * batch
        for rank, (_, i) in enumerate(places, start=1):
            drawn[i] = 1.0 / rank
    else:
        raise unknown_name("distribution of lengths", distribution, DISTRIBUTIONS)
    largest = max(drawn)
    return tuple(x / largest for x in drawn)


def lengths_of(batch: int, longest: int, distribution: str = "equal", seed: int = 0) -> tuple[int, ...]:
    """The lengths of a batch, at least 1 each; the longest is ``longest`` exactly.

    Args:
        batch: sequences.
        longest: tokens of the longest.
        distribution: one of :data:`DISTRIBUTIONS`.
        seed: of the draw; it changes nothing where all are equal.

    Raises:
        UnknownNameError: no such distribution.
    """
    if distribution == "equal":
        return (longest,) * batch
    return tuple(max(1, int(share * longest + 0.5)) for share in _shares(batch, distribution, seed))


def sum_over(count: Callable[[Any], Any], batch: Any, longest: Any, distribution: str, seed: Any = 0) -> Any:
    """``count(length)`` summed over the sequences of a batch.

    Args:
        count: of one length, or of an array of them.
        batch, longest, seed: numbers, or numpy arrays of one shape.
        distribution: one of :data:`DISTRIBUTIONS`.

    Returns:
        A number, or an array of that shape.

    Raises:
        UnknownNameError: no such distribution.
    """
    if distribution == "equal":
        return 1.0 * batch * count(longest)
    if all(isinstance(value, _PLAIN) for value in (batch, longest, seed)):
        return 1.0 * sum(count(n) for n in lengths_of(int(batch), int(longest), distribution, int(seed)))
    import numpy as np

    # Rows of different batches have different numbers of lengths: laid side by side, padded with no sequence at all.
    rows = np.broadcast_arrays(np.asarray(batch), np.asarray(longest), np.asarray(seed))
    shape = rows[0].shape
    flat = [[int(x) for x in row.reshape(-1)] for row in rows]
    drawn = [lengths_of(b, n, distribution, s) for b, n, s in zip(*flat, strict=True)]
    total = np.zeros(len(drawn))
    for i in range(max((len(d) for d in drawn), default=0)):
        present = np.array([len(d) > i for d in drawn])
        column = np.array([d[i] if len(d) > i else 1 for d in drawn], dtype=np.float64).reshape(shape)
        total += np.where(present, np.asarray(count(column) * np.ones(shape)).reshape(-1), 0.0)
    return total.reshape(shape)
