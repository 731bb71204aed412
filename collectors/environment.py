"""The environment snapshot: under which conditions a run was measured.

Everything is taken by allow-list. Environment variables in particular are never dumped: only those named here are
read, and a value of unexpected form is left out, so that no secret can reach a file that people share.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from wattline import __version__
from wattline.collectors import host
from wattline.collectors.energy.nvml_probe import NvmlState, probe_nvml

SCHEMA = 1

VARIABLES = (
    # Threads and their places
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC", "OMP_WAIT_POLICY", "OMP_SCHEDULE"),
    *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_SETTINGS", "KMP_HW_SUBSET"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    # Choice of kernels
    *("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "OPENBLAS_CORETYPE"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("ATEN_CPU_CAPABILITY", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
    *("CUBLASLT_WORKSPACE_SIZE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_BLAS_PREFER_HIPBLASLT"),
    *("PYTORCH_TUNABLEOP_ENABLED", "PYTORCH_TUNABLEOP_TUNING", "DISABLE_ADDMM_CUDA_LT"),
    # Devices, launches, memory
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS"),
    *("CUDA_MODULE_LOADING", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION"),
    *("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"),
    # Links
    *("NCCL_ALGO", "NCCL_PROTO", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE"),
)
"""The environment variables that are recorded where set: those that move figures."""

KERNEL_LIBRARIES = (
    *("torch", "numpy", "triton", "pytorch-triton-rocm", "numba", "onnxruntime", "onnxruntime-gpu", "torchao"),
    *("flash-attn", "transformer-engine", "xformers", "nvidia-cublas-cu12", "nvidia-cudnn-cu12"),
    *("nvidia-nccl-cu12", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-cutlass-dsl"),
    *("mkl", "intel-openmp", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda13x"),
)
"""Installed packages whose version changes what is measured."""

OTHER_LIBRARIES = ("scipy", "pandas", "pyarrow", "scikit-learn", "matplotlib", "nvidia-ml-py", "psutil")
"""Installed packages that are recorded, and change nothing."""

# What a value of these variables looks like. Paths, addresses, quotes and long texts do not.
_VALUE = re.compile(r"[A-Za-z0-9_.,:;=+*|{}()\[\] -]{0,200}")
_PRELOADED = re.compile(r"jemalloc|tcmalloc|mimalloc|iomp5|gomp|libomp\b|libomp\.", re.IGNORECASE)

# Parts that must agree before figures are compared. Left out: load, host name, time, other libraries.
_AGREE = (
    *("wattline", "python", "libraries", "torch", "os", "cpu", "memory", "limits", "accelerators", "nvml"),
    *("variables", "preloaded"),
)


def snapshot(
    *,
    root: str = "/",
    variables: Mapping[str, str] | None = None,
    torch: bool = True,
    nvml: Callable[[], NvmlState] = probe_nvml,
) -> dict[str, Any]:
    """The conditions of this machine and process, as plain JSON types.

    Takes some 10 ms where torch is loaded already. Asking torch for the names of GPUs initialises its device
    library in this process: a process that is to fork workers later should pass ``torch=False``.

    Args:
        root: of the file tree that holds ``proc`` and ``sys``.
        variables: environment variables to pick from; those of this process where not given.
        torch: whether to import torch and ask it.
        nvml: asks NVIDIA's library; for tests.

    Returns:
        By part: ``wattline``, ``python``, ``libraries``, ``torch``, ``os``, ``cpu`` (sizes in bytes, clocks in
        hertz), ``memory``, ``limits`` (of the container), ``accelerators``, ``nvml``, ``variables``,
        ``preloaded``; and, of no consequence to :func:`environment_id`, ``other_libraries``, ``load``,
        ``hostname`` and ``taken_at`` (UTC). Parts that could not be asked hold a ``"reason"``.
    """
    variables = os.environ if variables is None else variables
    return {
        "schema": SCHEMA,
        "wattline": __version__,
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "libraries": _versions(KERNEL_LIBRARIES),
        "other_libraries": _versions(OTHER_LIBRARIES),
        "torch": _torch_build() if torch else {"reason": "torch was not asked"},
        "accelerators": _accelerators() if torch else [],
        "nvml": _nvml(nvml()),
        "os": _os(root),
        "cpu": {k: v for k, v in asdict(host.cpu_facts(root)).items() if v not in (None, "", ())},
        "memory": {
            "total_bytes": host.memory_bytes(root),
            "transparent_huge_pages": _chosen(host.read_text(root, "sys/kernel/mm/transparent_hugepage/enabled")),
        },
        "limits": {
            "cpu_quota": host.cpu_quota(root),
            "allowed_cpus": len(host.allowed_cpus(root)) or None,
            "memory_bytes": host.memory_limit(root),
            "container": host.container(root),
        },
        "variables": picked(variables),
        "preloaded": sorted(_preloaded(variables.get("LD_PRELOAD", ""))),
        "load": {"one_minute": _load(root)},
        "hostname": socket.gethostname(),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def picked(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of :data:`VARIABLES` that are set; a value of unexpected form is replaced by a remark."""
    return {
        name: variables[name] if _VALUE.fullmatch(variables[name]) else "(set; its form is unexpected, left out)"
        for name in VARIABLES
        if name in variables
    }


