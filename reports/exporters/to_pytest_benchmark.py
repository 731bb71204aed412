"""pytest-benchmark JSON: what ``pytest-benchmark compare FILE`` reads, joules and watts in ``extra_info``.

A record becomes one benchmark: its samples are the rounds, the calls that a sample averages the iterations.
Records without samples, and those whose result was wrong, have no place in the format and are left out.
The quartiles and outlier counts follow that project's own definitions (quartiles by the median of the halves,
or by interpolation where the number of rounds is odd; see "Quartile", computing methods 2 and 3, Wikipedia),
so that two files compare like with like.
"""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, BinaryIO

from wattline.record import Measurement, Record
from wattline.run import Run

SUFFIX = ".json"
BINARY = False


def write(run: Run, sink: BinaryIO) -> int:
    """Write every valid record; returns their number."""
    from wattline import __version__

    head = {
        "machine_info": _machine(run),
        # The format asks for a commit; a run belongs to no source tree.
        "commit_info": {"id": "unversioned", "time": None, "dirty": False, "project": "wattline", "branch": ""},
        "datetime": run.manifest.get("created_at", ""),
        "version": f"wattline {__version__}",
    }
    sink.write((json.dumps(head, indent=1)[:-2] + ',\n "benchmarks": [').encode())
    count = 0
    for record in run.records():
        if not record.valid or record.measurement is None or not record.measurement.samples_s:
            continue
        sink.write((",\n" if count else "\n").encode())
        sink.write(json.dumps(_benchmark(record, record.measurement), allow_nan=False).encode())
        count += 1
    sink.write(b"\n]}\n")
    return count


def _machine(run: Run) -> dict[str, Any]:
    device = run.device
    return {
        "node": str(run.environment.get("host", "")),
        "device": device.id,
        "device_name": device.name,
        "wattline_device": device.to_dict(),  # so that `wattline import` knows an unlisted machine
        "cpu": {"brand_raw": device.name if device.kind == "cpu" else ""},
    }


def _benchmark(record: Record, measured: Measurement) -> dict[str, Any]:
    case = record.case
    conditions = {"impl": case.impl, **case.params, "regime": case.regime, "data": case.data, **case.caps}
    if record.variant:
        conditions["variant"] = record.variant
    param = "-".join(f"{name}={value}" for name, value in conditions.items())
    name = f"{case.op}[{param}]"
    return {
        "group": case.op,
        "name": name,
        "fullname": f"wattline::{name}",
        "params": conditions,
        "param": param,
        "extra_info": _extra(record, measured),
        "options": {"timer": measured.timer, "warmup": measured.warmup_calls},
        "stats": statistics_of(measured.samples_s) | {"iterations": measured.calls_per_sample},
    }


def _extra(record: Record, measured: Measurement) -> dict[str, Any]:
    extra: dict[str, Any] = {"key": record.case.key, "device": record.device, "flags": list(record.flags)}
    extra["time_s"] = measured.stats.median_s  # that of the kept samples is rounded as they are
    extra |= {"time_lo_s": measured.stats.lo_s, "time_hi_s": measured.stats.hi_s}
    if record.bound_s is not None:
        extra |= {"bound_s": record.bound_s, "bound_by": record.bound_by}
    if record.work is not None:
        extra |= {"flops": record.work.total_flops, "bytes_moved": record.work.bytes_at()}
    if measured.energy is not None:
        e = measured.energy
        extra |= {"energy_j": e.energy_j, "energy_lo_j": e.energy_lo_j, "energy_hi_j": e.energy_hi_j}
        extra |= {"power_w": e.power_w, "energy_source": e.source, "energy_scope": e.scope}
    return extra


def statistics_of(samples: Sequence[float]) -> dict[str, Any]:
    """The statistics that pytest-benchmark keeps, by its definitions.

    Args:
        samples: seconds per call, at least one.
    """
    data = sorted(samples)
    n, total, mean = len(data), sum(data), statistics.fmean(data)
    deviation = statistics.stdev(data) if n > 1 else 0.0
    q1, q3 = _quartiles(data)
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    outside = sum(not mean - deviation <= value <= mean + deviation for value in data)
    beyond = sum(not low <= value <= high for value in data)
    return {
        "min": data[0],
        "max": data[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": n,
        "median": statistics.median(data),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond,
        "stddev_outliers": outside,
        "outliers": f"{outside};{beyond}",
        "ld15iqr": data[bisect_left(data, low)],
        "hd15iqr": data[bisect_right(data, high) - 1],
        "ops": n / total if total else 0,
        "total": total,
        "data": list(samples),
    }


def _quartiles(data: Sequence[float]) -> tuple[float, float]:
    n = len(data)
    if n == 1:
        return data[0], data[0]
    if n % 2 == 0:
        return statistics.median(data[: n // 2]), statistics.median(data[n // 2 :])
    part = n // 4
    if n % 4 == 1:
        return (
            0.25 * data[part - 1] + 0.75 * data[part],
            0.75 * data[3 * part] + 0.25 * data[3 * part + 1],
        )
    return (
        0.75 * data[part] + 0.25 * data[part + 1],
        0.25 * data[3 * part + 1] + 0.75 * data[3 * part + 2],
    )
