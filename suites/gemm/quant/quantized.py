"""Products of quantised weights with activations that may be quantised too; dequantise-then-multiply beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any

from wattline.formats import number_format
from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.quantization import SCHEMES, scheme_of
from wattline.suites.compiled import compiled, compiler
from wattline.suites.gemm import shapes
from wattline.suites.gemm.copies import in_turn
from wattline.suites.gemm.quant.operands import integer, operands
from wattline.suites.gemm.quant.pack import Operand
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import never
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Requirement, Workload

GROUPS = (0, 32, 64, 128, 256)
SCOUT_SIZE = 128
_ERROR_ROWS = 32
_ERROR_COLUMNS = 1024


def _group_fits(p: ParamValues) -> bool:
    return integer(p, "group") <= integer(p, "k")


def _bits_match(p: ParamValues) -> bool:
    return scheme_of(str(p["scheme"])).planes == (integer(p, "bits") > 0)


def _abits_match(p: ParamValues) -> bool:
    return (p["scheme"] == "bits") == (integer(p, "abits") > 0)


RULES = (
    Constraint(f"group is one of {', '.join(map(str, GROUPS))}", lambda p: p["group"] in GROUPS),
    Constraint("group is at most k", _group_fits),
    Constraint(
        "group is 0 except for " + ", ".join(s.name for s in SCHEMES.values() if s.grouped),
        lambda p: p["group"] == 0 or scheme_of(str(p["scheme"])).grouped,
    ),
    Constraint("bits is 1 to 8 for the schemes bits and lut, and 0 for all others", _bits_match),
    Constraint("abits is 1 to 8 for the scheme bits, and 0 for all others", _abits_match),
)

FORMATS: tuple[Requirement, ...] = (
    never(
        lambda p, m: m.kind not in ("cpu", "cuda", "xpu") and "e4m3" in _elements(p), "no_fp8",
        "torch stores fp8 on CPUs and on CUDA, ROCm and Intel GPUs only",
    ),
)  # fmt: skip


def _elements(p: ParamValues) -> tuple[str, ...]:
    scheme = scheme_of(str(p["scheme"]))
    return scheme.weight, scheme.act, scheme.scale


def _sources() -> dict[str, Callable[..., Iterator[dict[str, Any]]]]:
    def without_layout(source: Callable[..., Iterator[dict[str, Any]]]) -> Callable[..., Iterator[dict[str, Any]]]:
        def sizes(**arguments: Any) -> Iterator[dict[str, Any]]:
            for found in source(**arguments):
                yield {name: value for name, value in found.items() if name != "layout"}

        return sizes

    return {name: without_layout(source) for name, source in shapes.SOURCES.items()}


@workload("gemm.quantized", impl="dequantize", requires=FORMATS)
class QuantizedGemm(Workload):
    """C[m, n] = A[m, k] @ W[n, k]^T with W, and in some schemes A, quantised; here: dequantised in the call first.

    Both operands are quantised and packed when the kernel is built. A call takes them packed and gives C in ``dtype``.
    """

    params = Params(
        *RULES,
        m=Int(doc="rows of A and C: tokens"),
        n=Int(doc="rows of W, columns of C"),
        k=Int(doc="columns of A and W"),
        dtype=DType("bf16", "fp16", "fp32", doc="number format of unquantised activations, of C and of dequantising"),
        scheme=Choice(*SCHEMES, doc="how weights and activations are stored"),
        group=Int(0, lo=0, doc="columns of W that share a scale; 0: a whole row, or what the scheme says"),
        bits=Int(0, lo=0, hi=8, doc="bit planes of the weights in the schemes bits and lut"),
        abits=Int(0, lo=0, hi=8, doc="bit planes of the activations in the scheme bits"),
    )
    shape_sources = _sources()

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: unpack and dequantise both operands into ``dtype``, then one dense product."""
        import torch

        set_precision(str(p["dtype"]))
        both = operands(p, ctx)
        out = ctx.empty((integer(p, "m"), integer(p, "n")), str(p["dtype"]))

        def call() -> Any:
            return torch.mm(both.activations(out.dtype), both.weights.dequantize(out.dtype).t(), out=out)

        def eager() -> Any:
            return torch.mm(both.activations(out.dtype), both.weights.dequantize(out.dtype).t())

        workspace = integer(p, "n") * integer(p, "k") * out.element_size()
        return Kernel(call, both.inputs, out, eager, extra_bytes=workspace)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: the product of the *dequantised* operands is the reference.

        Its distance is the fact ``kernel_error``. What quantising itself costs is no error of the kernel: it goes into
        the fact ``scheme_error``, the distance of the exact product of the dequantised operands from that of the
        original ones.
        """
        import torch

        from wattline.suites.gemm.checks import compare, tolerance

        dtype = str(p["dtype"])
        act, weights = kernel.inputs["activations"], kernel.inputs["weights"].dequantize(torch.float32)
        x = act.float() if isinstance(act, torch.Tensor) else act.dequantize(torch.float32)
        if "w" in kernel.inputs:  # of the first set of buffers, the one that is checked
            kernel.facts["scheme_error"] = _scheme_error(x, weights, kernel.inputs["x"], kernel.inputs["w"])
        on_device = weights.device.type != "cpu"
        operand = "fp8_e4m3" if "e4m3" in _elements(p)[:2] and on_device else dtype
        error, method = compare(x, weights.t(), result)
        kernel.facts["kernel_error"] = error
        return error, tolerance(operand, dtype, integer(p, "k"), accelerator=on_device), method

    def scout(self, p: ParamValues, size: int = SCOUT_SIZE) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: at most ``size`` in each direction, or as much of k as a group needs."""
        least = {"m": size, "n": size, "k": max(size, integer(p, "group"))}
        small = {**p, **{name: min(integer(p, name), most) for name, most in least.items()}}
        return None if small == dict(p) else small


