"""Element-wise arithmetic, one operation for each function: unary, binary, and binary with a scalar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.rowwise.common import RowWise, shape_of
from wattline.suites.workload import BuildContext, Kernel, ParamValues
from wattline.workmodels.rowwise import ELEMENTWISE, elementwise_counts

SCALAR = 1.5
"""The second operand of the operations that end in ``u``."""

_UNARY_IN_U = ("relu", "gelu", "silu")
"""Names that end in ``u`` without having a scalar operand."""
_POSITIVE = ("sqrt", "pow", "powu")
"""Operations whose first operand is made positive: of negative numbers they are NaN."""


def function_of(name: str) -> Callable[..., Any]:
    """The torch function of one or two tensors that ``elementwise.<name>`` stands for."""
    import torch
    from torch.nn import functional

    unary: dict[str, Callable[..., Any]] = {
        "copy": torch.clone, "relu": torch.relu, "gelu": functional.gelu, "silu": functional.silu,
        "tanh": torch.tanh, "sigmoid": torch.sigmoid, "exp": torch.exp, "neg": torch.neg, "abs": torch.abs,
        "sqrt": torch.sqrt,
    }  # fmt: skip
    if name in unary:
        return unary[name]
    binary: dict[str, Callable[..., Any]] = {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
        "max": torch.maximum, "min": torch.minimum,
    }  # fmt: skip
    if name in binary:
        return binary[name]
    base = name.removesuffix("u")
    if base == "max":
        return lambda x: torch.clamp_min(x, SCALAR)
    if base == "min":
        return lambda x: torch.clamp_max(x, SCALAR)
    return lambda x: binary[base](x, SCALAR)


class ElementWise(RowWise):
    """One element-wise operation."""

    name = ""

    def inputs(self, p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
        """One or two tensors, in the domain of the function."""
        shape, dtype = shape_of(p), str(p["dtype"])
        x = ctx.tensor(shape, dtype)
        if self.name in _POSITIVE:
            x.abs_()
        if elementwise_counts(self.name)[0] < 2:
            return {"x": x}
        y = ctx.tensor(shape, dtype)
        if self.name == "div":
            y.copy_(y.abs() + 0.5)  # not so near to zero that the quotients overflow in 16 bits
        return {"x": x, "y": y}

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch's own, result allocated by each call."""
        inputs = self.inputs(p, ctx)
        function, tensors = function_of(self.name), tuple(inputs.values())
        return Kernel(lambda: function(*tensors), inputs)

    def reference(self, p: ParamValues, rows: Any, inputs: Mapping[str, Any], which: Any) -> Any:
        """See :meth:`RowWise.reference`."""
        second = [inputs["y"][which].double()] if "y" in inputs else []
        return function_of(self.name)(rows, *second)


def _register(name: str) -> None:
    count = {1: "one tensor", 2: "two tensors"}[int(elementwise_counts(name)[0])]
    scalar = f" and {SCALAR:g}" if name.endswith("u") and name not in _UNARY_IN_U else ""
    doc = f"{name.removesuffix('u') if scalar else name} of {count}{scalar}, element by element."
    own = {"name": name, "__doc__": doc, "__module__": __name__}
    made = type(f"ElementWise{name.capitalize()}", (ElementWise,), own)
    workload(f"elementwise.{name}")(made)

    def fused(p: ParamValues, ctx: BuildContext) -> Kernel:
        """Through torch.compile."""
        inputs = made().inputs(p, ctx)
        tensors = tuple(inputs.values())
        ready, seconds = compiled(_kept(name), *tensors)
        return Kernel(lambda: ready(*tensors), inputs, facts={"compile_s": seconds})

    implementation(f"elementwise.{name}", "compile", requires=(compiler(),))(fused)


_functions: dict[str, Callable[..., Any]] = {}


def _kept(name: str) -> Callable[..., Any]:
    """One function object for each operation, so that equal shapes are compiled once."""
    if name not in _functions:
        _functions[name] = function_of(name)
    return _functions[name]


for _name in ELEMENTWISE:
    _register(_name)
