"""Time against energy: the candidates that no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wattline.predictors.planning.choices import Choice, Refused, asked, need_energy
from wattline.units import format_si, format_time

if TYPE_CHECKING:
    from wattline.predictors.predictor import KernelPredictor


@dataclass(frozen=True)
class Front:
    """The trade between time and energy.

    Attributes:
        front: candidates that no other beats, by expected figures, from the quickest to the thriftiest.
        possible: candidates beyond the front that are not surely beaten: no other is below both of their intervals.
        beaten: all others.
        refused: candidates that cannot be estimated.
    """

    front: tuple[Choice, ...]
    possible: tuple[Choice, ...]
    beaten: tuple[Choice, ...]
    refused: tuple[Refused, ...] = ()

    def __str__(self) -> str:
        lines = []
        parts = (("", self.front), ("cannot be told apart from the front", self.possible), ("beaten", self.beaten))
        for word, choices in parts:
            for choice in choices:
                time, time_lo, time_hi = choice.figure("time")
                energy, energy_lo, energy_hi = choice.figure("energy")
                shown = f"{format_time(time)} [{format_time(time_lo)}, {format_time(time_hi)}], "
                shown += f"{format_si(energy, 'J')} [{format_si(energy_lo, 'J')}, {format_si(energy_hi, 'J')}]"
                lines.append(f"{choice.label()}: {shown}" + (f", {word}" if word else ""))
        return "\n".join(lines)


def nondominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other beats: none is as low in both and lower in one; in order of the first.

    Args:
        points: two figures each, both better when lower. Equal points stay together.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    out: list[int] = []
    least = float("inf")
    for i in order:
        if points[i][1] < least or (out and points[i] == points[out[-1]]):
            out.append(i)
            least = points[i][1]
    return out


def pareto(
    predictor: KernelPredictor,
    op: str,
    candidates: Sequence[Mapping[str, Any]] | None = None,
    *,
    coverage: float = 0.9,
    **shared: Any,
) -> Front:
    """Which candidates are worth considering, when both time and energy count.

    Args:
        predictor, op, candidates, coverage, shared: as :func:`wattline.predictors.planning.best` takes them.

    Raises:
        DataError: no power was measured of a candidate.
        ParamError, UnknownNameError, UnsupportedError: see :func:`wattline.predictors.planning.best`.
    """
    choices, refused = asked(predictor, op, candidates, coverage=coverage, shared=shared)
    need_energy(choices)
    return front_of(choices, refused)


def front_of(choices: Sequence[Choice], refused: Sequence[Refused] = ()) -> Front:
    """The same of estimates that are at hand."""
    figures = [(choice.figure("time"), choice.figure("energy")) for choice in choices]
    on = nondominated([(time[0], energy[0]) for time, energy in figures])
    rest = [i for i in range(len(choices)) if i not in on]

    def surely_beaten(i: int) -> bool:
        (_, time_lo, _), (_, energy_lo, _) = figures[i]
        return any(time[2] < time_lo and energy[2] < energy_lo for time, energy in figures)

    return Front(
        tuple(choices[i] for i in on),
        tuple(choices[i] for i in rest if not surely_beaten(i)),
        tuple(choices[i] for i in rest if surely_beaten(i)),
        tuple(refused),
    )
