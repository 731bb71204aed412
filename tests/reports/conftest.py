"""A factory of realistic runs, written with the same classes that a real run is written with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattline.case import Case
from wattline.device import Ceilings, DeviceSpec, known_device
from wattline.record import Check, Energy, Flag, Measurement, Reason, Record
from wattline.run import PlannedCase, RunWriter
from wattline.stats import TimeStats, aa_analysis, summarize
from wattline.trace import Band, Series, Trace, write_trace
from wattline.work import bound
from wattline.workmodels import work_of

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{ \u2028 & 'quoted\" %s {{ 7*7 }}"
CPU = DeviceSpec(
    id="example-cpu",
    name="Example CPU with 2 cores",
    vendor="example",
    kind="cpu",
    memory_bytes=16e9,
    l2_bytes=32e6,
    sm_count=2,
    clock_hz=3.0e9,
    measured=Ceilings({"fp64": 9.5e10, "fp32": 1.9e11, "bf16": 4.8e11, "int8": 9.1e11}, 2.4e10, 2e-6),
)
DENSE = {"batch": 1, "layout": "nn", "out_dtype": "same", "acc": "default"}


def dense_case(m: int, n: int, k: int, dtype: str = "fp32", regime: str = "cold", **other: Any) -> Case:
    """A complete case of gemm.dense."""
    return Case("gemm.dense", "torch", {**DENSE, "m": m, "n": n, "k": k, "dtype": dtype, **other}, regime)


def model_time(case: Case, device: DeviceSpec) -> float:
    """Seconds that a plausible library would take: quantised to tiles, slowed by odd sizes, plus a launch."""
    p = case.params
    work = work_of(case.op, p)
    rate = device.rate(next(iter(work.flops)))[0]
    m, n, k = int(p["m"]), int(p["n"]), int(p["k"])
    tiles = math.ceil(m / 32) * 32 * math.ceil(n / 64) * 64
    share = 0.93 * (m * n) / tiles * k / (k + 60)
    if k % 8:
        share *= 0.7
    bandwidth = device.bandwidth or 1e10
    moved = 0.15 if case.regime == "hot" else 1.12
    slow = max(work.total_flops / (rate * share), moved * work.bytes_at() / bandwidth)
    return slow + {"eager": 9e-6, "hot": 2e-6}.get(case.regime, 2.5e-6)


def measured(
    case: Case,
    device: DeviceSpec = CPU,
    *,
    time_s: float | None = None,
    noise: float = 0.004,
    samples: int = 30,
    seed: int = 0,
    flags: tuple[str, ...] = (),
    status: str = "ok",
    energy: bool = False,
    **fields: Any,
) -> Record:
    """A record as the runner writes it, with noisy samples around ``time_s`` (or the model's time)."""
    centre = model_time(case, device) if time_s is None else time_s
    rng = np.random.default_rng(seed)
    values = centre * (1 + noise * np.abs(rng.standard_normal(samples)) + noise * rng.standard_normal(samples) / 3)
    work = work_of(case.op, case.params)
    limit = bound(work, device, cached=case.regime == "hot")
    stats = summarize(values)
    joules = Energy(95.0, 95 * centre, 90 * centre, 100 * centre, "simulated counter", "package") if energy else None
    measurement = Measurement(
        samples_s=tuple(float(v) for v in values),
        calls_per_sample=4,
        stats=stats,
        stop="precise" if stats.half_width <= 0.01 else "time_limit",
        warmup_calls=12,
        warmup_s=0.05,
        warmup_stop="settled",
        first_call_s=centre * 3,
        rotations=4 if case.regime == "cold" else 1,
        timer="perf_counter_ns",
        timer_overhead_s=6e-8,
        timed_s=float(values.sum() * 4),
        energy=joules,
        telemetry={"host_clock_hz": 2.98e9},
        flags=tuple(Flag(code, f"figures behind {code}") for code in flags),
        check=Check(3e-7 if status == "ok" else math.nan, 1e-5, status == "ok", "full"),
    )
    return Record(
        case, status, device.id, measurement=measurement, work=work, bound_s=limit.time_s, bound_by=limit.by,
        seed=seed, started_at="2026-01-02T03:04:05Z", wall_s=float(values.sum() * 4 + 0.1), **fields,
    )  # fmt: skip


def without_figure(case: Case, status: str, code: str, message: str) -> Record:
    """A record of a case that gave no figure."""
    return Record(case, status, CPU.id, Reason(code, message), work=work_of(case.op, case.params), wall_s=0.01)


def plan_of(formats: tuple[str, ...] = ("fp32", "bf16", "fp64", "int8")) -> list[PlannedCase]:
    """Some 250 cases of the kinds that the presets hold."""
    cases: list[PlannedCase] = []

    def add(case: Case, variant: str = "") -> None:
        cases.append(PlannedCase(case, variant))

    for dtype in formats:
        for size in (64, 128, 256, 384, 512, 768, 1024, 1536):
            add(dense_case(size, size, size, dtype))
        for k in (256, 1024):
            for m in (128, 256, 512, 1024):
                for n in (128, 256, 512, 1024):
                    if not m == n == k and not (m == n and m in (256, 1024) and k == m):
                        add(dense_case(m, n, k, dtype))
    for n in range(448, 642, 6):
        add(dense_case(512, n, 512, "fp32"))
    for dtype in formats[:2]:
        for m in (1, 2, 4, 8, 16, 32, 64, 128):
            add(dense_case(m, 4096, 1024, dtype))
            add(dense_case(m, 1024, 2816, dtype))
        for size in (128, 256, 512, 1024):
            for regime in ("hot", "eager"):
                add(dense_case(size, size, size, dtype, regime))
    for size in (127, 257, 509, 769):
        add(dense_case(size, size, size, "fp32"))
    for n in (160, 320, 704, 896):
        for variant in "ab":
            add(dense_case(320, n, 320, "fp32"), variant)
    return cases


def fill_records(plan: list[PlannedCase], *, energy: bool = False, device: DeviceSpec = CPU) -> Iterator[Record]:
    """A record for each planned case; a few end badly and a few carry flags."""
    for i, planned in enumerate(plan):
        case, extra = planned.case, {"variant": planned.variant, "sequence": i}
        if case.dtype == "int8" and case.params["m"] == 1536:
            record = without_figure(case, "skipped", "too_slow", f"one call takes 41 s, more than the limit {HOSTILE}")
        elif case.dtype == "fp64" and case.params["m"] == 1536:
            record = without_figure(case, "timeout", "deadline", "no answer within 60 s")
        elif case.params["m"] == 769:
            record = measured(case, device, seed=i, status="failed", flags=("check_failed",), sequence=i)
        else:
            flags = ("noisy",) if i % 41 == 7 else ("clock_drift", "foreign_process") if i % 67 == 5 else ()
            record = measured(
                case, device, seed=i, noise=0.05 if "noisy" in flags else 0.004, flags=flags, energy=energy, **extra
            )
        yield record
    for j, size in enumerate((256, 512)):
        case = dense_case(size, size, size, "fp8_e4m3")
        yield without_figure(case, "unsupported", "no_kernel", "torch has no fp8 product on this CPU")
        assert j < 2


def manifest_of(device: DeviceSpec, plan: list[PlannedCase], records: list[Record]) -> dict[str, Any]:
    """The manifest that the runner writes beside the schema."""
    by_status: dict[str, int] = {}
    for record in records:
        by_status[record.status] = by_status.get(record.status, 0) + 1
    pairs: dict[str, dict[str, TimeStats]] = {}
    for record in records:
        if record.variant and record.measurement:
            pairs.setdefault(record.case.key, {})[record.variant] = record.measurement.stats
    result = aa_analysis([(p["a"], p["b"]) for p in pairs.values() if len(p) == 2])
    return {
        "created_at": "2026-01-02T03:00:00Z",
        "finished_at": "2026-01-02T03:04:40Z",
        "state": "complete",
        "device": device.to_dict(),
        "environment_id": "0123456789abcdef",
        "environment": {
            "host": {"name": f"lab-7 {HOSTILE}", "os": "Linux 6.1", "cpu": device.name, "cores": 2},
            "python": "3.12.1",
            "libraries": {"torch": "2.6.0", "numpy": "2.1.0"},
            "notes": HOSTILE,
        },
        "plan": {
            "preset": "standard",
            "arguments": {"op": ["gemm.dense"], "budget": "5m", "set": []},
            "seed": 7,
            "budget_s": 300.0,
            "command": "wattline bench --preset standard --budget 5m --seed 7",
        },
        "totals": {
            "planned": len(plan), "measured": by_status.get("ok", 0), "wall_s": 280.0, "kernel_s": 221.0,
            "kernel_share": 0.79, "by_status": by_status,
        },
        "energy": {
            "available": False,
            "name": "RAPL",
            "reason": {"code": "no_permission", "message": "/sys/class/powercap/intel-rapl:0/energy_uj: root only"},
        },
        "timer": {"name": "perf_counter_ns", "resolution_s": 1e-9, "overhead_s": 6e-8},
        "probe": {
            "notes": {
                "flops.fp32": "fastest call of gemm.dense at m = n = k = 1024",
                "flops.fp8_e4m3": "unsupported, because torch has no fp8 product on this CPU",
                "memory_bandwidth": "fastest triad over arrays of 134 MB",
            },
            "kernel_s": 4.2,
        },
        "aa": result.to_dict() if result else None,
    }  # fmt: skip


def write_run(
    path: Path,
    records: list[Record],
    *,
    device: DeviceSpec = CPU,
    drop: tuple[str, ...] = (),
    manifest: dict[str, Any] | None = None,
    **other: Any,
) -> Path:
    """Write a run folder with these records; ``drop`` leaves entries of the manifest out, ``manifest`` sets some."""
    plan = [PlannedCase(r.case, r.variant) for r in records]
    full = {k: v for k, v in (manifest_of(device, plan, records) | other | (manifest or {})).items() if k not in drop}
    with RunWriter.create(path, full, plan) as writer:
        for record in records:
            writer.append(record)
    return path


@pytest.fixture(scope="session")
def big_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some 250 records of every kind, hostile strings included."""
    return write_run(tmp_path_factory.mktemp("runs") / "example", list(fill_records(plan_of())))


def metered_record(case: Case, power_w: float, time_s: float, seed: int) -> Record:
    """A record with joules: 3 % statistical and 5 % systematic error."""
    record = measured(case, time_s=time_s, seed=seed, sequence=seed)
    joules = power_w * time_s
    energy = Energy(
        power_w, joules, joules * 0.93, joules * 1.08, "nvml: total energy counter (gpu)", "gpu", 80.0,
        {"quantisation": 0.01, "trial": 0.02, "drift": 0.001, "gain": 0.05, "cross_check": 0.004},
        ("uncalibrated", "low_confidence") if seed % 5 == 0 else ("uncalibrated",),
    )  # fmt: skip
    assert record.measurement is not None
    return replace(record, measurement=replace(record.measurement, energy=energy))


def metered_records() -> list[Record]:
    """Products without a cap and under two power limits, which cost time and save energy."""
    found: list[Record] = []
    for size in (256, 512, 768, 1024):
        for dtype, power in (("fp32", 420.0), ("bf16", 610.0)):
            case = dense_case(size, size, size, dtype)
            time_s = model_time(case, CPU)
            found.append(metered_record(case, power, time_s, len(found)))
            for limit, slower in ((400.0, 1.04), (300.0, 1.12)):
                capped = replace(case, power_limit_w=limit)
                found.append(metered_record(capped, min(limit, power), time_s * slower, len(found)))
    return found


def metered_trace(record: Record, zero_s: float) -> Trace:
    """Three seconds of one case, sampled ten times a second."""
    power = record.measurement.energy.power_w if record.measurement and record.measurement.energy else 0.0
    times = [0.1 * i for i in range(31)]
    held = record.case.power_limit_w is not None
    series = {
        "gpu_power_instant_w": Series(tuple(times), tuple(80.0 if t < 0.3 else power for t in times), "W"),
        "gpu_sm_clock_hz": Series(tuple(times), tuple(1.98e9 - 4e8 * held for _ in times), "Hz"),
        "gpu_temperature_c": Series(tuple(times), tuple(45 + 3 * t for t in times), "degC"),
        "gpu_throttle_power": Series(tuple(times), tuple(float(held and t > 0.5) for t in times)),
        "gpu_throttle_thermal": Series(tuple(times), tuple(0.0 for _ in times)),
        "nvml: total energy counter (gpu)": Series(tuple(times), tuple(power * t for t in times), "J"),
    }
    bands = (Band(0.0, 0.4, "timing"), Band(0.4, 0.6, "lead-in"), Band(0.6, 2.9, "energy"))
    return Trace(
        record.case.key, 1.7e9 + zero_s, 3.0, label=f"{record.case.label()} {HOSTILE}", device=CPU.id, series=series,
        bands=bands, missing={"gpu_memory_temperature_c": f"NVML has it not {HOSTILE}"},
    )  # fmt: skip


METERED = {
    "energy": {
        "available": True, "name": "nvml", "reason": None, "source": "nvml: total energy counter (gpu)",
        "scope": "gpu", "remedy": "", "levels_missing": "",
        "levels": {"idle": {"power_w": 78.0, "half_width": 0.01}, "resident": {"power_w": 112.0, "half_width": 0.01}},
        "profiles": [
            {"source": "nvml: total energy counter (gpu)", "period_s": 0.1, "window_s": 0.0, "lag_s": 0.01,
             "gain_error": 0.05, "calibrated": True, "note": "calibrated"},
            {"source": "nvml: instant power (186) (gpu)", "period_s": 0.1, "window_s": 0.025, "lag_s": 0.0,
             "gain_error": 0.05, "calibrated": False, "note": f"prior {HOSTILE}"},
        ],
    },
    "sampler_overhead": {
        "off_s": 1e-4, "on_s": 1.001e-4, "ratio": 1.001, "ratio_lo": 0.998, "ratio_hi": 1.003, "pairs": 8,
        "calls": 9000, "block_s": 0.2,
    },
}  # fmt: skip


def write_metered(path: Path) -> Path:
    """A run with joules, traces, levels, caps and the cost of watching."""
    records = metered_records()
    run = write_run(path, records, manifest=METERED)
    for i, record in enumerate(records):
        write_trace(run, metered_trace(record, 3.4 * i))
    return run


@pytest.fixture(scope="session")
def metered_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_metered(tmp_path_factory.mktemp("metered") / "metered")


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run of given records into a temporary folder."""
    return lambda records, name="run", **other: write_run(tmp_path / name, list(records), **other)


@pytest.fixture
def make_case() -> Callable[..., Case]:
    return dense_case


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return measured


@pytest.fixture
def make_unmeasured() -> Callable[..., Record]:
    return without_figure


@pytest.fixture
def hostile() -> str:
    return HOSTILE


@pytest.fixture
def listed_device() -> DeviceSpec:
    """A device of the list whose ceilings were measured as well."""
    spec = known_device("h200-sxm")
    flops = {name: rate * 0.81 for name, rate in spec.peak_flops.items()}
    return spec.with_measured(Ceilings(flops, 4.2e12, 3e-6))


@pytest.fixture
def planned() -> Callable[..., list[PlannedCase]]:
    return plan_of


@pytest.fixture
def fill() -> Callable[..., Iterator[Record]]:
    return fill_records


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """Writes a run of given records into a folder of the caller's."""
    return write_run


@pytest.fixture(scope="session")
def planned_cases() -> Callable[..., list[PlannedCase]]:
    """The cases of the big run, for fixtures of the session."""
    return plan_of


@pytest.fixture(scope="session")
def filled() -> Callable[..., Iterator[Record]]:
    """A record for each case, for fixtures of the session."""
    return fill_records


@pytest.fixture
def with_facts() -> Callable[..., Record]:
    """A record of any operation with given time, facts and parameters."""

    def make(  # noqa: PLR0917 - what a record is made of
        op: str, impl: str, time_s: float, params: dict[str, Any], facts: dict[str, Any] | None = None,
        regime: str = "hot", device: DeviceSpec = CPU, **how: Any,
    ) -> Record:  # fmt: skip
        record = measured(Case(op, impl, params, regime), device, time_s=time_s, **{"noise": 1e-6, **how})
        assert record.measurement is not None
        return replace(record, measurement=replace(record.measurement, facts=dict(facts or {})))

    return make
