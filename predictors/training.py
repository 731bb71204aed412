"""Fitting and choosing a learner by what holds on groups left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.predictors import forest
from wattline.predictors.forest import Forest
from wattline.predictors.learners import Averaged, Gaussian, Learner, Linear, Network, Stacked
from wattline.predictors.surrogate import Surrogate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FEW = 1200
"""Rows up to which a Gaussian process is tried; above, a network."""
_PENALTIES = (1e-4, 1e-2, 0.3)
_LENGTHS = (0.5, 1.0, 2.0)
_NOISES = (1e-3, 1e-2, 0.1)
_WIDTH = 64
_OWN_LENGTHS = 40
"""Rows from which on a process with a length for each feature is tried."""
_LOOKS = 3
"""How often its lengths are sought again without some of the folds, for an honest error."""
_STEPS = (25, 15)
"""Of the search with all rows, and of the later ones, which start where that ended."""
_SOUGHT_ON = 200
"""Rows that lengths are sought on: 400 take eight times as long for errors 2 % smaller."""
_MUCH_WORSE = 1.25


@dataclass
class Fitted:
    """A learner and what it did on rows that it had not seen.

    Attributes:
        learner: fitted on all rows.
        held_out: predictions ``(n,)`` for each row by models that had not seen its group.
        scores: mean absolute error on held-out rows, by candidate.
    """

    learner: Learner
    held_out: Array
    scores: dict[str, float]


def group_folds(groups: NDArray[Any], count: int, seed: int) -> NDArray[np.int64]:
    """A fold number for each row; rows of a group share it, and folds are of about equal size."""
    _, codes = np.unique(groups, return_inverse=True)
    sizes = np.bincount(codes)
    count = max(1, min(count, len(sizes)))
    order = np.argsort(-sizes + np.random.default_rng(seed).random(len(sizes)), kind="stable")
    fold_of, load = np.zeros(len(sizes), np.int64), np.zeros(count)
    for group in order:
        lightest = int(np.argmin(load))
        fold_of[group] = lightest
        load[lightest] += sizes[group]
    return fold_of[codes]


def fit_learner(
    x: Array, y: Array, fold: NDArray[np.int64], *, seed: int, drop: list[NDArray[np.int64]], effort: float = 1.0
) -> Fitted:  # fmt: skip
    """Fit the candidates that suit the number of rows and keep the one that errs least on held-out groups.

    Args:
        x: standardised features ``(n, d)``.
        y: targets ``(n,)``.
        fold: fold of each row.
        seed: of initial weights, order and dropping.
        drop: columns that stand for one word each (a device, an implementation); a network now and then sees
            them all zero, which teaches it what to say of one it does not know.
        effort: factor on the number of training steps.
    """
    d, folds = x.shape[1], np.unique(fold)
    scores: dict[str, float] = {}
    best: tuple[float, str, Array, Any] | None = None

    def consider(name: str, held: Array, make: Any, gain: float = 0.02) -> None:
        nonlocal best
        scores[name] = float(np.mean(np.abs(held - y)))
        # A simpler candidate, tried first, stays unless a later one is better by more than chance.
        if best is None or scores[name] < (1 - gain) * best[0]:
            best = (scores[name], name, held, make)

    if len(folds) < 2 or len(y) < 8:
        held = np.full(len(y), np.median(y))
        return Fitted(Linear.constant(y, d), held, {"analytical": float(np.mean(np.abs(held - y)))})

    parts = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in folds]

    def cross(models: Sequence[Linear]) -> Array:
        held = np.empty(len(y))
        for (_, test), model in zip(parts, models, strict=True):
            held[test] = model.predict(x[test])
        return held

    level = [Linear.constant(y[train], d) for train, _ in parts]
    consider("analytical", cross(level), lambda a, b: Linear.constant(b, d))
    penalties = _PENALTIES if len(y) <= 20_000 else _PENALTIES[:1]
    ridges: dict[float, list[Linear]] = {}
    for penalty in penalties:

        def ridge(a: Array, b: Array, penalty: float = penalty) -> Linear:
            return Linear.fit(a, b, penalty)

        ridges[penalty] = [ridge(x[train], y[train]) for train, _ in parts]
        consider(f"ridge {penalty:g}", cross(ridges[penalty]), ridge)
    assert best is not None
    penalty = min(penalties, key=lambda p: scores[f"ridge {p:g}"])
    if len(y) <= FEW:
        noises = _NOISES[:: 2 if len(y) > 500 else 1]
        tried = np.empty((len(_LENGTHS), len(noises), len(y)))
        for (train, test), linear in zip(parts, ridges[penalty], strict=True):
            tried[:, :, test] = Gaussian.tried(linear, (x[train], y[train]), x[test], _LENGTHS, noises)
        for i, length in enumerate(_LENGTHS):
            for j, noise in enumerate(noises):

                def gaussian(a: Array, b: Array, length: float = length, noise: float = noise) -> Gaussian:
                    return Gaussian.fit(a, b, penalty, length, noise)

                consider(f"ridge + gaussian {length:g} {noise:g}", tried[i, j], gaussian)
        if len(y) >= _OWN_LENGTHS:
            process, said = _fit_process(x, y, fold, seed=seed)
            consider("process", said, lambda a, b: process)
    else:
        network, held = _fit_network(x, y, fold, penalty=penalty, seed=seed, drop=drop, effort=effort)
        consider("ridge + network", held, lambda a, b: network)
        if not forest.unavailable():
            name, stacked, said = _fit_stacked(x, y, fold, (network, held), seed=seed, effort=effort)
            consider(name, said, lambda a, b: stacked)
            if not isinstance(stacked.smooth, Network):
                # Networks and trees err in different places: their mean may err less than either. Every answer then
                # costs both, so that it must err clearly less.
                mean = (held + said) / 2
                consider("mean of network and trees", mean, lambda a, b: Averaged([network, stacked]), gain=0.05)
    return Fitted(best[3](x, y), best[2], scores)


def fit_abroad(x: Array, y: Array, groups: NDArray[Any], *, seed: int, effort: float) -> Averaged:
    """A learner for devices that nobody measured: the mean of learners of several kinds, each kept modest.

    On devices left out no kind is best throughout; their mean errs about as little as the best of them does.

    Args:
        x: standardised features ``(n, d)``, blank where they name a device.
        y: targets ``(n,)``.
        groups: group of each row.
        seed: of networks and trees.
        effort: factor on the number of training steps.
    """
    ridge = Linear.fit(x, y, 0.03)
    if len(y) <= FEW:
        return Averaged([ridge, Gaussian.fit(x, y, 0.03, 1.0, 0.1)])
    fold = group_folds(groups, 2, seed)
    network, _ = _fit_network(x, y, fold, penalty=0.03, seed=seed, drop=[], effort=0.25 * effort)
    if forest.unavailable():
        return Averaged([ridge, network])
    trees = Forest.fit(x, y, seed=seed, trees=max(8, round(0.2 * effort * forest.TREES)))
    return Averaged([ridge, network, Stacked(Linear(np.zeros(x.shape[1]), 0.0), trees)])


def _fit_process(
    x: Array, y: Array, fold: NDArray[np.int64], *, seed: int, looks: int = _LOOKS
) -> tuple[Surrogate, Array]:
    """A process of all rows, and what processes say of each fold that have neither learned it nor its lengths."""
    whole = Surrogate.fit(x, y, seed=seed, steps=_STEPS[0], most=_SOUGHT_ON)
    held, folds = np.empty(len(y)), np.unique(fold)
    for looked_away in np.array_split(folds, min(looks, len(folds))):
        rest = ~np.isin(fold, looked_away)
        again = Surrogate.fit(x[rest], y[rest], start=whole.theta, seed=seed, steps=_STEPS[1], most=_SOUGHT_ON)
        for f in looked_away:
            held[fold == f] = Surrogate(again.theta).learn(x[fold != f], y[fold != f]).predict(x[fold == f])
    return whole, held


SLOPES = ("log_base", "log_floor_share", "compute_share", "log_balance", "log_link")
"""Features along which a new device may differ before its kernels differ in shape."""


def fit_correction(x: Array, y: Array, fold: NDArray[np.int64], names: Sequence[str]) -> Fitted:
    """What a few rows say of a model's errors: a level, then slopes, then a shape.

    Args:
        x: standardised features ``(n, d)``.
        y: log(measured / predicted) ``(n,)``.
        fold: fold of each row.
        names: of the features.
    """
    d = x.shape[1]
    few = [i for i, name in enumerate(names) if name in SLOPES]
    scores: dict[str, float] = {}
    best: tuple[float, Array, Callable[[Array, Array], Linear | Gaussian]] | None = None
    candidates: dict[str, Callable[[Array, Array], Linear | Gaussian]] = {"level": lambda a, b: Linear.constant(b, d)}
    if len(np.unique(fold)) > 1 and len(y) >= 8:
        for penalty in (0.3, 0.03):
            candidates[f"slopes {penalty:g}"] = lambda a, b, penalty=penalty: Linear.fit(a, b, penalty, few)  # type: ignore[misc]
            candidates[f"ridge {penalty:g}"] = lambda a, b, penalty=penalty: Linear.fit(a, b, penalty)  # type: ignore[misc]
        for length in _LENGTHS:
            for noise in (0.1, 1.0):
                candidates[f"gaussian {length:g} {noise:g}"] = (
                    lambda a, b, length=length, noise=noise: Gaussian.fit(a, b, 1.0, length, noise)  # type: ignore[misc]
                )
    for name, make in candidates.items():
        held = np.full(len(y), np.median(y))
        for f in np.unique(fold) if len(candidates) > 1 else ():
            held[fold == f] = make(x[fold != f], y[fold != f]).predict(x[fold == f])
        scores[name] = float(np.mean(np.abs(held - y)))
        if best is None or scores[name] < 0.97 * best[0]:
            best = (scores[name], held, make)
    assert best is not None
    learner = best[2](x, y)
    if len(candidates) == 1:
        return Fitted(learner, best[1], scores)
    # Beside it a process with a length for each feature: with some dozens of rows neither is the better one throughout,
    # and errors on rows left out hardly tell which is. Their mean it is, unless that errs much more.
    process, said = _fit_process(x, y, fold, seed=0, looks=len(fold))
    held = (best[1] + said) / 2
    scores["mean with a process"] = float(np.mean(np.abs(held - y)))
    if scores["mean with a process"] > _MUCH_WORSE * best[0]:
        return Fitted(learner, best[1], scores)
    return Fitted(Averaged([learner, process]), held, scores)


def _fit_stacked(
    x: Array, y: Array, fold: NDArray[np.int64], smooth: tuple[Network, Array], *, seed: int, effort: float
) -> tuple[str, Stacked, Array]:
    """Trees alone, or on what a network leaves of the groups that it had not seen: what errs less on the first fold.

    Returns:
        The name of the candidate, the learner, and what those grown without a fold say of it.
    """
    count = max(8, round(effort * forest.TREES))

    def grown(job: tuple[Array, NDArray[np.int64]]) -> Forest:
        target, rows = job
        return Forest.fit(x[rows], target[rows], seed=seed, trees=count)

    network, held = smooth
    starts: dict[str, tuple[Linear | Network, Array]] = {
        "trees": (Linear(np.zeros(x.shape[1]), 0.0), 0.0 * y), "ridge + network + trees": (network, held),
    }  # fmt: skip
    folds = [int(f) for f in np.unique(fold)]
    first, rest = fold == folds[0], np.flatnonzero(fold != folds[0])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # the compiled loops need no interpreter
        tried = pool.map(grown, [(y - start, rest) for _, start in starts.values()])
        found = {name: trees.predict(x[first]) for name, trees in zip(starts, tried, strict=True)}
        error = {name: float(np.mean(np.abs(y[first] - starts[name][1][first] - f))) for name, f in found.items()}
        alone, both = starts
        name = both if error[both] < 0.98 * error[alone] else alone
        learner, start = starts[name]
        jobs = [(y - start, np.flatnonzero(fold != f)) for f in folds[1:]]
        whole, *without = pool.map(grown, [(y - start, np.arange(len(y))), *jobs])
    out = start.copy()
    out[first] += found[name]
    for f, trees in zip(folds[1:], without, strict=True):
        out[fold == f] += trees.predict(x[fold == f])
    return name, Stacked(learner, whole), out


def _fit_network(
    x: Array,
    y: Array,
    fold: NDArray[np.int64],
    *,
    penalty: float,
    seed: int,
    drop: list[NDArray[np.int64]],
    effort: float,
) -> tuple[Network, Array]:
    """A network trained on all rows, and what those trained beside it, each without a fold, say of that fold."""
    import torch

    rng = np.random.default_rng(seed)
    folds = [int(f) for f in np.unique(fold)]
    count, (n, d) = len(folds) + 1, x.shape
    linear = Linear.fit(x, y, penalty)
    residual = y - linear.predict(x)
    scale = float(np.mean(np.abs(residual))) + 1e-9
    members = [*(np.flatnonzero(fold != f) for f in folds), np.arange(n)]

    batch = int(np.clip(n // 40, 128, 512))
    steps = int(effort * np.clip(40 * n / batch, 1200, 3000))
    features = torch.from_numpy(np.asarray(x, np.float32))
    target = torch.from_numpy(np.asarray(residual / scale, np.float32))

    def weights(inputs: int, outputs: int, gain: float) -> tuple[Any, Any]:
        w = rng.normal(0.0, gain / np.sqrt(inputs), (count, inputs, outputs)).astype(np.float32)
        return torch.from_numpy(w).requires_grad_(), torch.zeros(count, 1, outputs, requires_grad=True)

    layers = [weights(d, _WIDTH, 1.4), weights(_WIDTH, _WIDTH, 1.4), weights(_WIDTH, 1, 0.1)]
    flat = [t for pair in layers for t in pair]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose more to waiting for each other than a second thread gains
    decayed, plain = [w for w, _ in layers], [b for _, b in layers]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 1e-3}, {"params": plain, "weight_decay": 0.0}])
    with torch.enable_grad(), contextlib.ExitStack() as undo:
        undo.callback(torch.set_num_threads, threads)
        for step in range(steps):
            # Linear warm-up, then half a cosine down to nothing.
            rate = 4e-3 * min(1.0, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = np.stack([m[rng.integers(0, len(m), batch)] for m in members])
            inputs = features[torch.from_numpy(rows)]
            for columns in drop:
                blank = torch.from_numpy(rng.random((count, batch, 1)) < 0.1)
                inputs[:, :, columns] = inputs[:, :, columns].masked_fill(blank, 0.0)
            h = inputs
            for w, b in layers[:-1]:
                h = torch.nn.functional.silu(torch.baddbmm(b, h, w))
            out = torch.baddbmm(layers[-1][1], h, layers[-1][0])[:, :, 0]
            wanted = target[torch.from_numpy(rows)]
            loss = torch.nn.functional.smooth_l1_loss(out, wanted, beta=0.3, reduction="sum") / batch
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    arrays = [t.detach().numpy().copy() for t in flat]
    arrays[-2] *= scale
    arrays[-1] *= scale
    together = Network(linear, [(arrays[i], arrays[i + 1]) for i in range(0, len(arrays), 2)])
    held = np.empty(n)
    for start in range(0, n, 8192):
        part = slice(start, start + 8192)
        alone = together.members(x[part])
        held[part] = linear.predict(x[part]) + alone[np.searchsorted(folds, fold[part]), np.arange(alone.shape[1])]
    return Network(linear, [(w[-1:], b[-1:]) for w, b in together.layers]), held
