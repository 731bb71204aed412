"""Machines that differ from their peers: of three or more of one model, which one is not like the others, and in what.

For each case the median over the machines stands for what the model takes; a machine's level is the median over its
cases of what it exceeds that by. Levels are held against the noise between equal measurements, against the spread of
the peers (median absolute deviation), and tested with Student's t, Holm's method over all machines and operations: here
a single false accusation is one too many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from wattline.case import Case
from wattline.reports.comparing.contrast import Leveled, repeats
from wattline.reports.comparing.judging import two_sided
from wattline.reports.comparing.noise import FEWEST_RATIOS, Noise, estimate, quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wattline.reports.comparing.reading import Side

FEWEST_MACHINES = 3
_FEWEST_CASES = 4
_EVIDENCE = 3
_MAD = 1.4826
_MEDIAN = math.sqrt(math.pi / 2)


@dataclass(frozen=True)
class Evidence:
    """One case of an outlier: its key and label, and what the machine exceeds the median of all by, as a share."""

    key: str
    label: str
    share: float


@dataclass(frozen=True)
class Outlier:
    """A machine that differs from its peers.

    Attributes:
        side: its number among the sides.
        name: its name.
        scope: the operation in which it differs beyond the rest of its own cases; empty: in all of them.
        share: what it exceeds its peers by: 0.1 takes 10 % longer.
        peers: how far the middle half of the machines lie about their median, as a share.
        p: adjusted p-value.
        cases: number of cases that it rests on.
        evidence: the cases that show it best.
    """

    side: int
    name: str
    scope: str
    share: float
    peers: float
    p: float
    cases: int
    evidence: Sequence[Evidence]


@dataclass(frozen=True)
class Fleet:
    """Machines of one model, held against each other.

    Attributes:
        device: the model.
        members: numbers of the sides.
        quantity: ``"time"`` or ``"energy"``.
        cases: cases that at least three of them measured.
        levels: by number of the side: what it exceeds the median machine by, as a share.
        noise: how far equal measurements differ.
        told: the smallest overall difference that would have been told, as a share.
        outliers: the worst first.
        why_not: why nothing was sought; empty where it was.
    """

    device: str
    members: Sequence[int]
    quantity: str = "time"
    cases: int = 0
    levels: Mapping[int, float] = field(default_factory=dict)
    noise: Noise | None = None
    told: float = math.nan
    outliers: Sequence[Outlier] = ()
    why_not: str = ""


def fleets(sides: Sequence[Side], *, quantity: str = "time", margin: float, confidence: float) -> list[Fleet]:
    """The fleets among the sides: three or more of one device.

    Args:
        sides: one for each machine.
        quantity: ``"time"`` or ``"energy"``.
        margin: smaller differences make no outlier.
        confidence: one less the chance of any false accusation.
    """
    by_device: dict[str, list[int]] = {}
    for i, side in enumerate(sides):
        if any(getattr(case, quantity) for case in side.cases.values()):
            by_device.setdefault(side.device_id, []).append(i)
    return [
        _fleet([sides[i] for i in members], members, quantity, margin, 1 - confidence)
        for device, members in by_device.items()
        if len(members) >= FEWEST_MACHINES and device
    ]


def _fleet(sides: Sequence[Side], members: Sequence[int], quantity: str, margin: float, alpha: float) -> Fleet:
    device = sides[0].device_name
    readings = [{k: getattr(c, quantity) for k, c in side.cases.items() if getattr(c, quantity)} for side in sides]
    leveled = [Leveled(r, len(side.runs)) for r, side in zip(readings, sides, strict=True)]
    known = dict.fromkeys(k for r in readings for k in r)
    keys = [k for k in known if sum(k in r for r in readings) >= FEWEST_MACHINES]
    if len(keys) < FEWEST_RATIOS:
        why = f"{len(keys)} cases were measured by three machines or more, and {FEWEST_RATIOS} are needed"
        return Fleet(device, members, quantity, len(keys), {}, why_not=why)
    counts = [sum(k in side.logs for k in keys) for side in leveled]
    if min(counts) < _FEWEST_CASES:
        kept = [i for i, count in enumerate(counts) if count >= _FEWEST_CASES]
        if len(kept) < FEWEST_MACHINES:
            why = f"fewer than {FEWEST_MACHINES} machines measured {_FEWEST_CASES} of the cases that they share"
            return Fleet(device, members, quantity, len(keys), {}, why_not=why)
        return _fleet([sides[i] for i in kept], [members[i] for i in kept], quantity, margin, alpha)
    # Shape (cases, machines); NaN where a machine has no figure.
    table = np.array([[side.found[k].mean if k in side.found else math.nan for side in leveled] for k in keys])
    off = table - np.nanmedian(table, axis=1, keepdims=True)
    levels = np.nanmedian(off, axis=0)
    noise = _noise(table, levels, leveled)
    groups: dict[str, list[int]] = {}
    cases = {k: c.case for side in sides for k, c in side.cases.items()}
    for i, key in enumerate(keys):
        groups.setdefault(" ".join(w for w in (cases[key].op, cases[key].dtype or "") if w), []).append(i)
    asked = []
    runs = np.array([len(side.runs) for side in sides], dtype=np.float64)
    for name, rows in {"": list(range(len(keys))), **groups}.items():
        part = off[rows] - (levels if name else 0.0)
        counts = np.sum(np.isfinite(part), axis=0)
        if len(rows) < _FEWEST_CASES or counts.min() < _FEWEST_CASES:
            continue
        values = np.nanmedian(part, axis=0)
        values = values - np.median(values)
        peers = _MAD * float(np.median(np.abs(values)))
        # The level of a whole run drifts as much as one measurement; within a run that cancels.
        drift = 0.0 if name else 2 * noise.scale**2
        errors = np.sqrt(peers**2 + drift / runs + (_MEDIAN * noise.scale) ** 2 * 2 / counts)
        p = two_sided(values, errors, np.full(len(sides), noise.freedom))
        asked += [(float(p[m]), name, m, float(values[m]), peers, rows) for m in range(len(sides))]
    found = []
    for (_, name, m, value, peers, rows), held in zip(asked, holm([a[0] for a in asked]), strict=True):
        if held <= alpha and abs(value) > math.log1p(margin):
            shown = _evidence(off[rows, m], [keys[i] for i in rows], value, cases)
            found.append(
                Outlier(members[m], sides[m].name, name, math.expm1(value), math.expm1(peers), held, len(rows), shown)
            )
    found.sort(key=lambda o: (bool(o.scope), -abs(o.share)))
    told = _told(noise, len(asked), alpha, len(keys), runs)
    by_side = {members[m]: math.expm1(float(levels[m] - np.median(levels))) for m in range(len(sides))}
    return Fleet(device, members, quantity, len(keys), by_side, noise, told, found)


def _noise(table: NDArray[np.float64], levels: NDArray[np.float64], leveled: Sequence[Leveled]) -> Noise:
    """From repeats, and from the differences of neighbouring machines: both are ratios of two measurements."""
    flat = table - levels
    steps = (flat[:, 1:] - flat[:, :-1]).ravel()
    steps = steps[np.isfinite(steps)]
    return estimate(
        *repeats(leveled), ratios=steps - np.median(steps), ratios_own=np.zeros(len(steps)), several_runs=False
    )


def _told(noise: Noise, asked: int, alpha: float, cases: int, runs: NDArray[np.float64]) -> float:
    error = noise.scale * math.sqrt(2 / float(runs.min()) + _MEDIAN**2 * 2 / cases)
    reach = quantile(1 - alpha / (2 * asked), noise.freedom) + quantile(0.9, noise.freedom)
    return math.expm1(min(reach * error, 700.0))


def _evidence(
    off: NDArray[np.float64], keys: Sequence[str], value: float, cases: Mapping[str, Case]
) -> list[Evidence]:
    toward = np.where(np.isfinite(off), off * math.copysign(1.0, value), -math.inf)
    order = np.argsort(-toward, kind="stable")[:_EVIDENCE]
    return [Evidence(keys[i], cases[keys[i]].label(), math.expm1(float(off[i]))) for i in order]


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted by S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6, 1979:
    the chance that any true hypothesis is rejected is bounded."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, p[i] * (len(p) - rank)))
        adjusted[i] = running
    return adjusted
