"""Launches: counted, graphs and queues refused where there are none, and traces whose every figure is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import SchemaError, StorageError, UnsupportedError, UsageError
from wattline.params import Value
from wattline.stats import summarize
from wattline.suites.fills import Builder
from wattline.suites.launch import trace
from wattline.suites.registry import get, get_implementation
from wattline.suites.workload import Kernel, Machine

torch = pytest.importorskip("torch")
CPU = Machine(kind="cpu", torch_version=(2, 13))
GPU = Machine(kind="cuda", sm=90, torch_version=(2, 13))
XPU = Machine(kind="xpu", torch_version=(2, 13))


def built(impl: str, **given: Value) -> tuple[dict[str, Value], Kernel]:
    p = get("launch.overhead").workload.params.parse(given)
    assert get_implementation("launch.overhead", impl).unmet(p, CPU) is None
    return p, get_implementation("launch.overhead", impl).build(p, Builder("cpu", CPU, seed=1))


@pytest.mark.parametrize(
    ("impl", "arguments"), [("torch", 1), ("python", 1), ("python", 16), ("numba", 1), ("numba", 4), ("numba", 16)]
)
def test_launches_are_counted(impl: str, arguments: int) -> None:
    if impl == "numba":
        pytest.importorskip("numba")
    p, kernel = built(impl, launches=37, arguments=arguments)
    workload = get("launch.overhead").workload
    assert workload.check(p, kernel, kernel.call()) == (0.0, 0.0, "launches counted")
    assert workload.check(p, kernel, None)[0] == 1.0  # none since then
    kernel.call()
    kernel.call()
    assert workload.check(p, kernel, None)[0] == 1.0  # twice as many as one call has
    assert workload.findings(p, [kernel], summarize([0.37] * 3)) == {"launch_s": pytest.approx(0.01)}


def test_without_arguments_there_is_nothing_to_count() -> None:
    p, kernel = built("python", launches=5, arguments=0)
    kernel.call()
    assert get("launch.overhead").workload.check(p, kernel, None)[2].startswith("nothing to compare")


def test_queues_and_graphs_need_a_device() -> None:
    def code(impl: str, machine: Machine, **given: Value) -> str:
        p = get("launch.overhead").workload.params.parse(given)
        reason = get_implementation("launch.overhead", impl).unmet(p, machine)
        return "" if reason is None else reason.code

    assert code("torch", CPU, mode="async") == "no_queue"
    assert code("torch", CPU, mode="graph") == "no_graphs"
    assert code("torch", XPU, mode="graph") == "no_graphs"
    assert code("torch", GPU, mode="graph") == ""
    assert code("torch", GPU, mode="async") == ""
    assert code("torch", CPU, arguments=4) == "fixed_arguments"
    assert code("python", GPU) == "host_only"
    assert code("triton", CPU) in ("no_accelerator", "missing_library")
    with pytest.raises(UsageError, match="arguments are one of"):
        code("python", CPU, arguments=3)
    with pytest.raises(UsageError, match="launches"):
        code("python", CPU, launches=0)


def test_a_queue_and_a_graph_on_a_simulated_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that runs launches when it is waited for, and replays what was captured."""
    from wattline.collectors import device
    from wattline.suites.launch import overhead

    queue: list[Any] = []
    counter = torch.zeros(1, dtype=torch.float64)

    def launch() -> None:
        queue.append(1)

    def wait() -> None:
        counter.add_(len(queue))
        queue.clear()

    class Fake:
        def __init__(self, index: int) -> None:
            assert index == 0

        def capture(self, calls: list[Any]) -> Any:
            return lambda: [call() for call in calls] and None

    monkeypatch.setattr(overhead, "_synchronize", lambda ctx: wait)
    monkeypatch.setattr(device, "AcceleratorDevice", Fake)
    workload = get("launch.overhead").workload
    for mode, queued in (("async", 50), ("graph", 50), ("sync", 0)):
        p = workload.params.parse({"mode": mode, "launches": 50})
        kernel = overhead.launches_kernel(p, Builder("cpu", CPU), launch, counter)
        kernel.call()
        assert len(queue) == queued  # those in a row are waited for by the clock, not by the call
        assert workload.check(p, kernel, None)[0] == 0.0
        found = workload.findings(p, [kernel], summarize([0.5] * 3))
        assert found["launch_s"] == pytest.approx(0.01)
        assert ("enqueue_s" in found) == (mode != "sync")
        assert ("capture_s" in kernel.facts) == (mode == "graph")


