"""torch.compile for implementations."""

from __future__ import annotations

from typing import Any

import pytest

from wattline.suites.compiled import compiled, compiler
from wattline.suites.workload import Machine

torch = pytest.importorskip("torch")


def _chain(x: Any, y: Any) -> Any:
    return torch.relu(x + y) * 2.0


def test_a_function_is_compiled_once_for_each_shape() -> None:
    reason = compiler().unmet({}, Machine())
    if reason:
        pytest.skip(reason.message)
    torch._dynamo.utils.counters.clear()
    for size in (8, 16, 8, 16, 8):
        x, y = torch.randn(size), torch.randn(size)
        ready, seconds = compiled(_chain, x, y)
        assert seconds > 0
        torch.testing.assert_close(ready(x, y), _chain(x, y))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_without_a_compiler_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    reason = compiler().unmet({}, Machine(kind="cpu"))
    assert reason is not None
    assert reason.code == "missing_compiler"
    assert "g++" in reason.message
