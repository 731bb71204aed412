"""Long convolutions along sequences: by fast Fourier transform, by its matrix form, and directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isqrt, nan, pi
from typing import Any

from wattline.formats import number_format
from wattline.params import Constraint, DType, Float, Int, Params, Value
from wattline.suites.gemm.shapes import ShapeSet
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import never
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload

FORMATS = ("fp32", "fp64")  # torch transforms no shorter ones on every device
RULES = (
    Constraint("taps is 0 (as long as the sequence) or at most length", lambda p: int(p["taps"]) <= int(p["length"])),
    Constraint("kept is above 0: a share of the frequencies", lambda p: float(p["kept"]) > 0),
)  # fmt: skip
CHANNELS = 4
"""Channels of the first and last sequence that are compared."""


def random(count: int = 12, *, seed: int = 0, lo: int = 256, hi: int = 16384, most: int = 2**20) -> Iterator[ShapeSet]:
    """Points spread log-uniformly over length, channels and batch, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most length.
        most: elements of all sequences together.
    """
    found = 0
    for u in points(3, 1000 * count, seed=seed):
        length, channels, batch = round(log_uniform(u[0], lo, hi)), round(log_uniform(u[1], 4, 64)), 1 + int(4 * u[2])
        if length * channels * batch <= most:
            yield {"batch": batch, "channels": channels, "length": length}
            found += 1
        if found == count:
            return


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {"random": random}


def parts(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Sequences ``[batch, channels, length]`` and filters ``[channels, taps]``."""
    set_precision(str(p["dtype"]))
    dtype, length = str(p["dtype"]), int(p["length"])
    taps = int(p["taps"]) or length
    x = ctx.tensor((int(p["batch"]), int(p["channels"]), length), dtype)
    return {"x": x, "filters": ctx.tensor((int(p["channels"]), taps), dtype)}


def spectrum(filters: Any, length: int, kept: float) -> Any:
    """Transform of the filters at twice the length, with all but the lowest frequencies set to zero.

    Args:
        filters: ``[channels, taps]``.
        length: of the sequences.
        kept: share of the frequencies that stay.

    Returns:
        ``[channels, length + 1]``, complex.
    """
    import torch

    found = torch.fft.rfft(filters, 2 * length)
    found[:, kept_bins(length, kept) :] = 0
    return found


def kept_bins(length: int, kept: float) -> int:
    """Frequencies that stay, of ``length + 1``."""
    return max(1, round(kept * (length + 1)))