def _scheme_error(x: Any, w: Any, x0: Any, w0: Any) -> float:
    """||x w^T - x0 w0^T|| / ||x0 w0^T|| in double precision over rows and columns spread evenly over the result."""
    import torch

    rows = torch.linspace(0, len(x) - 1, min(len(x), _ERROR_ROWS), device=x.device).round().long()
    columns = torch.linspace(0, len(w) - 1, min(len(w), _ERROR_COLUMNS), device=x.device).round().long()
    exact = x0[rows].double() @ w0[columns].double().t()
    size = float(torch.linalg.vector_norm(exact))
    found = x[rows].double() @ w[columns].double().t()
    return float(torch.linalg.vector_norm(found - exact)) / size if size else 0.0


@implementation("gemm.quantized", "dense", requires=FORMATS)
def dense(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Both operands dequantised once, when built, and kept in dtype: what a scheme has to beat."""
    import torch

    set_precision(str(p["dtype"]))
    both = operands(p, ctx)
    m, n, k = (integer(p, name) for name in ("m", "n", "k"))
    out = ctx.empty((m, n), str(p["dtype"]))
    x = both.activations(out.dtype)
    size = n * k * out.element_size()
    w = in_turn(ctx, size, lambda: both.weights.dequantize(out.dtype)).t()
    return Kernel(lambda: torch.mm(x, w, out=out), both.inputs, out, lambda: torch.mm(x, w), extra_bytes=size)


@lru_cache(maxsize=256)
def _product_of(weights: Operand, act: Operand | None, dtype: str) -> Callable[[Any, Any], Any]:
    """Dequantise-then-multiply as a function of tensors alone, for operands of the form of these (which hold none)."""
    import torch

    wanted = getattr(torch, number_format(dtype).torch_name)

    def product(x: Any, w: Any) -> Any:
        left = x[0] if act is None else act.holding(x).dequantize(wanted)
        return torch.mm(left, weights.holding(w).dequantize(wanted).t())

    return product


@implementation("gemm.quantized", "dequantize_compiled", requires=(*FORMATS, compiler()))
def dequantize_compiled(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Dequantise-then-multiply through torch.compile, which makes one pass of the dequantising."""
    set_precision(str(p["dtype"]))
    both = operands(p, ctx)
    empty = (None,) * 4
    function = _product_of(
        both.weights.holding(empty), None if both.act is None else both.act.holding(empty), str(p["dtype"])
    )
    x, w = (both.x,) if both.act is None else both.act.parts, both.weights.parts
    ready, took = compiled(function, x, w)
    return Kernel(lambda: ready(x, w), both.inputs, facts={"compile_s": took})


for _module in ("native", "torchao_impl", "cpu", "triton_impl"):
    import_module(f"wattline.suites.gemm.quant.{_module}")
