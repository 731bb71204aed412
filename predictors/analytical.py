"""Estimates for operations of which nothing was learned: physics and a launch floor, and a wide interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.predictors.base import Base, Curve, launch_floor
from wattline.predictors.families import family_of
from wattline.predictors.physics import Machine, Terms, many
from wattline.predictors.rows import Encoder
from wattline.predictors.table import Block, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPICAL = 1.6
"""Time over base of a kernel of usual quality: vendor libraries reach some 50 to 80 % of the roofline on the public
tables that this project was developed with."""
SPREAD = 0.7
"""Standard deviation of log(time) around it, on the same tables."""


@dataclass
class Analytical:
    """Figures of rows without a learned model: arrays ``(n,)``, or floats; and the terms of the bound."""

    time: Any
    lo: Any
    hi: Any
    bound: Any
    by: Any
    alpha: Any
    busy: Any
    terms: Terms


def work_out(words: Words, numbers: Mapping[str, Any], machine: Machine, coverage: float, n: int) -> Analytical:
    """Estimate ``n`` rows of one set of words from physics alone; numbers are arrays ``(n,)``."""
    floor = launch_floor(machine.spec)
    encoder = Encoder(family_of(words.op), Base({"*": Curve((0.0,), (floor,), (1.0,))}), {}, [])
    physics = encoder.physics(encoder.plan(words, machine), numbers, many(), many=True)
    t = physics.terms
    bound = np.broadcast_to(np.asarray(t.bound, np.float64), n)
    parts = (t.bound_compute, t.bound_memory, t.bound_link)
    terms = np.stack([np.broadcast_to(np.asarray(v, np.float64), n) for v in parts])
    by = np.where(terms.max(axis=0) > 0, terms.argmax(axis=0) + 1, 0)
    time = np.maximum(np.broadcast_to(np.asarray(physics.base, np.float64), n) * TYPICAL, bound)
    half = SPREAD * normal_quantile(0.5 + coverage / 2)
    busy = np.broadcast_to(np.asarray(physics.busy, np.float64), n)
    return Analytical(time, np.maximum(time * np.exp(-half), bound), time * np.exp(half), bound, by, floor, busy, t)


def fill(out: dict[str, NDArray[Any]], block: Block, machine: Machine, coverage: float) -> None:
    """Write the estimates of a block into the columns of a prediction; power stays unknown."""
    a = work_out(block.words, block.numbers, machine, coverage, len(block.rows))
    out["time_s"][block.rows], out["time_lo_s"][block.rows], out["time_hi_s"][block.rows] = a.time, a.lo, a.hi
    out["bound_s"][block.rows] = a.bound
    out["bound_by"][block.rows] = a.by


def normal_quantile(p: float) -> float:
    """The quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(min(p, 1 - 1e-12))
