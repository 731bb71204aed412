"""The analytical base: what a kernel takes before anything is learned.

It is ``alpha + beta * busy``, and more latency for long messages.

``busy`` is the roofline (tiles and waves included) or the time on the link. ``alpha`` is the launch or latency floor,
``beta`` the inverse of the attainable share of the link (1 elsewhere: the learned ratio carries it). Both are read off
the training rows per device, regime, implementation and format; for collectives per operation, device and ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wattline.predictors.table import Words

    Array = NDArray[np.float64]

PRIOR_LAUNCH_S = {"cpu": 1e-6, "gpu": 4e-6, "accelerator": 8e-6}
"""Launch floor of a device of which nothing was measured."""
FLOOR_RANGE = (1e-7, 5e-4)
"""Seconds between which a launch floor lies."""


@dataclass(frozen=True)
class Curve:
    """``alpha``, ``extra`` (s) and ``beta`` by position (log2 of the number of ranks; a single 0 elsewhere).

    ``extra`` is latency that grows in with the message: collectives switch from a protocol of low latency to one of
    high bandwidth. It counts fully once the link is busy for longer than it.

    ``sharp`` says how launching and being busy add up, as ``(alpha^s + busy^s)^(1/s)``: one after the other (1), or
    beside each other (large), where a host prepares several kernels while the device is at work and the longer of the
    two decides. ``passes`` counts how often, beyond the compulsory traffic, a kernel moves the bytes of its
    activations: quantising them on the fly does.
    """

    at: tuple[float, ...]
    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    extra: tuple[float, ...] = (0.0,)
    sharp: float = 1.0
    passes: float = 0.0

    def __call__(self, position: Any) -> tuple[Any, Any, Any]:
        """``alpha``, ``beta`` and ``extra`` at a position, interpolated."""
        if len(self.at) == 1:
            return self.alpha[0], self.beta[0], self.extra[0]
        return tuple(np.interp(position, self.at, part) for part in (self.alpha, self.beta, self.extra))


def launch_floor(spec: DeviceSpec) -> float:
    """The launch floor of a device: the measured one, else that of its kind."""
    if spec.measured and spec.measured.launch_s:
        return spec.measured.launch_s
    return PRIOR_LAUNCH_S.get(spec.kind, 4e-6)


PASSES = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""How often the bytes of the activations may be moved besides."""
_SHARP = (2.0, 4.0, 8.0)
_EIGHTHS = range(-3, 7)
"""Eighths of an octave that a floor is moved by where it hides beside the work."""
_CLEARLY, _ABOUT = 0.9, 1.02
"""Errors that justify more than a floor, against those of a floor alone; and what counts as equally good."""
_ENOUGH, _LOOKED_AT = 60, 5000
"""Rows of a kernel from which more than its floor is sought, and at most looked at."""


def _floor(time: Array, busy: Array, prior: float) -> float:
    """What the shortest kernels take beyond being busy, in seconds.

    Only rows near the shortest say something about launching. Where even those are long, the prior holds unless
    they are quicker.
    """
    short = time <= 1.5 * np.quantile(time, 0.02)
    spare = float(np.median(time[short] - np.minimum(busy[short], 0.9 * time[short])))
    floor = spare if time[short].min() < 30 * prior else min(spare, prior)
    return float(np.clip(floor, *FLOOR_RANGE))


def fit_kernel(time: Array, busy: Array, streamed: Array, prior: float, seed: int = 0) -> Curve:
    """Floor, sharpness and passes of one kernel (an implementation and format): those that explain its times best.

    Plainer ones stay unless errors scatter clearly less around their median; the level is what is learned.

    Args:
        time: seconds ``(n,)``.
        busy: seconds that the device is busy at best ``(n,)``.
        streamed: seconds that the bytes of the activations take once ``(n,)``; zeros where nobody knows them.
        prior: launch floor of the device.
        seed: of the rows that are looked at, where they are many.
    """
    if len(time) > _LOOKED_AT:
        chosen = np.random.default_rng(seed).permutation(len(time))[:_LOOKED_AT]
        time, busy, streamed = time[chosen], busy[chosen], streamed[chosen]
    # Long kernels say what being busy costs; short ones are all floor, and often the most.
    weight = np.log(time / time.min()) + 0.05
    weight /= weight.sum()

    def scatter(passes: float, sharp: float, floor: float) -> float:
        error = np.log(time) - np.log(floor**sharp + (busy + passes * streamed) ** sharp) / sharp
        return float(weight @ np.abs(error - np.median(error)))

    plain = (0.0, 1.0, _floor(time, busy, prior))
    tried = [plain]
    for passes in () if len(time) < _ENOUGH else PASSES if streamed.any() else PASSES[:1]:
        first = _floor(time, busy + passes * streamed, prior)
        tried.append((passes, 1.0, first))
        tried += [(passes, sharp, first * 2.0 ** (step / 8)) for sharp in _SHARP for step in _EIGHTHS]
    errors = [scatter(*each) for each in tried]
    # The plainest of those that are about as good as the best.
    best = next(each for each, error in zip(tried, errors, strict=True) if error <= _ABOUT * min(errors))
    passes, sharp, floor = best if min(errors) < _CLEARLY * scatter(*plain) else plain
    return Curve((0.0,), (float(np.clip(floor, *FLOOR_RANGE)),), (1.0,), sharp=sharp, passes=passes)


