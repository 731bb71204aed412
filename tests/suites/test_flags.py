"""Validity flags on samples made by hand."""

from __future__ import annotations

import random

import pytest

from wattline.device import Ceilings, DeviceSpec
from wattline.record import FLAGS
from wattline.stats import summarize
from wattline.suites.measure.flags import bound_flag, limits_of, sample_flags
from wattline.suites.settings import MeasureSettings
from wattline.work import Work

SETTINGS = MeasureSettings(min_samples=10)


def codes(samples: list[float]) -> list[str]:
    flags = sample_flags(samples, summarize(samples), SETTINGS)
    assert all(flag.code in FLAGS and flag.message for flag in flags)
    return [flag.code for flag in flags]


def test_steady_samples_raise_nothing() -> None:
    rng = random.Random(0)
    assert codes([1e-3 * rng.gauss(1, 0.01) for _ in range(100)]) == []


def test_few_samples() -> None:
    assert codes([1e-3] * 9) == ["too_few_samples"]
    assert codes([1e-3] * 10) == []


def test_wide_interval() -> None:
    rng = random.Random(0)
    assert codes([1e-3 * rng.uniform(0.3, 3) for _ in range(30)]) == ["noisy"]


def test_a_speed_that_falls_by_a_tenth_is_a_drift() -> None:
    rng = random.Random(0)
    samples = [1e-3 * (1 + 0.1 * i / 300) * rng.gauss(1, 0.005) for i in range(300)]
    flags = sample_flags(samples, summarize(samples), SETTINGS)
    assert [f.code for f in flags] == ["clock_drift"]
    assert "+6." in flags[0].message  # the medians of the outer thirds lie two thirds of the way apart


def test_noise_alone_is_seldom_taken_for_drift() -> None:
    rng = random.Random(0)
    wrong = sum("clock_drift" in codes([rng.lognormvariate(0, 0.03) for _ in range(60)]) for _ in range(200))
    assert wrong <= 4


LISTED = DeviceSpec(id="x", peak_flops={"fp32": 1e9}, memory_bandwidth=1e9, l2_bytes=1e3)


@pytest.mark.parametrize(
    ("time_s", "flagged"), [(1.00e-3, False), (0.985e-3, False), (0.97e-3, True)]
)
def test_faster_than_a_datasheet_allows(time_s: float, flagged: bool) -> None:
    flag = bound_flag(time_s, Work(flops={"fp32": 1e6}), limits_of(LISTED), "cold")
    assert (flag is not None) == flagged
    assert flag is None or flag.code == "above_bound"


def test_a_warm_cache_outruns_main_memory_and_that_is_no_error() -> None:
    work = Work(bytes_read={"device": 1e3})  # 1 us at 1 GB/s
    assert bound_flag(1e-7, work, limits_of(LISTED), "cold") is not None
    assert bound_flag(1e-7, work, limits_of(LISTED), "hot") is None


def test_a_probe_is_no_law() -> None:
    probed = DeviceSpec(id="x", kind="cpu", sm_count=2).with_measured(Ceilings({"fp32": 1e6}, 1e6))
    assert bound_flag(1e-3, Work(flops={"fp32": 1e6}, bytes_read={"device": 1e6}), limits_of(probed), "cold") is None


def test_more_than_any_core_can_do_is_an_error_on_an_unlisted_cpu() -> None:
    cpu = DeviceSpec(id="x", kind="cpu", sm_count=2)
    # 2 cores * 7 GHz * 128 operations = 1.792 TFLOP/s.
    assert bound_flag(1.0, Work(flops={"fp32": 1.79e12}), limits_of(cpu), "hot") is None
    assert bound_flag(1.0, Work(flops={"fp32": 1.85e12}), limits_of(cpu), "hot") is not None


def test_an_unlisted_accelerator_has_no_limits() -> None:
    assert limits_of(DeviceSpec(id="x", kind="gpu")) is None
    assert bound_flag(1e-12, Work(flops={"fp32": 1e12}), None, "cold") is None
