"""Offloading on a simulated device whose streams run in any order that is allowed, and what the host runs itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattline_sim.streams import SimulatedEngine

from wattline.params import Value
from wattline.stats import summarize
from wattline.suites.fills import Builder
from wattline.suites.offload import copies, optimizer, pinned, pipeline, rows
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
CPU = Machine(kind="cpu", torch_version=(2, 13))
STATS = summarize([2.0, 2.0, 2.0])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimulatedEngine]:
    def install(seed: int = 0) -> SimulatedEngine:
        made = SimulatedEngine(seed)
        for user in (copies, rows, pinned, pipeline, optimizer):
            monkeypatch.setattr(user, "engine_for", lambda ctx: made)
        return made

    return install


def build(op: str, impl: str, **given: Value) -> tuple[dict[str, Value], Kernel, Builder]:
    p = get(op).workload.params.parse(given, op=op)
    context = Builder("cpu", CPU, seed=3)
    return p, get_implementation(op, impl).build(p, context), context


def call(kernel: Kernel) -> Any:
    if kernel.prepare is not None:
        kernel.prepare()
    return kernel.call()


COPIES: list[tuple[str, str, dict[str, Value]]] = [
    *[
        (op, "torch", {"bytes": 1000 * 8, **more})
        for op in ("offload.h2d", "offload.d2h", "offload.bidirectional")
        for more in ({}, {"chunk": 808}, {"chunk": 808, "streams": 3}, {"memory": "pageable", "streams": 2})
    ],
    ("offload.h2d", "torch", {"bytes": 8000, "memory": "zero_copy", "chunk": 800}),
    ("offload.d2h", "torch", {"bytes": 8000, "memory": "zero_copy", "streams": 2}),
    ("offload.h2d", "torch", {"bytes": 8000, "memory": "managed"}),
    ("offload.d2d", "torch", {"bytes": 8000, "chunk": 4000, "streams": 2}),
    *[("offload.gather", impl, {"rows": 100, "table_rows": 300, "row_bytes": 24, "offset": 3})
      for impl in ("copy", "zero_copy")],
    *[("offload.swap", impl, {"blocks": 5, "pool": 9, "block_bytes": 64, "direction": direction})
      for impl in ("block", "coalesced") for direction in ("out", "in")],
]  # fmt: skip


@pytest.mark.parametrize(("op", "impl", "given_"), COPIES, ids=str)
def test_copies_on_a_simulated_device(
    op: str, impl: str, given_: dict[str, Value], device: Callable[..., SimulatedEngine]
) -> None:
    workload = get(op).workload
    for seed in range(5):
        made = device(seed)
        p, kernel, context = build(op, impl, **given_)
        for _ in range(3):
            result = call(kernel)
            assert workload.check(p, kernel, result)[0] == 0
        found = workload.findings(p, [kernel], STATS)
        size = 1.0 * int(p.get("bytes", 0)) or (
            int(p["rows"]) * int(p["row_bytes"]) if op == "offload.gather" else int(p["blocks"]) * int(p["block_bytes"])
        )
        both = 2 if op == "offload.bidirectional" else 1
        assert found["bytes_per_s"] == both * size / 2
        if both == 2:
            assert min(found["h2d_bytes_per_s"], found["d2h_bytes_per_s"]) > 0
        assert workload.footprint(p) > 0
        context.close()
        if op not in ("offload.d2d", "offload.gather"):
            assert made.closed >= 1  # what was pinned is given back


def test_a_wrong_byte_is_found(device: Callable[..., SimulatedEngine]) -> None:
    for op, spoil in (
        ("offload.h2d", lambda k: k.inputs["result"]),
        ("offload.bidirectional", lambda k: k.inputs["results"][1]),
        ("offload.swap", lambda k: k.inputs["target"].view(-1)),
    ):
        made = device()
        given_: dict[str, Value] = {"blocks": 2, "pool": 4} if op == "offload.swap" else {"bytes": 800}
        p, kernel, _ = build(op, "block" if op == "offload.swap" else "torch", **given_)
        result = kernel.call()
        made.synchronize()
        spoil(kernel)[-1] ^= 1
        assert get(op).workload.check(p, kernel, result)[0] > 0


LAYERS: dict[str, Value] = {"layers": 7, "bytes": 8192, "compute_s": 0}


@pytest.mark.parametrize("source", ["host", "storage"])
@pytest.mark.parametrize("more", [{"depth": 0}, {"depth": 1}, {"depth": 3, "chunk": 4096}, {"depth": 20}], ids=str)
def test_pipelines_into_a_simulated_device(
    source: str, more: dict[str, Value], device: Callable[..., SimulatedEngine], disk: str
) -> None:
    workload = get("offload.pipeline").workload
    for seed in range(4):
        device(seed)
        given_ = {**LAYERS, "to": "device", "source": source, "path": disk, "compute_s": 1e-3, **more}
        p, kernel, context = build("offload.pipeline", "device", **given_)
        for _ in range(3):
            call(kernel)
            assert workload.check(p, kernel, None)[0] == 0
        kernel.inputs["pipeline"].seen.zero_()
        assert workload.check(p, kernel, None)[0] > 0.9
        found = workload.findings(p, [kernel], STATS)
        assert found["no_overlap_s"] == pytest.approx(found["load_alone_s"] + found["compute_alone_s"])
        context.close()


def test_the_simulated_device_finds_a_wait_that_is_missing(
    device: Callable[..., SimulatedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests above would say of a pipeline or copies that forget to wait."""
    wrong = {"pipeline": 0, "copies": 0}
    real = SimulatedEngine.wait
    for seed in range(20):
        made = device(seed)
        monkeypatch.setattr(SimulatedEngine, "wait", lambda *_: None)
        p, kernel, _ = build("offload.pipeline", "device", **LAYERS, to="device", source="host", depth=2)
        kernel.call()
        wrong["pipeline"] += get("offload.pipeline").workload.check(p, kernel, None)[0] > 0
        p, kernel, _ = build("offload.h2d", "torch", bytes=8000, chunk=800, streams=4)
        kernel.call()
        made.wait_for(made.current())  # what an event on the timed stream waits for
        result = kernel.inputs["result"]
        wrong["copies"] += bool((result != kernel.inputs["wanted"]).any())
        monkeypatch.setattr(SimulatedEngine, "wait", real)
        made = device(seed)
        p, kernel, _ = build("offload.h2d", "torch", bytes=8000, chunk=800, streams=4)
        kernel.call()
        made.wait_for(made.current())
        assert bool((kernel.inputs["result"] == kernel.inputs["wanted"]).all())
    assert wrong["pipeline"] > 10
    assert wrong["copies"] == 20