def test_triton_kernels_count(interpreted: Any) -> None:
    pytest.importorskip("triton")
    out = interpreted(
        """
import torch
from wattline.suites.launch.triton_kernels import KERNELS
for count, kernel in KERNELS.items():
    tensors = [torch.zeros(1, dtype=torch.float64) for _ in range(count)]
    for _ in range(3):
        kernel[(1,)](*tensors)
    assert [float(t) for t in tensors[:1]] == [3.0] * min(count, 1), count
print("right")
"""
    )
    assert "right" in out


Event = dict[str, Any]


def event(cat: str, name: str, ts: float, dur: float, *, tid: int = 1, correlation: int | None = None) -> Event:
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": tid, "args": args}


def launched(  # noqa: PLR0917 - a line of a table
    number: int, name: str, launch: float, begin: float, dur: float, stream: int = 7
) -> list[Event]:
    return [
        event("cuda_runtime", "cudaLaunchKernel", launch, 2, correlation=number),
        event("kernel", name, begin, dur, tid=stream, correlation=number),
    ]


def test_a_device_trace_by_hand() -> None:
    # Launches at 10, 20, 30 (2 us each); kernels 15-25, 25-40 (waits for the first), 100-110.
    events = [
        event("cpu_op", "aten::mul", 5, 10),
        *launched(1, "a", 10, 15, 10),
        *launched(2, "b", 20, 25, 15),
        *launched(3, "c", 30, 100, 10),
        {"ph": "M", "name": "process_name"},
    ]
    report = trace.analyse(events)
    assert report.kind == "device"
    assert report.kernels == 3
    assert report.span_s == pytest.approx(105e-6)  # 5 to 110
    assert report.busy_s == pytest.approx(35e-6)
    assert report.tklqt_s == pytest.approx((5 + 5 + 70) * 1e-6)
    assert report.queued_s == pytest.approx((3 + 8) * 1e-6)  # 22 to 25 and 32 to 40: the stream was busy
    assert report.gaps_s == pytest.approx(60e-6)
    assert report.kernel_s == pytest.approx(35e-6 / 3)
    assert report.idle_share == pytest.approx(1 - 35 / 105)
    assert report.verdict == "host-bound"
    assert report.fusion == ()  # nothing occurs twice


def test_streams_that_overlap_count_once_and_do_not_wait_for_each_other() -> None:
    events = [*launched(1, "a", 0, 5, 100, 7), *launched(2, "b", 3, 10, 50, 8), *launched(3, "c", 6, 60, 10, 8)]
    report = trace.analyse(events)
    assert report.busy_s == pytest.approx(100e-6)
    assert report.queued_s == pytest.approx(52e-6)  # the third one, 8 to 60, behind the second
    assert report.gaps_s == 0
    assert report.verdict == "device-bound"
    # A kernel whose launch the trace does not hold (a graph's) counts no wait.
    lonely = trace.analyse([event("kernel", "g", 50, 10, correlation=9), *launched(1, "a", 0, 5, 10)])
    assert lonely.tklqt_s == pytest.approx(5e-6)


def test_chains_by_hand() -> None:
    # a b c, a b c, a b d: with 1 us between kernels; "a b" thrice, always after a.
    found = trace.chains(list("abcabcabd"), np.full(8, 1e-6))
    by_name = {c.names: c for c in found}
    assert (by_name["a", "b"].count, by_name["a", "b"].proximity) == (3, 1.0)
    assert by_name["a", "b"].saved_s == pytest.approx(3e-6)
    assert by_name["a", "b", "c"].proximity == pytest.approx(2 / 3)
    assert by_name["a", "b", "c"].saved_s == pytest.approx(4e-6)
    assert found[0].saved_s == max(c.saved_s for c in found)
    # One kernel five times: two pairs fit, and they do not overlap.
    assert trace.chains(list("aaaaa"), np.full(4, 1e-6))[-1].count == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=40), st.integers(0, 100))
def test_chains_save_no_more_than_there_is(names: list[str], seed: int) -> None:
    gaps = np.random.default_rng(seed).random(len(names) - 1)
    text = "".join(names)
    for chain in trace.chains(names, gaps):
        assert chain.saved_s <= gaps.sum() + 1e-9
        assert chain.count == text.count("".join(chain.names))  # str.count, too, counts without overlap
        assert 0 < chain.proximity <= 1


