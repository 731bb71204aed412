"""What watching costs on this machine: a quick kernel's latency with the samplers on and off, in the run's own data."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wattline.collectors.overhead import sampler_overhead
from wattline.errors import DeviceError, SensorError
from wattline.suites.settings import WATCHING_PAIRS, watching_block_s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wattline.collectors.device import Device
    from wattline.collectors.energy import EnergySensor
    from wattline.collectors.telemetry import Telemetry
    from wattline.suites.settings import MeasureSettings

KERNEL_S = 100e-6
"""Length of the kernel that is watched: short ones suffer most from a sampler that wakes up beside them."""
_SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)


def watching_cost(
    device: Device,
    telemetry: Telemetry,
    energy: EnergySensor,
    settings: MeasureSettings,
    *,
    pairs: int = WATCHING_PAIRS,
) -> dict[str, Any]:
    """Latency of a kernel of about 100 us with all samplers of a run, and without.

    Args:
        device: that runs it.
        telemetry: entered for each block with the samplers on.
        energy: started for each such block.
        settings: of the run, for the length of a block.
        pairs: pairs of blocks.

    Returns:
        :meth:`wattline.collectors.overhead.SamplerOverhead.to_dict` with ``kernel``, or why it is not known as
        ``reason``: code and message.
    """
    call, name = _kernel(device)
    timer = device.timer()
    # About a sample's worth of calls: the clock resolves it, and the blocks' length is hit closely.
    once = max(timer.time([call]), 1e-7)
    count = max(1, min(timer.max_batch_calls, math.ceil(2e-3 / once)))
    calls = [call] * count

    @contextmanager
    def both() -> Iterator[None]:
        with telemetry:
            energy.start()
            try:
                yield
            finally:
                energy.cancel()

    def run_calls(wanted: int) -> float:
        return timer.time(calls[:wanted])

    try:
        found = sampler_overhead(_Again(both), run_calls, count, pairs=pairs, block_s=watching_block_s(settings))
    except (SensorError, DeviceError) as error:
        return {"reason": {"code": "sampler_failed", "message": str(error)}}
    return {**found.to_dict(), "kernel": name, "sampled": sampled(telemetry, energy)}


def sampled(telemetry: Telemetry, energy: EnergySensor) -> str:
    """What was sampling meanwhile, in words."""
    return f"{type(telemetry).__name__}, {energy.source or energy.name if energy.available else 'no energy sensor'}"


class _Again:
    """A context manager that may be entered many times, from a function that makes one for each."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._open: Any = None

    def __enter__(self) -> None:
        self._open = self._make()
        self._open.__enter__()

    def __exit__(self, *error: Any) -> None:
        opened, self._open = self._open, None
        opened.__exit__(*error)


def _kernel(device: Device) -> tuple[Callable[[], Any], str]:
    """A square product of about 100 us, and its name."""
    import torch

    timer = device.timer()
    size = _SIZES[0]
    call: Callable[[], Any] = int
    for size in _SIZES:
        a = torch.ones(size, size, device=device.torch_device)
        out = torch.empty_like(a)

        def multiply(a: Any = a, out: Any = out) -> Any:
            return torch.mm(a, a, out=out)

        call = multiply
        timer.time([call])
        if min(timer.time([call] * 4) / 4 for _ in range(5)) >= 0.7 * KERNEL_S:
            break
    return call, f"fp32 product, m = n = k = {size}"