@workload("conv.long", impl="fft")
class LongConv(Workload):
    """Causal convolution along sequences with filters as long as these, one for each channel.

    With ``kept`` below 1 the filters are what is left of them in the lowest frequencies: the product with the others
    is zero, which an implementation may use.
    """

    params = Params(
        *RULES,
        batch=Int(1, doc="sequences"),
        channels=Int(doc="channels, each with its own filter"),
        length=Int(doc="elements of a sequence"),
        taps=Int(0, lo=0, doc="elements of a filter; 0: as many as of a sequence"),
        kept=Float(1.0, lo=0.0, hi=1.0, doc="share of the frequencies that the filters have"),
        dtype=DType(*FORMATS, doc="number format"),
    )
    shape_sources = SOURCES
    tracks_memory = True

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`: the transformed filters are complex and twice as long."""
        spectra = 2.0 * int(p["channels"]) * (int(p["length"]) + 1)
        return super().footprint(p) + spectra * number_format(str(p["dtype"])).bytes

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch.fft there and back."""
        import torch

        inputs, length = parts(p, ctx), int(p["length"])
        x, filters = inputs.values()
        factor = spectrum(filters, length, float(p["kept"]))
        return Kernel(lambda: torch.fft.irfft(torch.fft.rfft(x, 2 * length) * factor, 2 * length)[..., :length], inputs)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: in double precision, some channels of the first and the last sequence."""
        import torch

        x, filters = kernel.inputs["x"], kernel.inputs["filters"]
        if tuple(result.shape) != tuple(x.shape):
            return nan, 0.0, f"shape {tuple(result.shape)} instead of {tuple(x.shape)}"
        length, channels = x.shape[2], x.shape[1]
        some = sorted({round(i * (channels - 1) / (CHANNELS - 1)) for i in range(CHANNELS)})
        batches = sorted({0, x.shape[0] - 1})
        wide = x[batches][:, some].double().cpu()
        factor = spectrum(filters[some].double().cpu(), length, float(p["kept"]))
        ref = torch.fft.irfft(torch.fft.rfft(wide, 2 * length) * factor, 2 * length)[..., :length]
        out = result[batches][:, some].double().cpu()
        whole, apart = float(torch.linalg.vector_norm(ref)), float(torch.linalg.vector_norm(out - ref))
        how = f"{len(some)} channels of {len(batches)} sequences"
        return apart / whole if whole else apart, 4.0 * number_format(str(p["dtype"])).tolerance, how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer channels."""
        return None if int(p["channels"]) <= 4 else {**p, "channels": 4, "batch": 1}


def factors(length: int) -> tuple[int, int]:
    """Two factors of a length, as near to each other as they come."""
    for a in range(isqrt(length), 0, -1):
        if length % a == 0:
            return a, length // a
    return 1, length


def _dft(size: int, sign: float, dtype: Any, device: Any) -> Any:
    """The matrix of the transform, ``exp(sign 2 pi i j k / size)``, ``[size, size]``, complex."""
    import torch

    index = torch.arange(size, dtype=torch.float64, device=device)
    # The product is reduced first, so that large ones lose no digits.
    angle = sign * 2 * pi / size * torch.remainder(index[:, None] * index, size)
    return torch.polar(torch.ones_like(angle), angle).to(dtype)


@implementation(
    "conv.long", "matrix",
    requires=(never(lambda p, m: factors(2 * int(p["length"]))[0] < 8, "prime_length",
                    "the matrix form wants a length with two factors of about its root"),),
)  # fmt: skip
def matrix(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The transform as two products with small matrices and a twist between them (order-2 Monarch decomposition).

    With ``N = A B``, index ``n = B a + b`` and frequency ``f = c + A d``: ``X[c, d] = sum_b W_N^(b c) W_B^(b d) sum_a
    W_A^(a c) x[a, b]``. The sequence fills half of its padded length, so only half of the rows of the first matrix are
    needed; with few frequencies kept, whole columns of the second product are left out.
    """
    import torch

    inputs, length = parts(p, ctx), int(p["length"])
    x, filters = inputs.values()
    size = 2 * length
    a, b = factors(size)
    complex_ = torch.complex64 if x.dtype == torch.float32 else torch.complex128
    first, second = _dft(a, -1, complex_, x.device), _dft(b, -1, complex_, x.device)
    back_first, back_second = _dft(a, 1, complex_, x.device) / size, _dft(b, 1, complex_, x.device)
    rows = torch.arange(a, dtype=torch.float64, device=x.device)[:, None]
    angle = -2 * pi / size * torch.remainder(rows * torch.arange(b, dtype=torch.float64, device=x.device), size)
    twist = torch.polar(torch.ones_like(angle), angle).to(complex_)  # [c, b]
    half = spectrum(filters, length, float(p["kept"]))
    bins = kept_bins(length, float(p["kept"]))
    # Frequencies above the middle are the conjugates of those below.
    whole = torch.cat([half, half[:, 1:length].conj().flip(1)], dim=1).to(complex_)
    factor = whole.view(-1, b, a).transpose(1, 2)  # frequency c + a d at [c, d]
    low = min(b, -(-bins // a))
    # Columns d that hold a kept frequency: the first ones, and their conjugates at the end.
    columns = torch.tensor(sorted({*range(low), *range(max(0, b - low), b)}), device=x.device)
    some = factor[:, :, columns].contiguous()
    forward, backward = second[:, columns].contiguous(), back_second[columns].contiguous()
    filled = -(-length // b)  # rows of the padded sequence that are not zero
    held = first[:, :filled].contiguous()
    spare = filled * b - length

    def call() -> Any:
        padded = torch.nn.functional.pad(x, (0, spare)) if spare else x
        grid = padded.view(*x.shape[:2], filled, b).to(complex_)
        found = ((held @ grid) * twist @ forward) * some
        result = back_first.mT @ ((found @ backward) * twist.conj())
        return result.real.reshape(*x.shape[:2], size)[..., :length]

    return Kernel(call, inputs, facts={"factors": [a, b], "columns_kept": len(columns)})


@implementation(
    "conv.long", "direct",
    requires=(never(lambda p, m: float(p["kept"]) < 1, "frequency_sparse",
                    "filters cut in frequency have no short direct form"),),
)  # fmt: skip
def direct(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Every tap multiplied: torch's conv1d, for short filters."""
    from torch.nn.functional import conv1d, pad

    inputs = parts(p, ctx)
    x, filters = inputs.values()
    flipped = filters.flip(1)[:, None].contiguous()
    taps, channels = filters.shape[1], filters.shape[0]
    return Kernel(lambda: conv1d(pad(x, (taps - 1, 0)), flipped, groups=channels), inputs)
