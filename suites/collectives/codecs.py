"""Lossy codes for gradients: what goes over the wire is one row of bytes, packed and unpacked by code of our own.

Top-k: Lin et al., "Deep Gradient Compression", ICLR 2018. Signs with a scale: Bernstein et al., "signSGD", ICML 2018;
Seide et al., "1-bit stochastic gradient descent", Interspeech 2014. Scalars of a shared seed: Qin et al., "Federated
full-parameter tuning with communication cost under 18 kilobytes", ICML 2024. Error feedback, which keeps what a code
drops for the next step, belongs to training and is not part of what is measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

BLOCK = 256
"""Elements that share a scale."""


class Codec(ABC):
    """A code for flat fp32 tensors of one length.

    Args:
        count: elements, a multiple of :data:`BLOCK`.
        device: torch's device.

    Attributes:
        wire_bytes: length of a packed row.
    """

    wire_bytes: int

    def __init__(self, count: int, device: Any) -> None:
        self.count, self.device = count, device

    @abstractmethod
    def pack(self, x: Any, wire: Any) -> None:
        """Write the code of ``x [count]`` into ``wire [wire_bytes]`` (uint8)."""

    @abstractmethod
    def add(self, wire: Any, out: Any) -> None:
        """Add what a row says to ``out [count]`` (fp32, or fp64 for a reference)."""

    def _part(self, wire: Any, begin: int, length: int, dtype: Any) -> Any:
        """A view of some bytes of a row; both ends on whole elements."""
        return wire[begin : begin + length].view(dtype)


class TopK(Codec):
    """The largest elements by magnitude: values (fp32) and indices (int32)."""

    def __init__(self, count: int, device: Any, density: float) -> None:
        super().__init__(count, device)
        self.kept = max(1, min(count, round(density * count)))
        self.wire_bytes = 8 * self.kept

    def pack(self, x: Any, wire: Any) -> None:
        """See :meth:`Codec.pack`."""
        import torch

        where = torch.topk(x.abs(), self.kept, sorted=False).indices
        self._part(wire, 0, 4 * self.kept, torch.float32).copy_(x[where])
        self._part(wire, 4 * self.kept, 4 * self.kept, torch.int32).copy_(where)

    def add(self, wire: Any, out: Any) -> None:
        """See :meth:`Codec.add`."""
        import torch

        values = self._part(wire, 0, 4 * self.kept, torch.float32)
        where = self._part(wire, 4 * self.kept, 4 * self.kept, torch.int32)
        out.index_add_(0, where, values.to(out.dtype))


class Int8(Codec):
    """Whole numbers from -127 to 127 and a scale (fp32) for each block."""

    def __init__(self, count: int, device: Any) -> None:
        super().__init__(count, device)
        self._scales = 4 * (count // BLOCK)
        self.wire_bytes = self._scales + count

    def pack(self, x: Any, wire: Any) -> None:
        """See :meth:`Codec.pack`."""
        import torch

        blocks = x.view(-1, BLOCK)
        scale = blocks.abs().amax(dim=1).div_(127.0).clamp_min_(1e-30)
        self._part(wire, 0, self._scales, torch.float32).copy_(scale)
        rounded = (blocks / scale[:, None]).round_()
        self._part(wire, self._scales, self.count, torch.int8).copy_(rounded.view(-1))

    def add(self, wire: Any, out: Any) -> None:
        """See :meth:`Codec.add`."""
        import torch

        scale = self._part(wire, 0, self._scales, torch.float32).to(out.dtype)
        whole = self._part(wire, self._scales, self.count, torch.int8).to(out.dtype)
        out.view(-1, BLOCK).addcmul_(whole.view(-1, BLOCK), scale[:, None])


class Sign(Codec):
    """A bit for each element and the mean magnitude (fp32) of each block."""

    def __init__(self, count: int, device: Any) -> None:
        import torch

        super().__init__(count, device)
        self._scales = 4 * (count // BLOCK)
        self.wire_bytes = self._scales + count // 8
        self._places = torch.arange(8, dtype=torch.uint8, device=device)
        self._weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)

    def pack(self, x: Any, wire: Any) -> None:
        """See :meth:`Codec.pack`."""
        import torch

        self._part(wire, 0, self._scales, torch.float32).copy_(x.view(-1, BLOCK).abs().mean(dim=1))
        bits = (x >= 0).view(-1, 8).to(torch.uint8).mul_(self._weights)
        wire[self._scales :].copy_(bits.sum(dim=1, dtype=torch.uint8))

    def add(self, wire: Any, out: Any) -> None:
        """See :meth:`Codec.add`."""
        import torch

        scale = self._part(wire, 0, self._scales, torch.float32).to(out.dtype)
        bits = (wire[self._scales :, None] >> self._places) & 1
        signs = bits.to(out.dtype).mul_(2.0).sub_(1.0)
        out.view(-1, BLOCK).addcmul_(signs.view(-1, BLOCK), scale[:, None])


class Scalars(Codec):
    """Inner products with directions that a shared seed makes on every rank: a few scalars stand for the whole.

    The estimate ``sum_j <x, r_j> r_j / d`` is unbiased for directions of independent normal numbers, and far off in a
    single step: its error is about ``sqrt(count / d)``.
    """

    def __init__(self, count: int, device: Any, scalars: int, seed: int) -> None:
        super().__init__(count, device)
        self.scalars, self._seed = scalars, seed
        self.wire_bytes = 4 * scalars

    def _direction(self, number: int) -> Any:
        import torch

        generator = torch.Generator(self.device).manual_seed((self._seed * 10_007 + number) % 2**62)
        return torch.randn(self.count, generator=generator, device=self.device)

    def pack(self, x: Any, wire: Any) -> None:
        """See :meth:`Codec.pack`."""
        import torch

        values = self._part(wire, 0, self.wire_bytes, torch.float32)
        for number in range(self.scalars):
            values[number] = torch.dot(x, self._direction(number))

    def add(self, wire: Any, out: Any) -> None:
        """See :meth:`Codec.add`."""
        import torch

        values = self._part(wire, 0, self.wire_bytes, torch.float32)
        for number in range(self.scalars):
            out.addcmul_(self._direction(number).to(out.dtype), values[number].to(out.dtype) / self.scalars)

    def add_all(self, wires: Any, out: Any) -> None:
        """Add several rows at once: they share their directions. ``wires [ranks, wire_bytes]``."""
        import torch

        summed = wires.view(torch.float32).sum(dim=0)
        self.add(summed.view(torch.uint8), out)
