"""How much of the optimizer to offload: the share of the parameters that the CPU updates.

Both sides work at the same time, and the CPU's part crosses the link before and after
(:func:`wattline.workmodels.offload.split_step_s`, with its sources). A step of Adam is bound by memory on either side,
unless the rate of its arithmetic is lower still.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.device import DeviceSpec
from wattline.errors import DataError, ParamError
from wattline.units import format_bytes, format_time
from wattline.workmodels.offload import adam, best_split, split_step_s

STATE_BYTES = 12.0
"""What stays on the device of each parameter that it updates: the fp32 parameter and both moments. The gradient is
there either way."""


@dataclass(frozen=True)
class Rates:
    """What the parts of a machine sustain.

    Attributes:
        cpu_bandwidth, device_bandwidth: bytes/s of the host's and the device's memory.
        down, up: bytes/s of the link, device to host and back.
        cpu_flops, device_flops: fp32 FLOP/s; infinite where memory alone bounds.
    """

    cpu_bandwidth: float
    device_bandwidth: float
    down: float
    up: float
    cpu_flops: float = float("inf")
    device_flops: float = float("inf")

    @classmethod
    def of(cls, host: DeviceSpec, device: DeviceSpec) -> Rates:
        """The rates of two devices: the datasheet's, else the measured ceilings; arithmetic is left out of account.

        Raises:
            DataError: a bandwidth that is not known.
        """
        link = device.link_speed("pcie") or host.link_speed("pcie")
        found = {"memory bandwidth of the host": host.bandwidth, "memory bandwidth of the device": device.bandwidth,
                 "bandwidth of the link": link}  # fmt: skip
        for name, value in found.items():
            if not value:
                raise DataError(
                    f"the {name} is not known", why=f"neither {host.id} nor {device.id} says it",
                    todo="measure it (`wattline bench memory offload`), or give Rates(...)",
                )  # fmt: skip
        assert host.bandwidth is not None
        assert device.bandwidth is not None
        assert link is not None
        return cls(host.bandwidth, device.bandwidth, link, link)


@dataclass(frozen=True)
class Split:
    """A split of the optimizer's step.

    Attributes:
        parameters: fp32 parameters.
        cpu_share: share that the CPU updates.
        step_s: seconds of the step.
        device_s: seconds if the device updated all; ``cpu_s``: if the CPU did, the link included.
        least_share: share that the CPU must take, since its states do not fit on the device.
        unbound_share: the quickest share, if everything fitted.
        saved_bytes: of the device's memory.
    """

    parameters: int
    cpu_share: float
    step_s: float
    device_s: float
    cpu_s: float
    least_share: float
    unbound_share: float
    saved_bytes: float

    def __str__(self) -> str:
        bound = " (what does not fit)" if self.least_share > self.unbound_share else ""
        return (
            f"{self.cpu_share:.1%} on the CPU{bound}: {format_time(self.step_s)} a step, against "
            f"{format_time(self.device_s)} all on the device and {format_time(self.cpu_s)} all on the CPU; "
            f"{format_bytes(self.saved_bytes)} of the device's memory saved"
        )


def split_optimizer(parameters: int, rates: Rates, *, free_bytes: float | None = None) -> Split:
    """The quickest split of a step of Adam.

    Args:
        parameters: fp32 parameters.
        rates: of the machine.
        free_bytes: device memory that optimizer states may take; ``None``: as much as they need.

    Raises:
        ParamError: no parameters, rates that are not above zero, or memory below zero.
    """
    if parameters < 1:
        raise ParamError(f"there must be at least one parameter, not {parameters}")
    for name in ("cpu_bandwidth", "device_bandwidth", "down", "up", "cpu_flops", "device_flops"):
        if not getattr(rates, name) > 0:
            raise ParamError(f"{name} must be above zero, not {getattr(rates, name)!r}")
    if free_bytes is not None and not free_bytes >= 0:
        raise ParamError(f"free_bytes must not be below zero: {free_bytes!r}")
    work = adam({"parameters": parameters, "cpu_share": 1.0})
    moved = work.bytes_at()
    cpu = max(moved / rates.cpu_bandwidth, work.total_flops / rates.cpu_flops)
    device = max(moved / rates.device_bandwidth, work.total_flops / rates.device_flops)
    crossing = work.link_bytes["pcie"]  # the gradients; as many bytes of parameters come back
    link = crossing / rates.down + crossing / rates.up
    least = 0.0 if free_bytes is None else max(0.0, 1.0 - free_bytes / (STATE_BYTES * parameters))
    unbound = float(best_split(cpu, link, device))
    share = max(least, unbound)
    step = float(split_step_s(share, cpu, link, device))
    return Split(parameters, share, step, device, cpu + link, least, unbound, STATE_BYTES * parameters * share)
