"""Products with low-rank adapters beside them: fine-tuned weights served from one base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wattline.formats import number_format
from wattline.params import Constraint, DType, Int, Params, Value
from wattline.reasons import Reason
from wattline.suites.gemm import shapes
from wattline.suites.gemm.shapes import ShapeSet
from wattline.suites.lowdiscrepancy import log_uniform, points
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import never
from wattline.suites.workload import BuildContext, Kernel, Machine, ParamValues, Requirement, Workload

FORMATS = ("fp64", "fp32", "bf16", "fp16")
RULES = (
    Constraint("rank is at most n and k", lambda p: int(p["rank"]) <= min(int(p["n"]), int(p["k"]))),
    Constraint("adapters is at most m: each has a row", lambda p: int(p["adapters"]) <= int(p["m"])),
)
CHECKED = 64


def layers(
    models: Sequence[str] | str = ("llama-3-8b",), rank: int = 16, adapters: int = 1, **arguments: Any
) -> Iterator[ShapeSet]:
    """Weights of public models with adapters; arguments as :func:`wattline.suites.gemm.shapes.skinny`."""
    for shape in shapes.skinny(models, **arguments):
        if adapters <= shape["m"]:
            yield {**{name: shape[name] for name in "mnk"}, "rank": rank, "adapters": adapters}


def random(count: int = 16, *, seed: int = 0, lo: int = 64, hi: int = 1024, max_m: int = 512) -> Iterator[ShapeSet]:
    """Points spread log-uniformly over m, n, k, rank and adapters, any prefix of which covers the space.

    Args:
        count: how many.
        seed: of the sequence.
        lo, hi: least and most of n and k.
        max_m: most rows.
    """
    for u in points(5, count, seed=seed):
        m = round(log_uniform(u[0], 1, max_m))
        yield {
            "m": m, "n": round(log_uniform(u[1], lo, hi)), "k": round(log_uniform(u[2], lo, hi)),
            "rank": round(log_uniform(u[3], 4, min(64, lo))), "adapters": round(log_uniform(u[4], 1, min(m, 16))),
        }  # fmt: skip


SOURCES: Mapping[str, Callable[..., Iterator[ShapeSet]]] = {"layers": layers, "random": random}


def parts(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """``x [m, k]``, the base ``w [n, k]``, the adapters ``a [adapters, rank, k]`` and ``b [adapters, n, rank]`` and
    the adapter of each row ``ids [m]``: all adapters in turn, in random rows. Adapters are scaled down by ``rank``, as
    trained ones are by alpha / rank."""
    import torch

    set_precision(str(p["dtype"]))
    dtype = str(p["dtype"])
    m, n, k, rank, adapters = (int(p[name]) for name in ("m", "n", "k", "rank", "adapters"))
    x, w = ctx.tensor((m, k), dtype), ctx.tensor((n, k), dtype)
    a, b = ctx.tensor((adapters, rank, k), dtype), ctx.tensor((adapters, n, rank), dtype)
    b.div_(rank)
    mixed = torch.randperm(m, generator=torch.Generator().manual_seed(m))
    return {"x": x, "w": w, "a": a, "b": b, "ids": (torch.arange(m) % adapters)[mixed].to(x.device)}


@workload("gemm.lowrank", impl="two_step")
class LowRank(Workload):
    """y = x W^T + (x A^T) B^T, rows with different adapters A, B in one batch."""

    params = Params(
        *RULES,
        m=Int(doc="rows: tokens"),
        n=Int(doc="output features"),
        k=Int(doc="input features"),
        rank=Int(16, doc="rank of an adapter"),
        adapters=Int(1, doc="different adapters in the batch"),
        dtype=DType(*FORMATS, doc="number format"),
    )
    shape_sources = SOURCES

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`."""
        m, n, k, rank, adapters = (int(p[name]) for name in ("m", "n", "k", "rank", "adapters"))
        elements = 1.0 * m * k + n * k + adapters * rank * (n + k) + m * n
        return elements * number_format(str(p["dtype"])).bytes

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: base product, then two thin ones for each adapter's rows."""
        import torch

        inputs = parts(p, ctx)
        x, w, a, b, ids = inputs.values()
        adapters = int(p["adapters"])
        if adapters == 1:
            first, second = a[0].T, b[0].T
            return Kernel(lambda: torch.addmm(x @ w.T, x @ first, second), inputs)

        def call() -> Any:
            out = x @ w.T
            for i in range(adapters):
                rows = torch.where(ids == i)[0]
                out.index_add_(0, rows, x[rows] @ a[i].T @ b[i].T)
            return out

        return Kernel(call, inputs)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`."""
        import torch

        x, w, a, b, ids = (kernel.inputs[name] for name in ("x", "w", "a", "b", "ids"))
        m = x.shape[0]
        some = sorted({round(i * (m - 1) / max(1, min(m, CHECKED) - 1)) for i in range(min(m, CHECKED))})
        rows = x[some].double()
        ref = rows @ w.double().T
        for row, i in enumerate(ids[some].tolist()):
            ref[row] += b[i].double() @ (a[i].double() @ rows[row])
        size = float(torch.linalg.vector_norm(ref))
        apart = float(torch.linalg.vector_norm(result[some].double() - ref))
        allowed = 3.0 * number_format(str(p["dtype"])).tolerance
        return apart / size if size else apart, allowed, "full" if len(some) == m else f"{len(some)} rows"

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`."""
        names = ("m", "n", "k")
        if max(int(p[name]) for name in names) <= size:
            return None
        small: dict[str, Value] = {name: min(int(p[name]), size) for name in names}
        small |= {"rank": min(int(p["rank"]), size), "adapters": min(int(p["adapters"]), size)}
        return {**p, **small}


@implementation("gemm.lowrank", "gathered")
def gathered(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Every row with a copy of its adapter, in batched products (as Punica's BGMV: Chen et al., arXiv:2310.18547)."""
    import torch

    inputs = parts(p, ctx)
    x, w, a, b, ids = inputs.values()

    def call() -> Any:
        thin = torch.bmm(a[ids], x[:, :, None])
        return torch.baddbmm((x @ w.T)[:, :, None], b[ids], thin)[:, :, 0]

    return Kernel(call, inputs)


