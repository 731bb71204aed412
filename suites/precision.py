"""Precision of torch's own kernels: global switches, set for each case."""

from __future__ import annotations

from typing import Any


def set_precision(dtype: str, acc: str = "default") -> None:
    """Set torch's global switches so that products and convolutions run in the precision that the case names.

    The loop does so before it builds any case, so that none inherits what another one set; an operation with a choice
    of its own (``acc``) sets it again. fp32 means IEEE products: neither TF32 on GPUs nor bf16 on CPUs. The legacy
    ``allow_tf32`` is used because torch keeps its newer ``fp32_precision`` in step with it, while the reverse makes
    later reads of the former raise (torch 2.9 to 2.13).
    """
    import torch

    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"  # convolutions; on by default
    # Split-k partial sums may be reduced in 16 bits by default; acc=fp32 forbids it.
    matmul.allow_bf16_reduced_precision_reduction = acc != "fp32"
    matmul.allow_fp16_reduced_precision_reduction = acc != "fp32"
    if hasattr(matmul, "allow_fp16_accumulation"):
        matmul.allow_fp16_accumulation = acc == "fp16"
    for kind in ("matmul", "conv"):
        on_cpu: Any = getattr(torch.backends.mkldnn, kind, None)  # torch 2.9 and newer
        if hasattr(on_cpu, "fp32_precision"):
            on_cpu.fp32_precision = "ieee"