def environment_id(environment: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that two snapshots share when the parts that affect figures agree.

    Load, host name, time, and libraries that measure nothing do not count; memory counts in whole GiB, since
    kernels reserve a little more or less of it at each start.
    """
    text = json.dumps(_agreeing(environment), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between two snapshots in the parts that must agree before runs are compared.

    Returns:
        One line each, such as ``"torch.version: 2.6.0 against 2.7.0"``; empty where :func:`environment_id` agrees.
    """
    left, right = dict(_flat(_agreeing(a))), dict(_flat(_agreeing(b)))
    return [
        f"{name}: {_shown(left.get(name))} against {_shown(right.get(name))}"
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    ]


def _agreeing(environment: Mapping[str, Any]) -> dict[str, Any]:
    # Through JSON: a snapshot read back from a file has lists where a fresh one has tuples.
    parts = json.loads(json.dumps({name: environment.get(name) for name in _AGREE}))
    memory = parts.get("memory") or {}
    if memory.get("total_bytes"):
        memory["total_bytes"] = round(memory["total_bytes"] / 2**30) * 2**30
    return dict(_flat(parts))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves with dotted names; empty ones and ``None`` are left out, so that absent and unknown are the same."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "reason":  # a sentence, not a condition
                yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{index}]")
    elif isinstance(value, list):
        yield from _flat(" ".join(map(str, value)), name)
    elif value is not None and value != "":
        yield name, value


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of the installed packages among ``names``; nothing is imported."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _torch_build() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"reason": f"torch cannot be imported: {error}"}
    return {
        "version": str(torch.__version__),
        "git": torch.version.git_version,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "xpu": getattr(torch.version, "xpu", None),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "openmp": torch.backends.openmp.is_available(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _accelerators() -> list[dict[str, Any]]:
    """Accelerators that torch drives; an entry with a ``"reason"`` where it fails to say."""
    try:
        import torch

        if not torch.accelerator.is_available():
            return []
        kind = torch.accelerator.current_accelerator().type
        module = getattr(torch, kind)
        found = []
        for index in range(torch.accelerator.device_count()):
            facts = module.get_device_properties(index)
            entry = {"kind": kind, "name": facts.name, "memory_bytes": int(facts.total_memory)}
            for name in ("major", "minor", "gcnArchName", "multi_processor_count", "L2_cache_size"):
                if hasattr(facts, name):
                    entry[name.lower()] = getattr(facts, name)
            found.append(entry)
        return found
    except (ImportError, RuntimeError, AttributeError) as error:
        return [{"reason": f"torch could not describe its accelerators: {str(error).splitlines()[0]}"}]


def _nvml(state: NvmlState) -> dict[str, Any]:
    if not state.ready:
        return {"reason": state.detail}
    return {"driver": state.driver, "gpus": [asdict(gpu) for gpu in state.gpus]}


def _os(root: str) -> dict[str, str]:
    release = host.read_text(root, "etc/os-release") or ""
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    return {
        "system": platform.system(),
        "distribution": name.group(1) if name else "",
        "kernel": host.read_text(root, "proc/sys/kernel/osrelease") or platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
    }


def _chosen(text: str | None) -> str:
    """The choice that the kernel puts in brackets: ``madvise`` of ``"always [madvise] never"``."""
    match = re.search(r"\[(\w+)\]", text or "")
    return match.group(1) if match else ""


def _preloaded(value: str) -> set[str]:
    """Kinds of allocators and thread runtimes among preloaded libraries; never their paths."""
    return {found.lower().rstrip(".") for found in _PRELOADED.findall(value)}


def _load(root: str) -> float | None:
    text = host.read_text(root, "proc/loadavg") or ""
    try:
        return float(text.split()[0])
    except (IndexError, ValueError):
        return None
