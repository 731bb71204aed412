"""Estimate: one answer of a predictor, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattline.units import PREFIXES, format_si, format_time

NAN = float("nan")


@dataclass(frozen=True)
class Explanation:
    """Why an estimate is what it is.

    Attributes:
        bound_by: what the physical bound consists of (``"compute"``, ``"memory"``, ``"link"``, ``"nothing"``).
        limited_by: what most of the estimated time goes to (one of the terms).
        terms: seconds by name; they add up to the estimated time. A negative term is time that the learned ratio
            takes off what the analytical base assumes.
        nearest: measured rows most like the question, with ``time_s`` and ``distance``.
        notes: why the answer may be doubted.
    """

    bound_by: str
    limited_by: str
    terms: Mapping[str, float]
    nearest: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    def __str__(self) -> str:
        lines = [f"bounded by {self.bound_by}; most of the time goes to {self.limited_by}"]
        for name, seconds in self.terms.items():
            sign = "-" if seconds < 0 else "+"
            lines.append(f"  {sign} {format_time(abs(seconds)):>9}  {name}")
        lines += [f"  note: {note}" for note in self.notes]
        if self.nearest:
            lines.append("nearest measured rows:")
        for row in self.nearest:
            shown = " ".join(_shown(k, v) for k, v in row.items() if k not in ("time_s", "distance"))
            lines.append(f"  {format_time(row['time_s']):>9}  {shown} (distance {row['distance']:.2f})")
        return "\n".join(lines)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{name}={value:g}" if abs(value) < 1e6 and value != int(value) else f"{name}={int(value)}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a kernel will cost.

    Attributes:
        time_s, time_lo_s, time_hi_s: seconds a call and their interval.
        power_w, power_lo_w, power_hi_w: mean watts while it runs; NaN where no power was measured.
        energy_j, energy_lo_j, energy_hi_j: joules a call; ``energy_j`` is ``time_s * power_w``.
        bound_s: the least time that physics allows.
        bound_by: ``"compute"``, ``"memory"``, ``"link"`` or ``"nothing"``.
        in_domain: whether the question lies inside what was learned.
        source: ``"learned"``; ``"transfer"`` (learned on another device, implementation or format); ``"analytical"``
            (nothing was learned of this operation).
        coverage: nominal coverage of the intervals.
        question: what was asked.
    """

    time_s: float
    time_lo_s: float
    time_hi_s: float
    power_w: float
    power_lo_w: float
    power_hi_w: float
    energy_j: float
    energy_lo_j: float
    energy_hi_j: float
    bound_s: float
    bound_by: str
    in_domain: bool
    source: str
    coverage: float
    question: Mapping[str, Any] = field(default_factory=dict)
    _why: Callable[[], Explanation] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        lo, hi, unit = _interval(self.time_lo_s, self.time_s, self.time_hi_s)
        time = f"{unit} [{lo}, {hi}]"
        energy = "no power measured" if math.isnan(self.energy_j) else _joules(self.energy_j)
        bound = f"bound {format_time(self.bound_s)} by {self.bound_by}" if self.bound_s > 0 else "no bound known"
        domain = "in domain" if self.in_domain else "outside the domain"
        return ", ".join([time, energy, bound, domain, *([] if self.source == "learned" else [self.source])])

    def explain(self) -> Explanation:
        """What bounds it, the terms that add up to its time, and the nearest measured rows."""
        if self._why is None:
            return Explanation(self.bound_by, "unknown", {"time": self.time_s}, (), ())
        return self._why()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; figures that are not known are ``None``."""
        out: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name == "question":
                out |= {"question": dict(value)}
            elif name != "_why":
                out[name] = None if isinstance(value, float) and math.isnan(value) else value
        return out


def _joules(energy: float) -> str:
    """``0.119 J`` rather than ``119 mJ``; smaller figures with a prefix."""
    return f"{energy:.3f} J" if 0.01 <= energy < 1 else format_si(energy, "J")


def _interval(lo: float, mid: float, hi: float) -> tuple[str, str, str]:
    """Ends as plain numbers in the unit of the middle, and the middle with its unit; far ends have their own unit."""
    middle = format_time(mid)
    number, unit = middle.split(" ")
    exponent = next((power for power, prefix in PREFIXES.items() if f"{prefix}s" == unit), 0)
    decimals = len(number.partition(".")[2])

    def end(value: float) -> str:
        scaled = value / 10.0**exponent
        return f"{scaled:.{decimals}f}" if scaled == 0 or 10.0**-decimals <= scaled < 1000 else format_time(value)

    return end(lo), end(hi), middle
