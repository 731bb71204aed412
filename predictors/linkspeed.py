"""The speed of a device's links, fitted to the transfers among training rows, where no datasheet gives it.

Rows that differ in size alone (one operation, implementation, number of ranks, chunk ...) make a line
``t = latency + bytes / bandwidth`` by regimes (:mod:`wattline.predictors.transfers`), ``bytes`` being those over the
busiest link, one way. The regime of the largest sizes says what the link carries, if its largest transfers spend
at least half of their time on their bytes: below that the slope is latency's noise. The quickest of all lines counts,
and no row that moved bytes over the link any faster is ever contradicted: a bound made of it stays below what was
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattline.device import DeviceSpec
from wattline.predictors.base import Base, Curve
from wattline.predictors.families import family_of
from wattline.predictors.lines import FEWEST
from wattline.predictors.physics import Machine, Terms, many
from wattline.predictors.rows import Encoder
from wattline.predictors.table import Block
from wattline.predictors.transfers import fit_transfers
from wattline.units import format_si

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LARGEST = 12
"""Sizes of a line that are looked at, from the largest down: what small ones cost is not the link's."""
ON_BYTES = 0.5
"""Share of its time that the largest transfer must spend on its bytes."""
_COPIES = ("offload.h2d", "offload.d2h", "offload.bidirectional")


@dataclass(frozen=True)
class LinkSpeed:
    """What a link carries.

    Attributes:
        bandwidth: bytes/s, one way.
        op: the operation whose line, or row, was the quickest.
        lines: how many lines said something of it.
        error: root mean square of the relative errors of the quickest line.
        raised: a single row was quicker than every line, and counts.
    """

    bandwidth: float
    op: str
    lines: int
    error: float
    raised: bool


@dataclass(frozen=True)
class _Line:
    bandwidth: float
    op: str
    error: float


def measured_links(
    blocks: Sequence[Block], time: Array, machine: Callable[[str], Machine]
) -> dict[str, dict[str, LinkSpeed]]:
    """Speeds of links that datasheets leave out, by device and link.

    Args:
        blocks: the training rows.
        time: seconds of all rows of the frame.
        machine: the machine of a device id.
    """
    lines: dict[tuple[str, str], list[_Line]] = {}
    quickest: dict[tuple[str, str], tuple[float, str]] = {}
    for block in blocks:
        op, device = block.words.op, block.words.device
        spec = machine(device).spec
        for link, moved in _moved(block, machine(device)):
            if spec.listed_link(link):
                continue
            key, took = (device, link), time[block.rows]
            quickest[key] = max(quickest.get(key, (0.0, op)), (float((moved / took).max()), op))
            if _is_transfer(op):
                lines.setdefault(key, []).extend(_lines(op, moved, took, block.numbers))
    found: dict[str, dict[str, LinkSpeed]] = {}
    for (device, link), (rate, op) in quickest.items():
        own = lines.get((device, link), [])
        known = machine(device).spec.link_speed(link)  # of an earlier fit
        if own:
            best = max(own, key=lambda line: line.bandwidth)
        elif known:
            best = _Line(known, "an earlier fit", 0.0)
        else:
            continue
        raised = rate > best.bandwidth
        speed = LinkSpeed(max(rate, best.bandwidth), op if raised else best.op, len(own), best.error, raised)
        found.setdefault(device, {})[link] = speed
    return found


def link_notes(terms: Terms, spec: DeviceSpec) -> list[str]:
    """Where the bound of each link that a row uses comes from, unless from the datasheet."""
    notes = []
    for link, count in terms.link_bytes.items():
        if not np.any(count) or spec.listed_link(link):
            continue
        speed = spec.link_speed(link)
        if speed:
            told = format_si(speed, "B/s")
            notes.append(f"the bound by the link ({link}) is of {told} fitted to measured transfers, not a datasheet's")
        else:
            notes.append(f"the link ({link}) bounds nothing: its speed is neither listed nor measured")
    return notes


def _is_transfer(op: str) -> bool:
    """Whether its time is that of moving bytes over a link, and of nothing else."""
    return op in _COPIES or family_of(op).name == "collectives"


def _moved(block: Block, machine: Machine) -> Iterator[tuple[str, Array]]:
    """Bytes over each link of the rows of a block ``(n,)``; links that none of them uses are left out."""
    encoder = Encoder(family_of(block.words.op), Base({"*": Curve((0.0,), (1e-6,), (1.0,))}), {}, [])
    _, _, _, terms, _, _ = encoder.grounds(encoder.plan(block.words, machine), block.numbers, many(), many=True)
    for link, count in terms.link_bytes.items():
        moved = np.broadcast_to(np.asarray(count, np.float64), len(block.rows))
        if moved.any():
            yield link, moved


def _lines(op: str, moved: Array, took: Array, numbers: Mapping[str, Any]) -> Iterator[_Line]:
    """A line for each set of rows that differ in ``bytes`` alone, where their sizes say something of the link."""
    others = [np.nan_to_num(column, nan=-1.0) for name, column in sorted(numbers.items()) if name != "bytes"]
    _, label = np.unique(np.stack([np.zeros_like(took), *others]), axis=1, return_inverse=True)
    for group in range(label.max() + 1):
        rows = label.ravel() == group
        sizes = np.unique(moved[rows])[-LARGEST:]
        if len(sizes) < FEWEST:
            continue
        # One time of each size: the median of its repetitions.
        times = [float(np.median(took[rows & (moved == size)])) for size in sizes]
        fit = fit_transfers(sizes.tolist(), times)
        last = fit.regimes[-1]
        if sizes[-1] / last.bandwidth >= ON_BYTES * last.seconds(float(sizes[-1])):
            yield _Line(last.bandwidth, op, fit.error)
