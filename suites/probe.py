"""Probe: the highest rates that this machine reaches, measured in a few seconds before a run.

No table lists every CPU, and a listed accelerator seldom reaches its datasheet. The probe takes the *fastest* sample
of a few shapes known to run well: a ceiling, not a typical figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wattline.collectors.device import Device
from wattline.device import Ceilings
from wattline.errors import WattlineError
from wattline.formats import number_format
from wattline.record import Record
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Machine

OUTDONE = "raised by the run itself"

_BUDGET_S = 0.4  # per format and per memory pattern
_LEAST_SAMPLES = 3


class Probe:
    """What the probe found and how.

    Attributes:
        ceilings: the rates.
        notes: for each figure, how it was found; for a format without one, why.
        kernel_s: seconds inside kernels.
    """

    def __init__(self) -> None:
        self.flops: dict[str, float] = {}
        self.memory_bandwidth: float | None = None
        self.launch_s: float | None = None
        self.notes: dict[str, str] = {}
        self.kernel_s = 0.0

    @property
    def ceilings(self) -> Ceilings:
        """The rates as a part of a device's description."""
        return Ceilings(dict(self.flops), self.memory_bandwidth, self.launch_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"notes": self.notes, "kernel_s": self.kernel_s}


def probe(
    device: Device, machine: Machine, formats: Sequence[str], tell: Callable[[str], None] | None = None
) -> Probe:
    """Measure arithmetic ceilings per format, memory bandwidth and launch cost.

    Args:
        device: what to measure.
        machine: its facts.
        formats: names of number formats (:data:`wattline.formats.BENCH_FORMATS`).
        tell: told what is being measured.
    """
    found = Probe()
    for name in formats:
        if tell is not None:
            tell(f"ceiling of {name}")
        _arithmetic(found, device, machine, name)
    if tell is not None:
        tell("memory bandwidth and launch cost")
    _memory(found, device)
    _launch(found, device)
    device.release()
    return found


def _best(found: Probe, device: Device, call: Callable[[], Any], budget_s: float = _BUDGET_S) -> float:
    """The fastest of the samples that fit the budget, seconds."""
    timer = device.timer()
    call()
    device.synchronize()
    best, spent, count = float("inf"), 0.0, 0
    while count < _LEAST_SAMPLES or spent < budget_s:
        took = timer.time([call])
        best = min(best, took)
        spent += took
        count += 1
        if count >= _LEAST_SAMPLES and took > budget_s:
            break
    found.kernel_s += spent
    return best


def _arithmetic(found: Probe, device: Device, machine: Machine, name: str) -> None:
    """The best rate of square products, from a small size up, stopping where a call gets slow."""
    implementation = get_implementation("gemm.dense", "torch")
    workload = get("gemm.dense").workload
    sizes = (512, 1024, 1536) if device.kind == "cpu" else (2048, 4096, 8192)
    # Weights as frameworks keep them: the one layout in which GPUs multiply fp8, and the quickest in int8.
    layout = "nn" if device.kind == "cpu" else "nt"
    rate_name = number_format(name).rate
    for size in sizes:
        params = workload.params.parse(
            {"m": size, "n": size, "k": size, "dtype": name, "layout": layout}, op="gemm.dense"
        )
        reason = implementation.unmet(params, machine)
        if reason is not None:
            found.notes[f"flops.{name}"] = f"unsupported, because {reason.message}"
            return
        try:
            kernel = implementation.build(params, Builder(device.torch_device, machine, data="uniform", seed=0))
            took = _best(found, device, kernel.call, _BUDGET_S / 2)
        except (RuntimeError, MemoryError, NotImplementedError, WattlineError) as error:
            found.notes[f"flops.{name}"] = f"unsupported, because {str(error).splitlines()[0]}"
            return
        rate = workload.work(params).total_flops / took
        if rate > found.flops.get(rate_name, 0.0):
            found.flops[rate_name] = rate
            found.notes[f"flops.{name}"] = f"fastest call of gemm.dense at m = n = k = {size}"
        if took > _BUDGET_S / 4:
            return  # the next size would take eight times as long


def _memory(found: Probe, device: Device) -> None:
    """The best of read, copy and triad over arrays of four times the last-level cache each."""
    import torch

    count = max(2**24, 4 * device.cache_bytes() // 4)
    while count > 2**20 and 3 * 4 * count > 0.5 * device.free_memory():
        count //= 2
    a = torch.ones(count, dtype=torch.float32, device=device.torch_device)
    b, c = torch.full_like(a, 2.0), torch.zeros_like(a)
    patterns: dict[str, tuple[Callable[[], Any], int]] = {
        "read (sum)": (lambda: torch.sum(a), 1),
        "copy": (lambda: c.copy_(a), 2),
        "triad": (lambda: torch.add(a, b, alpha=3.0, out=c), 3),
    }
    for name, (call, arrays) in patterns.items():
        rate = arrays * 4 * count / _best(found, device, call)
        if rate > (found.memory_bandwidth or 0.0):
            found.memory_bandwidth = rate
            found.notes["memory_bandwidth"] = f"fastest {name} over arrays of {4 * count / 1e6:.0f} MB"


def _launch(found: Probe, device: Device) -> None:
    """What the smallest kernel costs a caller."""
    import torch

    x = torch.ones(1, device=device.torch_device)
    timer = device.host_timer()
    calls = [lambda: x.add_(1.0)] * 100
    timer.time(calls)
    found.launch_s = min(timer.time(calls) for _ in range(20)) / len(calls)
    found.notes["launch_s"] = "fastest of 20 batches of 100 in-place additions to one element"


def raised(ceilings: Ceilings, notes: dict[str, str], records: Iterable[Record]) -> Ceilings:
    """Ceilings that no valid record of a run outdoes.

    A probe lasts seconds, and on a busy machine it reads low. Where a case of the run was quicker (by its median),
    the case is the better witness.

    Args:
        ceilings: from the probe.
        notes: how each was found; entries that are raised are replaced.
        records: of the run.
    """
    flops, bandwidth = dict(ceilings.flops), ceilings.memory_bandwidth
    for record in records:
        if not record.valid or record.work is None or not record.time_s:
            continue
        witness = f"{OUTDONE}: {record.case.label()} ({record.case.key})"
        if len(record.work.flops) == 1:
            name, count = next(iter(record.work.needed.items()))
            if count / record.time_s > flops.get(name, 0.0):
                flops[name] = count / record.time_s
                notes[f"flops.{record.case.dtype or name}"] = witness
        moved = record.work.bytes_at() / record.time_s
        if record.case.regime == "cold" and moved > (bandwidth or 0.0):
            bandwidth = moved
            notes["memory_bandwidth"] = witness
    return Ceilings(flops, bandwidth, ceilings.launch_s)
