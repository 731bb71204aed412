"""Validity flags: what a reader must know before trusting a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from wattline.device import DeviceSpec
from wattline.record import Flag
from wattline.stats import TimeStats, median_interval
from wattline.suites.settings import MeasureSettings
from wattline.units import format_time
from wattline.work import Work, case_bound

DRIFT = 0.03
NOISY = 0.05
SLACK = 0.02
"""How far below a physical bound a median may lie before something must be wrong (clock rounding)."""

CPU_OPS_PER_CYCLE = {
    "fp64": 64.0, "fp32": 128.0, "tf32": 128.0, "bf16": 2048.0, "fp16": 2048.0, "fp8": 4096.0, "int8": 4096.0
}  # fmt: skip
"""Operations per cycle that no core exceeds: twice those of the widest units (two 512-bit FMA pipes: 64 in fp32;
AMX tiles: 1024 in bf16, 2048 in int8; Intel 64 and IA-32 Optimization Reference Manual, chapter on AMX)."""
CPU_CLOCK_HZ = 7e9
"""A clock that no processor sustains."""


def sample_flags(samples: Sequence[float], stats: TimeStats, settings: MeasureSettings) -> list[Flag]:
    """Flags that the samples raise themselves.

    Args:
        samples: seconds per call in the order taken.
        stats: their statistics.
        settings: the limits that were asked for.
    """
    flags = []
    if stats.n < settings.min_samples:
        flags.append(Flag("too_few_samples", f"{stats.n} samples; {settings.min_samples} were asked for"))
    if stats.half_width > NOISY:
        flags.append(
            Flag("noisy", f"the 95 % interval of the median is +-{stats.half_width:.1%}; {NOISY:.0%} is the limit")
        )
    third = len(samples) // 3
    if third >= 5:
        first, last = samples[:third], samples[-third:]
        change = statistics.median(last) / statistics.median(first) - 1
        lo_first, hi_first = median_interval(first)
        lo_last, hi_last = median_interval(last)
        if abs(change) > DRIFT and (hi_first < lo_last or hi_last < lo_first):
            flags.append(Flag("clock_drift", f"the last third of the samples is {change:+.1%} against the first"))
    return flags


def limits_of(spec: DeviceSpec) -> DeviceSpec | None:
    """The device with rates that no measurement can exceed, or ``None`` where none are known.

    Datasheet rates where the device is listed. The ceilings measured on an unlisted one are no law (a probe on a
    busy machine reads low); for a CPU, what no core can do stands in for them.
    """
    if spec.listed:
        return spec
    if spec.kind != "cpu" or not spec.sm_count:
        return None
    rates = {name: per_cycle * CPU_CLOCK_HZ * spec.sm_count for name, per_cycle in CPU_OPS_PER_CYCLE.items()}
    return DeviceSpec(id=spec.id, kind="cpu", peak_flops=rates, l2_bytes=spec.l2_bytes)


def bound_flag(time_s: float, work: Work, limits: DeviceSpec | None, regime: str) -> Flag | None:
    """The flag of a time below its bound: no kernel outruns its device, so the work model or the timer is wrong.

    Args:
        time_s: median seconds per call.
        work: what a call does.
        limits: from :func:`limits_of`.
        regime: the case's.
    """
    bound = case_bound(work, limits, regime) if limits else None
    if bound is None or time_s >= bound.time_s * (1 - SLACK):
        return None
    return Flag(
        "above_bound",
        f"{format_time(time_s)} is {bound.time_s / time_s:.3g} times faster than the device can be "
        f"({format_time(bound.time_s)}): the work model or the timer is wrong",
    )
