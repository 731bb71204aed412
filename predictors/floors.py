"""Launch floors of a new device, from a few rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wattline.predictors.base import FLOOR_RANGE, Base, Curve
from wattline.predictors.model import FamilyModel
from wattline.predictors.physics import Machine
from wattline.predictors.rows import Encoder, kernel_of
from wattline.predictors.table import Block

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_FEWEST = 5
"""Rows of one kernel from which its floor is sought."""
_HALVES = tuple(sign * step / 2 for step in range(1, 13) for sign in (1, -1))
"""Octaves that a floor is moved by, the nearest first."""
_CLEARLY = 0.98
_TWIN = 0.95
"""Scatter at which a kernel is taken to be like another one, against what it is as one of its own."""
_FAR_OFF = 0.5
"""Share of the error that must be left for hardly any rows to set a floor."""
_KERNEL = 3
"""Bars in the key of one kernel on one device."""


@dataclass
class _Search:
    """The curve of one kernel with which a model explains a few rows best.

    Level comes after: a curve is judged by how far errors scatter around their median; of a kernel of which hardly any
    row is there (``few``), by the errors themselves. ``share`` is the weight of the learner, where it is not the one
    that the model would give it.
    """

    model: FamilyModel
    key: str
    blocks: Sequence[Block]
    time: Array
    machine: Callable[[str], Machine]
    best: tuple[float, Curve]
    share: float | None = None
    few: bool = False

    def consider(self, curve: Curve) -> None:
        """Keep a curve if it is clearly better."""
        encoder = self.model.encoder
        before = encoder.base
        encoder.base = Base({**before.curves, self.key: curve})
        e = self.model.encode(self.blocks, self.machine)
        encoder.base = before
        choices = [self.model.choose(plan) for plan, _ in e.plans]
        if self.share is not None:
            choices = [replace(choice, share=self.share) for choice in choices]
        error = np.log(self.time[e.rows] / self.model.answer(e, 0.9, choices).time)
        scatter = float(np.mean(np.abs(error if self.few else error - np.median(error))))
        if scatter < _CLEARLY * self.best[0]:
            self.best = (scatter, curve)

    def floors(self, start: Curve, highest: float) -> None:
        """Move the floor of a curve; rows tell of none that is far below what the shortest of them takes."""
        lowest = max(FLOOR_RANGE[0], min(start.alpha[0], 0.5 * highest))
        for octaves in _HALVES:
            floor = start.alpha[0] * 2.0**octaves
            if lowest <= floor <= min(FLOOR_RANGE[1], highest):
                self.consider(replace(start, alpha=(floor,)))


def _alike(base: Base, dtype: str, known: Curve) -> list[Curve]:
    """Curves of one format that differ in more than their floor, the known one first."""
    found = {(known.sharp, known.passes): known}
    for key, curve in base.curves.items():
        if key.split("|")[-1] == dtype and key.count("|") == _KERNEL:
            found.setdefault((curve.sharp, curve.passes), curve)
    return list(found.values())


def with_floors(
    model: FamilyModel, blocks: Sequence[Block], time: Array, machine: Callable[[str], Machine]
) -> Encoder:
    """The encoder with floors of the kernels in a few rows: those with which the model explains them best.

    Args:
        model: a fitted model; stays as it is.
        blocks: the rows.
        time: seconds of all rows of the frame ``(n,)``.
        machine: the machine of a device id.
    """
    trial = copy(model)
    encoder = trial.encoder = copy(model.encoder)
    if encoder.collective:
        return encoder
    kernels: dict[str, list[Block]] = {}
    for block in blocks:
        kernels.setdefault(Base.keys(False, block.words)[0], []).append(block)
    for key, own in kernels.items():
        rows = np.concatenate([b.rows for b in own])
        words = own[0].words
        measured = _measured(model, words.dtype)
        known = encoder.base.find(False, words)
        highest = float(time[rows].min())
        if len(rows) < _FEWEST:
            if (words.device, words.impl) not in measured:
                few = _Search(trial, key, own, time, machine, (np.inf, known), few=True)
                encoder.base = _of_hardly_any(few, highest)
            continue
        search = _Search(trial, key, own, time, machine, (np.inf, known))
        search.consider(known)
        # What kernels of the same format do elsewhere (several passes, a host that is in the way) this one may do too.
        for curve in _alike(encoder.base, words.dtype, known):
            search.consider(curve)
            search.floors(curve, highest)
        search.floors(search.best[1], highest)
        best = search.best
        if (words.device, words.impl) not in measured:
            # It may be one of them under another name, or on a device that differs in what the datasheet says.
            twins = chosen = encoder.twins
            for other, curve in measured.items():
                encoder.twins = {**twins, kernel_of(words): other}
                search = _Search(trial, key, own, time, machine, (np.inf, known), share=1.0)
                for start in {known: None, curve: None}:
                    search.consider(start)
                    search.floors(start, highest)
                if search.best[0] < _TWIN * best[0]:
                    best, chosen = search.best, encoder.twins
            encoder.twins = chosen
        encoder.base = Base({**encoder.base.curves, key: best[1]})
    return encoder


def _of_hardly_any(search: _Search, highest: float) -> Base:
    """The base with a floor for a kernel of which a row or a few are there, if they are far off without it."""
    base, known = search.model.encoder.base, search.best[1]
    search.consider(known)
    before = search.best[0]
    for curve in _alike(base, search.blocks[0].words.dtype, known):
        search.consider(curve)
        search.floors(curve, highest)
    return Base({**base.curves, search.key: search.best[1]}) if search.best[0] < _FAR_OFF * before else base


def _measured(model: FamilyModel, dtype: str) -> dict[tuple[str, str], Curve]:
    """Curve by device and implementation of the kernels of one format that the training rows held."""
    found = {}
    for key, curve in model.encoder.base.curves.items():
        if key.count("|") == _KERNEL:
            device, _, impl, own = key.split("|")
            if own == dtype and device in model.seen["device"] and impl in model.seen["impl"]:
                found[device, impl] = curve
    return found