@pytest.fixture
def closing() -> Iterator[list[Builder]]:
    contexts: list[Builder] = []
    yield contexts
    for context in contexts:
        context.close()


@pytest.mark.parametrize("source", ["host", "storage"])
@pytest.mark.parametrize("more", [{"depth": 0}, {"depth": 1, "compute_s": 1e-4}, {"depth": 3, "chunk": 4096}], ids=str)
def test_pipelines_into_the_host(source: str, more: dict[str, Value], disk: str, closing: list[Builder]) -> None:
    workload = get("offload.pipeline").workload
    p, kernel, context = build("offload.pipeline", "host", **{**LAYERS, "source": source, "path": disk, **more})
    closing.append(context)
    for _ in range(3):
        call(kernel)
        assert workload.check(p, kernel, None)[0] == 0
        kernel.inputs["pipeline"].seen[:] = 0
    found = workload.findings(p, [kernel], STATS)
    assert found["stall_s"] == pytest.approx(2.0 - found["compute_alone_s"])
    assert found["bytes_per_s"] == 7 * 8192 / 2
    assert found["waited_s"] >= 0
    assert ("filesystem" in kernel.facts) == (source == "storage")


def test_a_reader_that_fails_ends_the_pipeline(disk: str, closing: list[Builder]) -> None:
    _, kernel, context = build("offload.pipeline", "host", **LAYERS, source="storage", path=disk, depth=2)
    closing.append(context)
    scratch = kernel.inputs["source"].scratch
    os.ftruncate(scratch.descriptor, 3 * 8192)
    with pytest.raises(OSError, match="layer 3 could not be read"):
        call(kernel)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.integers(2, 1000))
def test_lines_of_a_pipeline(load: float, compute: float, layers: int) -> None:
    worst, best = pipeline.lines(load, compute, layers)
    assert max(load, compute) < best <= worst * (1 + 1e-12)
    assert pipeline.lines(compute, load, layers) == pytest.approx((worst, best))


