"""Weight-only products of torchao, where it is installed: its own packing, taken through its public configurations.

torchao rounds and packs the weights itself, so the reference of the check is the product with *its* dequantised
weights. Its kernels with quantised activations quantise them inside the call: another operation than the one here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from wattline.suites.gemm.quant import quantized  # noqa: F401 - registers the op
from wattline.suites.gemm.quant.operands import integer, operands
from wattline.suites.precision import set_precision
from wattline.suites.registry import implementation
from wattline.suites.requirements import cuda, module, never, when
from wattline.suites.workload import BuildContext, Kernel, ParamValues


@dataclass(frozen=True)
class Packed:
    """Weights of torchao with what the check asks of an operand.

    Attributes:
        layer: the linear layer that holds them.
    """

    layer: Any

    def dequantize(self, dtype: Any) -> Any:
        """The weights [n, k] as numbers in a torch dtype."""
        import torch

        weight = self.layer.weight
        if hasattr(weight, "scale_and_zero"):
            # 4-bit tiles come with no way back but the product with the identity, whose sums have one term each.
            identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
            return self.layer(identity).t().to(dtype)
        return weight.dequantize(output_dtype=dtype)


def _group(p: ParamValues) -> int:
    return integer(p, "group")


@implementation(
    "gemm.quantized",
    "torchao",
    requires=(
        module("torchao"),
        never(lambda p, m: p["scheme"] not in ("w8a16", "w4a16"), "scheme",
              "torchao is taken for w8a16 and w4a16: where it quantises activations too, it does so inside the call"),
        never(lambda p, m: m.kind not in ("cpu", "cuda"), "no_kernel",
              "torchao's products of 4- and 8-bit weights are known on CPUs and on CUDA GPUs only"),
        never(lambda p, m: _group(p) > 0 and integer(p, "k") % _group(p) > 0, "alignment",
              "torchao quantises in groups only where k is a multiple of the group"),
        when(lambda p: p["scheme"] == "w4a16", cuda(80), "4-bit weights"),
        never(lambda p, m: p["scheme"] == "w4a16" and _group(p) == 0, "only_groups",
              "torchao multiplies 4-bit weights in groups of 32, 64, 128 or 256 only"),
        never(lambda p, m: p["scheme"] == "w4a16" and p["dtype"] != "bf16", "only_bf16",
              "torchao packs 4-bit weights for bf16 activations only"),
    ),
)  # fmt: skip
def torchao(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torchao's linear layer with 8-bit weights, or with 4-bit ones in tiles (on a GPU)."""
    import torch

    quantization: Any = import_module("torchao.quantization")
    set_precision(str(p["dtype"]))
    both = operands(p, ctx)
    n, k = both.weights.shape
    layer = torch.nn.Linear(k, n, bias=False, device="meta", dtype=both.x.dtype)
    # Only the first set of buffers has the original weights; what costs time is where bytes lie, not what they say.
    weight = both.originals["w"] if "w" in both.originals else both.weights.dequantize(both.x.dtype)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    quantization.quantize_(layer, _config(quantization, p))
    x = both.x
    facts = {"torchao": str(import_module("torchao").__version__)}
    inputs = {"activations": x, "weights": Packed(layer), **both.originals}

    def call() -> Any:
        with torch.inference_mode():
            return layer(x)

    return Kernel(call, inputs, facts=facts)


def _config(quantization: Any, p: ParamValues) -> Any:
    """torchao's configuration; it must not change the compiler's settings for the rest of the process."""
    if p["scheme"] == "w4a16":
        return quantization.Int4WeightOnlyConfig(
            group_size=_group(p), int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    along = quantization.PerGroup(_group(p)) if _group(p) else quantization.PerRow()
    return quantization.Int8WeightOnlyConfig(granularity=along, set_inductor_config=False)
