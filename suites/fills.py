"""Inputs: seeded tensors in every number format, filled as a case's ``data`` says.

Numbers are drawn in fp32 (integers: in int8), a piece at a time, and rounded into the format asked for, so that a
seed gives the same values in every format up to rounding, and the drawing needs little memory beyond the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from wattline.case import FILLS
from wattline.errors import unknown_name
from wattline.formats import number_format
from wattline.suites.workload import BuildContext, Machine

CHUNK = 2**22
"""Elements drawn at a time. Part of what a seed means: another value would give other inputs."""

INT8_NORMAL_STD = 32.0
"""Standard deviation of the fill "normal" in int8: 4 deviations fit the range, as after symmetric quantisation."""


class Builder(BuildContext):
    """The build context of the measurement loop.

    Successive tensors differ; two builders with the same arguments give the same tensors in the same order. The
    values depend on the kind of device: generators of torch differ between CPU and accelerators.

    Args:
        torch_device: where tensors live.
        machine: plain facts of it.
        data: one of :data:`wattline.case.FILLS`.
        seed: of the random numbers.

    Raises:
        UnknownNameError: no such fill.
    """

    def __init__(self, torch_device: Any, machine: Machine, *, data: str = "uniform", seed: int = 0) -> None:
        if data not in FILLS:
            raise unknown_name("data fill", data, FILLS)
        import torch

        self.torch_device = torch.device(torch_device)
        self.machine = machine
        self.data = data
        # Some backends have no generator of their own: their numbers are drawn on the CPU and copied.
        try:
            self._generator = torch.Generator(device=self.torch_device)
            self._draw_on = self.torch_device
        except RuntimeError:
            self._generator = torch.Generator()
            self._draw_on = torch.device("cpu")
        self._generator.manual_seed(seed)

    def tensor(self, shape: Sequence[int], fmt: str) -> Any:
        """See :meth:`BuildContext.tensor`: contiguous, shape ``shape``."""
        import torch

        result = self.empty(shape, fmt)
        if self.data == "zeros":
            return result.zero_()
        flat = result.view(-1)
        scratch = None
        integer = number_format(fmt).kind == "int"
        for begin in range(0, prod(shape), CHUNK):
            piece = flat[begin : begin + CHUNK]
            direct = piece.device == self._draw_on
            if direct and (integer or piece.dtype == torch.float32):
                self._fill(piece, integer)
                continue
            if scratch is None:
                drawn = torch.int8 if integer else torch.float32
                scratch = torch.empty(min(CHUNK, prod(shape)), dtype=drawn, device=self._draw_on)
            part = scratch[: piece.numel()]
            self._fill(part, integer)
            piece.copy_(part)
        return result

    def empty(self, shape: Sequence[int], fmt: str) -> Any:
        """See :meth:`BuildContext.empty`."""
        import torch

        return torch.empty(tuple(shape), dtype=getattr(torch, number_format(fmt).torch_name), device=self.torch_device)

    def _fill(self, piece: Any, integer: bool) -> None:
        generator = self._generator
        if self.data == "integers":
            piece.random_(-4, 5, generator=generator)
        elif self.data == "normal":
            if integer:
                self._normal_int8(piece)
            else:
                piece.normal_(generator=generator)
        elif integer:
            piece.random_(-127, 128, generator=generator)  # symmetric: -128 has no counterpart
        else:
            piece.uniform_(-1, 1, generator=generator)
        if self.data == "sparse":
            import torch

            kept = torch.empty(piece.numel(), dtype=torch.int8, device=piece.device).random_(0, 2, generator=generator)
            piece.mul_(kept)

    def _normal_int8(self, piece: Any) -> None:
        import torch

        drawn = torch.empty(piece.numel(), dtype=torch.float32, device=piece.device)
        drawn.normal_(std=INT8_NORMAL_STD, generator=self._generator)
        piece.copy_(drawn.round_().clamp_(-127, 127))