def test_lines_by_hand() -> None:
    # Four layers, one second to load and two to compute each: 1 + 4 * 2.
    assert pipeline.lines(4.0, 8.0, 4) == (12.0, 9.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_split_adam_on_a_simulated_device(share: float, device: Callable[..., SimulatedEngine]) -> None:
    workload = get("offload.optimizer").workload
    for seed in range(3):
        device(seed)
        p, kernel, context = build("offload.optimizer", "split", parameters=10_000, cpu_share=share)
        for _ in range(3):
            error, allowed, _ = workload.check(p, kernel, kernel.call())
            assert error <= allowed
        found = workload.findings(p, [kernel], STATS)
        assert ("best_share" in found) == (0 < share < 1)
        if 0 < share < 1:
            assert 0 < found["best_share"] < 1
            assert found["best_step_s"] <= found["predicted_step_s"] * (1 + 1e-9)
            assert found["predicted_error"] == pytest.approx(found["predicted_step_s"] / 2 - 1)
        context.close()
    assert optimizer.split_at({"parameters": 10_000, "cpu_share": 0.3}) == 3072
    assert optimizer.split_at({"parameters": 10_000, "cpu_share": 1.0}) == 10_000


def test_adam_on_the_host_and_a_wrong_step(closing: list[Builder]) -> None:
    workload = get("offload.optimizer").workload
    p, kernel, context = build("offload.optimizer", "host", parameters=5000)
    closing.append(context)
    for _ in range(4):
        result = kernel.call()
        error, allowed, _ = workload.check(p, kernel, result)
        assert error <= allowed
    with torch.no_grad():
        result.add_(1e-4)
    assert workload.check(p, kernel, result)[0] > allowed
    assert workload.findings(p, [kernel], STATS) == {"parameters_per_s": 2500.0}


def test_rows_gathered_by_the_host(closing: list[Builder]) -> None:
    workload = get("offload.gather").workload
    p, kernel, context = build("offload.gather", "host", rows=100, table_rows=1000, row_bytes=40, offset=5)
    closing.append(context)
    result = kernel.call()
    assert workload.check(p, kernel, result)[0] == 0
    assert kernel.inputs["table"].data_ptr() % 64 == 5
    assert len(set(kernel.inputs["numbers"].tolist())) == 100
    result[50, 39] ^= 1
    assert workload.check(p, kernel, result)[0] > 0


def test_memory_locked_by_the_host() -> None:
    implementation = get_implementation("offload.pinned_alloc", "mlock")
    p = get("offload.pinned_alloc").workload.params.parse({"bytes": 5000, "count": 3})
    reason = implementation.unmet(p, CPU)
    if reason is not None:
        pytest.skip(reason.message)
    context = Builder("cpu", CPU)
    kernel = implementation.build(p, context)
    for _ in range(2):
        result = call(kernel)
        assert get("offload.pinned_alloc").workload.check(p, kernel, result)[0] == 0
    assert kernel.facts == {"asked_bytes": 15000, "got_bytes": 3 * 8192, "waste_share": 1 - 15000 / (3 * 8192)}
    context.close()
    assert kernel.inputs["held"] == []


def test_a_limit_of_locked_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(pinned, "_may_lock_anything", lambda: False)
    p = get("offload.pinned_alloc").workload.params.parse({"bytes": 1 << 20})
    reason = get_implementation("offload.pinned_alloc", "mlock").unmet(p, CPU)
    assert reason is not None
    assert reason.code == "locked_limit"
    assert get_implementation("offload.pinned_alloc", "mlock").unmet({**p, "bytes": 4096}, CPU) is None


def test_buffers_of_torch_and_of_the_driver_on_a_simulated_device(
    device: Callable[..., SimulatedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[int] = []
    real = torch.empty

    def empty(*shape: Any, pin_memory: bool = False, **more: Any) -> Any:
        return real(*shape, **more)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: emptied.append(1), raising=False)
    counts = iter([1000, 17384])  # 5000 bytes come in blocks of 8192
    monkeypatch.setattr(
        torch.cuda, "host_memory_stats", lambda: {"allocated_bytes.current": next(counts)}, raising=False
    )
    made = device()
    workload = get("offload.pinned_alloc").workload
    for impl in ("torch", "register"):
        p, kernel, context = build("offload.pinned_alloc", impl, bytes=5000, count=2)
        for _ in range(3):
            assert workload.check(p, kernel, call(kernel))[0] == 0
        assert kernel.facts["got_bytes"] == 16384
        assert kernel.facts["waste_share"] == 1 - 10000 / 16384
        kernel.inputs["held"].append(kernel.inputs["held"][0])
        assert workload.check(p, kernel, None)[0] > 0  # one too many
        context.close()
    assert len(emptied) >= 4
    assert made.closed == 6


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 10), st.floats(1e-6, 10), st.floats(1e-6, 10), st.floats(0, 1))
def test_no_split_is_quicker_than_the_best(cpu: float, link: float, on_device: float, share: float) -> None:
    from wattline.workmodels.offload import best_split, split_step_s

    best = split_step_s(best_split(cpu, link, on_device), cpu, link, on_device)
    assert best <= split_step_s(share, cpu, link, on_device) * (1 + 1e-9)
    shares = np.linspace(0, 1, 11)
    assert split_step_s(shares, cpu, link, on_device).shape == (11,)
