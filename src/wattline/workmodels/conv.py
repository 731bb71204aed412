"""Work of convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattline.formats import number_format
from wattline.work import Work
from wattline.workmodels.arith import least


def out_size(size: Any, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Any:
    """Positions of a filter along one axis: ``floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1``
    (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, relationship 14)."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv2d(p: Mapping[str, Any]) -> Work:
    """A batch of images with a bank of filters.

    FLOPs: ``2 n k p q (c / groups) r s``, every tap counted, those upon padding too, as libraries and papers count
    them. Bounds count the multiplications of Winograd's minimal algorithm on tiles of 4 x 4 results where it applies
    (stride and dilation 1): ``(3 + r) (3 + s) / (16 r s)`` of them, a quarter for 3 x 3 (Lavin and Gray, "Fast
    algorithms for convolutional neural networks", arXiv:1509.09308). Bytes: images, filters
    and results once. ``activations`` (elements of the result) and ``weights`` stand beside, since the former explain
    run time better than FLOPs do (Dollar, Singh and Girshick, "Fast and accurate model scaling", arXiv:2103.06877).

    Args:
        p: ``n``, ``c``, ``h``, ``w`` of the images, ``k`` filters of ``r x s``, ``dtype``; may be left out: ``stride``
            (1), ``padding`` (0), ``dilation`` (1), ``groups`` (1).
    """
    fmt = number_format(p["dtype"])
    n, c, h, w, k, r, s = (p[name] for name in ("n", "c", "h", "w", "k", "r", "s"))
    stride, padding, dilation, groups = (p.get(a, b) for a, b in _DEFAULTS)
    rows, cols = out_size(h, r, stride, padding, dilation), out_size(w, s, stride, padding, dilation)
    activations = 1.0 * n * k * rows * cols
    weights = 1.0 * k * c * r * s / groups
    flops = 2.0 * activations * (c / groups) * r * s
    dense = 1.0 * (stride == 1) * (dilation == 1)
    return Work(
        {fmt.rate: flops},
        {"device": (1.0 * n * c * h * w + weights) * fmt.bytes},
        {"device": activations * fmt.bytes},
        details={"activations": activations, "weights": weights},
        fewest={fmt.rate: flops * (1.0 - dense + dense * (3 + r) * (3 + s) / (16.0 * r * s))},
    )


_DEFAULTS = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))


def long_conv(p: Mapping[str, Any]) -> Work:
    """A causal convolution along sequences, one filter of ``taps`` for each channel.

    Three algorithms are known, and the work is that of the one with the fewest FLOPs: direct, ``2 taps`` for each
    output; a fast Fourier transform of length ``L = 2 length`` (padded so that nothing wraps), ``2.5 L log2 L`` real
    operations for a real transform there and one back, six for each kept frequency (the transform of the filter is
    made beforehand); a complex FFT takes ``5 L log2 L`` (Cooley and Tukey, Math. Comp. 19, 1965; the count as in FFTW's
    benchmarks, Frigo and Johnson, Proc. IEEE 93(2), 2005).

    ``matrix_flops`` is what the matrix form of the transform takes (order-2 Monarch decomposition: Fu et al.,
    "FlashFFTConv", arXiv:2311.05908): more operations, but in matrix units.

    Args:
        p: ``batch``, ``channels``, ``length``, ``taps`` (0: ``length``), ``kept`` (share of the frequencies, 1),
            ``dtype``.
    """
    fmt = number_format(p["dtype"])
    length = 1.0 * p["length"]
    taps = p.get("taps", 0) + length * (p.get("taps", 0) == 0)
    kept = p.get("kept", 1.0)
    sequences = 1.0 * p.get("batch", 1) * p["channels"]
    padded = 2.0 * length
    log2 = _log2(padded)
    fft = sequences * (2 * 2.5 * padded * log2 + 6.0 * kept * (padded / 2 + 1))
    direct = sequences * 2.0 * length * taps
    side = padded**0.5
    return Work(
        {fmt.rate: least(fft, direct)},
        {"device": (sequences * length + p["channels"] * taps) * fmt.bytes},
        {"device": sequences * length * fmt.bytes},
        # Two complex products with matrices of about side x side for each of the transforms: 8 real FLOPs each.
        details={"fft_flops": fft, "direct_flops": direct, "matrix_flops": sequences * 2 * 2 * 8.0 * padded * side},
    )


def _log2(value: Any) -> Any:
    if isinstance(value, int | float):
        from math import log2

        return log2(value)
    import numpy as np

    return np.log2(value)
