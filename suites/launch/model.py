"""A small network, run operator by operator, and what a trace of it says of launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wattline.formats import number_format
from wattline.params import Constraint, DType, Int, Params, Value
from wattline.suites.registry import workload
from wattline.suites.rowwise.common import distance
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.workmodels.launch import WIDEN

if TYPE_CHECKING:
    from wattline.stats import TimeStats

HEAD = 32
"""Width of a head of attention."""


def forward(x: Any, layers: Sequence[Mapping[str, Any]]) -> Any:
    """Blocks of a transformer, normalised before each part; ``x`` is ``[batch, tokens, hidden]``."""
    import torch.nn.functional as F  # noqa: N812 - what everybody calls it

    batch, tokens, hidden = x.shape
    for w in layers:
        y = F.layer_norm(x, (hidden,), w["scale1"], w["shift1"])
        q, k, v = F.linear(y, w["qkv"], w["qkv_bias"]).view(batch, tokens, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, hidden)
        x = x + F.linear(y, w["proj"], w["proj_bias"])
        y = F.layer_norm(x, (hidden,), w["scale2"], w["shift2"])
        y = F.gelu(F.linear(y, w["up"], w["up_bias"]))
        x = x + F.linear(y, w["down"], w["down_bias"])
    return x


def weights(hidden: int, ctx: BuildContext, fmt: str) -> dict[str, Any]:
    """The weights of one block, scaled so that values keep their size from block to block."""
    shapes = {"qkv": (3 * hidden, hidden), "proj": (hidden, hidden), "up": (WIDEN * hidden, hidden)}
    shapes["down"] = (hidden, WIDEN * hidden)
    made: dict[str, Any] = {}
    for name, shape in shapes.items():
        made[name] = ctx.tensor(shape, fmt).mul_(shape[1] ** -0.5)
        made[f"{name}_bias"] = ctx.tensor((shape[0],), fmt).mul_(0.1)
    for part in ("1", "2"):
        made[f"scale{part}"] = ctx.empty((hidden,), fmt).fill_(1.0)
        made[f"shift{part}"] = ctx.empty((hidden,), fmt).zero_()
    return made


@workload("launch.trace")
class Trace(Workload):
    """Blocks of a transformer run operator by operator; a trace tells launches, waits, and what to fuse."""

    params = Params(
        Constraint(f"hidden is a multiple of {HEAD}, the width of a head", lambda p: int(p["hidden"]) % HEAD == 0),
        layers=Int(4, hi=1000, doc="blocks"),
        batch=Int(1, doc="sequences"),
        tokens=Int(16, doc="tokens of each"),
        hidden=Int(256, doc="width"),
        dtype=DType("fp32", "bf16", "fp16", default="fp32", doc="number format"),
    )
    regime = "eager"

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`."""
        import torch

        fmt, hidden = str(p["dtype"]), int(p["hidden"])
        x = ctx.tensor((int(p["batch"]), int(p["tokens"]), hidden), fmt)
        layers = [weights(hidden, ctx, fmt) for _ in range(int(p["layers"]))]

        def call() -> Any:
            with torch.inference_mode():
                return forward(x, layers)

        return Kernel(call, {"x": x, "layers": layers})

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`: against the same in double precision; each block's seven steps may round."""
        x = kernel.inputs["x"].double()
        layers = [{name: w.double() for name, w in layer.items()} for layer in kernel.inputs["layers"]]
        allowed = 4 * number_format(str(p["dtype"])).tolerance * int(p["layers"]) ** 0.5
        return distance(result, forward(x, layers)), allowed, "full"

    def findings(self, p: ParamValues, kernels: Sequence[Kernel], stats: TimeStats) -> Mapping[str, Any]:
        """See :meth:`Workload.findings`: the report on one call; the profiler makes it slower than what was timed."""
        from wattline.suites.launch.trace import trace_callable

        report = trace_callable(kernels[0].call)
        return {**report.facts(), "traced_ratio": report.span_s / stats.median_s}

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: one block of few tokens."""
        smaller = {**p, "layers": 1, "batch": 1, "tokens": min(int(p["tokens"]), size)}
        return None if smaller == p else smaller