_LINES = 4
"""Parts of a curve that a bundle of version 1 holds."""
SHARED = 0.6
"""Weight of the best inverse bandwidth that any collective reaches over the same link."""


USUAL_LINK = 0.78
"""Share of the datasheet's link that collectives end at: all-reduce of NCCL on eight A100 or H100 comes to bus
bandwidths of some 235 of 300 and 360 of 450 GB/s. Measured sizes often end before that is reached."""
_PULL = 0.5
"""Weight of that share, in log space, beside a slope that was measured."""


def towards_usual(beta: float) -> float:
    """An inverse share of a link with a datasheet, pulled towards the usual one where it is slower."""
    return float(beta ** (1 - _PULL) * (1 / USUAL_LINK) ** _PULL) if beta > 1 / USUAL_LINK else beta


def fit_beta(time: Array, busy: Array) -> float:
    """Inverse share of the link that one collective attains on one device and number of ranks.

    The slope of a least-squares line (of the relative error) through the messages within 4 times of the largest.
    """
    top = busy >= busy.max() / 4
    t, b = time[top], busy[top]
    if len(np.unique(b)) < 2 or b.max() <= 0:
        return 1.0
    weight = 1.0 / t
    design = np.stack([weight, b * weight], axis=1)
    alpha, beta = np.linalg.lstsq(design, np.ones(len(t)), rcond=None)[0]
    if alpha < 0 or beta <= 0:
        beta = np.median(t / b)
    return float(max(beta, 1e-3))


def fit_latency(time: Array, busy: Array, beta: float) -> tuple[float, float]:
    """``alpha`` (the least time seen) and ``extra``, what the largest messages take beyond it and the link."""
    floor = float(np.quantile(time, 0.02))
    top = busy >= busy.max() / 4
    large = float(np.median(time[top] - beta * busy[top]))
    return floor, max(large - floor, 0.0)


def share_links(betas: Mapping[str, float], *, weight: float = SHARED) -> dict[str, float]:
    """Pull each collective towards the best one over the same link.

    Bandwidth still rises where the measured sizes end, and all collectives of a machine use the same links: what the
    best of them attains, the others approach with larger messages.

    Args:
        betas: inverse shares by operation, of one device and number of ranks.
        weight: how far to pull, in log space.
    """
    best = min(betas.values())
    return {op: beta ** (1 - weight) * best**weight for op, beta in betas.items()}


class Base:
    """The curves of one family, looked up from the most to the least specific key."""

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        self.curves = dict(curves)

    @staticmethod
    def keys(collective: bool, words: Words) -> tuple[str, ...]:
        """Keys to try in order. A floor belongs to a kernel (implementation and format) as much as to a device."""
        if collective:
            return (f"{words.op}|{words.device}", words.op, "*")
        kernel = f"{words.regime}|{words.impl}|{words.dtype}"
        return (f"{words.device}|{kernel}", f"{words.device}|{words.regime}", f"|{kernel}", f"|{words.regime}", "*")

    def find(self, collective: bool, words: Words) -> Curve:
        """The curve of the first key that is known."""
        return next(self.curves[key] for key in self.keys(collective, words) if key in self.curves)

    def add_means(self) -> None:
        """Curves for keys less specific than those fitted: medians over devices."""
        specific = [k for k in self.curves if "|" in k]
        wider: dict[str, list[Curve]] = {}
        for key in specific:
            head, tail = key.split("|", 1)
            for name in (head if head.startswith("collectives.") else f"|{tail}", "*"):
                wider.setdefault(name, []).append(self.curves[key])
        for name, found in wider.items():
            at = sorted({a for c in found for a in c.at})
            both = np.array([[c(a) for a in at] for c in found], float)
            # Of two that differ the plainer one: what is not agreed on is left to learning.
            sharp, passes = np.quantile([[c.sharp, c.passes] for c in found], 0.5, axis=0, method="lower").tolist()
            alpha, beta, extra = (tuple(map(float, part)) for part in np.median(both, axis=0).T)
            self.curves[name] = Curve(tuple(at), alpha, beta, extra, sharp, passes)

    def state(self) -> dict[str, Any]:
        """Plain facts."""
        return {k: list(astuple(c)) for k, c in self.curves.items()}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any]) -> Base:
        """From :meth:`state`."""
        found = {}
        for key, (*lines, sharp, passes) in ((k, v if len(v) > _LINES else [*v, 1.0, 0.0]) for k, v in facts.items()):
            at, alpha, beta, extra = (tuple(float(x) for x in part) for part in lines)
            found[key] = Curve(at, alpha, beta, extra, float(sharp), float(passes))
        return cls(found)
