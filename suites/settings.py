"""Settings of the measurement loop: what a preset's ``[measure]`` table may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from wattline.errors import ParamError, unknown_name

WATCHING_PAIRS = 8
"""Pairs of blocks, with and without the samplers, that tell what watching costs."""
_BLOCK_SHARE, _SHORTEST_BLOCK_S, _LONGEST_BLOCK_S = 0.2, 0.1, 0.5
STOPPING = ("precise", "stable_noise", "time_limit")
_LISTED = "docs/method.md lists the settings with their defaults"


@dataclass(frozen=True)
class MeasureSettings:
    """How long and how precisely each case is measured.

    Attributes:
        stopping: criterion: ``"precise"`` (relative half-width of the bootstrap 95 % interval of the median at
            most ``precision``), ``"stable_noise"`` (the relative standard deviation stopped moving) or
            ``"time_limit"`` (always to the limit).
        precision: relative half-width to reach.
        min_time_s: a measurement lasts at least this long, however soon it is precise: noise that comes and goes
            over tenths of a second would not be seen in a shorter one, and its interval would be too narrow.
        time_limit_s: limit of the timed part of a case.
        warmup_limit_s: limit of its warm-up.
        min_samples: below this a measurement is flagged.
        max_samples: no more than this are taken.
        max_call_s: a case whose single call would take longer is skipped, with the reason.
        deadline_s: a case silent for longer than this, beyond its own limits, has hung and is killed.
        check: compare results with a reference.
        energy_window_s: length of the load that energy is measured over; ``None``: the sensor's own rule.
        iterations: exactly so many calls are timed, whatever their spread (runs of several ranks only); 0: the
            criterion decides.
        warmup_iterations: exactly so many calls warm up (likewise); 0: until two medians agree.
    """

    stopping: str = "precise"
    precision: float = 0.01
    min_time_s: float = 0.5
    time_limit_s: float = 1.0
    warmup_limit_s: float = 0.3
    min_samples: int = 10
    max_samples: int = 1000
    max_call_s: float = 1.0
    deadline_s: float = 60.0
    check: bool = True
    energy_window_s: float | None = None
    iterations: int = 0
    warmup_iterations: int = 0

    def __post_init__(self) -> None:
        if self.stopping not in STOPPING:
            raise unknown_name("stopping criterion", self.stopping, STOPPING)
        for name in ("precision", "time_limit_s", "warmup_limit_s", "max_call_s", "deadline_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ParamError(f"measure.{name} must be a number above zero, not {value!r}", todo=_LISTED)
        window = self.energy_window_s
        if window is not None and (
            isinstance(window, bool) or not isinstance(window, int | float) or not 0 < window < float("inf")
        ):
            raise ParamError(f"measure.energy_window_s must be a number above zero, not {window!r}", todo=_LISTED)
        if not isinstance(self.check, bool):
            raise ParamError(f"measure.check must be true or false, not {self.check!r}", todo=_LISTED)
        least = self.min_time_s
        if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= self.time_limit_s:
            raise ParamError(
                f"measure.min_time_s must be from 0 to measure.time_limit_s ({self.time_limit_s:g}), "
                f"not {self.min_time_s!r}",
                todo=_LISTED,
            )
        for name in ("iterations", "warmup_iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ParamError(f"measure.{name} must be a whole number from 0, not {value!r}", todo=_LISTED)
        for name in ("min_samples", "max_samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ParamError(f"measure.{name} must be a whole number above zero, not {value!r}", todo=_LISTED)
        if self.max_samples < self.min_samples:
            raise ParamError(
                "measure.max_samples is below measure.min_samples",
                why=f"{self.max_samples} and {self.min_samples}", todo="raise the one or lower the other",
            )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MeasureSettings:
        """From a preset's table.

        Raises:
            UnknownNameError: an unknown setting.
            ParamError: a value out of range.
        """
        known = [f.name for f in fields(cls)]
        for name in data:
            if name not in known:
                error = unknown_name("setting of [measure]", name, known)
                error.todo = _LISTED
                raise error
        return cls(**data)


def watching_block_s(settings: MeasureSettings) -> float:
    """Seconds of one such block: a share of a case's time limit, so that a quick preset stays quick; a few polls of the
    samplers must fall into it."""
    return min(_LONGEST_BLOCK_S, max(_SHORTEST_BLOCK_S, _BLOCK_SHARE * settings.time_limit_s))


def watching_s(settings: MeasureSettings) -> float:
    """Seconds that measuring the cost of watching takes."""
    return 2 * WATCHING_PAIRS * watching_block_s(settings)
