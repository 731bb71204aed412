"""Offloading that cannot be: without an accelerator, on one that lacks something, and wrong questions."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.errors import UsageError
from wattline.params import Value
from wattline.suites.registry import get, get_implementation, members
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
CPU = Machine(kind="cpu", torch_version=(2, 13))
GPU = Machine(kind="cuda", sm=90, torch_version=(2, 13))
XPU = Machine(kind="xpu", torch_version=(2, 13))


def test_without_an_accelerator_it_is_said_why() -> None:
    runs_here = {"offload.gather": "host", "offload.pinned_alloc": "mlock", "offload.pipeline": "host",
                 "offload.optimizer": "host"}  # fmt: skip
    needs = {"offload.gather": {"rows": 8}, "offload.swap": {"blocks": 1}, "offload.pipeline": {"to": "device"},
             "offload.optimizer": {"parameters": 4096}}  # fmt: skip
    for op in members("offload"):
        entry = get(op)
        p = entry.workload.params.parse(needs.get(op, {"bytes": 8192}), op=op)
        for name, implementation in entry.implementations.items():
            if runs_here.get(op) == name:
                continue
            reason = implementation.unmet(p, CPU)
            assert reason is not None, (op, name)
            assert reason.code == "no_accelerator"
            assert "accelerator" in reason.message
    assert set(runs_here) < set(members("offload"))
    assert len(members("offload")) == 9


@pytest.mark.parametrize(
    ("op", "impl", "given_", "machine", "code"),
    [
        ("offload.h2d", "torch", {"bytes": 8, "memory": "managed"}, Machine(kind="cuda", hip=True), "no_cuda"),
        ("offload.h2d", "torch", {"bytes": 8, "memory": "pinned"}, XPU, "no_pinned_memory"),
        ("offload.h2d", "torch", {"bytes": 8, "memory": "pageable"}, XPU, ""),
        ("offload.h2d", "torch", {"bytes": 16, "memory": "managed", "streams": 2}, GPU, "no_placing"),
        ("offload.d2h", "torch", {"bytes": 8, "memory": "managed"}, GPU, "one_way"),
        ("offload.bidirectional", "torch", {"bytes": 8, "memory": "zero_copy"}, GPU, "one_way"),
        ("offload.h2d", "torch", {"bytes": 8, "node": 900}, GPU, "no_node"),
        ("offload.optimizer", "host", {"parameters": 4096, "cpu_share": 0.5}, CPU, "no_accelerator"),
        ("offload.optimizer", "host", {"parameters": 4096}, GPU, "host_only"),
        ("offload.optimizer", "split", {"parameters": 4096, "cpu_share": 0.5}, GPU, ""),
        ("offload.pipeline", "device", {"to": "host"}, GPU, "host_only"),
        ("offload.gather", "host", {"rows": 8}, GPU, "host_only"),
        ("offload.pipeline", "host", {"path": "/nothing/at/all"}, CPU, "no_folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(
    op: str, impl: str, given_: dict[str, Value], machine: Machine, code: str
) -> None:
    p = get(op).workload.params.parse(given_, op=op)
    reason = get_implementation(op, impl).unmet(p, machine)
    assert ("" if reason is None else reason.code) == code


@pytest.mark.parametrize(
    ("op", "wrong", "says"),
    [
        ("offload.h2d", {"bytes": 0}, "bytes"),
        ("offload.h2d", {"bytes": 12}, "multiples of 8"),
        ("offload.d2h", {"bytes": 16, "chunk": 24}, "no more than bytes"),
        ("offload.gather", {"rows": 10, "table_rows": 5}, "no more than table_rows"),
        ("offload.swap", {"blocks": 10, "pool": 5}, "no more than pool"),
        ("offload.pinned_alloc", {"bytes": "8Gi"}, "no more than"),
        ("offload.pipeline", {"bytes": 5000}, "multiples of 4096"),
        ("offload.optimizer", {"parameters": 4096, "cpu_share": 1.5}, "cpu_share"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused(op: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        get(op).workload.params.parse(wrong, op=op)
