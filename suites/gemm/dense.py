"""Dense matrix products through torch: cuBLAS and cuBLASLt on NVIDIA, hipBLASLt on AMD, oneDNN on CPU and Intel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wattline.params import Choice, Constraint, DType, Int, Params, Value
from wattline.reasons import Reason
from wattline.suites.gemm import shapes
from wattline.suites.precision import set_precision
from wattline.suites.registry import workload
from wattline.suites.requirements import cuda, torch_at_least, when
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload

FP8 = ("fp8_e4m3", "fp8_e5m2")
HALF = ("bf16", "fp16")
SCOUT_SIZE = 128

_OUT: dict[str, tuple[str, ...]] = {"bf16": ("fp32",), "fp16": ("fp32",), **dict.fromkeys(FP8, ("fp32", "fp16"))}
_ACC: dict[str, tuple[str, ...]] = {"bf16": ("fp32",), "fp16": ("fp32", "fp16"), **dict.fromkeys(FP8, ("fast",))}

OUT_RULE = Constraint(
    'out_dtype is "same", or fp32 for bf16 and fp16, or fp32 or fp16 for fp8 (whose "same" is bf16; int8 gives int32)',
    lambda p: p["out_dtype"] == "same" or p["out_dtype"] in _OUT.get(str(p["dtype"]), ()),
)
ACC_RULE = Constraint(
    'acc is "default", or fp32 for bf16 and fp16, or fp16 for fp16 with out_dtype=same, or fast for fp8',
    lambda p: p["acc"] == "default"
    or (p["acc"] in _ACC.get(str(p["dtype"]), ()) and (p["acc"] != "fp16" or p["out_dtype"] == "same")),
)


def _needs(refused: Callable[[ParamValues, Machine], bool], code: str, message: str) -> Requirement:
    return Requirement(message, lambda p, m: Reason(code, message) if refused(p, m) else None)


def _fp8(p: ParamValues) -> bool:
    return p["dtype"] in FP8


def _int8(p: ParamValues) -> bool:
    return p["dtype"] == "int8"


def _nvidia(machine: Machine) -> bool:
    return machine.kind == "cuda" and not machine.hip


def _int(p: ParamValues, name: str) -> int:
    return int(p[name])


def _mixed_output() -> Requirement:
    """A result wider than 16-bit operands: torch has that product on CUDA and Intel GPUs only."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        if p["dtype"] not in HALF or p["out_dtype"] == "same" or machine.kind in ("cuda", "xpu"):
            return None
        message = f"torch has no product of {p['dtype']} with fp32 output on {machine.kind}"
        return Reason("no_mixed_output", message)

    return Requirement("fp32 output of 16-bit operands: a CUDA, ROCm or Intel GPU", unmet)


def _known_kind() -> Requirement:
    """8-bit products are private functions of torch that exist for some kinds of device."""

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        if not (_fp8(p) or _int8(p)) or machine.kind in ("cpu", "cuda"):
            return None
        return Reason("no_kernel", f"no {p['dtype']} product of torch is known for devices of type {machine.kind}")

    return Requirement("8-bit formats: a CPU or a CUDA or ROCm GPU", unmet)


REQUIRES: tuple[Requirement, ...] = (
    when(lambda p: p["dtype"] == "tf32", cuda(80), "tf32"),
    when(lambda p: p["acc"] in ("fp16", "fast"), cuda(70), "acc fp16 or fast"),
    when(lambda p: p["acc"] == "fp16", torch_at_least(2, 7), "acc fp16"),
    _needs(
        lambda p, m: p["acc"] == "fp32" and m.kind != "cuda",
        "no_acc_choice",
        "torch lets the accumulate format be chosen on CUDA and ROCm only",
    ),
    _mixed_output(),
    when(lambda p: p["dtype"] in HALF and p["out_dtype"] != "same", torch_at_least(2, 8), "mixed output"),
    _known_kind(),
    _needs(
        lambda p, m: (_fp8(p) or _int8(p)) and _int(p, "batch") > 1,
        "no_batch",
        "torch multiplies 8-bit matrices one at a time: batch must be 1",
    ),
    # cuBLASLt's rules for FP8 (torch/aten _scaled_mm): Ada or newer, B column-major, k and n multiples of 16.
    Requirement("fp8 on NVIDIA: compute capability 8.9 or newer", lambda p, m: _fp8_floor(m) if _fp8(p) else None),
    _needs(
        lambda p, m: _nvidia(m) and p["dtype"] == "fp8_e5m2",
        "e5m2_pair",
        "cuBLAS does not multiply two e5m2 matrices",
    ),
    _needs(
        lambda p, m: m.kind == "cuda" and _fp8(p) and p["layout"] != "nt",
        "fp8_layout",
        "the GPU wants A row-major and B column-major for fp8: layout must be nt",
    ),
    _needs(
        lambda p, m: m.kind == "cuda" and _fp8(p) and bool(_int(p, "n") % 16 or _int(p, "k") % 16),
        "fp8_alignment",
        "the GPU wants n and k to be multiples of 16 for fp8",
    ),
    # torch's own rules for _int_mm on a GPU, and cuBLASLt's.
    _needs(
        lambda p, m: _nvidia(m) and _int8(p) and str(p["layout"])[0] == "t",
        "int8_layout",
        "cuBLAS multiplies int8 only with A row-major: layout must be nn or nt",
    ),
    _needs(
        lambda p, m: _nvidia(m) and _int8(p) and m.sm < 75,
        "old_device",
        "int8 products need an NVIDIA GPU of compute capability 7.5 or newer",
    ),
    _needs(
        lambda p, m: m.kind == "cuda" and _int8(p) and _int(p, "m") <= 16,
        "int8_rows",
        "torch multiplies int8 on a GPU only for m above 16",
    ),
    _needs(
        lambda p, m: m.kind == "cuda" and _int8(p) and bool(_int(p, "n") % 8 or _int(p, "k") % 8),
        "int8_alignment",
        "torch multiplies int8 on a GPU only for n and k that are multiples of 8",
    ),
)