@implementation(
    "gemm.lowrank", "merged",
    requires=(never(lambda p, m: int(p["adapters"]) > 1, "several_adapters", "one base cannot hold several adapters"),),
)  # fmt: skip
def merged(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The one adapter added to the base beforehand: a plain product is left."""
    import torch

    inputs = parts(p, ctx)
    x, w, a, b, _ = inputs.values()
    whole = (w.double() + b[0].double() @ a[0].double()).to(w.dtype)
    out = torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device=x.device)
    held = whole.numel() * whole.element_size()
    return Kernel(lambda: torch.mm(x, whole.T, out=out), inputs, out, lambda: x @ whole.T, extra_bytes=held)


def _grouped_mm() -> Requirement:
    text = "torch._grouped_mm: torch 2.9, rows of whole 16 bytes, on NVIDIA GPUs bf16"

    def unmet(p: ParamValues, machine: Machine) -> Reason | None:
        if machine.torch_version < (2, 9):
            return Reason("old_torch", f"it needs {text}")
        if any(int(p[name]) * number_format(str(p["dtype"])).bytes % 16 for name in ("n", "k", "rank")):
            return Reason("alignment", "torch's grouped product wants rows of whole 16 bytes")
        if machine.kind == "cpu":
            return Reason("no_kernel", "torch's grouped product takes fp64 nowhere") if p["dtype"] == "fp64" else None
        if machine.kind != "cuda" or machine.hip or p["dtype"] != "bf16":
            return Reason("no_kernel", "torch's grouped product takes bf16 on NVIDIA GPUs only")
        return None

    return Requirement(text, unmet)


@implementation("gemm.lowrank", "grouped", requires=(_grouped_mm(),))
def grouped(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Rows sorted by adapter, then grouped products (torch._grouped_mm)."""
    import torch

    inputs = parts(p, ctx)
    x, w, a, b, ids = inputs.values()
    # As it wants them: [adapters, k, rank] and [adapters, rank, n], through views.
    first, second, product = a.transpose(1, 2), b.transpose(1, 2), torch._grouped_mm

    def call() -> Any:
        order = torch.argsort(ids, stable=True)
        ends = torch.bincount(ids, minlength=a.shape[0]).cumsum(0).to(torch.int32)
        y = product(product(x[order], first, offs=ends), second, offs=ends)
        return (x @ w.T).index_add_(0, order, y)

    return Kernel(call, inputs)
