"""scaled_dot_product_attention of torch with one backend forced, so that its name is what ran."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from wattline.errors import UnsupportedError
from wattline.suites.attention.masks import Mask

ANY = "any"
"""Instead of a backend: torch chooses among all."""

BACKENDS = {
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "math": "MATH",
}
"""Short names of torch's backends. On a CPU ``flash`` is torch's own tiled kernel."""


def force(backend: str) -> None:
    """Allow one backend and no other, or :data:`ANY`; see :func:`allow`."""
    allow(*(BACKENDS if backend == ANY else (backend,)))


def allow(*backends: str) -> None:
    """Allow some backends and no others.

    Global switches, as the context manager of torch sets them too; set once when a case is built, they cost its calls
    nothing. Every build sets each of them one way or the other, so none leaks from one case into the next.
    """
    import torch

    cuda = torch.backends.cuda
    cuda.enable_flash_sdp("flash" in backends)
    cuda.enable_mem_efficient_sdp("efficient" in backends)
    cuda.enable_math_sdp("math" in backends)
    if hasattr(cuda, "enable_cudnn_sdp"):
        cuda.enable_cudnn_sdp("cudnn" in backends)


def tiled_backend(dtype: str, device: Any) -> str:
    """The backend that never writes the scores, where one takes the format: on GPUs ``flash`` has 16-bit formats only,
    ``efficient`` fp32 as well, and fp64 is left to ``math``."""
    if device.type == "cpu" or dtype in ("fp16", "bf16"):
        return "flash"
    return "math" if dtype == "fp64" else "efficient"


def bias_of(mask: Mask, device: Any, backend: str) -> dict[str, Any]:
    """The arguments by which torch takes a mask: its cheapest way to say it."""
    if mask.trivial:
        return {}
    if mask.square and not mask.sink:
        return {"is_causal": True}
    fused = backend in ("flash", "efficient", "cudnn") and device.type != "cpu"
    if fused and not mask.window and mask.q_len < mask.kv_len:
        from torch.nn.attention.bias import causal_lower_right

        # Fused kernels align the triangle themselves; a mask as a tensor would make them refuse, or read it.
        return {"attn_mask": causal_lower_right(mask.q_len, mask.kv_len)}
    return {"attn_mask": mask.dense(device)}


def attend(q: Any, k: Any, v: Any, mask: Mask, backend: str, *, scale: float | None = None) -> Callable[[], Any]:
    """A call of one backend on these tensors, tried once; see :func:`attend_queries`."""
    ready = attend_queries(q, k, v, mask, backend, scale=scale)
    return lambda: ready(q)


def attend_queries(
    q: Any, k: Any, v: Any, mask: Mask, backend: str, *, scale: float | None = None
) -> Callable[[Any], Any]:
    """Attention of queries that change over keys and values that stay, by one backend, tried once.

    Args:
        q: ``[batch, heads, q_len, d_qk]``.
        k, v: ``[batch, kv_heads, kv_len, d]``; fewer heads than ``q`` are shared.
        mask: which keys a query sees.
        backend: a key of :data:`BACKENDS`, or :data:`ANY`.
        scale: on the scores; ``None``: torch's own, ``1 / sqrt(d_qk)``.

    Raises:
        UnsupportedError: the backend refuses, in torch's own words.
    """
    from torch.nn.functional import scaled_dot_product_attention

    force(backend)
    options: dict[str, Any] = bias_of(mask, q.device, backend)
    if q.shape[1] != k.shape[1]:
        options["enable_gqa"] = True
    if scale is not None:
        options["scale"] = scale
    tried(lambda: scaled_dot_product_attention(q, k, v, **options), f"backend {backend}", q.device)
    return lambda q: scaled_dot_product_attention(q, k, v, **options)


def tried(call: Callable[[], Any], name: str, device: Any) -> Callable[[], Any]:
    """The call, once it has run.

    Args:
        call: of torch's attention.
        name: what to call it where it refuses.
        device: where it runs.

    Raises:
        UnsupportedError: it refuses, in torch's own words.
    """
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            call()
            if device.type != "cpu":
                torch.accelerator.synchronize()
        except RuntimeError as error:
            text = str(error)
            if not any(words in text.lower() for words in ("no available kernel", "no viable backend", "not support")):
                raise
            why = [str(w.message).splitlines()[0] for w in said if "not used because" not in str(w.message)]
            raise UnsupportedError(
                f"torch's attention {name} refuses this case",
                why="; ".join(dict.fromkeys(why)) or f"{text.splitlines()[0]} (device type {device.type})",
                todo="choose another implementation",
                code="backend_refuses",
            ) from None
    return call


def attend_free() -> Callable[[Any, Any, Any, Any], Any]:
    """Attention over keys and a mask that change from call to call, by whichever fused backend takes them.

    Returns:
        A function of Q ``[batch, heads, q_len, d]``, K and V ``[batch, kv_heads, kv_len, d]`` and a mask, bool, that
        broadcasts to ``[batch, heads, q_len, kv_len]``, or ``None``.
    """
    from torch.nn.functional import scaled_dot_product_attention

    allow("flash", "efficient")

    def attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    return attention
