"""What a datasheet does not say and devices have in common: what share of its peak a part can pay for in watts.

A part sustains the rate of its datasheet only if its power limit pays for it. Energy per FLOP of whole kernels, all
that happens around the arithmetic included, depends on the process and on the width of the format; the energies below
are read off large products on parts that run into their limit: P4 and T4 (fp32 at 57 and 39 % of their datasheet;
rows of sitar-lab/NeuSight), H100 and H200 (fp8 at 51 to 65 %; ai-dynamo/aiconfigurator); for the others the most that
the measured rates of A100, V100, H100 and L40S leave room for. Where they err, they err towards no limit.
"""

from __future__ import annotations

from wattline.device import DeviceSpec

USABLE = 0.9
"""Share of the power limit that is left for work: the rest is idle power."""
_PER_FLOP = {
    # format: by process of the part, (16 and 12 nm, 8 and 7 nm, 5 and 4 nm), joules
    "fp32": (20.5e-12, 13.0e-12, 8.0e-12),
    "fp16": (2.2e-12, 1.15e-12, 0.85e-12),
    "bf16": (2.2e-12, 1.15e-12, 0.85e-12),
    "fp8": (2.2e-12, 1.15e-12, 0.53e-12),
    "int8": (1.1e-12, 0.58e-12, 0.45e-12),
}


def powered_rate(spec: DeviceSpec, fmt: str) -> float:
    """FLOP/s that the power limit pays for, or infinity where nothing is known of it.

    The process follows from the formats that a part has: fp8 came with 5 and 4 nm (Hopper, Ada), bf16 with 8 and 7 nm
    (Ampere). Formats are those of rates, see :meth:`wattline.device.DeviceSpec.rate`.

    Args:
        spec: the device.
        fmt: a rate format that the device executes itself.
    """
    if spec.kind != "gpu" or spec.vendor != "nvidia" or not spec.tdp_w or fmt not in _PER_FLOP:
        return float("inf")
    process = 2 if "fp8" in spec.peak_flops else 1 if "bf16" in spec.peak_flops else 0
    return USABLE * spec.tdp_w / _PER_FLOP[fmt][process]
