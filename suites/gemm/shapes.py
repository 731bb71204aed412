"""Where the shapes of matrix products come from: squares, layers of real models, edges, lines, random points.

Each source is a generator of parameter sets (``m``, ``n``, ``k`` and, where it matters, ``layout``); a preset
names one with its arguments. Pure Python: a plan must not wait for numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isqrt
from typing import Any

from wattline.errors import ParamError, UsageError, unknown_name
from wattline.ranges import parse_range
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.units import parse_number

Sizes = str | int | Sequence[str | int]
ShapeSet = dict[str, Any]


def _sizes(given: Sizes) -> list[int]:
    """Integers from a number, a range or a list of both."""
    if isinstance(given, str | int):
        return parse_range(given)
    return list(dict.fromkeys(v for item in given for v in parse_range(item)))


def squares(sizes: Sizes = "128:16384:x2") -> Iterator[ShapeSet]:
    """m = n = k."""
    for size in _sizes(sizes):
        yield {"m": size, "n": size, "k": size}


def skinny(
    models: Sequence[str] | str = ("llama-3-8b",),
    m: Sizes = "1:4096:x2",
    tp: Sizes = 1,
    layers: Sequence[str] | str = (),
) -> Iterator[ShapeSet]:
    """Few rows (tokens) against the weight matrices of real models, sliced for tensor parallelism.

    Weights are stored [n, k], as frameworks keep them: ``layout = "nt"``.

    Args:
        models: names in the model table.
        m: tokens.
        tp: tensor-parallel degrees; one that a model's heads cannot be divided by is left out for that model.
        layers: only these (names as in :func:`wattline.suites.models.Model.gemm_layers`); all when empty.

    Raises:
        UnknownNameError: a model or a layer that is not in the table.
        UsageError: no degree of ``tp`` divides a model.
    """
    wanted = (layers,) if isinstance(layers, str) else tuple(layers)
    seen: set[tuple[int, int, int]] = set()
    known: set[str] = set()
    found: set[str] = set()
    from wattline.suites.models import get_model

    for name in (models,) if isinstance(models, str) else models:
        model = get_model(name)
        degrees = [degree for degree in _sizes(tp) if model.divides(degree)]
        if not degrees:
            raise UsageError(
                f"{name} cannot be sliced for tensor parallelism of {tp}", why=f"{model.heads} heads",
                todo="choose a degree that divides them",
            )  # fmt: skip
        for degree in degrees:
            for layer in model.gemm_layers(degree):
                known.add(layer.name)
                if wanted and layer.name not in wanted:
                    continue
                found.add(layer.name)
                for rows in _sizes(m):
                    shape = (rows, layer.n, layer.k)
                    if shape not in seen:
                        seen.add(shape)
                        yield {"m": rows, "n": layer.n, "k": layer.k, "layout": "nt"}
    for layer_name in wanted:
        if layer_name not in found:
            raise unknown_name("layer of the models", layer_name, known)


def unaligned(
    sizes: Sizes = "256,1024", kinds: Sequence[str] | str = ("cube", "prime", "m", "n", "k")
) -> Iterator[ShapeSet]:
    """Sizes just beside aligned ones.

    Args:
        sizes: the aligned sizes.
        kinds: ``"cube"``: size - 1 and size + 1 in all directions; ``"prime"``: the nearest primes below and
            above in all directions; ``"odd"``: size - 3 and size + 3; ``"m"``, ``"n"``, ``"k"``: size + 1 in that
            direction alone.

    Raises:
        UnknownNameError: an unknown kind.
        ParamError: a size below 8.
    """
    names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for size in _sizes(sizes):
        if size < 8:
            raise ParamError(f"an unaligned neighbour of {size} makes no sense", todo="use sizes from 8")
        for kind in names:
            if kind == "cube":
                sides = [size - 1, size + 1]
            elif kind == "odd":
                sides = [size - 3, size + 3]
            elif kind == "prime":
                sides = [_prime(size - 1, -1), _prime(size + 1, 1)]
            elif kind in ("m", "n", "k"):
                yield {"m": size, "n": size, "k": size, kind: size + 1}
                continue
            else:
                raise unknown_name("kind of unaligned shape", kind, ("cube", "odd", "prime", "m", "n", "k"))
            for side in sides:
                yield {"m": side, "n": side, "k": side}


def _prime(start: int, step: int) -> int:
    """The first prime from ``start`` in the direction ``step``."""
    value = start
    while value < 2 or any(value % d == 0 for d in range(2, isqrt(value) + 1)):
        value += step
    return value


def line(axis: str = "n", values: Sizes = "320:640:+8", m: int = 512, n: int = 512, k: int = 512) -> Iterator[ShapeSet]:
    """A fine line: one dimension in small steps across tile and wave edges, the others fixed.

    Raises:
        UnknownNameError: ``axis`` is not m, n or k.
    """
    if axis not in ("m", "n", "k"):
        raise unknown_name("axis of a line", axis, ("m", "n", "k"))
    for value in _sizes(values):
        yield {"m": m, "n": n, "k": k, axis: value}


def random(
    count: int = 40,
    *,
    seed: int = 0,
    lo: int = 16,
    hi: int = 4096,
    align: int = 1,
    max_flops: float | str = 1e11,
    max_bytes: float | str = 1e9,
    element_bytes: float = 4,
) -> Iterator[ShapeSet]:
    """Points spread log-uniformly over m, n and k alike, any prefix of which covers the space: what a predictor learns
    best from.

    Args:
        count: how many.
        seed: of the sequence.
        lo: smallest dimension.
        hi: largest dimension.
        align: dimensions are rounded up to multiples of this.
        max_flops: points above are passed over; as are those above
        max_bytes: bytes of A, B and C together.
        element_bytes: bytes per element.

    Raises:
        ParamError: limits that hardly a point meets.
    """
    if not (count > 0 and 0 < lo <= hi and align > 0):
        raise ParamError(f"random shapes need count, lo and align above 0 and lo <= hi (lo={lo}, hi={hi})")
    most_flops, most_bytes = parse_number(max_flops), parse_number(max_bytes)
    seen: set[tuple[int, int, int]] = set()
    for point in points(3, 1000 * count, seed=seed):
        m, n, k = (
            min(-(-round(log_uniform(u, lo, hi)) // align) * align, max(hi // align, 1) * align) for u in point
        )
        moved = element_bytes * (m * k + k * n + m * n)
        if 2.0 * m * n * k > most_flops or moved > most_bytes or (m, n, k) in seen:
            continue
        seen.add((m, n, k))
        yield {"m": m, "n": n, "k": k}
        if len(seen) == count:
            return
    raise ParamError(
        f"found only {len(seen)} of {count} random shapes within the limits",
        why=f"dimensions {lo} to {hi}, at most {most_flops:g} FLOPs and {most_bytes:g} bytes",
        todo="raise the limits or lower hi",
    )


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {
    "squares": squares,
    "skinny": skinny,
    "unaligned": unaligned,
    "line": line,
    "random": random,
}
