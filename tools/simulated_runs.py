"""Writes simulated runs: ``python tools/simulated_runs.py FOLDER`` gives two pairs of sides to compare.

``base`` and ``new`` are four runs each of one machine, between which softmax became 6 % and three products 4 % slower.
``gpu-a`` and ``gpu-b`` are three runs each of two GPUs: one is faster, the other draws less power and has no fp8.

No such device exists and nothing is measured: a time is what the roofline of the made-up device allows, divided by an
efficiency that grows with the work, plus a launch; power grows with the share of the peaks that is in use. Both are
spread by Student's t, within a run and between runs. Every device and run says that it is simulated. With the seed that
is set, all that was planted is found and nothing else; with others a verdict in twenty may be wrong, as promised.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wattline.case import Case
from wattline.device import DeviceSpec
from wattline.record import Energy, Measurement, Reason, Record
from wattline.run import PlannedCase, RunWriter
from wattline.stats import summarize
from wattline.work import bound
from wattline.workmodels import work_of

NOTE = "simulated: times and joules from a model of made-up devices, nothing was measured"
GPU_A = DeviceSpec(
    id="example-gpu-a-simulated", name="Example GPU A (80 GB), simulated", vendor="example", kind="gpu",
    memory_bytes=80e9, memory_bandwidth=3.0e12, l2_bytes=50e6, sm_count=128, clock_hz=1.8e9, tdp_w=700.0,
    peak_flops={"fp32": 6.0e13, "bf16": 9.0e14, "fp8": 1.8e15}, note=NOTE,
)  # fmt: skip
GPU_B = DeviceSpec(
    id="example-gpu-b-simulated", name="Example GPU B (48 GB), simulated", vendor="example", kind="gpu",
    memory_bytes=48e9, memory_bandwidth=1.8e12, l2_bytes=40e6, sm_count=96, clock_hz=1.6e9, tdp_w=300.0,
    peak_flops={"fp32": 3.6e13, "bf16": 2.4e14}, note=NOTE,
)  # fmt: skip
SEED = 61
RUNS, RUNS_OF_MACHINES = 4, 3
"""Runs of each version, and of each GPU."""
SLOWER_SOFTMAX, SLOWER_PRODUCT = 1.06, 1.04
SLOWER_SHAPES = ((4096, 4096, 4096), (8192, 8192, 1024), (2048, 11008, 4096))
"""The three products (m, n, k) in bf16 that became slower."""
SCALE, FREEDOM = 0.008, 6.0
"""Spread of equal measurements: Student's t, one of fifty lies more than 2.5 % off."""
EFFICIENCY, FILL_S, LAUNCH_S = 0.85, 2e-6, 2.5e-6
"""Largest share of the bound; seconds until all units have work; of a launch."""
SAMPLES, GAIN = 30, 0.05
SHAPES = (
    *((n, n, n) for n in (512, 1024, 2048, 4096, 8192)),
    (8192, 8192, 1024), (2048, 11008, 4096), (2048, 4096, 11008), (16, 4096, 4096), (64, 11008, 4096),
)  # fmt: skip
"""Products (m, n, k): squares, layers of a language model, and a few rows as in decoding."""


def cases() -> Iterator[Case]:
    """Products in three formats, attention of a prompt and of the next token, and row-wise operations."""
    for dtype in ("bf16", "fp8_e4m3", "fp32"):
        for m, n, k in SHAPES:
            out = "bf16" if dtype == "fp8_e4m3" else "same"
            params: dict[str, Any] = {"batch": 1, "m": m, "n": n, "k": k, "dtype": dtype, "layout": "nn"}
            yield Case("gemm.dense", "torch", {**params, "out_dtype": out, "acc": "default"})
    heads: dict[str, Any] = {"heads": 32, "kv_heads": 8, "head_dim": 128, "dtype": "bf16"}
    for length in (512, 1024, 2048, 4096, 8192, 16384):
        params = {"batch": 1, "q_len": length, "kv_len": length, **heads, "causal": True, "window": 0}
        yield Case("attention.prefill", "flash", params)
    for batch, length in ((1, 8192), (4, 8192), (16, 4096), (16, 16384), (64, 2048), (64, 8192)):
        yield Case("attention.decode", "sdpa", {"batch": batch, "q_len": 1, "kv_len": length, **heads})
    for op in ("softmax.rows", "norm.rmsnorm"):
        for rows, cols in ((1024, 4096), (2048, 8192), (4096, 4096), (8192, 8192), (16384, 4096), (32768, 8192)):
            yield Case(op, "torch", {"rows": rows, "cols": cols, "dtype": "bf16"})


