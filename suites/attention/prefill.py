"""Attention of a prompt: many queries over as many keys or more, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

from wattline.collectors.host import cpu_facts
from wattline.errors import UnsupportedError
from wattline.params import Choice, Constraint, DType, Flag, Int, Params, Value
from wattline.suites.attention import shapes
from wattline.suites.attention.masks import Mask
from wattline.suites.attention.reference import compare, compare_gradients, tolerance
from wattline.suites.attention.sdpa import attend
from wattline.suites.compiled import compiled, compiler
from wattline.suites.registry import implementation, workload
from wattline.suites.requirements import module, never, torch_at_least
from wattline.suites.workload import BuildContext, Kernel, ParamValues, Workload
from wattline.workmodels.attention import io_lower_bound

FORMATS = ("fp64", "fp32", "bf16", "fp16")

HEAD_RULE = Constraint(
    "heads is a multiple of kv_heads", lambda p: int(p["heads"]) % int(p["kv_heads"]) == 0
)
WINDOW_RULE = Constraint(
    "window is 0 (none) or at most kv_len, and needs causal=true",
    lambda p: p["window"] == 0 or (bool(p["causal"]) and int(p["window"]) <= int(p["kv_len"])),
)
FORMAT_RULE = Constraint(f"dtype is one of {', '.join(FORMATS)}", lambda p: p["dtype"] in FORMATS)
LENGTH_RULE = Constraint(
    "with causal=true q_len is at most kv_len: the queries are the last tokens of the context",
    lambda p: not p["causal"] or int(p["q_len"]) <= int(p["kv_len"]),
)



def mask_of(p: ParamValues) -> Mask:
    """The mask that the parameters name."""
    return Mask(int(p["q_len"]), int(p["kv_len"]), bool(p["causal"]), int(p["window"]))


def fast_memory(device: Any) -> int:
    """Bytes of the fast memory that attention is tiled for, of one multiprocessor (shared memory) or core (second-level
    cache); 0 where neither is known."""
    if device.type == "cuda":
        import torch

        return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_multiprocessor", 0))
    if device.type == "cpu":
        return max((cache.size_bytes for cache in cpu_facts().caches if cache.level == 2), default=0)
    return 0


def inputs_of(p: ParamValues, ctx: BuildContext) -> dict[str, Any]:
    """Q, K and V, each ``[batch, heads, length, head_dim]`` and contiguous."""
    batch, heads, kv_heads, d = (int(p[name]) for name in ("batch", "heads", "kv_heads", "head_dim"))
    d_v = int(p["head_dim_v"]) or d
    dtype = str(p["dtype"])
    return {
        "q": ctx.tensor((batch, heads, int(p["q_len"]), d), dtype),
        "k": ctx.tensor((batch, kv_heads, int(p["kv_len"]), d), dtype),
        "v": ctx.tensor((batch, kv_heads, int(p["kv_len"]), d_v), dtype),
    }


def naive(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    """Attention as it is defined: scores, mask, softmax, weighted sum, each written to memory.

    Args:
        q: ``[batch, heads, q_len, d_qk]``.
        k, v: ``[batch, kv_heads, kv_len, d]``.
        mask: ``[q_len, kv_len]``, bool, or ``None`` where every query sees every key.
        scale: on the scores.
    """
    import torch

    batch, heads, q_len, d = q.shape
    kv_heads = k.shape[1]
    # Query heads that share a key head become more rows of one product: nothing is copied.
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * q_len, d)
    scores = (grouped @ k.transpose(2, 3) * scale).view(batch, kv_heads, heads // kv_heads, q_len, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, dim=-1).view(batch, kv_heads, heads // kv_heads * q_len, -1)
    return (weights @ v).view(batch, heads, q_len, -1)


def kernel_of(p: ParamValues, inputs: dict[str, Any], forward: Callable[[Any, Any, Any], Any]) -> Kernel:
    """The kernel of one direction.

    Args:
        p: the parameters.
        inputs: from :func:`inputs_of`.
        forward: of Q, K and V.
    """
    import torch

    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if p["direction"] == "forward":
        return Kernel(lambda: forward(q, k, v), inputs)
    for tensor in (q, k, v):
        tensor.requires_grad_()
    with torch.enable_grad():
        out = forward(q, k, v)
        inputs["d_out"] = torch.rand_like(out) * 2 - 1
        if not out.requires_grad:
            raise UnsupportedError(
                "this implementation has no backward pass here", why="torch records no gradient of it",
                todo="choose another implementation", code="no_backward",
            )  # fmt: skip
    d_out = inputs["d_out"]
    # The graph of the forward pass is kept: what is timed is the backward pass alone.
    return Kernel(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True), inputs)


@workload("attention.prefill", impl="naive", requires=())
class Prefill(Workload):
    """O = softmax(Q K^T / sqrt(d) + mask) V over the tokens of a prompt.

    Queries are the last ``q_len`` tokens of ``kv_len``. ``kv_heads`` below ``heads`` is grouped-query attention.
    """

    params = Params(
        HEAD_RULE, WINDOW_RULE, FORMAT_RULE, LENGTH_RULE,
        batch=Int(1, doc="sequences"),
        q_len=Int(doc="queries: new tokens of each sequence"),
        kv_len=Int(doc="keys: tokens of the whole context"),
        heads=Int(doc="query heads"),
        kv_heads=Int(doc="key-value heads"),
        head_dim=Int(doc="width of a head of Q and K"),
        head_dim_v=Int(0, lo=0, doc="width of a head of V; 0: the same"),
        dtype=DType(doc="number format of Q, K, V and O"),
        causal=Flag(True, doc="a token sees none behind itself"),
        window=Int(0, lo=0, doc="most recent keys that a query sees; 0: all"),
        direction=Choice("forward", "backward", doc="backward: gradients of Q, K and V, the forward pass done before"),
    )  # fmt: skip
    shape_sources = shapes.SOURCES
    tracks_memory = True

    def footprint(self, p: ParamValues) -> float:
        """See :meth:`Workload.footprint`. Keys outside of every window are allocated all the same."""
        whole = dict(p) | {"window": 0, "causal": False}
        return self.work(whole).bytes_at()

    def build(self, p: ParamValues, ctx: BuildContext) -> Kernel:
        """See :meth:`Workload.build`: scores and weights pass through memory."""
        inputs = inputs_of(p, ctx)
        mask = mask_of(p)
        dense = None if mask.trivial else mask.dense(ctx.torch_device)
        scale = 1.0 / sqrt(int(p["head_dim"]))
        return kernel_of(p, inputs, lambda q, k, v: naive(q, k, v, dense, scale))

    def check(self, p: ParamValues, kernel: Kernel, result: Any) -> tuple[float, float, str]:
        """See :meth:`Workload.check`. The traffic that exact attention needs stands in the facts."""
        i = kernel.inputs
        memory = fast_memory(i["q"].device)
        if memory and p["direction"] == "forward":
            kernel.facts |= {"io_memory_bytes": memory, "io_bound_bytes": io_lower_bound(p, memory)}
        if p["direction"] == "backward":
            tensors = (i["q"].detach(), i["k"].detach(), i["v"].detach())
            error, how = compare_gradients(tensors, i["d_out"], result, mask_of(p))
            return error, 2.0 * tolerance(str(p["dtype"])), how
        error, how = compare(i["q"], i["k"], i["v"], result, mask_of(p))
        return error, tolerance(str(p["dtype"])), how

    def scout(self, p: ParamValues, size: int = 128) -> dict[str, Value] | None:
        """See :meth:`Workload.scout`: a shorter prompt with the same heads."""
        if int(p["kv_len"]) <= size:
            return None
        q_len = max(1, int(p["q_len"]) * size // int(p["kv_len"]))
        return {**p, "kv_len": size, "q_len": q_len, "window": min(int(p["window"]), size)}


def _sdpa(backend: str, p: ParamValues, ctx: BuildContext) -> Kernel:
    inputs = inputs_of(p, ctx)
    mask = mask_of(p)

    if p["direction"] == "forward":
        return Kernel(attend(inputs["q"], inputs["k"], inputs["v"], mask, backend), inputs)
    return kernel_of(p, inputs, lambda q, k, v: attend(q, k, v, mask, backend)())


@implementation("attention.prefill", "flash", requires=(torch_at_least(2, 5),))
def flash(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torch's scaled_dot_product_attention, FlashAttention backend."""
    return _sdpa("flash", p, ctx)