def _fp8_floor(machine: Machine) -> Reason | None:
    if not _nvidia(machine) or machine.sm >= 89:
        return None
    found = f"{machine.sm / 10:.1f}"
    return Reason("old_device", f"fp8 needs an NVIDIA GPU of compute capability 8.9 or newer; this one has {found}")


@workload("gemm.dense", requires=REQUIRES)
class DenseGemm(Workload):
    """C[m, n] = A[m, k] @ B[k, n], batched over `batch`.

    The two letters of ``layout`` say how A and B lie in memory: ``n`` row-major as written, ``t`` transposed (A
    stored as [k, m], B as [n, k]) and multiplied through a view. ``nt`` is a linear layer with its weight [n, k].
    """

    params = Params(
        OUT_RULE,
        ACC_RULE,
        batch=Int(1, doc="products of one shape"),
        m=Int(doc="rows of A and C"),
        n=Int(doc="columns of B and C"),
        k=Int(doc="columns of A, rows of B"),
        dtype=DType(doc="number format of A and B"),
        layout=Choice("nn", "nt", "tn", "tt", doc="how A and B are stored: t means transposed"),
        out_dtype=Choice("same", "fp32", "fp16", doc="number format of C"),
        acc=Choice(
            "default", "fp32", "fp16", "fast", doc="accumulate format; fast: the tensor core's own for fp8, unpromoted"
        ),
    )
    shape_sources = shapes.SOURCES

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`.

        Sets torch's global precision switches for this case. Every build sets each of them one way or the other,
        so none leaks from one case into the next.
        """
        import torch

        a, b, out = operands(p, ctx)
        inputs, dtype = {"a": a, "b": b}, str(p["dtype"])
        if dtype in FP8:
            one = torch.ones((), dtype=torch.float32, device=ctx.torch_device)
            options = {"scale_a": one, "scale_b": one, "out_dtype": out.dtype, "use_fast_accum": p["acc"] == "fast"}
            scaled_mm = torch._scaled_mm  # private, but torch's only entry to fp8 products across versions
            return Kernel(lambda: scaled_mm(a, b, **options, out=out), inputs, out, lambda: scaled_mm(a, b, **options))
        if dtype == "int8":
            int_mm = torch._int_mm  # likewise for int8
            return Kernel(lambda: int_mm(a, b, out=out), inputs, out, lambda: int_mm(a, b))
        mm = torch.bmm if out.dim() == 3 else torch.mm
        if out.dtype != a.dtype:
            wide = out.dtype
            return Kernel(lambda: mm(a, b, wide, out=out), inputs, out, lambda: mm(a, b, wide))
        return Kernel(lambda: mm(a, b, out=out), inputs, out, lambda: mm(a, b))

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`; the method is :func:`wattline.suites.gemm.checks.compare`."""
        from wattline.suites.gemm.checks import compare, tolerance
        from wattline.workmodels.gemm import out_format

        a, b = kernel.inputs["a"], kernel.inputs["b"]
        allowed = tolerance(
            str(p["dtype"]),
            out_format(str(p["dtype"]), str(p["out_dtype"])),
            _int(p, "k"),
            acc=str(p["acc"]),
            accelerator=a.device.type != "cpu",
        )
        error, method = compare(a, b, result)
        return error, allowed, method

    def scout(self, p: ParamValues, size: int = SCOUT_SIZE) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: one product of at most ``size`` in each direction."""
        small = {**p, "batch": 1, **{name: min(_int(p, name), size) for name in ("m", "n", "k")}}
        return None if small == dict(p) else small


def operands(p: ParamValues, ctx: BuildContext) -> tuple[Any, Any, Any]:
    """A ``[m, k]``, B ``[k, n]`` as the layout says and an empty C ``[m, n]``, each with ``batch`` in front where that
    is above 1. Sets the precision switches of the case."""
    from wattline.workmodels.gemm import out_format

    set_precision(str(p["dtype"]), str(p["acc"]))
    batch, m, n, k = (_int(p, name) for name in ("batch", "m", "n", "k"))
    dtype, layout = str(p["dtype"]), str(p["layout"])
    lead = (batch,) if batch > 1 else ()

    def operand(rows: int, cols: int, transposed: bool) -> Any:
        # A vector lies in memory the same either way; given the strides of its transpose, torch's int8 product
        # leaves the result unwritten on CPUs (torch 2.13).
        if not transposed or 1 in (rows, cols):
            return ctx.tensor((*lead, rows, cols), dtype)
        return ctx.tensor((*lead, cols, rows), dtype).transpose(-2, -1)

    a = operand(m, k, layout[0] == "t")
    b = operand(k, n, layout[1] == "t")
    return a, b, ctx.empty((*lead, m, n), out_format(dtype, str(p["out_dtype"])))
