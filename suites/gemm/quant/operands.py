"""The two operands of a case, drawn, quantised and packed once; further sets of buffers are copies of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from wattline.quantization import scheme_of
from wattline.suites.gemm.quant.pack import Operand, quantize_activations, quantize_weights
from wattline.suites.workload import BuildContext, ParamValues


def integer(p: ParamValues, name: str) -> int:
    """A parameter that is a whole number."""
    return int(p[name])


@dataclass(frozen=True)
class Operands:
    """What a product multiplies.

    Attributes:
        weights: [n, k], quantised.
        act: the activations [m, k], quantised; ``None`` where the scheme leaves them as they are.
        x: the activations as they are then, in the compute format; else ``None``.
        originals: both operands before quantisation, where this is the first set: only the check reads them.
    """

    weights: Operand
    act: Operand | None
    x: Any
    originals: Mapping[str, Any]

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """As a :class:`~wattline.suites.workload.Kernel` carries them."""
        return {"activations": self.x if self.act is None else self.act, "weights": self.weights, **self.originals}

    def activations(self, dtype: Any) -> Any:
        """The activations in a torch dtype, dequantised where they are quantised."""
        return self.x if self.act is None else self.act.dequantize(dtype)

    def copy(self) -> Operands:
        """The same values in memory of their own, the originals left out."""
        x = None if self.x is None else self.x.clone()
        return Operands(self.weights.clone(), None if self.act is None else self.act.clone(), x, {})


_made: WeakKeyDictionary[BuildContext, tuple[dict[str, Any], Operands]] = WeakKeyDictionary()
_laid: WeakKeyDictionary[BuildContext, tuple[tuple[str, dict[str, Any]], tuple[Any, ...]]] = WeakKeyDictionary()


def operands(p: ParamValues, ctx: BuildContext, *, copy: bool = True) -> Operands:
    """The operands of a case.

    Quantising takes far longer than a product. What costs time in the regime ``cold`` is where the bytes lie and not
    what they say, so that only the first set of a context is quantised and the others are copies of it.

    Args:
        p: the case's parameters.
        ctx: where to draw them.
        copy: further sets get memory of their own; without it they share the first one's, for kernels that read
            :func:`laid_out` arrays instead.
    """
    kept = _made.get(ctx)
    if kept is not None and kept[0] == dict(p):
        return kept[1].copy() if copy else kept[1]
    scheme, dtype = scheme_of(str(p["scheme"])), str(p["dtype"])
    m, n, k = (integer(p, name) for name in ("m", "n", "k"))
    x, w = ctx.tensor((m, k), dtype), ctx.tensor((n, k), dtype)
    act = quantize_activations(x, scheme, integer(p, "abits"))
    weights = quantize_weights(w, scheme, integer(p, "group"), integer(p, "bits"))
    found = Operands(weights, act, x if act is None else None, {"x": x, "w": w})
    _made[ctx] = (dict(p), found)
    return found


def laid_out(name: str, p: ParamValues, ctx: BuildContext, make: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Arrays in the order in which a kernel reads them: made for the first set of a context, copied for its others.

    Args:
        name: of the kernel.
        p: the case's parameters.
        ctx: the context that is built in.
        make: gives the arrays, numpy's or torch's, none of which a call may write.
    """
    key, kept = (name, dict(p)), _laid.get(ctx)
    if kept is not None and kept[0] == key:
        return tuple(a.clone() if hasattr(a, "clone") else a.copy() for a in kept[1])
    made = make()
    _laid[ctx] = (key, made)
    return made
