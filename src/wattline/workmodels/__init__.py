"""Work models: the FLOPs and bytes of each operation as pure functions of its parameters.

A model takes a mapping of parameters and returns :class:`~wattline.work.Work`. Numeric parameters may be plain
numbers or numpy arrays of one shape (a predictor asks for a million at once); words such as ``dtype`` are single.
The models import neither torch nor numpy, so that a listing stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wattline.errors import unknown_name

if TYPE_CHECKING:
    from wattline.work import Work

WorkModel = Callable[[Mapping[str, Any]], "Work"]

_BUILT_IN: dict[str, str] = {
    "attention.decode": "decode:decode",
    "attention.hybrid": "hybrid:hybrid",
    "attention.kvquant": "decode:kvquant",
    "attention.linear": "linear_attention:linear",
    "attention.merge": "merging:merge",
    "attention.mla": "mla:mla",
    "attention.prefill": "attention:prefill",
    "attention.sparse": "sparse_attention:sparse",
    "gemm.dense": "gemm:dense",
    "conv.2d": "conv:conv2d",
    "conv.long": "conv:long_conv",
    "fusion.chain": "fusion:chain",
    "gemm.lowrank": "lowrank:lowrank",
    "gemm.moe": "moe:moe",
    "gemm.monarch": "monarch:monarch",
    "gemm.quantized": "quantized:quantized",
    "gemm.sparse": "sparse:sparse",
    "gemm.tiled": "tiled:tiled",
    "host.stream": "memory:loop",
    "launch.overhead": "launch:overhead",
    "launch.trace": "launch:blocks",
    "memory.bandwidth": "memory:loop",
    "memory.latency": "memory:chase",
    "norm.layernorm": "rowwise:row_model",
    "norm.rmsnorm": "rowwise:row_model",
    "offload.bidirectional": "offload:bidirectional",
    "offload.d2d": "offload:within",
    "offload.d2h": "offload:transfer",
    "offload.gather": "offload:gather",
    "offload.h2d": "offload:transfer",
    "offload.optimizer": "offload:adam",
    "offload.pinned_alloc": "offload:pinned",
    "offload.pipeline": "offload:pipeline",
    "offload.swap": "offload:swap",
    "rope": "rowwise:row_model",
    "softmax.rows": "rowwise:row_model",
    "storage.checkpoint": "storage:checkpoint",
    "storage.read": "storage:read",
    "storage.write": "storage:write",
}
_ROWWISE = (
    "copy", "relu", "gelu", "silu", "tanh", "sigmoid", "exp", "neg", "abs", "sqrt",
    "add", "sub", "mul", "div", "pow", "max", "min", "addu", "subu", "mulu", "divu", "powu", "maxu", "minu",
)  # fmt: skip
_COLLECTIVES = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "gather", "scatter", "all_to_all_v",
    "broadcast", "reduce", "send_recv", "barrier",
)  # fmt: skip
_BUILT_IN |= {f"elementwise.{name}": "rowwise:row_model" for name in _ROWWISE}
_BUILT_IN |= {f"collectives.{name}": "collectives:collective_model" for name in _COLLECTIVES}
_ON_COLLECTIVES = ("algorithm", "p2p_matrix", "overlap", "compressed", "strided", "moe", "stragglers")
_BUILT_IN |= {f"collectives.{name}": f"comm:{name}" for name in _ON_COLLECTIVES}
_FAMILIES = frozenset({"row_model", "collective_model"})
"""Functions that make the model of one operation out of its name, for operations that differ in a few counts."""
_REGISTERED: dict[str, WorkModel] = {}


def register(op: str, model: WorkModel) -> None:
    """Make ``model`` the work model of ``op``; a workload of a third party calls this through its registration."""
    _REGISTERED[op] = model


def known_ops() -> list[str]:
    """The operations that have a work model."""
    return sorted({*_BUILT_IN, *_REGISTERED})


def work_model(op: str) -> WorkModel:
    """The work model of an operation.

    Raises:
        UnknownNameError: it has none.
    """
    if op not in _REGISTERED:
        if op not in _BUILT_IN:
            raise unknown_name("op", op, known_ops(), listing="wattline list")
        module, function = _BUILT_IN[op].split(":")
        model = getattr(import_module(f"{__name__}.{module}"), function)
        _REGISTERED[op] = model(op) if function in _FAMILIES else model
    return _REGISTERED[op]


def work_of(op: str, params: Mapping[str, Any]) -> Work:
    """The work of one operation with these parameters."""
    return work_model(op)(params)