@implementation("attention.prefill", "efficient", requires=(torch_at_least(2, 5),))
def efficient(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torch's scaled_dot_product_attention, memory-efficient backend."""
    return _sdpa("efficient", p, ctx)


@implementation("attention.prefill", "cudnn", requires=(torch_at_least(2, 5),))
def cudnn(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torch's scaled_dot_product_attention, cuDNN backend."""
    return _sdpa("cudnn", p, ctx)


@implementation("attention.prefill", "math", requires=(torch_at_least(2, 5),))
def math(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torch's scaled_dot_product_attention written with plain operations."""
    return _sdpa("math", p, ctx)


@implementation("attention.prefill", "compile", requires=(compiler(),))
def compile_(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The naive form through torch.compile."""
    inputs = inputs_of(p, ctx)
    mask = mask_of(p)
    dense = None if mask.trivial else mask.dense(ctx.torch_device)
    scale = 1.0 / sqrt(int(p["head_dim"]))
    example = (inputs["q"], inputs["k"], inputs["v"], dense, scale)
    if p["direction"] == "backward":
        import torch

        for tensor in example[:3]:
            tensor.requires_grad_()
        with torch.enable_grad():
            ready, seconds = compiled(naive, *example)
    else:
        ready, seconds = compiled(naive, *example)
    kernel = kernel_of(p, inputs, lambda q, k, v: ready(q, k, v, dense, scale))
    kernel.facts["compile_s"] = seconds
    return kernel


def _flex_pattern(mask: Mask) -> Callable[..., Any]:
    """The mask as FlexAttention takes it: a rule on indices, compiled into the kernel."""
    offset, window = mask.kv_len - mask.q_len, mask.window

    def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
        return j <= i + offset

    def windowed(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i + offset) & (j > i + offset - window)

    return windowed if window else causal


@implementation(
    "attention.prefill", "flex",
    requires=(
        torch_at_least(2, 6), compiler(),
        never(lambda p, m: m.kind == "cpu" and p["direction"] == "backward", "no_backward",
              "FlexAttention has no backward pass on a CPU"),
        never(lambda p, m: p["dtype"] == "fp64", "no_kernel", "FlexAttention has no fp64 kernel"),
        never(lambda p, m: int(p["head_dim"]) < 16, "head_dim", "FlexAttention needs a head_dim of at least 16"),
    ),
)  # fmt: skip
def flex(p: ParamValues, ctx: BuildContext) -> Kernel:
    """torch's FlexAttention, compiled once for each pattern and shape."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    inputs = inputs_of(p, ctx)
    mask = mask_of(p)
    block = None
    if not mask.trivial:
        device = str(torch.device(ctx.torch_device))
        block = create_block_mask(_flex_pattern(mask), None, None, mask.q_len, mask.kv_len, device=device)
    options = (None, block, None, p["heads"] != p["kv_heads"])
    tensors = [inputs[name] for name in "qkv"]
    backward = p["direction"] == "backward"
    for tensor in tensors:
        tensor.requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        ready, seconds = compiled(flex_attention, *tensors, *options)
    kernel = kernel_of(p, inputs, lambda q, k, v: ready(q, k, v, *options))
    kernel.facts["compile_s"] = seconds
    return kernel


@implementation(
    "attention.prefill", "flash_attn",
    requires=(
        module("flash_attn"),
        never(lambda p, m: m.kind != "cuda", "no_cuda", "flash-attn runs on CUDA and ROCm GPUs only"),
        never(lambda p, m: p["dtype"] not in ("bf16", "fp16"), "no_kernel", "flash-attn takes bf16 and fp16 only"),
        never(lambda p, m: bool(p["head_dim_v"]) and p["head_dim_v"] != p["head_dim"], "head_dim",
              "flash-attn takes one head_dim for Q, K and V"),
        never(lambda p, m: int(p["head_dim"]) > 256, "head_dim", "flash-attn takes head_dim up to 256"),
    ),
)  # fmt: skip
def flash_attn(p: ParamValues, ctx: BuildContext) -> Kernel:
    """The flash-attn package, where it is installed."""
    from importlib import import_module

    attention = import_module("flash_attn").flash_attn_func
    inputs = inputs_of(p, ctx)
    mask = mask_of(p)
    reach = (mask.window - 1, 0) if mask.window else (-1, -1)

    def forward(q: Any, k: Any, v: Any) -> Any:
        # It wants [batch, length, heads, d]; the views cost nothing.
        out = attention(*(t.transpose(1, 2) for t in (q, k, v)), causal=mask.causal, window_size=reach)
        return out.transpose(1, 2)

    return kernel_of(p, inputs, forward)
