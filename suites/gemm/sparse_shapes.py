"""Where the shapes of sparse products come from: layers of real models, and points for learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wattline.errors import ParamError
from wattline.suites.gemm import shapes
from wattline.suites.gemm.shapes import ShapeSet
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.units import parse_number


def layers(models: Sequence[str] | str = ("llama-3-8b",), **arguments: Any) -> Iterator[ShapeSet]:
    """Weights of real models against few or many tokens; arguments as :func:`wattline.suites.gemm.shapes.skinny`."""
    for shape in shapes.skinny(models, **arguments):
        yield {name: shape[name] for name in ("m", "n", "k")}


def random(
    count: int = 24, *, seed: int = 0, lo: int = 64, hi: int = 4096, m_lo: int = 1, m_hi: int = 512,
    density_lo: float = 0.005, density_hi: float = 0.6, align: int = 16,
    max_flops: float | str = "4G", max_values: float | str = "8M",
) -> Iterator[ShapeSet]:  # fmt: skip
    """Points spread log-uniformly over m, n, k and density, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most of n and k, which are multiples of ``align``.
        m_lo, m_hi: least and most of m.
        density_lo, density_hi: least and most density, above 0 and at most 1.
        align: 16, 32 or 64 suits blocks.
        max_flops: points with more useful FLOPs are passed over; as are those with
        max_values: more elements in the dense weights.

    Raises:
        ParamError: limits that hardly a point meets.
    """
    if not (count > 0 and 0 < align <= lo <= hi and 0 < density_lo <= density_hi <= 1):
        raise ParamError(
            "random sparse shapes need count above 0, 0 < align <= lo <= hi and 0 < density_lo <= density_hi <= 1"
        )
    most_flops, most_values = parse_number(max_flops), parse_number(max_values)
    found = 0
    for u in points(4, 1000 * count, seed=seed):
        m = round(log_uniform(u[0], m_lo, m_hi))
        n, k = (max(round(log_uniform(part, lo, hi) / align), 1) * align for part in u[1:3])
        density = float(f"{log_uniform(u[3], density_lo, density_hi):.3g}")
        if n * k > most_values or 2.0 * m * n * k * density > most_flops:
            continue
        yield {"m": m, "n": n, "k": k, "density": density}
        found += 1
        if found == count:
            return
    raise ParamError(
        f"found only {found} of {count} random shapes within the limits",
        todo="raise max_flops or max_values, or lower hi",
    )


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {
    "squares": shapes.squares, "layers": layers, "random": random,
}  # fmt: skip
