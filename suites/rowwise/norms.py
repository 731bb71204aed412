"""Layer norm and root-mean-square norm over rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import torch_at_least
from wattline.suites.rowwise.common import RowWise, shape_of
from wattline.suites.workload import BuildContext, Kernel, ParamValues

EPSILON = 1e-5


def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    """``(x - mean) / sqrt(var + eps) * gain + bias`` over rows (Ba et al., "Layer Normalization", arXiv:1607.06450), in
    single precision or better whatever is stored.

    Args:
        x: ``[rows, cols]``.
        gain, bias: ``[cols]``.
    """
    wide = _wide(x)
    centred = wide - wide.mean(dim=1, keepdim=True)
    scaled = centred * (centred.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()
    return (scaled * gain + bias).to(x.dtype)


def rms_norm(x: Any, gain: Any) -> Any:
    """``x / sqrt(mean(x^2) + eps) * gain`` over rows (Zhang and Sennrich, "Root Mean Square Layer Normalization",
    arXiv:1910.07467), in single precision or better whatever is stored.

    Args:
        x: ``[rows, cols]``.
        gain: ``[cols]``.
    """
    wide = _wide(x)
    return (wide * (wide.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt() * gain).to(x.dtype)


def _wide(x: Any) -> Any:
    import torch

    return x if x.dtype == torch.float64 else x.float()


class _Norm(RowWise):
    plain: Callable[..., Any]
    names: tuple[str, ...]

    def inputs(self, p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
        """The rows, and gain (and bias) of the columns."""
        dtype, cols = str(p["dtype"]), int(p["cols"])
        found = {"x": ctx.tensor(shape_of(p), dtype)}
        return found | {name: ctx.tensor((cols,), dtype) for name in self.names}

    def reference(self, p: ParamValues, rows: Any, inputs: Mapping[str, Any], which: Any) -> Any:
        """See :meth:`RowWise.reference`."""
        return type(self).plain(rows, *(inputs[name].double() for name in self.names))


@workload("norm.layernorm")
class LayerNorm(_Norm):
    """(x - mean) / deviation * gain + bias over every row."""

    plain = staticmethod(layer_norm)
    names = ("gain", "bias")

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch's own."""
        from torch.nn.functional import layer_norm as own

        inputs = self.inputs(p, ctx)
        x, gain, bias = inputs.values()
        cols = (int(p["cols"]),)
        return Kernel(lambda: own(x, cols, gain, bias, EPSILON), inputs)


@workload("norm.rmsnorm", requires=(torch_at_least(2, 4),))
class RmsNorm(_Norm):
    """x / root mean square * gain over every row."""

    plain = staticmethod(rms_norm)
    names = ("gain",)

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch's own."""
        from torch.nn.functional import rms_norm as own

        inputs = self.inputs(p, ctx)
        x, gain = inputs.values()
        cols = (int(p["cols"]),)
        return Kernel(lambda: own(x, cols, gain, EPSILON), inputs)


def _variants(op: str, norm: type[_Norm]) -> None:
    maker = norm()

    def plain(p: ParamValues, ctx: BuildContext) -> Kernel:
        """The formula in torch operations, one after the other."""
        inputs = maker.inputs(p, ctx)
        tensors = tuple(inputs.values())
        return Kernel(lambda: norm.plain(*tensors), inputs)

    def fused(p: ParamValues, ctx: BuildContext) -> Kernel:
        """The formula through torch.compile."""
        inputs = maker.inputs(p, ctx)
        tensors = tuple(inputs.values())
        ready, seconds = compiled(norm.plain, *tensors)
        return Kernel(lambda: ready(*tensors), inputs, facts={"compile_s": seconds})

    implementation(op, "plain")(plain)
    implementation(op, "compile", requires=(compiler(),))(fused)


_variants("norm.layernorm", LayerNorm)
_variants("norm.rmsnorm", RmsNorm)
