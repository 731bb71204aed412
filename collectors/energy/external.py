"""An external meter beside the sensor: its log sets the gain and the offset that software alone cannot find.

The log is a CSV with a header and two columns: time (seconds since 1970, or ISO 8601) and watts. It must be written
while the calibration runs and cover the three levels; the meter must see the device alone (its supply rails, or an
interposer), or the device and something steady. From then on true watts = gain * watts read + offset.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattline.collectors.energy.sources import COUNTER, Reading, SensorProfile, Source
from wattline.errors import DataError, storage_error

if TYPE_CHECKING:  # that module needs numpy, and every sensor imports this one
    from wattline.collectors.energy.levels import LevelPower

METER_ERROR = 0.01
"""Relative error that a meter is taken to have where nothing better is known."""

TIME_COLUMNS = ("time", "time_s", "timestamp")
POWER_COLUMNS = ("power_w", "power", "watts")

_MARGIN = 0.1
"""Share of a level left out at each end: the clocks of two machines agree only so well."""


@dataclass(frozen=True)
class MeterLog:
    """What a meter wrote: seconds since 1970, rising, and watts."""

    time_s: tuple[float, ...]
    power_w: tuple[float, ...]

    def mean(self, begin_s: float, end_s: float) -> float | None:
        """Watts between two times, or ``None`` where fewer than three entries lie there."""
        inside = [w for t, w in zip(self.time_s, self.power_w, strict=True) if begin_s <= t <= end_s]
        return math.fsum(inside) / len(inside) if len(inside) >= 3 else None


def read_meter(path: Path) -> MeterLog:
    """Read the log of a meter. A last line that is still being written is left out.

    Raises:
        DataError: no such columns, or a line that cannot be read.
        StorageError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(text.splitlines())
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    time_name = next((names[name] for name in TIME_COLUMNS if name in names), None)
    power_name = next((names[name] for name in POWER_COLUMNS if name in names), None)
    if time_name is None or power_name is None:
        raise DataError(
            f"{path} is no log of a power meter",
            why=f"its columns are {', '.join(names) or 'none'}",
            todo="give it a header with the columns time (seconds since 1970, or ISO 8601) and power_w",
        )
    entries: list[tuple[float, float]] = []
    for row in rows:
        try:
            entries.append((_seconds(row[time_name]), _watts(row[power_name])))
        except (ValueError, TypeError, AttributeError):
            raise DataError(
                f"cannot read line {rows.line_num} of {path}",
                why=f"{time_name} = {row[time_name]!r}, {power_name} = {row[power_name]!r}",
                todo="times are seconds since 1970 or ISO 8601, powers are watts",
            ) from None
    entries.sort()
    return MeterLog(tuple(t for t, _ in entries), tuple(w for _, w in entries))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.strip())
        # Without a zone it is local time, as loggers write it.
        value = (moment if moment.tzinfo else moment.astimezone()).timestamp()
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _watts(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


@dataclass(frozen=True)
class GainFit:
    """What a meter says of one source: true watts = gain * watts read + offset.

    Attributes:
        label: the source's.
        gain: factor.
        offset_w: watts.
        error: relative error that is left at full load: the meter's own, and what the line does not explain.
        points: pairs of watts, read and of the meter, by level.
    """

    label: str
    gain: float
    offset_w: float
    error: float
    points: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def applied(self, profile: SensorProfile) -> SensorProfile:
        """The profile with gain and offset, and with the error that is left."""
        return replace(profile, gain=self.gain, offset_w=self.offset_w, gain_error=self.error)


def fit_gain(
    levels: Sequence[LevelPower], meter: MeterLog, *, epoch_s: float, meter_error: float = METER_ERROR
) -> list[GainFit]:
    """Gain and offset of every source by least squares over the levels.

    Args:
        levels: what the sources showed, uncorrected.
        meter: the log.
        epoch_s: seconds since 1970 at zero of the clock of the readings.
        meter_error: relative error of the meter.

    Raises:
        DataError: the log does not cover every level, or the meter does not see the load.
    """
    fits = []
    for label in dict.fromkeys(level.label for level in levels):
        points: dict[str, tuple[float, float]] = {}
        for level in (each for each in levels if each.label == label):
            begin, end = level.begin_s + epoch_s, level.end_s + epoch_s
            margin = _MARGIN * (end - begin)
            watts = meter.mean(begin + margin, end - margin)
            if watts is None:
                raise DataError(
                    f"the meter's log does not cover the level {level.level!r}",
                    why=f"it ran from {_moment(begin)} to {_moment(end)}; the log {_covered(meter)}",
                    todo="let the meter write several times a second during the calibration, by a clock that agrees",
                )
            points[level.level] = (level.power_w, watts)
        fits.append(_line(label, points, meter_error))
    return fits


def _line(label: str, points: dict[str, tuple[float, float]], meter_error: float) -> GainFit:
    read, true = zip(*points.values(), strict=True)
    mean_read, mean_true = math.fsum(read) / len(read), math.fsum(true) / len(true)
    spread = math.fsum((x - mean_read) ** 2 for x in read)
    shared = math.fsum((x - mean_read) * (y - mean_true) for x, y in zip(read, true, strict=True))
    if spread <= 0 or not 0.25 < shared / spread < 4:
        told = ", ".join(f"{name}: {x:.1f} W read, {y:.1f} W metered" for name, (x, y) in points.items())
        raise DataError(
            "the meter and the sensor do not see the same load", why=told,
            todo="see that the meter is on this device's supply, and that its log is in watts",
        )
    gain = shared / spread
    offset = mean_true - gain * mean_read
    left = max(abs(gain * x + offset - y) for x, y in zip(read, true, strict=True))
    return GainFit(label, gain, offset, math.hypot(meter_error, left / max(true)), points)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _covered(meter: MeterLog) -> str:
    if not meter.time_s:
        return "is empty"
    return f"has {len(meter.time_s)} entries from {_moment(meter.time_s[0])} to {_moment(meter.time_s[-1])}"


class CorrectedSource(Source):
    """A source with the gain and the offset of its profile applied to every reading.

    Args:
        inner: the source as the vendor has it.
    """

    def __init__(self, inner: Source) -> None:
        self.inner = inner
        self.kind, self.vendor, self.field, self.scope = inner.kind, inner.vendor, inner.field, inner.scope
        self.averaged, self.buffered, self.flags = inner.averaged, inner.buffered, inner.flags
        self.profile = inner.profile
        self._first: Reading | None = None
        self._last: Reading | None = None

    def read(self) -> Reading:
        """See :meth:`Source.read`."""
        return self._correct(self.inner.read())

    def history(self, since_s: float) -> Sequence[Reading]:
        """See :meth:`Source.history`."""
        return [self._correct(reading) for reading in self.inner.history(since_s)]

    def close(self) -> None:
        """See :meth:`Source.close`."""
        self.inner.close()

    def _correct(self, reading: Reading) -> Reading:
        offset = self.profile.offset_w
        if self.kind == COUNTER:
            # A counter gathers the offset over time. It moves when the counter does and not in between, so that the
            # corrected one has the same edges.
            self._first = self._first or reading
            if self._last is None or reading.value != self._last.value:
                self._last = reading
            offset *= self._last.time_s - self._first.time_s
        return replace(reading, value=self.profile.gain * reading.value + offset)


def corrected(source: Source) -> Source:
    """The source itself, or with its profile's gain and offset applied where an external meter set them."""
    plain = source.profile.gain == 1.0 and source.profile.offset_w == 0.0
    return source if plain or isinstance(source, CorrectedSource) else CorrectedSource(source)


def uncorrected(source: Source) -> Source:
    """The source as the vendor has it."""
    return source.inner if isinstance(source, CorrectedSource) else source