def time_and_power(case: Case, device: DeviceSpec) -> tuple[float, float]:
    """Seconds of one call and watts meanwhile.

    Efficiency rises from small work to 85 % of the bound. Power is a quarter of the limit at rest; reading and writing
    at full bandwidth adds 35 % of the limit, computing at the full rate 70 %, and the limit caps their sum.
    """
    work = work_of(case.op, case.params)
    limit = bound(work, device)
    time_s = (limit.time_s + FILL_S) / EFFICIENCY + LAUNCH_S
    assert device.bandwidth is not None
    assert device.tdp_w is not None
    moving = work.bytes_at() / device.bandwidth / time_s
    computing = sum(flops / device.rate(name)[0] for name, flops in work.flops.items()) / time_s
    return time_s, device.tdp_w * min(1.0, 0.25 + 0.35 * moving + 0.7 * computing)


def record_of(case: Case, device: DeviceSpec, time_s: float, power_w: float, *, seed: int, sequence: int) -> Record:
    """A record as a run leaves it, its samples and joules spread around what is given."""
    rng = np.random.default_rng([seed, sequence])
    level = math.exp(SCALE * rng.standard_t(FREEDOM))
    samples = time_s * level * (1 + 0.003 * rng.standard_normal(SAMPLES))
    stats = summarize(samples)
    joules = power_w * stats.median_s * math.exp(SCALE / 2 * rng.standard_t(FREEDOM))
    wide = math.hypot(GAIN, 0.006)
    energy = Energy(
        joules / stats.median_s, joules, joules * (1 - wide), joules * (1 + wide), "simulated counter", "gpu",
        budget={"quantisation": 0.004, "trial": 0.004, "drift": 0.001, "gain": GAIN},
    )  # fmt: skip
    work = work_of(case.op, case.params)
    limit = bound(work, device)
    measured = Measurement(
        tuple(map(float, samples)), 4, stats, "precise", timer="simulated", timed_s=float(samples.sum() * 4),
        energy=energy,
    )  # fmt: skip
    return Record(
        case, "ok", device.id, measurement=measured, work=work, bound_s=limit.time_s, bound_by=limit.by,
        seed=seed, sequence=sequence, wall_s=float(samples.sum() * 4),
    )  # fmt: skip


def write_run(
    folder: Path, device: DeviceSpec, seed: int, *, version: str, slower: Callable[[Case], float] = lambda case: 1.0
) -> Path:
    """A run of all cases on one device; ``slower`` is a factor on the time of a case.

    Args:
        folder: the run folder.
        device: the made-up device; a format that it has no rate for is unsupported.
        seed: of the noise.
        version: of the library that would have been measured.
        slower: factor on the time of a case, 1 for no change.
    """
    records = []
    for sequence, case in enumerate(cases()):
        work = work_of(case.op, case.params)
        absent = [name for name in work.flops if name not in device.peak_flops]
        if absent:
            why = Reason("no_hardware", f"the device has no {' or '.join(absent)} arithmetic")
            records.append(Record(case, "unsupported", device.id, why, work=work, seed=seed, sequence=sequence))
            continue
        time_s, power_w = time_and_power(case, device)
        records.append(record_of(case, device, time_s * slower(case), power_w, seed=seed, sequence=sequence))
    manifest = {
        "device": device.to_dict(),
        "environment": {"libraries": {"example-library": version}, "notes": NOTE},
        "plan": {"preset": "simulated", "seed": seed, "arguments": {}, "command": "tools/simulated_runs.py"},
        "timer": {"name": "simulated"},
        "totals": {"planned": len(records)},
        "state": "complete",
    }
    with RunWriter.create(folder, manifest, [PlannedCase(record.case) for record in records]) as writer:
        for record in records:
            writer.append(record)
    return folder


def regressed(case: Case) -> float:
    """What the newer version takes more of a case: softmax, and three products in bf16."""
    if case.op == "softmax.rows":
        return SLOWER_SOFTMAX
    shape = tuple(case.params.get(name) for name in "mnk")
    return SLOWER_PRODUCT if case.dtype == "bf16" and shape in SLOWER_SHAPES else 1.0


def write_versions(root: Path, seed: int = SEED) -> tuple[Path, Path]:
    """Two versions on one machine: folders ``base`` and ``new`` of four runs each."""
    for i in range(RUNS):
        write_run(root / "base" / str(i), GPU_A, seed + i, version="1.0")
        write_run(root / "new" / str(i), GPU_A, seed + RUNS + i, version="1.1", slower=regressed)
    return root / "base", root / "new"


def write_machines(root: Path, seed: int = SEED) -> tuple[Path, Path]:
    """Two GPUs of different kinds: folders ``gpu-a`` and ``gpu-b`` of three runs each."""
    for i in range(RUNS_OF_MACHINES):
        write_run(root / "gpu-a" / str(i), GPU_A, seed + i, version="1.0")
        write_run(root / "gpu-b" / str(i), GPU_B, seed + RUNS_OF_MACHINES + i, version="1.0")
    return root / "gpu-a", root / "gpu-b"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    for path in (*write_versions(given.folder, given.seed), *write_machines(given.folder, given.seed)):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