def test_operators_stand_for_kernels_on_a_cpu() -> None:
    events = [
        event("cpu_op", "aten::linear", 0, 100),
        event("cpu_op", "aten::t", 10, 10),
        event("cpu_op", "aten::addmm", 30, 60),
        event("cpu_op", "aten::copy_", 35, 5),  # part of addmm, which does more itself
        event("cpu_op", "aten::relu", 150, 50),
        event("cpu_op", "aten::view", 210, 5),
        event("python_function", "f", 0, 300),
    ]
    report = trace.analyse(events)
    assert report.kind == "cpu"
    assert report.kernels == 2  # addmm and relu
    assert report.busy_s == pytest.approx(110e-6)
    assert report.tklqt_s == pytest.approx(30e-6)  # linear waited 30 for addmm; relu is its own
    assert report.span_s == pytest.approx(200e-6)
    assert report.gaps_s == pytest.approx(60e-6)
    assert report.verdict == "mixed"


def test_traces_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no kernels and no operators"):
        trace.analyse([])
    with pytest.raises(UnsupportedError, match="touches data"):
        trace.analyse([event("cpu_op", "aten::view", 0, 1)])
    with pytest.raises(StorageError, match="nothing"):
        trace.read_trace(tmp_path / "nothing.json")
    for text, says in (("{", "not JSON"), ("{}", "no traceEvents"), ("3", "no traceEvents")):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(SchemaError, match=says):
            trace.read_trace(tmp_path / "t.json")
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": launched(1, "a", 0, 5, 10)}))
    assert trace.analyse(trace.read_trace(tmp_path / "t.json")).kernels == 1


def test_anything_can_be_traced() -> None:
    x = torch.ones(64, 64)
    calls = []

    def call() -> None:
        calls.append(1)
        for _ in range(5):
            torch.relu(x @ x)

    if torch.accelerator.is_available():
        pytest.skip("the operators ran on the host")
    report = trace.trace_callable(call, warmup=2, repeats=2)
    assert len(calls) == 4
    assert report.kernels == 10
    assert report.fusion[0].proximity > 0
    assert any(set(c.names) == {"aten::mm", "aten::clamp_min"} for c in report.fusion)
    assert report.facts()["verdict"] in ("host-bound", "mixed", "device-bound")


@pytest.mark.parametrize(
    ("spans", "working"),
    [
        # A view that was interrupted does not hide the product it was made for ...
        ({"addmm": (0, 100), "expand": (1, 70)}, ["addmm"]),
        ({"linear": (0, 100), "t": (1, 60), "addmm": (61, 99)}, ["linear"]),
        ({"linear": (0, 100), "t": (1, 5), "addmm": (6, 99)}, ["addmm"]),
        # ... and is none itself, but for a copy that it calls.
        ({"t": (0, 100), "as_strided": (10, 90)}, []),
        ({"reshape": (0, 100), "clone": (10, 90), "copy_": (15, 88)}, ["copy_"]),
    ],
)
def test_who_does_the_work(spans: dict[str, tuple[float, float]], working: list[str]) -> None:
    begin, end = zip(*spans.values(), strict=True)
    found = trace.workers(begin, end, [f"aten::{name}" for name in spans])
    assert [list(spans)[i] for i, _ in found] == working
    assert {root for _, root in found} <= {0}


@pytest.mark.parametrize("more", [{}, {"dtype": "bf16", "batch": 2, "tokens": 7, "hidden": 96}], ids=str)
def test_the_model_is_right_and_traced(more: dict[str, Any]) -> None:
    workload = get("launch.trace").workload
    p = workload.params.parse({"layers": 2, "hidden": 64, **more})
    kernel = workload.build(p, Builder("cpu", CPU, seed=2))
    result = kernel.call()
    error, allowed, _ = workload.check(p, kernel, result)
    assert error <= allowed
    assert workload.check(p, kernel, result * 1.1)[0] > allowed
    found = workload.findings(p, [kernel], summarize([1.0] * 3))
    assert found["kernels"] == 2 * 10  # two norms, four products, attention, gelu and two sums
    assert found["traced_ratio"] == pytest.approx(found["span_s"])
    assert workload.scout(p) == {**p, "layers": 1, "batch": 1}
    with pytest.raises(UsageError, match="multiple of 32"):
        workload.params.parse({"hidden": 50})
