"""Products with sparse matrices: CSR, blocks and 2:4, beside the same matrix stored dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import ceil
from typing import Any

from wattline.errors import UnsupportedError
from wattline.params import Choice, Constraint, DType, Float, Int, Params, Value
from wattline.suites.gemm import sparse_shapes
from wattline.suites.gemm.copies import in_turn
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import cuda, module, never, when
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.workmodels.sparse import per_block, sparse_activations, stored

FORMATS = ("fp64", "fp32", "bf16", "fp16")
MKL_FORMATS = ("fp64", "fp32")

DENSITY_RULE = Constraint(
    "density is above 0 and at most 1: at 0 there is no work to measure; 1 is a full matrix in sparse storage",
    lambda p: 0 < float(p["density"]) <= 1,
)
BLOCK_RULE = Constraint(
    "block is 16, 32 or 64, and pattern=block needs n and k that are multiples of it",
    lambda p: p["block"] in (16, 32, 64)
    and (p["pattern"] != "block" or int(p["n"]) % int(p["block"]) == int(p["k"]) % int(p["block"]) == 0),
)
FILL_RULE = Constraint(
    "block_fill is above 0, belongs to pattern=block, and density is at most block_fill",
    lambda p: float(p["block_fill"]) > 0
    and (float(p["density"]) <= float(p["block_fill"]) if p["pattern"] == "block" else p["block_fill"] == 1),
)
TWO_RULE = Constraint(
    "pattern=2:4 needs density=0.5, k that is a multiple of 4, and no skew",
    lambda p: p["pattern"] != "2:4" or (p["density"] == 0.5 and int(p["k"]) % 4 == 0 and p["skew"] == 0),
)
BOTH_RULE = Constraint(
    "sparse=both needs pattern=csr, activations=km and no skew",
    lambda p: p["sparse"] != "both" or (p["pattern"] == "csr" and p["activations"] == "km" and p["skew"] == 0),
)
def _countable(p: ParamValues) -> bool:
    weights = stored(p)
    counts = [weights.units] if p["sparse"] == "weight" else [weights.units, sparse_activations(p)]
    return bool(min(counts) >= 1 and weights.units <= weights.most_units and max(weights.values, *counts) < 2**31)


COUNT_RULE = Constraint(
    "density must keep at least one element (block) of each sparse operand, no more than there is place for, and "
    "fewer than 2**31",
    _countable,
)


def _matrices(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Values of the weights as their storage lays them out, and X (dense, or its values where it is sparse)."""
    import torch

    from wattline.suites.gemm import sparsity

    m, n, k, dtype = int(p["m"]), int(p["n"]), int(p["k"]), str(p["dtype"])
    places = sparsity.weights_of(p)
    if p["pattern"] == "block":
        block = int(p["block"])
        values = ctx.tensor((len(places.columns), block, block), dtype)
        kept = sparsity.kept_in_blocks(p)
        if kept is not None:
            values *= torch.from_numpy(kept).to(values.device)
    else:
        values = ctx.tensor((n, k // 2) if p["pattern"] == "2:4" else (len(places.columns),), dtype)
    if p["sparse"] == "both":
        return {"values": values, "x_values": ctx.tensor((len(sparsity.activations_of(p).columns),), dtype)}
    return {"values": values, "x": ctx.tensor((k, m) if p["activations"] == "km" else (m, k), dtype)}


def _facts(p: ParamValues) -> dict[str, Any]:
    import numpy as np

    from wattline.suites.gemm.sparsity import activations_of, weights_of

    places, weights = weights_of(p), stored(p)
    per_row = np.diff(places.pointers)
    nnz = int(weights.nnz)
    facts: dict[str, Any] = {
        "nnz": nnz,
        "density": nnz / (int(p["n"]) * int(p["k"])),
        "row_least": int(per_row.min()),
        "row_most": int(per_row.max()),
    }
    if p["sparse"] == "both":
        others = activations_of(p)
        in_columns = np.bincount(places.columns, minlength=int(p["k"]))
        facts |= {"nnz_x": len(others.columns), "pairs": int(in_columns @ np.diff(others.pointers))}
    return facts


def _compressed(make: Callable[..., Any], places: Any, values: Any, shape: tuple[int, int]) -> Any:
    """A compressed matrix of torch; every set of buffers gets indices of its own."""
    import torch

    pointers, columns = (torch.tensor(part, device=values.device) for part in (places.pointers, places.columns))
    with warnings.catch_warnings():
        # Once per process torch says that its compressed matrices are in beta.
        warnings.filterwarnings("ignore", "Sparse .* tensor support is in beta", UserWarning)
        return make(pointers, columns, values, shape, check_invariants=True)


def _torch_weights(p: ParamValues, values: Any) -> Any:
    """The weights as torch's own sparse matrix: CSR or BSR."""
    import torch

    from wattline.suites.gemm.sparsity import weights_of

    if values.device.type == "cpu" and not torch.backends.mkl.is_available():
        raise UnsupportedError(
            "torch multiplies sparse matrices on a CPU through MKL", why="this torch was built without it",
            todo="choose another implementation", code="no_mkl",
        )  # fmt: skip
    make = torch.sparse_bsr_tensor if p["pattern"] == "block" else torch.sparse_csr_tensor
    return _compressed(make, weights_of(p), values, (int(p["n"]), int(p["k"])))


def _torch_activations(p: ParamValues, values: Any) -> Any:
    import torch

    from wattline.suites.gemm.sparsity import activations_of

    return _compressed(torch.sparse_csr_tensor, activations_of(p), values, (int(p["k"]), int(p["m"])))


def _result(p: ParamValues, ctx: BuildContext) -> Any:
    m, n = int(p["m"]), int(p["n"])
    return ctx.empty((n, m) if p["activations"] == "km" else (m, n), str(p["dtype"]))


def _into(p: ParamValues, x: Any, out: Any) -> Callable[[Any], Any]:
    """``W -> W X``, written into ``out`` and returned, whichever way X and the result lie in memory."""
    import torch

    if p["activations"] == "km":
        return lambda w: torch.mm(w, x, out=out)
    columns, result = x.t(), out.t()

    def turned(w: Any) -> Any:
        torch.mm(w, columns, out=result)
        return out

    return turned


_CPU_ONLY = never(lambda p, m: m.kind != "cpu", "no_kernel", "it runs on a CPU only")
_WIDE = never(lambda p, m: p["dtype"] not in MKL_FORMATS, "no_kernel", "it multiplies fp32 and fp64 only")


@workload(
    "gemm.sparse",
    requires=(
        never(lambda p, m: m.kind not in ("cpu", "cuda"), "no_kernel",
              "torch multiplies sparse matrices on CPUs and on CUDA and ROCm GPUs only"),
        never(lambda p, m: m.kind == "cpu" and p["dtype"] not in MKL_FORMATS and p["pattern"] != "2:4", "no_kernel",
              "torch multiplies sparse matrices on a CPU in fp32 and fp64 only"),
        when(lambda p: p["pattern"] == "2:4", cuda(80), "2:4"),
        never(lambda p, m: p["pattern"] == "2:4" and p["dtype"] not in ("bf16", "fp16"), "no_kernel",
              "sparse tensor cores multiply 2:4 in 16 bits (fp32 would become tf32)"),
        never(lambda p, m: p["pattern"] == "2:4" and bool(int(p["n"]) % 32 or int(p["k"]) % 64), "alignment",
              "torch packs 2:4 matrices only of n in multiples of 32 and k of 64"),
    ),
)  # fmt: skip
class SparseGemm(Workload):
    """C[n, m] = W[n, k] @ X[k, m] with sparse weights W, or both operands sparse.

    ``activations`` says how X lies in memory, and so the result: ``km`` as written, ``mk`` one token after another
    (X stored ``[m, k]``, the result ``[m, n]``).
    """

    params = Params(
        DENSITY_RULE, BLOCK_RULE, FILL_RULE, TWO_RULE, BOTH_RULE, COUNT_RULE,
        m=Int(doc="columns of X: tokens"),
        n=Int(doc="rows of W"),
        k=Int(doc="columns of W, rows of X"),
        density=Float(hi=1.0, doc="share of elements that are kept"),
        pattern=Choice("csr", "block", "2:4", doc="where they stand: anywhere, in whole blocks, two of each four"),
        block=Int(16, doc="side of a block: 16, 32 or 64"),
        block_fill=Float(1.0, hi=1.0, doc="share of a stored block that is kept; the rest are stored zeros"),
        sparse=Choice("weight", "both", doc="which operands are sparse"),
        activations=Choice("km", "mk", doc="how X is stored"),
        skew=Float(0.0, hi=8.0, doc="exponent of a power law of elements over rows; 0: as even as can be"),
        pattern_seed=Int(0, lo=0, doc="seed of the pattern"),
        dtype=DType(*FORMATS, doc="number format of W, X and C"),
    )  # fmt: skip
    shape_sources = sparse_shapes.SOURCES

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`. Dense copies of the weights are bounded apart (:func:`in_turn`)."""
        return self.work(p).bytes_at()

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: torch's CSR, blocked CSR and semi-structured matrices."""
        import torch

        set_precision(str(p["dtype"]))
        inputs = _matrices(p, ctx)
        facts = _facts(p)
        if p["pattern"] == "2:4":
            return self._semi_structured(p, inputs, facts)
        w = _torch_weights(p, inputs["values"])
        if p["sparse"] == "both":
            x = _torch_activations(p, inputs["x_values"])
            return Kernel(lambda: torch.mm(w, x), inputs, facts=facts)
        out = _result(p, ctx)
        product = _into(p, inputs["x"], out)
        x = inputs["x"]
        if p["activations"] == "km":
            return Kernel(lambda: product(w), inputs, out, lambda: w @ x, facts=facts)
        return Kernel(lambda: product(w), inputs, out, lambda: x @ w.t(), facts=facts)

    @staticmethod
    def _semi_structured(p: ParamValues, inputs: dict[str, Any], facts: dict[str, Any]) -> Kernel:
        import torch
        from torch.sparse import to_sparse_semi_structured

        from wattline.suites.gemm.sparsity import scatter

        w: Any = to_sparse_semi_structured(scatter(p, inputs["values"]))
        x = inputs["x"]
        facts["padded_m"] = ceil(int(p["m"]) / 8) * 8  # torch pads the tokens to what the tensor cores take
        if p["activations"] == "km":
            return Kernel(lambda: torch.mm(w, x), inputs, facts=facts)
        return Kernel(lambda: torch.nn.functional.linear(x, w), inputs, facts=facts)

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: against the dense matrices, which the pattern and the values give anew."""
        import torch

        from wattline.suites.gemm.checks import compare, tolerance
        from wattline.suites.gemm.sparsity import activations_of, scatter

        found, i = result, kernel.inputs
        if hasattr(found, "toarray"):  # scipy's
            kernel.facts["nnz_out"] = int(found.nnz)
            found = torch.from_numpy(found.toarray())
        elif found.layout == torch.sparse_csr:
            kernel.facts["nnz_out"] = int(found.values().numel())
            found = found.to_dense()
        w = i["w"] if "w" in i else scatter(p, i["values"])
        if "x_values" in i:
            places = activations_of(p)
            x = torch.zeros((int(p["k"]), int(p["m"])), dtype=w.dtype, device=w.device)
            x[torch.from_numpy(places.rows).to(w.device), torch.from_numpy(places.columns).long().to(w.device)] = (
                i["x_values"]
            )
        else:
            x = i["x"]
        if p["activations"] == "mk":
            x, found = x.t(), found.t()
        error, how = compare(w, x, found)
        terms = int(p["k"])
        return error, tolerance(str(p["dtype"]), str(p["dtype"]), terms, accelerator=w.device.type != "cpu"), how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: fewer rows and columns, no sparser than leaves one element (block)."""
        small = {**p, **{name: min(int(p[name]), size) for name in ("m", "n", "k")}}
        if small == dict(p):
            return None
        n, k = int(small["n"]), int(small["k"])
        least = 1.0
        if p["pattern"] == "block":
            least = float(per_block(int(p["block"]), p["block_fill"]))
        places = n * k if p["sparse"] == "weight" else k * min(n, int(small["m"]))
        density = max(float(p["density"]), least / places)
        return {**small, "density": 0.5 if p["pattern"] == "2:4" else density}


@implementation("gemm.sparse", "dense")
def dense(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The same matrices stored dense, zeros and all: what sparsity has to beat."""
    import torch

    from wattline.suites.gemm.sparsity import scatter

    set_precision(str(p["dtype"]))
    inputs = _matrices(p, ctx)
    values = inputs.pop("values")
    w = in_turn(ctx, int(p["n"]) * int(p["k"]) * values.element_size(), lambda: scatter(p, values))
    if "x_values" in inputs:
        inputs["x"] = _torch_activations(p, inputs.pop("x_values")).to_dense()
    inputs["w"] = w
    out, x = _result(p, ctx), inputs["x"]
    facts = _facts(p)
    if p["activations"] == "km":
        return Kernel(lambda: torch.mm(w, x, out=out), inputs, out, lambda: torch.mm(w, x), facts=facts)
    turned = w.t()
    return Kernel(lambda: torch.mm(x, turned, out=out), inputs, out, lambda: torch.mm(x, turned), facts=facts)


@implementation(
    "gemm.sparse", "densify",
    requires=(never(lambda p, m: m.kind not in ("cpu", "cuda"), "no_kernel",
                    "torch unpacks sparse matrices on CPUs and on CUDA and ROCm GPUs only"),),
)  # fmt: skip
def densify(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Kept sparse, made dense in every call, then multiplied: sparsity that saves memory and no time."""
    import torch

    from wattline.suites.gemm import sparsity

    set_precision(str(p["dtype"]))
    inputs = _matrices(p, ctx)
    values, facts = inputs["values"], _facts(p)
    out = _result(p, ctx)
    if p["pattern"] == "2:4":
        n, k = int(p["n"]), int(p["k"])
        columns = torch.from_numpy(sparsity.weights_of(p).columns.reshape(n, k // 2))
        packed = torch.from_numpy(sparsity.pack(columns.numpy())).to(values.device)

        def weights() -> Any:
            return torch.zeros((n, k), dtype=values.dtype, device=values.device).scatter_(
                1, sparsity.unpack(packed, k // 2), values
            )
    else:
        weights = _torch_weights(p, values).to_dense
    if p["sparse"] == "both":
        x = _torch_activations(p, inputs["x_values"])
        return Kernel(lambda: torch.mm(weights(), x.to_dense(), out=out), inputs, out, facts=facts)
    product = _into(p, inputs["x"], out)
    return Kernel(lambda: product(weights()), inputs, out, facts=facts)


@implementation(
    "gemm.sparse", "scipy",
    requires=(_CPU_ONLY, _WIDE, never(lambda p, m: p["pattern"] != "csr", "no_kernel", "it multiplies csr only")),
)  # fmt: skip
def scipy(p: ParamValues, ctx: BuildContext) -> Kernel:
    """scipy.sparse's CSR product, on one thread: the plain loop over rows."""
    import torch
    from scipy.sparse import csr_array

    from wattline.suites.gemm.sparsity import activations_of, weights_of

    inputs, facts = _matrices(p, ctx), _facts(p)

    def matrix(places: Any, values: Any, shape: tuple[int, int]) -> Any:
        return csr_array((values.numpy(), places.columns.copy(), places.pointers.copy()), shape=shape)

    m, n, k = int(p["m"]), int(p["n"]), int(p["k"])
    w = matrix(weights_of(p), inputs["values"], (n, k))
    if p["sparse"] == "both":
        x = matrix(activations_of(p), inputs["x_values"], (k, m))
        return Kernel(lambda: w @ x, inputs, facts=facts)
    columns = inputs["x"].numpy()
    if p["activations"] == "km":
        return Kernel(lambda: torch.from_numpy(w @ columns), inputs, facts=facts)
    turned = columns.T
    return Kernel(lambda: torch.from_numpy(w @ turned).t(), inputs, facts=facts)


@implementation(
    "gemm.sparse", "numba",
    requires=(
        module("numba"), _CPU_ONLY, _WIDE,
        never(lambda p, m: p["activations"] != "km", "no_kernel", "it reads activations stored [k, m] only"),
        never(lambda p, m: p["sparse"] == "both", "no_kernel", "it multiplies sparse weights with dense activations"),
    ),
)  # fmt: skip
def numba(p: ParamValues, ctx: BuildContext) -> Kernel:
    """Own CPU kernels compiled by Numba, rows over threads: CSR, blocks, 2:4 from packed values and 2-bit places."""
    import torch

    from wattline.suites.gemm import sparsity
    from wattline.suites.gemm.sparse_numba import kernel_for

    inputs, facts = _matrices(p, ctx), _facts(p)
    out = _result(p, ctx)
    places = sparsity.weights_of(p)
    values, x, c = (t.numpy() for t in (inputs["values"], inputs["x"], out))
    kernel, facts["compile_s"] = kernel_for(str(p["pattern"]), values.dtype)
    facts["threads"] = torch.get_num_threads()
    indices: tuple[Any, ...]
    if p["pattern"] == "2:4":
        indices = (sparsity.pack(places.columns.reshape(values.shape)),)
    else:
        indices = (places.pointers.copy(), places.columns.copy())  # every set of buffers reads its own

    def call() -> Any:
        kernel(*indices, values, x, c)
        return out

    return Kernel(call, inputs, out, facts=facts)
